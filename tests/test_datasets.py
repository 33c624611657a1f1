"""The label maps against the three whole real tables, which the torchxrayvision package carries."""

import gzip
import inspect
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import owners
import pandas as pd
import parity
import pytest

from stages import harmonize
from stages.core import findings, plugins
from stages.datasets import chestxray14, chexpert, padchest
from stages.sources import contracts, raw

NIH_POSITIVES = {
    "Atelectasis": 11559, "Cardiomegaly": 2776, "Consolidation": 4667, "Edema": 2303, "Effusion": 13317,
    "Emphysema": 2516, "Fibrosis": 1686, "Hernia": 227, "Infiltration": 19894, "Mass": 5782, "Nodule": 6331,
    "Pleural_Thickening": 3385, "Pneumonia": 1431, "Pneumothorax": 5302,
}  # fmt: skip
# torchxrayvision's positives of PadChest that are none here, and ours that are none there
PADCHEST_DIFFERENCES = {
    "Effusion": (18, 15), "Emphysema": (75, 0), "Hilar_Enlargement": (371, 0), "Infiltration": (0, 42),
    "Mass": (243, 0), "Nodule": (1339, 0), "Support_Devices": (0, 2784),
}  # fmt: skip
imports_torchxrayvision = pytest.mark.filterwarnings("ignore")


def counts(rows: pd.DataFrame, finding: str) -> dict[int, int]:
    return {int(fact): int(count) for fact, count in rows[finding].value_counts().items()}


def test_every_positive_of_the_whole_nih_table_is_counted() -> None:
    rows, _ = parity.source("chestxray14")
    assert len(rows) == 112120
    assert rows["patient"].nunique() == 30805
    assert rows["view"].value_counts().to_dict() == {"PA": 67310, "AP": 44810}
    for finding, positives in NIH_POSITIVES.items():
        assert counts(rows, finding) == {findings.PRESENT: positives, findings.ABSENT: 112120 - positives}


def test_the_boxes_of_nih_are_984_on_880_images() -> None:
    boxes = chestxray14.boxes(parity.whole_tables("chestxray14"))
    contracts.check(boxes, contracts.boxes(findings.vocabulary().names), "boxes")
    assert boxes["image"].nunique() == 880
    assert boxes["finding"].value_counts().to_dict() == {
        "Atelectasis": 180, "Effusion": 153, "Cardiomegaly": 146, "Infiltration": 123, "Pneumonia": 120,
        "Pneumothorax": 98, "Mass": 85, "Nodule": 79,
    }  # fmt: skip


def test_implied_negatives_of_the_whole_chexpert_table_add_up() -> None:
    rows, _ = parity.source("chexpert")
    frontal = rows[(rows["official"] == "train_val") & (rows["view"] != "lateral")]
    atelectasis = counts(frontal, "Atelectasis")
    assert (atelectasis[findings.PRESENT], atelectasis[findings.ABSENT]) == (29720, 1025)
    rows = frontal[frontal["dropped"] == ""]
    assert len(rows) == 191010
    effusion = counts(rows, "Effusion")
    assert effusion[findings.PRESENT] == 76894
    assert effusion[findings.ABSENT] + effusion[findings.IMPLIED] == 34376
    assert effusion[findings.UNCERTAIN] + effusion[findings.BLANK] == 79740
    assert findings.IMPLIED not in counts(rows, "Support_Devices")


def test_rows_of_chexpert_are_dropped_by_name() -> None:
    rows, _ = parity.source("chexpert")
    assert rows["dropped"].value_counts().to_dict() == {"": 223398, "called Frontal but LL or RL": 17}


def test_each_of_the_194_strings_of_padchest_has_a_finding_a_rule_or_is_listed_as_unmapped() -> None:
    _, terms = parity.source("padchest")
    explained = harmonize.explain_terms(terms, padchest)
    assert len(explained) == 194
    assert {term for term, found in explained.items() if found["unmapped"]} == set(padchest.UNMAPPED)
    assert (terms[""], terms["copd signs"], terms["cardiomegaly"], terms["unchanged"]) == (3041, 23280, 15028, 14349)


def test_rows_of_padchest_are_dropped_by_named_rules() -> None:
    rows, _ = parity.source("padchest")
    assert rows["dropped"].value_counts().to_dict() == {
        "": 160861 - 1312 - 777 - 412 - 103,
        "marked `exclude`": 1312,
        "no label left after stray blanks": 777,
        "only `suboptimal study`": 412,
        "no label list": 103,
    }


def test_stored_bits_of_padchest_are_12_or_10() -> None:
    bits = pd.Series(padchest.bit_depths(parity.whole_tables("padchest")))
    assert bits.value_counts().to_dict() == {12: 144051, 10: 16810}


