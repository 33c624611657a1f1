"""Where to call a finding, how far to trust its probability, and for whom a model is worse, on one data set.

Reads data/labels/<dataset>.parquet and the predictions of the headline's teacher, twin and distilled student.
Writes reports/operating/<dataset>.json. Chosen on the data set's validation films, whose labels count as in training,
and then fixed: of each model and finding a threshold, by the rule of params.yaml, and a temperature and bias. Found on
its test films, with the bootstrap replicates of `evaluate`: what the calls are worth, the calibration error before and
after, DeLong's interval beside the bootstrap's with Holm's correction over findings, and scores of subgroups with the
gap between them. What has no value is null with its reason. Nothing is pooled over data sets.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.core import arguments, files, findings, params
from stages.judging import calibration, cells, evaluation, metrics, operating, significance, subgroups
from stages.judging.operating import Array, shown
from stages.sources import policy

COMPARED = (("distilled", "twin"), ("distilled", "teacher"))
NO_FILMS = "no validation film has a prediction"
NO_COLUMN = "the label table has no such column"


@dataclass(frozen=True)
class Chosen:
    """What validation films say of one model and finding; what is `None` has a reason.

    Attributes:
        threshold: the logit from which on a film is called.
        scale: temperature and bias.
        reason: why there is no threshold.
        scale_reason: why there is no scale.
    """

    threshold: float | None
    scale: calibration.Scale | None
    reason: str | None
    scale_reason: str | None

    def as_json(self) -> dict[str, Any]:
        """For the report: the threshold as logit and as calibrated probability."""
        scale, probability = self.scale, None
        if self.threshold is not None and scale is not None:
            probability = evaluation.rounded(float(scale.probability(np.array(self.threshold))))
        return {
            "threshold": evaluation.rounded(self.threshold),
            "threshold_probability": probability,
            "temperature": evaluation.rounded(scale.temperature) if scale else None,
            "bias": evaluation.rounded(scale.bias) if scale else None,
            "reason": self.reason,
            "scale_reason": self.scale_reason,
        }


def choose(targets: NDArray[Any], logits: NDArray[Any], settings: Any) -> Chosen:
    """The threshold and scale of one model and finding.

    Args:
        targets: (row,) of validation films; NaN, and what is neither 0 nor 1, is left out.
        logits: (row,); NaN where the model has no such output.
        settings: `operate` of params.yaml.
    """
    if np.isnan(logits).all():
        lacking = evaluation.NOT_AN_OUTPUT if len(logits) else NO_FILMS
        return Chosen(None, None, lacking, lacking)
    certain = np.where((targets == 0) | (targets == 1), targets, np.nan)
    if few := operating.no_choice(certain, settings.min_positives):
        return Chosen(None, None, few, few)
    threshold = operating.threshold(certain, logits, settings.rule, settings.sensitivity)
    try:
        return Chosen(threshold, calibration.fit(certain, logits), None, None)
    except calibration.NoScaleError as error:
        return Chosen(threshold, None, None, str(error))


@dataclass(frozen=True)
class Tested:
    """A data set's test films and what is known of them.

    Attributes:
        sample: targets, patients and the logits of each kind of model.
        weights: (patient, 1 + replicate), ones first.
        settings: `operate` of params.yaml.
        confidence: of the intervals.
    """

    sample: evaluation.Sample
    weights: NDArray[Any]
    settings: Any
    confidence: float

    @property
    def drawn(self) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Patients and weights, as the resampling asks for them."""
        return self.sample.patients, self.weights

    def called(self, kind: str, chosen: list[Chosen]) -> NDArray[np.bool_]:
        """(row, finding) whether a model calls a film; not, where it has no threshold."""
        levels = np.array([np.inf if one.threshold is None else one.threshold for one in chosen])
        return np.nan_to_num(self.sample.scores[kind], nan=-np.inf) >= levels

    def worth(self, kind: str, chosen: list[Chosen]) -> dict[str, Array]:
        """Each figure of a model's calls, (1 + replicate, finding); NaN without a threshold."""
        found = operating.figures(self.called(kind, chosen), self.sample.targets, *self.drawn)
        for column, one in enumerate(chosen):
            if one.threshold is None:
                for values in found.values():
                    values[:, column] = np.nan
        return found

    def probabilities(self, kind: str, chosen: list[Chosen], is_after: bool) -> Array:
        """(row, finding) as the model states them, or calibrated; NaN where it does not."""
        logits = self.sample.scores[kind].astype(float)
        if not is_after:
            return np.where(np.isnan(logits), np.nan, calibration.sigmoid(np.nan_to_num(logits)))
        columns = [
            np.full(len(logits), np.nan) if one.scale is None else one.scale.probability(logits[:, column])
            for column, one in enumerate(chosen)
        ]
        return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Trust:
    """How far the probabilities of a model hold, (1 + replicate, finding) each."""

    probabilities: Array
    brier: Array
    errors: calibration.Errors


