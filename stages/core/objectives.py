"""What every loss is made of: masked means, and the signals that a loss reads.

A target that a data set never annotates is NaN. It is masked *before* the loss: `nan_to_num` afterwards still gives NaN
gradients.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Signals:
    """What a training step knows.

    Attributes:
        student: logits, float (batch, finding).
        target: labels in [0, 1] with unannotated ones as 0, float (batch, finding).
        annotated: where `target` counts, bool (batch, finding).
        teacher: the teacher's logits of the same views, float (batch, finding); None for an undistilled model.
    """

    student: Tensor
    target: Tensor
    annotated: Tensor
    teacher: Tensor | None = None

    @property
    def soft(self) -> Tensor:
        """The teacher's logits.

        Raises:
            ValueError: there is no teacher.
        """
        if self.teacher is None:
            raise ValueError("this loss needs a teacher's logits and was given none")
        return self.teacher


def signals(student: Tensor, target: Tensor, teacher: Tensor | None = None) -> Signals:
    """Split a target with NaN into values and mask."""
    annotated = ~torch.isnan(target)
    return Signals(student, torch.where(annotated, target, 0.0), annotated, teacher)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over the elements where the mask is true; 0 where there are none."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def bce(given: Signals) -> Tensor:
    """Binary cross-entropy over the annotated elements, the task loss of twins and of most distilled students."""
    loss = functional.binary_cross_entropy_with_logits(given.student, given.target, reduction="none")
    return masked_mean(loss, given.annotated)


def undistilled(given: Signals) -> dict[str, Tensor]:
    """The loss of teachers and twins, as named terms."""
    return {"task": bce(given)}
