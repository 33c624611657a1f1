"""DIST: the student's probabilities need only correlate with the teacher's, not equal them.

    L = alpha * BCE(z_s, y) + (1 - alpha) * T^2 * (inter * L_inter + intra * L_intra),  p = sigmoid(z / T)
    L_inter = 1 - mean over films of Pearson's r between the findings' p_s and p_t
    L_intra = 1 - mean over findings of Pearson's r between the films' p_s and p_t, within the batch

Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv 2205.10536. The paper softens with
the softmax; findings do not exclude each other, and a softmax would make one finding's r depend on the others' logits,
hence the sigmoid. Correlations run over all elements, annotated or not. Both terms are 0 when student equals teacher
(and when its probabilities are any rising linear function of the teacher's). Where one side does not vary, r counts
as 0. Of several ranks each correlates its own films.

In params.yaml:

    dist_corr:
      alpha: 0.3                   # weight of the hard labels; the teacher has the rest
      temperature: 2.0             # softens both sides
      inter: 1.0                   # weight of the order of findings within a film
      intra: 1.0                   # weight of the order of films within a finding
"""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from stages.learning.objectives import Signals, bce

NEEDS = "logits"


class Settings(BaseModel):
    """Keys of losses.dist_corr."""

    model_config = ConfigDict(extra="forbid", strict=True)
    alpha: float = Field(ge=0, le=1)
    temperature: float = Field(gt=0)
    inter: float = Field(ge=0)
    intra: float = Field(ge=0)


def decorrelation(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """1 - the mean of Pearson's r along a dimension."""
    student, teacher = (values - values.mean(dim=dim, keepdim=True) for values in (student, teacher))
    return 1 - functional.cosine_similarity(student, teacher, dim=dim).mean()


def terms(given: Signals, settings: Settings) -> dict[str, Tensor]:
    """`task`, `inter` and `intra`, see the module."""
    student, teacher = (torch.sigmoid(z / settings.temperature) for z in (given.student, given.teacher))
    scale = (1 - settings.alpha) * settings.temperature**2
    return {
        "task": settings.alpha * bce(given),
        "inter": scale * settings.inter * decorrelation(student, teacher, dim=1),
        "intra": scale * settings.intra * decorrelation(student, teacher, dim=0),
    }
