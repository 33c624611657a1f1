"""Write the report: one HTML page that opens from disk without a network, and a Markdown page with the main tables.

Reads what compare, evaluate, operate, profile, explain, export, describe, choice and the training stages wrote under
reports/. Writes reports/index.html and reports/report.md; the same inputs give the same bytes.
Also writes the headline's few numbers to reports/summary.json, and tables for `dvc plots show` to reports/plots/.
Stops when a part is missing, or when a part is there that params.yaml no longer declares.
"""

import base64
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from stages.core import arguments, files, findings, params
from stages.judging import cells
from stages.pages import published, rendering, results


def read_per_dataset(folder: Path, datasets: list[str]) -> dict[str, Any]:
    """Data set -> what evaluate, or operate, wrote of it."""
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


def as_text(value: Any) -> str:
    """A setting as a table shows it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def tried(trials: list[dict[str, Any]]) -> dict[str, str]:
    """Setting -> what was tried of it: the range of numbers, or each of the names."""
    found = {}
    for name in dict.fromkeys(name for trial in trials for name in trial if not name.startswith("val_auroc")):
        values = list(dict.fromkeys(trial[name] for trial in trials if name in trial))
        if len(values) > 2 and all(isinstance(value, int | float) for value in values):
            found[name] = f"{as_text(min(values))} to {as_text(max(values))}"
        else:
            found[name] = ", ".join(map(as_text, values))
    return found


def describe_choice(choice: dict[str, Any]) -> dict[str, Any]:
    """What the templates show of the trials that chose the settings, the twin first, then the chosen loss."""

    def ordered(by_method: dict[str, Any]) -> list[tuple[str, Any]]:
        return sorted(by_method.items(), key=lambda item: (item[0] != "twin", item[0] != choice["loss"], item[0]))

    methods, curves = (choice[key] or {} for key in ("methods", "longer"))
    rows = [
        {
            "method": method,
            "trials": len(found["trials"]),
            "val_auroc": found["val_auroc"],
            "chosen": {name: as_text(value) for name, value in found["chosen"].items()},
            "tried": tried(found["trials"]),
        }
        for method, found in ordered(methods)
    ]
    steps = sorted({point["steps"] for points in curves.values() for point in points})
    longer = {
        method: [next((point["val_auroc"] for point in points if point["steps"] == step), None) for step in steps]
        for method, points in ordered(curves)
    }
    return choice | {"methods": rows, "longer": longer, "longer_steps": steps}


def main(argv: list[str] | None = None) -> None:
    """Write reports/index.html and reports/report.md."""
    arguments.parser(__doc__).parse_args(argv)
    *declared, headline, title, drawn, phantom, datasets = params.load(
        *cells.PARAMS, "headline", "title", "phantoms", "phantom", "datasets"
    )
    cohorts, teachers, students, *_ = declared
    metrics = read_per_dataset(files.input("reports/metrics"), list(datasets))
    operating = read_per_dataset(files.input("reports/operating"), list(datasets))
    comparison = files.read_json(files.input("reports/comparison.json"))
    curves = read_curves(files.input("reports/curves"), cells.models(*declared))
    costs = read_costs(files.input("reports/profile"), {"teacher": list(teachers), "student": list(students)})
    labels = files.input("reports/labels.html").read_text(encoding="utf-8")
    context = {
        "title": title,
        "drawn": [name for name in datasets if name in drawn],
        "real": [name for name in datasets if name not in drawn],
        "phantom": phantom,
        "labels": rendering.block(labels, "labels").group(1),
        "choice": describe_choice(files.read_json(files.input("reports/choice.json"))),
        "style": files.input("stages/pages/page.css").read_text(encoding="utf-8"),
        "ordered": order_scores,
        "titles": findings.vocabulary(files.input("stages/findings.csv")).titles,
        "explained": read_explained(files.input("reports/explain"), list(cohorts)),
        "exported": files.read_json(files.input("reports/export/export.json")),
        "published": published.FIGURES,
        "operating": operating,
        "reliability": {dataset: results.reliability(found) for dataset, found in operating.items()},
        **results.describe(tuple(declared), headline, metrics, comparison, curves),
        **describe_costs(costs, headline),
    }
    context["answers"] = results.answers(
        context["summaries"], operating, context["explained"][headline.cohort], context["settings"]["margin"]
    )
    part = files.input("stages/pages/operating.html.j2").read_text(encoding="utf-8")
    context["operating_page"] = rendering.render(part, context, is_html=True)
    part = files.input("stages/pages/soundness.html.j2").read_text(encoding="utf-8")
    context["soundness_page"] = rendering.render(part, context, is_html=True)
    page = files.input("stages/pages/report.html.j2").read_text(encoding="utf-8")
    summary = files.input("stages/pages/report.md.j2").read_text(encoding="utf-8")
    plots = results.plotted(context["summaries"], operating)
    with files.output("reports/summary.json") as temporary:
        shown = context["explained"][headline.cohort]
        files.write_json(results.in_short(context["summaries"], operating, shown, context["costs"]), temporary)
    with files.output("reports/plots") as temporary:
        temporary.mkdir()
        for name, table in plots.items():
            table.to_csv(temporary / f"{name}.csv", index=False)
    with files.output("reports/index.html") as temporary:
        temporary.write_text(rendering.render(page, context, is_html=True), encoding="utf-8")
    with files.output("reports/report.md") as temporary:
        temporary.write_text(rendering.render(summary, context, is_html=False), encoding="utf-8")


if __name__ == "__main__":
    main()
