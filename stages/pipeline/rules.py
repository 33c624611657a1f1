"""The rules of `params.yaml` that go beyond a single key: what keys must be together, and what plug-ins say of them.

Plug-ins are read here and not imported, so that a stage that needs no torch stays quick.
"""

import math
import re
from pathlib import PurePosixPath
from typing import Any

from stages.core import findings, plugins
from stages.core.params import SHORT
from stages.core.schema import TWIN, Params

EXPLAINERS = "the files in stages/explainers"
NO_PATH = (  # what DVC, its files and a terminal cannot carry in a path
    (re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"), "a line break or another control character"),
    (re.compile(r"[\ud800-\udfff]"), "bytes that are no UTF-8"),
    (re.compile(r"\\\$\{"), r"\${, which DVC reads as ${"),
    (re.compile(r"^-"), "a dash at its beginning"),
    (re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:(//|$)"), "an address: fetch the files first"),
    (re.compile(r"^\s*$"), "nothing"),
)
NAMED = ("phantoms", "datasets", "cohorts", "teachers", "students", "losses", "loss_sums")


def contradictions(params: Params) -> list[str]:
    """What each part allows alone but not together, as `key: rule, got value`."""
    return [
        *_of_names(params),
        *_of_places(params),
        *_of_datasets(params),
        *_of_cells(params),
        *_of_explainers(params),
        *of_losses({"losses": params.losses}),
        *_of_models(params),
    ]


def _member(key: str, value: object, known: Any, where: str) -> list[str]:
    """A fault if a value is not one of what is known."""
    if value in known:
        return []
    return [f"{key}: must be one of {where} ({', '.join(map(str, known))}), got {value!r}"]


def _of_explainers(params: Params) -> list[str]:
    named = params.explain.explainers
    faults = [
        fault
        for name in named
        for fault in _member("explain.explainers", name, plugins.names("explainers"), EXPLAINERS)
    ]
    twice = sorted({name for name in named if named.count(name) > 1})
    return faults + [f"explain.explainers: {name} is listed twice" for name in twice]


def _of_names(params: Params) -> list[str]:
    return [
        f"{group}.{name}: names match [a-z0-9_]+ (DVC cannot address others)"
        for group in NAMED
        for name in getattr(params, group)
        if not plugins.NAME.fullmatch(name)
    ]


def fault_of_path(path: str) -> str | None:
    """What a path must not have and has, in words, or None."""
    return next((what for pattern, what in NO_PATH if pattern.search(path)), None)


def _of_places(params: Params) -> list[str]:
    """Paths that are no paths, and parts of paths that lead elsewhere."""
    places: dict[str, str | None] = {f"datasets.{name}.root": entry.root for name, entry in params.datasets.items()}
    for group in ("teachers", "students"):
        places |= {f"{group}.{name}.checkpoint": start.checkpoint for name, start in getattr(params, group).items()}
    faults = [
        f"{key}: must be a path, and has {fault}, got {path!r}: rename or move it"
        for key, path in places.items()
        if path is not None and (fault := fault_of_path(path))
    ]
    for name, entry in params.datasets.items():
        films = PurePosixPath(entry.films or "")
        if films.is_absolute() or ".." in films.parts or (entry.films and fault_of_path(entry.films)):
            faults.append(f"datasets.{name}.films: must be a file below root, got {entry.films!r}")
    if params.choice is not None and not plugins.NAME.fullmatch(params.choice):
        faults.append(f"choice: must be the name of a file in reports/choices, of [a-z0-9_]+, got {params.choice!r}")
    return faults


def _of_datasets(params: Params) -> list[str]:
    faults: list[str] = []
    for name in params.datasets:
        faults += _member(f"datasets.{name}", name, plugins.names("datasets"), "the files in stages/datasets")
        faults += _member(f"policies.{name}", name, params.policies, "the keys of policies")
    for name in params.phantoms:
        faults += _member(f"phantoms.{name}", name, params.datasets, "the keys of datasets")
        drawn = f"data/phantom/{name}"
        if name in params.datasets and (root := params.datasets[name].root) != drawn:
            faults.append(
                f"datasets.{name}.root: must be {drawn}, where phantoms.{name} draws it, got {root!r}: if "
                f"these are films of your own, take {name} out of phantoms"
            )
    for name, entry in params.datasets.items():
        if entry.root.startswith("data/phantom") and name not in params.phantoms:
            faults.append(
                f"datasets.{name}.root: {entry.root} is where phantoms are drawn, and phantoms has no {name}: add it "
                "there, or name the folder of your own films"
            )
    for name, cohort in params.cohorts.items():
        for dataset in cohort.datasets:
            faults += _member(f"cohorts.{name}.datasets", dataset, params.datasets, "the keys of datasets")
    return faults


def _of_cells(params: Params) -> list[str]:
    headline = params.headline
    faults = _of_rates(params)
    for name, weights in params.loss_sums.items():
        if name in plugins.names("losses"):
            faults.append(f"loss_sums.{name}: must not be named like a loss, and stages/losses/{name}.py is one")
        for part in weights:
            faults += _member(f"loss_sums.{name}", part, params.losses, "the keys of losses")
    faults += _member("headline.cohort", headline.cohort, params.cohorts, "the keys of cohorts")
    faults += _member("headline.student", headline.student, params.students, "the keys of students")
    faults += _member("headline.teacher", headline.teacher, params.teachers, "the keys of teachers")
    both = [*params.losses, *params.loss_sums]
    faults += _member("headline.loss", headline.loss, both, "the keys of losses and loss_sums")
    return faults + _member("headline.seed", headline.seed, params.seeds, "seeds")


def _of_rates(params: Params) -> list[str]:
    """Every way to train a student has a learning rate, and nothing else has one."""
    faults: list[str] = []
    ways = [TWIN, *params.losses, *params.loss_sums]
    if TWIN in ways[1:]:
        faults.append(f"losses.{TWIN}: must be named otherwise: {TWIN} is the student without a teacher")
    for way in ways:
        if way not in params.rates:
            faults.append(
                f"rates.{way}: missing: its students need a learning rate of their own"
                + (f" (the twin's is {params.rates[TWIN].default:g})" if TWIN in params.rates else "")
            )
    for name, rates in params.rates.items():
        faults += _member(f"rates.{name}", name, ways, f"{TWIN} and the keys of losses and loss_sums")
        for cohort in rates.per_cohort:
            faults += _member(f"rates.{name}.per_cohort", cohort, params.cohorts, "the keys of cohorts")
    return faults


def of_losses(values: Any) -> list[str]:
    """What is wrong with `losses`, by the annotations of each plug-in's `Settings` (arguments as of `of_findings`)."""
    named = [(name, given) for name, given in _entries(values, "losses") if plugins.NAME.fullmatch(name)]
    return [fault for name, given in named for fault in _of_loss(name, given)]


def _of_loss(loss: str, given: dict[str, Any]) -> list[str]:
    try:
        wanted = plugins.settings("losses", loss)
    except ValueError as error:
        return [f"losses.{loss}: {error}"]
    missing = [key for key in wanted if key not in given]
    faults = [f"losses.{loss}.{key}: missing ({wanted[key]}; a default in its file does not count)" for key in missing]
    allowed_keys = ", ".join(wanted) or "none"
    faults += [f"losses.{loss}.{key}: unknown, allowed are {allowed_keys}" for key in given if key not in wanted]
    kinds = {"float": (int, float), "int": (int,), "str": (str,), "bool": (bool,)}
    for key, annotation in wanted.items():
        allowed = kinds.get(annotation)
        value = given.get(key)
        is_bool_by_mistake = isinstance(value, bool) and annotation != "bool"
        if key in given and allowed and (not isinstance(value, allowed) or is_bool_by_mistake):
            faults.append(f"losses.{loss}.{key}: must be {annotation}, got {SHORT.repr(value)}")
        elif isinstance(value, float) and not math.isfinite(value):
            faults.append(f"losses.{loss}.{key}: must be finite, got {value!r}")
    return faults


def _of_models(params: Params) -> list[str]:
    """What a teacher or student cannot be or do because of what its file describes."""
    kinds: dict[tuple[str, str], str] = {}
    faults: list[str] = []
    for group in ("teachers", "students"):
        for name in filter(plugins.NAME.fullmatch, getattr(params, group)):
            try:
                kinds[group, name] = plugins.model_kind(name)
            except ValueError as error:
                faults.append(f"{group}.{name}: {error}")
    for (group, name), kind in kinds.items():
        if group == "students" and kind != "net":
            faults.append(f"students.{name}: must be a net, got one of kind {kind}, which can only teach")
        if group == "teachers" and kind != "net":
            faults += _of_teacher(name, kind, params)
    return faults


def _of_teacher(name: str, kind: str, params: Params) -> list[str]:
    """What a teacher that is no single net cannot do or lacks."""
    start = params.teachers[name]
    faults = [
        f"losses.{loss}: needs a net's features, teachers.{name} is of kind {kind}: take one out"
        for loss in params.losses
        if loss in plugins.names("losses") and plugins.constants("losses", loss).get("NEEDS") == "features"
    ]
    if kind == "table" and not start.checkpoint:
        faults.append(f"teachers.{name}.checkpoint: must be a csv of probabilities, got null")
    if kind == "table" and start.pretrained:
        faults.append(f"teachers.{name}.pretrained: must be false, since a table has no weights, got true")
    if kind == "ensemble" and start.checkpoint:
        faults.append(
            f"teachers.{name}.checkpoint: must be null, since an ensemble has several nets, got {start.checkpoint!r}"
        )
    return faults


def of_findings(values: Any) -> list[str]:
    """Findings that params name and `stages/findings.csv` lacks.

    Args:
        values: plain values of params.yaml, whether or not they fit the schema.
    """
    named: dict[str, list[Any]] = {}
    for dataset, entry in _entries(values, "datasets"):
        given = entry.get("findings")
        named[f"datasets.{dataset}.findings"] = given if isinstance(given, list) else []
    for dataset, entry in _entries(values, "policies"):
        for kind, of_kind in _entries(entry):
            named[f"policies.{dataset}.{kind}.per_finding"] = list(of_kind.get("per_finding") or ())
    known = findings.vocabulary()
    return [
        f"{key}: unknown finding {name!r}"
        + (f", did you mean {near}?" if (near := known.nearest(str(name))) else ";")
        + " stages/findings.csv lists all, and a new one is a line there"
        for key, names in named.items()
        for name in names
        if isinstance(name, str) and name not in known.titles
    ]


def _entries(values: Any, key: str | None = None) -> list[tuple[str, dict[str, Any]]]:
    """The entries of a mapping that are mappings themselves."""
    given = values.get(key) if key and isinstance(values, dict) else values
    pairs = given.items() if isinstance(given, dict) else []
    return [(name, entry) for name, entry in pairs if isinstance(name, str) and isinstance(entry, dict)]
