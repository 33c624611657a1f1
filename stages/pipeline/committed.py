"""Whether the results of a commit are what its code gives, as far as can be told without running it all again.

A result must have the bytes that dvc.lock records of it; a page must be what the stages that write pages make of the
committed results; what this checkout's run gave anew must be what was committed. Measured times may differ. On another
processor trainings end in other digits: then mean AUROCs must agree within a margin, and the rest is only listed.
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

from stages.pages import readme
from stages.pipeline import audit, by_hand, lock
from stages.pipeline.revisions import HERE, Entry, content, entries

TIMED = ".timing.json"  # ends the name of what is measured anew each time
PAGES = ("describe", "report")  # stages that read nothing but what git holds
CLOSE = 1e-4  # of a number that other digits of the same predictions give


def edited(head: str, of_head: dict[str, Entry]) -> Iterator[str]:
    """Committed results whose bytes are not those that the committed dvc.lock records."""
    for path, (name, md5) in lock.producers(of_head).items():
        held = None if md5.endswith(audit.FOLDER) else content(head, path)
        if held is not None and (found := hashlib.md5(held, usedforsecurity=False).hexdigest()) != md5:
            yield f"{path}: the commit's file has MD5 {found}, its dvc.lock says that {name} wrote {md5}"


def rewritten(head: str, of_head: dict[str, Entry]) -> Iterator[str]:
    """Committed pages that are not what the committed results give when they are written again."""
    packed = subprocess.run(["git", "archive", head], capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(folder, filter="data")
        for stage in PAGES:
            words, env = [sys.executable, "-m", f"stages.{stage}"], os.environ | {"PYTHONPATH": name}
            done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)
            if done.returncode:
                yield f"{stage} fails on the committed results: {(done.stderr.strip() or 'no word').splitlines()[-1]}"
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


def regenerated(of_head: dict[str, Entry], head: str, margin: float) -> tuple[list[str], list[str]]:
    """What came out otherwise here than it was committed: faults, and what is only listed.

    Args:
        of_head: dvc.lock of the commit.
        head: the commit.
        margin: by how much a mean AUROC may differ where models have other bytes.
    """
    here = entries(HERE)
    was, is_ = lock.producers(of_head), lock.producers(here)
    same = _same_inputs(of_head, here)
    moved = [path for path, (name, md5) in is_.items() if name in same and path in was and was[path][1] != md5]
    models = [path for path in moved if path.startswith("data/models/")]
    faults, listed = list[str](), list[str]()
    for path in moved:
        if path.startswith("data/") or path.endswith(TIMED) or is_[path][0] in PAGES:
            continue
        far = _distance(path, content(head, path), content(HERE, path))
        if far > CLOSE:
            told = f", by up to {far:.2g}" if math.isfinite(far) else ""
            (listed if models else faults).append(f"{path}: came out otherwise here{told}")
    if models:
        listed.insert(0, f"{len(models)} models have other bytes on this machine, e.g. {models[0]}")
        for path in (path for path in was if path.startswith("reports/metrics/")):
            faults += _beyond(path, head, margin)
    return faults, listed


def _same_inputs(old: dict[str, Entry], new: dict[str, Entry]) -> set[str]:
    """Stages that ran with the same code, command and params, whatever data they read."""

    def of(entry: Entry) -> Any:
        code = [(dep["path"], dep["md5"]) for dep in entry.get("deps", []) if dep["path"].startswith("stages/")]
        return entry["cmd"], entry.get("params"), code

    return {name for name in old.keys() & new.keys() if of(old[name]) == of(new[name])}


def _beyond(path: str, head: str, margin: float) -> Iterator[str]:
    """Mean AUROCs that differ from the committed ones by more than the margin."""
    old, new = (json.loads(content(revision, path) or "{}").get("models", {}) for revision in (head, HERE))
    for model in sorted(old.keys() & new.keys()):
        for mean, was in old[model]["means"].items():
            is_ = new[model]["means"].get(mean, {})
            pair = was.get("auroc"), is_.get("auroc")
            if None not in pair and abs(pair[0] - pair[1]) > margin:
                where = f"{path}:models/{model}/means/{mean}/auroc"
                yield f"{where}: committed {pair[0]}, here {pair[1]}, beyond {margin:g}"


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


def check(head: str, margin: float) -> tuple[list[str], list[str]]:
    """Where the results of a commit are not what its code gives: faults, and what another processor explains.

    Args:
        head: the commit, which this checkout ran.
        margin: as of `evaluate.margin`.
    """
    of_head = entries(head)
    faults, listed = regenerated(of_head, head, margin)
    stamped = [f"{page}: not as {by_hand.STAMPS} has it" for page, _, _ in by_hand.edited()]
    return [*edited(head, of_head), *rewritten(head, of_head), *stamped, *faults], listed
