"""The label maps against the three whole real tables, which the torchxrayvision package carries."""

import importlib.util
import inspect
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import owners
import pandas as pd
import pytest

from stages import harmonize
from stages.core import contracts, findings, plugins, raw
from stages.datasets import chestxray14, chexpert, padchest

NIH_POSITIVES = {
    "Atelectasis": 11559, "Cardiomegaly": 2776, "Consolidation": 4667, "Edema": 2303, "Effusion": 13317,
    "Emphysema": 2516, "Fibrosis": 1686, "Hernia": 227, "Infiltration": 19894, "Mass": 5782, "Nodule": 6331,
    "Pleural_Thickening": 3385, "Pneumonia": 1431, "Pneumothorax": 5302,
}  # fmt: skip
# PadChest rows that torchxrayvision's substrings call a finding and whole terms do not, by the terms at fault
SUBSTRING_ONLY = {
    "Effusion": (("pericardial effusion",), 18),
    "Emphysema": (("subcutaneous emphysema",), 75),
    "Hilar_Enlargement": (("calcified adenopathy", "calcified mediastinal adenopathy"), 371),
    "Mass": (("mediastinal mass", "soft tissue mass", "breast mass", "pleural mass"), 243),
    "Nodule": (("pseudonodule",), 1339),
}
# and rows that only the label tree calls one
TREE_ONLY = {
    "Effusion": (("hydropneumothorax", "empyema"), 15),
    "Infiltration": (("miliary opacities",), 42),
    "Support_Devices": (tuple(set(padchest.TERMS["Support_Devices"])), 2784),
}
PEDIATRIC_YEAR = 2009  # torchxrayvision keeps who was over 10 in 2019


def package_data() -> Path:
    """Where torchxrayvision keeps its tables, found without importing it."""
    spec = importlib.util.find_spec("torchxrayvision")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "data"


def whole_tables(name: str) -> dict[str, pd.DataFrame]:
    """The real tables of a data set; those that the package lacks are made up: NIH's lists, CheXpert's valid.csv."""
    plugin, folder = plugins.load("datasets", name), package_data()
    if name == "chexpert":
        train = raw.table(folder, "chexpert_train.csv.gz", "", plugin.TABLES["train.csv"])
        valid = train.head(1).assign(Path="CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg")
        valid.attrs = train.attrs
        return {"train.csv": train, "valid.csv": valid}
    tables = {
        file: raw.table(folder, f"{file}.gz", "", columns)
        for file, columns in plugin.TABLES.items()
        if not file.endswith(".txt")
    }
    if name == "chestxray14":
        entries = tables[plugin.ENTRIES]
        is_test = entries["Patient ID"].str.endswith("0")
        for file, chosen in ((plugin.TEST, is_test), (plugin.TRAIN_VAL, ~is_test)):
            tables[file] = entries.loc[chosen, ["Image Index"]]
    return tables


@pytest.fixture(scope="module")
def sources() -> dict[str, Any]:
    """Rows and terms of each whole data set, as its plug-in gives them."""
    found = {}
    for name in ("chestxray14", "chexpert", "padchest"):
        rows, terms, _ = plugins.load("datasets", name).harmonize(whole_tables(name))
        found[name] = (rows, terms)
    return found


@cache
def reference(name: str) -> Any:
    """A data set class of torchxrayvision on its own table."""
    import torchxrayvision

    return getattr(torchxrayvision.datasets, name)(imgpath=".", views=["PA", "AP"], unique_patients=False)


def counts(rows: pd.DataFrame, finding: str) -> dict[int, int]:
    return {int(fact): int(count) for fact, count in rows[finding].value_counts().items()}


def test_every_positive_of_the_whole_nih_table_is_counted(sources: dict[str, Any]) -> None:
    rows, _ = sources["chestxray14"]
    assert len(rows) == 112120
    assert rows["patient"].nunique() == 30805
    assert rows["view"].value_counts().to_dict() == {"PA": 67310, "AP": 44810}
    for finding, positives in NIH_POSITIVES.items():
        assert counts(rows, finding) == {findings.PRESENT: positives, findings.ABSENT: 112120 - positives}


def test_the_boxes_of_nih_are_984_on_880_images() -> None:
    boxes = chestxray14.boxes(whole_tables("chestxray14"))
    contracts.check(boxes, contracts.boxes(), "boxes")
    assert boxes["image"].nunique() == 880
    assert boxes["finding"].value_counts().to_dict() == {
        "Atelectasis": 180, "Effusion": 153, "Cardiomegaly": 146, "Infiltration": 123, "Pneumonia": 120,
        "Pneumothorax": 98, "Mass": 85, "Nodule": 79,
    }  # fmt: skip


def test_implied_negatives_of_the_whole_chexpert_table_add_up(sources: dict[str, Any]) -> None:
    rows, _ = sources["chexpert"]
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


def test_rows_of_chexpert_are_dropped_by_name(sources: dict[str, Any]) -> None:
    rows, _ = sources["chexpert"]
    assert rows["dropped"].value_counts().to_dict() == {"": 223398, "called Frontal but LL or RL": 17}


