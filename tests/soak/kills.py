"""kill -9 of a stage, of its DVC, of the runner or of all of them, at moments of a run; then one `make repro`.

A finished run of the smoke preset loses some of its stages: their records, what they made, and DVC's cache of runs.
The run that makes them again is killed. What follows it must end well, with the bytes of the run that nobody
disturbed, and leave nothing behind.
"""

import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from ruamel.yaml import YAML
from smoke import environment, lock, runner, stable

from soak.found import Found
from stages.core import files
from stages.pipeline import lock as locks
from stages.pipeline import recovery

VICTIMS = "stage", "dvc", "runner", "all"
FORGOTTEN = 3  # stages that a run has to make again
LONGEST_S = 300
LOOK_S = 0.05  # between two looks at which processes there are
GUARD = "stages.pipeline.guard"


def forget(folder: Path, names: list[str]) -> list[Path]:
    """Let a finished run lose stages; what they had made."""
    yaml = YAML()
    content = yaml.load(folder / "dvc.lock")
    outs = [out for name in names for out in content["stages"][name]["outs"]]
    for name in names:
        del content["stages"][name]
    yaml.dump(content, folder / "dvc.lock")
    for out in outs:
        files.remove(folder / out["path"])
        files.remove(folder / ".dvc/cache/files/md5" / out["md5"][:2] / out["md5"][2:])
    for kept in (".dvc/cache/runs", ".ckpt"):
        files.remove(folder / kept)
    return [Path(out["path"]) for out in outs]


def is_within_lock(folder: Path) -> bool:
    """Whether DVC has emptied dvc.lock and not yet written it."""
    return (folder / "dvc.lock").stat().st_size == 0


def is_within_rwlock(folder: Path) -> bool:
    """Whether DVC has emptied its table of who reads and writes what, and not yet written it."""
    try:
        return (folder / ".dvc/tmp/rwlock").stat().st_size == 0
    except FileNotFoundError:
        return False


WITHIN = {"dvc.lock": is_within_lock, "rwlock": is_within_rwlock}


def left_cut(folder: Path) -> list[str]:
    """DVC's files that a kill has left empty or cut off."""
    rwlock = folder / ".dvc/tmp/rwlock"
    found = [] if recovery.is_whole((folder / "dvc.lock").read_bytes()) else ["dvc.lock"]
    return found if not rwlock.exists() or rwlock.read_text().endswith("}") else [*found, "rwlock"]


@dataclass(frozen=True)
class Moment:
    """When to kill: some time after the start, or within a write of DVC's.

    Attributes:
        after_s: seconds after the start.
        within: a key of WITHIN, or None.
        skipped: such writes that are let pass.
        lag_s: seconds after the file was emptied.
    """

    after_s: float
    within: str | None
    skipped: int
    lag_s: float

    @classmethod
    def drawn(cls, chance: random.Random, is_within: bool) -> "Moment":
        """One of some kind."""
        within = chance.choice(sorted(WITHIN)) if is_within else None
        return cls(chance.uniform(2, 12), within, chance.randrange(3), chance.choice([0, chance.uniform(0, 0.3)]))

    def __str__(self) -> str:
        return f"after {self.after_s:.1f} s" if self.within is None else f"within a write of {self.within}"

    def watch(self, folder: Path) -> Callable[[], bool]:
        """What says whether it has come, to be asked again and again."""
        start, writes, was_within = time.monotonic(), 0, False

        def is_now() -> bool:
            nonlocal writes, was_within
            if self.within is None:
                return time.monotonic() - start > self.after_s
            is_within = WITHIN[self.within](folder)
            writes, was_within = writes + (is_within and not was_within), is_within
            if not is_within or writes <= self.skipped:
                return False
            time.sleep(self.lag_s)
            return True

        return is_now


def at_work(process: psutil.Process) -> dict[str, list[psutil.Process]]:
    """The processes of a run by their part in it."""
    try:
        below = process.children(recursive=True)
    except psutil.Error:
        below = []
    found: dict[str, list[psutil.Process]] = {"runner": [process], "dvc": [], "stage": [], "all": [*below, process]}
    for child in below:
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if GUARD in words and "-c" not in words:
            found["stage"].append(child)
        elif any(Path(word).name == "dvc" for word in words[:2]):
            found["dvc"].append(child)
    return found


