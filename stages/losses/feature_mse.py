"""Feature matching (FitNets' hint): the student's deepest maps, projected, equal the teacher's.

    L = alpha * BCE(z_s, y) + (1 - alpha) * T^2 * KD(z_s, z_t) + weight * mean (r(F_s) - F_t)^2

F are the deepest feature maps, KD is `sigmoid_kd`'s, and r is the adapter: a 1x1 convolution from the student's
channels to the teacher's, which trains with the student and is dropped at the end. Romero et al., "FitNets: Hints for
Thin Deep Nets", ICLR 2015, arXiv 1412.6550; it matches a middle layer before distillation starts, this one the last
layer at the same time. Where the grids differ, F is averaged onto the coarser; the mean runs over films, channels and
places. The third term is 0 when student equals teacher and r is the identity. It does see how large the features are,
so that a weight suits one teacher; with 1 it hardly pulls beside the task (the learning curve has the ratio).

In params.yaml:

    feature_mse:
      alpha: 0.3                   # weight of the hard labels; the teacher's logits have the rest
      temperature: 2.0             # softens both sides' logits
      weight: 100.0                # of the features, on top
"""

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from stages.learning.objectives import Signals, on_one_grid, softened

NEEDS = "features"


class Settings(BaseModel):
    """Keys of losses.feature_mse."""

    model_config = ConfigDict(extra="forbid", strict=True)
    alpha: float = Field(ge=0, le=1)
    temperature: float = Field(gt=0)
    weight: float = Field(ge=0)


def adapter(student: int, teacher: int) -> nn.Module:
    """A projection of so many channels of maps to so many."""
    return nn.Conv2d(student, teacher, kernel_size=1)


def terms(given: Signals, settings: Settings, adapter: nn.Module) -> dict[str, Tensor]:
    """`task`, `kd` and `features`, see the module."""
    student, teacher = on_one_grid(given.student_features.maps, given.teacher_features.maps)
    return {
        **softened(given, settings.alpha, settings.temperature),
        "features": settings.weight * functional.mse_loss(adapter(student), teacher),
    }
