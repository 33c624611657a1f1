"""Run a stage so that what is recorded of it is what ran: `python -m stages.pipeline.guard stages.<stage> --<cell> ...`

DVC 3.67 hashes dependencies and params *after* the command (dvc#11058), and never checks that a stage reads only what
it declares. This wrapper, for a stage that DVC runs,

1. hashes the declared dependencies and params before and after, code before any of it is loaded, and fails when one
   changed in between;
2. fails as soon as the stage loads a module or opens a file of the project that it does not declare, or writes outside
   its outputs (what C code or worker processes open is not seen: `tests/test_wiring.py` covers those by reading the
   code);
3. checks all of params.yaml, and lets the stage read just the params that it declares.

A failing command makes DVC record nothing. Outside DVC the stage runs without these checks.

A word `@<key>` of a command stands for that key's value in params.yaml: a path is any text, which must not reach the
shell that DVC hands commands to.
"""

import hashlib
import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from types import CodeType
from typing import Any

STAGES = Path(__file__).resolve().parent.parent
AT_START = {path: hashlib.sha256(path.read_bytes()).digest() for path in STAGES.rglob("*.py")}  # before any is loaded

from stages.core import files, params  # noqa: E402 - code counts as it was when this process had loaded none of it
from stages.learning import checkpoints  # noqa: E402
from stages.pipeline import check  # noqa: E402

SMALL_BYTES = 1 << 20  # content is hashed up to here; larger files by size and modification time,
MANY_FILES = 1000  # and so are all files of a folder with this many
UNTRACKED = {".dvc", ".git", ".venv", ".ckpt", ".live", "params.yaml", "dvc.yaml", "dvc.lock"}
UNTRACKED |= {".dvcignore", ".gitignore"}  # which DVCLive reads, through DVC


OF_PARAMS = "@"  # begins a word that stands for a key's value


class ProvenanceError(RuntimeError):
    """What DVC would record of this run is not what ran."""


@dataclass(frozen=True)
class Declaration:
    """What dvc.yaml says of one stage."""

    name: str
    deps: tuple[str, ...]
    keys: tuple[str, ...]
    outs: tuple[str, ...]


def declarations() -> dict[str, Declaration]:
    """The declaration of every stage by its name, as DVC itself resolves them."""
    from dvc.dependency.param import ParamsDependency
    from dvc.repo import Repo

    found = {}
    for stage in Repo(os.curdir).index.stages:
        keys = [key for dep in stage.deps if isinstance(dep, ParamsDependency) for key in dep.params]
        deps = [dep.def_path for dep in stage.deps if not isinstance(dep, ParamsDependency)]
        found[stage.name] = Declaration(stage.name, tuple(deps), tuple(keys), tuple(out.def_path for out in stage.outs))
    return found


def declaration(address: str) -> Declaration:
    """The declaration of one stage; what DVC resolved is kept, since that takes seconds for each stage."""
    sources = b"\0".join(Path(name).read_bytes() for name in ("dvc.yaml", "params.yaml"))
    kept = checkpoints.ROOT / "declarations" / f"{hashlib.sha256(sources).hexdigest()}.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.write(kept, json.dumps({name: asdict(found) for name, found in declarations().items()}).encode())
    values = files.read_json(kept)[address.rsplit(":", 1)[-1]]
    return Declaration(values["name"], *(tuple(values[field]) for field in ("deps", "keys", "outs")))


def digest(path: Path) -> str:
    """A hash that changes when a file, or anything in a folder, changes."""
    members = [path]
    if path.is_dir():
        members = sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    total = hashlib.sha256()
    for file in members:
        try:
            status = file.stat()
            small = status.st_size <= SMALL_BYTES and len(members) < MANY_FILES
            content = file.read_bytes() if small else f"{status.st_size}:{status.st_mtime_ns}".encode()
        except FileNotFoundError:
            content = b"missing"
        total.update(str(file).encode() + b"\0" + hashlib.sha256(content).digest())
    return total.hexdigest()


def state(declared: Declaration) -> dict[str, Any]:
    """Each declared input -> its present hash or value."""
    values = params.read()
    found: dict[str, Any] = {path: digest(Path(path)) for path in declared.deps}
    return found | {f"params.yaml:{key}": params.pick(values, key) for key in declared.keys}


def _has_checkpoint(value: Any) -> bool:
    return isinstance(value, dict) and bool(value.get("checkpoint"))


