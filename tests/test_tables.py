"""Tables as people have them: older releases, and what spreadsheets and other programs make of them."""

import csv
import gzip
import io
import random
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import owners
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from owners import chexpert_path, chexpert_row, nih_name, padchest_row

from stages import harmonize
from stages.core import findings, plugins
from stages.datasets import chestxray14, chexpert, padchest
from stages.sources import raw

Cells = list[list[Any]]
SPLITS = {"chestxray14": "official", "chexpert": "official", "padchest": "patient_hash"}
EXPONENT, ROUNDED = "8.39860E+35", "839860488694292000000000000000000000"
PATIENTS = ("839860488694292331637988235681460987", "839860111111111111111111111111111111")
# seeded, and few enough for seconds; the fixture's folder is filled anew by each example
examples = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def nih_tables() -> dict[str, Cells]:
    """Eight patients, two of them in the test set, and three boxes."""
    rows = owners.nih_rows(8)
    for row, labels in zip(rows, ("Mass", "Mass|Nodule", "Hernia", "Edema|Effusion"), strict=False):
        row[1] = labels
    boxes = [[nih_name(place), "Mass", 10 * place, 20, 300, 40.5] for place in (1, 2, 3)]
    return {
        chestxray14.ENTRIES: [[*owners.NIH_HEADER, "Height]"], *([*row, 2000] for row in rows)],
        chestxray14.TRAIN_VAL: [[nih_name(place)] for place in range(3, 9)],
        chestxray14.TEST: [[nih_name(place)] for place in (1, 2)],
        chestxray14.BOXES: [["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"], *boxes],
    }


def chexpert_tables() -> dict[str, Cells]:
    """Eight patients in train.csv, two in valid.csv."""
    header = [*chexpert.ABOUT, *chexpert.LABELS]
    train = [chexpert_row(chexpert_path("train", p), Edema=p % 3 - 1, No_Finding=1) for p in range(1, 9)]
    valid = [chexpert_row(chexpert_path("valid", 64540 + p), Mass=1, Edema=p % 2) for p in (1, 2)]
    return {"train.csv": [header, *train], "valid.csv": [header, *valid]}


def padchest_tables() -> dict[str, Cells]:
    """Ten films of nine patients, whose labels have commas, quotes and a line end."""
    lists: list[Any] = [["normal"], ["cardiomegaly", "mass"], "['nodule',\n 'normal']", "nan", ["unchanged"]]
    rows = [
        padchest_row(f"{place}.png", lists[place % 5], patient=f"{place % 9 + 1}{PATIENTS[0]}", height=10, width=20)
        for place in range(10)
    ]
    return {padchest.ENTRIES: [owners.PADCHEST_HEADER, *rows]}


TABLES = {"chestxray14": nih_tables, "chexpert": chexpert_tables, "padchest": padchest_tables}


def text_of(cells: Sequence[Sequence[Any]], end: str = "\n", **form: Any) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator=end, **form).writerows(cells)
    return text.getvalue()


def laid(root: Path, tables: dict[str, Cells]) -> Path:
    root.mkdir(exist_ok=True)
    for name, cells in tables.items():
        (root / name).write_bytes(text_of(cells).encode())
    return root


def facts(dataset: str, root: Path) -> tuple[pd.DataFrame, pd.DataFrame, Any, pd.DataFrame]:
    """Labels and rows left out, by image; the report; boxes."""
    plugin = plugins.load("datasets", dataset)
    tables = raw.tables(root, {"files": [{"name": name} for name in raw.walk(root)]}, plugin, max_mb=10)
    choices = harmonize.Choices(SPLITS[dataset], 0.3, 0.3, ["PA", "AP"], 1.0, None)
    labels, left_out, report = harmonize.harmonize(tables, plugin, dataset, choices, findings.vocabulary())
    boxes = plugin.boxes(tables) if hasattr(plugin, "boxes") else harmonize.empty_boxes()
    boxes = boxes.sort_values(["image", "x"]).reset_index(drop=True)
    return labels.set_index("image"), left_out.set_index("image"), report, boxes


@cache
def whole(dataset: str, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, Any, pd.DataFrame]:
    """The facts of undamaged tables."""
    return facts(dataset, laid(folder / "whole", TABLES[dataset]()))


