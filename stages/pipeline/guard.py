"""Run a stage so that what is recorded of it is what ran: `python -m stages.pipeline.guard stages.<stage> --<cell> ...`

DVC 3.67 hashes dependencies and params *after* the command (dvc#11058), and never checks that a stage reads only what
it declares. This wrapper, for a stage that DVC runs,

1. hashes the declared dependencies and params before and after, and fails when one changed in between, or when code is
   not what was loaded of it;
2. fails as soon as the stage loads a module or opens a file of the project that it does not declare, or writes outside
   its outputs (see `doors` for what is seen, and `fence` for the kernel's own net);
3. checks all of params.yaml, and lets the stage read just the params that it declares;
4. pins the instruction set (see `pipeline/pinning.py`), and fails when Python, packages or the instruction set are not
   those of the environment that the stage depends on;
5. leaves its own hashes of code and params for the runner (`lock.forged`), which compares them with what DVC then
   records: an edit between the last check and DVC's own look at the files.

A failing command makes DVC record nothing; what the stage wrote is removed. Outside DVC it runs without these checks.

A word `@<key>` of a command stands for that key's value in params.yaml: a path is any text, which must not reach the
shell that DVC hands commands to.
"""

import hashlib
import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

LOADED: dict[Path, bytes] = {}  # file -> SHA-256 of the source that this process made a module of


class _Reader(SourceFileLoader):
    """Makes modules of their source alone, never of cached bytecode, and keeps what it read."""

    def path_stats(self, path: str) -> NoReturn:
        raise OSError(f"no bytecode for {path}")

    def get_data(self, path: Any) -> bytes:
        source = super().get_data(path)
        LOADED[Path(path).resolve()] = hashlib.sha256(source).digest()
        return source


