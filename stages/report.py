"""Write the report: one HTML page that opens from disk without a network, and a Markdown page with the main tables.

Reads what evaluate, profile, explain, export, describe, the training stages and `make kd-gain` wrote under reports/.
Writes reports/index.html and reports/report.md; the same inputs give the same bytes.
Stops when a part is missing, or when a part is there that params.yaml no longer declares.
"""

import base64
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.core import arguments, files, findings, params
from stages.judging import cells
from stages.pages import charts, published, rendering

MINUS = charts.MINUS
NAMES = {"teacher": "Teacher", "twin": "Twin", "distilled": "Distilled"}
COMMON_MEANS = ("all", "shared7")  # that evaluate reports for every data set
LATE = 0.75  # the last quarter of a schedule begins here

Shown = dict[str, cells.Model]  # kind -> the headline's model of a cohort


def read_metrics(folder: Path, datasets: list[str]) -> dict[str, Any]:
    """Data set -> what evaluate wrote."""
    cells.require_declared(folder, "*", {f"{dataset}.json" for dataset in datasets})
    return {dataset: files.read_json(folder / f"{dataset}.json") for dataset in datasets}


def read_curves(folder: Path, models: list[cells.Model]) -> dict[str, pd.DataFrame]:
    """Model id -> its learning curve."""
    cells.require_declared(folder, "**/*.csv", {f"{model.id}.csv" for model in models})
    curves = {}
    for model in models:
        with (folder / f"{model.id}.csv").open(encoding="utf-8") as file:
            curves[model.id] = pd.read_csv(file).dropna(subset="val_auroc")
    return curves


def read_costs(folder: Path, roles: dict[str, list[str]]) -> list[dict[str, Any]]:
    """What profile wrote of each architecture, exact figures and measured times together."""
    kinds = ("json", "timing.json")
    wanted = {f"{role}/{arch}.{kind}" for role, archs in roles.items() for arch in archs for kind in kinds}
    cells.require_declared(folder, "**/*.json", wanted)
    return [
        {
            "role": role,
            "architecture": arch,
            "exact": files.read_json(folder / role / f"{arch}.json"),
            "timing": files.read_json(folder / role / f"{arch}.timing.json"),
        }
        for role, archs in roles.items()
        for arch in archs
    ]


def read_explained(folder: Path, cohorts: list[str]) -> dict[str, Any]:
    """Cohort -> what explain wrote, with its gallery as a data URI."""
    cells.require_declared(folder, "*.json", {f"{cohort}.json" for cohort in cohorts})
    cells.require_declared(folder, "*.png", {f"{cohort}_gallery.png" for cohort in cohorts})
    explained = {}
    for cohort in cohorts:
        picture = base64.b64encode((folder / f"{cohort}_gallery.png").read_bytes()).decode()
        explained[cohort] = files.read_json(folder / f"{cohort}.json") | {"gallery": f"data:image/png;base64,{picture}"}
    return explained


