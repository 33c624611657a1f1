"""Write the report: one HTML page that opens from disk without a network, and a Markdown page with the main tables.

Reads what compare, evaluate, operate, atlas, card, profile, explain, export, agree, describe, choice, stamps and curves
wrote under reports/. Writes reports/index.html and reports/report.md, reports/cards (the headline's model card, and
what reporting checklists ask), the headline's few numbers to reports/summary.json, and tables for `dvc plots show` to
reports/plots/; the same inputs give the same bytes.
Stops when a part is missing, or when a part is there that params.yaml no longer declares.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from stages.core import arguments, files, findings, params
from stages.judging import cells
from stages.pages import addresses, cards, charts, published, rendering, results


def read_each(folder: Path, names: list[str]) -> dict[str, Any]:
    """Data set -> what evaluate, operate, atlas or card wrote of it; the same of cohorts and explain."""
    cells.require_declared(folder, "*.json", {f"{name}.json" for name in names})
    return {name: addresses.read(folder / f"{name}.json") for name in names}


EAGER = ("pytorch", 1, 1)  # runtime, threads and batch of the cost table's latency


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
            "exact": addresses.read(folder / role / f"{arch}.json"),
            "timing": addresses.read(folder / role / f"{arch}.timing.json"),
        }
        for role, archs in roles.items()
        for arch in archs
    ]


def taken(run: dict[str, Any]) -> int:
    """Bytes of memory that a timed process took above what its libraries take."""
    peak, libraries = run["peak_bytes"], run["libraries_bytes"]
    bytes_: int = addresses.derived(peak - libraries, [peak, libraries])
    return bytes_


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
        alone = [run for run in cost["timing"]["runs"] if (run["runtime"], run["threads"], run["batch"]) == EAGER]
        for compute, run in zip(cost["exact"]["compute"], alone, strict=True):
            row = {
                "size_px": compute["size_px"],
                "parameters": cost["exact"]["parameters"],
                "weights_bytes": cost["exact"]["weights_bytes"],
                "macs": compute["macs"],
                "activation_bytes": compute["activation_bytes"],
                "latency_ms": run["latency_ms"],
                "memory_bytes": taken(run),
            }
            rows.append(shared | row)
    return rows


def list_runtimes(costs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each runtime took for each architecture, threads and size: single films beside batches, a row each."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for cost in costs:
        for run in cost["timing"]["runs"]:
            row = {"role": cost["role"], "architecture": cost["architecture"]}
            row |= {name: run[name] for name in ("runtime", "threads", "size_px")}
            shown = {"p50": run["latency_ms"]["p50"], "p95": run["latency_ms"]["p95"], "joules": run["joules"]}
            shown |= {"memory_bytes": taken(run), "cold_ms": run["cold_ms"]}
            rows.setdefault(tuple(row.values()), row)[f"batch_{run['batch']}"] = shown
    return list(rows.values())


def same_products(compute: dict[str, Any]) -> bool:
    """Whether both counters agree over what both count, all but batch norms and pooling."""
    products = sum(n for name, n in compute["macs_by_operator"].items() if "norm" not in name and "pool" not in name)
    return bool(products == compute["by_torch"]["macs"])


def describe_layers(cost: dict[str, Any], role: str, size_px: int) -> dict[str, Any] | None:
    """An architecture's layers at a size, or at the smallest that was measured, table and picture; None without."""
    computed = cost["exact"]["compute"]
    if not computed:
        return None
    compute = next((one for one in computed if one["size_px"] == size_px), computed[0])
    names, macs = ([layer[key] for layer in compute["layers"]] for key in ("name", "macs"))
    told = f"Share of multiply-adds of each layer of {cost['architecture']}"
    return {
        "architecture": cost["architecture"],
        "size_px": compute["size_px"],
        "layers": compute["layers"],
        "chart": charts.bars(told, names, macs, "teacher" if role == "teacher" else "distilled"),
    }


