"""The page on labels: counts that add up, every source term, what was left out, and bytes that are stable."""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import owners
import pytest
from owners import chexpert_path, chexpert_row, nih_name, padchest_row

from stages import describe
from stages.core import files, params
from stages.judging import cells
from stages.pages import charts, rendering

REPOSITORY = Path(__file__).parent.parent
SPLITS = {"chestxray14": "official", "chexpert": "official", "padchest": "patient_hash"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small data sets, harmonized and ingested."""
    folder = tmp_path_factory.mktemp("described")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        owners.project(folder, ingest__size_px=32, datasets__padchest__max_rejected_rows=1.0,
                       datasets__chestxray14__max_rejected_images=0.5)  # fmt: skip
        rows = owners.nih_rows(8, labels="Mass|Nodule")
        rows[2][1], rows[3][1], rows[4][4] = "Mass", "No Finding", 500
        rows.append([nih_name(9), "Effusion", 0, 9, 50, "M", "LL"])
        same = owners.png(owners.film(1))
        images = {f"images/{row[0]}": same if row is rows[0] or row is rows[1] else owners.png(owners.film(place))
                  for place, row in enumerate(rows)}  # fmt: skip
        images[f"images/{nih_name(8)}"] = b""
        root = owners.nih(folder / "nih", rows, images)
        owners.harmonized("chestxray14", root)
        owners.ingested("chestxray14", root)
        train = [
            chexpert_row(chexpert_path("train", 1), No_Finding=1),
            chexpert_row(chexpert_path("train", 2), Edema=-1, Fracture=1),
        ]
        root = owners.chexpert_zip(folder / "chexpert", train)
        owners.harmonized("chexpert", root)
        owners.ingested("chexpert", root)
        texts = (["normal"], ["COPD signs", "mass"], ["unchanged"], ["suboptimal study"], ["mass", ""])
        root = owners.padchest(folder / "padchest", [padchest_row(f"{n}.png", text) for n, text in enumerate(texts)])
        owners.harmonized("padchest", root)
        owners.ingested("padchest", root)
    return folder


@pytest.fixture
def project(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stage's inputs, and the params that it loads."""
    shutil.copytree(written / "reports", tmp_path / "reports")
    owners.read_by_stages(tmp_path)
    monkeypatch.chdir(tmp_path)
    load(monkeypatch)
    return tmp_path


def load(monkeypatch: pytest.MonkeyPatch, title: str = "Small", drawn: Iterable[str] = SPLITS, **splits: str) -> None:
    """Let params be these."""
    datasets = {name: SimpleNamespace(split=split) for name, split in (splits or SPLITS).items()}
    monkeypatch.setattr(params, "load", lambda *_: (title, dict.fromkeys(drawn), datasets))


def run(project: Path) -> tuple[str, str]:
    """Run the stage: the HTML and the Markdown page."""
    describe.main([])
    places = (project / "reports/labels.html", project / "reports/labels.md")
    return places[0].read_text(encoding="utf-8"), places[1].read_text(encoding="utf-8")


def section(markdown: str, dataset: str) -> str:
    """The part of the Markdown page on one data set."""
    return markdown.split(f"\n## {dataset}\n")[1].split("\n## ")[0]


def row(text: str, name: str) -> list[str]:
    """The cells of the first table row with this name."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_facts_of_a_finding_are_counted_over_the_splits(project: Path) -> None:
    _, markdown = run(project)
    nih = section(markdown, "chestxray14")
    labels = files.read_json(project / "reports/labels/chestxray14.terms.json")["findings"]["Mass"]
    assert row(nih, "Mass")[:7] == ["7", "1", "0", "0", "0", "87.5%", "87.5%"]
    assert row(nih, "Mass")[7] == " / ".join(str(labels[part]["present"]) for part in ("train", "val", "test"))
    assert row(section(markdown, "chexpert"), "Edema")[:7] == ["0", "0", "2", "1", "0", "0.0%", "0.0%"]
    assert row(section(markdown, "chexpert"), "Fracture")[:7] == ["1", "0", "2", "0", "0", "33.3%", "33.3%"]
    assert row(section(markdown, "padchest"), "Mass")[:7] == ["2", "1", "0", "0", "1", "66.7%", "50.0%"]


def test_what_a_data_set_never_annotates_is_a_dash_and_listed(project: Path) -> None:
    _, markdown = run(project)
    assert row(markdown, "Mass") == ["7 (87.5%)", charts.UNDEFINED, "2 (50.0%)"]
    listed = "Never annotated here: Lung opacity, Lung lesion, Other pleural abnormality"
    assert listed in section(markdown, "padchest")
    assert "| Lung opacity |" not in section(markdown, "padchest")


def test_every_source_term_has_its_target_or_is_called_unmapped(project: Path) -> None:
    html, markdown = run(project)
    for dataset in SPLITS:
        terms = files.read_json(project / f"reports/labels/{dataset}.terms.json")["terms"]
        table = section(markdown, dataset).split("| source term |")[1].split("\n\n")[0]
        assert len(table.splitlines()) == len(terms) + 2
    padchest = section(markdown, "padchest").split("### What its terms became")[1]
    assert row(padchest, "mass") == ["2", "Mass"]
    assert row(padchest, "copd signs") == ["1", "unmapped"]
    assert row(padchest, "unchanged") == [
        "1",
        "rule: what is not mentioned is as in an earlier report, so not known: blank",
    ]
    assert row(padchest, "(empty)")[0] == "1"
    assert "6 terms in all 5 rows read: 1 became findings, 4 follow rules, 1 are unmapped (1 of 7 mentions)" in padchest
    assert html.count('<td class="none">unmapped</td>') == 1


def test_films_and_patients_of_each_split_and_what_was_left_out_are_told(project: Path) -> None:
    _, markdown = run(project)
    counts = files.read_json(project / "reports/labels/chestxray14.terms.json")
    cells_of_row = row(markdown, "chestxray14")
    assert cells_of_row[0] == "official"
    for cell, part in zip(cells_of_row[1:4], ("train", "val", "test"), strict=True):
        assert cell == f"{counts['images'].get(part, 0)} / {counts['patients'].get(part, 0)}"
    assert cells_of_row[4:] == ["9", "1 view LL", "1 zero bytes"]
    nih = section(markdown, "chestxray14")
    assert "9 rows read, 8 kept; 0 of those left out have a fault" in nih
    assert "age in 1 rows, sex in 0" in nih
    assert f"identical pixels: 1 group, {nih_name(1)} = {nih_name(2)}." in nih
    assert "1 boxes, 0 of them of a row left out" in nih
    assert "1 only `suboptimal study`" in row(markdown, "padchest")[5]


def test_near_duplicates_are_named_up_to_a_few(project: Path) -> None:
    path = project / "reports/labels/padchest.images.json"
    pairs = [[f"{n}a.png", f"{n}b.png"] for n in range(describe.SHOWN + 2)]
    files.write_json(files.read_json(path) | {"near_duplicates": pairs}, path)
    html, markdown = run(project)
    assert "nearly the same: 12 pairs, 0a.png = 0b.png; 1a.png = 1b.png;" in section(markdown, "padchest")
    assert "9a.png = 9b.png and 2 more in `reports/labels/padchest.images.json`." in markdown
    assert "9a.png = 9b.png and 2 more in <code>reports/labels/padchest.images.json</code>." in html


def test_films_in_another_format_and_files_left_unread_are_told_where_there_are_any(project: Path) -> None:
    assert not any("left unread" in page or "owner ships" in page for page in run(project))
    path = project / "reports/labels/padchest.images.json"
    met = {"saved_again_as": {"JPEG": 1234}, "left_unread": {"count": 2, "first": ["a <b>.tif", "c.zip"]}}
    files.write_json(files.read_json(path) | met, path)
    html, markdown = run(project)
    assert "\n* 1,234 films are JPEG, which is not what the owner ships.\n* 2 image files, or" in markdown
    assert "archives in archives, were left unread, e.g. a &lt;b&gt;.tif, c.zip.</li>" in html


def test_findings_together_are_shares_of_the_rows_films(project: Path) -> None:
    html, markdown = run(project)
    table = section(markdown, "chestxray14").split("### What its films show together")[1]
    rows = {cells[1].strip(): cells[2:-1] for cells in (line.strip("|").split("|") for line in table.splitlines()
                                                        if re.match(r"\| \d", line))}  # fmt: skip
    mass, nodule = rows["Mass"], rows["Nodule"]
    assert len(rows) == 14
    assert "7 of 7" not in html
    assert "6 of 7 also have Nodule<" in html
    assert "6 of 6 also have Mass<" in html
    assert mass[0].strip() == "7"
    assert "86" in [cell.strip() for cell in mass]
    assert "100" in [cell.strip() for cell in nodule]


def test_the_block_for_the_report_holds_all_but_the_frame_and_loads_nothing(project: Path) -> None:
    html, _ = run(project)
    block = rendering.block(html, "labels").group(1)
    assert block.count("<details>") == 3
    assert "<style" not in block
    assert "<script" not in block
    assert not re.search(r"<script [^>]*src|<link|<img|@import|url\(|http", html.replace("http-equiv", ""))


def test_a_source_term_is_escaped(project: Path) -> None:
    path = project / "reports/labels/padchest.terms.json"
    labels = files.read_json(path)
    labels["terms"]["<odd> term"] = {"count": 3, "findings": [], "rule": None, "unmapped": True}
    files.write_json(labels, path)
    labels["terms"]["a|b\n| `c` [d](e)"] = {"count": 2, "findings": [], "rule": None, "unmapped": True}
    labels["left_out"]["view <L|L>\n\n# x"] = 2
    files.write_json(labels, path)
    html, markdown = run(project)
    assert "&lt;odd&gt; term" in html
    assert "<odd>" not in html
    assert r"| \<odd> term | 3 | unmapped |" in markdown
    assert r"| a\|b \| \`c\` \[d](e) | 2 | unmapped |" in markdown
    assert r"2 view \<L\|L> # x" in markdown


def test_the_page_says_whether_films_are_drawn(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all("Simulated films" in page for page in run(project))
    load(monkeypatch, drawn=())
    assert not any("Simulated" in page for page in run(project))
    load(monkeypatch, drawn=list(SPLITS)[1:])
    assert all(f"({', '.join(list(SPLITS)[1:])})" in page for page in run(project))


def test_a_title_is_one_line_of_text(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(monkeypatch, title="a | <b>\n# `c`")
    html, markdown = run(project)
    assert markdown.lstrip().startswith(r"# Labels and films: a \| \<b> # \`c\`")
    assert "<b>" not in html


def test_films_of_little_contrast_that_are_kept_are_named(project: Path) -> None:
    path = project / "reports/labels/padchest.images.json"
    _, markdown = run(project)
    assert "span under an eighth of black to white: none." in section(markdown, "padchest")
    files.write_json(files.read_json(path) | {"low_contrast": ["1.png", "3.png"]}, path)
    for page in run(project):
        assert "span under an eighth of black to white: 2 films, 1.png; 3.png." in page


def test_same_inputs_give_same_bytes_and_other_inputs_do_not(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(project)
    assert run(project) == first
    load(monkeypatch, title="Another")
    assert run(project) != first


def test_a_data_set_that_params_no_longer_has_stops_the_stage(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(monkeypatch, chestxray14="official", padchest="patient_hash")
    with pytest.raises(cells.UndeclaredError, match=r"chexpert.images.json.*make prune"):
        run(project)


def test_a_missing_part_is_named(project: Path) -> None:
    files.remove(project / "reports/labels/chexpert.terms.json")
    with pytest.raises(FileNotFoundError, match=r"chexpert.terms.json.*make repro"):
        describe.main([])


def test_a_finding_that_no_film_states_has_no_prevalence() -> None:
    nothing: dict[str, Any] = dict.fromkeys((*describe.STATED, *describe.UNSTATED, describe.MISSING), 0)
    found = describe.describe_finding({"train": nothing | {"blank": 4}, "val": nothing, "test": nothing})
    assert (found["of_stated"], found["of_films"], found["is_annotated"]) == (None, 0.0, True)
    assert charts.percent(None) == charts.UNDEFINED


def test_a_heat_map_leaves_a_finding_without_films_empty() -> None:
    drawn = charts.heat("<title>", ["A & B", "C"], [[0, 0], [0, 1000]])
    assert drawn.count('class="self"') == 3
    assert "also have" not in drawn
    assert "&lt;title&gt;" in drawn
    drawn = charts.heat("", ["A", "B"], [[1000, 4], [4, 5]])
    assert ">&lt;1<" in drawn
    assert re.search(r'class="on"[^>]*>80<', drawn)
