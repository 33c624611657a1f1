"""Whether the results of a commit are what its code gives, as far as can be told without running it all again.

A result must have the bytes that dvc.lock records of it; a page must be what the stages that write pages make of the
committed results; what this checkout's run gave anew must be what was committed. Measured times may differ. A machine
that does not repeat the bytes (another kind of processor, a GPU) trains models with other digits: there the mean over
seeds of each kind of model must agree within the spread over seeds, and other differences are only listed.
"""

import hashlib
import io
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.core import params
from stages.pages import readme
from stages.pipeline import audit, by_hand, lock, moves, pinning
from stages.pipeline.revisions import HERE, Entry, content, entries

TIMED = ".timing.json"  # ends the name of what is measured anew each time
MODELS, DRAWN = "data/models/", "data/phantom/"
PAGES = ("describe", "report")  # stages that read nothing but what git holds
WRITE = """
from stages.pipeline import pinning
pinning.pin()
from stages import describe, report
describe.main([])
report.main([])
"""
CLOSE = 1e-4  # of a number that other digits of the same predictions give


def edited(revision: str, stages: dict[str, Entry]) -> Iterator[str]:
    """Yield results in git whose bytes are not those that dvc.lock records.

    Args:
        revision: a commit, or HERE.
        stages: of its dvc.lock.
    """
    whose = "this checkout" if revision == HERE else "the commit"
    for path, (name, md5) in lock.producers(stages).items():
        is_in_git = path.startswith("reports/") and not md5.endswith(audit.FOLDER)
        held = content(revision, path) if is_in_git else None
        if held is not None and (found := hashlib.md5(held, usedforsecurity=False).hexdigest()) != md5:
            yield f"{path}: {whose}'s file has MD5 {found}, its dvc.lock says that {name} wrote {md5}"


def rewritten(head: str, of_head: dict[str, Entry]) -> Iterator[str]:
    """Committed pages that are not what the committed results give when they are written again."""
    packed = subprocess.run(["git", "archive", head], capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(folder, filter="data")
        words, env = [sys.executable, "-c", WRITE], os.environ | {"PYTHONPATH": name}
        done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip() or "no word").splitlines()[-1]
            yield f"describe and report fail on the committed results: {said}"
            return
        for stage in PAGES:
            for out in of_head.get(stage, {}).get("outs", []):
                for path in _files_of(folder, out["path"]):
                    if (folder / path).read_bytes() != content(head, path):
                        yield f"{path}: {stage} writes another from the committed results"
        yield from _readme(folder)


def _readme(folder: Path) -> Iterator[str]:
    here = {name: folder / path for name, path in readme.SOURCES.items() if (folder / path).is_file()}
    page = folder / readme.README
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if text and readme.filled(text, {name: path.read_text(encoding="utf-8") for name, path in here.items()}) != text:
        yield "README.md: a table is not that of its report (`make readme`)"


def _files_of(root: Path, path: str) -> list[str]:
    whole = root / path
    found = [whole] if whole.is_file() else sorted(one for one in whole.rglob("*") if one.is_file())
    return [one.relative_to(root).as_posix() for one in found]


def regenerated(of_head: dict[str, Entry], head: str) -> tuple[list[str], list[str]]:
    """Compare what this checkout's run gave with what was committed.

    Args:
        of_head: dvc.lock of the commit.
        head: the commit.

    Returns:
        Faults, and what is only listed.
    """
    here = entries(HERE)
    moved, is_ = _moved(of_head, here), lock.producers(here)
    is_same_machine = is_repeated(of_head, here)
    faults, listed = list[str](), list[str]()
    for path in moved:
        if path.startswith("data/") or path.endswith(TIMED) or is_[path][0] in PAGES:
            continue
        far = _distance(path, content(head, path), content(HERE, path))
        if far > CLOSE:
            told = f", by up to {far:.2g}" if math.isfinite(far) else ""
            (faults if is_same_machine else listed).append(f"{path}: came out otherwise here{told}")
    if not is_same_machine:
        shifts = [*moves.of_kinds(head, HERE, params.read()["evaluate"]["confidence"])]
        judged = [shift for shift in shifts if shift.interval != moves.ONE_SEED]
        beyond = [shift for shift in judged if not shift.is_noise]
        faults += [
            f"{shift.model} on {shift.where}: committed {shift.before:.4f}, here {shift.after:.4f}, beyond the spread "
            "over seeds"
            for shift in beyond
        ]
        models = [path for path in moved if path.startswith((MODELS, DRAWN))]
        listed.insert(
            0,
            f"this machine does not repeat the committed bytes ({len(models)} outputs differ, first {models[0]}), so "
            f"means over seeds were compared: {len(judged) - len(beyond)} of {len(judged)} are within the spread over "
            f"seeds, {len(shifts) - len(judged)} of one seed are not judged (committed: "
            f"{_processors(head, models, is_)}; here: {_processors(HERE, models, is_)})",
        )
    return faults, listed


