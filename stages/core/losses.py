"""Distillation losses made ready for a training: one with its settings, or a weighted sum of several."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from stages.core.objectives import Signals
from stages.core.training import Adapter


@dataclass(frozen=True)
class Loss:
    """A loss with its settings.

    Attributes:
        terms: signals, and the adapter where there is one, to named terms.
        needs_features: whether the teacher runs beside the student.
        adapter: makes what trains beside the student for this loss; None where nothing does.
    """

    terms: Callable[..., dict[str, Tensor]]
    needs_features: bool
    adapter: Adapter | None


def with_settings(plugin: ModuleType, given: dict[str, Any]) -> Loss:
    """A loss file with its entry of params.yaml."""
    terms = partial(plugin.terms, settings=plugin.Settings.model_validate(given))
    return Loss(terms, plugin.NEEDS == "features", getattr(plugin, "adapter", None))


def weighted_sum(parts: Mapping[str, Loss], weights: Mapping[str, float]) -> Loss:
    """Several losses as one: `task` is the weighted sum of their tasks, the other terms are `<part>_<term>`.

    The order of the parts does not count, to the last digit: DVC does not see it.
    """
    parts = dict(sorted(parts.items()))
    adapted = {name: part.adapter for name, part in parts.items() if part.adapter}
    return Loss(
        partial(_terms_of_sum, parts=parts, weights=dict(weights)),
        any(part.needs_features for part in parts.values()),
        partial(_adapters_of_sum, makers=adapted) if adapted else None,
    )


def _terms_of_sum(
    given: Signals, parts: dict[str, Loss], weights: dict[str, float], adapter: nn.ModuleDict | None = None
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, part in parts.items():
        own = {"adapter": adapter[name]} if adapter is not None and name in adapter else {}
        for term, value in part.terms(given, **own).items():
            key = term if term == "task" else f"{name}_{term}"
            weighted = weights[name] * value
            found[key] = found[key] + weighted if key in found else weighted
    return found


def _adapters_of_sum(student: int, teacher: int, makers: dict[str, Adapter]) -> nn.ModuleDict:
    return nn.ModuleDict({name: make(student, teacher) for name, make in makers.items()})
