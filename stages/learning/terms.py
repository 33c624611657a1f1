"""Distillation losses made ready for a training: one with its settings, or a weighted sum of several."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from stages.learning.objectives import Signals
from stages.learning.trainer import Adapter, Terms

TAKEN = ("step", "lr", "loss", "output", "ratios", "val_auroc")  # what a training logs or hands on under these names


class TermError(ValueError):
    """A loss returned something else than its terms; the message names its file and the term."""


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
    """A loss file with its entry of params.yaml; what its terms are is checked whenever they are computed."""
    own = partial(plugin.terms, settings=plugin.Settings.model_validate(given))
    file = f"{plugin.__name__.replace('.', '/')}.py"
    terms = partial(_checked_terms, of_plugin=own, file=file)
    return Loss(terms, plugin.NEEDS == "features", getattr(plugin, "adapter", None))


def _checked_terms(given: Signals, of_plugin: Terms, file: str, **adapter: nn.Module) -> dict[str, Tensor]:
    found = of_plugin(given, **adapter)
    if fault := fault_of(found, is_trained=given.student.requires_grad):
        raise TermError(f"{file}: {fault} (see stages/losses/__init__.py)")
    return found


def fault_of(found: Any, is_trained: bool) -> str | None:
    """What is wrong with what a loss returned, if anything; no value is read, so that no GPU is waited for.

    Args:
        found: what should be a dict of name -> scalar tensor, with a `task`.
        is_trained: whether the student's logits have a gradient, so that each term must have one.
    """
    if not isinstance(found, dict):
        return f"terms must return a dict of name -> scalar tensor, got {type(found).__name__}"
    if "task" not in found:
        return f"terms must return the hard labels' term as 'task', got {', '.join(map(repr, found)) or 'none'}"
    for name, value in found.items():
        if not isinstance(name, str) or name in TAKEN:
            return f"terms must be named by a text that the training does not use itself, got {name!r}"
        if not isinstance(value, Tensor):
            return f"terms must return tensors, got {type(value).__name__} for {name!r}"
        if value.ndim:
            return f"terms must return scalars, got shape {tuple(value.shape)} for {name!r}"
        if is_trained and not value.requires_grad:
            return f"terms must depend on the student, got one without gradient for {name!r}"
    return None


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
