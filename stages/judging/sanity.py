"""Does a map depend on what the model has learned? Weights are randomised from the head down (Adebayo et al. 2018).

"Sanity Checks for Saliency Maps", arXiv 1810.03292, cascading randomisation: a method whose maps stay as they are when
the model forgets what it learned shows the film, or the architecture, and not the model.
"""

import copy
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import nn

Array = NDArray[np.float64]

UNCHANGED = 0.9  # mean correlation from which on maps count as unchanged


def layers(model: nn.Module) -> list[str]:
    """The parts of a net that are randomised, one after another, from the head down.

    They are its children with weights; a sequence's children stand for it.
    """
    found = []
    for name, child in model.named_children():
        parts = [f"{name}.{part}" for part, _ in child.named_children()] if isinstance(child, nn.Sequential) else [name]
        found += [part for part in parts if any(True for _ in model.get_submodule(part).parameters())]
    return found[::-1]


def randomised(model: nn.Module, fresh: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The net with more and more of its parts from another that has learned nothing; the last has none of its own.

    It is one net that changes: a step's is to be used before the next is asked for.

    Args:
        model: it stays as it is.
        fresh: of the same architecture, with first weights.
    """
    changed = copy.deepcopy(model)
    for name in layers(model):
        changed.get_submodule(name).load_state_dict(fresh.get_submodule(name).state_dict())
        yield name, changed


def correlation(maps: NDArray[np.floating], others: NDArray[np.floating]) -> Array:
    """Spearman's correlation of signed maps on their own grid: (pair,), NaN where one is even."""
    found = np.full(len(maps), np.nan)
    for pair, (one, other) in enumerate(zip(maps, others, strict=True)):
        if one.max() > one.min() and other.max() > other.min():
            found[pair] = stats.spearmanr(one.ravel(), other.ravel()).statistic
    return found


def unchanged_through(names: list[str], correlations: list[float | None]) -> str | None:
    """The last part that was randomised while maps were as before; None where the head's weights changed them.

    Args:
        names: of the parts, from the head down.
        correlations: the mean correlation after each; None where no map was left to compare.
    """
    through = None
    for name, found in zip(names, correlations, strict=True):
        if found is None or found < UNCHANGED:
            break
        through = name
    return through
