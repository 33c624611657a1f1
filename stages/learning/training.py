"""Training: what teachers, twins and distilled students share.

The loop itself is in `trainer`. Same params, inputs, seed and thread count give the same bytes; a killed run goes on
from its checkpoint and ends with the bytes of an undisturbed one.

Several processes (`processes`, or `torchrun`) share each batch: a rank takes a contiguous part of it, and the averaged
gradient is that of the whole batch. What compares films of a batch sees its rank's alone: the losses `rkd` and
`dist_corr`, and on CPUs batch norm, whose kept statistics are rank 0's (on GPUs they are the whole batch's).
"""

import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn

from stages.core import files, seeds
from stages.learning import checkpoints, layers, ranks
from stages.learning.cohort import Cohort
from stages.learning.trainer import Recipe, Trainer, TrainingError
from stages.nets import nets


def start_at_prevalence(model: nn.Module, targets: np.ndarray) -> None:
    """Set the classifier's bias to each finding's log-odds, so that no step is spent on learning that most are rare.

    Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002, section 3.3, with the data's own prevalence.

    Args:
        model: a timm model.
        targets: float (rows, findings), NaN where a label does not count; a finding is given one row of each kind more,
            so that one without positives, or without any label, stays finite.
    """
    annotated = (~np.isnan(targets)).sum(axis=0)
    prevalence = (np.nansum(targets, axis=0) + 1) / (annotated + 2)
    classifier: nn.Linear = model.get_classifier()  # type: ignore[operator]  # every timm model has it
    with torch.no_grad():
        classifier.bias.copy_(torch.from_numpy(np.log(prevalence / (1 - prevalence))))


def require_bf16(wanted: bool, device: torch.device) -> None:
    """Check that bf16, if wanted, is in the processor: emulated, a step takes some ten times as long.

    Raises:
        ValueError: it is not.
    """
    is_x86 = device.type == "cpu" and platform.machine() in ("x86_64", "AMD64")
    if wanted and is_x86 and not torch.cpu._is_avx512_bf16_supported():
        raise ValueError(
            "bf16 must be false on a CPU without bf16 instructions, which takes some ten times as long for a step "
            "(params.yaml: train.teacher.bf16, train.student.bf16)"
        )


def prepare(recipe: Recipe, architecture: str, start: Any, threads: int, member: int | None) -> Trainer:
    """A run that is ready to start (arguments as of `train`)."""
    cohort, device = recipe.cohort, nets.fix(threads)
    require_bf16(recipe.settings.bf16, device)
    size_px = cohort.about["size_px"]
    first = seeds.integer("init", recipe.seed, *recipe.names)
    model = nets.build_model(architecture, len(cohort.findings), size_px, start, first, member)
    start_at_prevalence(model, cohort.train.targets)
    layers.speed_up(model)
    if ranks.count() > 1 and device.type == "cuda":  # CPUs have none
        model = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]  # of timm
    return Trainer(model, recipe, device)


def _to_the_end(checkpoint: Path, live: Path | None, *given: Any) -> None:
    """What a rank does that `train` started: rank 0 leaves the end's state as the checkpoint."""
    trainer = prepare(*given)
    trainer.fit(checkpoint, live)
    trainer.save(checkpoint)


def train(
    recipe: Recipe, architecture: str, start: Any, threads: int, checkpoint: Path, member: int | None = None
) -> tuple[nn.Module, dict[str, Any], list[dict[str, float]]]:
    """Build a model and train it.

    Under `torchrun` this process is a rank already, and all but rank 0 end here; else it starts `processes` of them.

    Args:
        recipe: what it learns from.
        architecture: as of `build_model`, like `start` and `member`.
        start: its entry in params.yaml.
        threads: of each process on a CPU.
        checkpoint: as of `Trainer.fit`.
        member: which net of an ensemble, if it is one.

    Returns:
        The averaged weights, what `load_model` needs to know, and the history.

    Raises:
        TrainingError: the loss is not finite, or a rank failed.
    """
    given = (recipe, architecture, start, threads, member)
    live = checkpoints.live(checkpoint)
    if ranks.are_there():
        with ranks.joined():
            averaged, history = prepare(*given).fit(checkpoint, live)
            if ranks.index() > 0:
                sys.exit()
    else:
        if (processes := recipe.settings.processes) > 1:
            try:
                ranks.launch(_to_the_end, processes, checkpoint, live, *given)
            except ranks.RankError as error:
                raise TrainingError(f"{error} (a checkpoint, if there is one, is kept: run again to go on)") from error
        averaged, history = prepare(*given).fit(checkpoint, live)
    if live:
        # of a tree's inner folders the guard sees no path
        for folder in (live / "plots/metrics", live / "plots", live):
            files.remove(folder)
    return averaged, about(recipe.cohort, architecture), history


def about(cohort: Cohort, architecture: str) -> dict[str, Any]:
    """What `load_model` needs to know of a model of this cohort: its model.json."""
    return {
        "architecture": architecture,
        "cohort": cohort.about["cohort"],
        "findings": cohort.findings,
        "size_px": cohort.about["size_px"],
    }


def write_history(history: list[dict[str, float]], path: Path) -> None:
    """Write the learning curve as CSV, a row an evaluation."""
    pd.DataFrame(history).to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
