"""What a stage reads and writes, computed from its code: the reference that `dvc.yaml` is held against.

The conventions that make this possible: a stage's `main()` calls `params.load`, `files.input`, `files.output`,
`plugins.load` and `plugins.load_all` (whose names may come from params: it reads their whole folder) with literals and
f-strings over its command line's `args` alone, and imports are plain statements. Keys of params may also be one of the
lists `KEYS`.
"""

import ast
import shlex
import sys
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from stages import choice
from stages.core import params
from stages.judging import cells
from stages.pipeline import guard, pinning, promises

ROOT = Path(__file__).parent.parent
DISTRIBUTIONS = metadata.packages_distributions()
ROOMS = (
    "core",
    "films",
    "sources",
    "nets",
    "judging",
    "device",
    "learning",
    "pages",
    "pipeline",
)  # a file imports no room after its own
KEYS = {"cells.PARAMS": cells.PARAMS, "PARAMS": choice.PARAMS}  # of params, as a stage names them -> the keys

# Stages that do without torch, and come before it
IMAGES = ("stages.phantom", "stages.harmonize", "stages.ingest", "stages.assemble")
COPYING = ("stages.environment", "stages.download")  # write no number that a package computed
NEUTRAL = {  # packages that no result depends on
    "distributed", "dvclive", "filelock", "joblib", "packaging", "psutil", "pydantic", "ruamel", "threadpoolctl", "tqdm"
}  # fmt: skip


class ConventionError(AssertionError):
    """A stage reads or writes by other means than the conventions, so that nothing can be computed from its code."""


@dataclass
class Wiring:
    """What one cell of dvc.yaml declares, or what its code needs.

    Attributes:
        deps: files and folders.
        params: keys of params.yaml.
        outs: files and folders.
        rooms: folders from which the plug-ins of the code's kinds may import: whole, they serve every plug-in alike.
    """

    deps: set[str] = field(default_factory=set)
    params: set[str] = field(default_factory=set)
    outs: set[str] = field(default_factory=set)
    rooms: set[str] = field(default_factory=set)

    def differences(self, other: "Wiring") -> list[str]:
        """What `self` (the code) needs and `other` (dvc.yaml) lacks, and the reverse.

        A folder of code may stand for its files where at least half of them are needed, where plug-ins may need any,
        and where the code reads it as a whole.
        """
        found = []
        for kind in ("deps", "params", "outs"):
            needed, declared = set(getattr(self, kind)), getattr(other, kind)
            for room in declared if kind == "deps" else ():
                files = members(room)
                used = files & needed
                if used and (room in needed or room in self.rooms or 2 * len(used) >= len(files)):
                    needed = needed - files | {room}
            found += [f"{kind}: {name} is used but not declared" for name in sorted(needed - declared)]
            found += [f"{kind}: {name} is declared but not used" for name in sorted(declared - needed)]
        return found


def members(folder: str) -> set[str]:
    """The files of a folder of code that a stage may need; none for what is no such folder."""
    inside = (ROOT / folder).rglob("*") if folder.startswith("stages/") and (ROOT / folder).is_dir() else ()
    return {
        path.relative_to(ROOT).as_posix()
        for path in inside
        if path.is_file() and "__pycache__" not in path.parts and path.name != "__main__.py" and not is_empty(path)
    }


def source(module: str, root: Path = ROOT) -> Path | None:
    """The project file of a module, or None if it is a library's."""
    base = root.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if module.split(".")[0] == "stages" and candidate.is_file():
            return candidate
    return None


@cache
def tree(path: Path) -> ast.Module:
    """A parsed source file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> set[str]:
    """The modules that a file names in import statements, wherever they stand."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ConventionError(f"{path}: relative imports are not used here")
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@cache
def closure(module: str) -> frozenset[Path]:
    """The project files that a module is made of: its own and its imports."""
    found: set[Path] = set()
    pending = [module]
    while pending:
        path = source(pending.pop())
        if path is None or path in found:
            continue
        found.add(path)
        pending += imports(path)
    return frozenset(path for path in found if not is_empty(path))


def is_empty(path: Path) -> bool:
    """Whether a package's `__init__.py` holds no more than its docstring."""
    return path.name == "__init__.py" and all(isinstance(node, ast.Expr) for node in tree(path).body)


