"""Attention transfer: the student looks where the teacher looks.

    L = alpha * BCE(z_s, y) + (1 - alpha) * T^2 * KD(z_s, z_t) + weight * mean_films sum_places (Q_s - Q_t)^2
    Q = A / ||A||,  A = mean over channels of F^2

F are the deepest feature maps, KD is `sigmoid_kd`'s. Zagoruyko & Komodakis, "Paying More Attention to Attention",
ICLR 2017, arXiv 1612.03928; it takes several layers, this one the last. Student and teacher need not have as many
channels; where their grids differ, A is averaged onto the coarser. The third term is 0 when student equals teacher, and
at most 2 * weight. It does not see how large the features are.

In params.yaml:

    attention_transfer:
      alpha: 0.3                   # weight of the hard labels; the teacher's logits have the rest
      temperature: 2.0             # softens both sides' logits
      weight: 1.0                  # of the attention, on top
"""

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from stages.learning.objectives import Signals, on_one_grid, softened

NEEDS = "features"


class Settings(BaseModel):
    """Keys of losses.attention_transfer."""

    model_config = ConfigDict(extra="forbid", strict=True)
    alpha: float = Field(ge=0, le=1)
    temperature: float = Field(gt=0)
    weight: float = Field(ge=0)


def terms(given: Signals, settings: Settings) -> dict[str, Tensor]:
    """`task`, `kd` and `attention`, see the module."""
    both = given.student_features.maps, given.teacher_features.maps
    energy = [maps.square().mean(dim=1, keepdim=True) for maps in both]
    student, teacher = (functional.normalize(maps.flatten(1), dim=1) for maps in on_one_grid(*energy))
    return {
        **softened(given, settings.alpha, settings.temperature),
        "attention": settings.weight * (student - teacher).square().sum(dim=1).mean(),
    }
