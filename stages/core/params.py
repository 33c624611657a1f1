"""`params.yaml`: the one door through which a stage reads it, and the check of the whole file.

A stage calls `load` once in its `main()`, with the keys that it declares in `dvc.yaml`, and gets their values and
nothing else. The schema is checked at every call. What goes beyond it is checked by the guard before each stage, and by
`python -m stages.core.params` and `make repro`: see `pipeline/check.py`.
"""

import os
import reprlib
import runpy
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from stages.core.schema import Params

FILE = Path("params.yaml")
SHORT = reprlib.Repr()  # of what a message shows: a value may be of any length and depth, and YAML's aliases repeat it
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother, SHORT.maxlong = 2, 200, 200, 40
DECLARED = "STAGE_DECLARED_PARAMS"  # set by the guard: the keys that dvc.yaml declares for the running stage


class ParamsError(ValueError):
    """`params.yaml` or a plug-in that it names breaks a rule; the message lists every fault."""


def reason(error: Any) -> str:
    """One line for one pydantic error."""
    key = ".".join(str(part) for part in error["loc"] if part != "[key]")
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    if error["type"] == "missing":
        return f"{key}: missing"
    return f"{key}: {error['msg'].removeprefix('Value error, ')}, got {SHORT.repr(error['input'])}"


def fit(values: Any) -> tuple[Params | None, list[str]]:
    """The values in the schema's form, or what keeps them from it."""
    try:
        return Params.model_validate(values), []
    except ValidationError as error:
        return None, [reason(item) for item in error.errors()]


def parse(values: Any, file: str = str(FILE)) -> Params:
    """A whole params file in the schema's form.

    Raises:
        ParamsError: with every key that keeps it from that.
    """
    params, faults = fit(values)
    if params is None:
        raise ParamsError(message(file, faults))
    return params


def message(file: str, faults: list[str]) -> str:
    """All faults of a params file as one text."""
    listed = "\n".join(f"  {fault}" for fault in faults)
    return f"{file} has {len(faults)} fault(s):\n{listed}\nEach key is explained by its comment in params.yaml."


def read(file: Path = FILE) -> Any:
    """The plain values of a params file (YAML 1.2, as DVC reads it).

    Raises:
        FileNotFoundError: there is no such file.
        ParamsError: the file is no YAML, names a key twice, or is empty.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}: `git checkout {file}` brings the committed one back")
    try:
        with file.open(encoding="utf-8-sig") as stream:
            values = YAML(typ="safe").load(stream)
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1
        raise ParamsError(f"{file} names a key twice, in line {line}: {error.problem}; take one out") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ParamsError(f"{file} must hold keys, got {SHORT.repr(values)}: see params.yaml for those that there are")
    return values


def pick(params: Any, key: str) -> Any:
    """The value at a dotted key of a parsed file.

    Raises:
        ParamsError: no such key.
    """
    value = params
    for part in key.split("."):
        try:
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        except (KeyError, AttributeError) as error:
            raise ParamsError(f"params.yaml has no key {key}") from error
    return value


def load(*keys: str) -> Any:
    """The values of these keys, in order: one value for one key, else a tuple.

    Raises:
        ParamsError: the file has faults, or dvc.yaml does not declare a key for the running stage.
    """
    declared = os.environ.get(DECLARED)
    if declared is not None:
        undeclared = sorted(set(keys) ^ set(declared.split()))
        if undeclared:
            raise ParamsError(f"params read and params declared in dvc.yaml differ: {', '.join(undeclared)}")
    params = parse(read())
    values = tuple(pick(params, key) for key in keys)
    return values[0] if len(values) == 1 else values


if __name__ == "__main__":
    runpy.run_module("stages.pipeline.check", run_name="__main__")  # by name: the check stands on all that is above
