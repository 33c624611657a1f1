"""A long trial of what README promises of edits while a stage runs: `make soak`.

`tests/test_soak.py` takes a sample. Moments are drawn from a seed, which a fault is told with.
"""

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import test_guard
from ruamel.yaml import YAML

from stages.core import files

ROOT = Path(__file__).parent.parent
RUN = "from stages.pipeline import repro; repro.run(repro.due(), 1)"
LONGEST_S = 120
VERSIONS = ("a", "b")


@dataclass
class Found:
    """What a trial found: how often it was tried, what came of it, and what must not have."""

    tried: int
    outcomes: dict[str, int]
    faults: list[str]

    def count(self, outcome: str) -> None:
        """One more of an outcome."""
        self.tried += 1
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1


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
    chance, found = random.Random(seed), Found(0, {}, [])
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
        found.count("recorded" if process.returncode == 0 else "refused")
        process = started(folder)
        process.wait(LONGEST_S)
        version = before if is_undone else after
        if process.returncode or fault_of(folder) or (folder / "data/out.txt").read_text() != f"in{version} 17":
            found.faults.append(f"{what}: the next run did not mend it")
    return found


def main() -> None:
    """Make the trial and print what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=50, help="how many runs are edited")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = windows(args.moments, args.seed, Path(folder) / "windows")
    print("\n".join([f"{found.tried} edits: {found.outcomes}", *found.faults]))
    sys.exit(bool(found.faults))


if __name__ == "__main__":
    main()
