"""Facts, splits and refusals of `harmonize` on small tables in the owners' layouts."""

import codecs
import gzip
import re
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import owners
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from owners import chexpert_path, chexpert_row, nih_name, padchest_row

from stages import harmonize
from stages.core import files, findings
from stages.datasets import chestxray14, padchest
from stages.sources import contracts, raw

BOMB_BYTES = 40_000_000


def test_absent_label_stays_missing_where_a_data_set_never_annotates_it(project: Path) -> None:
    labels, report = owners.harmonized("chestxray14", owners.nih(project / "root", owners.nih_rows(labels="Mass")))
    assert set(labels["Mass"]) == {findings.PRESENT}
    assert set(labels["Hernia"]) == {findings.ABSENT}
    assert set(labels["Fracture"]) == {findings.MISSING}
    assert report["findings"]["Fracture"]["test"] == {"missing": 2} | dict.fromkeys(
        ("present", "absent", "uncertain", "blank", "implied"), 0
    )


def test_a_missing_column_is_named_with_its_file(project: Path) -> None:
    header = [name for name in owners.NIH_HEADER if name != "Finding Labels"]
    rows = [[row[0], *row[2:]] for row in owners.nih_rows()]
    with pytest.raises(ValueError, match=r"Data_Entry_2017_v2020.csv has no column Finding Labels: it has Image Index"):
        owners.harmonized("chestxray14", owners.nih(project / "root", rows, header=header))


def test_the_sex_column_may_have_either_of_its_official_names(project: Path) -> None:
    header = ["Patient Sex" if name == "Patient Gender" else name for name in owners.NIH_HEADER]
    labels, _ = owners.harmonized("chestxray14", owners.nih(project / "root", owners.nih_rows(), header=header))
    assert labels["sex"].tolist() == ["M", "F"] * 4


def test_an_unknown_finding_of_nih_is_refused_with_file_row_and_allowed_terms(project: Path) -> None:
    rows = owners.nih_rows()
    rows[2][1] = "Mass|Masss"
    with pytest.raises(ValueError, match=r"v2020.csv row 4: unknown finding 'Masss'.*allowed are Atelectasis, .*\|"):
        owners.harmonized("chestxray14", owners.nih(project / "root", rows))


def test_an_unknown_finding_in_the_header_of_chexpert_is_refused(project: Path) -> None:
    rows = [[*chexpert_row(chexpert_path("train", 1)), 1]]
    with pytest.raises(ValueError, match=r"train.csv row 1: unknown finding 'Cough'; allowed columns are Path, "):
        owners.harmonized("chexpert", owners.chexpert_zip(project / "root", rows, extra=["Cough"]))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cardiomegaly", "cardiomegalyy"], r"row 3: unknown finding 'cardiomegalyy' .*UNMAPPED"),
        ("[__import__('os').mkdir('ran')]", r"row 3: .*is no list of labels"),
        ("['normal'", r"row 3: .*is no list of labels"),
        ("'normal'", r"row 3: .*is no list of labels"),
        ("[['normal']]", r"row 3: .*is no list of labels"),
        ("[" * 100_000, r"row 3: .*is no list of labels"),
        ("-" * 100_000 + "1", r"row 3: .*is no list of labels"),
        ("[" + "1+" * 50_000 + "1]", r"row 3: .*is no list of labels"),
    ],
    ids=["unknown term", "call", "not closed", "text", "list in a list", "brackets", "signs", "sum"],
)
def test_a_label_list_of_padchest_is_parsed_never_run_and_refused_when_it_is_none(
    project: Path, labels: object, message: str
) -> None:
    rows = [padchest_row("a.png", ["normal"]), padchest_row("b.png", labels)]
    with pytest.raises(ValueError, match=message) as caught:
        owners.harmonized("padchest", owners.padchest(project / "root", rows))
    assert f"{padchest.ENTRIES} row 3: " in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not Path("ran").exists()


def test_a_label_of_chexpert_that_is_no_code_is_refused_with_its_row(project: Path) -> None:
    rows = [chexpert_row(chexpert_path("train", p), Edema=p) for p in (0, 1, 2)]
    with pytest.raises(ValueError, match=r"train.csv row 4: Edema is 2; allowed are 1, 0, -1, blank"):
        owners.harmonized("chexpert", owners.chexpert_zip(project / "root", rows))


