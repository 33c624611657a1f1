"""What each kind of plug-in promises, held against the files that params name, before any work.

Each fault is one line: the file, what is wrong, the way out. What a plug-in's kind asks for is told in its folder's
`__init__.py`; a loss is tried on a small batch. What only a run can show (the tables of a data set) is checked where it
is used first.
"""

import ast
import difflib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ValidationError

from stages.core import findings, plugins

ROOMS = {  # kind -> the rooms that its files may import, beside libraries: all its stages depend on them
    "datasets": ("core",),
    "models": ("core", "nets"),
    "losses": ("core", "nets", "learning"),
    "explainers": ("core", "nets"),
}
NEEDS = ("logits", "features")
MEANS, PER_STUDY = ("all", "shared7"), "_per_study"  # names of means that evaluation gives
CELLS = ("text", "number")  # what a column of a data set's table may hold


def of_plugins(values: Any) -> list[str]:
    """The faults of every plug-in that params name.

    Args:
        values: plain values of params.yaml, whether or not they fit the schema; names without a file are passed over.
    """
    given = values if isinstance(values, dict) else {}
    faults = []
    for kind, name in named(given):
        path = plugins.STAGES / kind / f"{name}.py"
        if plugins.NAME.fullmatch(name) and path.is_file():
            faults += [f"{plugins.file_of(path)}: {fault}" for fault in of_plugin(kind, name, given)]
    return faults


