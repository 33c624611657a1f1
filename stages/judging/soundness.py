"""What stands behind the maps of a cohort's models on a data set: are they causal, alike, and of what was learned?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn

from stages.core import findings, seeds
from stages.judging import agreement, class_maps, faithfulness, metrics, operating, sanity
from stages.judging.class_maps import Films, Mapper, Model, Names, Plan
from stages.judging.operating import Array

ABSENT = (findings.ABSENT, findings.IMPLIED)
NO_PAIRS = "no test film has one of the findings that the models answer, and lacks another"
LISTED = 12  # films that are named


def pairs_of(films: Films, outputs: list[str], limit: int, names: Names) -> pd.DataFrame:
    """Test films with a finding that they have, and one that they have not: image, patient, finding, other.

    Args:
        films: of a data set.
        outputs: the findings that the models answer.
        limit: pairs at most, drawn by seed.
        names: of the seed.
    """
    known = [name for name in outputs if name in films.table]
    rows = []
    for row in films.table[["image", "patient", *known]].to_dict("records"):
        absent = [name for name in known if row[name] in ABSENT]
        for finding in (name for name in known if row[name] == findings.PRESENT):
            if absent:
                luck, which = (seeds.unit(*names, use, row["image"], finding) for use in ("pair", "other"))
                rows.append((row["image"], row["patient"], finding, absent[int(which * len(absent))], luck))
    drawn = pd.DataFrame(rows, columns=["image", "patient", "finding", "other", "luck"]).sort_values("luck")
    return drawn.head(limit).drop(columns="luck").sort_values(["image", "finding"], ignore_index=True)


def mean(values: Array, place: NDArray[np.int64], weights: NDArray[Any], confidence: float) -> list[dict[str, Any]]:
    """The mean over pairs of each column, with its interval over patients.

    Args:
        values: (pair, column); NaN is left out.
        place: (pair,) of each patient in `weights`.
        weights: (patient, 1 + replicate), ones first.
        confidence: of the interval.
    """
    is_known = ~np.isnan(values)
    sums = operating.resampled_sums(np.concatenate([np.where(is_known, values, 0), is_known], axis=1), place, weights)
    means = operating.share(*np.split(sums, 2, axis=1))
    return [operating.shown(means[:, column], confidence) for column in range(values.shape[1])]


class Soundness:
    """The questions to the maps of one data set, which share pairs and replicates."""

    def __init__(self, films: Films, trained: Mapping[str, Model], plan: Plan, names: Names) -> None:
        """Draw the pairs, and make the maps of both findings of each."""
        self.films, self.trained, self.plan, self.names = films, trained, plan, names
        outputs = trained["distilled"].findings
        self.pairs = pairs_of(films, outputs, plan.settings.sound_pairs, (*names, "sound"))
        patients, self.place = np.unique(self.pairs["patient"].astype(str), return_inverse=True)
        drawn = metrics.patient_weights(max(len(patients), 1), plan.replicates, seeds.of(*names, "sound", "bootstrap"))
        self.weights = np.concatenate([np.ones((len(drawn), 1), drawn.dtype), drawn], axis=1)
        self.maps = {kind: self._maps(model, self.pairs) for kind, model in trained.items()}
        others = self.pairs.assign(finding=self.pairs["other"])
        self.other_maps = {kind: self._maps(model, others) for kind, model in trained.items()}

    def _maps(self, model: Model, pairs: pd.DataFrame) -> Array:
        made = class_maps.make_maps(model, self.films, pairs, self.plan) if len(pairs) else np.empty((0, 1, 1))
        return np.maximum(made, 0).astype(np.float64)

    def _mean(self, values: Array) -> list[dict[str, Any]]:
        return mean(values, self.place, self.weights, self.plan.confidence)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The film of each pair, (pair, size_px, size_px)."""
        rows = dict(zip(self.films.table["image"], range(len(self.films.table)), strict=True))
        return self.films.pixels.take([rows[image] for image in self.pairs["image"]])

    def by_score(self) -> dict[str, Any]:
        """Model -> deletion and insertion -> order: the map's, a random one, that of another finding; differences."""
        films, found = self.pixels, {}
        for kind, model in self.trained.items():
            outputs = np.array([model.findings.index(finding) for finding in self.pairs["finding"]])
            rng = seeds.of(*self.names, "sound", kind)
            orders = {
                "map": self.maps[kind],
                "random": np.zeros_like(self.maps[kind]),
                "another_finding": self.other_maps[kind],
            }
            areas = {
                name: faithfulness.areas(model.net, films, outputs, faithfulness.order_of(maps, rng))
                for name, maps in orders.items()
            }
            found[kind] = {way: self._against(areas, way) for way in ("deletion", "insertion")}
        return found

    def _against(self, areas: Mapping[str, faithfulness.Areas], way: str) -> dict[str, Any]:
        values = {name: getattr(of_order, way) for name, of_order in areas.items()}
        values |= {f"map_minus_{name}": values["map"] - values[name] for name in ("random", "another_finding")}
        return dict(zip(values, self._mean(np.stack([*values.values()], axis=1)), strict=True))

    def by_teacher(self) -> dict[str, Any] | None:
        """Whose maps are compared -> measure; None where the teacher has no maps."""
        if "teacher" not in self.trained:
            return None
        size_px, teacher, student = self.pixels.shape[1], self.maps["teacher"], self.maps["distilled"]
        there = agreement.of_another_film(self.pairs["finding"].to_numpy(), self.pairs["patient"].to_numpy())
        elsewhere = np.where((there >= 0)[:, None, None], teacher[there], np.nan)
        alike = {
            "distilled": agreement.likeness(student, teacher, size_px),
            "twin": agreement.likeness(self.maps["twin"], teacher, size_px),
            "another_film": agreement.likeness(student, elsewhere, size_px),
            "another_finding": agreement.likeness(student, self.other_maps["teacher"], size_px),
        }
        alike |= {f"distilled_minus_{name}": alike["distilled"] - alike[name] for name in [*alike][1:]}
        return {name: dict(zip(agreement.MEASURES, self._mean(values), strict=True)) for name, values in alike.items()}

    def described(self) -> dict[str, Any]:
        """All of it for the report."""
        about = {"pairs": len(self.pairs), "patients": len(np.unique(self.place)), "reason": None}
        if self.pairs.empty:
            return about | {"faithfulness": None, "agreement": None, "reason": NO_PAIRS}
        return about | {"faithfulness": self.by_score(), "agreement": self.by_teacher()}

    def by_weights(self, mappers: Mapping[str, Mapper], fresh: nn.Module, limit: int) -> dict[str, Any]:
        """Explainer -> how alike the student's maps stay as its weights are randomised, layer by layer.

        Args:
            mappers: explainer -> its `maps`.
            fresh: a net as the student's, with first weights.
            limit: pairs at most.
        """
        model, pairs = self.trained["distilled"], self.pairs.head(limit)
        found: dict[str, Any] = {name: {"layers": [], "correlation": []} for name in mappers}
        plans = {name: class_maps.Plan(mapper, *self._rest()) for name, mapper in mappers.items()}
        learned = {name: class_maps.make_maps(model, self.films, pairs, plan) for name, plan in plans.items()}
        for layer, net in sanity.randomised(model.net, fresh):
            changed = Model(net, model.findings, model.title)
            for name, plan in plans.items():
                maps = class_maps.make_maps(changed, self.films, pairs, plan)
                found[name]["layers"].append(layer)
                alike = sanity.correlation(learned[name], maps)
                found[name]["correlation"].append(None if np.isnan(alike).all() else round(float(np.nanmean(alike)), 6))
        for of_name in found.values():
            of_name["unchanged_through"] = sanity.unchanged_through(of_name["layers"], of_name["correlation"])
        return {"pairs": len(pairs), "explainers": found}

    def _rest(self) -> tuple[Any, ...]:
        return self.plan.settings, self.plan.replicates, self.plan.confidence, self.plan.seed


