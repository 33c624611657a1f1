"""A sample of what `make soak` tries."""

import subprocess
import sys
from pathlib import Path

import pytest
from soak import kills, walk, windows

from stages.core import files


@pytest.mark.slow
def test_no_edit_at_any_moment_of_a_run_is_recorded_as_what_ran(tmp_path: Path) -> None:
    found = windows.windows(6, 1, tmp_path / "project")
    assert found.faults == []
    assert found.tried == 6


@pytest.mark.parametrize("version", windows.VERSIONS)
def test_a_record_of_other_code_is_a_fault(tmp_path: Path, version: str) -> None:
    """What the long trial looks for is found where it is there."""
    made = windows.md5(f"in{version} 17")
    for code in windows.VERSIONS:
        deps = [{"path": "stages/toy.py", "md5": windows.md5(windows.source(code))}]
        stages = {"toy": {"deps": deps, "outs": [{"path": "data/out.txt", "md5": made}]}}
        files.write_json({"stages": stages}, tmp_path / "dvc.lock")  # JSON is YAML
        assert (windows.fault_of(tmp_path) is None) is (code == version)


@pytest.mark.slow
def test_a_kill_leaves_nothing_that_one_more_run_does_not_mend(finished: Path, tmp_path: Path) -> None:
    found = kills.kills(1, 1, finished, tmp_path)
    assert found.faults == []
    assert found.tried == len(kills.VICTIMS)


def test_what_a_run_may_leave_is_found(tmp_path: Path) -> None:
    """Each is a fault: an unfinished file, a process, a lock."""
    assert kills.left_by(tmp_path) == []
    (tmp_path / ".shard.1-0.part").write_text("")
    files.write_json({"write": {"data": {"pid": 1, "cmd": "dvc repro"}}}, tmp_path / ".dvc/tmp/rwlock")
    words = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        kinds = [fault.split(":")[0] for fault in kills.left_by(tmp_path)]
        process.kill()
    assert kinds == ["a process", "an unfinished file", "a lock"]


@pytest.mark.slow
def test_some_steps_of_a_users_day_leave_a_tree_that_audit_and_repro_agree_on(finished: Path, tmp_path: Path) -> None:
    found = walk.walk(1, 1, finished, tmp_path)
    assert found.faults == []
    assert found.tried > 0
