"""A preset takes the user's folder wherever it says ROOT, and nowhere else."""

from pathlib import Path

import pytest

from stages.core import preset

TEXT = "a:\n  root: ROOT\nb:\n  root: ROOT/chexpert\nc:\n  checkpoint: ROOT/t.csv # ROOT\n"


def test_root_is_replaced_in_roots_and_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "t.csv").touch()
    found = preset.with_root(TEXT, str(tmp_path))
    assert found == (
        f"a:\n  root: {tmp_path}\nb:\n  root: {tmp_path}/chexpert\nc:\n  checkpoint: {tmp_path}/t.csv # ROOT\n"
    )


def test_a_preset_that_reads_a_users_files_needs_their_folder_and_another_takes_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name their folder"):
        preset.with_root("checkpoint: ROOT/t.csv", None)
    with pytest.raises(ValueError, match="leave ROOT out"):
        preset.with_root("root: data/phantom", str(tmp_path))
    (tmp_path / "empty").mkdir()
    for name in ("none", "empty"):
        with pytest.raises(FileNotFoundError, match=f"{name} is no folder with files"):
            preset.with_root(TEXT, str(tmp_path / name))