def wrong_reasons(pairs: pd.DataFrame, logits: pd.DataFrame, positives: Mapping[str, int]) -> dict[str, Any]:
    """Boxed films that are called with confidence though the student's map has its maximum beside every box.

    A call is confident where the film is among the half as many with the highest logits as have the finding.

    Args:
        pairs: image, finding, `distilled_pointing`, `random_pointing`.
        logits: one row a test film: image and the student's logit of each finding.
        positives: finding -> test films that have it.
    """
    rows = []
    for finding, of_finding in pairs.groupby("finding"):
        ranked = logits[["image", str(finding)]].sort_values(str(finding), ascending=False, kind="stable")
        confident = set(ranked["image"].head(positives[str(finding)] // 2))
        rows.append(of_finding[of_finding["image"].isin(confident)])
    called = pd.concat(rows) if rows else pairs
    missed = called[called["distilled_pointing"] < 0.5]
    by_chance = None if called.empty else round(float((1 - called["random_pointing"]).mean()), 6)
    listed = missed.sort_values(["finding", "image"])[["image", "finding"]].head(LISTED)
    return {
        "confident": len(called),
        "missed": len(missed),
        "missed_by_random": by_chance,
        "films": listed.to_dict("records"),
    }


def boxed(
    films: Films, pairs: pd.DataFrame, maps: Mapping[str, NDArray[np.floating]], predictions: pd.DataFrame
) -> dict[str, Any] | None:
    """What agreement and confidence are worth on films with boxes; None where there are none.

    Args:
        films: of the data set.
        pairs: its boxed pairs with their scores, as `explain` writes them.
        maps: model -> (pair, height, width) of the same pairs.
        predictions: the student's logits of the test films, by image.
    """
    if pairs.empty:
        return None
    positives = {name: int((films.table[name] == findings.PRESENT).sum()) for name in pairs["finding"].unique()}
    tested = predictions[predictions["image"].isin(films.table["image"])]
    found: dict[str, Any] = {"wrong_reasons": wrong_reasons(pairs, tested, positives), "hits": None}
    if "teacher" in maps:
        student, teacher = (np.maximum(maps[kind], 0) for kind in ("distilled", "teacher"))
        alike = agreement.likeness(student, teacher, films.pixels[0].shape[0])[:, 0]
        found["hits"] = agreement.hits(alike, pairs["distilled_pointing"].to_numpy())
    return found