def read_studies(folder: Path, title: str) -> dict[str, Any]:
    """Study -> its result, of the studies of `make kd-gain` on data of this run, which its title tells.

    The chosen loss comes first of the losses, the mean of the data sets last of the tests.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        study = files.read_json(path)
        if study["title"] != title:
            continue
        losses = [study["loss"], *(name for name in study["chosen"] if name not in ("twin", study["loss"]))]
        tests = {
            cohort: {name: of_cohort[name] for name in sorted(of_cohort, key=lambda name: (name == "joint", name))}
            for cohort, of_cohort in study["tests"].items()
        }
        found[path.stem] = study | {"losses": losses, "tests": tests}
    return found


def main_mean(measured: dict[str, Any]) -> str:
    """The mean that is quoted for a data set: the first by name that its own benchmark averages, else all findings."""
    own = (name for name in measured["means"] if name not in COMMON_MEANS and not name.endswith("_per_study"))
    return min(own, default="all")


def headline_models(headline: Any, cohort: str) -> Shown:
    """The models of a cohort that the headline names: teacher, twin and distilled."""
    distilled = cells.headline_model(headline, cohort)
    return {"teacher": distilled.its_teacher(), "twin": distilled.twin(), "distilled": distilled}


def summarize(dataset: str, measured: dict[str, Any], shown: Shown) -> dict[str, Any]:
    """The headline cell on one data set: scores, paired differences, charts."""
    mean = main_mean(measured)
    scores = {kind: measured["models"][model.id]["means"][mean] for kind, model in shown.items()}
    differences = {}
    for kind in ("teacher_minus_twin", "distilled_minus_twin", "distilled_minus_teacher"):
        model, less = (shown[part] for part in kind.split("_minus_"))
        differences[kind] = measured["comparisons"][kind][f"{model.id} - {less.id}"]["means"][mean]
    ends = [score[end] for score in scores.values() for end in ("auroc", "low", "high")]
    bars = [
        charts.Bar(NAMES[kind], kind, score["auroc"], score["low"], score["high"]) for kind, score in scores.items()
    ]
    return {
        "dataset": dataset,
        "mean": mean,
        "findings": measured["means"][mean]["findings"],
        "undefined": scores["distilled"]["undefined"],
        "n_findings": scores["distilled"]["n_findings"],
        "rows": measured["rows"],
        "scores": scores,
        "differences": differences,
        "limits": charts.span(ends, 0.01),
        "bars": bars,
    }


def draw_forests(summaries: list[dict[str, Any]]) -> None:
    """Add the forest chart of each data set, all on one axis."""
    limits = charts.span([end for summary in summaries for end in summary["limits"]], 0)
    for summary in summaries:
        title = f"Mean AUROC on {summary['dataset']}: " + ", ".join(
            f"{bar.label} {charts.number(bar.value)}" for bar in summary["bars"]
        )
        summary["chart"] = charts.forest(title, summary["bars"], limits)


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


def check(
    summaries: list[dict[str, Any]], twin_curve: pd.DataFrame, margin: float, plateau: float
) -> list[dict[str, Any]]:
    """The questions that decide whether the comparison means anything, each with its evidence per data set."""

    def ask(question: str, meaning: str, kind: str, bound: float) -> dict[str, Any]:
        values = [summary["differences"].get(kind) or summary["scores"][kind] for summary in summaries]
        evidence = [{"value": value, "verdict": verdict(is_above(value, bound))} for value in values]
        return {"question": question, "meaning": meaning, "evidence": evidence}

    final, gained = late_gain(twin_curve)
    ended = f"its validation AUROC ended at {final:.3f}, {charts.signed(gained)} in the last quarter of its schedule"
    finished = {"value": {"difference": gained, "low": None, "high": None}, "verdict": verdict(gained < plateau)}
    above = "the whole interval is above"
    return [
        ask("Is there something to distil?", f"teacher {MINUS} twin: {above} 0", "teacher_minus_twin", 0),
        ask("Did the student learn without a teacher?", f"the twin's AUROC: {above} 0.5; {ended}", "twin", 0.5),
        {
            "question": "Had it finished learning?",
            "meaning": f"the twin gained less than {plateau:g} in the last quarter of its schedule",
            "evidence": [finished],
        },
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
    columns = []
    for dataset, measured in metrics.items():
        mean = main_mean(measured)
        columns += [(dataset, name) for name in (mean, f"{mean}_per_study") if name in measured["means"]]
    return columns


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


def tabulate_seeds(models: list[cells.Model], metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Every distilled student over its seeds: the difference of the means from its twin, and the spread."""
    first = min(model.seed for model in models if model.kind == "distilled")
    rows = []
    for model in models:
        if model.kind == "distilled" and model.seed == first:
            key = " - ".join(side.id.rpartition("/")[0] for side in (model, model.twin()))
            scores = [metrics[dataset]["over_seeds"][key]["means"][mean] for dataset, mean in columns_of(metrics)]
            rows.append({"model": model, "scores": scores})
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


def list_costs(costs: list[dict[str, Any]], headline: Any) -> list[dict[str, Any]]:
    """The cost table: a row for each architecture and input size, or one with the reason for which there is no cost."""
    rows = []
    for cost in costs:
        shared = {
            "role": cost["role"],
            "architecture": cost["architecture"],
            "is_headline": cost["architecture"] == getattr(headline, cost["role"]),
            "reason": cost["exact"]["reason"],
        }
        if shared["reason"]:
            rows.append(shared)
        for compute, run in zip(cost["exact"]["compute"], cost["timing"]["runs"], strict=True):
            row = {
                "size_px": compute["size_px"],
                "parameters": cost["exact"]["parameters"],
                "weights_bytes": cost["exact"]["weights_bytes"],
                "macs": compute["macs"],
                "latency_ms": run["latency_ms"],
                "memory_bytes": run["peak_bytes"] - run["libraries_bytes"],
            }
            rows.append(shared | row)
    return rows