def _watch(declared: Declaration, values: Iterable[Any], root: Path, faults: set[str]) -> None:
    """Fail as soon as the stage opens a project file that it does not declare.

    A checkpoint that a declared param names may be read: its hash stands beside it in params.yaml. Code counts when a
    module is about to run.
    """
    harness = _project_modules(root)
    code = {root / path for path in declared.deps}
    outs = [root / path for path in declared.outs]
    writable = [*outs, *(files.temporary_name(path) for path in outs)]
    started = [Path(value["checkpoint"]).absolute() for value in values if _has_checkpoint(value)]
    readable = [
        *started,
        *writable,
        *((root / path).resolve() for path in declared.deps),
        *(root / path for path in declared.deps),
    ]
    write_flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "exec":
            refuse_module(args[0])
        if event != "open" or not isinstance(args[0], str | bytes | os.PathLike) or args[2] & os.O_DIRECTORY:
            return
        path = Path(os.path.normpath(root / os.fsdecode(args[0])))  # links stay as they are: outputs may be links
        if root not in path.parents:
            return
        relative = path.relative_to(root)
        if relative.parts[0] in UNTRACKED or "__pycache__" in relative.parts or path.is_dir():
            return
        is_write = any(mark in args[1] for mark in "wax+") if isinstance(args[1], str) else bool(args[2] & write_flags)
        if relative.parts[0] == "stages" and relative.suffix == ".py" and not is_write:
            return  # read as text, by inspect or a traceback: code counts when it runs
        if not any(place == path or place in path.parents for place in (writable if is_write else readable)):
            refuse(f"{'wrote' if is_write else 'read'} {relative}", "which dvc.yaml does not declare")

    def refuse_module(loaded: Any) -> None:
        path = Path(loaded.co_filename).absolute() if isinstance(loaded, CodeType) else root
        if root / "stages" not in path.parents or loaded.co_name != "<module>" or path.name == "__init__.py":
            return
        if str(path.relative_to(root)) not in harness and not code & {path, *path.parents}:
            way_out = "declare it there, or import what the stage declares (of a plug-in see its folder's __init__.py)"
            refuse(f"imported {path.relative_to(root)}", f"which dvc.yaml does not declare: {way_out}")

    def refuse(fault: str, why: str) -> None:
        faults.add(fault)  # kept in case a library swallows the exception
        raise ProvenanceError(f"{declared.name} {fault}, {why}")

    sys.addaudithook(hook)


def _project_modules(root: Path) -> set[str]:
    """The project files among the imported modules, relative to the root."""
    sources = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    places = [Path(source).resolve() for source in sources if source]
    return {place.relative_to(root).as_posix() for place in places if root / "stages" in place.parents}


def _edited(declared: Declaration, root: Path) -> set[str]:
    """Declared code that this process has loaded and that is not as it was when the process began."""
    code = {Path(path) for path in declared.deps}
    loaded = [Path(path) for path in _project_modules(root)]
    ours = [path for path in loaded if code & {path, *path.parents}]
    return {path.as_posix() for path in ours if not path.is_file() or _sha256(path) != AT_START.get(root / path)}


def _sha256(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def run(module: str, argv: list[str]) -> None:
    """Run `module.main(argv)` under the checks of this module's docstring.

    Raises:
        ProvenanceError: inputs changed during the run, or the stage went outside its declaration.
    """
    address = os.environ.get("DVC_STAGE")
    if address is None:
        importlib.import_module(module).main(argv)
        return
    root, faults = Path.cwd().resolve(), set[str]()
    declared = declaration(address)
    check.parse(params.read())
    before = state(declared)
    versions = {name: metadata.version(name) for name in ("numba", "numpy", "opencv-python-headless", "timm", "torch")}
    facts = json.dumps([address, before, versions], sort_keys=True, default=str)
    fingerprint = hashlib.sha256(facts.encode()).hexdigest()
    os.environ[checkpoints.FINGERPRINT] = fingerprint
    os.environ[params.DECLARED] = " ".join(declared.keys)
    _watch(declared, before.values(), root, faults)
    importlib.import_module(module).main(argv)
    if faults:
        raise ProvenanceError(f"{address} went outside its declaration in dvc.yaml: {', '.join(sorted(faults))}")
    after = state(declared)
    changed = sorted({key for key in before if before[key] != after[key]} | _edited(declared, root))
    if changed:
        for out in declared.outs:
            files.remove(Path(out))
        raise ProvenanceError(
            f"inputs of {address} changed while it ran: {', '.join(changed)}; its result belongs to neither state and "
            "was removed. Run `make repro` again."
        )


def filled(words: list[str], values: Any) -> list[str]:
    """The words of a command, with the values that they stand for.

    Args:
        words: those that begin with `@` name a key.
        values: of params.yaml.
    """
    return [str(params.pick(values, word[1:])) if word.startswith(OF_PARAMS) else word for word in words]


def is_told(error: BaseException) -> bool:
    """Whether a `raise` of the project made an error, so that its message says what to do."""
    if type(error).__module__.startswith("stages."):  # though it may come out of a worker process
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(__file__).parents[1] in Path(last.filename).parents and str(last.line).startswith("raise ")


def main(argv: list[str]) -> None:
    """Run a stage; of what it refuses, the message is shown without the way that the program took to it."""
    try:
        words = argv[1:]
        run(argv[0], filled(words, params.read()) if any(word.startswith(OF_PARAMS) for word in words) else words)
    except (OSError, RuntimeError, ValueError) as error:
        if os.environ.get("TRACEBACK") or not is_told(error):
            raise
        sys.exit(f"{argv[0]}: {error} (TRACEBACK=1 shows where)")


if __name__ == "__main__":
    main(sys.argv[1:])
