"""Files of this checkout and of other commits, and what differs between their values."""

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from stages.pipeline import lock, recovery

HERE = ""  # instead of a revision: this checkout

Entry = dict[str, Any]


class RevisionError(ValueError):
    """The commit to compare with is not here."""


@cache
def content(revision: str, path: str) -> bytes | None:
    """A file of a commit, or of this checkout; None where there is none."""
    if revision == HERE:
        return Path(path).read_bytes() if Path(path).is_file() else None
    done = subprocess.run(["git", "show", f"{revision}:./{path}"], capture_output=True, check=False)
    return None if done.returncode else done.stdout


def commit_of(base: str) -> str:
    """The full hash of a revision.

    Raises:
        RevisionError: there is none of that name.
    """
    words = ["git", "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode or base.startswith("-"):
        raise RevisionError(
            f"there is no commit {base} here: name another by BASE=, or fetch it (`git fetch --unshallow`, on GitHub "
            "`fetch-depth: 0`; `git fetch origin <branch>`)"
        )
    return done.stdout.strip()


def entries(revision: str) -> dict[str, Entry]:
    """The stages of a commit's dvc.lock.

    Raises:
        LockFileError: it is not whole.
    """
    if revision == HERE:
        return lock.entries()
    text = content(revision, str(lock.LOCK))
    if text is None:
        return {}
    values = recovery.parsed(text)
    if values is None:
        raise recovery.LockFileError(f"{lock.LOCK} of {revision[:12]} is not whole: choose another BASE")
    recovery.require_known(lock.LOCK, values)
    return dict(values["stages"])


def flat(value: Any, start: str = "") -> dict[str, Any]:
    """Nested values by `a.b.c`; a list is one value."""
    if not isinstance(value, dict) or not value:
        return {start: value}
    joined = dict[str, Any]()
    for key, below in value.items():
        joined |= flat(below, f"{start}.{key}" if start else str(key))
    return joined