def describe_costs(costs: list[dict[str, Any]], headline: Any) -> dict[str, Any]:
    """What the templates show of costs."""
    computed = [compute for cost in costs for compute in cost["exact"]["compute"]]
    chosen = {cost["role"]: cost for cost in costs if cost["architecture"] == getattr(headline, cost["role"])}
    return {
        "costs": list_costs(costs, headline),
        "parameters": {role: cost["exact"]["parameters"] for role, cost in chosen.items()},
        "no_cost": {role: cost["exact"]["reason"] for role, cost in chosen.items()},
        "machine": chosen["student"]["timing"]["machine"],
        "outputs": chosen["student"]["exact"]["outputs"],
        "not_counted": sorted({name.removeprefix("aten::") for compute in computed for name in compute["not_counted"]}),
    }


def order_scores(names: Iterable[str]) -> list[str]:
    """The scores of a map: pointing game and energy first, then IoBB and its thresholds."""
    return sorted(names, key=lambda name: (name != "pointing", name != "energy", len(name) > len("iobb"), name))


def describe(
    models: list[cells.Model], cohorts: Any, headline: Any, metrics: dict[str, Any], curves: dict[str, pd.DataFrame]
) -> dict[str, Any]:
    """What the templates show of models and metrics."""
    distilled = {model.cohort for model in models if model.kind == "distilled"}
    by_cohort = {name: headline_models(headline, name) for name in [headline.cohort, *cohorts] if name in distilled}
    shown = by_cohort[headline.cohort]
    summaries = [summarize(dataset, measured, shown) for dataset, measured in metrics.items()]
    draw_forests(summaries)
    settings = next(iter(metrics.values()))["settings"]
    return {
        "headline": headline,
        "settings": settings,
        "summaries": summaries,
        "checks": check(summaries, curves[shown["twin"].id], settings["margin"], settings["plateau"]),
        "columns": columns_of(metrics),
        "results": tabulate(models, metrics, headline),
        "over_seeds": tabulate_seeds(models, metrics),
        "matrix": train_test_matrix(by_cohort, metrics, cohorts),
        "per_finding": {dataset: per_finding(measured, shown) for dataset, measured in metrics.items()},
        "curves": draw_curves(curves, models, headline),
        "metrics": metrics,
        "shown": shown,
        "seeds": sorted({model.seed for model in models if model.kind == "twin"}),
    }


def main(argv: list[str] | None = None) -> None:
    """Write reports/index.html and reports/report.md."""
    arguments.parser(__doc__).parse_args(argv)
    *declared, title, drawn, phantom, datasets = params.load(*cells.PARAMS, "title", "phantoms", "phantom", "datasets")
    cohorts, teachers, students, *_, headline = declared
    models = cells.models(*declared)
    metrics = read_metrics(files.input("reports/metrics"), list(datasets))
    curves = read_curves(files.input("reports/curves"), models)
    costs = read_costs(files.input("reports/profile"), {"teacher": list(teachers), "student": list(students)})
    labels = files.input("reports/labels.html").read_text(encoding="utf-8")
    context = {
        "title": title,
        "drawn": [name for name in datasets if name in drawn],
        "real": [name for name in datasets if name not in drawn],
        "phantom": phantom,
        "labels": rendering.block(labels, "labels").group(1),
        "studies": read_studies(files.input("reports/kd_gain"), title),
        "style": files.input("stages/pages/page.css").read_text(encoding="utf-8"),
        "ordered": order_scores,
        "titles": findings.vocabulary(files.input("stages/findings.csv")).titles,
        "explained": read_explained(files.input("reports/explain"), list(cohorts)),
        "exported": files.read_json(files.input("reports/export/export.json")),
        "published": published.FIGURES,
        **describe(models, cohorts, headline, metrics, curves),
        **describe_costs(costs, headline),
    }
    page = files.input("stages/pages/report.html.j2").read_text(encoding="utf-8")
    summary = files.input("stages/pages/report.md.j2").read_text(encoding="utf-8")
    with files.output("reports/index.html") as temporary:
        temporary.write_text(rendering.render(page, context, is_html=True), encoding="utf-8")
    with files.output("reports/report.md") as temporary:
        temporary.write_text(rendering.render(summary, context, is_html=False), encoding="utf-8")


if __name__ == "__main__":
    main()