def text(node: ast.expr, args: dict[str, str]) -> str:
    """The value of a literal, an f-string over `args`, or `args.<name>`."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "args":
        return args[node.attr]
    if isinstance(node, ast.JoinedStr):
        return "".join(text(part.value if isinstance(part, ast.FormattedValue) else part, args) for part in node.values)
    raise ConventionError(f"line {node.lineno}: {ast.unparse(node)} is not a literal or an f-string over args")


def calls(module: str) -> list[tuple[str, ast.Call]]:
    """(`files.input`, call), ... of the stage's own files; other project files may not make them."""
    own = source(module)
    assert own is not None, module
    found = []
    for path in closure(module) - {own}:
        if path.suffix == ".py" and path.parent.name not in ROOMS and _calls(path):
            raise ConventionError(f"{path}: only main() of a stage opens inputs and outputs")
    for name, call in _calls(own):
        found.append((name, call))
    return found


def _calls(path: Path) -> list[tuple[str, ast.Call]]:
    wanted = {"params.load", "files.input", "files.output", "plugins.load", "plugins.load_all"}
    nodes = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    return [(ast.unparse(node.func), node) for node in nodes if ast.unparse(node.func) in wanted]


def expected(module: str, args: dict[str, str]) -> Wiring:
    """What a stage needs for one command line."""
    wiring = Wiring()
    code = set(closure(module))
    for name, call in calls(module):
        if name == "params.load":
            for argument in call.args:
                if isinstance(argument, ast.Starred) and ast.unparse(argument.value) in KEYS:
                    wiring.params |= set(KEYS[ast.unparse(argument.value)])
                else:
                    wiring.params.add(text(argument, args))
        elif name == "plugins.load":
            kind, plugin = (text(argument, args) for argument in call.args)
            code |= closure(f"stages.{kind}.{plugin}")
            wiring.rooms |= {f"stages/{room}" for room in promises.ROOMS[kind]}
        elif name == "plugins.load_all":  # which ones only params know: the folder
            folder = f"stages/{text(call.args[0], args)}"
            wiring.deps.add(folder)
            for path in (ROOT / folder).glob("*.py"):
                code |= closure(f"{folder.replace('/', '.')}.{path.stem}") - {path}
        else:
            (wiring.deps if name == "files.input" else wiring.outs).add(text(call.args[0], args))
    wiring.deps |= {(pinning.FOLDER / f"{group}.json").as_posix() for group in environments(module, code)}
    wiring.deps |= {path.relative_to(ROOT).as_posix() for path in code}
    return wiring


def environments(module: str, code: set[Path]) -> set[str]:
    """The groups of `pinning.GROUPS` whose packages a stage computes with."""
    if module in COPYING:
        return set()
    if module in IMAGES:
        return {"images"}
    used = packages(code)
    groups = {"training"} if "torch" in used else set[str]()
    return groups if used <= covered(groups) else groups | {"evaluation"}


def packages(code: set[Path]) -> set[str]:
    """The distributions that files import, but for NEUTRAL ones."""
    modules = {name.split(".")[0] for path in code if path.suffix == ".py" for name in imports(path)}
    modules -= {"stages", *sys.stdlib_module_names, *NEUTRAL}
    return {canonicalize_name(DISTRIBUTIONS[name][0]) for name in modules}


def covered(groups: set[str]) -> set[str]:
    """The distributions whose versions the environments of these groups record."""
    return {canonicalize_name(name) for group in groups for name in pinning.GROUPS[group]}


def command(cmd: str, values: Any = None) -> tuple[str, dict[str, str]]:
    """Module and arguments of `python -m stages.pipeline.guard <module> --name value ...`.

    Args:
        cmd: as DVC expands it.
        values: of params.yaml, which words with `@` stand for; None: that of the repository.
    """
    words = guard.filled(shlex.split(cmd), values or params.read(ROOT / "params.yaml"))
    if words[:3] != ["python", "-m", "stages.pipeline.guard"]:
        raise ConventionError(f"{cmd}: every stage runs under `python -m stages.pipeline.guard`")
    names, values = words[4::2], words[5::2]
    return words[3], {name.removeprefix("--"): value for name, value in zip(names, values, strict=True)}