def trust(tested: Tested, kind: str, chosen: list[Chosen], is_after: bool) -> Trust:
    """Brier score and calibration error of a model, before or after calibration."""
    stated = tested.probabilities(kind, chosen, is_after)
    known = np.where(np.isnan(stated), np.nan, tested.sample.targets)  # a film without a probability is no film
    filled = np.nan_to_num(stated, nan=0.5)
    errors = calibration.calibration_errors(filled, known, *tested.drawn, tested.settings.bins)
    return Trust(filled, calibration.brier(filled, known, *tested.drawn), errors)


def of_finding(
    column: int, tested: Tested, chosen: dict[str, list[Chosen]], worth: dict[str, dict[str, Array]],
    before: dict[str, Trust], after: dict[str, Trust],
) -> dict[str, Any]:  # fmt: skip
    """One finding: of each model the choice, what its calls are worth, its calibration; and the differences."""
    targets, confidence = tested.sample.targets[:, column], tested.confidence
    models = {}
    for kind in tested.sample.scores:
        about = chosen[kind][column].as_json()
        about |= {name: shown(values[:, column], confidence) for name, values in worth[kind].items()}
        for word, found in (("before", before[kind]), ("after", after[kind])):
            is_stated = word == "before" or chosen[kind][column].scale is not None
            known = targets if is_stated else np.full(len(targets), np.nan)
            about[word] = {
                "brier": shown(found.brier[:, column], confidence),
                "error": found.errors.shown(column, confidence),
                "curve": calibration.reliability(found.probabilities[:, column], known, tested.settings.bins),
            }
        models[kind] = about
    differences = {}
    for one, other in COMPARED:
        named = {name: worth[one][name][:, column] - worth[other][name][:, column] for name in operating.FIGURES}
        named["brier"] = after[one].brier[:, column] - after[other].brier[:, column]
        differences[f"{one}_minus_{other}"] = {name: shown(values, confidence) for name, values in named.items()}
    counts = {"positives": int((targets == 1).sum()), "negatives": int((targets == 0).sum())}
    reason = metrics.undefined_because(targets)
    few = counts["positives"] < tested.settings.min_positives
    return counts | {"few_positives": few, "reason": reason, "models": models, "differences": differences}


def means(
    tested: Tested, chosen: dict[str, list[Chosen]], worth: dict[str, dict[str, Array]], before: dict[str, Trust],
    after: dict[str, Trust],
) -> dict[str, Any]:  # fmt: skip
    """The means over findings with test films of both kinds: of calls where each model has a threshold, of Brier scores
    and calibration errors where each has a scale too (`scaled`); `left_out` names the others, with the reason.

    A mean of calibration errors has no interval: what chance adds to each of them adds up, while their spread evens
    out. It stands beside the same mean of perfectly calibrated models (`by_chance`).
    """
    names, left_out = tested.sample.findings, dict[str, str]()
    columns, scaled = list[int](), list[int]()
    for column, name in enumerate(names):
        of_column = {kind: one[column] for kind, one in chosen.items()}
        undefined = metrics.undefined_because(tested.sample.targets[:, column])
        no_threshold = next((f"{kind}: {one.reason}" for kind, one in of_column.items() if one.reason), None)
        no_scale = next((f"{kind}: {one.scale_reason}" for kind, one in of_column.items() if one.scale_reason), None)
        if reason := undefined or no_threshold or no_scale:
            left_out[name] = reason
        if not (undefined or no_threshold):
            columns.append(column)
            scaled += [] if no_scale else [column]
    found: dict[str, Any] = {"findings": [names[column] for column in columns], "models": {}, "left_out": left_out}
    found["scaled"] = [names[column] for column in scaled]
    if not scaled:
        return found | {"reason": "no finding has a threshold and a scale of every model", "differences": {}}
    values: dict[str, dict[str, Array]] = {}
    for kind in chosen:
        values[kind] = {name: of_kind[:, columns].mean(axis=1) for name, of_kind in worth[kind].items()}
        for word, of_word in (("before", before[kind]), ("after", after[kind])):
            values[kind][f"brier_{word}"] = of_word.brier[:, scaled].mean(axis=1)
        found["models"][kind] = {name: shown(of_name, tested.confidence) for name, of_name in values[kind].items()}
        for word, of_word in (("before", before[kind]), ("after", after[kind])):
            found["models"][kind][f"error_{word}"] = {
                "value": evaluation.rounded(float(of_word.errors.found[0, scaled].mean())),
                "by_chance": evaluation.rounded(float(of_word.errors.by_chance[:, scaled].mean())),
            }
            known = tested.sample.targets[:, scaled].ravel()
            stated = of_word.probabilities[:, scaled].ravel()
            found["models"][kind][f"curve_{word}"] = calibration.reliability(stated, known, tested.settings.bins)
    found["differences"] = {
        f"{one}_minus_{other}": {
            name: shown(values[one][name] - values[other][name], tested.confidence) for name in values[one]
        }
        for one, other in COMPARED
    }
    return found | {"reason": None}