@pytest.mark.parametrize("dataset", TABLES)
@examples
@given(data=st.data())
def test_no_order_quoting_delimiter_line_end_or_blank_changes_a_fact(project: Path, dataset: str, data: Any) -> None:
    expected = whole(dataset, project)
    root = laid(project / "changed", TABLES[dataset]())
    for name, (header, *rows) in TABLES[dataset]().items():
        is_list = name.endswith(".txt")
        rows = [header, *rows] if is_list else rows
        chance = random.Random(data.draw(st.integers(0, 2**32)))
        columns = chance.sample(range(len(header)), len(header))
        cells = [[row[column] for column in columns] for row in chance.sample(rows, len(rows))]
        cells = cells if is_list else [[header[column] for column in columns], *cells]
        if not is_list and data.draw(st.booleans(), label="index column, blank column, blank rows"):
            cells = [["" if place == 0 else place - 1, *row, ""] for place, row in enumerate(cells)]
            cells += [[""] * len(cells[0])] * 2
        padded = [[f" {cell} " if chance.random() < 0.2 else cell for cell in row] for row in cells]
        quoting = data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]))
        delimiter = "," if is_list else data.draw(st.sampled_from(",;\t"))
        end = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
        quoting = csv.QUOTE_ALL if end == "\r" else quoting  # the writer quotes no other line end
        text = text_of(padded, end, quoting=quoting, delimiter=delimiter)
        text = text.removesuffix(end) + end * data.draw(st.integers(0, 2))
        content = text.encode(data.draw(st.sampled_from(["utf-8", "utf-8-sig"])))
        (root / name).write_bytes(gzip.compress(content) if data.draw(st.booleans(), label="gzipped") else content)
    found = facts(dataset, root)
    assert found[2] | {"notes": {}} == expected[2] | {"notes": {}}
    for place in (0, 1, 3):
        pd.testing.assert_frame_equal(found[place], expected[place])


