"""Facts, splits and refusals of `harmonize` on small tables in the owners' layouts."""

from pathlib import Path

import numpy as np
import owners
import pandas as pd
import pytest
from owners import chexpert_path, chexpert_row, nih_name, padchest_row

from stages import harmonize
from stages.core import contracts, files, findings
from stages.datasets import padchest


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
    ],
)
def test_a_label_list_of_padchest_is_parsed_never_run_and_refused_when_it_is_none(
    project: Path, labels: object, message: str
) -> None:
    rows = [padchest_row("a.png", ["normal"]), padchest_row("b.png", labels)]
    with pytest.raises(ValueError, match=message):
        owners.harmonized("padchest", owners.padchest(project / "root", rows))
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
    with pytest.raises(ValueError, match=rf"{rows[0][0]} in rows 2, 10, which .*{remedy}"):
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


def test_a_table_in_another_encoding_is_refused_with_the_remedy(project: Path) -> None:
    rows = [padchest_row("a.png", ["normal"], patient="Núñez")]
    root = owners.padchest(project / "root", rows)
    path = root / padchest.ENTRIES
    path.write_bytes(path.read_text(encoding="utf-8").encode("latin-1"))
    with pytest.raises(ValueError, match=r"UTF8.*save it as UTF-8"):
        owners.harmonized("padchest", root)


def test_a_number_that_is_none_is_refused_with_file_and_value(project: Path) -> None:
    rows = [chexpert_row(chexpert_path("train", 1), Edema="yes")]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"train.csv: .*invalid value 'yes'"):
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
        contracts.check(table, contracts.labels(), "labels of x")
