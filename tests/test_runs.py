"""Whole runs of the smoke preset: same bytes twice, kills survived, and only what an edit touches runs again.

DVC's experiments too, each in a folder of its own beside the others.

Slow: `make test` leaves them out. The runs lie in a temporary folder with a cache of their own.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from smoke import ROOT, dvc, environment, lock, runner, side_by_side, stable

CELL = "distill@joint-eeea_net_c2-resnet10t-sigmoid_kd-0"
pytestmark = pytest.mark.slow


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the finished run, with its cache, to change."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy, symlinks=True)
    yield copy
    shutil.rmtree(copy)


def edit(folder: Path, change: Any) -> None:
    """Change a run's params.yaml."""
    yaml = YAML()
    values = yaml.load(folder / "params.yaml")
    change(values)
    yaml.dump(values, folder / "params.yaml")


def would_run(folder: Path) -> set[str]:
    """The stages that changed themselves; a repro runs these and what their new results change."""
    return set(json.loads(dvc(folder, "status", "--json").stdout or "{}"))


def test_two_forced_runs_give_the_same_lock(run: Path) -> None:
    first = lock(run)
    dvc(run, "repro", "--force")
    second = lock(run)
    assert len(first) > 30
    assert stable(first) == stable(second)


def test_a_second_run_does_nothing(run: Path) -> None:
    assert would_run(run) == set()
    assert side_by_side(run) == "nothing to run: all stages are up to date\n"


def test_an_edited_loss_makes_only_its_own_cells_stale(run: Path) -> None:
    with (run / "stages/losses/sigmoid_kd.py").open("a") as file:
        file.write("\n# a comment\n")
    names = {name.split("@")[0] for name in would_run(run)}
    assert names == {"choice", "distill", "stamps"}


def test_a_changed_temperature_runs_the_same_cells(run: Path) -> None:
    edit(run, lambda v: v["losses"]["sigmoid_kd"].update(temperature=3.0))
    names = {name.split("@")[0] for name in would_run(run)}
    assert "distill" in names
    assert names.isdisjoint({"train_teacher", "soft_label", "train_student", "predict_teacher", "predict_student"})


def test_a_new_teacher_leaves_the_twins_alone(run: Path) -> None:
    edit(run, lambda v: v["teachers"].update(densenet161=dict(v["teachers"]["resnet10t"])))
    names = would_run(run)
    assert "train_teacher@joint-densenet161" in names
    assert not any(name.startswith(("train_student", "predict_student")) for name in names)
    assert "train_teacher@joint-resnet10t" not in names


def test_a_loss_and_a_sum_removed_from_params_are_refused_until_pruned_and_leave_no_trace(run: Path) -> None:
    constants = {"alpha": 0.5, "temperature": 2.0, "gamma": 2.0, "weight": 1.0}
    edit(run, lambda v: v["losses"].update(paper=constants | {"softening": "softmax", "reduction": "sum"}))
    rate = {"default": 0.01, "per_cohort": {}}
    edit(run, lambda v: v["rates"].update(paper=dict(rate), paper_mix=dict(rate)))
    edit(run, lambda v: v.update(loss_sums={"paper_mix": {"paper": 1.0, "sigmoid_kd": 0.5}}))
    dvc(run, "repro")
    assert "paper" in (run / "reports/report.md").read_text()
    assert "paper_mix from" in (run / "reports/report.md").read_text()
    edit(run, lambda v: (v["losses"].pop("paper"), v["rates"].pop("paper"), v["rates"].pop("paper_mix")))
    edit(run, lambda v: v.update(loss_sums={}))
    refused = dvc(run, "repro", check=False)
    assert refused.returncode != 0
    assert "run `make prune`" in refused.stderr
    prune = runner("lock", "prune")
    gone = subprocess.run(prune, cwd=run, env=environment(), capture_output=True, text=True, check=True).stdout
    assert "dvc.lock: distill@joint-eeea_net_c2-resnet10t-paper-0" in gone
    assert "dvc.lock: distill_sum@joint-eeea_net_c2-resnet10t-paper_mix-0" in gone
    assert not list(run.glob("data/models/distilled/**/paper*"))
    dvc(run, "repro")
    assert not list(run.glob("reports/**/*paper*"))
    assert not any("-paper" in name for name in lock(run))
    assert "paper" not in (run / "reports/report.md").read_text()


