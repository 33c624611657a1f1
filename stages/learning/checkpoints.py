"""Where a long stage keeps what it has done, so that a killed run goes on and a changed one starts afresh.

The folder is no DVC output: `persist: true` would let a run with other parameters pick it up. It lies at
`.ckpt/<name>/<fingerprint>`; the fingerprint is a hash of everything that the result depends on.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stages.core import files

FINGERPRINT = "STAGE_FINGERPRINT"  # set by the guard: a hash of the stage's declared dependencies and params
ROOT = Path(".ckpt")
LIVE = Path(".live")
STAGES = Path(__file__).parent.parent


class BusyError(RuntimeError):
    """Another process is making the same result."""


@contextmanager
def folder(name: str, **facts: Any) -> Iterator[Path]:
    """A folder for one unfinished result, open to one process at a time and dropped when the block ends well.

    Args:
        name: what is made, e.g. ``ingest-padchest``; one process at a time may make it.
        facts: plain values that, with the loaded code, are all that what is kept depends on. Without any, the guard's
            fingerprint stands for them, and a run by hand, which has none, starts afresh.

    Raises:
        BusyError: another process holds it.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        yield ROOT / name  # of torchrun's ranks the first alone reads and writes
        return
    outside = os.environ.get(FINGERPRINT)
    given = json.dumps([loaded_code(), facts] if facts else outside, sort_keys=True)
    kept = ROOT / name / hashlib.sha256(given.encode()).hexdigest()[:16]
    with only_writer(name):
        if not outside and not facts:
            files.remove(kept)
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        for finished in (ROOT / name).iterdir():  # older fingerprints' too
            files.remove(finished)


def live(checkpoint: Path) -> Path | None:
    """Where the curves of an unfinished training stand, at a place that does not move with its fingerprint.

    Args:
        checkpoint: in a `folder`; for one that is kept elsewhere there are no curves.
    """
    return LIVE / checkpoint.parts[1] if checkpoint.parts[0] == ROOT.name else None


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with files.whole(path) as part:
        part.write_bytes(content)


@contextmanager
def only_writer(name: str) -> Iterator[None]:
    """Let one process at a time make a result.

    Args:
        name: of the result, that of a lock file.

    Raises:
        BusyError: another process makes it.
    """
    path = ROOT / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    owner, lock = path.with_suffix(".pid"), FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        process = owner.read_text() if owner.exists() else "unknown"
        raise BusyError(
            f"process {process} is still making {name} (a killed `dvc repro` leaves its stage running, a killed study "
            "its trainings): end it and run again, which goes on from its checkpoint"
        ) from None
    try:
        owner.write_text(str(os.getpid()))
        yield
    finally:
        lock.release()


def loaded_code() -> dict[str, str]:
    """Path below stages/ -> SHA-256, for each module of the project that this process runs, but for the guard."""
    root = STAGES.resolve()
    named = [file for module in [*sys.modules.values()] if (file := getattr(module, "__file__", None))]
    loaded = {Path(file).resolve() for file in named if "stages" in file}  # of thousands, few are worth resolving
    own = sorted(path for path in loaded if path.is_relative_to(root) and path.name not in ("guard.py", "__init__.py"))
    return {path.relative_to(root).as_posix(): files.sha256(path) for path in own}
