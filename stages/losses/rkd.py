"""Relational distillation: films that the teacher finds alike, the student finds alike.

    L = alpha * BCE(z_s, y) + (1 - alpha) * T^2 * KD(z_s, z_t) + distance * L_distance + angle * L_angle
    L_distance = mean_ij H(d_s(i, j) - d_t(i, j)),  d(i, j) = ||e_i - e_j|| / its mean over the batch's unlike pairs
    L_angle = mean_ijk H(c_s(i, j, k) - c_t(i, j, k)),  c(i, j, k) = cos of the angle at film i between films j and k

e is the embedding, what the classifier reads; H is Huber's loss (x^2 / 2 up to 1, then |x| - 1/2); KD is that of
`sigmoid_kd`. Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068. As in the authors' code the
means run over all i, j, k, the trivial ones included. Student and teacher need not have embeddings of one width. Both
terms are 0 when student equals teacher, and when its embedding is the teacher's moved, turned, mirrored or scaled.
Memory grows with batch^2 * width and batch^3. Of several ranks each compares its own films.

In params.yaml:

    rkd:
      alpha: 0.3                   # weight of the hard labels; the teacher's logits have the rest
      temperature: 2.0             # softens both sides' logits
      distance: 1.0                # weight of the distances between films, on top
      angle: 2.0                   # weight of the angles between films, on top
"""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from stages.learning.objectives import Signals, softened

NEEDS = "features"


class Settings(BaseModel):
    """Keys of losses.rkd."""

    model_config = ConfigDict(extra="forbid", strict=True)
    alpha: float = Field(ge=0, le=1)
    temperature: float = Field(gt=0)
    distance: float = Field(ge=0)
    angle: float = Field(ge=0)


def relations(embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (film, film) in units of their mean, and cosines (film, film, film); 0 where two films are one point.

    Args:
        embedding: (film, width).
    """
    offsets = embedding[None] - embedding[:, None]  # (i, j, width): from film i to film j
    lengths = torch.linalg.vector_norm(offsets, dim=2)
    units = offsets / (lengths + (lengths == 0))[..., None]
    mean = lengths.sum() / (lengths > 0).sum().clamp(min=1)  # of this rank's films, as all here
    return lengths / (mean + (mean == 0)), torch.bmm(units, units.transpose(1, 2))


def terms(given: Signals, settings: Settings) -> dict[str, Tensor]:
    """`task`, `kd`, `distance` and `angle`, see the module."""
    student, teacher = relations(given.student_features.embedding), relations(given.teacher_features.embedding)
    distance, angle = (functional.smooth_l1_loss(ours, theirs) for ours, theirs in zip(student, teacher, strict=True))
    return {
        **softened(given, settings.alpha, settings.temperature),
        "distance": settings.distance * distance,
        "angle": settings.angle * angle,
    }