def kill_when(process: subprocess.Popen[bytes], victim: str, is_time: Callable[[], bool]) -> bool:
    """Kill part of a run at a moment; whether it came before the run's end."""
    head, parts, looked = psutil.Process(process.pid), dict[str, list[psutil.Process]](), 0.0
    while process.poll() is None:
        if time.monotonic() - looked > LOOK_S:
            parts, looked = at_work(head), time.monotonic()
        if parts[victim] and is_time():
            for found in parts[victim]:
                try:
                    found.kill()
                except psutil.Error:
                    continue
            return True
    return False


def left_by(folder: Path) -> list[str]:
    """What a finished run must not leave: processes, unfinished files, locks."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder.resolve()):
                found.append(f"a process: {' '.join(process.cmdline())[:120]}")
        except (psutil.Error, OSError):
            continue
    found += [f"an unfinished file: {path}" for path in folder.rglob("*.part")]
    rwlock = folder / ".dvc/tmp/rwlock"
    if rwlock.exists() and any(json.loads(rwlock.read_text()).values()):
        found.append(f"a lock: {rwlock.read_text()[:120]}")
    return found


def faults_of(folder: Path, wanted: dict[str, object], made: list[Path]) -> list[str]:
    """What is wrong after a killed run and one more."""
    words = runner("repro", "--lanes", "2")
    done = subprocess.run(
        words, cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=LONGEST_S
    )
    if done.returncode:
        return [f"the next run ended with {done.returncode}: {(done.stdout + done.stderr)[-600:]}"]
    found, recorded = left_by(folder), lock(folder)
    if stable(recorded) != wanted:
        found.append("the next run gave another dvc.lock")
    md5s = {Path(out["path"]): out["md5"] for entry in recorded.values() for out in entry["outs"]}
    found += [f"{path} has not the bytes that dvc.lock says" for path in made if locks.md5(folder / path) != md5s[path]]
    again = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    if not again.stdout.startswith("nothing to run"):
        found.append(f"after the next run there was still something to run: {again.stdout[-300:]}")
    return found


def trial(
    place: Path, victim: str, moment: Moment, names: list[str], wanted: dict[str, object]
) -> tuple[str, list[str]]:
    """Kill one run in a copy of a finished one: what came of it, and what is wrong after the next run.

    Args:
        place: the copy.
        victim: one of VICTIMS.
        moment: when.
        names: stages that the run makes again.
        wanted: dvc.lock of a run that nobody disturbed, as of `stable`.
    """
    made, null = forget(place, names), subprocess.DEVNULL
    process = subprocess.Popen(runner("repro", "--lanes", "2"), cwd=place, env=environment(), stdout=null, stderr=null)
    was_met = kill_when(process, victim, moment.watch(place))
    process.wait(LONGEST_S)
    kind = "some time" if moment.within is None else f"within {moment.within}"
    outcome = f"{victim}, {kind}" if was_met else f"{victim}: the run ended before"
    if cut := left_cut(place):
        outcome += f", which left {' and '.join(cut)} cut off"
    return outcome, faults_of(place, wanted, made)


def kills(moments: int, seed: int, finished: Path, folder: Path) -> Found:
    """Kill each kind of victim at some moments.

    Args:
        moments: how many times for each; every other one of those that are not stages is within a write of DVC's.
        seed: of stages and moments.
        finished: a finished run of the smoke preset.
        folder: to copy it to, once a trial.
    """
    chance, found, wanted = random.Random(seed), Found(), stable(lock(finished))
    for number in range(moments * len(VICTIMS)):
        round_, of_victims = divmod(number, len(VICTIMS))
        victim, place = VICTIMS[of_victims], folder / f"kill-{number}"
        moment = Moment.drawn(chance, victim != "stage" and round_ % 2 == 0)
        names = chance.sample(sorted(wanted), FORGOTTEN)
        shutil.copytree(finished, place, symlinks=True)
        outcome, faults = trial(place, victim, moment, names, wanted)
        shutil.rmtree(place)
        found.tried += 1
        found.count(outcome)
        found.faults += [f"seed {seed}, {number}: {victim} {moment}, {', '.join(names)}: {fault}" for fault in faults]
    return found