class _Finder(MetaPathFinder):
    """Finds modules of the project as Python does, and has them read by `_Reader`."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        found = PathFinder.find_spec(fullname, path, target) if fullname.startswith("stages.") else None
        if found is not None and type(found.loader) is SourceFileLoader:
            found.loader = _Reader(found.loader.name, found.loader.path)
        return found


if __name__ == "__main__":
    sys.meta_path.insert(0, _Finder())

from stages.pipeline import pinning  # noqa: E402 - after the finder, which must see all of the project's code

if __name__ == "__main__":
    pinning.pin()  # before any numerical library

from stages.core import files, params  # noqa: E402
from stages.learning import checkpoints  # noqa: E402
from stages.pipeline import check, doors, fence, lock  # noqa: E402

SMALL_BYTES = 1 << 20  # content is hashed up to here; larger files by size and modification time,
MANY_FILES = 1000  # and so are all files of a folder with this many
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
    """Fail as soon as the stage goes outside its declaration.

    A checkpoint that a declared param names may be read: its hash stands beside it in params.yaml.
    """

    def refuse(fault: str, why: str) -> None:
        faults.add(fault)  # kept in case a library swallows the exception
        raise ProvenanceError(f"{declared.name} {fault}, {why}")

    deps = [root / path for path in declared.deps]
    started = [Path(value["checkpoint"]).absolute() for value in values if _has_checkpoint(value)]
    readable = (*started, *deps, *(path.resolve() for path in deps))
    outs, harness = tuple(root / path for path in declared.outs), _project_modules(root)
    if os.environ.get(fence.WISH):
        for out in outs:
            out.parent.mkdir(parents=True, exist_ok=True)
        untracked = [root / name for name in doors.UNTRACKED]
        code = [*untracked, *(root / name for name in harness), *_packages(root / "stages")]
        fence.put_up(root, (*readable, *code, *(out.parent for out in outs)), root / checkpoints.ROOT / "tmp")
    doors.Doors(
        root=root,
        readable=readable,
        outs=outs,
        code=frozenset(deps),
        harness=frozenset(harness),
        refuse=refuse,
    ).watch()


def _packages(code: Path) -> Iterator[Path]:
    """What belongs to the packages of the code, which `doors` tell apart: their first files, and what is compiled."""
    for module in code.rglob("__init__.py"):
        compiled = module.with_name("__pycache__")
        compiled.mkdir(exist_ok=True)
        yield from (module, compiled)


def _project_modules(root: Path) -> set[str]:
    """The project files among the imported modules, relative to the root."""
    sources = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    places = [Path(source).resolve() for source in sources if source]
    return {place.relative_to(root).as_posix() for place in places if root / "stages" in place.parents}


def _edited(declared: Declaration, root: Path) -> set[str]:
    """Declared code that is not, or no longer, what this process has loaded."""
    code = {Path(path) for path in declared.deps}
    ours = {path: sha256 for path, sha256 in LOADED.items() if root in path.parents}
    ours = {path.relative_to(root): sha256 for path, sha256 in ours.items()}
    return {
        path.as_posix()
        for path, sha256 in ours.items()
        if code & {path, *path.parents} and (not path.is_file() or hashlib.sha256(path.read_bytes()).digest() != sha256)
    }


def recorded(declared: Declaration, values: dict[str, Any]) -> dict[str, Any]:
    """What dvc.lock must say of a stage's inputs, as far as its own hashes are quick to tell.

    Args:
        declared: the stage's declaration.
        values: as of `state`.
    """
    md5s = {path: lock.md5(Path(path)) for path in declared.deps if _is_small(Path(path))}
    of_params = {key: values[f"params.yaml:{key}"] for key in declared.keys}
    return {"deps": md5s, "params": of_params, "processor": pinning.processor()}


def _is_small(path: Path) -> bool:
    members = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return len(members) < MANY_FILES and all(file.is_file() and file.stat().st_size <= SMALL_BYTES for file in members)


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
    require_recorded(declared)
    facts = json.dumps([address, before], sort_keys=True, default=str)
    fingerprint = hashlib.sha256(facts.encode()).hexdigest()
    os.environ[checkpoints.FINGERPRINT] = fingerprint
    os.environ[params.DECLARED] = " ".join(declared.keys)
    _watch(declared, before.values(), root, faults)
    _to_its_end(module, argv, faults)
    os.chdir(root)
    record = recorded(declared, before)
    after = state(declared)
    changed = sorted({key for key in before if before[key] != after[key]} | _edited(declared, root))
    if not faults and not changed:
        checkpoints.write(lock.RAN / f"{declared.name}.json", json.dumps(record).encode())
        return
    for out in declared.outs:
        files.remove(Path(out))
    if faults:
        raise ProvenanceError(f"{address} went outside its declaration in dvc.yaml: {', '.join(sorted(faults))}")
    raise ProvenanceError(
        f"inputs of {address} changed while it ran: {', '.join(changed)}; its result belongs to neither state and "
        "was removed. Run `make repro` again."
    )


def require_recorded(declared: Declaration) -> None:
    """Check that this process computes with what the environments record that the stage depends on.

    Raises:
        EnvironmentMismatchError: it does not; the message has each difference.
    """
    for path in map(Path, declared.deps):
        if path.parent != pinning.FOLDER or not path.exists():
            continue
        if faults := list(pinning.differing(files.read_json(path), pinning.facts(path.stem))):
            raise pinning.EnvironmentMismatchError(
                f"{declared.name} would not run with what {path} records ({'; '.join(faults)}): `make repro` records "
                f"this machine's first (or `dvc repro -f environment@{path.stem}`), and runs again what depends on it"
            )


def _to_its_end(module: str, argv: list[str], faults: set[str]) -> None:
    """Run a stage, which must return: one that ends its process would pass by what follows."""
    own, leave = os.getpid(), os._exit

    def left(status: int) -> NoReturn:
        if os.getpid() != own:  # a worker of its own, which ends so
            leave(status)
        faults.add("ended the process by os._exit")
        raise ProvenanceError(f"{module} ended the process by os._exit: let main return")

    os._exit = left
    try:
        importlib.import_module(module).main(argv)
    except SystemExit as end:
        if end.code:
            raise


def filled(words: list[str], values: Any) -> list[str]:
    """The words of a command, with the values that they stand for.

    Args:
        words: those that begin with `@` name a key.
        values: of params.yaml.
    """
    return [str(params.pick(values, word[1:])) if word.startswith(OF_PARAMS) else word for word in words]


def told(error: BaseException) -> str | None:
    """The message that says what to do, of an error that a `raise` of the project or a schema made; None of others."""
    if isinstance(error, ValidationError):
        return f"{error.title} refuses " + "; ".join(params.reason(item) for item in error.errors())
    if type(error).__module__.startswith("stages."):  # though it may come out of a worker process
        return str(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    is_ours = Path(__file__).parents[1] in Path(last.filename).parents and str(last.line).startswith("raise ")
    return str(error) if is_ours else None


def main(argv: list[str]) -> None:
    """Run a stage; of what it refuses, the message is shown without the way that the program took to it."""
    if not argv:
        sys.exit("name a stage: python -m stages.pipeline.guard stages.<stage> --<cell> ...")
    try:
        words = argv[1:]
        run(argv[0], filled(words, params.read()) if any(word.startswith(OF_PARAMS) for word in words) else words)
    except (OSError, RuntimeError, ValueError) as error:
        message = told(error)
        if os.environ.get("TRACEBACK") or message is None:
            raise
        sys.exit(f"{argv[0]}: {message} (TRACEBACK=1 shows where)")


if __name__ == "__main__":
    main(sys.argv[1:])
