"""Logit matching: the mean squared difference of the logits.

    L = alpha * BCE(z_s, y) + (1 - alpha) * weight * mean (z_s - z_t)^2

Ba & Caruana, "Do Deep Nets Really Need to be Deep?", NIPS 2014, arXiv 1312.6184. The task term's mean runs over
annotated elements, the second over all. With weight 1/8 the second term is the limit of `sigmoid_kd`'s, less its
minimum, as T grows: T^2 * KL tends to (z_s - z_t)^2 / 8. It is 0 when student equals teacher.

In params.yaml:

    logit_mse:
      alpha: 0.3                   # weight of the hard labels; the teacher has the rest
      weight: 0.125                # of the squared difference, on top of 1 - alpha
"""

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from stages.learning.objectives import Signals, bce

NEEDS = "logits"


class Settings(BaseModel):
    """Keys of losses.logit_mse."""

    model_config = ConfigDict(extra="forbid", strict=True)
    alpha: float = Field(ge=0, le=1)
    weight: float = Field(ge=0)


def terms(given: Signals, settings: Settings) -> dict[str, Tensor]:
    """`task` and `kd`, see the module."""
    return {
        "task": settings.alpha * bce(given),
        "kd": (1 - settings.alpha) * settings.weight * functional.mse_loss(given.student, given.teacher),
    }
