"""What every loss is made of: masked means, the signals that a loss reads, and the features of a net among them.

A target that a data set never annotates is NaN. It is masked *before* the loss: `nan_to_num` afterwards still gives NaN
gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.loss.asymmetric_loss import AsymmetricLossMultiLabel
from torch import Tensor, nn
from torch.nn import functional

from stages.learning import ranks
from stages.nets import nets


@dataclass(frozen=True)
class Features:
    """What a net sees in a batch, before it gives logits.

    Attributes:
        maps: the deepest feature maps, float (batch, channel, height, width).
        embedding: what the classifier reads, float (batch, width).
        classify: the head at single places: vectors of the maps, (place, channel), to logits without the classifier's
            bias, float (place, finding).
        source: what the net computed last before its head, in its own layout: logits and features all come from it.
    """

    maps: Tensor
    embedding: Tensor
    classify: Callable[[Tensor], Tensor]
    source: Tensor

    @property
    def class_maps(self) -> Tensor:
        """The logit of each finding at each place, without bias, float (batch, finding, height, width).

        Where the head is a mean and a linear layer, these are the class activation maps of Zhou et al. (arXiv
        1512.04150), whose mean and the bias make the logit; other heads (EEEA-Net's has a layer more) are read alike.
        """
        batch, channels, height, width = self.maps.shape
        places = self.maps.permute(0, 2, 3, 1).reshape(-1, channels)
        return self.classify(places).reshape(batch, height, width, -1).permute(0, 3, 1, 2)


def with_features(model: Any, images: Tensor) -> tuple[Tensor, Features]:
    """One forward pass of a timm model: the logits of `model(images)`, and the features that they come from.

    Raises:
        ValueError: the net's last layer has no grid.
    """
    source = model.forward_features(images)
    embedding = model.forward_head(source, pre_logits=True)
    classifier: nn.Linear = model.get_classifier()
    channels: int = model.num_features
    place = [channels if size == channels else 1 for size in source.shape[1:]]  # one place, in the net's own layout

    def classify(places: Tensor) -> Tensor:
        read = model.forward_head(places.reshape(-1, *place), pre_logits=True)
        return functional.linear(read, classifier.weight).float()

    maps = nets.as_grid(source, channels, "forward_features", model).float()
    return classifier(embedding).float(), Features(maps, embedding.float(), classify, source)


CROSS_ENTROPY = nn.BCEWithLogitsLoss(reduction="none")


def criterion(settings: Any, targets: np.ndarray) -> nn.Module:
    """The hard labels' loss of each element: logits and targets (batch, finding) to losses of that shape.

    Binary cross-entropy, or the asymmetric loss of Ridnik et al., arXiv 2009.14119 (timm's), in both with weights for
    the positives: for each finding negatives / positives, but `positive_weight_cap` at most; a cap of 1 is off.

    Args:
        settings: `train.teacher` or `train.student` of params.yaml.
        targets: of the training rows, float (rows, findings), NaN where a label does not count.
    """
    weights = None
    if settings.positive_weight_cap != 1:
        positives = np.nansum(targets, axis=0)
        negatives = (~np.isnan(targets)).sum(axis=0) - positives
        ratios = np.divide(negatives, positives, out=np.full(targets.shape[1], np.inf), where=positives > 0)
        weights = torch.from_numpy(np.minimum(ratios, settings.positive_weight_cap).astype(np.float32))
    if settings.asymmetric is None:
        return nn.BCEWithLogitsLoss(reduction="none", pos_weight=weights)
    return AsymmetricLossMultiLabel(**settings.asymmetric.model_dump(), reduction="none", pos_weight=weights)


@dataclass(frozen=True)
class Signals:
    """What a training step knows.

    Attributes:
        student: logits, float (batch, finding).
        target: labels in [0, 1] with unannotated ones as 0, float (batch, finding).
        annotated: where `target` counts, bool (batch, finding).
        criterion: what a hard label costs, see the function of that name.
    """

    student: Tensor
    target: Tensor
    annotated: Tensor
    criterion: Callable[[Tensor, Tensor], Tensor] = CROSS_ENTROPY
    _teacher: Tensor | None = None
    _features: tuple[Features, Features] | None = None

    @property
    def teacher(self) -> Tensor:
        """The teacher's logits of the same views, float (batch, finding).

        Raises:
            ValueError: there is no teacher.
        """
        if self._teacher is None:
            raise ValueError("this loss needs a teacher's logits and was given none")
        return self._teacher

    @property
    def student_features(self) -> Features:
        """What the student sees in the batch.

        Raises:
            ValueError: the loss did not ask for features.
        """
        return self._both()[0]

    @property
    def teacher_features(self) -> Features:
        """What the teacher sees in the same views.

        Raises:
            ValueError: the loss did not ask for features.
        """
        return self._both()[1]

    def _both(self) -> tuple[Features, Features]:
        if self._features is None:
            raise ValueError("this loss needs a teacher's features and was given none")
        return self._features


def signals(
    student: Tensor,
    target: Tensor,
    teacher: Tensor | None = None,
    features: tuple[Features, Features] | None = None,
    criterion: Callable[[Tensor, Tensor], Tensor] = CROSS_ENTROPY,
) -> Signals:
    """What a loss is given.

    Args:
        student: logits.
        target: labels, NaN where there is none: they are split into values and mask.
        teacher: its logits; None for an undistilled model.
        features: the student's and the teacher's; None unless the loss asks for them.
        criterion: what a hard label costs.
    """
    annotated = ~torch.isnan(target)
    return Signals(student, torch.where(annotated, target, 0.0), annotated, criterion, teacher, features)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over the elements where the mask is true; 0 where there are none.

    With several ranks, a rank's share of the mean over all of them, times their number, which averaging over the ranks
    takes out again: so do values and gradients of all masks become those of the whole batch.
    """
    count = ranks.total(mask.sum()).clamp(min=1)
    return (values * mask).sum() * ranks.count() / count


def bce(given: Signals) -> Tensor:
    """The task loss of twins and of most distilled students: the mean of `criterion` over the annotated elements.

    It is binary cross-entropy unless params.yaml weights positives or takes the asymmetric loss.
    """
    return masked_mean(given.criterion(given.student, given.target), given.annotated)


def softened(given: Signals, alpha: float, temperature: float) -> dict[str, Tensor]:
    """The terms of `sigmoid_kd`, which the losses of features add theirs to: `task` and `kd`."""
    chance = torch.sigmoid(given.teacher / temperature)
    kd = functional.binary_cross_entropy_with_logits(given.student / temperature, chance)
    return {"task": alpha * bce(given), "kd": (1 - alpha) * temperature**2 * kd}


def on_one_grid(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (batch, map, height, width) of two nets, both averaged onto the coarser of their two grids.

    As torch's adaptive average pooling, but as a matrix product: on GPUs the pooling has no gradient that is the same
    twice.

    Raises:
        ValueError: the coarser grid has one place, so that there is nothing to compare.
    """
    height, width = (min(first.shape[axis], second.shape[axis]) for axis in (2, 3))
    if height * width == 1:
        raise ValueError(
            f"this loss compares places and needs more than one, got grids of {tuple(first.shape[2:])} and "
            f"{tuple(second.shape[2:])}: raise ingest.size_px in params.yaml, or choose another loss"
        )

    def averaged(maps: Tensor) -> Tensor:
        down, across = (
            functional.adaptive_avg_pool1d(torch.eye(maps.shape[axis], device=maps.device, dtype=maps.dtype), size)
            for axis, size in ((2, height), (3, width))
        )
        return torch.einsum("bmhw,hy,wx->bmyx", maps, down, across)

    return averaged(first), averaged(second)


def undistilled(given: Signals) -> dict[str, Tensor]:
    """The loss of teachers and twins, as named terms."""
    return {"task": bce(given)}
