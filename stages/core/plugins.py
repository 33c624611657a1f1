"""One file, one plug-in: data sets, models, losses and explainers are found by the name of their file."""

import ast
import importlib
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

KINDS = ("datasets", "models", "losses", "explainers")
MODELS = {"ID": "net", "MEMBERS": "ensemble", "CLIP": "table"}  # what a file of stages/models defines -> its kind
NAME = re.compile(r"[a-z0-9_]+")
STAGES = Path(__file__).parent.parent


def names(kind: str) -> list[str]:
    """The plug-ins of a kind, sorted."""
    return sorted(path.stem for path in (STAGES / kind).glob("*.py") if path.is_file() and path.stem != "__init__")


def load(kind: str, name: str) -> ModuleType:
    """Import a plug-in.

    Raises:
        ValueError: no file of that name.
    """
    require(kind, name)
    return importlib.import_module(f"stages.{kind}.{name}")


def load_all(kind: str, chosen: Iterable[str]) -> dict[str, ModuleType]:
    """Import several plug-ins, name -> module; dvc.yaml declares their folder for it."""
    return {name: load(kind, name) for name in chosen}


def require(kind: str, name: str) -> None:
    """Check that a plug-in's file is there, without importing it.

    Raises:
        ValueError: the name is not one that DVC can address, or no file has it.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{kind} name {name!r} must match [a-z0-9_]+ (DVC cannot address others)")
    if name not in names(kind):
        raise ValueError(f"no file stages/{kind}/{name}.py: there are {', '.join(names(kind))}")


def settings(kind: str, name: str) -> dict[str, str]:
    """The settings that a plug-in's `Settings` class declares, field -> annotation, read without importing it.

    Stages that need no torch can so refuse a wrong key of a loss in params.yaml before any work.
    """
    for node in _statements(kind, name):
        if isinstance(node, ast.ClassDef) and node.name == "Settings":
            return {
                item.target.id: ast.unparse(item.annotation)
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
    return {}


def constants(kind: str, name: str) -> dict[str, Any]:
    """The literals that a plug-in's constants are set to, read without importing it."""
    found = {}
    for node in _statements(kind, name):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and value is not None:
            with suppress(ValueError):  # what is computed is no literal
                found[target.id] = ast.literal_eval(value)
    return found


def model_kind(name: str) -> str:
    """What a file of stages/models describes: a `net`, an `ensemble` of nets, or a `table` of probabilities.

    Raises:
        ValueError: it defines none of these, or several.
    """
    kinds = [kind for constant, kind in MODELS.items() if constant in constants("models", name)]
    if len(kinds) != 1:
        raise ValueError(
            f"stages/models/{name}.py must define exactly one of {', '.join(MODELS)}, as a literal at the top level, "
            f"found {len(kinds) or 'none'} (see stages/models/__init__.py)"
        )
    return kinds[0]


def _statements(kind: str, name: str) -> list[ast.stmt]:
    require(kind, name)
    return tree(STAGES / kind / f"{name}.py").body


def tree(path: Path) -> ast.Module:
    """A plug-in's code, read and not run.

    Raises:
        ValueError: it is no Python; the message has file and line.
    """
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file_of(path)} is no text in UTF-8 (byte {error.start}): save it as that") from error
    except (SyntaxError, ValueError) as error:  # the latter of a null byte
        line = f" line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise ValueError(f"{file_of(path)}{line} is no Python: {error.args[0]}: mend it there") from error


def file_of(path: Path) -> str:
    """How messages name a plug-in's file."""
    return f"stages/{path.parent.name}/{path.name}"
