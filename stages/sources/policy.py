"""What a label that is no yes or no becomes in training, by `policies` of params.yaml."""

from typing import Any

import numpy as np
import pandas as pd

from stages.core import findings, seeds

SMOOTHED = (0.55, 0.85)  # what `smoothed` draws an uncertain label from (Pham et al. 2021, U-Ones with smoothing)
FIXED = {"ones": 1.0, "zeros": 0.0, "ignore": np.nan, "teacher": np.nan}
CERTAIN = {findings.PRESENT: 1.0, findings.ABSENT: 0.0, findings.IMPLIED: 0.0, findings.MISSING: np.nan}


def target(facts: np.ndarray, finding: str, dataset: str, images: pd.Series, policies: Any) -> np.ndarray:
    """One finding's training targets.

    Args:
        facts: int8 (rows,).
        finding: its name.
        dataset: whose facts they are.
        images: the rows' keys, from which `smoothed` draws.
        policies: `policies.<dataset>` of params.

    Returns:
        float32 (rows,); NaN is masked before the loss, and with policy `teacher` left to the soft label.

    Raises:
        ValueError: a blank is to be smoothed.
    """
    values = np.full(len(facts), np.nan, np.float32)
    for fact, value in CERTAIN.items():
        values[facts == fact] = value
    for kind, fact in (("uncertain", findings.UNCERTAIN), ("blank", findings.BLANK)):
        chosen = getattr(policies, kind)
        policy = chosen.per_finding.get(finding, chosen.default)
        at = np.flatnonzero(facts == fact)
        if policy != "smoothed":
            values[at] = FIXED[policy]
        else:  # smoothed, which only an uncertain label can be
            low, high = SMOOTHED
            luck = [seeds.unit("smoothed", dataset, image, finding) for image in images.iloc[at]]
            values[at] = low + (high - low) * np.array(luck)
    return values