@pytest.mark.parametrize(
    ("second", "remedy"), [("Mass", "disagree: keep the right one"), ("No Finding", "identical: del")]
)
def test_an_image_with_two_rows_is_refused_with_both_rows(project: Path, second: str, remedy: str) -> None:
    rows = owners.nih_rows()
    rows.append([rows[0][0], second, *rows[0][2:]])
    places = rf"{rows[0][0]} in \S*v2020.csv row 2 and \S*v2020.csv row 10"
    with pytest.raises(ValueError, match=rf"{places}, which .*{remedy}"):
        owners.harmonized("chestxray14", owners.nih(project / "root", rows))


def test_a_patient_on_both_sides_of_the_official_split_is_refused_by_name(project: Path) -> None:
    rows = owners.nih_rows()
    root = owners.nih(project / "root", [*rows, [nih_name(1, 1), "Mass", 1, 1, 50, "M", "PA"]])
    (root / "test_list.txt").write_text(f"{nih_name(1)}\n{nih_name(2)}\n")
    (root / "train_val_list.txt").write_text("".join(f"{row[0]}\n" for row in [*rows[2:], [nih_name(1, 1)]]))
    with pytest.raises(ValueError, match=r"1 patients are on both sides of the official split, e.g. 1: fetch"):
        owners.harmonized("chestxray14", root)


def test_a_name_in_both_official_lists_is_refused(project: Path) -> None:
    root = owners.nih(project / "root", owners.nih_rows())
    with (root / "test_list.txt").open("a") as file:
        file.write(f"{nih_name(5)}\n")
    with pytest.raises(
        ValueError, match=rf"test_list.txt names 1 images that train_val_list.txt names too, e.g. {nih_name(5)}"
    ):
        owners.harmonized("chestxray14", root)


def test_names_without_a_row_and_rows_in_no_list_are_counted(project: Path) -> None:
    root = owners.nih(project / "root", owners.nih_rows(8))
    (root / "train_val_list.txt").write_text("".join(f"{nih_name(p)}\n" for p in (3, 4, 5, 6, 7, 99)))
    labels, report = owners.harmonized("chestxray14", root)
    assert report["notes"]["names in train_val_list.txt without a row in Data_Entry_2017_v2020.csv"] == 1
    assert report["left_out"] == {"in no official list": 1}
    assert nih_name(8) not in labels.index
    left_out = files.read_table(Path("data/labels/chestxray14.left_out.parquet"))
    assert left_out.to_numpy().tolist() == [[nih_name(8), "in no official list"]]


def test_more_faulty_rows_than_allowed_stop_the_stage(project: Path) -> None:
    root = owners.nih(project / "root", owners.nih_rows(8))
    (root / "train_val_list.txt").write_text(f"{nih_name(3)}\n")
    with pytest.raises(
        ValueError, match=r"5 of 8 rows are rejected, more than the share 0.2 .*max_rejected_rows.*list': 5"
    ):
        owners.harmonized("chestxray14", root)


def test_impossible_ages_and_unknown_sexes_are_nulled_and_counted(project: Path) -> None:
    rows = [
        chexpert_row(chexpert_path("train", 1), sex="Unknown", age=0),
        chexpert_row(chexpert_path("train", 2), sex="Male", age=44),
    ]
    labels, report = owners.harmonized("chexpert", owners.chexpert_zip(project / "root", rows))
    assert report["nulled"] == {"age": 1, "sex": 1}
    assert labels["age"].isna().tolist() == [True, False, False]
    assert labels["sex"].isna().tolist() == [True, False, False]
    assert labels.loc[chexpert_path("train", 2), ["sex", "age"]].tolist() == ["M", 44.0]


def test_no_finding_implies_absence_of_blank_pathologies_but_not_of_devices(project: Path) -> None:
    rows = [
        chexpert_row(chexpert_path("train", 1), No_Finding=1, Edema=0, Support_Devices=""),
        chexpert_row(chexpert_path("train", 2), Edema=-1, Fracture=1),
    ]
    labels, _ = owners.harmonized("chexpert", owners.chexpert_zip(project / "root", rows))
    normal, other = (labels.loc[chexpert_path("train", patient)] for patient in (1, 2))
    assert normal[["Edema", "Fracture", "Support_Devices", "Hernia"]].tolist() == [
        findings.ABSENT, findings.IMPLIED, findings.BLANK, findings.MISSING,
    ]  # fmt: skip
    assert other[["Edema", "Fracture", "Support_Devices"]].tolist() == [
        findings.UNCERTAIN, findings.PRESENT, findings.BLANK,
    ]  # fmt: skip


