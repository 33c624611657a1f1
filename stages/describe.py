"""One page on labels and films, readable before anything is trained: what was mapped, dropped and rejected.

Reads what harmonize and ingest wrote under reports/labels. Writes reports/labels.html, whose block between the markers
`labels` the report takes over, and reports/labels.md; the same inputs give the same bytes.
Stops when a part is missing, or when a part is there that params.yaml no longer declares.
"""

from pathlib import Path
from typing import Any

from stages.core import arguments, files, findings, params
from stages.judging import cells
from stages.pages import addresses, charts, rendering
from stages.sources import splits

STATED = ("present", "absent", "implied")
UNSTATED = ("uncertain", "blank")
MISSING = "missing"
SHOWN = 10  # groups of films that are named


def read_labels(folder: Path, datasets: list[str]) -> dict[str, Any]:
    """Data set -> what harmonize and ingest wrote of it."""
    kinds = ("terms", "images")
    cells.require_declared(folder, "*.json", {f"{dataset}.{kind}.json" for dataset in datasets for kind in kinds})
    return {
        dataset: {kind: addresses.read(folder / f"{dataset}.{kind}.json") for kind in kinds} for dataset in datasets
    }


def describe_finding(counts: dict[str, dict[str, int]]) -> dict[str, Any]:
    """A finding's facts over all splits, and its shares of what is stated and of all films; `None` of nothing."""
    parts = {fact: [of_split[fact] for of_split in counts.values()] for fact in (*STATED, *UNSTATED, MISSING)}
    facts = {fact: addresses.derived(sum(of_fact), of_fact) for fact, of_fact in parts.items()}
    stated, films = sum(facts[fact] for fact in STATED), sum(facts.values())
    return facts | {
        "by_split": {split: counts[split]["present"] for split in splits.SPLITS},
        "is_annotated": facts[MISSING] < films,
        "of_stated": addresses.derived(facts["present"] / stated, facts.values()) if stated else None,
        "of_films": addresses.derived(facts["present"] / films, facts.values()) if films else None,
    }


def describe_terms(terms: dict[str, Any], titles: dict[str, str]) -> list[dict[str, Any]]:
    """The source's terms and what became of each, the most frequent first."""
    described = []
    for term, found in sorted(terms.items(), key=lambda item: (-item[1]["count"], item[0])):
        targets = ", ".join(titles[name] for name in found["findings"])
        kind = "unmapped" if found["unmapped"] else "rule" if found["rule"] else "finding"
        described.append({"term": term, "count": found["count"], "kind": kind, "becomes": targets or found["rule"]})
    return described


def describe(dataset: str, split: str, written: dict[str, Any], titles: dict[str, str]) -> dict[str, Any]:
    """What the templates show of a data set."""
    labels, images = written["terms"], written["images"]
    facts = {finding: describe_finding(counts) for finding, counts in labels["findings"].items()}
    annotated = [finding for finding in titles if facts[finding]["is_annotated"]]
    together = [[labels["together"][row][column] for column in annotated] for row in annotated]
    terms = describe_terms(labels["terms"], titles)
    title = f"Findings of {dataset} that films show together, as share of the films with the row's finding"
    return {
        "dataset": dataset,
        "split": split,
        "labels": labels,
        "images": images,
        "facts": facts,
        "annotated": annotated,
        "never": [titles[finding] for finding in titles if finding not in annotated],
        "together": together,
        "heat": charts.heat(title, [titles[finding] for finding in annotated], together),
        "terms": terms,
        "kinds": {kind: sum(term["kind"] == kind for term in terms) for kind in ("finding", "rule", "unmapped")},
        "unmapped": sum(term["count"] for term in terms if term["kind"] == "unmapped"),
        "mentions": sum(term["count"] for term in terms),
    }


def main(argv: list[str] | None = None) -> None:
    """Write reports/labels.html and reports/labels.md."""
    arguments.parser(__doc__).parse_args(argv)
    title, phantoms, datasets = params.load("title", "phantoms", "datasets")
    labels = read_labels(files.input("reports/labels"), list(datasets))
    titles = findings.vocabulary(files.input("stages/findings.csv")).titles
    context = {
        "title": title,
        "drawn": [name for name in datasets if name in phantoms],
        "real": [name for name in datasets if name not in phantoms],
        "titles": titles,
        "data": [describe(dataset, datasets[dataset].split, found, titles) for dataset, found in labels.items()],
        "shown": SHOWN,
        "style": files.input("stages/pages/page.css").read_text(encoding="utf-8"),
        "script": files.input("stages/pages/page.js").read_text(encoding="utf-8"),
    }
    page = files.input("stages/pages/describe.html.j2").read_text(encoding="utf-8")
    summary = files.input("stages/pages/describe.md.j2").read_text(encoding="utf-8")
    with files.output("reports/labels.html") as temporary:
        temporary.write_text(rendering.render(page, context, is_html=True), encoding="utf-8")
    with files.output("reports/labels.md") as temporary:
        temporary.write_text(rendering.render(summary, context, is_html=False), encoding="utf-8")


if __name__ == "__main__":
    main()
