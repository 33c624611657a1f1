"""For whom is a model worse? The test films by sex, age, projection and source of the label."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.judging import metrics, operating
from stages.judging.operating import Array

ATTRIBUTES = {"sex": "sex", "age": "age", "view": "projection", "label_source": "source of the label"}
NOT_STATED = "not stated"
FEW_FILMS = "fewer test films than operate.min_group"
ONE_GROUP = "fewer than two groups that can be scored"
NO_FINDING = "no finding has enough positives and negatives in each group"


@dataclass(frozen=True)
class Group:
    """Some of the test films.

    Attributes:
        name: what they have in common.
        rows: (row,) whether a film is one of them.
    """

    name: str
    rows: NDArray[np.bool_]


def groups_of(test: pd.DataFrame, attribute: str, age_bands: list[int]) -> list[Group]:
    """The groups of an attribute, those whose films do not state it last.

    Args:
        test: the films' labels.
        attribute: a key of ATTRIBUTES.
        age_bands: ages, in years, at which a band begins.
    """
    values = in_bands(test[attribute], age_bands) if attribute == "age" else test[attribute].astype(object)
    is_stated = values.notna().to_numpy() & (values != "").to_numpy()
    names = dict.fromkeys(names_of(age_bands)) if attribute == "age" else sorted(set(values[is_stated].astype(str)))
    found = [Group(name, is_stated & (values == name).to_numpy()) for name in names]
    return [group for group in [*found, Group(NOT_STATED, ~is_stated)] if group.rows.any()]


def names_of(age_bands: list[int]) -> list[str]:
    """The bands of age in words."""
    middle = [f"{low} to {high - 1}" for low, high in pairwise(age_bands)]
    return [f"under {age_bands[0]}", *middle, f"{age_bands[-1]} or more"]


def in_bands(ages: pd.Series, age_bands: list[int]) -> pd.Series:
    """The band of each age; missing where the age is."""
    return pd.cut(ages, [-np.inf, *age_bands, np.inf], right=False, labels=names_of(age_bands)).astype(object)


@dataclass(frozen=True)
class Scored:
    """A figure of each group and model in every replicate.

    Attributes:
        values: (group, model) -> (1 + replicate,), the estimate first.
        groups: the names of the groups that are scored.
    """

    values: dict[tuple[str, str], Array]
    groups: list[str]

    def widest(self, model: str) -> tuple[str, str] | None:
        """The groups of a model whose estimates are the furthest apart: the higher, the lower."""
        estimates = {group: self.values[group, model][0] for group in self.groups}
        defined = {group: value for group, value in estimates.items() if not np.isnan(value)}
        if len(defined) < 2:
            return None
        return max(defined, key=lambda group: defined[group]), min(defined, key=lambda group: defined[group])

    def gap(self, model: str, pair: tuple[str, str]) -> Array:
        """The distance of two groups in every replicate."""
        high, low = pair
        return self.values[high, model] - self.values[low, model]

    def gaps(self, confidence: float) -> dict[str, Any]:
        """Each model's widest gap with its interval, and how much wider the distilled student's is than others'.

        A gap is of the two groups that are the furthest apart in the sample: chosen so, it is wider than the same two
        groups' in other films would be. The difference of two models' gaps is of the distilled student's groups.
        """
        models = list(dict.fromkeys(model for _, model in self.values))
        found: dict[str, Any] = {}
        for model in models:
            pair = self.widest(model)
            if pair is None:
                found[model] = {"value": None, "low": None, "high": None, "higher": None, "lower": None}
                continue
            shown = operating.shown(self.gap(model, pair), confidence)
            found[model] = shown | {"higher": pair[0], "lower": pair[1]}
        pair = self.widest("distilled") if "distilled" in models else None
        for other in models:
            if pair is not None and other != "distilled":
                wider = self.gap("distilled", pair) - self.gap(other, pair)
                found[f"distilled_minus_{other}"] = operating.shown(wider, confidence)
        return found


def enough(targets: NDArray[Any], groups: list[Group], fewest: int) -> list[int]:
    """The findings that have enough positives and negatives in each group, so that groups are compared on the same.

    Args:
        targets: (row, finding) 1, 0 or NaN.
        groups: those that are scored.
        fewest: positives, and negatives, in each.
    """
    counts = np.array([[(targets[group.rows] == value).sum(axis=0) for value in (0, 1)] for group in groups])
    return [int(column) for column in np.flatnonzero((counts >= fewest).all(axis=(0, 1)))]


def mean_auroc(
    scores: NDArray[Any], targets: NDArray[Any], group: Group, columns: list[int], patients: NDArray[np.int64],
    weights: NDArray[Any],
) -> Array:  # fmt: skip
    """Mean AUROC of some findings on a group in every replicate."""
    rows = group.rows
    of_findings = metrics.resample(targets[rows][:, columns], scores[rows][:, columns], patients[rows], weights)[0]
    return np.asarray(of_findings.mean(axis=1))


def each(test: pd.DataFrame, age_bands: list[int]) -> Iterator[tuple[str, list[Group] | None]]:
    """The groups of each attribute; None where the table has no such column."""
    for attribute in ATTRIBUTES:
        yield attribute, groups_of(test, attribute, age_bands) if attribute in test else None