def test_views_that_params_leave_out_and_frontal_rows_called_lateral_are_counted_by_name(project: Path) -> None:
    rows = [chexpert_row(chexpert_path("train", p), view=view) for p, view in enumerate(("AP", "PA", "LL"))]
    rows.append(chexpert_row(chexpert_path("train", 1, "lateral"), view="lateral"))
    labels, report = owners.harmonized("chexpert", owners.chexpert_zip(project / "root", rows))
    assert report["left_out"] == {"called Frontal but LL or RL": 1, "view lateral": 1}
    assert sorted(labels["view"]) == ["AP", "AP", "PA"]


@pytest.mark.parametrize("views", [["PA"], ["PA", "AP"], ["PA", "AP", "AP_horizontal"], ["AP_horizontal", "lateral"]])
def test_params_choose_the_views_of_padchest_and_the_others_are_counted(project: Path, views: list[str]) -> None:
    owners.project(project, datasets__padchest__views=views)
    projections = {"PA": "PA", "AP": "AP", "AP_horizontal": "AP_horizontal", "L": "lateral", "COSTAL": "COSTAL"}
    rows = [padchest_row(f"{number}.png", ["normal"], view=view) for number, view in enumerate(projections)]
    labels, report = owners.harmonized("padchest", owners.padchest(project / "root", rows))
    assert sorted(labels["view"]) == sorted(views)
    assert report["left_out"] == {f"view {view}": 1 for view in projections.values() if view not in views}


def film_list(project: Path, name: str, text: str) -> Path:
    """A root of eight films, and params that name a list in it."""
    owners.project(project, datasets__chestxray14__films=name)
    root = owners.nih(project / "root", owners.nih_rows())
    (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "kept.csv",
            f"film,probability\n{nih_name(3)},0.5\n{nih_name(7).removesuffix('.png')},0.1\n{nih_name(99)},0\n",
        ),
        ("kept.txt", f"{nih_name(3)}\nimages/{nih_name(7)}\n{nih_name(99)}\n"),
    ],
)
def test_films_that_a_list_does_not_name_are_left_out_and_counted(project: Path, name: str, text: str) -> None:
    whole, _ = owners.harmonized("chestxray14", owners.nih(project / "whole", owners.nih_rows()))
    labels, report = owners.harmonized("chestxray14", film_list(project, name, text))
    assert labels.index.tolist() == [nih_name(3), nih_name(7)]
    assert report["left_out"] == {f"not in {name}": 6}
    assert report["notes"][f"names in {name} without a row"] == 1
    assert labels["split"].tolist() == whole["split"].loc[labels.index].tolist()


def test_a_list_of_films_with_a_name_that_is_none_is_refused_with_its_row(project: Path) -> None:
    root = film_list(project, "kept.csv", f"film\n{nih_name(3)}\nseventeen\n")
    with pytest.raises(ValueError, match=r"kept.csv row 3: 'seventeen' is no image's name: mend or delete the row"):
        owners.harmonized("chestxray14", root)
    (root / "kept.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no list of films at .*kept.csv"):
        owners.harmonized("chestxray14", root)


def test_the_radiologists_validation_set_of_chexpert_is_the_test_set(project: Path) -> None:
    rows = [chexpert_row(chexpert_path("train", patient)) for patient in range(40)]
    labels, _ = owners.harmonized("chexpert", owners.chexpert_zip(project / "root", rows))
    test = labels[labels["split"] == "test"]
    assert test.index.tolist() == [chexpert_path("valid", 64541)]
    assert test["label_source"].tolist() == ["physician"]
    assert set(labels["split"]) == {"train", "val", "test"}


def test_padchest_terms_match_whole_after_lower_case_and_strip(project: Path) -> None:
    rows = [
        padchest_row("a.png", [" Laminar Atelectasis"]),
        padchest_row("b.png", ["pericardial effusion", "COPD signs"]),
    ]
    labels, report = owners.harmonized("padchest", owners.padchest(project / "root", rows))
    assert labels["Atelectasis"].tolist() == [findings.PRESENT, findings.ABSENT]
    assert labels["Effusion"].tolist() == [findings.ABSENT, findings.ABSENT]
    assert report["terms"]["pericardial effusion"] == {"count": 1, "findings": [], "rule": None, "unmapped": True}
    assert report["terms"]["laminar atelectasis"]["findings"] == ["Atelectasis"]


