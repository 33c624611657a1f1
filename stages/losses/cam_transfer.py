"""Class-map transfer: for a finding that is present, the student points where the teacher points.

    L = alpha * BCE(z_s, y) + (1 - alpha) * T^2 * KD(z_s, z_t) + weight * mean_present sum_places (Q_s - Q_t)^2
    Q = M / ||M||,  M = ReLU(sum_c w_c F_c), a finding's class activation map

F are the deepest feature maps, w the classifier's weights of the finding (a head with more layers is read place by
place), KD is `sigmoid_kd`'s. The mean runs over pairs of film and finding that are annotated as present, not over all
as `attention_transfer`'s over films does; it is 0 where a batch has none. The maps are those of Zhou et al., "Learning
Deep Features for Discriminative Localization", CVPR 2016, arXiv 1512.04150; that a student matches its teacher's class
maps is the idea of Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023, arXiv 2304.12777,
which takes all classes and no ReLU. Where the grids differ, M is averaged onto the coarser. The third term is 0 when
student equals teacher, and at most 2 * weight. A map without a positive place stays 0, and has no gradient.

In params.yaml:

    cam_transfer:
      alpha: 0.3                   # weight of the hard labels; the teacher's logits have the rest
      temperature: 2.0             # softens both sides' logits
      weight: 1.0                  # of the class maps, on top
"""

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from stages.learning.objectives import Signals, masked_mean, on_one_grid, softened

NEEDS = "features"


class Settings(BaseModel):
    """Keys of losses.cam_transfer."""

    model_config = ConfigDict(extra="forbid", strict=True)
    alpha: float = Field(ge=0, le=1)
    temperature: float = Field(gt=0)
    weight: float = Field(ge=0)


def terms(given: Signals, settings: Settings) -> dict[str, Tensor]:
    """`task`, `kd` and `maps`, see the module."""
    evidence = given.student_features.class_maps.relu(), given.teacher_features.class_maps.relu()
    student, teacher = (functional.normalize(maps.flatten(2), dim=2) for maps in on_one_grid(*evidence))
    present = given.annotated & (given.target > 0.5)
    return {
        **softened(given, settings.alpha, settings.temperature),
        "maps": settings.weight * masked_mean((student - teacher).square().sum(dim=2), present),
    }
