"""A day of a user's life, in minutes: edits, kills, preset runs, prunes, branches, experiments, two shells at once.

A small project under git, of the smoke preset's params, is changed step by step as a seed draws. After each step the
project either refuses to go on and says why in a line, or `make audit` and `make repro` agree on it: where nothing is
to run the audit passes, and after a run that ended well nothing is to run. In the end a clone that runs all of it from
nothing must give the same bytes.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from smoke import ROOT, environment, lock, runner, stable

from soak.found import Found
from soak.kills import VICTIMS, Moment, kill_when
from stages.core import files

LONGEST_S = 900
Said = subprocess.CompletedProcess[str] | None  # by a step, where it is to be looked at
TINY = "train: {student: {steps: 8}}\n"
PAPER = {"alpha": 0.5, "temperature": 2.0, "gamma": 0.0, "weight": 1.0, "softening": "sigmoid", "reduction": "mean"}
CODE = "stages/losses/sigmoid_kd.py", "stages/judging/metrics.py", "stages/pages/charts.py", "stages/compare.py"
RESULTS = "data/metrics", "data/predictions", "data/export", "data/models/distilled", "reports/explain"
REPRO = runner("repro", "--lanes", "2")


class Walk:
    """The project, and what a user does with it.

    Attributes:
        folder: of the project.
        chance: draws what is done.
    """

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder, self.chance, self.commits = folder, chance, 0

    def begin(self, finished: Path) -> None:
        """Make a project under git of a finished run of the smoke preset."""
        shutil.copytree(finished, self.folder, symlinks=True)
        for name in ("presets", "Makefile", "requirements.lock"):
            place = ROOT / name
            (shutil.copytree if place.is_dir() else shutil.copyfile)(place, self.folder / name)
        (self.folder / "presets/tiny.yaml").write_text(TINY)
        (self.folder / ".dvc/config").write_text(
            '[core]\n    analytics = false\n[cache]\n    type = "hardlink,symlink"\n'
        )
        (self.folder / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
        self.say("git", "init", "--quiet", "--initial-branch=main")
        self.say("git", "config", "user.name", "walk")
        self.say("git", "config", "user.email", "walk@localhost")
        self.commit()

    def say(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project; what it printed."""
        return subprocess.run(
            words, cwd=self.folder, env=environment(), capture_output=True, text=True, check=False, timeout=LONGEST_S
        )

    def done(self, *words: str) -> None:
        """Run a command that must end well."""
        said = self.say(*words)
        assert said.returncode == 0, f"{' '.join(words)}: {said.stdout[-800:]}{said.stderr[-800:]}"

    def edit(self, change: Callable[[Any], object]) -> None:
        """Change params.yaml."""
        yaml = YAML()
        values = yaml.load(self.folder / "params.yaml")
        change(values)
        yaml.dump(values, self.folder / "params.yaml")

    def commit(self) -> None:
        """Commit all that is there."""
        self.done("git", "add", "--all")
        self.done("git", "commit", "--quiet", "--allow-empty", "--message=walk")

    def edit_a_value(self) -> Said:
        """Another temperature, momentum, number of replicates or of boxes."""
        group, key, values = self.chance.choice(
            [
                (("losses", "sigmoid_kd"), "temperature", (1.0, 2.0, 3.0)),
                (("train", "student"), "momentum", (0.8, 0.9)),
                (("evaluate",), "replicates", (100, 120)),
                (("explain",), "max_boxes", (20, 30)),
            ]
        )

        def change(values_: Any) -> None:
            for name in group:
                values_ = values_[name]
            values_[key] = self.chance.choice(values)

        self.edit(change)
        return None

    def edit_code(self) -> Said:
        """A comment more in a file of code, or one less."""
        place = self.folder / self.chance.choice(CODE)
        text = place.read_text()
        place.write_text(text.removesuffix("# walk\n") if text.endswith("# walk\n") else f"{text}# walk\n")
        return None

    def edit_wrongly(self) -> Said:
        """A key that is none, which must be refused by its name; then as it was."""
        whole = (self.folder / "params.yaml").read_text()
        self.edit(lambda values: values.update(lerning_rate=1))
        said = self.say(*REPRO)
        (self.folder / "params.yaml").write_text(whole)
        assert said.returncode == 1, said.stdout
        assert "lerning_rate" in said.stderr
        return said

    def change_losses(self) -> Said:
        """The paper's loss comes or goes."""

        def change(values: Any) -> None:
            if values["losses"].pop("paper", None):
                values["rates"].pop("paper")
                return
            values["losses"]["paper"], values["rates"]["paper"] = dict(PAPER), {"default": 0.01, "per_cohort": {}}

        self.edit(change)
        return None

    def lose_results(self) -> Said:
        """A folder of results goes."""
        files.remove(self.folder / self.chance.choice(RESULTS))
        return None

    def run(self) -> Said:
        """`make repro`."""
        return self.say(*REPRO)

    def run_killed(self) -> Said:
        """`make repro`, part of which is killed."""
        null, victim = subprocess.DEVNULL, self.chance.choice(VICTIMS)
        moment = Moment.drawn(self.chance, victim != "stage" and self.chance.random() < 0.5)
        process = subprocess.Popen(REPRO, cwd=self.folder, env=environment(), stdout=null, stderr=null)
        kill_when(process, victim, moment.watch(self.folder))
        process.wait(LONGEST_S)
        return None

    def run_stopped(self) -> Said:
        """`make repro`, stopped by the interrupt key after some seconds."""
        with subprocess.Popen(
            REPRO, cwd=self.folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            time.sleep(self.chance.uniform(1, 10))
            process.send_signal(signal.SIGINT)
            printed = process.communicate(timeout=LONGEST_S)[0]
        return subprocess.CompletedProcess(REPRO, 1, printed, "")

    def run_in_two_shells(self) -> Said:
        """`make repro` twice at once."""
        both = [
            subprocess.Popen(
                REPRO, cwd=self.folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            for _ in range(2)
        ]
        printed = [process.communicate(timeout=LONGEST_S)[0] for process in both]
        return subprocess.CompletedProcess(REPRO, max(process.returncode for process in both), "".join(printed), "")

    def run_a_preset(self) -> Said:
        """`make run PRESET=tiny`."""
        return self.say(*runner("preset", "tiny"))

    def prune(self) -> Said:
        """`make prune`."""
        return self.say(*runner("lock", "prune"))

    def switch_branches(self) -> Said:
        """Commit, and go to another commit of before, on a branch of its own."""
        self.commit()
        self.commits += 1
        back = self.chance.randrange(3)
        return self.say("git", "checkout", "--quiet", "-b", f"walk-{self.commits}", f"HEAD~{back}")

    def try_an_experiment(self) -> Said:
        """`dvc exp run` with another value."""
        self.commit()
        value = self.chance.choice((1.0, 2.0, 3.0))
        return self.say("dvc", "exp", "run", "-S", f"losses.sigmoid_kd.temperature={value}")

    def is_due(self) -> bool:
        """Whether something is to run, or cannot be told."""
        said = self.say(sys.executable, "-c", "from stages.pipeline import repro; print(*repro.due())")
        return bool(said.stdout.strip()) or said.returncode != 0

    def faults(self, said: Said) -> list[str]:
        """What is wrong after a step.

        Args:
            said: by the step.
        """
        audit, is_due = self.say(*runner("lock", "check")), self.is_due()
        printed = [text for found in (said, audit) if found for text in (found.stdout, found.stderr)]
        found = [f"a traceback: {text[-900:]}" for text in printed if "Traceback" in text]
        if audit.returncode and not (audit.stdout + audit.stderr).strip():
            found.append("the audit fails without a word")
        if not is_due and audit.returncode:
            found.append(f"nothing is to run, and the audit fails: {audit.stdout[-600:]}{audit.stderr[-600:]}")
        if said and said.args == REPRO and said.returncode == 0 and is_due:
            found.append("it ran to its end, and something is to run still")
        return found


STEPS: tuple[Callable[[Walk], Said], ...] = (
    Walk.edit_a_value,
    Walk.edit_a_value,
    Walk.edit_code,
    Walk.edit_wrongly,
    Walk.change_losses,
    Walk.lose_results,
    Walk.run,
    Walk.run_killed,
    Walk.run_killed,
    Walk.run_stopped,
    Walk.run_in_two_shells,
    Walk.run_a_preset,
    Walk.prune,
    Walk.switch_branches,
    Walk.try_an_experiment,
)


def walk(minutes: float, seed: int, finished: Path, folder: Path) -> Found:
    """Walk for some time.

    Args:
        minutes: of steps, before the last run and the clone's.
        seed: of the steps.
        finished: a finished run of the smoke preset.
        folder: an empty one.
    """
    chance, found = random.Random(seed), Found()
    project = Walk(folder / "project", chance)
    project.begin(finished)
    end, taken = time.monotonic() + 60 * minutes, list[str]()
    while time.monotonic() < end:
        step = chance.choice(STEPS)
        taken.append(step.__name__)
        faults = project.faults(step(project))
        found.tried += 1
        found.count(step.__name__)
        found.faults += [f"seed {seed}, after {', '.join(taken[-4:])}: {fault}" for fault in faults]
    project.prune()
    last = project.run()
    found.faults += [f"seed {seed}, in the end: {fault}" for fault in project.faults(last)]
    project.commit()
    clone = folder / "clone"
    project.done("git", "clone", "--quiet", os.fspath(project.folder.resolve()), os.fspath(clone.resolve()))
    files.remove(clone / "dvc.lock")
    subprocess.run(REPRO, cwd=clone, env=environment(), check=True, capture_output=True, timeout=LONGEST_S)
    if stable(lock(clone)) != stable(lock(project.folder)):
        found.faults.append(f"seed {seed}: a clone that ran all of it has another dvc.lock")
    return found