@pytest.mark.parametrize("name", plugins.names("datasets"))
def test_a_plug_in_defines_what_the_package_says_and_maps_known_findings_only(name: str) -> None:
    plugin = plugins.load("datasets", name)
    for text in ("LICENCE", "SOURCE", "ACCESS"):
        assert isinstance(getattr(plugin, text), str), text
    assert findings.vocabulary().in_order(plugin.TERMS)
    assert not {term for terms in plugin.TERMS.values() for term in terms} & set(plugin.RULES)
    assert {kind for columns in plugin.TABLES.values() for kind in columns.values()} <= set(raw.KINDS)
    assert plugin.image_key("Data_Entry.csv") is None


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (
            "CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg",
            "valid/patient64541/study1/view1_frontal.jpg",
        ),
        ("train/patient00001/study2/view2_lateral.jpg", "train/patient00001/study2/view2_lateral.jpg"),
        (
            "CheXpert-v1.0 batch 2 (train 1)/patient1/study1/view1_frontal.jpg",
            "train/patient1/study1/view1_frontal.jpg",
        ),
        ("CheXpert-v1.0-small/valid/._view1_frontal.jpg", None),
    ],
)
def test_the_key_of_a_chexpert_image_is_its_path_below_the_release(name: str, key: str | None) -> None:
    assert chexpert.image_key(name) == key


@imports_torchxrayvision
def test_the_page_on_parity_is_what_the_whole_tables_give() -> None:
    assert parity.PAGE.read_text(encoding="utf-8") == parity.page(), "run `make parity`, and read what changed"


@imports_torchxrayvision
@pytest.mark.parametrize(("name", "films", "findings_there"), [("chestxray14", 112120, 14), ("chexpert", 191010, 13)])
def test_labels_equal_those_of_torchxrayvision(name: str, films: int, findings_there: int) -> None:
    compared = parity.compare(name)
    assert len(compared) == findings_there == len(parity.reference(name).pathologies)
    assert {int(found.films.sum()) for found in compared.values()} == {films}
    assert not any(found.differing for found in compared.values())
    assert parity.films(name)["both"] == {"the same": films}


@imports_torchxrayvision
def test_labels_of_padchest_differ_from_torchxrayvisions_by_the_listed_terms_and_unchanged_reports_only() -> None:
    compared = parity.compare("padchest")
    assert set(padchest.TERMS) - set(compared) == {"Enlarged_Cardiomediastinum"}
    both = {finding: found.films[parity.POSITIVE, parity.POSITIVE] for finding, found in compared.items()}
    there = {finding: found.films[parity.POSITIVE].sum() for finding, found in compared.items()}
    here = {finding: found.films[:, parity.POSITIVE].sum() for finding, found in compared.items()}
    alone = {finding: (there[finding] - both[finding], here[finding] - both[finding]) for finding in compared}
    assert {finding: films for finding, films in alone.items() if any(films)} == PADCHEST_DIFFERENCES
    assert {found.films.sum() for found in compared.values()} == {94815}
    assert (there["Cardiomegaly"], there["Effusion"], there["Pneumothorax"]) == (8743, 3937, 243)
    assert not any(found.films[parity.UNKNOWN].any() for found in compared.values())
    assert compared["Pneumothorax"].terms == {(parity.NEGATIVE, parity.UNKNOWN): {"unchanged": 6906}}


def test_a_film_that_differs_without_a_listed_reason_is_named() -> None:
    with pytest.raises(ValueError, match=r"Mass: positive there, negative here, no listed reason in \['nodule'\]"):
        parity.reasons("Mass", (parity.POSITIVE, parity.NEGATIVE), {"nodule"})
    with pytest.raises(ValueError, match="no listed reason"):
        parity.reasons("Mass", (parity.NEGATIVE, parity.UNKNOWN), {"unchanged", "normal"})
    found = parity.reasons("Mass", (parity.POSITIVE, parity.UNKNOWN), {"unchanged", "pleural mass", "nodule"})
    assert found == {"unchanged", "pleural mass"}


@imports_torchxrayvision
def test_rows_of_padchest_that_torchxrayvision_lacks_are_its_listed_exclusions() -> None:
    lacked = parity.lacked("padchest")
    assert len(lacked) == 96287 - 94815
    reasons = Counter(lacked.values())
    assert sorted(reasons.values()) == [17, 68, 1387]
    hard_coded = inspect.getsource(type(parity.reference("padchest")))
    broken = [image for image, reason in lacked.items() if "missing or broken" in reason]
    assert len(broken) == 17
    assert all(f'"{image}"' in hard_coded for image in broken)