def named(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(kind, name) of each plug-in that params name, once."""
    groups = {"datasets": ("datasets",), "models": ("teachers", "students"), "losses": ("losses",)}
    for kind, keys in groups.items():
        tables = [values[key] for key in keys if isinstance(values.get(key), dict)]
        yield from dict.fromkeys((kind, name) for table in tables for name in table if isinstance(name, str))
    explain = values.get("explain")
    if isinstance(explain, dict) and isinstance(explain.get("explainers"), list):
        yield from (("explainers", name) for name in explain["explainers"] if isinstance(name, str))


def of_plugin(kind: str, name: str, values: dict[str, Any]) -> list[str]:
    """What is wrong with one plug-in's file, and with what params say of it."""
    path = plugins.STAGES / kind / f"{name}.py"
    see = f"(see stages/{kind}/__init__.py)"
    try:
        faults = of_name(kind, name) + of_imports(kind, plugins.tree(path))
    except ValueError as error:  # of losses and models the rules have told it
        return [] if kind in ("losses", "models") else [str(error).removeprefix(f"{plugins.file_of(path)} ")]
    if faults:
        return faults
    try:
        module = plugins.load(kind, name)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever its code raises is its fault
        told = " ".join([f"{type(error).__name__}:", *str(error).split()])
        return [f"cannot be imported: {told}{_line_of(error, path)}: mend it there"]
    faults = [f"{fault} {see}" for fault in OF_KIND[kind](module)]
    return faults or (OF_VALUES[kind](module, name, values) if kind in OF_VALUES else [])


def _line_of(error: BaseException, path: Path) -> str:
    """Where in a file an error came up."""
    lines = [frame.tb_lineno for frame in _frames(error) if Path(frame.tb_frame.f_code.co_filename) == path]
    return f" (line {lines[-1]})" if lines else ""


def _frames(error: BaseException) -> Iterator[Any]:
    frame = error.__traceback__
    while frame is not None:
        yield frame
        frame = frame.tb_next


def of_name(kind: str, name: str) -> list[str]:
    """A name that a library bears already, or a folder beside the file: another would be found by it."""
    if (plugins.STAGES / kind / name).is_dir():
        return [f"stands beside a folder {name}, which hides it from Python: give one of them another name"]
    spec = importlib.util.find_spec(name)
    origin = getattr(spec, "origin", None)
    is_elsewhere = origin is not None and plugins.STAGES.parent not in Path(origin).parents
    is_library = name in sys.stdlib_module_names or is_elsewhere
    return [f"is named like the library {name}: give it another name"] if is_library else []


def of_imports(kind: str, tree: ast.Module) -> list[str]:
    """Imports of project files that the kind's stages do not depend on, another plug-in's among them."""
    allowed = ROOMS[kind]
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = ["stages (by a dot)" if node.level else str(node.module)]
            if modules == ["stages"]:
                modules = [f"stages.{alias.name}" for alias in node.names]
        else:
            continue
        for module in modules:
            if module.split(".")[0].split(" ")[0] == "stages" and module.split(".")[1:2] not in [
                [room] for room in allowed
            ]:
                rooms = ", ".join(f"stages/{room}" for room in allowed)
                faults.append(
                    f"line {node.lineno} imports {module}: of the project a plug-in of {kind} may import {rooms} "
                    "alone, on which all its stages depend: move what it needs there"
                )
    return faults


def _takes(function: Any, wanted: str, *names: str) -> list[str]:
    """A fault if an attribute is no function of these arguments, by their order."""
    if not inspect.isroutine(function):
        return [f"defines no function {wanted}: write it"]
    try:
        inspect.signature(function).bind(*names)
    except TypeError as error:
        return [f"must define {wanted}, got one that cannot be called so ({error})"]
    return []


def of_loss(module: ModuleType) -> list[str]:
    """`NEEDS`, `Settings`, `terms`, and `adapter` where there is one."""
    needs, settings, adapter = (getattr(module, name, None) for name in ("NEEDS", "Settings", "adapter"))
    faults = []
    if needs not in NEEDS:
        got = f", got {needs!r}" if hasattr(module, "NEEDS") else ", and is missing"
        faults.append(f'NEEDS must be "logits" or "features"{got}')
    if not (isinstance(settings, type) and issubclass(settings, BaseModel)):
        faults.append("defines no Settings: write a pydantic class of the keys that params.yaml has for it")
    own = {"adapter": None} if adapter is not None else {}
    terms = getattr(module, "terms", None)
    if not inspect.isroutine(terms) or inspect.iscoroutinefunction(terms):
        faults.append("defines no function terms(given, settings): write it")
    else:
        shown = "terms(given, settings, adapter)" if own else "terms(given, settings)"
        try:
            inspect.signature(terms).bind("given", settings="settings", **own)
        except TypeError as error:
            faults.append(f"must define {shown}, got one that cannot be called so ({error})")
    if adapter is not None:
        faults += _takes(adapter, "adapter(student, teacher)", "student", "teacher")
        if needs == "logits":
            faults.append('an adapter needs NEEDS = "features"')
    return faults


def of_loss_values(module: ModuleType, name: str, values: dict[str, Any]) -> list[str]:
    """Settings that only the loss's own class can judge; unknown and missing keys are told elsewhere."""
    given = values["losses"][name]
    if not isinstance(given, dict) or given.keys() != plugins.settings("losses", name).keys():
        return []
    try:
        settings = module.Settings.model_validate(given)
    except ValidationError as error:
        return [
            f"refuses losses.{name}.{'.'.join(map(str, item['loc']))}: "
            f"{item['msg'].removeprefix('Value error, ')}, got {item['input']!r} (params.yaml)"
            for item in error.errors()
        ]
    return _of_trial(module, settings)


def _of_trial(module: ModuleType, settings: Any) -> list[str]:
    """What a loss makes of a small batch: else a fault shows when its teacher has trained."""
    from stages.learning import terms  # late, as both bring torch
    from stages.pipeline import trials

    try:
        found = trials.terms_of(module, settings)
    except Exception as error:  # noqa: BLE001 - whatever its code raises is its fault
        told = " ".join([f"{type(error).__name__}:", *str(error).split()])
        return [f"terms fail on a small batch: {told}{_line_of(error, Path(str(module.__file__)))}: mend it there"]
    fault = terms.fault_of(found, is_trained=True)
    return [f"{fault} (see stages/losses/__init__.py)"] if fault else []


def of_dataset(module: ModuleType) -> list[str]:
    """Its constants, `harmonize`, `image_key`, and the optional functions."""
    faults = [
        f"{name} must be a text, got {getattr(module, name, None)!r}"
        for name in ("LICENCE", "SOURCE", "ACCESS")
        if not isinstance(getattr(module, name, None), str)
    ]
    faults += _of_archives(getattr(module, "ARCHIVES", None))
    for name in ("TABLES", "OPTIONAL_TABLES"):
        if name == "TABLES" or hasattr(module, name):
            faults += _of_tables(name, getattr(module, name, None))
    faults += _of_terms(getattr(module, "TERMS", None))
    if not isinstance(getattr(module, "RULES", None), dict):
        faults.append(f"RULES must be a dict of source terms, {{}} for none, got {getattr(module, 'RULES', None)!r}")
    ages = getattr(module, "AGES", None)
    if not (isinstance(ages, tuple) and len(ages) == 2 and ages[0] < ages[1]):
        faults.append(f"AGES must be (lowest, highest) in years, got {ages!r}")
    faults += _takes(getattr(module, "image_key", None), "image_key(name)", "name")
    faults += _takes(getattr(module, "harmonize", None), "harmonize(tables)", "tables")
    for name in ("boxes", "bit_depths", "sizes"):
        if hasattr(module, name):
            faults += _takes(getattr(module, name), f"{name}(tables)", "tables")
    return faults + _of_means(getattr(module, "MEANS", {}), getattr(module, "TERMS", {}))


def _of_archives(given: Any) -> list[str]:
    if isinstance(given, tuple) and all(isinstance(pattern, str) for pattern in given):
        return []
    return [f'ARCHIVES must be a tuple of patterns, e.g. ("*.zip",), () for none, got {given!r}']


def _of_tables(name: str, given: Any) -> list[str]:
    if not isinstance(given, dict) or (not given and name == "TABLES"):
        return [f"{name} must be a dict of file name -> {{column: kind}}, got {given!r}"]
    return [
        f'{name}[{file!r}] must be a dict of column -> "text" or "number", got {columns!r}'
        for file, columns in given.items()
        if not (isinstance(columns, dict) and columns and set(columns.values()) <= set(CELLS))
    ]


def _of_terms(given: Any) -> list[str]:
    if not isinstance(given, dict) or not given:
        return [f"TERMS must be a dict of finding -> the source's terms, got {given!r}"]
    known = findings.vocabulary()
    faults = [
        f"TERMS has {name!r}, which is no finding of stages/findings.csv: mend the name, or add a line there"
        for name in given
        if name not in known.titles
    ]
    return faults + [
        f"TERMS[{name!r}] must be a tuple of terms, e.g. ({terms!r},), got {terms!r}"
        for name, terms in given.items()
        if not (isinstance(terms, tuple | list) and all(isinstance(term, str) for term in terms))
    ]


def _of_means(given: Any, terms: Any) -> list[str]:
    if not isinstance(given, dict) or not all(isinstance(names, tuple | list) for names in given.values()):
        return [f"MEANS must be a dict of name -> findings, got {given!r}"]
    faults = [
        f"MEANS names a mean {mean!r}, which every data set has, or like one per study: give it another name"
        for mean in given
        if mean in MEANS or str(mean).endswith(PER_STUDY)
    ]
    return faults + [
        f"MEANS[{mean!r}] has {name!r}, which TERMS has not: take it out"
        for mean, names in given.items()
        for name in names
        if name not in terms
    ]


def of_dataset_values(module: ModuleType, name: str, values: dict[str, Any]) -> list[str]:
    """Findings that params list for a data set and that it never annotates."""
    entry = values["datasets"][name]
    listed = entry.get("findings") if isinstance(entry, dict) else None
    known = findings.vocabulary().titles
    return [
        f"datasets.{name}.findings: {finding} is never annotated by this data set, which has {', '.join(module.TERMS)}"
        for finding in (listed if isinstance(listed, list) else [])
        if isinstance(finding, str) and finding in known and finding not in module.TERMS
    ]


def of_model(module: ModuleType) -> list[str]:
    """`ID` or `MEMBERS`, known to timm, or `CLIP`."""
    if hasattr(module, "CLIP"):
        clip, columns = module.CLIP, getattr(module, "COLUMNS", {})
        faults = (
            [] if isinstance(clip, float) and 0 < clip < 0.5 else [f"CLIP must lie between 0 and 0.5, got {clip!r}"]
        )
        is_map = isinstance(columns, dict) and all(isinstance(word, str) for pair in columns.items() for word in pair)
        return faults + ([] if is_map else [f"COLUMNS must be a dict of column -> finding, got {columns!r}"])
    given = getattr(module, "MEMBERS", (module.ID,) if hasattr(module, "ID") else ())  # that one is there, rules tell
    if hasattr(module, "MEMBERS") and (not isinstance(given, tuple) or len(given) < 2):
        return [f"MEMBERS must be a tuple of two names or more, got {module.MEMBERS!r}"]
    return [fault for name in given for fault in _of_timm(name)]


def _of_timm(name: Any) -> list[str]:
    import timm  # late: few checks need it

    if isinstance(name, str) and timm.is_model(name):
        return []
    near = difflib.get_close_matches(str(name), timm.list_models(), n=3)
    hint = f", did you mean {' or '.join(near)}?" if near else ":"
    return [f"timm knows no model {name!r}{hint} take a name of timm.list_models(), or register the net in this file"]


def of_explainer(module: ModuleType) -> list[str]:
    """`maps`."""
    arguments = ("model", "images", "outputs", "max_stride")
    wanted, given = f"maps({', '.join(arguments)})", getattr(module, "maps", None)
    if faults := _takes(given, wanted, *arguments):
        return faults
    own = tuple(inspect.signature(given).parameters)[: len(arguments)] if given else ()
    return [] if own == arguments else [f"must define {wanted}, in this order, got maps({', '.join(own)})"]


OF_KIND: dict[str, Callable[[ModuleType], list[str]]] = {
    "datasets": of_dataset,
    "models": of_model,
    "losses": of_loss,
    "explainers": of_explainer,
}
OF_VALUES: dict[str, Callable[[ModuleType, str, dict[str, Any]], list[str]]] = {
    "datasets": of_dataset_values,
    "losses": of_loss_values,
}