def test_padchest_rules_for_terms_that_are_no_finding(project: Path) -> None:
    rows = [
        padchest_row("a.png", ["normal"]),
        padchest_row("b.png", ["unchanged"]),
        padchest_row("c.png", ["unchanged", "pneumonia"]),
        padchest_row("d.png", ["unchanged", "normal"]),
        padchest_row("e.png", ["suboptimal study", "mass", ""]),
        padchest_row("f.png", ["suboptimal study"]),
        padchest_row("g.png", ["exclude", "mass"]),
        padchest_row("h.png", [" "]),
        padchest_row("i.png", "nan"),
    ]
    labels, report = owners.harmonized("padchest", owners.padchest(project / "root", rows))
    assert labels["Pneumonia"].to_dict() == {
        "a.png": findings.ABSENT, "b.png": findings.BLANK, "c.png": findings.PRESENT, "d.png": findings.ABSENT,
        "e.png": findings.ABSENT,
    }  # fmt: skip
    assert labels["Mass"].tolist() == [
        findings.ABSENT,
        findings.BLANK,
        findings.BLANK,
        findings.ABSENT,
        findings.PRESENT,
    ]
    assert report["left_out"] == {
        "marked `exclude`": 1,
        "no label left after stray blanks": 1,
        "no label list": 1,
        "only `suboptimal study`": 1,
    }
    assert report["terms"][""] == {"count": 2, "findings": [], "rule": padchest.RULES[""], "unmapped": False}


def test_model_labelled_rows_of_padchest_test_patients_are_left_out_and_counted(project: Path) -> None:
    rows = [
        padchest_row(f"{source[0]}{patient:03d}.png", ["normal"], patient=f"p{patient}", source=source)
        for patient in range(100)
        for source in ("Physician", "RNN_model")
    ]
    labels, report = owners.harmonized("padchest", owners.padchest(project / "root", rows))
    test = labels[labels["split"] == "test"]
    assert set(test["label_source"]) == {"physician"}
    assert report["left_out"] == {"labelled by a model, of a test patient": len(test)}
    assert set(labels.loc[labels["split"] == "train", "label_source"]) == {"physician", "model"}
    assert 10 < len(test) < 30  # test_fraction is 0.2 of 100 patients
    assert not set(test["patient"]) & set(labels.loc[labels["split"] != "test", "patient"])


def test_a_data_set_without_an_official_split_says_which_to_choose(project: Path) -> None:
    owners.project(project, datasets__padchest__split="official")
    with pytest.raises(ValueError, match=r"padchest has no official split: choose patient_random or patient_hash"):
        owners.harmonized("padchest", owners.padchest(project / "root", [padchest_row("a.png", ["normal"])]))


@pytest.mark.parametrize("split", ["official", "patient_random", "patient_hash"])
def test_a_patients_split_does_not_move_when_other_rows_go(split: str) -> None:
    patients = [f"p{number}" for number in range(400)]
    rows = pd.DataFrame(
        {"patient": patients, "label_source": "report", "official": ["test"] * 80 + ["train_val"] * 320}, index=patients
    )
    whole = harmonize.assign_split(rows, "x", split, 0.1, 0.2)
    half = harmonize.assign_split(rows.iloc[::-2], "x", split, 0.1, 0.2)
    assert half.to_dict() == whole.loc[half.index].to_dict()
    shares = whole.value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.2, abs=0.05)
    assert 0.04 < shares["val"] < 0.16
    other = harmonize.assign_split(rows, "another", split, 0.1, 0.2)
    assert other.to_dict() != whole.to_dict()


