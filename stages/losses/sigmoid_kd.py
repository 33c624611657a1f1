"""Sigmoid distillation: each finding is its own binary problem.

    L = alpha * BCE(z_s, y) + (1 - alpha) * T^2 * mean_m BCE(z_s / T, sigmoid(z_t / T))

The first mean runs over annotated elements, the second over all: the teacher also speaks where a data set is silent.
Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, with the sigmoid in place of the
softmax, since findings do not exclude each other. When student equals teacher the second term is T^2 times the mean
entropy of sigmoid(z_t / T), and its gradient is 0.

In params.yaml:

    sigmoid_kd:
      alpha: 0.3                   # weight of the hard labels; the teacher has the rest
      temperature: 2.0             # softens both sides
"""

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from stages.learning.objectives import Signals, softened

NEEDS = "logits"


class Settings(BaseModel):
    """Keys of losses.sigmoid_kd."""

    model_config = ConfigDict(extra="forbid", strict=True)
    alpha: float = Field(ge=0, le=1)
    temperature: float = Field(gt=0)


def terms(given: Signals, settings: Settings) -> dict[str, Tensor]:
    """`task` and `kd`, see the module."""
    return softened(given, settings.alpha, settings.temperature)
