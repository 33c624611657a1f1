"""A small batch on which every loss is tried before any work: else a fault of it shows when its teacher has trained."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from stages.learning import objectives

FILMS, FINDINGS, SIDE = 4, 3, 4
CHANNELS = (6, 5)  # of the student's maps, and of the teacher's


def terms_of(loss: ModuleType, settings: Any) -> Any:
    """What `terms` of a loss's file returns of the batch; a label is missing in it."""
    random = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(FILMS, FINDINGS, generator=random) for _ in CHANNELS)
    target = (torch.rand(FILMS, FINDINGS, generator=random) > 0.5).float()
    target[0, 0] = math.nan
    own, theirs = (torch.rand(FILMS, channels, SIDE, SIDE, generator=random) for channels in CHANNELS)
    features = _features(own.requires_grad_(), random), _features(theirs, random)
    given = objectives.signals(student.requires_grad_(), target, teacher, features)
    make: Callable[[int, int], nn.Module] | None = getattr(loss, "adapter", None)
    return loss.terms(given, settings=settings, **({} if make is None else {"adapter": make(*CHANNELS)}))


def _features(maps: Tensor, random: torch.Generator) -> objectives.Features:
    """Features of a net whose head is a mean over places and a linear layer."""
    weights = torch.randn(FINDINGS, maps.shape[1], generator=random)
    return objectives.Features(maps, maps.mean(dim=(2, 3)), lambda places: places @ weights.T, maps)
