"""Pages that no stage makes: an edit of one is a fault, and code that changed since is named."""

import subprocess
from pathlib import Path

import pytest

from stages import stamps
from stages.core import files
from stages.pages.digests import digest
from stages.pipeline import by_hand, lock

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page of one benchmark, committed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(by_hand, "PAGES", {"a": by_hand.Made("make a", ("stages/core", "a.py"))})
    for name in ("stages/core/x.py", "a.py", "reports/a.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for words in (["init", "-q"], ["add", "--all"], [*identity, "commit", "-qm", "x"]):
        subprocess.run(["git", *words], check=True)
    return tmp_path


def test_every_page_of_reports_that_no_stage_makes_is_stamped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    pages = {path.stem for path in Path("reports").glob("*.md")}
    made = {Path(path).stem for path in lock.producers(lock.entries()) if path.startswith("reports/")}
    assert pages - made == by_hand.PAGES.keys() == by_hand.read().keys()
    assert list(by_hand.edited()) == []
    for about in by_hand.PAGES.values():
        assert [path for path in about.code if not Path(path).exists()] == []


def test_an_edited_page_and_changed_code_are_told(project: Path) -> None:
    by_hand.stamp("a")
    assert (list(by_hand.edited()), list(by_hand.stale())) == ([], [])
    (project / "stages/core/x.py").write_text("other")
    commit = by_hand.read()["a"]["commit"]
    assert list(by_hand.stale()) == [
        f"reports/a.md is of {commit}; changed since: stages/core (`make a` makes it anew)"
    ]
    (project / "reports/a.md").write_text("0.81")
    ((page, stamped, found),) = by_hand.edited()
    assert (page, found) == ("reports/a.md", digest(project / "reports/a.md"))
    assert stamped != found
    (project / "reports/a.md").unlink()
    assert next(by_hand.edited())[2] == "nothing"


def test_a_page_without_its_stamp_is_told(project: Path) -> None:
    assert list(by_hand.edited()) == [("reports/a.md", "a stamp", digest(project / "reports/a.md"))]


@pytest.mark.parametrize("text", ["{", "[]", '{"a": {"commit": "x"}}', '{"evil": {}}', '{"a": 1}'])
def test_damaged_stamps_are_told_with_the_way_out(project: Path, text: str) -> None:
    (project / by_hand.STAMPS).write_text(text)
    with pytest.raises(by_hand.StampError, match=r"git checkout reports/by_hand\.json"):
        list(by_hand.edited())


def test_a_part_made_anew_does_not_make_the_rest_new(project: Path) -> None:
    by_hand.stamp("a")
    before = by_hand.read()["a"]
    (project / "a.py").write_text("other")
    (project / "reports/a.md").write_text("a part is new")
    by_hand.stamp("a", is_whole=False)
    after = by_hand.read()["a"]
    assert (after["code"], after["commit"]) == (before["code"], before["commit"])
    assert list(by_hand.edited()) == []
    assert len(list(by_hand.stale())) == 1
    by_hand.stamp("a")
    assert list(by_hand.stale()) == []


def test_a_page_is_stamped_at_the_commit_that_it_came_with(project: Path) -> None:
    code = by_hand.hashes("a")
    (project / "a.py").write_text("other")
    by_hand.stamp_as_committed("a")
    assert by_hand.read()["a"]["code"] == code
    (project / "reports/a.md").write_text("other")
    with pytest.raises(ValueError, match="is not committed, or has changed since"):
        by_hand.stamp_as_committed("a")


def test_a_presets_page_is_taken_over_once_it_is_there(project: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no runs/a/reports/report\.md"):
        by_hand.keep("a")
    made = project / "runs/a/reports/report.md"
    made.parent.mkdir(parents=True)
    made.write_text("new")
    by_hand.keep("a")
    assert (project / "reports/a.md").read_text() == "new"
    assert list(by_hand.edited()) == []
    assert files.read_json(by_hand.STAMPS)["a"]["sha256"] == digest(made)


def test_the_report_is_told_which_rooms_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (REPOSITORY / "stages").iterdir():
        if path.is_dir() and path.name != "__pycache__":
            (tmp_path / "stages" / path.name).mkdir(parents=True)
            (tmp_path / "stages" / path.name / "a.py").write_text(path.name)
    monkeypatch.chdir(tmp_path)
    code = {name: digest(Path(name)) for name in ("stages/core", "stages/nets")} | {"benchmarks": "0"}
    page = {"a": {"command": "make a", "commit": "1234567", "sha256": "0", "code": code}}
    files.write_json(page, Path("reports/by_hand.json"))
    (tmp_path / "stages/nets/a.py").write_text("other")
    (tmp_path / "stages/core/__pycache__").mkdir()
    (tmp_path / "stages/core/__pycache__/a.nbi").write_text("of numba")
    stamps.main([])
    assert files.read_json(Path("reports/stamps.json")) == {
        "a": {"command": "make a", "commit": "1234567", "changed": ["stages/nets"]}
    }