def test_each_of_the_194_strings_of_padchest_has_a_finding_a_rule_or_is_listed_as_unmapped(
    sources: dict[str, Any],
) -> None:
    _, terms = sources["padchest"]
    explained = harmonize.explain_terms(terms, padchest)
    assert len(explained) == 194
    assert {term for term, found in explained.items() if found["unmapped"]} == set(padchest.UNMAPPED)
    assert (terms[""], terms["copd signs"], terms["cardiomegaly"], terms["unchanged"]) == (3041, 23280, 15028, 14349)


def test_rows_of_padchest_are_dropped_by_named_rules(sources: dict[str, Any]) -> None:
    rows, _ = sources["padchest"]
    assert rows["dropped"].value_counts().to_dict() == {
        "": 160861 - 1312 - 777 - 412 - 103,
        "marked `exclude`": 1312,
        "no label left after stray blanks": 777,
        "only `suboptimal study`": 412,
        "no label list": 103,
    }


def test_stored_bits_of_padchest_are_12_or_10() -> None:
    bits = pd.Series(padchest.bit_depths(whole_tables("padchest")))
    assert bits.value_counts().to_dict() == {12: 144051, 10: 16810}


@pytest.mark.parametrize("name", plugins.names("datasets"))
def test_a_plug_in_defines_what_the_package_says_and_maps_known_findings_only(name: str) -> None:
    plugin = plugins.load("datasets", name)
    for text in ("LICENCE", "SOURCE", "ACCESS"):
        assert isinstance(getattr(plugin, text), str), text
    assert findings.in_order(set(plugin.TERMS))
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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["chestxray14", "chexpert"])
def test_labels_equal_those_of_torchxrayvision(name: str, sources: dict[str, Any]) -> None:
    theirs = reference({"chestxray14": "NIH_Dataset", "chexpert": "CheX_Dataset"}[name])
    rows, _ = sources[name]
    key = "Image Index" if name == "chestxray14" else "Path"
    images = theirs.csv[key].str.removeprefix("CheXpert-v1.0-small/")
    ours = rows.set_index("image").loc[images]
    assert len(ours) == {"chestxray14": 112120, "chexpert": 191010}[name]
    for column, title in enumerate(theirs.pathologies):
        facts = ours[title.replace(" ", "_")].to_numpy()
        value = np.full(len(facts), np.nan, np.float32)
        value[facts == findings.PRESENT] = 1
        value[np.isin(facts, [findings.ABSENT, findings.IMPLIED])] = 0
        np.testing.assert_array_equal(value, theirs.labels[:, column], err_msg=title)


@pytest.mark.filterwarnings("ignore")
def test_positives_of_padchest_differ_from_torchxrayvision_by_the_listed_terms_only(sources: dict[str, Any]) -> None:
    theirs = reference("PC_Dataset")
    rows, _ = sources["padchest"]
    ours = rows.set_index("image").loc[theirs.csv["ImageID"]]
    assert len(ours) == 94815
    labels = theirs.csv["Labels"].str.lower().to_numpy()
    compared = set()
    for column, title in enumerate(theirs.pathologies):
        finding = title.replace(" ", "_")
        if finding not in padchest.TERMS:
            continue
        is_ours = (ours[finding] == findings.PRESENT).to_numpy()
        is_theirs = theirs.labels[:, column] == 1
        for differs, listed in ((is_theirs & ~is_ours, SUBSTRING_ONLY), (is_ours & ~is_theirs, TREE_ONLY)):
            terms, count = listed.get(finding, ((), 0))
            assert differs.sum() == count, finding
            assert all(any(term in text for term in terms) for text in labels[differs]), finding
        compared.add(finding)
    assert set(padchest.TERMS) - compared == {"Enlarged_Cardiomediastinum"}


@pytest.mark.filterwarnings("ignore")
def test_rows_of_padchest_that_torchxrayvision_lacks_are_its_listed_exclusions() -> None:
    theirs = reference("PC_Dataset")
    table = whole_tables("padchest")[padchest.ENTRIES]
    ours = table[table["Projection"].isin(["PA", "AP"])]
    lacked = ours[~ours["ImageID"].isin(theirs.csv["ImageID"])]
    without_list = lacked["Labels"].isin(padchest.NO_LIST)
    too_young = ~without_list & ~(lacked["PatientBirth"] < PEDIATRIC_YEAR)
    broken = lacked[~without_list & ~too_young]
    assert (len(ours), len(lacked), without_list.sum(), too_young.sum(), len(broken)) == (96287, 1472, 68, 1387, 17)
    hard_coded = inspect.getsource(type(theirs))
    assert all(f'"{image}"' in hard_coded for image in broken["ImageID"])


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
    sizes = padchest.sizes(whole_tables("padchest"))
    assert len(sizes) == 160_861
    assert sizes["20536686640136348236148679891455886468_k6ga29.png"] == (1872, 1728)