def test_the_full_release_of_chexpert_is_read_from_its_batches(project: Path) -> None:
    """Three zips: the tables and valid films in one, and patient folders without the part's name in the others."""
    train = [owners.chexpert_row(owners.chexpert_path("train", patient)) for patient in (1, 2)]
    valid = [owners.chexpert_row(owners.chexpert_path("valid", 64541), Edema=1)]
    for row in (*train, *valid):
        row[0] = row[0].replace("-small", "")
    header = [*chexpert.ABOUT, *chexpert.LABELS]
    first = "CheXpert-v1.0 batch 1 (validate & csv)"
    batches = {
        first: {
            "train.csv": owners.table(header, train),
            "valid.csv": owners.table(header, valid),
            owners.chexpert_path("valid", 64541): owners.jpeg(owners.film(0)),
        },
        "CheXpert-v1.0 batch 2 (train 1)": {"patient00001/study1/view1_frontal.jpg": owners.jpeg(owners.film(1))},
        "CheXpert-v1.0 batch 3 (train 2)": {"patient00002/study1/view1_frontal.jpg": owners.jpeg(owners.film(2))},
    }
    root = project / "root"
    root.mkdir()
    for batch, members in batches.items():
        owners.zipped(root / f"{batch}.zip", {f"{batch}/{name}": content for name, content in members.items()})
    labels, _ = owners.harmonized("chexpert", root)
    films, _ = owners.ingested("chexpert", root)
    assert sorted(films) == labels.index.tolist() == [
        owners.chexpert_path("train", 1), owners.chexpert_path("train", 2), owners.chexpert_path("valid", 64541),
    ]  # fmt: skip
    assert labels.loc[owners.chexpert_path("valid", 64541), ["split", "Edema"]].tolist() == ["test", 1]


@pytest.mark.parametrize("pack", [owners.zipped, owners.in_folder], ids=["zips", "folders"])
def test_padchest_is_read_from_its_52_parts_and_the_gzipped_table(project: Path, pack: Any) -> None:
    parts = [*range(51), 54]
    rows = [owners.padchest_row(f"{part}.png", ["normal"], bits=12) for part in parts]
    root = owners.padchest(project / "root", rows, images={})
    (root / "0.zip").unlink()
    table = root / padchest.ENTRIES
    (root / f"{table.name}.gz").write_bytes(gzip.compress(table.read_bytes()))
    table.unlink()
    for part in parts:
        film = np.full((96, 96), 4095 * part // 54, np.uint16)
        film[48:72], film[72:] = 0, 4095
        pack(root / (f"{part}.zip" if pack is owners.zipped else str(part)), {f"{part}.png": owners.png(film)})
    labels, _ = owners.harmonized("padchest", root)
    films, _ = owners.ingested("padchest", root)
    assert sorted(films) == labels.index.tolist() == sorted(row[0] for row in rows)
    for part in parts:
        film = films[f"{part}.png"]
        assert np.all(film[: len(film) // 2] == round(4095 * part // 54 * 255 / 4095))


def chexpert_with_later_test(root: Path) -> Path:
    """CheXpert, and beside its zip the later test set as CheXlocalize ships it: one patient, two views."""
    valid = [owners.chexpert_row(owners.chexpert_path("valid", 64541), Edema=1)]
    owners.chexpert_zip(root, [owners.chexpert_row(owners.chexpert_path("train", p)) for p in range(1, 9)], valid)
    paths = [owners.chexpert_path("test", 64741, view) for view in ("frontal", "lateral")]
    rows = [[path, *(float(term == "Edema") for term in chexpert.LABELS)] for path in paths]
    header = ["Path", *chexpert.LABELS]
    images = {f"CheXpert/{path}": owners.jpeg(owners.film(place)) for place, path in enumerate(paths)}
    owners.zipped(root / "chexlocalize.zip", images | {"CheXpert/test_labels.csv": owners.table(header, rows)})
    return root


def test_chexperts_later_test_set_tests_and_the_official_one_validates_when_params_say_so(project: Path) -> None:
    root = chexpert_with_later_test(project / "root")
    owners.project(project, datasets__chexpert__split="later_test", datasets__chexpert__max_rejected_rows=0.0)
    labels, report = owners.harmonized("chexpert", root)
    film = "test/patient64741/study1/view1_frontal.jpg"
    assert labels["split"].value_counts().to_dict() == {"train": 8, "val": 1, "test": 1}
    assert labels.loc[film, ["split", "view", "label_source", "Edema", "Effusion"]].tolist() == [
        "test", "frontal", "physician", 1, 0,
    ]  # fmt: skip
    assert labels.loc["valid/patient64541/study1/view1_frontal.jpg", "split"] == "val"
    assert report["left_out"] == {"view lateral": 1}
    assert film in owners.ingested("chexpert", root)[0]


def test_chexperts_later_test_set_is_left_out_and_counted_otherwise(project: Path) -> None:
    labels, report = owners.harmonized("chexpert", chexpert_with_later_test(project / "root"))
    assert not labels.index.str.startswith("test/").any()
    assert labels.loc["valid/patient64541/study1/view1_frontal.jpg", "split"] == "test"
    assert report["left_out"] == {"of the later test set, for split: later_test": 1, "view lateral": 1}


def test_a_later_test_set_that_is_not_there_is_asked_for(project: Path) -> None:
    owners.project(project, datasets__chexpert__split="later_test")
    root = owners.chexpert_zip(project / "root", [owners.chexpert_row(owners.chexpert_path("train", 1))])
    with pytest.raises(ValueError, match=r"chexpert has no later test set: choose official, or add the files"):
        owners.harmonized("chexpert", root)


def test_padchest_states_the_size_of_every_film() -> None:
    sizes = padchest.sizes(parity.whole_tables("padchest"))
    assert len(sizes) == 160_861
    assert sizes["20536686640136348236148679891455886468_k6ga29.png"] == (1872, 1728)