def describe_costs(costs: list[dict[str, Any]], headline: Any, size_px: int) -> dict[str, Any]:
    """What the templates show of costs.

    Args:
        costs: as `read_costs` reads them.
        headline: of params.yaml.
        size_px: the side of the films.
    """
    computed = [compute for cost in costs for compute in cost["exact"]["compute"]]
    chosen = {cost["role"]: cost for cost in costs if cost["architecture"] == getattr(headline, cost["role"])}
    return {
        "costs": list_costs(costs, headline),
        "parameters": {role: cost["exact"]["parameters"] for role, cost in chosen.items()},
        "no_cost": {role: cost["exact"]["reason"] for role, cost in chosen.items()},
        "machine": chosen["student"]["timing"]["machine"],
        "outputs": chosen["student"]["exact"]["outputs"],
        "runtimes": list_runtimes(costs),
        "no_onnx": {one["architecture"]: one["timing"]["no_onnx"] for one in costs if one["timing"]["no_onnx"]},
        "layers": [describe_layers(chosen[role], role, size_px) for role in ("student", "teacher")],
        "counted_alike": all(same_products(compute) for compute in computed),
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
            "trials": addresses.derived(len(found["trials"]), [trial["val_auroc"] for trial in found["trials"]]),
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


def fill(templates: dict[str, Path], context: dict[str, Any]) -> dict[str, str]:
    """Each template's text: the parts of the HTML page first, which it takes over.

    Args:
        templates: name -> file; a part's name is that by which the page has it.
        context: what they show.
    """
    filled: dict[str, str] = {}
    for name, path in templates.items():
        is_html = path.name.endswith(".html.j2")
        filled[name] = rendering.render(path.read_text(encoding="utf-8"), context | filled, is_html)
    return filled


def main(argv: list[str] | None = None) -> None:
    """Write the pages, the model card and what DVC shows."""
    arguments.parser(__doc__).parse_args(argv)
    *declared, headline, title, drawn, phantom, datasets = params.load(
        *cells.PARAMS, "headline", "title", "phantoms", "phantom", "datasets"
    )
    cohorts, teachers, students, *_ = declared
    metrics = read_each(files.input("reports/metrics"), list(datasets))
    operating = read_each(files.input("reports/operating"), list(datasets))
    comparison = addresses.read(files.input("reports/comparison.json"))
    explained = read_each(files.input("reports/explain"), list(cohorts))
    exported = addresses.read(files.input("reports/export/student.json"))
    agreement = read_each(files.input("reports/agreement"), list(datasets))
    curves = read_curves(files.input("reports/curves"), cells.models(*declared))
    costs = read_costs(files.input("reports/profile"), {"teacher": list(teachers), "student": list(students)})
    titles = findings.vocabulary(files.input("stages/findings.csv")).titles
    labels = files.input("reports/labels.html").read_text(encoding="utf-8")
    templates = {
        "findings_page": files.input("stages/pages/findings.html.j2"),
        "operating_page": files.input("stages/pages/operating.html.j2"),
        "soundness_page": files.input("stages/pages/soundness.html.j2"),
        "html": files.input("stages/pages/report.html.j2"),
        "markdown": files.input("stages/pages/report.md.j2"),
        "model": files.input("stages/pages/model_card.md.j2"),
        "checklists": files.input("stages/pages/checklists.md.j2"),
    }
    guidelines = pd.read_csv(files.input("stages/pages/checklists.csv"), dtype=str)
    learnt_from = cohorts[headline.cohort].datasets
    context = {
        "title": title,
        "drawn": [name for name in datasets if name in drawn],
        "real": [name for name in datasets if name not in drawn],
        "phantom": phantom,
        "labels": rendering.without(rendering.block(labels, "labels").group(1), "together"),
        "choice": describe_choice(addresses.read(files.input("reports/choice.json"))),
        "style": files.input("stages/pages/page.css").read_text(encoding="utf-8"),
        "script": files.input("stages/pages/page.js").read_text(encoding="utf-8"),
        "ordered": order_scores,
        "titles": titles,
        "explained": explained,
        "exported": exported,
        "agreement": agreement,
        "calls_changed": max(found["flipped_mean"] or 0 for one in agreement.values() for found in one.values()),
        "published": published.FIGURES,
        "operating": operating,
        "reliability": {dataset: results.reliability(found) for dataset, found in operating.items()},
        "atlas": read_each(files.input("reports/atlas"), list(datasets)),
        "data_cards": read_each(files.input("reports/data_cards"), list(datasets)),
        "learnt_from": learnt_from,
        "answered": [titles[name] for name in titles if any(name in datasets[one].findings for one in learnt_from)],
        "checklists": cards.checklists(guidelines),
        "stamps": addresses.read(files.input("reports/stamps.json")),
        **results.describe(tuple(declared), headline, metrics, comparison, curves),
        **describe_costs(costs, headline, exported["size_px"]),
    }
    of_headline, summaries = explained[headline.cohort], context["summaries"]
    context["answers"] = results.answers(summaries, operating, of_headline, context["settings"]["margin"])
    context["cost_quality"] = results.cost_quality(summaries[-1], context["costs"], exported["size_px"])
    written = fill(templates, context)
    own = context["shown"]["distilled"].id
    scores = {
        test["name"]: metrics[test["name"]]["models"][own]["means"][test["mean"]]["auroc"]
        for test in summaries
        if test["rows"]
    }
    head = cards.metadata(scores, headline, context["drawn"])
    with files.output("reports/summary.json") as temporary:
        files.write_json(results.in_short(summaries, operating, of_headline, context["costs"]), temporary)
    with files.output("reports/plots") as temporary:
        temporary.mkdir()
        for name, table in results.plotted(summaries, operating).items():
            table.to_csv(temporary / f"{name}.csv", index=False)
    with files.output("reports/index.html") as temporary:
        temporary.write_text(rendering.shortened(written["html"]), encoding="utf-8")
    with files.output("reports/report.md") as temporary:
        temporary.write_text(written["markdown"], encoding="utf-8")
    with files.output("reports/cards/model.md") as temporary:
        temporary.write_text(head + written["model"], encoding="utf-8")
    with files.output("reports/cards/checklists.md") as temporary:
        temporary.write_text(written["checklists"], encoding="utf-8")


if __name__ == "__main__":
    main()
