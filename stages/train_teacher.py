"""Train a teacher on a cohort: a net, or each net of an ensemble; of a table of probabilities, read it.

Reads the cohort and the teacher's start; writes weights (of a table: logits), what is needed to load them, and the
learning curve. An ensemble's curve has its members' rows one after the other, then the ensemble's own in the last row;
a table's has one row. Stops on a cohort without training or validation films, on a checkpoint that does not fit, on a
loss that is not finite, and on a table that lacks a film or a finding of the cohort or holds what is no probability.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from stages.core import arguments, files, params, plugins
from stages.learning import checkpoints, objectives, training
from stages.learning.cohort import Cohort, load_cohort, mean_auroc
from stages.learning.trainer import Recipe
from stages.nets import nets, probability_table

COOLEST, HOTTEST = 0.05, 20.0  # temperatures are sought between these

Write = Callable[[dict[str, Any], Path], None]
Teacher = tuple[Write, list[dict[str, float]]]  # what writes its folder, and its curve


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature T with the least binary cross-entropy of `logits / T`, over the elements with a target.

    Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599, with a sigmoid for each finding.

    Args:
        logits: (film, finding).
        targets: (film, finding), NaN where a label does not count.
    """
    annotated = ~np.isnan(targets)
    z, y = logits[annotated].astype(np.float64), targets[annotated].astype(np.float64)

    def bce(log_temperature: float) -> float:
        scaled = z / np.exp(log_temperature)
        return float((np.logaddexp(0, scaled) - y * scaled).mean())

    return float(np.exp(minimize_scalar(bce, bounds=(np.log(COOLEST), np.log(HOTTEST)), method="bounded").x))


def train_net(cohort: Cohort, name: str, start: Any, given: tuple[Any, ...], kept: Path) -> Teacher:
    """A net (arguments as of `TEACHERS`)."""
    settings, views, seed, threads = given
    names = ("teacher", cohort.about["cohort"], name)
    recipe = Recipe(cohort, objectives.undistilled, settings, views, seed, names)
    model, _, history = training.train(recipe, name, start, threads, kept / "last.pt")
    return lambda about, folder: nets.write(model, about, folder), history


def train_ensemble(cohort: Cohort, name: str, start: Any, given: tuple[Any, ...], kept: Path) -> Teacher:
    """Each net of an ensemble with a seed of its own, then its temperature on validation."""
    settings, views, seed, threads = given
    members: list[nn.Module] = []
    history: list[dict[str, float]] = []
    logits, temperatures = [], []
    for member, _ in enumerate(plugins.constants("models", name)["MEMBERS"]):
        names = ("teacher", cohort.about["cohort"], name, member)
        recipe = Recipe(cohort, objectives.undistilled, settings, views, seed, names)
        net, _, rows = training.train(recipe, name, start, threads, kept / f"{member}.pt", member)
        films = nets.in_batches(cohort.val.films, 4 * settings.batch_size)
        logits.append(nets.logits(net, films, next(net.parameters()).device))
        temperatures.append(fit_temperature(logits[-1], cohort.val.targets))
        history += [{"member": member} | row | {"step": member * settings.steps + row["step"]} for row in rows]
        members.append(net)
    ensemble = nets.Ensemble(members)
    ensemble.temperatures.copy_(torch.tensor(temperatures))
    mean = np.mean([z / temperature for z, temperature in zip(logits, temperatures, strict=True)], axis=0)
    history.append({"step": history[-1]["step"], "val_auroc": mean_auroc(mean, cohort.val)})
    return lambda about, folder: nets.write(ensemble, about, folder), history


def read_table(cohort: Cohort, name: str, start: Any, _given: tuple[Any, ...], _kept: Path) -> Teacher:
    """A table of probabilities, which must have every training and validation film."""
    given = plugins.constants("models", name)
    table = probability_table.read(
        Path(start.checkpoint), start.checkpoint_sha256, given["CLIP"], cohort.findings, given.get("COLUMNS")
    )
    probability_table.logits(table, cohort.train.rows["image"], "training films")
    scores = probability_table.logits(table, cohort.val.rows["image"], "validation films")
    history = [{"step": 0.0, "val_auroc": mean_auroc(scores, cohort.val)}]
    return lambda about, folder: probability_table.write(table, about, folder), history


# kind -> what makes it, from (cohort, name, entry in params.yaml, (settings, views, seed, threads), checkpoint folder)
TEACHERS = {"net": train_net, "ensemble": train_ensemble, "table": read_table}


def main(argv: list[str] | None = None) -> None:
    """Parse, load, train, write."""
    args = arguments.parser(__doc__, "cohort", "teacher").parse_args(argv)
    seed, threads, views, settings, start = params.load(
        "seed", "threads", "views", "train.teacher", f"teachers.{args.teacher}"
    )
    cohort = load_cohort(files.input(f"data/cohorts/{args.cohort}"))
    plugins.load("models", args.teacher)
    make = TEACHERS[plugins.model_kind(args.teacher)]
    with checkpoints.folder(f"teacher-{args.cohort}-{args.teacher}") as kept:
        write, history = make(cohort, args.teacher, start, (settings, views, seed, threads), kept)
        with files.output(f"data/models/teacher/{args.cohort}/{args.teacher}") as made:
            write(training.about(cohort, args.teacher), made)
        with files.output(f"data/curves/teacher/{args.cohort}/{args.teacher}.csv") as made:
            training.write_history(history, made)


if __name__ == "__main__":
    main()
