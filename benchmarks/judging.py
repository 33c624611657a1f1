"""The bootstrap over patients and the maps of all findings, beside loops over scikit-learn and the grad-cam package.

The bootstrap is of the official test set of ChestX-ray14: 25,596 films, 2,797 patients, 14 findings, 1,000 replicates.
A loop over scikit-learn draws the same films of a replicate and asks for one finding after another; it is timed on a
few replicates and scaled.
"""

import warnings
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from sklearn import metrics as sk

from benchmarks import measure
from stages.core import seeds
from stages.explainers import grad_cam
from stages.judging import calibration, metrics, operating
from stages.nets import activations, nets

FILMS, PATIENTS, FINDINGS, REPLICATES = 25_596, 2_797, 14, 1000
LOOPED = 3  # replicates of the loop
BINS, THRESHOLD = 10, 0.5
SIZE_PX, STRIDE, BATCH = 224, 32, 8

Array = NDArray[np.float64]


def films() -> tuple[Array, Array, NDArray[np.int64], NDArray[np.uint16]]:
    """Targets, scores, patients and drawn weights."""
    rng = seeds.of("bench", "judging")
    patients = np.sort(rng.integers(0, PATIENTS, FILMS))
    targets = (rng.random((FILMS, FINDINGS)) < np.linspace(0.01, 0.3, FINDINGS)).astype(float)
    scores = rng.standard_normal(targets.shape) + targets
    return targets, scores, patients, metrics.patient_weights(PATIENTS, REPLICATES, rng)


def areas(of: tuple[Array, Array, NDArray[np.int64], NDArray[np.uint16]]) -> None:
    """AUROC and average precision of all findings in all replicates."""
    metrics.resample(*of)


def all_figures(of: tuple[Array, Array, NDArray[np.int64], NDArray[np.uint16]]) -> None:
    """What `operate` adds: the worth of calls, Brier score, calibration error; and the areas."""
    targets, scores, patients, weights = of
    areas(of)
    stated = calibration.sigmoid(scores)
    operating.figures(stated > THRESHOLD, targets, patients, weights)
    calibration.brier(stated, targets, patients, weights)
    with_all = np.concatenate([np.ones((PATIENTS, 1), weights.dtype), weights], axis=1)
    calibration.calibration_errors(stated, targets, patients, with_all, BINS)


def looped(of: tuple[Array, Array, NDArray[np.int64], NDArray[np.uint16]], is_all: bool) -> None:
    """The same by scikit-learn, in some replicates; AUROC alone, or all that it has of the figures."""
    targets, scores, patients, weights = of
    stated = calibration.sigmoid(scores)
    for replicate in range(LOOPED):
        rows = np.repeat(np.arange(FILMS), weights[patients, replicate])
        for finding in range(FINDINGS):
            there, given = targets[rows, finding], stated[rows, finding]
            sk.roc_auc_score(there, given)
            if is_all:
                sk.average_precision_score(there, given)
                sk.brier_score_loss(there, given)
                sk.precision_recall_fscore_support(there, given > THRESHOLD, average="binary", zero_division=0)


def maps(model: torch.nn.Module, batch: torch.Tensor) -> None:
    """Maps of all findings from one forward pass."""
    grad_cam.maps(model, batch, [*range(FINDINGS)], STRIDE)


def maps_looped(model: torch.nn.Module, batch: torch.Tensor) -> None:
    """The same by the grad-cam package, a finding after another."""
    layer, _ = activations.target_layer(model, STRIDE)
    for finding in range(FINDINGS):
        with GradCAM(model, [model.get_submodule(layer)]) as cam:
            cam(batch, [ClassifierOutputTarget(finding)] * len(batch))


def run() -> list[measure.Line]:
    """The lines on judging."""
    torch.set_num_threads(1)
    of, lines = films(), []
    for what, ours, is_all in (
        ("AUROC and average precision, to a loop over scikit-learn's AUROC", areas, False),
        ("these, calls, Brier score and calibration error, to a loop over scikit-learn's", all_figures, True),
    ):
        timed = measure.in_turn(partial(ours, of), partial(looped, of, is_all), count=3)
        scaled = [timed[0], [seconds * REPLICATES / LOOPED for seconds in timed[1]]]
        lines.append(measure.compare(f"{REPLICATES:,} replicates: {what}", scaled, "replicates", REPLICATES, 30, True))
    model = nets.build_model("eeea_net_c2", FINDINGS, SIZE_PX).eval()
    batch = torch.randn(BATCH, 3, SIZE_PX, SIZE_PX, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        timed = measure.in_turn(partial(maps, model, batch), partial(maps_looped, model, batch), count=5)
    what = f"maps of {FINDINGS} findings of {BATCH} films at {SIZE_PX} px, to a loop over the grad-cam package"
    return [*lines, measure.compare(what, timed, "films", BATCH, 30, True)]
