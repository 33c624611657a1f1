"""Patients to splits, by a hash of the patient alone, so that no added or removed row moves anybody."""

from collections.abc import Mapping

from stages.core import seeds

SPLITS = ("train", "val", "test")


def by_hash(purpose: str, dataset: str, patient: str, shares: Mapping[str, float]) -> str:
    """The part that a patient falls in.

    Args:
        purpose: which division this is ("validation", "test", ...): divisions are independent of each other.
        dataset: the data set's name.
        patient: the patient's identifier within the data set.
        shares: part -> share of patients, in the order that the unit interval is cut; the shares sum to 1.
    """
    point = seeds.unit("split", purpose, dataset, patient)
    edge = 0.0
    for part, share in shares.items():
        edge += share
        if point < edge:
            return part
    return part


def validation(dataset: str, patient: str, val_fraction: float) -> str:
    """`val` for `val_fraction` of the train_val patients, `train` for the others."""
    return by_hash("validation", dataset, patient, {"val": val_fraction, "train": 1 - val_fraction})
