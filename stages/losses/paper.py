"""The paper's loss: focal binary cross-entropy + T^2 * MSE of softened outputs.

    L = alpha * FL(z_s, y) + (1 - alpha) * weight * T^2 * mean (soften(z_s / T) - soften(z_t / T))^2
    FL = mean_m (1 - p_y)^gamma * BCE,  p_y = sigmoid(z_s) where y = 1, 1 - sigmoid(z_s) where y = 0

Termritthikun et al., "Explainable Knowledge Distillation for On-device Chest X-Ray Classification", arXiv 2305.06244;
the focal part is Lin et al., arXiv 1708.02002. The paper says "focal binary cross-entropy" and "MSE of softened
outputs", and states neither constants nor reduction nor how outputs are softened: T = 2, alpha = 0.5, gamma = 2 and
the softmax come from a re-implementation and are unsure, hence settings. `softening` is `sigmoid`, each finding by
itself, or `softmax` over findings, which does not see a constant added to all logits of a film. `reduction` is `mean`
over all elements or `sum` over findings and mean over films. With gamma 0 the focal term is plain cross-entropy. The
second term is 0 when student equals teacher. The focal term has its own way with rare findings: `asymmetric` and
`positive_weight_cap` of the training do not touch it.

In params.yaml:

    paper:
      alpha: 0.5                   # weight of the hard labels; the teacher has the rest
      temperature: 2.0             # softens both sides
      gamma: 2.0                   # focusing of the focal term
      weight: 1.0                  # of the distillation term, on top of 1 - alpha
      softening: softmax           # sigmoid | softmax over findings
      reduction: sum               # mean | sum over findings, of the squared differences
"""

from functools import partial
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from stages.learning.objectives import Signals, masked_mean

NEEDS = "logits"


class Settings(BaseModel):
    """Keys of losses.paper."""

    model_config = ConfigDict(extra="forbid", strict=True)
    alpha: float = Field(ge=0, le=1)
    temperature: float = Field(gt=0)
    gamma: float = Field(ge=0)
    weight: float = Field(ge=0)
    softening: Literal["sigmoid", "softmax"]
    reduction: Literal["mean", "sum"]


def focal(given: Signals, gamma: float) -> Tensor:
    """Focal binary cross-entropy over the annotated elements."""
    loss = functional.binary_cross_entropy_with_logits(given.student, given.target, reduction="none")
    chance = torch.sigmoid(given.student)
    miss = given.target * (1 - chance) + (1 - given.target) * chance
    return masked_mean(miss.clamp(min=torch.finfo(miss.dtype).tiny) ** gamma * loss, given.annotated)


def terms(given: Signals, settings: Settings) -> dict[str, Tensor]:
    """`task` and `kd`, see the module."""
    temperature = settings.temperature
    soften = torch.sigmoid if settings.softening == "sigmoid" else partial(torch.softmax, dim=1)
    difference = soften(given.student / temperature) - soften(given.teacher / temperature)
    squares = difference.square()
    kd = squares.mean() if settings.reduction == "mean" else squares.sum(dim=1).mean()
    return {
        "task": settings.alpha * focal(given, settings.gamma),
        "kd": (1 - settings.alpha) * settings.weight * temperature**2 * kd,
    }
