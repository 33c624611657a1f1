"""What a cohort holds, what labels become in training, and what `assemble` refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import owners
import pandas as pd
import pytest
from owners import chexpert_path, chexpert_row, film, nih_name, padchest_row, png

from stages import assemble
from stages.core import files, findings, schema
from stages.sources import policy

PATIENTS = 40
DATASETS = ("chestxray14", "chexpert", "padchest")
LOOSE: dict[str, Any] = {
    "assemble__max_rows_without_image": 1.0,
    "assemble__max_images_without_row": 1.0,
    "ingest__size_px": 32,
    "cohorts": {name: {"datasets": [name]} for name in DATASETS} | {"joint": {"datasets": list(DATASETS)}},
}


def prepare(dataset: str, root: Path) -> None:
    """Run everything that comes before assemble."""
    owners.harmonized(dataset, root)
    owners.ingested(dataset, root)


def assembled(cohort: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, Any]:
    """Run assemble: rows, facts, targets, cohort.json."""
    assemble.main(["--cohort", cohort])
    folder = Path(f"data/cohorts/{cohort}")
    about = files.read_json(folder / "cohort.json")
    rows = files.read_table(folder / "rows.parquet")
    facts, targets = (
        pd.DataFrame(np.load(folder / f"{name}.npy"), index=rows["image"], columns=about["findings"])
        for name in ("facts", "targets")
    )
    return rows, facts, targets, about


def policies(uncertain: str = "ignore", blank: str = "zeros", **per_finding: str) -> Any:
    values = {
        "uncertain": {"default": uncertain, "per_finding": per_finding},
        "blank": {"default": blank, "per_finding": {}},
    }
    return schema.Policies.model_validate(values)


def target(facts: list[int], finding: str = "Edema", dataset: str = "chexpert", **chosen: str) -> list[float]:
    images = pd.Series([f"image{place}" for place in range(len(facts))])
    return policy.target(np.array(facts, np.int8), finding, dataset, images, policies(**chosen)).tolist()


@pytest.mark.parametrize(("policy", "value"), [("ones", 1.0), ("zeros", 0.0), ("ignore", np.nan), ("teacher", np.nan)])
@pytest.mark.parametrize(("kind", "fact"), [("uncertain", findings.UNCERTAIN), ("blank", findings.BLANK)])
def test_a_policy_gives_its_value_to_its_fact_alone(kind: str, fact: int, policy: str, value: float) -> None:
    others = {findings.UNCERTAIN: np.nan, findings.BLANK: 0.0} | {fact: value}
    facts = [findings.PRESENT, findings.ABSENT, findings.IMPLIED, findings.MISSING, *others]
    np.testing.assert_array_equal(target(facts, **{kind: policy}), [1, 0, 0, np.nan, *others.values()])


def test_a_policy_may_differ_by_finding() -> None:
    chosen = {"uncertain": "zeros", "Edema": "ones"}
    assert target([findings.UNCERTAIN], "Edema", **chosen) == [1.0]
    assert target([findings.UNCERTAIN], "Effusion", **chosen) == [0.0]


def test_smoothed_labels_are_spread_over_their_interval_by_image_and_finding_alone() -> None:
    facts = [findings.UNCERTAIN] * 400
    drawn = target(facts, uncertain="smoothed")
    assert min(drawn) == pytest.approx(0.55, abs=0.01)
    assert max(drawn) == pytest.approx(0.85, abs=0.01)
    assert target(facts[:7], uncertain="smoothed") == drawn[:7]
    assert target(facts, "Effusion", uncertain="smoothed") != drawn
    assert target(facts, dataset="padchest", uncertain="smoothed") != drawn


def test_a_blank_cannot_be_smoothed() -> None:
    with pytest.raises(ValueError, match="Input should be 'ones', 'zeros', 'ignore' or 'teacher'"):
        target([findings.BLANK], blank="smoothed")


def test_a_cohort_holds_the_train_and_val_rows_with_their_own_pixels(project: Path) -> None:
    owners.project(project, **LOOSE, ingest__shard_images=7)
    root = owners.nih(project / "root", owners.nih_rows(PATIENTS, "Mass"))
    prepare("chestxray14", root)
    rows, facts, targets, about = assembled("chestxray14")
    assert rows["image"].tolist() == [nih_name(p) for p in range(3, PATIENTS + 1)]
    assert set(rows["split"]) == {"train", "val"}
    assert about["rows"]["chestxray14"] == rows["split"].value_counts().to_dict()
    assert about["size_px"] == 32
    assert (targets["Mass"] == 1).all()
    assert (facts.drop(columns="Mass") == findings.ABSENT).all(axis=None)
    for row in rows.itertuples(index=False):
        pixels = np.load(Path("data/cohorts/chestxray14") / row.shard)[row.row]
        original = film(int(row.image[:8]) - 1)
        assert np.abs(pixels - original.reshape(32, 3, 32, 3).mean(axis=(1, 3))).max() <= 0.5


def test_shards_are_linked_not_copied(project: Path) -> None:
    owners.project(project, **LOOSE)
    prepare("chestxray14", owners.nih(project / "root", owners.nih_rows(PATIENTS)))
    assembled("chestxray14")
    linked = Path("data/cohorts/chestxray14/chestxray14_0000.npy")
    assert linked.samefile("data/images/chestxray14/shard_0000.npy")


def test_rows_without_image_are_counted_by_split_a_rejected_image_among_them(project: Path) -> None:
    owners.project(project, **LOOSE, datasets__chestxray14__max_rejected_images=0.5)
    images = {f"images/{nih_name(p)}": png(film(p)) for p in range(2, PATIENTS)}
    images[f"images/{nih_name(10)}"] = b""
    prepare("chestxray14", owners.nih(project / "root", owners.nih_rows(PATIENTS), images))
    rows, _, _, about = assembled("chestxray14")
    counts = about["left_out"]["chestxray14"]["rows_without_image"]
    assert counts["test"] == 1
    assert sum(counts.values()) == 3
    assert {nih_name(10), nih_name(PATIENTS)}.isdisjoint(rows["image"])


def test_too_many_rows_without_image_stop_the_stage(project: Path) -> None:
    owners.project(project, **LOOSE | {"assemble__max_rows_without_image": 0.05})
    images = {f"images/{nih_name(p)}": png(film(p)) for p in range(1, PATIENTS - 2)}
    prepare("chestxray14", owners.nih(project / "root", owners.nih_rows(PATIENTS), images))
    with pytest.raises(
        ValueError, match=rf"3 of 40 rows have no image, .*max_rows_without_image\), e.g. {nih_name(38)}"
    ):
        assembled("chestxray14")


def test_images_without_row_are_counted_and_limited(project: Path) -> None:
    owners.project(project, **LOOSE)
    images = {f"images/{nih_name(p)}": png(film(p)) for p in range(1, PATIENTS + 3)}
    prepare("chestxray14", owners.nih(project / "root", owners.nih_rows(PATIENTS), images))
    _, _, _, about = assembled("chestxray14")
    assert about["left_out"]["chestxray14"]["images_without_row"] == 2
    owners.project(project, **LOOSE | {"assemble__max_images_without_row": 0.01})
    with pytest.raises(ValueError, match=rf"2 of 42 images have no row, .*images_without_row\), e.g. {nih_name(41)}"):
        assembled("chestxray14")


def test_an_image_whose_row_harmonize_left_out_is_not_without_row(project: Path) -> None:
    owners.project(project, **LOOSE | {"assemble__max_images_without_row": 0.0})
    train = [chexpert_row(chexpert_path("train", p, view), view="lateral" if view == "lateral" else "AP")
             for p in range(PATIENTS) for view in ("frontal", "lateral")]  # fmt: skip
    prepare("chexpert", owners.chexpert_zip(project / "root", train))
    rows, _, _, about = assembled("chexpert")
    assert about["left_out"]["chexpert"]["images_of_rows_left_out_by_harmonize"] == PATIENTS
    assert about["left_out"]["chexpert"]["images_without_row"] == 0
    assert len(rows) == PATIENTS


def test_a_finding_that_one_data_set_never_annotates_is_masked_in_a_joint_cohort(project: Path) -> None:
    only = {
        "datasets__chestxray14__findings": ["Hernia", "Mass"],
        "datasets__chexpert__findings": ["Edema", "Fracture"],
        "datasets__padchest__findings": ["Scoliosis"],
    }
    owners.project(project, **LOOSE, **only)
    prepare("chestxray14", owners.nih(project / "nih", owners.nih_rows(PATIENTS)))
    train = [chexpert_row(chexpert_path("train", p), Edema=-1) for p in range(PATIENTS)]
    prepare("chexpert", owners.chexpert_zip(project / "chexpert", train))
    labels = [padchest_row(f"p{p:03d}.png", ["scoliosis"]) for p in range(PATIENTS)]
    prepare("padchest", owners.padchest(project / "padchest", labels))
    rows, _, targets, about = assembled("joint")
    assert about["findings"] == ["Edema", "Hernia", "Mass", "Fracture", "Scoliosis"]
    assert list(dict.fromkeys(rows["dataset"])) == ["chestxray14", "chexpert", "padchest"]
    masked = targets.isna().groupby(rows["dataset"].to_numpy()).mean()
    assert masked.loc["chestxray14"].tolist() == [0, 0, 0, 1, 1]
    assert masked.loc["chexpert"].tolist() == [0, 1, 1, 0, 1]  # Edema is -1 throughout, which the default makes 1
    assert masked.loc["padchest"].tolist() == [0, 0, 0, 0, 0]


def test_a_listed_finding_that_the_data_set_never_annotates_is_refused(project: Path) -> None:
    owners.project(project, **LOOSE, datasets__chestxray14__findings=["Mass", "Scoliosis"])
    prepare("chestxray14", owners.nih(project / "root", owners.nih_rows(PATIENTS)))
    with pytest.raises(ValueError, match=r"chestxray14 never annotates Scoliosis: take them out of datasets"):
        assembled("chestxray14")


def test_a_cohort_without_any_training_row_is_refused(project: Path) -> None:
    owners.project(project, **LOOSE)
    images = {f"images/{nih_name(1)}": png(film(1))}
    prepare("chestxray14", owners.nih(project / "root", owners.nih_rows(PATIENTS), images))
    with pytest.raises(ValueError, match="cohort chestxray14 has no training row with an image"):
        assembled("chestxray14")


def test_two_runs_write_the_same_bytes(project: Path) -> None:
    owners.project(project, **LOOSE, policies__chexpert__uncertain={"default": "smoothed", "per_finding": {}})
    train = [chexpert_row(chexpert_path("train", p), Edema=-1) for p in range(PATIENTS)]
    prepare("chexpert", owners.chexpert_zip(project / "root", train))
    assembled("chexpert")
    first = owners.content(Path("data/cohorts"))
    assembled("chexpert")
    assert owners.content(Path("data/cohorts")) == first