def kill_while(folder: Path, stage: str, is_time: Any) -> None:
    """Start a forced stage and kill -9 all of it once `is_time()`."""
    words = ["dvc", "repro", "--single-item", "--force", "--no-run-cache", stage]
    with subprocess.Popen(
        words,
        cwd=folder,
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 120
        while not is_time():
            assert process.poll() is None, f"{stage} ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)


def test_training_killed_after_a_checkpoint_goes_on_to_the_same_bytes(run: Path) -> None:
    before = lock(run)[CELL]["outs"]
    kill_while(run, CELL, lambda: list(run.glob(".ckpt/*/*/last.pt")))
    assert not list(run.glob("data/models/distilled/joint/*/*/*/*/weights.safetensors"))
    done = dvc(run, "repro", "--single-item", "--force", "--no-run-cache", CELL)
    assert re.search(r"[1-9]\d*/12 ", done.stderr.split("\r")[0]), "it started again from step 0"
    assert lock(run)[CELL]["outs"] == before
    assert not list(run.glob(".ckpt/*/*/last.pt"))


def test_ingest_killed_half_way_goes_on_to_the_same_bytes(run: Path) -> None:
    before = lock(run)["ingest@chestxray14"]["outs"]
    kill_while(run, "ingest@chestxray14", lambda: [p for p in run.glob(".ckpt/ingest-chestxray14/*/*") if p.is_file()])
    assert not (run / "data/images/chestxray14").exists()
    dvc(run, "repro", "--single-item", "--force", "--no-run-cache", "ingest@chestxray14")
    assert lock(run)["ingest@chestxray14"]["outs"] == before


def test_params_edited_while_a_stage_trains_fail_it_and_the_lock_stays(run: Path) -> None:
    before = lock(run)[CELL]
    edit(run, lambda v: v["train"]["student"].update(momentum=0.8))
    words = ["dvc", "repro", "--single-item", CELL]
    with subprocess.Popen(words, cwd=run, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        while not list(run.glob(".ckpt/*/*/last.pt")):
            assert process.poll() is None
            time.sleep(0.005)
        edit(run, lambda v: v["train"]["student"].update(momentum=0.7))
        _, errors = process.communicate()
    assert process.returncode != 0
    assert "changed while it ran: params.yaml:train.student" in errors
    assert lock(run)[CELL] == before


def git(folder: Path, *words: str) -> str:
    """What a git command prints in a folder."""
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def committed(run: Path) -> Path:
    """The finished run in a repository of its own, as DVC's experiments need it."""
    config = run / ".dvc/config"
    config.write_text(config.read_text().replace("no_scm = true", "no_scm = false"))
    shutil.copyfile(ROOT / ".dvc/.gitignore", run / ".dvc/.gitignore")
    git(run, "init", "--quiet", "--initial-branch=main")
    git(run, "add", "--all")
    git(run, "commit", "--quiet", "--message=a finished run")
    return run


def finish_queue(folder: Path, workers: int) -> dict[str, str]:
    """Run what is queued, some at a time: each experiment's end."""
    dvc(folder, "queue", "start", "--jobs", str(workers))
    deadline = time.monotonic() + 300
    while True:
        rows = [line.split() for line in dvc(folder, "queue", "status").stdout.splitlines()]
        ends = {row[1]: row[-1] for row in rows if row and row[-1] in ("Queued", "Running", "Success", "Failed")}
        if set(ends.values()) <= {"Success", "Failed"}:
            return ends
        assert time.monotonic() < deadline, ends
        time.sleep(0.5)


def of_experiment(folder: Path, name: str) -> dict[str, Any]:
    """The stages of an experiment's dvc.lock."""
    (reference,) = git(folder, "for-each-ref", "--format=%(refname)", f"refs/exps/**/{name}").split()
    return dict(YAML(typ="safe").load(git(folder, "show", f"{reference}:dvc.lock"))["stages"])


def test_experiments_side_by_side_each_train_their_own_cell_and_leave_the_workspace(committed: Path) -> None:
    before, second_seed = lock(committed), "train_student@joint-eeea_net_c2-1"
    for name, change, cell in (
        ("low", "rates.sigmoid_kd.default=0.005", CELL),
        ("high", "rates.sigmoid_kd.default=0.02", CELL),
        ("seeds", "seeds=[0,1]", second_seed),
        ("wrong", "losses.sigmoid_kd.temperature=-1", CELL),
    ):
        dvc(committed, "exp", "run", "--queue", "--name", name, "--set-param", change, cell)
    ends = finish_queue(committed, workers=2)
    assert ends == {"low": "Success", "high": "Success", "seeds": "Success", "wrong": "Failed"}
    told = dvc(committed, "queue", "logs", "wrong").stdout
    assert "stages.distill: Settings refuses temperature: Input should be greater than 0, got -1 (" in told
    assert "Traceback" not in told
    of = {name: of_experiment(committed, name) for name in ("low", "high", "seeds")}
    assert {name for name in before if of["low"][name] != before[name]} == {CELL}
    assert len({str(entries[CELL]["outs"]) for entries in (before, of["low"], of["high"])}) == 3
    assert set(of["seeds"]) == {*before, second_seed}
    assert lock(committed) == before
    assert git(committed, "status", "--porcelain") == ""
    assert not list(committed.glob(".ckpt/*/*/last.pt"))


def test_the_table_of_experiments_is_what_was_set_and_what_came_of_it(committed: Path) -> None:
    dvc(committed, "exp", "run", "--name", "lenient", "--set-param", "evaluate.min_positives=2", "evaluate")
    shown = dvc(committed, "exp", "show", "--only-changed", "--drop", "/", "--csv").stdout.splitlines()
    columns = set(shown[0].split(",")) - {"Experiment", "rev", "typ", "Created", "parent", "State", "Executor"}
    assert "evaluate.min_positives" in columns
    assert not [name for name in columns if name.startswith(("data", "stages", "reports"))]
    assert "lenient" in {line.split(",")[0] for line in shown}
