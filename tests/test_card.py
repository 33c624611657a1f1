"""Cards: data cards that mlcroissant reads, a model card that the hub's library reads, and the checklists."""

import contextlib
import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlcroissant as mlc
import numpy as np
import owners
import pandas as pd
import pytest
from huggingface_hub import ModelCard

from stages import card
from stages.core import files, findings
from stages.pages import cards, rendering

ROOT = Path(__file__).parent.parent
READ = {"left_out": {"no such film": 3}, "terms": {
    "Mass": {"count": 2, "findings": ["Mass"], "unmapped": False},
    "odd": {"count": 1, "findings": [], "unmapped": True}}}  # fmt: skip


def labels(rows: int = 6) -> pd.DataFrame:
    """A label table as harmonize writes it; the ages and sexes of some are not known."""
    facts = dict.fromkeys(findings.vocabulary().names, np.zeros(rows, np.int8))
    number = np.arange(rows)
    about = {
        "image": [f"{n}.png" for n in number],
        "patient": [f"p{n // 2}" for n in number],
        "study": [f"s{n}" for n in number],
        "split": np.array(["train", "train", "val", "val", "test", "test"])[:rows],
        "view": "PA",
        "sex": ["F", None, "M", "F", "F", "M"][:rows],
        "age": [30.0, np.nan, 50, 60, 70, 80][:rows],
        "label_source": "report",
    }
    return pd.DataFrame(about | facts)


def run(root: Path, table: pd.DataFrame) -> Any:
    """Run the stage on a table: the card."""
    owners.project(root)
    files.write_table(table, root / "data/labels/padchest.parquet")
    files.write_json(READ, root / "reports/labels/padchest.terms.json")
    with contextlib.chdir(root):
        card.main(["--dataset", "padchest"])
    return json.loads((root / "reports/data_cards/padchest.json").read_text())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # mlcroissant's use of rdflib and pandas
def test_a_data_card_is_read_by_the_library_and_leads_to_the_rows(tmp_path: Path) -> None:
    run(tmp_path, labels())
    read = mlc.Dataset(jsonld=str(tmp_path / "reports/data_cards/padchest.json"))
    assert not read.metadata.issues.errors
    rows = list(itertools.islice(read.records("films"), 10))
    assert [row["films/image"] for row in rows] == [f"{n}.png".encode() for n in range(6)]
    assert {row["films/Mass"] for row in rows} == {0}
    assert read.metadata.license == ["PadChest research use agreement: non-commercial research, no redistribution"]


def test_a_data_card_says_whom_it_shows_what_was_left_out_and_that_films_are_drawn(tmp_path: Path) -> None:
    made = run(tmp_path, labels())
    assert "test 2 films of 1 patients, train 2 films of 1 patients, val 2 films of 1 patients" in made["description"]
    assert "3 no such film" in made["description"]
    assert card.DRAWN in made["description"]
    assert made["rai:dataBiases"][1] == (
        "train: sex of films F 50.0%, not stated 50.0%; age, 5th, 50th and 95th percentile, 30, 30 and 30 years"
    )
    assert "2 terms of the owner's were met; 1 became findings, 1 are listed as unmapped" in json.dumps(made)


def test_a_table_that_states_no_age_has_a_card(tmp_path: Path) -> None:
    made = run(tmp_path, labels().assign(age=np.nan, sex=None))
    assert "sex of films not stated 100.0%; age, 5th, 50th and 95th percentile, not stated" in made["rai:dataBiases"][0]


def test_real_films_are_not_called_drawn() -> None:
    plugin = SimpleNamespace(SOURCE="https://example.org", LICENCE="all", ACCESS="Free")
    made = card.card("mine", plugin, labels(), b"", READ, drawn=False)
    assert card.DRAWN not in json.dumps(made)


HEADLINE = SimpleNamespace(student="eeea_net_c2", loss="paper")


def test_a_model_cards_head_is_read_by_the_hubs_library() -> None:
    head = cards.metadata({"chestxray14": 0.87654, "padchest": None}, HEADLINE, ["chestxray14"])
    data = ModelCard(head + "# Model card\n").data
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_value, result.dataset_split) == (
        "chestxray14 (drawn films)",
        0.8765,
        "test",
    )
    assert "not-for-diagnosis" in data.tags
    assert ModelCard(cards.metadata({}, HEADLINE, []) + "#\n").data.eval_results is None


@pytest.fixture(scope="module")
def items() -> list[tuple[str, str, list[tuple[str, str, bool, str]]]]:
    """The checklists."""
    return cards.checklists(pd.read_csv(ROOT / "stages/pages/checklists.csv", dtype=str))


def test_every_item_of_both_checklists_is_there_once(items: Any) -> None:
    claim, tripod = ([item[0] for item in listed] for _, _, listed in items)
    assert claim == [str(number) for number in range(1, 45)]
    assert len(set(tripod)) == len(tripod)
    assert list(dict.fromkeys(int(re.sub(r"\D", "", item)) for item in tripod)) == list(range(1, 28))


def test_what_is_filled_names_parts_of_the_report_that_there_are(items: Any) -> None:
    titles = re.findall(r"<h[23][^>]*>([^<{]*)", "".join(path.read_text() for path in ROOT.glob("stages/pages/*.j2")))
    known = {title.strip() for title in titles}
    for _, _, listed in items:
        for number, _, _, where in listed:
            for named in re.findall(r"report, ([A-Z][^:();.?]*\??)", where):
                for part in re.split(r", (?:and )?(?=[A-Z])| and (?=[A-Z])|, (?=[a-z])", named):
                    is_known = any(title.startswith(part.strip()) for title in known)
                    assert is_known or not part[0].isupper(), f"{number}: {part}"


def test_the_checklists_count_and_claim_no_compliance(items: Any) -> None:
    template = (ROOT / "stages/pages/checklists.md.j2").read_text()
    text = rendering.render(template, {"checklists": items}, is_html=False)
    assert "claims no compliance" in text
    for _, _, listed in items:
        filled = sum(is_filled for _, _, is_filled, _ in listed)
        assert f"{filled} of {len(listed)} items are filled" in text
        assert all(where for *_, where in listed)
