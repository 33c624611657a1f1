"""Where stages read and write: declared paths, temporary names, byte-stable writers.

`input` and `output` are the only doors to data in a stage's `main()`. Their argument is a literal or an f-string over
`args`, so that `tests/test_wiring.py` can compute from the code what `dvc.yaml` must declare.
"""

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    import pandas as pd

FULL_BYTES = 1 << 20  # a disk with less room counts as full: NumPy and safetensors do not say why a write failed
_NUMBERS = itertools.count()


def input(path: str) -> Path:  # noqa: A001 - reads as files.input(...)
    """The path of a stage's declared input.

    Raises:
        FileNotFoundError: nothing lies there.
    """
    found = Path(path)
    if not found.exists():
        raise FileNotFoundError(f"{path} does not exist: run `make repro`, which makes what comes before this stage")
    return found


@contextmanager
def output(path: str) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when the block ends well: see `whole`."""
    with whole(Path(path)) as temporary:
        yield temporary


class DiskFullError(OSError):
    """There is no room for a file; the message names it, the room and the way out."""


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A temporary name beside `target`, renamed to it when the block ends well: what lies there is never half written.

    The block makes a file or a folder at the name that it is given, which no other writer has. After an error the
    temporary is removed, and what lay at `target` before is still there; what killed writers left goes too.

    Raises:
        DiskFullError: the disk filled while the block wrote.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in _left_behind(target):
        remove(left)
    temporary = temporary_name(target)
    try:
        yield temporary
    except BaseException as error:
        free = shutil.disk_usage(target.parent).free
        is_full = _is_of_full_disk(error) or free < FULL_BYTES
        remove(temporary)
        if not is_full:
            raise
        raise DiskFullError(
            f"the disk is full: {target} was not written, {free / 1e6:.0f} MB are left in {target.parent.resolve()}; "
            "what lay there before is kept. Make room and run again, which goes on from the last checkpoint"
        ) from error
    if target.is_dir() or temporary.is_dir():  # a rename replaces a file, and nothing else
        remove(target)
    temporary.replace(target)


def _is_of_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says so; torch hides the system's error behind its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def temporary_name(path: Path) -> Path:
    """A name of this writer's own, to write to before it is renamed to `path`; `.dvcignore` hides it from DVC."""
    return path.with_name(f".{path.name}.{os.getpid()}-{next(_NUMBERS)}.part")


def is_temporary_name(path: Path, target: Path) -> bool:
    """Whether some writer of `target` may have named this path."""
    return path.parent == target.parent and bool(_writer(path, target))


def _writer(path: Path, target: Path) -> re.Match[str] | None:
    """The process whose temporary name for `target` this is."""
    return re.fullmatch(rf"\.{re.escape(target.name)}\.(?P<process>\d+)-\d+\.part", path.name)


def _left_behind(target: Path) -> Iterator[Path]:
    """Temporaries of writers of `target` that live no more."""
    for path in target.parent.glob(".*.part"):
        if (writer := _writer(path, target)) and not psutil.pid_exists(int(writer["process"])):
            yield path


def remove(path: Path) -> None:
    """Delete a file or a folder tree if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source` without a copy; copies where the file system cannot link."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_json(value: Any, path: Path) -> None:
    """Write JSON with one fixed byte form: sorted keys, two spaces, no NaN (an undefined number is `None`)."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_table(table: "pd.DataFrame", path: Path) -> None:
    """Write parquet without an index; the same table gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        table.to_parquet(file, index=False, compression="zstd")


def read_table(path: Path, columns: list[str] | None = None) -> "pd.DataFrame":
    """Read parquet through a Python file, so that the guard sees what a stage opens."""
    import pandas as pd  # takes half a second, and many commands read no table

    with path.open("rb") as file:
        return pd.read_parquet(file, columns=columns)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
