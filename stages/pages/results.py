"""What the report shows of models and their scores: the headline over its seeds, the checks, tables of all models."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from stages.judging import cells, evaluation
from stages.pages import addresses, charts

MINUS = charts.MINUS
NAMES = {"teacher": "Teacher", "twin": "Twin", "distilled": "Distilled"}
MEAN_OF_DATASETS = "mean of the data sets"
CALLED = {"teacher": "teacher", "twin": "twin", "distilled": "distilled student"}  # in a sentence
LATE = 0.75  # the last quarter of a schedule begins here

Shown = dict[str, cells.Model]  # kind -> the headline's model of a cohort


def headline_models(headline: Any, cohort: str) -> Shown:
    """The models of a cohort that the headline names: teacher, twin and distilled."""
    distilled = cells.headline_model(headline, cohort)
    return {"teacher": distilled.its_teacher(), "twin": distilled.twin(), "distilled": distilled}


def summarize(test: dict[str, Any], metrics: dict[str, Any], shown: Shown) -> dict[str, Any]:
    """A test of the headline over its seeds: what compare found, what it is of, and the bars of its chart."""
    about: dict[str, Any] = {"name": MEAN_OF_DATASETS, "n_findings": None, "undefined": {}, "rows": None}
    if dataset := test["dataset"]:
        scored = metrics[dataset]["models"][shown["distilled"].id]["means"][test["mean"]]
        about = {"name": dataset, "rows": metrics[dataset]["rows"]}
        about |= {key: scored[key] for key in ("n_findings", "undefined")}
    bars = [charts.Bar(NAMES[kind], kind, *(test[kind][end] for end in ("auroc", "low", "high"))) for kind in NAMES]
    return test | about | {"bars": bars}


def summaries_of(group: dict[str, Any], metrics: dict[str, Any], shown: Shown) -> list[dict[str, Any]]:
    """The headline on each data set and on their mean, with charts that share an axis.

    Args:
        group: what compare wrote of the headline.
        metrics: data set -> what evaluate wrote.
        shown: the headline's models.
    """
    main = {dataset: evaluation.main_mean(measured["means"]) for dataset, measured in metrics.items()}
    tests = [test for test in group["tests"] if test["mean"] == main.get(test["dataset"], test["mean"])]
    summaries = [summarize(test, metrics, shown) for test in tests]
    ends = [end for summary in summaries for bar in summary["bars"] for end in (bar.value, bar.low, bar.high)]
    limits = charts.span(ends, 0.01)
    for summary in summaries:
        title = f"Mean AUROC, {summary['name']}: " + ", ".join(
            f"{bar.label} {charts.number(bar.value)}" for bar in summary["bars"]
        )
        summary["chart"] = charts.forest(title, summary["bars"], limits)
    return summaries


def verdict(holds: bool | None) -> str:
    """A claim's state in one word."""
    return "undefined" if holds is None else "yes" if holds else "no"


def is_above(difference: dict[str, Any], bound: float) -> bool | None:
    """Whether a difference's whole interval lies above a bound."""
    return None if difference["low"] is None else difference["low"] > bound


def late_gain(curve: pd.DataFrame) -> tuple[float, float]:
    """Validation AUROC at the end, and what of it was gained in the last quarter of the schedule."""
    final = curve.iloc[-1]
    before = np.interp(LATE * final["step"], curve["step"], curve["val_auroc"])
    return float(final["val_auroc"]), float(final["val_auroc"] - before)


def schedules(curve: pd.DataFrame) -> list[pd.DataFrame]:
    """The curves of which a model's is made: a net's own, one for each member of an ensemble, none of a table."""
    if "member" not in curve:
        return [curve] if curve["step"].iloc[-1] else []
    members = [part for _, part in curve.groupby("member")]  # the ensemble's own row is of no member
    starts = [0, *(part["step"].iloc[-1] for part in members[:-1])]
    return [part.assign(step=part["step"] - start) for part, start in zip(members, starts, strict=True)]


def finished(
    curves: dict[str, pd.DataFrame], shown: Shown, seeds: list[int], plateau: float
) -> Iterator[dict[str, Any]]:
    """Whether each kind of the headline's models had finished learning, all seeds: a question each, none of a table."""
    for kind, model in shown.items():
        same = [model] if kind == "teacher" else [replace(model, seed=seed) for seed in seeds]
        ends = [(*late_gain(part), one.id) for one in same for part in schedules(curves[one.id])]
        if not ends:
            continue
        gained, of = max((gain, name) for _, gain, name in ends)
        most, which = (" at most", "the lowest") if len(ends) > 1 else ("", "it")
        yield {
            "question": f"Had the {CALLED[kind]}{'s' if len(same) > 1 else ''} finished learning?",
            "meaning": f"validation AUROC gained{most} in the last quarter of the schedule: below {plateau:g}; {which} "
            f"ended at {min(end for end, *_ in ends):.3f}",
            "evidence": [
                {
                    "value": {
                        "difference": addresses.derived(gained, [f"reports/curves/{of}.csv:"]),
                        "low": None,
                        "high": None,
                    },
                    "verdict": verdict(gained < plateau),
                }
            ],
        }


