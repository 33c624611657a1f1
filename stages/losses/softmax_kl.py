"""Softmax distillation: the findings of a film as one distribution.

    L = alpha * BCE(z_s, y) + (1 - alpha) * T^2 * mean_films KL(softmax(z_t / T) || softmax(z_s / T))

Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531. Findings do not exclude each other, so
that this is a baseline: it teaches which finding is likelier than which, and does not see a constant added to all
logits of a film. The divergence runs over all findings, annotated or not. It is 0 when student equals teacher.

In params.yaml:

    softmax_kl:
      alpha: 0.3                   # weight of the hard labels; the teacher has the rest
      temperature: 2.0             # softens both sides
"""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from stages.learning.objectives import Signals, bce

NEEDS = "logits"


class Settings(BaseModel):
    """Keys of losses.softmax_kl."""

    model_config = ConfigDict(extra="forbid", strict=True)
    alpha: float = Field(ge=0, le=1)
    temperature: float = Field(gt=0)


def terms(given: Signals, settings: Settings) -> dict[str, Tensor]:
    """`task` and `kd`, see the module."""
    student, teacher = (torch.log_softmax(z / settings.temperature, dim=1) for z in (given.student, given.teacher))
    kd = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return {
        "task": settings.alpha * bce(given),
        "kd": (1 - settings.alpha) * settings.temperature**2 * kd,
    }
