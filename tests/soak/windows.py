"""A stage's code is edited at moments of its run: is what is recorded what ran?"""

import hashlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import test_guard
from ruamel.yaml import YAML

from soak.found import Found
from stages.core import files

ROOT = Path(__file__).parents[2]
RUN = "from stages.pipeline import repro; repro.run(repro.due(), 1)"
LONGEST_S = 120
VERSIONS = ("a", "b")


def source(version: str) -> str:
    """The toy stage that writes its version into its output; all versions have the same length."""
    return test_guard.TOY.format(trick=f"text = text + {version!r}")


def started(folder: Path) -> subprocess.Popen[bytes]:
    """The toy's run."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_STAGE", "PYTHONPATH"))}
    environment["PATH"] = f"{ROOT / '.venv/bin'}:{environment['PATH']}"
    null = subprocess.DEVNULL
    return subprocess.Popen([sys.executable, "-c", RUN], cwd=folder, env=environment, stdout=null, stderr=null)


def md5(text: str) -> str:
    """As DVC hashes a file."""
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def fault_of(folder: Path) -> str | None:
    """What dvc.lock says of the toy's code and output that is not so; None where it says nothing wrong."""
    if not (folder / "dvc.lock").exists():
        return None
    entry = YAML(typ="safe").load(folder / "dvc.lock")["stages"].get("toy")
    if entry is None:
        return None
    code = next(dep["md5"] for dep in entry["deps"] if dep["path"] == "stages/toy.py")
    made = entry["outs"][0]["md5"]
    for version in VERSIONS:
        if md5(source(version)) == code:
            return (
                None
                if made == md5(f"in{version} 17")
                else f"the output of other code is recorded under version {version}"
            )
    return "code that was never there is recorded"


def windows(moments: int, seed: int, folder: Path) -> Found:
    """Edit a stage's code at moments of its run, and half of the time back: is what is recorded what ran?

    Args:
        moments: how many runs.
        seed: of the moments.
        folder: an empty one.
    """
    chance, found = random.Random(seed), Found()
    test_guard.project(folder)
    toy, lasted = folder / "stages/toy.py", 0.0
    for number in range(moments + 1):
        before, after = chance.sample(VERSIONS, 2)
        toy.write_text(source(before))
        for name in ("dvc.lock", "data/out.txt", ".dvc/cache"):
            files.remove(folder / name)
        start, process = time.monotonic(), started(folder)
        if number == 0:  # how long it takes
            process.wait(LONGEST_S)
            lasted = time.monotonic() - start
            continue
        at, is_undone = chance.uniform(0, lasted), chance.random() < 0.5
        time.sleep(at)
        toy.write_text(source(after))
        if is_undone:
            time.sleep(chance.uniform(0, 0.3))
            toy.write_text(source(before))
        process.wait(LONGEST_S)
        what = f"seed {seed}, run {number}: edited after {at:.3f} s" + (", and back" if is_undone else "")
        if fault := fault_of(folder):
            found.faults.append(f"{what}: {fault}")
        found.tried += 1
        found.count("recorded" if process.returncode == 0 else "refused")
        process = started(folder)
        process.wait(LONGEST_S)
        version = before if is_undone else after
        if process.returncode or fault_of(folder) or (folder / "data/out.txt").read_text() != f"in{version} 17":
            found.faults.append(f"{what}: the next run did not mend it")
    return found