def cross_check(tested: Tested) -> dict[str, Any]:
    """Distilled minus twin, finding by finding: the bootstrap's interval, DeLong's, and p with Holm's correction."""
    sample, findings_ = tested.sample, tested.sample.findings
    areas = {kind: evaluation.areas_of(sample, kind, tested.weights).auroc for kind in ("distilled", "twin")}
    gained, found = areas["distilled"] - areas["twin"], {}
    p_values = [significance.p_value(gained[:, column]) for column in range(len(findings_))]
    for column, (finding, corrected) in enumerate(zip(findings_, significance.holm(p_values), strict=True)):
        targets, value = sample.targets[:, column], shown(gained[:, column], tested.confidence)
        one, other = (sample.scores[kind][:, column].astype(float) for kind in ("distilled", "twin"))
        analytic: dict[str, Any] = {"low": None, "high": None}
        if value["value"] is not None and min((targets == 1).sum(), (targets == 0).sum()) > 1:
            analytic = significance.interval(*significance.delong(targets, one, other), tested.confidence)
        found[finding] = {
            "difference": value,
            "delong": analytic,
            "p": None if p_values[column] is None else float(f"{p_values[column]:.3g}"),
            "p_holm": None if corrected is None else float(f"{corrected:.3g}"),
        }
    return found


def of_subgroups(test: pd.DataFrame, tested: Tested, chosen: dict[str, list[Chosen]]) -> dict[str, Any]:
    """Each attribute's groups with their scores, and the widest gaps."""
    found = {}
    for attribute, groups in subgroups.each(test, tested.settings.age_bands):
        if groups is None:
            found[attribute] = {"reason": NO_COLUMN, "groups": [], "gaps": {}, "findings": []}
            continue
        found[attribute] = of_attribute(groups, tested, chosen)
    return found


def of_attribute(groups: list[subgroups.Group], tested: Tested, chosen: dict[str, list[Chosen]]) -> dict[str, Any]:
    """One attribute's groups, each with its figures for each model, and the widest gap of each figure."""
    sample, settings = tested.sample, tested.settings
    large = [group for group in groups if group.name != subgroups.NOT_STATED and group.rows.sum() >= settings.min_group]
    listed: dict[str, Any] = {
        group.name: {
            "name": group.name,
            "films": int(group.rows.sum()),
            "patients": len(np.unique(sample.patients[group.rows])),
            "models": {},
            "reason": None if group in large else subgroups.FEW_FILMS,
        }
        for group in groups
    }
    if len(large) < 2:
        return {"groups": [*listed.values()], "gaps": {}, "findings": [], "reason": subgroups.ONE_GROUP}
    columns = subgroups.enough(sample.targets, large, settings.min_positives)
    columns = [column for column in columns if all(is_complete(one[column]) for one in chosen.values())]
    if not columns:
        return {"groups": [*listed.values()], "gaps": {}, "findings": [], "reason": subgroups.NO_FINDING}
    scored: dict[str, dict[tuple[str, str], Array]] = {"auroc": {}, "sensitivity": {}, "specificity": {}, "brier": {}}
    for group in large:
        for kind in sample.scores:
            for name, values in of_group(group, kind, columns, tested, chosen[kind]).items():
                scored[name][group.name, kind] = values
    for (group_name, kind), _ in scored["auroc"].items():
        listed[group_name]["models"][kind] = {
            name: shown(values[group_name, kind], tested.confidence) for name, values in scored.items()
        }
    names = [group.name for group in large]
    gaps = {name: subgroups.Scored(values, names).gaps(tested.confidence) for name, values in scored.items()}
    return {
        "groups": [*listed.values()],
        "gaps": gaps,
        "findings": [sample.findings[column] for column in columns],
        "reason": None,
    }


def is_complete(chosen: Chosen) -> bool:
    """Whether there is a threshold and a scale."""
    return chosen.threshold is not None and chosen.scale is not None


def of_group(
    group: subgroups.Group, kind: str, columns: list[int], tested: Tested, chosen: list[Chosen]
) -> dict[str, Array]:
    """A model's figures on a group, means over findings, (1 + replicate,) each."""
    sample, rows = tested.sample, group.rows
    targets, patients = sample.targets[rows][:, columns], sample.patients[rows]
    worth = operating.figures(tested.called(kind, chosen)[rows][:, columns], targets, patients, tested.weights)
    stated = tested.probabilities(kind, chosen, is_after=True)[rows][:, columns]
    return {
        "auroc": subgroups.mean_auroc(sample.scores[kind], sample.targets, group, columns, *tested.drawn),
        "sensitivity": worth["sensitivity"].mean(axis=1),
        "specificity": worth["specificity"].mean(axis=1),
        "brier": calibration.brier(stated, targets, patients, tested.weights).mean(axis=1),
    }


