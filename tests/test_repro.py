"""Several stages at a time: order, overlap, what is due, and what a failing stage leaves."""

import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.pipeline import repro

MEET = (
    "touch {0}.here; for i in $(seq 200); do test -e {1}.here && break; sleep 0.1; done; test -e {1}.here && cp a {0}"
)
STAGES = {
    "a": {"cmd": "cp source a", "deps": ["source"], "outs": ["a"]},
    "b": {"cmd": MEET.format("b", "c"), "deps": ["a"], "outs": ["b"]},  # ends only if c runs beside it
    "c": {"cmd": MEET.format("c", "b"), "deps": ["a"], "outs": ["c"]},
    "d": {"cmd": "cat b c > d", "deps": ["b", "c"], "outs": ["d"]},
}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC project of four stages: a, then b and c, then d."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    subprocess.run(["dvc", "init", "--no-scm", "--quiet"], check=True)
    Path("source").write_text("1\n")
    write(STAGES)
    return tmp_path


def write(stages: object) -> None:
    """Write dvc.yaml."""
    with Path("dvc.yaml").open("w") as file:
        YAML(typ="safe").dump({"stages": stages}, file)


def locked() -> set[str]:
    """The stages in dvc.lock."""
    return set(YAML(typ="safe").load(Path("dvc.lock"))["stages"])


def test_stages_run_side_by_side_and_later_only_what_a_change_makes_due(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(repro.due()) == set("abcd")
    repro.run(repro.due(), lanes=2)
    assert (toy / "d").read_text() == "1\n1\n"
    assert locked() == set("abcd")
    assert not repro.due()
    write({**STAGES, "c": {**STAGES["c"], "cmd": "cp a c"}})
    assert set(repro.due()) == set("cd")
    capsys.readouterr()
    repro.run(repro.due(), lanes=2)
    said = capsys.readouterr().out
    assert "c: ran" in said
    assert "d: did not change" in said


def test_a_failing_stage_is_shown_and_what_ran_beside_it_is_kept(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failing = "touch b.here; echo no film; exit 3"
    write({**STAGES, "b": {**STAGES["b"], "cmd": failing}})
    with pytest.raises(subprocess.CalledProcessError):
        repro.run(repro.due(), lanes=2)
    said = capsys.readouterr().err
    assert "no film" in said
    assert "b failed" in said
    assert locked() == {"a", "c"}
    assert set(repro.due()) == {"b", "d"}
    assert not (toy / "d").exists()
