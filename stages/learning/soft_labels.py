"""A teacher's logits of the fixed views of a cohort's training films: computed once, used by every student."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from stages.core import files
from stages.learning.cohort import Cohort
from stages.nets import nets, probability_table


class SoftLabelError(ValueError):
    """Soft labels do not belong to the cohort that they are used with."""


def load_teacher(folder: Path, cohort: Cohort) -> nn.Module:
    """A trained teacher in eval mode.

    Raises:
        SoftLabelError: it has other outputs or another input size than the cohort.
    """
    _require_same(files.read_json(folder / "model.json"), cohort)
    return nets.load_model(folder)[0]


def of_table(folder: Path, cohort: Cohort) -> np.ndarray:
    """The logits of a precomputed teacher, float32 (training rows, findings).

    Raises:
        SoftLabelError: it has other findings than the cohort, or was read for another input size.
        TableError: it lacks a film.
    """
    _require_same(files.read_json(folder / "model.json"), cohort)
    return probability_table.logits(probability_table.load(folder), cohort.train.rows["image"], "training films")


def _require_same(about: dict[str, Any], cohort: Cohort) -> None:
    if about["findings"] != cohort.findings or about["size_px"] != cohort.about["size_px"]:
        raise SoftLabelError(
            f"teacher {about['architecture']} has outputs {about['findings']} at {about['size_px']} px, "
            f"{cohort.about['cohort']} has {cohort.findings} at {cohort.about['size_px']} px: run `make repro`, which "
            "trains it again"
        )


def identity(cohort: Cohort, views: Any, seed: int) -> dict[str, Any]:
    """What soft labels must agree on with the student that uses them."""
    keys = "\n".join(cohort.train.rows["dataset"] + "\t" + cohort.train.rows["image"])
    return {
        "images": len(cohort.train.rows),
        "images_sha256": hashlib.sha256(keys.encode()).hexdigest(),
        "findings": cohort.findings,
        "size_px": cohort.about["size_px"],
        "views": views.model_dump(),
        "seed": seed,
    }


def weights_of(teacher: Path) -> dict[str, str]:
    """File name -> SHA-256, of all that a teacher's folder holds."""
    return {path.name: files.sha256(path) for path in sorted(teacher.iterdir())}


def write(logits: np.ndarray, cohort: Cohort, views: Any, seed: int, folder: Path, teacher: Path) -> None:
    """Write logits (views, training rows, findings) as fp16 beside what they belong to, and the teacher's hashes.

    Raises:
        SoftLabelError: one is not finite, as the teacher gave it or as fp16.
    """
    with np.errstate(over="ignore"):
        half = logits.astype(np.float16)
    if wrong := int((~np.isfinite(half)).sum()):
        raise SoftLabelError(
            f"a teacher's logits must be finite in fp16, got {wrong} of {half.size} that are not: lower "
            "train.teacher.lr in params.yaml"
        )
    folder.mkdir(parents=True)
    with (folder / "logits.npy").open("wb") as file:
        np.save(file, half)
    files.write_json(identity(cohort, views, seed) | {"teacher": weights_of(teacher)}, folder / "soft_labels.json")


def read(folder: Path, cohort: Cohort, views: Any, seed: int, teacher: Path | None = None) -> np.ndarray:
    """The logits, float16 (views, training rows, findings), in a memory map.

    Args:
        folder: of the soft labels.
        cohort: whose training films they must be of.
        views: `views` of params.yaml.
        seed: the run's.
        teacher: the folder of the teacher that must have given them, if it is at hand.

    Raises:
        SoftLabelError: they are of other films, views, findings or of another teacher; the message names what differs.
    """
    theirs, ours = files.read_json(folder / "soft_labels.json"), identity(cohort, views, seed)
    if teacher:
        ours["teacher"] = weights_of(teacher)
    if differing := sorted(key for key in ours if theirs.get(key) != ours[key]):
        raise SoftLabelError(
            f"{folder} was made for other {', '.join(differing)} than cohort {cohort.about['cohort']} has now: "
            "run `make repro`, which computes them again"
        )
    logits: np.ndarray = np.load(folder / "logits.npy", mmap_mode="r")
    return logits
