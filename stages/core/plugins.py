"""One file, one plug-in: data sets, models, losses and explainers are found by the name of their file."""

import ast
import importlib
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

KINDS = ("datasets", "models", "losses", "explainers")
NAME = re.compile(r"[a-z0-9_]+")
STAGES = Path(__file__).parent.parent


def names(kind: str) -> list[str]:
    """The plug-ins of a kind, sorted."""
    return sorted(path.stem for path in (STAGES / kind).glob("*.py") if path.stem != "__init__")


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
        raise ValueError(f"{kind} name {name!r} must match [a-z0-9_]+ (DVC cannot address dots and dashes)")
    if name not in names(kind):
        raise ValueError(f"no file stages/{kind}/{name}.py: there are {', '.join(names(kind))}")


def settings(kind: str, name: str) -> dict[str, str]:
    """The settings that a plug-in's `Settings` class declares, field -> annotation, read without importing it.

    Stages that need no torch can so refuse a wrong key of a loss in params.yaml before any work.
    """
    require(kind, name)
    tree = ast.parse((STAGES / kind / f"{name}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "Settings":
            return {
                item.target.id: ast.unparse(item.annotation)
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
    return {}
