"""What pages that no stage makes are stamped with: one hash of a file or of a room of code."""

import hashlib
from pathlib import Path

from stages.core import files

CACHE = "__pycache__"  # of Python and of numba


def digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files in a folder."""
    if path.is_file():
        return files.sha256(path)
    inside = sorted(file for file in path.rglob("*") if file.is_file() and CACHE not in file.parts)
    listed = [f"{files.sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in inside]
    return hashlib.sha256("".join(listed).encode()).hexdigest()