def check(summaries: list[dict[str, Any]], finished: list[dict[str, Any]], margin: float) -> list[dict[str, Any]]:
    """The questions that decide whether the comparison means anything, each with its evidence per test.

    Args:
        summaries: the headline's tests.
        finished: the questions on learning curves.
        margin: how far below its teacher a student still counts as not inferior.
    """

    def ask(question: str, meaning: str, kind: str, bound: float) -> dict[str, Any]:
        values = [summary[kind] for summary in summaries]
        evidence = [{"value": value, "verdict": verdict(is_above(value, bound))} for value in values]
        return {"question": question, "meaning": meaning, "evidence": evidence}

    above = "the whole interval is above"
    return [
        ask("Is there something to distil?", f"teacher {MINUS} twin: {above} 0", "teacher_minus_twin", 0),
        ask("Did the student learn without a teacher?", f"the twin's AUROC: {above} 0.5", "twin", 0.5),
        *finished,
        ask("Does distillation help?", f"distilled {MINUS} twin: {above} 0", "distilled_minus_twin", 0),
        ask(
            "Is the student no worse than its teacher?",
            f"distilled {MINUS} teacher: {above} {MINUS}{margin:g}, a margin set beforehand",
            "distilled_minus_teacher",
            -margin,
        ),
    ]