DAMAGE = st.one_of(
    st.sampled_from([
        "", " ", "nan", "None", "#N/A", "#REF!", "-", "0", "1", "-1", "2", "99", "-5", "1.0", "1e5", "inf", "-inf",
        "1,5", EXPONENT, ROUNDED, "8,4E+35", "058Y", "3.0", "15/09/2014", "31/31/2014", "PA", "L", "M", "X", "Mass",
        "Mass|Massss", "['mass']", "['masss']", "[nan]", "normal", "Núñez", '"', "'", "a\nb", "\0", "sep=;",
        nih_name(5), nih_name(99), "train/patient00007/study1/view1_frontal.jpg", "3.png",
    ]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)  # fmt: skip


@pytest.mark.parametrize("dataset", TABLES)
@examples
@given(data=st.data())
def test_a_damaged_cell_is_refused_with_its_row_or_changes_that_row_alone(
    project: Path, dataset: str, data: Any
) -> None:
    expected = whole(dataset, project)
    tables = TABLES[dataset]()
    name = data.draw(st.sampled_from(sorted(tables)))
    cells = tables[name]
    first = 0 if name.endswith(".txt") else 1
    place, column = data.draw(st.integers(first, len(cells) - 1)), data.draw(st.integers(0, len(cells[0]) - 1))
    row = [*cells[place]]
    cells[place] = [*row[:column], data.draw(DAMAGE), *row[column + 1 :]]
    refusal = None
    try:
        found = facts(dataset, laid(project / "damaged", tables))
    except ValueError as error:
        refusal = str(error)
    if refusal is not None:
        assert name in refusal
        assert re.search(rf"row {place + 1}\b|line \d+ has a NUL byte", refusal), refusal
        return
    is_box = name == chestxray14.BOXES
    for after, before in zip(found[:2], expected[:2], strict=True):
        others = before.index[[is_box or image not in row[0] for image in before.index]]
        pd.testing.assert_frame_equal(after.loc[others], before.loc[others])
    assert len(found[0]) + len(found[1]) == found[2]["rows"]["read"] == expected[2]["rows"]["read"]
    assert len(found[3].merge(expected[3])) >= len(expected[3]) - is_box


def edited(dataset: str, root: Path, name: str, change: Any) -> Path:
    """A data set's tables, one of them with its rows changed in place or returned."""
    tables = TABLES[dataset]()
    tables[name] = change(tables[name]) or tables[name]
    return laid(root, tables)


def column_of(place: int, *values: Any) -> Any:
    """Put these values, over and over, in a column of all rows."""

    def change(cells: Cells) -> None:
        for number, row in enumerate(cells[1:]):
            row[place] = values[number % len(values)]

    return change


def test_the_first_releases_table_is_read_with_its_name_and_its_ages(project: Path) -> None:
    ages = ("058Y", "060Y", "003M", "021D", "411Y", "057", "57.0", "002w")
    root = edited("chestxray14", project / "root", chestxray14.ENTRIES, column_of(4, *ages))
    (root / chestxray14.ENTRIES).rename(root / "Data_Entry_2017.csv")
    labels, _, report, _ = facts("chestxray14", root)
    found = labels["age"].tolist()
    assert found == pytest.approx(
        [58, 60, 3 / 12, 21 / 365.25, float("nan"), 57, 57, 14 / 365.25], nan_ok=True, rel=1e-3
    )
    assert report["nulled"]["age"] == 1
    (root / chestxray14.ENTRIES).write_text("damaged")  # the later release counts where both are there
    with pytest.raises(raw.TableError, match=r"v2020.csv has no rows"):
        facts("chestxray14", root)


@pytest.mark.parametrize(
    "date", ["2014-09-15", "2014/9/15", "15/09/2014", "9/15/2014", "05.06.2014", "15-09-2014 00:00:00", "20140915.0"]
)
def test_ages_of_padchest_are_the_same_whatever_program_wrote_the_dates(project: Path, date: str) -> None:
    root = edited("padchest", project / "root", padchest.ENTRIES, column_of(1, date))
    pd.testing.assert_series_equal(facts("padchest", root)[0]["age"], whole("padchest", project)[0]["age"])


@pytest.mark.parametrize("date", ["31/31/2014", "20141315", "15/09/14", "41897", "20140915"])
def test_an_age_of_a_date_that_is_none_is_null_and_counted(project: Path, date: str) -> None:
    def change(cells: Cells) -> None:
        cells[1][1] = date

    nulled = facts("padchest", edited("padchest", project / "root", padchest.ENTRIES, change))[2]["nulled"]
    assert nulled["age"] == (date != "20140915")


@pytest.mark.parametrize(
    ("dataset", "name", "place", "values", "what"),
    [
        ("chestxray14", chestxray14.ENTRIES, 4, ["fifty"], "age"),
        ("chestxray14", chestxray14.ENTRIES, 4, ["411Y", ""], "age"),
        ("chestxray14", chestxray14.ENTRIES, 5, ["1", "0"], "sex"),
        ("padchest", padchest.ENTRIES, 1, ["15. Sept 14"], "age"),
        ("chexpert", "train.csv", 1, [""], "sex"),
    ],
)
def test_ages_or_sexes_that_are_null_as_a_whole_stop_the_stage(
    project: Path, dataset: str, name: str, place: int, values: list[str], what: str
) -> None:
    root = edited(dataset, project / "root", name, column_of(place, *values))
    with pytest.raises(ValueError, match=rf"{name}: not one of \d+ rows has {what} that can be read"):
        facts(dataset, root)


@pytest.mark.parametrize("sexes", [("Male", "Female"), ("male", "f"), ("m", "FEMALE")])
def test_sexes_are_read_as_words_and_letters(project: Path, sexes: tuple[str, str]) -> None:
    root = edited("chestxray14", project / "root", chestxray14.ENTRIES, column_of(5, *sexes))
    pd.testing.assert_series_equal(facts("chestxray14", root)[0]["sex"], whole("chestxray14", project)[0]["sex"])


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (EXPONENT, "took for a number"), ("8,4E+35", "took for a number"), ("8e+35", "took for a number"),
        ("1.0", "took for a number"), (ROUNDED, "rounded"), (str(int(float(PATIENTS[0]))), "rounded"),
        (" ", "is no name"), ("nan", "is no name"), ("None", "is no name"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("place", "key"), [(2, "study"), (3, "patient")])
def test_a_key_that_a_program_made_a_number_of_is_refused_with_its_row(
    project: Path, value: str, what: str, place: int, key: str
) -> None:
    def change(cells: Cells) -> None:
        cells[4][place] = value

    root = edited("padchest", project / "root", padchest.ENTRIES, change)
    with pytest.raises(ValueError, match=rf"csv row 5: the {key} is '.*', which .*{what}, as are 1 of 10 rows: mend"):
        facts("padchest", root)


@pytest.mark.parametrize("value", ["3.0", "3E+00", "4", ""])
def test_a_patient_of_nih_that_is_not_its_films_is_refused_with_its_row(project: Path, value: str) -> None:
    def change(cells: Cells) -> None:
        cells[3][3] = value

    root = edited("chestxray14", project / "root", chestxray14.ENTRIES, change)
    with pytest.raises(
        ValueError, match=rf"v2020.csv row 4: Patient ID '{re.escape(value)}' is not the patient of .*, 3"
    ):
        facts("chestxray14", root)


def test_zeros_before_a_patients_number_change_no_split(project: Path) -> None:
    root = edited(
        "chestxray14", project / "root", chestxray14.ENTRIES, column_of(3, *(f"{p:08d}" for p in range(1, 9)))
    )
    pd.testing.assert_frame_equal(facts("chestxray14", root)[0], whole("chestxray14", project)[0])


@pytest.mark.parametrize("form", ["images\\{}.png", "/data/{}.PNG", "{}.jpg", "{}"])
def test_names_of_films_in_tables_may_have_folders_and_another_suffix(project: Path, form: str) -> None:
    tables = nih_tables()
    for name, cells in tables.items():
        for row in cells if name.endswith(".txt") else cells[1:]:
            row[0] = form.format(row[0].removesuffix(".png"))
    found = facts("chestxray14", laid(project / "root", tables))
    pd.testing.assert_frame_equal(found[0], whole("chestxray14", project)[0])
    pd.testing.assert_frame_equal(found[3], whole("chestxray14", project)[3])


@pytest.mark.parametrize(
    "change", [lambda p: p.replace("/", "\\"), lambda p: f"/data/{p}", lambda p: p.replace(".jpg", ".PNG")]
)
def test_paths_of_chexpert_may_be_of_windows_absolute_or_of_another_suffix(project: Path, change: Any) -> None:
    tables = chexpert_tables()
    for row in tables["train.csv"][1:]:
        row[0] = change(row[0])
    found = facts("chexpert", laid(project / "root", tables))
    pd.testing.assert_frame_equal(found[0], whole("chexpert", project)[0])


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_a_column_that_pandas_added_is_ignored_and_said(project: Path, name: str) -> None:
    def change(cells: Cells) -> Cells:
        return [[name if place == 0 else place - 1, *row] for place, row in enumerate(cells)]

    labels, _, report, _ = facts("chexpert", edited("chexpert", project / "root", "train.csv", change))
    assert report["notes"] == {"column without a name in train.csv, ignored": 1}
    pd.testing.assert_frame_equal(labels, whole("chexpert", project)[0])


def test_rows_without_any_value_are_ignored_and_counted(project: Path) -> None:
    def change(cells: Cells) -> Cells:
        return [*cells[:3], [""] * len(cells[0]), *cells[3:], [" "] * len(cells[0])]

    labels, _, report, _ = facts("padchest", edited("padchest", project / "root", padchest.ENTRIES, change))
    assert report["notes"] == {f"rows without any value in {padchest.ENTRIES}, ignored": 2}
    assert report["rows"]["read"] == 10
    pd.testing.assert_frame_equal(labels, whole("padchest", project)[0])


@pytest.mark.parametrize("text", ["NaN", "None", "NULL"])
def test_no_label_list_is_none_however_a_program_writes_it(project: Path, text: str) -> None:
    root = edited("padchest", project / "root", padchest.ENTRIES, column_of(11, text, "['normal']"))
    assert facts("padchest", root)[2]["left_out"]["no label list"] == 5


@pytest.mark.parametrize("bits", [0, 17, 12.5, -12])
def test_stored_bits_that_no_film_has_are_refused_with_their_row(project: Path, bits: float) -> None:
    def change(cells: Cells) -> None:
        cells[2][7] = bits

    root = edited("padchest", project / "root", padchest.ENTRIES, change)
    tables = raw.tables(root, {"files": [{"name": padchest.ENTRIES}]}, padchest, max_mb=10)
    with pytest.raises(ValueError, match=rf"row 3: BitsStored_DICOM is {bits:g}; allowed are 1 to 16"):
        padchest.bit_depths(tables)


def test_a_side_that_chexpert_does_not_know_is_refused_with_its_row(project: Path) -> None:
    def change(cells: Cells) -> None:
        cells[2][3] = "Frontl"

    with pytest.raises(ValueError, match=r"train.csv row 3: Frontal/Lateral is 'Frontl'; allowed are Frontal and Lat"):
        facts("chexpert", edited("chexpert", project / "root", "train.csv", change))


def test_a_table_of_which_no_row_is_left_is_refused_with_the_reasons(project: Path) -> None:
    root = edited("chestxray14", project / "root", chestxray14.ENTRIES, column_of(6, ""))
    with pytest.raises(ValueError, match=r"chestxray14: no row is left: \{'view ': 8\}"):
        facts("chestxray14", root)
