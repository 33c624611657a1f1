"""Which rows of a real label table are drawn, what is true on them, and what the public labels say.

Rows come as a table `image, patient, view, sex, is_human, is_unchanged` with a matrix of facts beside it, (rows,
findings) int8 in the codes of `stages.core.findings`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from stages.core import findings, seeds
from stages.sources import splits


def assign_parts(rows: pd.DataFrame, dataset: str, test_fraction: float, val_fraction: float,
                 human_test: bool) -> np.ndarray:  # fmt: skip
    """The split of each row by its patient; empty for rows of test patients that no human labelled.

    Args:
        rows: needs `patient` and `is_human`.
        human_test: whether the data set's test split keeps human labels only.
    """
    shares = {"test": test_fraction, "train_val": 1 - test_fraction}
    codes, patients = pd.factorize(rows["patient"])
    parts = splits.validation(dataset, patients, val_fraction)
    parts[splits.by_hash("test", dataset, patients, shares) == "test"] = "test"
    parts = parts[codes]
    if human_test:
        parts[(parts == "test") & ~rows["is_human"].to_numpy()] = ""
    return parts


def cap_per_patient(
    rows: pd.DataFrame, parts: np.ndarray, images_per_patient: int, seed: int, dataset: str
) -> np.ndarray:
    """Positions of the rows that may be drawn: of each patient, at most so many, by lot."""
    usable = np.flatnonzero(parts != "")
    lot = seeds.of("phantom", "cap", dataset, seed).permutation(usable)
    owner = rows["patient"].to_numpy()[lot]
    rank = pd.Series(owner).groupby(owner).cumcount()
    return np.sort(lot[rank.to_numpy() < images_per_patient])


def choose_rows(patients: np.ndarray, positive: np.ndarray, names: Sequence[str], images: int, min_positives: int,
                rng: np.random.Generator) -> np.ndarray:  # fmt: skip
    """Pick whole patients by lot until there are `images` rows, those with scarce findings first.

    Args:
        patients: (rows,) identifiers.
        positive: (rows, findings) bool.
        names: the findings' names, for messages.

    Returns:
        Sorted positions of the chosen rows; the last patient may take them a little over `images`.

    Raises:
        ValueError: the table has too few positives, or `images` is too small to hold them.
    """
    short = [f"{n} has {c}" for n, c in zip(names, positive.sum(0), strict=True) if c < min_positives]
    if short:
        raise ValueError(
            f"each finding needs {min_positives} positive rows in each split, but {', '.join(short)} (lower "
            "phantom.min_positives, raise phantom.images_per_patient or drop the finding from datasets.<d>.findings)"
        )
    order, codes = rng.permutation(len(np.unique(patients))), np.unique(patients, return_inverse=True)[1]
    counts = np.zeros((len(order), positive.shape[1]), dtype=np.int64)
    np.add.at(counts, codes, positive)
    sizes = np.bincount(codes)
    taken = np.zeros(len(order), dtype=bool)
    held = np.zeros(positive.shape[1], dtype=np.int64)
    for finding in np.argsort(counts.sum(0), kind="stable"):
        for patient in order[(counts[order, finding] > 0) & ~taken[order]]:
            if held[finding] >= min_positives:
                break
            taken[patient] = True
            held += counts[patient]
    if sizes[taken].sum() > images:
        raise ValueError(
            f"{min_positives} positives of {len(names)} findings need {sizes[taken].sum()} images, got {images} "
            "(raise phantoms.<d>.train_val_images or test_images, or lower phantom.min_positives)"
        )
    total = int(sizes[taken].sum())
    for patient in order[~taken[order]]:
        if total >= images:
            break
        taken[patient] = True
        total += int(sizes[patient])
    return np.flatnonzero(taken[codes])


def decide_truth(
    facts: np.ndarray,
    is_unchanged: np.ndarray,
    prevalence: np.ndarray,
    blank_present: float,
    uncertain_present: float,
    unchanged_present: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """What is on each film: 0 or 1 for every finding.

    An uncertain label hides a finding at the rate `uncertain_present`. Of all blanks, the share `blank_present` hides
    one, common findings more often in proportion to their prevalence, so that rare ones stay rare. A report that says
    "unchanged" hides one finding at the rate `unchanged_present`, drawn by prevalence, and no others.
    """
    truth: np.ndarray = (facts == findings.PRESENT).astype(np.int8)
    luck = rng.random(facts.shape)
    truth[(facts == findings.UNCERTAIN) & (luck < uncertain_present)] = 1
    blank = (facts == findings.BLANK) & ~is_unchanged[:, None]
    expected = float((blank.sum(axis=0) * prevalence).sum())
    if expected > 0:
        truth[blank & (luck < prevalence * blank_present * blank.sum() / expected)] = 1
    hidden = rng.choice(facts.shape[1], size=len(facts), p=prevalence / prevalence.sum())
    hides = is_unchanged & (rng.random(len(facts)) < unchanged_present)
    truth[hides, hidden[hides]] = 1
    return truth


def imply(truth: np.ndarray, names: Sequence[str], implied_by: Mapping[str, Sequence[str]]) -> np.ndarray:
    """The truth with implied findings added: a film with one of the causes also has the effect."""
    implied = truth.copy()
    for effect, causes in implied_by.items():
        implied[:, names.index(effect)] |= truth[:, [names.index(cause) for cause in causes]].max(axis=1)
    return implied


def publish(truth: np.ndarray, facts: np.ndarray, parts: np.ndarray, is_mined: np.ndarray, silence: int, missed: float,
            false_per_true: float, rng: np.random.Generator) -> np.ndarray:  # fmt: skip
    """The facts that the public table states.

    Test rows state the truth. Mined rows of the other splits lose a present finding at the rate `missed`, and get
    `false_per_true` false positives for each true one of the same finding that they keep. Rows that a human labelled,
    uncertain labels and blanks stay as they are.

    Args:
        silence: the fact that a missed finding leaves behind (absent, or blank where the table tells them apart).
    """
    public = facts.copy()
    mined = (is_mined & (parts != "test"))[:, None]
    stated = (facts == findings.PRESENT) & mined
    public[stated & (rng.random(facts.shape) < missed)] = silence
    candidates = (truth == 0) & np.isin(facts, (findings.ABSENT, findings.BLANK, findings.IMPLIED)) & mined
    true_positives = ((public == findings.PRESENT) & mined).sum(0)
    rate = false_per_true * true_positives / np.maximum(candidates.sum(0), 1)
    public[candidates & (rng.random(facts.shape) < rate)] = findings.PRESENT
    is_test = parts == "test"
    public[is_test] = np.where(truth[is_test] == 1, findings.PRESENT, findings.ABSENT)
    return public
