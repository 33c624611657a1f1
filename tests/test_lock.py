"""dvc.lock belongs to the code and params beside it, and the check that says so can fail."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wiring

from stages.core import files
from stages.pipeline import lock, pinning, recovery

ROOT = Path(__file__).parent.parent
ENTRIES: dict[str, Any] = {
    "a": {"cmd": "make a", "outs": [{"path": "data/a", "md5": "1"}]},
    "b": {"cmd": "make b", "deps": [{"path": "data/a", "md5": "1"}], "outs": [{"path": "data/b", "md5": "2"}]},
}


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the check of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"}
    words = ["python", "-m", "stages.pipeline.lock", "check"]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that a clean clone has, without data."""
    for name in ("dvc.yaml", "dvc.lock", "params.yaml", "requirements.lock", ".dvcignore"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    for name in ("stages", "reports"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    dvc_project(tmp_path)
    return tmp_path


def dvc_project(folder: Path) -> None:
    """Make a folder a project of DVC's, without git."""
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")


def test_the_committed_lock_belongs_to_the_committed_code_and_params(checkout: Path) -> None:
    done = check(checkout)
    assert done.returncode == 0, done.stdout
    assert "dvc.lock belongs to this code and these params" in done.stdout


def test_a_changed_param_code_file_or_result_is_noticed(checkout: Path) -> None:
    text = (checkout / "params.yaml").read_text().replace("temperature: 2.0", "temperature: 3.0", 1)
    (checkout / "params.yaml").write_text(text)
    with (checkout / "stages/losses/paper.py").open("a") as file:
        file.write("# edited\n")
    (checkout / "reports/metrics/padchest.json").write_text("{}\n")
    done = check(checkout)
    assert done.returncode == 1
    for part in ("losses.paper", "stages/losses/paper.py: modified", "reports/metrics/padchest.json: modified"):
        assert part in done.stdout


def test_trials_of_other_code_or_params_are_told_and_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lock, "lock_faults", list)
    monkeypatch.setattr(lock, "entries", lambda: ENTRIES)
    monkeypatch.setattr("sys.argv", ["lock", "check"])
    shutil.copyfile(ROOT / "params.yaml", "params.yaml")

    def audited() -> tuple[int, list[str]]:
        with pytest.raises(SystemExit) as caught:
            lock.main()
        return int(caught.value.code or 0), capsys.readouterr().out.splitlines()

    whole = ["dvc.lock belongs to this code and these params: 2 stages"]
    assert audited() == (0, whole)
    files.write_json({"name": None, "stale": [], "differs": []}, lock.CHOICE)
    assert audited() == (0, whole)
    files.write_json({"name": "drawn", "stale": ["code: a.py has changed"], "differs": ["b is 1"]}, lock.CHOICE)
    assert audited() == (0, [
        "choice: code: a.py has changed",
        "choice: b is 1",
        "choice: settings were chosen by trials of other code or params (2 differences): `make trials STUDY=drawn` "
        "tries them anew, `choice: null` in params.yaml says that no trials chose them",
        *whole,
    ])  # fmt: skip


def test_outputs_with_other_bytes_than_in_another_lock_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {**ENTRIES, "b": ENTRIES["b"] | {"outs": [{"path": "data/b", "md5": "9"}, {"path": "data/c", "md5": "3"}]}}
    monkeypatch.chdir(tmp_path)
    dvc_project(tmp_path)
    for name, stages in (("dvc.lock", ENTRIES), ("there/dvc.lock", other)):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(json.dumps({"schema": "2.0", "stages": stages}))
    files.write_json({"a": "one", "b": "two"}, Path("there") / pinning.PROCESSORS)
    assert lock.compare(Path("there/dvc.lock")) == [
        "first to differ: b (here on an unknown processor, there on two)",
        "differs: data/b",
        "only in there/dvc.lock: data/c",
        "1 outputs have the same bytes, 2 do not",
    ]


def test_the_first_stage_to_differ_is_that_whose_inputs_are_the_same() -> None:
    def outs(*md5s: str) -> dict[str, Any]:
        """Three stages in a row, of which the second reads the folder that the first writes into."""
        a, b, c = md5s
        return {
            "a": {"outs": [{"path": "data/x/a", "md5": a}]},
            "b": {"deps": [{"path": "data/x", "md5": a}], "outs": [{"path": "data/b", "md5": b}]},
            "c": {"deps": [{"path": "data/b/part", "md5": b}], "outs": [{"path": "data/c", "md5": c}]},
        }

    ours = outs("1", "1", "1")
    assert lock.first_to_differ(ours, ours) == []
    assert lock.first_to_differ(ours, outs("2", "2", "2")) == ["a"]
    assert lock.first_to_differ(ours, outs("1", "2", "2")) == ["b"]
    assert lock.first_to_differ(ours, outs("1", "2", "1")) == ["b"]
    assert lock.first_to_differ(ours, outs("1", "1", "2")) == ["c"]


def test_a_chain_that_does_not_close_is_named() -> None:
    assert lock.chain_faults(ENTRIES, ["a", "b"]) == []
    broken = ENTRIES | {"b": ENTRIES["b"] | {"deps": [{"path": "data/a", "md5": "9"}]}}
    assert lock.chain_faults(broken, ["a", "b"]) == ["b: consumed another data/a than a produced"]


def test_a_stage_that_never_ran_and_one_that_is_gone_are_named() -> None:
    assert lock.chain_faults(ENTRIES, ["a", "c"]) == [
        "c: never run, not in dvc.lock",
        "b: no such stage any more, run `make prune`",
    ]


def test_a_folder_of_another_content_breaks_the_chain() -> None:
    """The hash of a parent folder is computed from the outputs below it, so that no data is needed."""
    entries = lock.entries()
    folders = {
        dep["path"] for entry in entries.values() for dep in entry.get("deps", []) if dep["md5"].endswith(".dir")
    }
    assert {"data/labels", "data/images", "data/predictions", "reports/metrics"} <= folders
    assert lock.chain_faults(entries, list(entries)) == []
    evaluate = entries["evaluate@padchest"]["deps"]
    next(dep for dep in evaluate if dep["path"] == "data/predictions")["md5"] = "0" * 32 + ".dir"
    assert lock.chain_faults(entries, list(entries)) == [
        "evaluate@padchest: consumed another data/predictions than the stages that write below it produced"
    ]


def test_prune_drops_what_a_dropped_cell_made_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dvc_project(tmp_path)
    for name in ("data/mine/film.png", "data/models/old/weights", "data/models/kept/weights", "reports/mine/notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    Path("dvc.lock").write_text(
        "schema: '2.0'\nstages:\n"
        "  train@old:\n    cmd: x\n    outs:\n    - {path: data/models/old, md5: a.dir}\n"
        "  train@kept:\n    cmd: x\n    outs:\n    - {path: data/models/kept, md5: b.dir}\n"
    )
    monkeypatch.setattr(lock, "declared", lambda: ["train@kept"])
    assert lock.prune() == ["dvc.lock: train@old", "data/models/old"]
    assert sorted(path.as_posix() for path in Path().glob("[!.]*/**/*") if path.is_file()) == [
        "data/mine/film.png",
        "data/models/kept/weights",
        "reports/mine/notes.md",
    ]
    assert list(lock.entries()) == ["train@kept"]


GOOD: dict[str, Any] = {"cmd": "x", "outs": [{"path": "data/a", "hash": "md5", "md5": "0" * 32, "size": 1}]}


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        (GOOD | {"evil": 1}, "stages, a, evil"),
        (GOOD | {"deps": None}, "stages, a, deps"),
        ({"outs": []}, "stages, a, cmd"),
        (None, "stages, a"),
        (GOOD | {"outs": [{"path": "data/a", "size": 1}]}, "stages, a, outs, 0, md5"),
        (GOOD | {"outs": [GOOD["outs"][0] | {"size": True}]}, "stages, a, outs, 0, size"),
        (GOOD | {"params": {"other.yaml": {"a": 1}}}, "stages, a, params, other.yaml"),
    ],
)
def test_a_lock_of_another_form_is_refused_by_the_place(entry: Any, place: str) -> None:
    recovery.require_known(Path("dvc.lock"), {"schema": "2.0", "stages": {"a": GOOD}})
    with pytest.raises(recovery.LockFileError, match=re.escape(f"({place}")):
        recovery.require_known(Path("dvc.lock"), {"schema": "2.0", "stages": {"a": entry}})
    with pytest.raises(recovery.LockFileError, match=r"\(datasets"):
        recovery.require_known(Path("dvc.lock"), {"schema": "2.0", "stages": {}, "datasets": {}})


@pytest.mark.parametrize("command", [("check",), ("prune",), ("compare", "dvc.lock")])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "dvc.lock is cut off or damaged: `git checkout dvc.lock` brings the committed one back"),
        (b"stages:\n<<<<<<< ours\n", "dvc.lock holds the conflicts of a merge: take one side"),
        (b"schema: '2.0'\n", "dvc.lock is cut off"),
        (b"\xff\xfe\x00", "dvc.lock is cut off"),
    ],
)
def test_a_lock_that_is_not_whole_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], content: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    dvc_project(tmp_path)
    shutil.copyfile(wiring.ROOT / "params.yaml", "params.yaml")
    Path("dvc.lock").write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["lock", *command])
    with pytest.raises(SystemExit, match=message):
        lock.main()
    assert Path("dvc.lock").read_bytes() == content
