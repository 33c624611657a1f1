"""A sample of what `make soak` tries."""

from pathlib import Path

import pytest
import soak

from stages.core import files


@pytest.mark.slow
def test_no_edit_at_any_moment_of_a_run_is_recorded_as_what_ran(tmp_path: Path) -> None:
    found = soak.windows(6, 1, tmp_path / "project")
    assert found.faults == []
    assert found.tried == 6


@pytest.mark.parametrize("version", soak.VERSIONS)
def test_a_record_of_other_code_is_a_fault(tmp_path: Path, version: str) -> None:
    """What the long trial looks for is found where it is there."""
    made = soak.md5(f"in{version} 17")
    for code in soak.VERSIONS:
        deps = [{"path": "stages/toy.py", "md5": soak.md5(soak.source(code))}]
        stages = {"toy": {"deps": deps, "outs": [{"path": "data/out.txt", "md5": made}]}}
        files.write_json({"stages": stages}, tmp_path / "dvc.lock")  # JSON is YAML
        assert (soak.fault_of(tmp_path) is None) is (code == version)