def is_repeated(of_head: dict[str, Entry], here: dict[str, Entry]) -> bool:
    """Return True if every model that was trained with the same code, params and data has the committed bytes."""
    moved, made = _moved(of_head, here), lock.producers(here)
    return not any(
        path.startswith(MODELS) and _data(of_head[made[path][0]]) == _data(here[made[path][0]]) for path in moved
    ) and not any(path.startswith(DRAWN) for path in moved)


def _data(entry: Entry) -> dict[str, str]:
    """Return path -> hash of the data that a stage read."""
    return {dep["path"]: dep["md5"] for dep in entry.get("deps", []) if dep["path"].startswith("data/")}


def _moved(old: dict[str, Entry], new: dict[str, Entry]) -> list[str]:
    """Return the outputs with other bytes that were made with the same code, command and params."""
    was, is_, same = lock.producers(old), lock.producers(new), _same_inputs(old, new)
    return [path for path, (name, md5) in is_.items() if name in same and path in was and was[path][1] != md5]


def _processors(revision: str, paths: list[str], made: dict[str, tuple[str, str]]) -> str:
    """Return the processors that the stages ran on that made these paths."""
    recorded = json.loads(content(revision, pinning.PROCESSORS.as_posix()) or "{}")
    return "; ".join(sorted({recorded.get(made[path][0]) or "an unknown processor" for path in paths}))


def _same_inputs(old: dict[str, Entry], new: dict[str, Entry]) -> set[str]:
    """Stages that ran with the same code, command and params, whatever data they read."""

    def of(entry: Entry) -> Any:
        code = [(dep["path"], dep["md5"]) for dep in entry.get("deps", []) if dep["path"].startswith("stages/")]
        return entry["cmd"], entry.get("params"), code

    return {name for name in old.keys() & new.keys() if of(old[name]) == of(new[name])}


def _distance(path: str, old: bytes | None, new: bytes | None) -> float:
    """The largest difference of two files' numbers; infinite where anything else differs."""
    if not path.endswith(".json") or old is None or new is None:
        return math.inf
    one, other = _numbers(json.loads(old)), _numbers(json.loads(new))
    if one.keys() != other.keys():
        return math.inf
    return max((_apart(one[key], other[key]) for key in one), default=0.0)


def _numbers(value: Any, start: str = "") -> dict[str, Any]:
    """Nested JSON by path, lists too."""
    if isinstance(value, list):
        value = {str(place): one for place, one in enumerate(value)}
    if not isinstance(value, dict):
        return {start: value}
    joined = dict[str, Any]()
    for key, below in value.items():
        joined |= _numbers(below, f"{start}/{key}")
    return joined


def _apart(one: Any, other: Any) -> float:
    if isinstance(one, float) and isinstance(other, int | float):
        return abs(one - other)
    return 0.0 if one == other and type(one) is type(other) else math.inf


def check(head: str) -> tuple[list[str], list[str]]:
    """Return where the results of a commit are not what its code gives, and what another processor explains.

    Args:
        head: the commit, which this checkout ran.
    """
    of_head = entries(head)
    faults, listed = regenerated(of_head, head)
    stamped = [f"{page}: not as {by_hand.STAMPS} has it" for page, _, _ in by_hand.edited()]
    of_files = [*edited(head, of_head), *edited(HERE, entries(HERE))]
    return [*of_files, *rewritten(head, of_head), *stamped, *faults], listed
