"""Several processes: the whole batch's gradient, the same bytes again, and a clear end when a rank fails.

What runs in ranks is found by its name in this module, which each rank imports.
"""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import owners
import pytest
import test_training as single
import torch
from torch import Tensor, nn

from stages.core import files, params, seeds
from stages.learning import objectives, ranks, training
from stages.learning.cohort import Cohort
from stages.learning.trainer import Recipe, Terms, Trainer, TrainingError
from stages.nets import nets

TOLERANCE = 1e-5  # of the norm of all weights: sums in another order
VIEWS = params.parse(params.read(single.ROOT / "params.yaml")).views
steps = 0  # of this rank


def frozen(model: nn.Module) -> nn.Module:
    """The same net whose batch norms keep their statistics."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]  # noqa: ARG005
    return model


def fit_frozen(cohort: Cohort, checkpoint: Path) -> None:
    """An epoch with a loss that has all there is: masks of two kinds, soft labels, and a teacher's features."""
    nets.fix(threads=1)
    kd = single.distilled("cam_transfer", VIEWS) | {"teacher": nets.build_model("resnet10t", 2, 64, seed=5)}
    settings = single.settings(batch_size=4, steps=7, lr=0.02)
    model = frozen(nets.build_model("resnet10t", 2, 64, seed=1))
    recipe = Recipe(cohort, kd["terms"], settings, VIEWS, 17, single.NAMES, kd["soft"], kd["teacher"])
    run = Trainer(model, recipe, single.CPU)
    run.fit(checkpoint)
    run.save(checkpoint)


def test_two_ranks_agree_with_one_process_after_an_epoch_of_the_same_batches(tmp_path: Path) -> None:
    """Weights to `TOLERANCE`, and every number of the history; ranks see other numbers of labels, so a mean of means
    would not do."""
    cohort = single.drawn(tmp_path / "cohort", 64)
    order = seeds.of("order", *single.NAMES, 0).permutation(28)
    annotated = (~np.isnan(cohort.train.targets[order])).reshape(14, -1).sum(axis=1)  # of each step and rank
    assert (annotated[::2] != annotated[1::2]).any()
    fit_frozen(cohort, tmp_path / "one.pt")
    ranks.launch(fit_frozen, 2, cohort, tmp_path / "two.pt")
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    start = nets.build_model("resnet10t", 2, 64, seed=1).state_dict()
    for part in ("model", "averaged"):
        given, found, began = (
            torch.cat([value.double().flatten() for value in state.values() if value.is_floating_point()])
            for state in (one[part], two[part], start)
        )
        assert (found - given).norm() < TOLERANCE * given.norm()
        assert (given - began).norm() > 100 * TOLERANCE * given.norm()
    for ours, theirs in zip(two["progress"]["history"], one["progress"]["history"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


def train(folder: Path, cohort: Cohort, terms: Terms, **changes: Any) -> Any:
    """`training.train` of the tiny student with two processes."""
    folder.mkdir(exist_ok=True)
    settings = single.settings(**({"processes": 2} | changes))
    start = params.parse(params.read(single.ROOT / "params.yaml")).students["eeea_net_c2"]
    recipe = Recipe(cohort, terms, settings, VIEWS, 17, single.NAMES)
    return training.train(recipe, "eeea_net_c2", start, 1, folder / "last.pt")


def at_step(number: int, rank: int, act: Callable[[Tensor], Tensor], given: objectives.Signals) -> dict[str, Tensor]:
    """The twin's loss, but for what one rank makes of it in one of its steps."""
    global steps
    steps += 1
    loss = objectives.bce(given)
    return {"task": act(loss) if (steps, ranks.index()) == (number, rank) else loss}


def die(flag: Path, loss: Tensor) -> Tensor:
    """Ends this process as a machine without memory does, the first time."""
    if flag.exists():
        flag.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return loss


def spoil(loss: Tensor) -> Tensor:
    """No number."""
    return loss * math.nan


@pytest.mark.slow
def test_a_rank_that_dies_is_named_and_the_next_run_ends_with_the_bytes_of_an_undisturbed_one(tmp_path: Path) -> None:
    cohort = single.drawn(tmp_path / "cohort", 32)
    flag = tmp_path / "flag"
    terms = partial(at_step, 8, 1, partial(die, flag))
    undisturbed, _, history = train(tmp_path / "undisturbed", cohort, terms)
    flag.touch()
    with pytest.raises(TrainingError, match=r"rank 1 of 2: died of SIGKILL .*run again to go on"):
        train(tmp_path / "killed", cohort, terms)
    left = torch.load(tmp_path / "killed/last.pt", weights_only=True)
    assert left["progress"]["step"] == 5
    model, _, again = train(tmp_path / "killed", cohort, terms)
    assert single.weights(model) == single.weights(undisturbed)
    assert again == history


def test_a_loss_that_is_no_number_in_one_rank_stops_all_with_step_and_films(tmp_path: Path) -> None:
    cohort = single.drawn(tmp_path / "cohort", 32)
    with pytest.raises(TrainingError, match=r"rank \d of 2: .*the loss is nan at step 3 .*batch of \d+\.png, "):
        train(tmp_path / "spoilt", cohort, partial(at_step, 4, 1, spoil), steps=4)


def test_a_batch_that_ranks_cannot_share_evenly_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = single.drawn(tmp_path / "cohort", 32)
    monkeypatch.setattr(ranks, "count", lambda: 3)
    with pytest.raises(ValueError, match="batch_size must divide by the number of processes, got 8 for 3"):
        single.trainer(cohort, VIEWS)


def test_only_the_first_rank_holds_the_lock_and_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.learning import checkpoints

    monkeypatch.chdir(tmp_path)
    with checkpoints.folder("a", fact=1) as kept:
        monkeypatch.setenv("RANK", "1")
        with checkpoints.folder("a", fact=1):
            pass
        assert kept.is_dir()


@pytest.mark.slow
def test_torchrun_trains_as_a_stage_that_starts_its_own_ranks(project: Path, tmp_path: Path) -> None:
    single.drawn(tmp_path / "cohort", 32)
    short = {"steps": 8, "batch_size": 8, "evaluations": 4, "checkpoint_steps": 5}
    changes = {f"train__student__{key}": value for key, value in short.items()}
    (project / "data/cohorts").mkdir(parents=True)
    (tmp_path / "cohort").rename(project / "data/cohorts/joint")
    cell = ["stages.train_student", "--cohort", "joint", "--student", "eeea_net_c2", "--seed", "0"]
    guarded = ["-m", "stages.pipeline.guard", *cell]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    made = project / "data/models/twin/joint/eeea_net_c2/0/weights.safetensors"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DVC_")}
    environment["PYTHONPATH"] = str(single.ROOT)
    written = []
    for words, processes in ((torchrun + guarded, 1), (guarded, 2), (guarded, 1)):
        owners.project(project, threads=1, train__student__processes=processes, **changes)
        subprocess.run([sys.executable, *words], cwd=project, env=environment, check=True, capture_output=True)
        written.append(files.sha256(made))
        assert not (project / ".ckpt/twin-joint-eeea_net_c2-0").is_dir() or not list(
            (project / ".ckpt/twin-joint-eeea_net_c2-0").iterdir()
        )
    assert written[0] == written[1] != written[2]
