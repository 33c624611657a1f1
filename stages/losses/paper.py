"""The paper's loss: focal binary cross-entropy + T^2 * MSE of softened class distributions.

    L = alpha * FL(z_s, y) + (1 - alpha) * weight * T^2 * mean (softmax(z_s / T) - softmax(z_t / T))^2
    FL = mean_m (1 - p_y)^gamma * BCE,  p_y = sigmoid(z_s) where y = 1, 1 - sigmoid(z_s) where y = 0

Termritthikun et al., "Explainable Knowledge Distillation for On-device Chest X-Ray Classification", arXiv 2305.06244;
the focal part is Lin et al., arXiv 1708.02002. The paper states neither the constants nor the reduction: T = 2,
alpha = 0.5, gamma = 2 and the softmax come from a re-implementation and are unsure, hence settings. `reduction` is
`mean` over all elements or `sum` over findings and mean over films. The second term is 0 when student equals teacher;
it does not see a constant added to all logits of a film. The focal term has its own way with rare findings:
`asymmetric` and `positive_weight_cap` of the training do not touch it.

In params.yaml:

    paper:
      alpha: 0.5                   # weight of the hard labels; the teacher has the rest
      temperature: 2.0             # softens both sides
      gamma: 2.0                   # focusing of the focal term
      weight: 1.0                  # of the distillation term, on top of 1 - alpha
      reduction: sum               # mean | sum over findings, of the squared differences
"""

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
    difference = torch.softmax(given.student / temperature, dim=1) - torch.softmax(given.teacher / temperature, dim=1)
    squares = difference.square()
    kd = squares.mean() if settings.reduction == "mean" else squares.sum(dim=1).mean()
    return {
        "task": settings.alpha * focal(given, settings.gamma),
        "kd": (1 - settings.alpha) * settings.weight * temperature**2 * kd,
    }