PATIENTS = st.lists(
    st.tuples(
        st.text("abc019_", min_size=1, max_size=5),
        st.sampled_from(["train_val", "test", "later_test"]),
        st.lists(st.sampled_from(["report", "physician", "model"]), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=20,
    unique_by=lambda patient: patient[0],
)


@pytest.mark.parametrize("split", ["official", "later_test", "patient_random", "patient_hash"])
@settings(deadline=None)
@given(patients=PATIENTS, data=st.data())
def test_a_patients_split_is_the_same_whatever_other_rows_are_there(split: str, patients: Any, data: Any) -> None:
    """Rows come and go, in any order: of other patients, and of the patient."""
    held_out = [(f"in the {part} set", part, ["physician"]) for part in ("test", "later_test")]  # so that there is one
    rows = pd.DataFrame(
        [(name, part, source) for name, part, sources in (*held_out, *patients) for source in sources],
        columns=["patient", "official", "label_source"],
    )
    others = range(len(held_out), len(rows))
    kept = data.draw(st.permutations(others))[: data.draw(st.integers(0, len(others)))]
    fewer = rows.iloc[[*kept, *range(len(held_out))]]
    whole = harmonize.assign_split(rows, "x", split, 0.3, 0.3)
    assert harmonize.assign_split(fewer, "x", split, 0.3, 0.3).to_dict() == whole.loc[fewer.index].to_dict()
    of_patient = whole[whole != ""].groupby(rows["patient"]).nunique()
    assert set(of_patient) <= {1}


def test_films_that_state_two_findings_are_counted_together(project: Path) -> None:
    rows = owners.nih_rows(4)
    for row, text in zip(rows, ("Mass|Nodule", "Mass|Nodule|Hernia", "Mass", "No Finding"), strict=True):
        row[1] = text
    _, report = owners.harmonized("chestxray14", owners.nih(project / "root", rows))
    together = report["together"]
    assert [together["Mass"][name] for name in ("Mass", "Nodule", "Hernia", "Edema")] == [3, 2, 1, 0]
    assert together["Nodule"]["Mass"] == 2
    assert list(together) == list(together["Mass"]) == findings.vocabulary().names[:14]


def test_boxes_are_fractions_of_the_frame_with_nih_spelling_mapped(project: Path) -> None:
    boxes = [[nih_name(2), "Mass", 102.4, 204.8, 51.2, 512]]
    owners.harmonized("chestxray14", owners.nih(project / "root", owners.nih_rows(), boxes=boxes))
    table = files.read_table(Path("data/boxes/chestxray14.parquet"))
    assert table["finding"].tolist() == ["Infiltration", "Mass"]
    np.testing.assert_allclose(table.loc[1, contracts.BOX_SIDES].astype(float), [0.1, 0.2, 0.05, 0.5])


def test_a_data_set_without_boxes_has_an_empty_table_of_the_same_columns(project: Path) -> None:
    owners.harmonized("padchest", owners.padchest(project / "root", [padchest_row("a.png", ["normal"])]))
    table = files.read_table(Path("data/boxes/padchest.parquet"))
    assert table.empty
    assert table.columns.tolist() == ["image", "finding", *contracts.BOX_SIDES]


def test_an_unknown_finding_in_the_box_list_is_refused(project: Path) -> None:
    root = owners.nih(project / "root", owners.nih_rows(), boxes=[[nih_name(2), "Cough", 1, 1, 1, 1]])
    with pytest.raises(ValueError, match=r"BBox_List_2017.csv row 3: unknown finding 'Cough'"):
        owners.harmonized("chestxray14", root)


def test_windows_line_ends_change_nothing(project: Path) -> None:
    root = owners.nih(project / "root", owners.nih_rows())
    expected, _ = owners.harmonized("chestxray14", root)
    (root / "Data_Entry_2017_v2020.csv").write_bytes(owners.table(owners.NIH_HEADER, owners.nih_rows(), end="\r\n"))
    for name in ("train_val_list.txt", "test_list.txt"):
        (root / name).write_bytes((root / name).read_bytes().replace(b"\n", b"\r\n"))
    labels, _ = owners.harmonized("chestxray14", root)
    pd.testing.assert_frame_equal(labels, expected)


def test_a_byte_order_mark_of_utf_8_changes_nothing(project: Path) -> None:
    root = owners.nih(project / "root", owners.nih_rows())
    expected, _ = owners.harmonized("chestxray14", root)
    for name in ("Data_Entry_2017_v2020.csv", "train_val_list.txt", "test_list.txt"):
        (root / name).write_bytes(codecs.BOM_UTF8 + (root / name).read_bytes())
    labels, _ = owners.harmonized("chestxray14", root)
    pd.testing.assert_frame_equal(labels, expected)


def test_a_label_list_over_several_lines_is_one_row(project: Path) -> None:
    rows = [padchest_row("a.png", "['mass',\n 'normal'\n]"), padchest_row("b.png", ["nodule"])]
    labels, report = owners.harmonized("padchest", owners.padchest(project / "root", rows))
    assert labels["Mass"].tolist() == [findings.PRESENT, findings.ABSENT]
    assert labels["Nodule"].tolist() == [findings.ABSENT, findings.PRESENT]
    assert report["rows"]["read"] == 2
    rows.append(padchest_row("c.png", ["nodulee"]))
    with pytest.raises(ValueError, match=r"row 4: unknown finding 'nodulee'"):
        owners.harmonized("padchest", owners.padchest(project / "root", rows))


HEADER = ",".join(owners.PADCHEST_HEADER)
ROW = "a.png,20140915,s1,p1,1950,M,PA,12,2000,1000,Physician,['normal']"


def damaged(*lines: str, encoding: str = "utf-8") -> bytes:
    return "".join(f"{line}\n" for line in lines).encode(encoding)


DAMAGED = {
    "latin-1": (
        damaged(HEADER, ROW, ROW.replace("p1", "Núñez"), encoding="latin-1"),
        r" row 3 column PatientID: .*UTF8 data: save it as UTF-8",
    ),
    "UTF-16": (damaged(HEADER, ROW, encoding="utf-16"), r" is UTF-16: save it as UTF-8"),
    "UTF-16 without a mark": (damaged(HEADER, ROW, encoding="utf-16-le"), r" line 1 has a NUL byte: save it as UTF-8"),
    "NUL": (damaged(HEADER, ROW, ROW.replace("M", "\0")), r" line 3 has a NUL byte: .*, else fetch it again"),
    "empty": (b"", r" has no rows: fetch it again"),
    "blank lines": (b"\n\n", r" has no rows: fetch it again"),
    "header only": (damaged(HEADER), r" has no rows: fetch it again"),
    "missing column": (
        damaged(HEADER.replace("BitsStored_DICOM", "Bits"), ROW),
        r" has no column BitsStored_DICOM: it has ImageID, ",
    ),
    "column twice": (damaged(f"{HEADER},Labels", f"{ROW},['mass']"), r" has column Labels and Labels, .*: leave one"),
    "too few": (
        damaged(HEADER, ROW, ROW.replace("PA,", "")),
        r" row 3: Expected 12 columns, got 11: .*: mend that row, or fetch",
    ),
    "too many": (
        damaged(HEADER, ROW, ROW.replace("PA", "PA,PA")),
        r" row 3: Expected 12 columns, got 13: .*: mend that row, or fetch",
    ),
    "too few in the first row": (
        damaged(HEADER, ROW.replace("PA,", ""), ROW),
        r" row 2: Expected 12 columns, got 11: ",
    ),
    "open quote": (damaged(HEADER, ROW, ROW.replace("s1", '"s1'), *[ROW] * 9), r" row 3: Expected 12 columns, got 3: "),
    "text for a number": (
        damaged(HEADER, ROW, ROW.replace("1950", "old")),
        r" row 3 column PatientBirth: .*invalid value 'old': mend that row",
    ),
    "text for a number behind an unused column": (
        damaged(f"Extra,{HEADER}", f"0,{ROW}", f"0,{ROW}".replace("12", "x")),
        r" row 3 column BitsStored_DICOM: .*invalid value 'x': mend that row",
    ),
}


@pytest.mark.parametrize(("content", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_table_is_refused_with_file_row_and_remedy(project: Path, content: bytes, message: str) -> None:
    root = owners.padchest(project / "root", [padchest_row("a.png", ["normal"])])
    path = root / padchest.ENTRIES
    path.write_bytes(content)
    with pytest.raises(raw.TableError, match=re.escape(str(path)) + message) as caught:
        owners.harmonized("padchest", root)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", r" has no rows"), (b"00000001_000.png\na,b\n", r" row 2: Expected 1 columns, got 2")],
)
def test_a_damaged_list_is_refused_with_file_and_row(project: Path, content: bytes, message: str) -> None:
    root = owners.nih(project / "root", owners.nih_rows())
    (root / "test_list.txt").write_bytes(content)
    with pytest.raises(raw.TableError, match=re.escape(str(root / "test_list.txt")) + message):
        owners.harmonized("chestxray14", root)


def test_a_fault_far_down_a_table_is_named_by_its_row(project: Path) -> None:
    """Far enough that the reader has begun another block."""
    rows = [padchest_row(f"{number:06d}.png", ["normal"]) for number in range(20_000)]
    rows[19_000][4] = "old"
    with pytest.raises(raw.TableError, match=r" row 19002 column PatientBirth"):
        owners.harmonized("padchest", owners.padchest(project / "root", rows, images={}))


@pytest.mark.parametrize("harm", ["cut", "changed"])
def test_a_damaged_gzipped_table_is_refused_with_the_remedy(project: Path, harm: str) -> None:
    root = owners.padchest(project / "root", [padchest_row("a.png", ["normal"])])
    path = root / padchest.ENTRIES
    packed = bytearray(gzip.compress(path.read_bytes()))
    path.unlink()
    if harm == "cut":
        del packed[-20:]
    else:
        packed[len(packed) // 2 :] = bytes(len(packed) // 2)
    path.with_name(f"{path.name}.gz").write_bytes(packed)
    with pytest.raises(raw.TableError, match=r"csv.gz is damaged or cut short .*: fetch it again"):
        owners.harmonized("padchest", root)


def in_gz(root: Path, name: str, content: bytes) -> None:
    (root / f"{name}.gz").write_bytes(gzip.compress(content))


def in_tar_gz(root: Path, name: str, content: bytes) -> None:
    owners.tar_gz(root / "images_001.tar.gz", {f"tables/{name}": content})


def in_zip(root: Path, name: str, content: bytes) -> None:
    owners.zipped(root / "images.zip", {f"tables/{name}": content}, zipfile.ZIP_DEFLATED)


def gz_in_zip(root: Path, name: str, content: bytes) -> None:
    owners.zipped(root / "images.zip", {f"tables/{name}.gz": gzip.compress(content)})


PACKS = [in_gz, in_tar_gz, in_zip, gz_in_zip]


@pytest.mark.parametrize("pack", PACKS)
def test_a_table_is_read_wherever_it_is_packed(project: Path, pack: Any) -> None:
    root = owners.nih(project / "root", owners.nih_rows())
    expected, _ = owners.harmonized("chestxray14", root)
    path = root / chestxray14.ENTRIES
    pack(root, path.name, path.read_bytes())
    path.unlink()
    labels, _ = owners.harmonized("chestxray14", root)
    pd.testing.assert_frame_equal(labels, expected)


@pytest.mark.parametrize("pack", PACKS)
def test_a_table_that_is_a_bomb_is_refused_before_it_is_unpacked(project: Path, pack: Any) -> None:
    owners.project(project, max_table_mb=1)
    root = owners.nih(project / "root", owners.nih_rows())
    path = root / chestxray14.ENTRIES
    pack(root, path.name, path.read_bytes() + bytes(BOMB_BYTES))
    path.unlink()
    owners.pin("chestxray14", root)
    tracemalloc.start()
    with pytest.raises(
        raw.TableError, match=rf"{path.name}\S* has more than 1 MB: .*fetch.*max_table_mb in params.yaml"
    ):
        harmonize.main(["--dataset", "chestxray14", "--root", str(root)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < BOMB_BYTES / 4


def test_a_table_that_is_not_packed_has_the_same_limit(project: Path) -> None:
    owners.project(project, max_table_mb=1)
    root = owners.nih(project / "root", owners.nih_rows())
    (root / "test_list.txt").write_bytes(b"00000001_000.png\n" * 60_000)
    with pytest.raises(raw.TableError, match=r"test_list.txt has more than 1 MB"):
        owners.harmonized("chestxray14", root)


def test_a_number_that_is_none_is_refused_with_the_tables_place_in_its_archive(project: Path) -> None:
    rows = [chexpert_row(chexpert_path("train", 1)), chexpert_row(chexpert_path("train", 2), Edema="yes")]  # type: ignore[arg-type]  # the fault
    with pytest.raises(
        raw.TableError, match=r"small.zip!CheXpert-v1.0-small/train.csv row 3 column Edema: .*invalid value 'yes'"
    ):
        owners.harmonized("chexpert", owners.chexpert_zip(project / "root", rows))


def test_a_table_that_changed_since_download_is_refused(project: Path) -> None:
    root = owners.nih(project / "root", owners.nih_rows())
    owners.pin("chestxray14", root)
    owners.nih(root, owners.nih_rows(9), images={})
    with pytest.raises(ValueError, match=r"the manifest says .*run `make repro`"):
        harmonize.main(["--dataset", "chestxray14", "--root", str(root)])


def test_two_runs_write_the_same_bytes(project: Path) -> None:
    rows = [chexpert_row(chexpert_path("train", patient), Edema=patient % 2) for patient in range(30)]
    root = owners.chexpert_zip(project / "root", rows)
    owners.harmonized("chexpert", root)
    first = owners.content(project / "data") | owners.content(project / "reports")
    owners.forget()
    owners.harmonized("chexpert", root)
    assert owners.content(project / "data") | owners.content(project / "reports") == first


def test_labels_that_break_the_contract_are_refused_with_column_and_value(project: Path) -> None:
    labels, _ = owners.harmonized("chestxray14", owners.nih(project / "root", owners.nih_rows()))
    table = labels.reset_index()
    table.loc[3, "Mass"] = np.int8(7)
    table.loc[4, "split"] = "tests"
    with pytest.raises(ValueError, match=r"labels of x breaks its contract: .*Mass.*7.*split.*'tests'"):
        contracts.check(table, contracts.labels(findings.vocabulary().names), "labels of x")


def column(name: str, value: Any) -> Any:
    """A change of what a plug-in's `harmonize` returns: a column of its rows."""
    return lambda rows, terms, notes: (rows.assign(**{name: value}), terms, notes)


def with_null(name: str, row: int) -> Any:
    """The same, with one null."""
    return lambda rows, terms, notes: (rows.assign(**{name: rows[name].where(rows.index != row)}), terms, notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows, *_: rows, "harmonize must return (rows, terms, notes), got DataFrame"),
        (lambda rows, terms, _: (rows, terms), "harmonize must return (rows, terms, notes), got tuple"),
        (lambda rows, *rest: (rows.to_dict(), *rest), "rows must be a DataFrame, got dict"),
        (lambda rows, *rest: (rows.drop(columns=["study", "Mass"]), *rest), "rows lack column study, Mass"),
        (column("Fracture", np.int8(0)), "rows have column Fracture, which is no key of TERMS"),
        (lambda rows, *rest: (rows[[*rows, "view"]], *rest), "rows have column view twice"),
        (lambda rows, *rest: (rows.set_index("image", drop=False), *rest), "must be indexed by row number, got str"),
        (with_null("patient", 4), "column patient must be text without nulls, got 1, the first in row 4"),
        (column("patient", 7), "column patient must be text, got integer"),
        (column("label_source", "reports"), "column label_source must be one of 'report', 'model', 'physician', got"),
        (column("official", "train"), "'later_test', '', got 'train' in row 2"),
        (column("age", "50"), "column age must be numbers, got str"),
        (column("Mass", 0), "column Mass must be int8, got int64"),
        (column("Mass", np.int8(7)), "column Mass must be facts of core/findings.py, got 7 in row 2"),
        (lambda rows, terms, notes: (rows, [*terms], notes), "terms must be a dict of text -> int, got list"),
        (lambda rows, terms, _: (rows, terms, {"odd": 0.5}), "notes must be a dict of text -> int, got 'odd': 0.5"),
        (lambda rows, _, notes: (rows, {"Mass": np.int64(3)}, notes), "got 'Mass': np.int64(3) (int64)"),
    ],
)
def test_a_plug_in_that_hands_over_something_else_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, change: Any, message: str
) -> None:
    original = chestxray14.harmonize
    monkeypatch.setattr(chestxray14, "harmonize", lambda tables: change(*original(tables)))
    with pytest.raises(contracts.PluginError, match=re.escape(message)) as caught:
        owners.harmonized("chestxray14", owners.nih(project / "root", owners.nih_rows()))
    assert str(caught.value).startswith("stages/datasets/chestxray14.py: harmonize")
    assert "\n" not in str(caught.value)
    assert not Path("data/labels").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.to_dict(), "boxes must return a DataFrame, got dict"),
        (lambda found: found.assign(x=1.5), r"what boxes returns breaks its contract: x: .*1.5"),
        (lambda found: found.assign(finding="Infiltrate"), r"what boxes returns breaks its contract: finding: .*rate"),
        (lambda found: found.drop(columns="width"), r"what boxes returns breaks its contract: .*width"),
    ],
)
def test_a_plug_in_with_wrong_boxes_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, change: Any, message: str
) -> None:
    original = chestxray14.boxes
    monkeypatch.setattr(chestxray14, "boxes", lambda tables: change(original(tables)))
    with pytest.raises(contracts.PluginError, match=f"^stages/datasets/chestxray14.py: {message}"):
        owners.harmonized("chestxray14", owners.nih(project / "root", owners.nih_rows()))
    assert not Path("data/labels").exists()