def columns_of(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """The (data set, mean) columns of the table of all models."""
    return [(name, mean) for name, measured in metrics.items() for mean in evaluation.quoted_means(measured["means"])]


def tabulate(models: list[cells.Model], metrics: dict[str, Any], headline: Any) -> list[dict[str, Any]]:
    """Every model: its means, and for a distilled student its difference from its twin."""
    rows: list[dict[str, Any]] = []
    for model in models:
        scores = []
        for dataset, mean in columns_of(metrics):
            score = dict(metrics[dataset]["models"][model.id]["means"][mean])
            score["of"] = len(metrics[dataset]["means"][mean]["findings"])
            if model.kind == "distilled":
                compared = metrics[dataset]["comparisons"]["distilled_minus_twin"]
                score["gain"] = compared[f"{model.id} - {model.twin().id}"]["means"][mean]
            scores.append(score)
        row = {"model": model, "name": NAMES[model.kind], "scores": scores, "span": 0}
        rows.append(row | {"is_headline": model in headline_models(headline, headline.cohort).values()})
    cohorts = [headline.cohort, *dict.fromkeys(model.cohort for model in models)]
    rows.sort(key=lambda row: cohorts.index(row["model"].cohort))
    for cohort in cohorts:
        of_cohort = [row for row in rows if row["model"].cohort == cohort]
        of_cohort[0]["span"] = len(of_cohort)
    return rows


def tabulate_seeds(
    models: list[cells.Model], comparison: dict[str, Any], metrics: dict[str, Any]
) -> list[dict[str, Any]]:
    """Every distilled student over its seeds: a test a column of `columns_of`, then that of the mean of the data sets.

    That last one is `None` where fewer than two data sets have a value, and is left out where there is one data set.
    """
    rows = []
    for name, model in {model.group: model for model in models if model.kind == "distilled"}.items():
        found = {(test["dataset"], test["mean"]): test for test in comparison[name]["tests"]}
        mean = next((test for test in comparison[name]["tests"] if test["dataset"] is None), None)
        tests = [found[column] for column in columns_of(metrics)]
        rows.append({"model": model, "tests": [*tests, mean] if len(metrics) > 1 else tests})
    return rows


def train_test_matrix(by_cohort: dict[str, Shown], metrics: dict[str, Any], cohorts: Any) -> list[dict[str, Any]]:
    """Train-on/test-on: for each cohort and kind, the mean over the shared findings on each data set."""
    return [
        {
            "cohort": cohort,
            "kind": kind,
            "name": NAMES[kind],
            "scores": [measured["models"][model.id]["means"].get("shared7") for measured in metrics.values()],
            "at_home": [dataset in cohorts[cohort].datasets for dataset in metrics],
        }
        for cohort, shown in by_cohort.items()
        for kind, model in shown.items()
    ]


def per_finding(measured: dict[str, Any], shown: Shown) -> list[dict[str, Any]]:
    """The headline cell, finding by finding."""
    compared = measured["comparisons"]["distilled_minus_twin"][f"{shown['distilled'].id} - {shown['twin'].id}"]
    return [
        {
            "finding": finding,
            "counts": counts,
            "scores": [measured["models"][model.id]["findings"][finding] for model in shown.values()],
            "difference": compared["findings"][finding],
        }
        for finding, counts in measured["findings"].items()
    ]


def points(curve: pd.DataFrame) -> tuple[tuple[float, float], ...]:
    """Share of the schedule and validation AUROC; of a precomputed teacher, which has no schedule, a level line."""
    last = curve["step"].max()
    if not last:
        return tuple((share, float(curve["val_auroc"].iloc[-1])) for share in (0.0, 1.0))
    return tuple(zip(curve["step"] / last, curve["val_auroc"], strict=True))


def draw_curves(curves: dict[str, pd.DataFrame], models: list[cells.Model], headline: Any) -> list[dict[str, Any]]:
    """Validation AUROC of the headline architectures over the schedule, one chart a cohort, all on one axis."""
    chosen = [
        model
        for model in models
        if model.architecture == (headline.teacher if model.kind == "teacher" else headline.student)
        and model.seed in (-1, headline.seed)
        and model.teacher in ("", headline.teacher)
    ]
    limits = charts.span([value for model in chosen for value in curves[model.id]["val_auroc"]], 0.01)
    others = [loss for loss in dict.fromkeys(model.loss for model in chosen) if loss not in ("", headline.loss)]
    styles = {loss: f"other{place % 3}" for place, loss in enumerate(others)}
    drawn = []
    for cohort in dict.fromkeys([headline.cohort, *(model.cohort for model in chosen)]):
        lines = [
            charts.Line(model.loss or model.kind, styles.get(model.loss, model.kind), points(curves[model.id]))
            for model in chosen
            if model.cohort == cohort
        ]
        ends = ", ".join(f"{line.label} {charts.number(line.points[-1][1])}" for line in lines)
        shares = ((0.0, "0"), (0.5, "50%"), (1.0, "100%"))
        chart = charts.lines(f"Validation AUROC, {cohort}: {ends}", lines, limits, shares)
        drawn.append({"cohort": cohort, "chart": chart})
    return drawn


def cost_quality(summary: dict[str, Any], costs: list[dict[str, Any]], size_px: int) -> dict[str, Any] | None:
    """Mean AUROC of the headline's models against what they cost, with the cost's name; None where one has no cost.

    Args:
        summary: of a test.
        costs: rows of the cost table.
        size_px: the side of the films, at which multiply-adds count; parameters, if they were counted at none such.
    """
    own = [row for row in costs if row["is_headline"]]
    if any(row["reason"] for row in own):
        return None
    at_size = {row["role"]: row["macs"] / 1e6 for row in own if row["size_px"] == size_px}
    found = at_size or {row["role"]: row["parameters"] / 1e6 for row in own}
    bars = [
        charts.Bar(NAMES[kind], kind, summary[kind]["auroc"], summary[kind]["low"], summary[kind]["high"])
        for kind in NAMES
    ]
    limits = charts.span([value for bar in bars for value in (bar.value, bar.low, bar.high)], 0.01)
    measure = f"multiply-adds at {size_px} px" if at_size else "parameters"
    of_bars = [found["teacher" if kind == "teacher" else "student"] for kind in NAMES]
    told = ", ".join(f"{bar.label} {charts.number(bar.value)}" for bar in bars)
    chart = charts.cost(f"Mean AUROC against {measure}: {told}", bars, of_bars, limits, "million")
    return {"measure": measure, "chart": chart}


def answers(
    summaries: list[dict[str, Any]], operating: dict[str, Any], explained: dict[str, Any], margin: float
) -> list[tuple[str, str]]:
    """The questions that a reader has first, each with its answer in a sentence.

    Args:
        summaries: the headline's tests; the last is of the mean of the data sets, if there are several.
        operating: data set -> what operate wrote.
        explained: what explain wrote of the headline's cohort.
        margin: how far below its teacher a student still counts as not inferior.
    """
    return [
        ("Does the student keep its teacher's performance?", _kept(summaries[-1], margin)),
        ("What did the teacher give it?", _gained(summaries)),
        ("For whom less?", _for_whom(operating)),
        ("Does it look at the right place?", _looks(explained["datasets"])),
    ]


def _with(value: dict[str, Any], key: str, text: Callable[[float | None], str], is_difference: bool) -> str:
    ends = charts.interval(value["low"], value["high"], is_difference)
    return text(value[key]) + (f" ({ends})" if ends else "")


def _kept(summary: dict[str, Any], margin: float) -> str:
    loss, where = summary["distilled_minus_teacher"], f"on {summary['name']}".replace("on mean", "in the mean")
    if loss["difference"] is None:
        return f"It cannot be told {where}: {loss['reason']}."
    is_kept = loss["non_inferior"]
    verdict_ = "Yes" if is_kept else "Not shown" if loss["high"] is None or loss["high"] > -margin else "No"
    return (
        f"{verdict_}: mean AUROC {charts.number(summary['distilled']['auroc'])} against "
        f"{charts.number(summary['teacher']['auroc'])} {where}, {_with(loss, 'difference', charts.signed, True)}; "
        f"{margin:g} below counts as kept."
    )


def _gained(summaries: list[dict[str, Any]]) -> str:
    gains = {summary["name"]: summary["distilled_minus_twin"] for summary in summaries}
    told = [
        f"{name} {_with(gain, 'difference', charts.signed, True)}"
        for name, gain in gains.items()
        if gain["difference"] is not None
    ]
    sets = [summary for summary in summaries if summary["rows"] is not None]
    above = [one for one in sets if (one["distilled_minus_twin"]["low"] or 0) > 0]
    closed = summaries[-1]["gap_closed"]
    rest = "" if closed["share"] is None else f" It closed {_share(closed)} of the way from twin to teacher."
    count = f"above 0 on {len(above)} of {len(sets)} data sets"
    return f"Mean AUROC over its undistilled twin: {', '.join(told)}; {count}.{rest}"


def _share(closed: dict[str, Any]) -> str:
    ends = (
        ""
        if closed["low"] is None
        else f" ({' to '.join(charts.whole_percent(closed[end]) for end in ('low', 'high'))})"
    )
    return charts.whole_percent(closed["share"]) + ends


def _for_whom(operating: dict[str, Any]) -> str:
    asked, wider = 0, list[str]()
    for dataset, found in operating.items():
        for about in found["subgroups"].values():
            gaps = about["gaps"].get("auroc", {})
            more = gaps.get("distilled_minus_teacher")
            if more is None:
                continue
            asked += 1
            if more["low"] is not None and more["low"] > 0:
                own = gaps["distilled"]
                told = _with(more, "value", charts.signed, True)
                wider.append(f"{own['lower']} against {own['higher']} on {dataset}, by {told}")
    if not asked:
        return "No group of patients is large enough to be scored apart."
    if not wider:
        return f"In none of {asked} comparisons of groups is the student's widest gap of AUROC above its teacher's."
    return (
        f"In {len(wider)} of {asked} comparisons of groups its widest gap of AUROC is above its teacher's: "
        f"{'; '.join(wider)}. The two groups are the student's furthest apart on these films, which favours such a "
        "finding: it is a hint, no proof."
    )


def _looks(datasets: dict[str, Any]) -> str:
    told = []
    for dataset, found in datasets.items():
        if not found["mean"]:
            continue
        pointing = found["mean"]["scores"]["pointing"]
        above_random, above_usual = (
            (pointing[f"distilled_minus_{control}"]["low"] or 0) > 0 for control in ("random", "prior")
        )
        verdict_ = "Not shown"
        if above_random:
            verdict_ = "Yes" if above_usual else "More than a random map, not more than the usual place"
        others = {"random": "a random map's", "prior": "the usual place's", "twin": "its twin's"}
        others["teacher"] = "its teacher's"
        known = {one: words for one, words in others.items() if one in pointing}
        shares = [f"{words} in {charts.percent(pointing[one]['value'])}" for one, words in known.items()]
        own = charts.percent(pointing["distilled"]["value"])
        told.append(
            f"{verdict_}, on {dataset}: its map's maximum lies in a box in {own} of films (mean over findings), "
            f"{', '.join(shares)}."
        )
    return " ".join(told) or "No test film has a box for a finding that it answers."


def in_short(
    summaries: list[dict[str, Any]], operating: dict[str, Any], explained: dict[str, Any], costs: list[dict[str, Any]]
) -> dict[str, Any]:
    """The headline's few numbers, for `dvc metrics show`, `dvc metrics diff` and `dvc exp show`.

    Args:
        summaries: the headline's tests.
        operating: data set -> what operate wrote.
        explained: what explain wrote of the headline's cohort.
        costs: rows of the cost table.
    """
    called = {MEAN_OF_DATASETS: "mean"}
    found: dict[str, Any] = {"auroc": {}, "calls": {}, "calibration_error": {}, "pointing": {}, "cost": {}}
    for summary in summaries:
        of_test = {kind: summary[kind]["auroc"] for kind in NAMES}
        for kind in ("distilled_minus_twin", "distilled_minus_teacher"):
            of_test[kind] = summary[kind]["difference"]
        found["auroc"][called.get(summary["name"], summary["name"])] = of_test
    for dataset, about in operating.items():
        means = about["means"]["models"].get("distilled")
        if means:
            found["calls"][dataset] = {name: means[name]["value"] for name in ("sensitivity", "specificity")}
            found["calibration_error"][dataset] = means["error_after"]["value"]
    for dataset, scored in explained["datasets"].items():
        if scored["mean"]:
            pointing = scored["mean"]["scores"]["pointing"]
            found["pointing"][dataset] = {
                maker: pointing[maker]["value"] for maker in (*NAMES, "random") if maker in pointing
            }
    for row in costs:
        if row["is_headline"] and not row["reason"]:
            exact = {name: row[name] for name in ("parameters", "macs", "weights_bytes")}
            found["cost"].setdefault(row["role"], {})[f"at_{row['size_px']}_px"] = exact
    return found


def plotted(summaries: list[dict[str, Any]], operating: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """Tables for `dvc plots show`: the headline's AUROC, and its reliability curves."""
    auroc = [
        {"test": f"{summary['name']}, {kind}", "auroc": summary[kind]["auroc"]}
        for summary in summaries
        for kind in NAMES
    ]
    calibration = [
        {"model": f"{dataset}, {kind}", "probability": point["probability"], "observed": point["observed"]}
        for dataset, about in operating.items()
        for kind, model in about["means"]["models"].items()
        for point in model["curve_after"]
    ]
    columns = ["model", "probability", "observed"]
    return {"auroc": pd.DataFrame(auroc), "calibration": pd.DataFrame(calibration, columns=columns)}


def reliability(found: dict[str, Any]) -> dict[str, Any]:
    """The reliability curves of a data set's models, before and after calibration, one chart each.

    Args:
        found: what operate wrote of the data set.
    """
    models = found["means"]["models"]
    curves = {
        word: {kind: [(point["probability"], point["observed"]) for point in models[kind][f"curve_{word}"]]
               for kind in models}
        for word in ("before", "after")
    } if models else {}  # fmt: skip
    highest = max(
        (end for by_kind in curves.values() for of in by_kind.values() for ends in of for end in ends), default=1
    )
    drawn = {}
    for word, by_kind in curves.items():
        lines = [charts.Line("calibrated", "other2", ((0.0, 0.0), (1.0, highest)))]
        lines += [
            charts.Line(CALLED[kind].split()[0], kind, tuple((x / highest, y) for x, y in points_))
            for kind, points_ in by_kind.items()
        ]
        shares = [(share, f"{share * highest:.2f}") for share in (0.0, 0.5, 1.0)]
        title = f"Reliability on {found['dataset']}, {word} calibration: share of positives by probability"
        drawn[word] = charts.lines(title, lines, (0.0, highest), shares)
    return drawn


def describe(
    declared: tuple[Any, ...],
    headline: Any,
    metrics: dict[str, Any],
    comparison: dict[str, Any],
    curves: dict[str, pd.DataFrame],
) -> dict[str, Any]:
    """What the templates show of models and metrics.

    Args:
        declared: the values of `cells.PARAMS`.
        headline: of params.yaml.
        metrics: data set -> what evaluate wrote.
        comparison: what compare wrote.
        curves: model id -> its learning curve.
    """
    cohorts, *_, seeds = declared
    models = cells.models(*declared)
    by_cohort = {name: headline_models(headline, name) for name in dict.fromkeys([headline.cohort, *cohorts])}
    shown = by_cohort[headline.cohort]
    summaries = summaries_of(comparison[shown["distilled"].group], metrics, shown)
    settings = next(iter(metrics.values()))["settings"]
    learned = list(finished(curves, shown, seeds, settings["plateau"]))
    return {
        "headline": headline,
        "settings": settings,
        "summaries": summaries,
        "checks": check(summaries, learned, settings["margin"]),
        "columns": columns_of(metrics),
        "results": tabulate(models, metrics, headline),
        "over_seeds": tabulate_seeds(models, comparison, metrics),
        "matrix": train_test_matrix(by_cohort, metrics, cohorts) if len(by_cohort) > 1 else [],
        "per_finding": {dataset: per_finding(measured, shown) for dataset, measured in metrics.items()},
        "curves": draw_curves(curves, models, headline),
        "metrics": metrics,
        "shown": shown,
        "seeds": list(seeds),
    }
