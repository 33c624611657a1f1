"""Multi-label logits distillation (MLD): the divergence of each finding's two-way distribution from the teacher's.

    L = alpha * BCE(z_s, y) + (1 - alpha) * mean_films sum_findings KL(p_t || p_s)
    KL(p_t || p_s) = p_t log(p_t / p_s) + (1 - p_t) log((1 - p_t) / (1 - p_s)),  p = sigmoid(z)

Yang et al., "Multi-Label Knowledge Distillation", ICCV 2023, arXiv 2308.06453: its term of the logits, without those of
label-wise embeddings. The task term's mean runs over annotated elements, the divergence over all. The second term is 0
when student equals teacher. Beside `sigmoid_kd` at T = 1 it sums where that averages: its gradient is as many times
larger as there are findings.

In params.yaml:

    mld:
      alpha: 0.3                   # weight of the hard labels; the teacher has the rest
"""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from stages.learning.objectives import Signals, bce

NEEDS = "logits"


class Settings(BaseModel):
    """Keys of losses.mld."""

    model_config = ConfigDict(extra="forbid", strict=True)
    alpha: float = Field(ge=0, le=1)


def terms(given: Signals, settings: Settings) -> dict[str, Tensor]:
    """`task` and `kd`, see the module."""
    chance = torch.sigmoid(given.teacher)
    cross, entropy = (
        functional.binary_cross_entropy_with_logits(logits, chance, reduction="none").sum(dim=1).mean()
        for logits in (given.student, given.teacher)
    )
    return {
        "task": settings.alpha * bce(given),
        "kd": (1 - settings.alpha) * (cross - entropy),
    }