def validation(
    labels: pd.DataFrame, tables: dict[str, pd.DataFrame], evaluated: list[str], dataset: str, policies: Any
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """The validation films that were predicted: targets as training reads labels, and the logits of each model.

    Raises:
        ValueError: as `evaluation.match`.
    """
    is_any = any(len(table) for table in tables.values())
    rows = evaluation.match(labels, tables, "val") if is_any else labels.iloc[:0].set_index("image")
    images = rows.index.to_series()
    targets = [policy.target(rows[name].to_numpy(), name, dataset, images, policies) for name in evaluated]
    logits = {
        kind: table.reindex(index=rows.index, columns=evaluated).to_numpy(np.float32) for kind, table in tables.items()
    }
    return np.stack(targets, axis=1), logits


def prevalence(targets: NDArray[Any]) -> float | None:
    """The share of positives among films whose label counts as 0 or 1; None without any."""
    certain = targets[(targets == 0) | (targets == 1)]
    return evaluation.rounded(float(certain.mean())) if len(certain) else None


def main(argv: list[str] | None = None) -> None:
    """Write reports/operating/<dataset>.json."""
    args = arguments.parser(__doc__, "dataset", "cohort", "student", "teacher", "loss", "seed").parse_args(argv)
    settings, replicates, confidence, evaluated, policies, seed = params.load(
        "operate",
        "evaluate.replicates",
        "evaluate.confidence",
        f"datasets.{args.dataset}.findings",
        f"policies.{args.dataset}",
        "seed",
    )
    paths = {
        "teacher": files.input(f"data/predictions/teacher/{args.cohort}/{args.teacher}.parquet"),
        "twin": files.input(f"data/predictions/twin/{args.cohort}/{args.student}/{args.seed}.parquet"),
        "distilled": files.input(
            f"data/predictions/distilled/{args.cohort}/{args.student}/{args.teacher}/{args.loss}/{args.seed}.parquet"
        ),
    }
    distilled = cells.Model("distilled", args.cohort, args.student, args.teacher, args.loss, int(args.seed))
    ids = {"teacher": distilled.its_teacher().id, "twin": distilled.twin().id, "distilled": distilled.id}
    labels = files.read_table(files.input(f"data/labels/{args.dataset}.parquet"))
    tables = {kind: files.read_table(path) for kind, path in paths.items()}
    evaluated = findings.in_order_of(labels.columns, evaluated)
    told = {kind: evaluation.select(table, args.dataset, ids[kind], "val") for kind, table in tables.items()}
    targets, logits = validation(labels, told, evaluated, args.dataset, policies)
    chosen = {
        kind: [choose(targets[:, column], of_kind[:, column], settings) for column in range(len(evaluated))]
        for kind, of_kind in logits.items()
    }
    predictions = {kind: evaluation.select(table, args.dataset, ids[kind], "test") for kind, table in tables.items()}
    test = evaluation.match(labels, predictions)
    sample = evaluation.image_sample(test, predictions, evaluated)
    weights = evaluation.draw(sample, args.dataset, replicates, seed)
    result = judge(test, Tested(sample, weights, settings, confidence), chosen)
    result |= {"dataset": args.dataset, "ids": ids, "settings": settings.model_dump()}
    result["rows"] = {"validation": len(targets), "test": len(test), "patient": len(weights)}
    for column, finding in enumerate(evaluated):
        result["findings"][finding]["prevalence"] = {
            "validation": prevalence(targets[:, column]),
            "test": prevalence(sample.targets[:, column]),
        }
    with files.output(f"reports/operating/{args.dataset}.json") as temporary:
        files.write_json(result, temporary)


def judge(test: pd.DataFrame, tested: Tested, chosen: dict[str, list[Chosen]]) -> dict[str, Any]:
    """All that test films say.

    Args:
        test: their labels.
        tested: the same films as they are scored.
        chosen: kind of model -> what validation films chose, a finding each.
    """
    worth = {kind: tested.worth(kind, of_kind) for kind, of_kind in chosen.items()}
    before, after = (
        {kind: trust(tested, kind, of_kind, is_after) for kind, of_kind in chosen.items()} for is_after in (False, True)
    )
    return {
        "findings": {
            finding: of_finding(column, tested, chosen, worth, before, after)
            for column, finding in enumerate(tested.sample.findings)
        },
        "means": means(tested, chosen, worth, before, after),
        "cross_check": cross_check(tested),
        "subgroups": of_subgroups(test, tested, chosen),
    }


if __name__ == "__main__":
    main()
