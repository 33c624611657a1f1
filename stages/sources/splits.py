"""Patients to splits, by a hash of the patient alone, so that no added or removed row moves anybody."""

from collections.abc import Iterable, Mapping

import numpy as np

from stages.core import seeds

SPLITS = ("train", "val", "test")


def by_hash(purpose: str, dataset: str, patients: Iterable[str], shares: Mapping[str, float]) -> np.ndarray:
    """The part that each patient falls in.

    Args:
        purpose: which division this is ("validation", "test", ...): divisions are independent of each other.
        dataset: the data set's name.
        patients: the patients' identifiers within the data set.
        shares: part -> share of patients, in the order that the unit interval is cut; the shares sum to 1.

    Returns:
        The parts' names, object (patients,).
    """
    points = seeds.units("split", purpose, dataset, each=patients)
    edges = np.cumsum(list(shares.values()))[:-1]
    return np.array(list(shares), dtype=object)[np.searchsorted(edges, points, side="right")]


def validation(dataset: str, patients: Iterable[str], val_fraction: float) -> np.ndarray:
    """`val` for `val_fraction` of the train_val patients, `train` for the others, object (patients,)."""
    return by_hash("validation", dataset, patients, {"val": val_fraction, "train": 1 - val_fraction})
