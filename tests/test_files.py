"""What a stage writes is whole or not there, also on a disk that fills."""

import errno
import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.core import files


class Full(io.RawIOBase):
    """A file on a disk with room for so many bytes."""

    def __init__(self, path: Path, room: int) -> None:
        self.file, self.room = io.FileIO(path, "w"), room

    def close(self) -> None:
        self.file.close()
        super().close()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        content = bytes(data)
        self.file.write(content[: max(self.room, 0)])
        self.room -= len(content)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(content)


@pytest.mark.parametrize(
    "write", [lambda file: file.write(bytes(2000)), lambda file: torch.save(torch.ones(500), file)]
)
def test_a_disk_that_fills_keeps_what_was_there_and_says_path_room_and_remedy(tmp_path: Path, write: Any) -> None:
    """`torch.save` hides the system's error behind its own."""
    target = tmp_path / "a.bin"
    target.write_text("before")
    message = rf"the disk is full: {target} was not written, \d+ MB are left in {tmp_path}; .*Make room and run again"
    with pytest.raises(files.DiskFullError, match=message), files.output(str(target)) as made:
        write(Full(made, 1000))
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert target.read_text() == "before"


def test_a_short_write_without_a_reason_counts_as_a_full_disk_if_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NumPy has it: `OSError: 200 requested and 100 written`."""
    usage = type("Usage", (), {"free": 4096})
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(files.DiskFullError), files.output(str(tmp_path / "a.npy")):
        raise OSError("200 requested and 100 written")
    usage.free = 1 << 30
    with pytest.raises(OSError, match=r"^200 requested"), files.output(str(tmp_path / "a.npy")):
        raise OSError("200 requested and 100 written")


@pytest.mark.parametrize("before", ["file", "folder", "nothing"])
@pytest.mark.parametrize("after", ["file", "folder"])
def test_a_whole_output_takes_the_place_of_what_was_there(tmp_path: Path, before: str, after: str) -> None:
    target = tmp_path / "out"
    if before == "file":
        target.write_text("before")
    if before == "folder":
        (target / "inside").mkdir(parents=True)
    with files.output(str(target)) as made:
        if after == "file":
            made.write_text("after")
        else:
            made.mkdir()
            np.save(made / "a.npy", np.ones(3))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert target.read_text() == "after" if after == "file" else [p.name for p in target.iterdir()] == ["a.npy"]


def test_writers_of_one_file_do_not_take_each_others_temporaries(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"

    def write(number: int) -> None:
        with files.output(str(target)) as made:
            made.write_text(str(number) * 1000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(300)))  # a list, so that what a writer raises is raised
    assert target.read_text() in {str(number) * 1000 for number in range(300)}
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_what_a_killed_writer_left_goes_with_the_next_and_a_living_ones_stays(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [tmp_path / f".{name}.{dead.pid}-0.part" for name in ("a.txt", "b.txt")]
    left[0].mkdir()
    (left[0] / "film").write_text("")
    left[1].write_text("")
    with files.output(str(target)) as living:
        living.write_text("1")
        with files.output(str(target)) as made:
            made.write_text("2")
        assert target.read_text() == "2"
    assert target.read_text() == "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([left[1].name, "a.txt"])
