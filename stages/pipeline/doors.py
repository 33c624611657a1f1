"""What a stage opens, writes, moves and imports of its project, held against what dvc.yaml declares of it.

Python tells an audit hook (PEP 578) of each file that it opens, renames, links, makes or removes, and of each module
that it runs. A path counts by where it leads: relative to the folder that the process is in, through links and
descriptors of folders. Not seen are files that C code opens by itself (some readers of images and tables), what worker
processes do, and names that are only listed or asked for; `tests/test_wiring.py` covers those by reading the code, and
`fence` the first two by the kernel.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any

from stages.core import files, params

UNTRACKED = {".dvc", ".git", ".venv", ".ckpt", ".live", "params.yaml", "dvc.yaml", "dvc.lock"}
UNTRACKED |= {".dvcignore", ".gitignore"}  # which DVCLive reads, through DVC
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT
DVC = {"dvc", "dvclive"}  # libraries that read params.yaml by themselves
NO_FOLDER = -1


@dataclass(frozen=True)
class Doors:
    """What one stage may do.

    Attributes:
        root: the project's folder.
        readable: paths whose content, and what lies below them, it may read.
        outs: paths that it may write, and folders that it may fill.
        code: paths of modules that it may import, and folders of such.
        harness: modules, relative to the root, that any stage may import.
        refuse: called with what it did instead, and why that is a fault; raises.
    """

    root: Path
    readable: tuple[Path, ...]
    outs: tuple[Path, ...]
    code: frozenset[Path]
    harness: frozenset[str]
    refuse: Callable[[str, str], None]
    _seen: threading.local = field(default_factory=threading.local, init=False)

    def watch(self) -> None:
        """Watch this process from now on; a hook cannot be taken off."""
        by_descriptor = os.open

        def opened(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if dir_fd is None:
                return by_descriptor(path, flags, mode)
            self._open(path, None, flags, dir_fd)  # of whose folder the hook is not told
            self._seen.by_folder = True
            try:
                return by_descriptor(path, flags, mode, dir_fd=dir_fd)
            finally:
                self._seen.by_folder = False

        os.open = opened
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        match event:
            case "exec":
                self._run(args[0])
            case "open" if not getattr(self._seen, "by_folder", False):
                self._open(*args)
            case "os.remove" | "os.rmdir":
                self._write(args[0], args[1])
            case "os.mkdir":
                self._make(args[0], args[2])
            case "os.truncate":
                self._write(args[0])
            case "os.rename":
                self._write(args[0], args[2])
                self._write(args[1], args[3])
            case "os.link":
                self._read(args[0], args[2])
                self._write(args[1], args[3])
            case "os.symlink":
                self._write(args[1], args[2])

    def _run(self, loaded: Any) -> None:
        """A module is about to run."""
        path = Path(loaded.co_filename).absolute() if isinstance(loaded, CodeType) else self.root
        if self.root / "stages" not in path.parents or loaded.co_name != "<module>" or path.name == "__init__.py":
            return
        if str(path.relative_to(self.root)) not in self.harness and not self.code & {path, *path.parents}:
            way_out = "declare it there, or import what the stage declares (of a plug-in see its folder's __init__.py)"
            self.refuse(f"imported {path.relative_to(self.root)}", f"which dvc.yaml does not declare: {way_out}")

    def _open(self, path: Any, mode: str | None, flags: int, folder: int = NO_FOLDER) -> None:
        if flags & os.O_DIRECTORY:
            return
        is_write = any(mark in mode for mark in "wax+") if mode is not None else bool(flags & WRITE_FLAGS)
        if is_write:
            self._write(path, folder)
        else:
            self._read(path, folder)

    def _read(self, path: Any, folder: int = NO_FOLDER) -> None:
        for place in self._inside(path, folder):
            relative = place.relative_to(self.root)
            if relative == params.FILE and not _is_of_params():
                self.refuse("read params.yaml by itself", "of which `params.load` alone knows what dvc.yaml declares")
            if relative.parts[0] == "stages" and relative.suffix == ".py":
                continue  # as text, by inspect or a traceback: code counts when it runs
            if not _is_untracked(relative) and not self._may_write(place) and not _is_at_or_below(place, self.readable):
                self.refuse(f"read {relative}", "which dvc.yaml does not declare")

    def _write(self, path: Any, folder: int = NO_FOLDER) -> None:
        for place in self._inside(path, folder):
            relative = place.relative_to(self.root)
            if not _is_untracked(relative) and not self._may_write(place):
                self.refuse(f"wrote {relative}", "which dvc.yaml does not declare")

    def _make(self, path: Any, folder: int) -> None:
        """A folder is made: an output's, or one that outputs lie in."""
        for place in self._inside(path, folder):
            if not any(place in out.parents for out in self.outs):
                self._write(place)

    def _may_write(self, path: Path) -> bool:
        places = (path, *path.parents)
        return _is_at_or_below(path, self.outs) or any(
            files.is_temporary_name(place, out) for place in places for out in self.outs
        )

    def _inside(self, path: Any, folder: int) -> Iterator[Path]:
        """The path if it leads into the project; links in the project stay as they are, since outputs may be links."""
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor, which was looked at when it was opened
        named = Path(os.path.normpath(os.path.join(_folder(folder), os.fsdecode(path))))  # noqa: PTH118 - of any kind
        place = named if self.root in named.parents else Path(os.path.realpath(named))
        if self.root in place.parents and not place.is_dir():
            yield place


def _folder(descriptor: int) -> str:
    """Where a relative path begins: the present folder, or that of a descriptor where the system tells it."""
    try:
        return str(Path.cwd()) if descriptor == NO_FOLDER else os.path.realpath(f"/proc/self/fd/{descriptor}")
    except OSError:
        return os.curdir


def _is_untracked(relative: Path) -> bool:
    return relative.parts[0] in UNTRACKED or "__pycache__" in relative.parts


def _is_at_or_below(path: Path, places: tuple[Path, ...]) -> bool:
    return any(place == path or place in path.parents for place in places)


def _is_of_params() -> bool:
    """Whether `stages/core/params.py`, or DVC, is what reads."""
    stages, frame = Path(__file__).parent.parent, sys._getframe(1)
    while frame := frame.f_back:  # type: ignore[assignment]
        path = Path(frame.f_code.co_filename)
        if path == Path(params.__file__) or DVC & set(path.parts):
            return True
        if stages in path.parents and path != Path(__file__):
            return False
    return True
