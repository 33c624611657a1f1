"""The report: what it says, what it leaves out, that it needs no network and that its bytes are stable."""

import json
import re
import shutil
import sys
from collections.abc import Iterable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import owners
import pandas as pd
import pytest

from stages import compare, evaluate, operate, report
from stages.core import files, findings, params, plugins, schema
from stages.judging import cells, evaluation
from stages.pages import addresses, charts, rendering, results

REPOSITORY = Path(__file__).parent.parent
SETTINGS = schema.Evaluate(replicates=100, confidence=0.95, min_positives=20, margin=0.02, plateau=0.01)
OPERATE = schema.Operate(rule="sensitivity", sensitivity=0.8, min_positives=5, bins=5, min_group=40, age_bands=[40, 60])
HEADLINE = schema.Headline.model_construct(
    cohort="joint", student="eeea_net_c2", teacher="resnet18", loss="sigmoid_kd", seed=0
)
DATASETS = {
    "chestxray14": findings.vocabulary().names[:14],
    "chexpert": [*evaluation.SHARED, "Support_Devices", "Fracture"],
    "padchest": [*evaluation.SHARED, "Nodule", "Scoliosis", "Tuberculosis"],
}
COHORTS = {name: SimpleNamespace(datasets=[name]) for name in DATASETS}
COHORTS["joint"] = SimpleNamespace(datasets=list(DATASETS))
LOSSES = ("sigmoid_kd", "paper")
GROUP = "joint/eeea_net_c2/resnet18/sigmoid_kd"
CHOICE = {
    "name": "drawn", "cohort": "joint", "steps": 600, "seeds": [100, 101], "loss": "sigmoid_kd",
    "stale": [], "differs": [],
    "methods": {
        "twin": {"chosen": {"lr": 0.4}, "val_auroc": 0.7561, "trials": [
            {"lr": 0.2, "val_auroc": 0.74}, {"lr": 0.4, "val_auroc": 0.7561}, {"lr": 0.8, "val_auroc": None}]},
        "sigmoid_kd": {"chosen": {"lr": 1.6, "softening": "sigmoid"}, "val_auroc": 0.7912, "trials": [
            {"lr": 1.6, "softening": "sigmoid", "val_auroc": 0.7912},
            {"lr": 1.6, "softening": "softmax", "val_auroc": 0.73}]},
        "dist_corr": {"chosen": {"lr": 1}, "val_auroc": 0.71, "trials": [{"lr": 1, "val_auroc": 0.71}]},
    },
    "longer": {"twin": [{"steps": 1200, "val_auroc": 0.802}, {"steps": 600, "val_auroc": 0.7561}],
               "sigmoid_kd": [{"steps": 600, "val_auroc": 0.7912}]},
}  # fmt: skip
NO_CHOICE = dict.fromkeys(("name", "cohort", "steps", "seeds", "loss")) | {
    "stale": [], "differs": [], "methods": {}, "longer": {},
}  # fmt: skip


def declared(losses: tuple[str, ...] = LOSSES, seeds: tuple[int, ...] = (0,)) -> tuple[Any, ...]:
    """What `params.load(*cells.PARAMS)` gives."""
    return COHORTS, {"resnet18": 0}, {"eeea_net_c2": 0}, dict.fromkeys(losses), {}, list(seeds)


def outputs(cohort: str) -> list[str]:
    """The findings of a cohort."""
    return findings.vocabulary().in_order({name for dataset in COHORTS[cohort].datasets for name in DATASETS[dataset]})


def measure(
    dataset: str, models: list[cells.Model], films: int = 300
) -> tuple[dict[str, Any], pd.DataFrame, dict[str, Any]]:
    """What evaluate writes of made-up predictions, metrics and replicates, and what operate does."""
    rng = np.random.default_rng(len(dataset))
    names = DATASETS[dataset]
    targets = (rng.random((films, len(names))) < rng.uniform(0.04, 0.3, len(names))).astype(float)
    if "Hernia" in names:
        targets[:, names.index("Hernia")] = 0
    shared, scores = rng.standard_normal(targets.shape), {}
    for place, model in enumerate(models):
        noise = {"teacher": 0.7, "distilled": 0.8, "twin": 1.2}[model.kind]
        own = np.random.default_rng(place).standard_normal(targets.shape)
        scores[model.id] = (targets + noise * (0.8 * shared + 0.6 * own)).astype(np.float32)
        scores[model.id][:, [name not in outputs(model.cohort) for name in names]] = np.nan
    sample = evaluation.Sample(names, targets, np.arange(films) // 2, scores)
    studies = (np.arange(films) // 2).astype(str)
    means = evaluation.means_of(names, getattr(plugins.load("datasets", dataset), "MEANS", {}))
    areas = evaluate.resample(sample, studies, dataset, means, SETTINGS, seed=0, workers=1)
    measured = evaluate.evaluate(areas, dataset, models, SETTINGS) | {"without_prediction": 3}
    return measured, areas.replicates(), operated(sample, dataset)


def operated(sample: evaluation.Sample, dataset: str) -> dict[str, Any]:
    """What operate writes of the headline's models, for which the test films validate too."""
    student = cells.headline_model(HEADLINE, "joint")
    ids = {"teacher": student.its_teacher().id, "twin": student.twin().id, "distilled": student.id}
    own = evaluation.Sample(
        sample.findings, sample.targets, sample.patients, {kind: sample.scores[model] for kind, model in ids.items()}
    )
    chosen = {
        kind: [operate.choose(own.targets[:, k], logits[:, k], OPERATE) for k in range(len(own.findings))]
        for kind, logits in own.scores.items()
    }
    films = np.arange(len(own.targets))
    test = pd.DataFrame({"sex": np.where(films % 2, "F", "M"), "age": 20 + films % 60, "view": "PA"})
    tested = operate.Tested(own, evaluation.draw(own, dataset, 100, 0), OPERATE, 0.95)
    rows = {"validation": 300, "test": len(films), "patient": len(films) // 2}
    about = {"dataset": dataset, "ids": ids, "settings": OPERATE.model_dump(), "rows": rows}
    result = operate.judge(test, tested, chosen) | about
    for finding in result["findings"].values():
        finding["prevalence"] = {"validation": 0.2, "test": None}
    return result


def fill(folder: Path, losses: tuple[str, ...] = LOSSES, seeds: tuple[int, ...] = (0,)) -> None:
    """Write under `folder` what the stages before the report would."""
    models = cells.models(*declared(losses, seeds))
    replicates = {}
    for dataset in DATASETS:
        measured, table, operating = measure(dataset, models)
        files.write_json(operating, folder / f"operating/{dataset}.json")
        files.write_json(atlas_of(DATASETS[dataset]), folder / f"atlas/{dataset}.json")
        files.write_json({"rai:dataBiases": ["test: sex unknown"]}, folder / f"data_cards/{dataset}.json")
        replicates[dataset] = compare.by_model(table)
        files.write_json(measured, folder / f"metrics/{dataset}.json")
    files.write_json(compare.compare_groups(models, replicates, SETTINGS), folder / "comparison.json")
    files.write_json(CHOICE, folder / "choice.json")
    stamp = {"command": "make bench", "commit": "abc1234", "changed": ["stages/judging"]}
    files.write_json({"bench": stamp}, folder / "stamps.json")
    for place, model in enumerate(models):
        share = np.linspace(1 / 12, 1, 12)
        top = {"teacher": 0.88, "distilled": 0.85, "twin": 0.8}[model.kind] + 0.003 * place
        curve = pd.DataFrame({"step": (share * 1200).astype(int), "lr": 0.1 * (1 - share), "task": 0.5 - 0.2 * share})
        if model.kind == "distilled":
            curve["kd_grad_ratio"] = np.nan  # as with alpha 0
        curve["val_auroc"] = top - (top - 0.5) * np.exp(-6 * share)
        path = folder / f"curves/{model.id}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        curve.to_csv(path, index=False)

    roles = {"teacher": ("resnet18", 11_183_694, 29_600_000), "student": ("eeea_net_c2", 4_732_838, 26_500_000)}
    for role, (arch, parameters, macs) in roles.items():
        sizes = [(64, macs), (224, 12 * macs)]
        computed = [{"size_px": px, "macs": n, "macs_by_operator": {"conv": n, "batch_norm": 0},
                     "not_counted": {"aten::add_": 8}, "by_torch": {"macs": n}, "activation_bytes": 1_000_000,
                     "layers": [{"name": "stem", "macs": n, "parameters": 100}]} for px, n in sizes]  # fmt: skip
        exact = {"architecture": arch, "outputs": 14, "parameters": parameters, "weights_bytes": 4 * parameters}
        files.write_json(exact | {"compute": computed, "reason": None}, folder / f"profile/{role}/{arch}.json")
        took = {"latency_ms": {"p50": 3.2, "p95": 3.4}, "peak_bytes": 310_000_000, "libraries_bytes": 250_000_000}
        took |= {"cold_ms": 50.0, "joules": None}
        runs = [{"runtime": name, "threads": threads, "size_px": px, "batch": batch, **took}
                for name in ("pytorch", "onnxruntime") for threads in (1, 2) for px, _ in sizes
                for batch in (1, 8)]  # fmt: skip
        machine = {"cpu": "Some CPU", "system": "Linux", "python": "3.11", "torch": "2.15"}
        timing = {"architecture": arch, "machine": machine, "runs": runs, "no_onnx": None}
        files.write_json(timing, folder / f"profile/{role}/{arch}.timing.json")
    for cohort in COHORTS:
        files.write_json(explained(cohort), folder / f"explain/{cohort}.json")
    page = "<p>outside</p>\n<!-- labels -->\n<p>What the labels state.</p>\n<!-- /labels -->\n"
    (folder / "labels.html").write_text(page, encoding="utf-8")
    exported = {"opset": 18, "tolerance": 1e-4, "size_px": 64, "compared_films": 64, "logit_spread": 1.5,
                "logits": 5e-6, "map": "layer_cam", "no_map": None,
                "files": {name: {"sha256": "0", "bytes": 5_000_000} for name in EXPORTED}}  # fmt: skip
    files.write_json(exported, folder / "export/student.json")
    change = {"value": -0.0002, "low": -0.001, "high": 0.0004}
    compared = {"films": 300, "auroc": change, "worst": {"finding": "Mass", "lost": -0.002}, "spearman": {},
                "lowest_spearman": 0.999, "flipped": {}, "flipped_mean": 0.002, "brier": change,
                "mean_abs_difference": 0.01, "pointing": change | {"pairs": 40, "model": 0.3}}  # fmt: skip
    for dataset in DATASETS:
        files.write_json({"int8_weights": compared}, folder / f"agreement/{dataset}.json")


def atlas_of(names: list[str]) -> dict[str, Any]:
    """What atlas writes, with a case of the first finding."""
    case = {"image": "b.png", "finding": names[0], "outcome": "false negative",
            "probabilities": {"teacher": 0.7, "twin": 0.2, "distilled": None},
            "picture": "data:image/webp;base64,UklGRg=="}  # fmt: skip
    return {"models": ["teacher", "twin", "distilled"], "cases": [case], "reasons": dict.fromkeys(names[1:], "too few")}


def explained(cohort: str) -> dict[str, Any]:
    """What explain writes, with made-up scores."""
    makers = {"teacher": 0.5, "twin": 0.3, "distilled": 0.45, "random": 0.1, "prior": 0.4}
    values = {maker: {"value": value, "low": value - 0.05, "high": value + 0.05} for maker, value in makers.items()}
    for other in ("teacher", "twin", "random", "prior"):
        value = 0.45 - makers[other]
        values[f"distilled_minus_{other}"] = {"value": value, "low": value - 0.07, "high": value + 0.07}
    names = ("pointing", "energy", "iobb", "iobb_over_0.1", "iobb_over_0.25")
    part = {"pairs": 20, "patients": 15, "box_area": 0.05, "scores": dict.fromkeys(names, values)}
    counts = {"test_films": 300, "boxes": 40, "pairs": 40, "left_out": {"not on a test film": 2, "beyond max_boxes": 0}}
    grids = {"teacher": [2, 2], "twin": [4, 4], "distilled": [4, 4]}
    with_boxes = counts | {"grids": grids, "mean": part, "findings": {"Mass": part, "Nodule": part}, "reason": None}
    without = counts | {"pairs": 0, "grids": None, "mean": None, "findings": None, "reason": "no box on a test film"}
    datasets = {dataset: with_boxes if dataset == "chestxray14" else without for dataset in DATASETS}
    return {"cohort": cohort, "explainer": "grad_cam", "models": {}, "datasets": datasets,
            "left_out": {}, "soundness": dict.fromkeys(DATASETS, sound()),
            "sanity": {"chexpert": {"pairs": 4, "explainers": {
                "grad_cam": {"layers": ["head", "stem"], "correlation": [0.1, None], "unchanged_through": None},
                "eigen_cam": {"layers": ["head", "stem"], "correlation": [1.0, 0.2], "unchanged_through": "head"}}}},
            "explainers": {
                name: {dataset: part["scores"] if dataset == "chestxray14" else None for dataset in DATASETS}
                for name in ("grad_cam", "eigen_cam")}}  # fmt: skip


def sound() -> dict[str, Any]:
    """What explain writes of maps and scores, with made-up numbers."""
    value = {"value": 0.2, "low": 0.1, "high": 0.3}
    orders = ("map", "random", "another_finding", "map_minus_random", "map_minus_another_finding")
    ways = dict.fromkeys(("deletion", "insertion"), dict.fromkeys(orders, value))
    alike = ("distilled", "twin", "another_film", "another_finding")
    alike += tuple(f"distilled_minus_{name}" for name in alike[1:])
    measures = dict.fromkeys(("spearman", "iou", "ssim"), value)
    boxed = {
        "hits": {"alike_hit": 4, "alike_miss": 6, "unlike_hit": 3, "unlike_miss": 7},
        "wrong_reasons": {"confident": 8, "missed": 1, "missed_by_random": 0.9,
                          "films": [{"image": "a.png", "finding": "Mass"}]},
    }  # fmt: skip
    return {"pairs": 20, "patients": 15, "reason": None, "boxed": boxed, "agreement": dict.fromkeys(alike, measures),
            "faithfulness": dict.fromkeys(("teacher", "twin", "distilled"), ways)}  # fmt: skip


EXPORTED = ("student.onnx", "student_map.onnx", "student_int8_weights.onnx", "samples/a.png")
TITLE = "Distilled <chest> X-ray classifiers"
NOISE = SimpleNamespace(missed=0.1, false_per_true=0.1, uncertain_present=0.5, blank_present=0.05)


def loaded(
    losses: tuple[str, ...] = LOSSES, drawn: Iterable[str] = tuple(DATASETS), seeds: tuple[int, ...] = (0,)
) -> tuple[Any, ...]:
    """What the stage gets from params."""
    datasets = {name: SimpleNamespace(findings=evaluated) for name, evaluated in DATASETS.items()}
    return *declared(losses, seeds), HEADLINE, TITLE, dict.fromkeys(drawn), NOISE, datasets


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs of the report, made once."""
    folder = tmp_path_factory.mktemp("inputs")
    fill(folder / "reports")
    return folder


@pytest.fixture
def project(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stage's inputs and templates, and the params that it loads."""
    shutil.copytree(inputs / "reports", tmp_path / "reports")
    owners.read_by_stages(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(params, "load", lambda *_: loaded())
    return tmp_path


def written(project: Path) -> tuple[str, str]:
    """Run the stage: the HTML and the Markdown page."""
    report.main([])
    pages = (project / "reports/index.html", project / "reports/report.md")
    return pages[0].read_text(encoding="utf-8"), pages[1].read_text(encoding="utf-8")


def without_addresses(html: str) -> str:
    return re.sub(r" data-of=\d+", "", html)


class Page(HTMLParser):
    """Collects what a page loads and links to, its ids, and tags that are not closed in order."""

    VOID = ("meta", "br", "img", "link", "line", "polyline")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.open: list[str] = []
        self.rows: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.loads += [given[key] or "" for key in ("src", "srcset", "data", "xlink:href") if key in given]
        if "href" in given:
            (self.links if tag == "a" else self.loads).append(given["href"] or "")
        if "id" in given:
            self.ids.add(given["id"] or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass


def test_the_page_loads_nothing_from_outside(project: Path) -> None:
    html, _ = written(project)
    page = Page(html)
    assert page.loads
    assert all(address.startswith("data:image/webp;base64,") for address in page.loads)
    assert not re.search(r"@import|url\(|<script [^>]*src|<link|<iframe|fetch\(|XMLHttp|import\(", html)
    assert page.open == []


def test_every_link_within_the_page_has_its_target(project: Path) -> None:
    page = Page(written(project)[0])
    assert {link.removeprefix("#") for link in page.links if link.startswith("#")} <= page.ids


def test_same_inputs_give_same_bytes_and_other_inputs_do_not(project: Path) -> None:
    first = written(project)
    assert written(project) == first
    path = project / "reports/metrics/padchest.json"
    changed = files.read_json(path)
    changed["models"]["teacher/joint/resnet18"]["means"]["all"]["auroc"] = 0.123456
    files.write_json(changed, path)
    assert written(project) != first
    assert "0.123" in written(project)[1]


def test_the_first_screen_says_whether_films_are_drawn(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    html, markdown = written(project)
    assert html.index("Simulated films, real label tables") < html.index('id="result"')
    assert "Simulated films" in markdown
    monkeypatch.setattr(params, "load", lambda *_: loaded(drawn=()))
    html, markdown = written(project)
    assert "Simulated" not in html + markdown
    assert html.index("Real films, real labels") < html.index('id="result"')


def test_of_a_run_with_both_the_first_screen_says_which_films_are_drawn(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = DATASETS
    monkeypatch.setattr(params, "load", lambda *_: loaded(drawn=others))
    for page in written(project):
        assert f"Simulated films of {', '.join(others)}, real films of {first}" in page


def test_what_a_user_typed_is_escaped(project: Path) -> None:
    assert "Distilled &lt;chest&gt; X-ray" in written(project)[0]


def test_the_page_on_labels_is_taken_over_without_its_frame(project: Path) -> None:
    html, _ = written(project)
    assert html.index('id="data"') < html.index("<p>What the labels state.</p>") < html.index('id="limits"')
    assert "outside" not in html
    assert "not scored: chestxray14 3, chexpert 3, padchest 3.</p>" in " ".join(html.split())


def mean_row(markdown: str, start: str) -> list[str]:
    """The cells of the row of the `results` block that starts so."""
    rows = [
        line for line in rendering.block(markdown, "results").group(1).splitlines() if line.startswith(f"| {start} ")
    ]
    assert len(rows) == 1
    return rows[0].strip("| ").split(" | ")


def written_with(project: Path, monkeypatch: pytest.MonkeyPatch, seeds: tuple[int, ...]) -> tuple[str, str]:
    """Both pages of a run with these seeds."""
    shutil.rmtree(project / "reports")
    fill(project / "reports", seeds=seeds)
    monkeypatch.setattr(params, "load", lambda *_: loaded(seeds=seeds))
    return written(project)


def headline_tests(project: Path) -> dict[str | None, Any]:
    """Data set -> the last test of the headline on it, as compare wrote it."""
    return {test["dataset"]: test for test in files.read_json(project / "reports/comparison.json")[GROUP]["tests"]}


def test_the_first_table_is_the_mean_over_seeds_for_each_data_set_and_for_their_mean(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    html, markdown = written_with(project, monkeypatch, (0, 1))
    tests = headline_tests(project)
    rows = rendering.block(markdown, "results").group(1).splitlines()
    header = "| test set | findings | teacher | twin | distilled | distilled \N{MINUS SIGN} twin | gap closed |"
    assert rows[0] == header
    assert [row.split(" | ")[0] for row in rows[2:]] == [f"| {name}" for name in (*DATASETS, results.MEAN_OF_DATASETS)]
    for name, test, count in (
        ("chestxray14", tests["chestxray14"], "13"),
        (results.MEAN_OF_DATASETS, tests[None], ""),
    ):
        gain, share = test["distilled_minus_twin"], test["gap_closed"]
        shown = [
            f"{test[kind]['auroc']:.3f} ({test[kind]['low']:.3f} to {test[kind]['high']:.3f})"
            for kind in ("teacher", "twin", "distilled")
        ]
        shown.append(
            f"{charts.signed(gain['difference'])} ({charts.interval(gain['low'], gain['high'], True)}), "
            f"sd {gain['deviation']:.3f}"
        )
        shown.append(f"{100 * share['share']:.0f}% ({100 * share['low']:.0f}% to {100 * share['high']:.0f}%)")
        assert mean_row(markdown, name) == [name, count, *shown]
        assert (
            f"<small>{', '.join(map(charts.signed, gain['per_seed']))}</small><small>sd {gain['deviation']:.3f}</small>"
            in html
        )
        cell = f'<td class="n">{shown[-1].replace(" (", "<small>").replace(")", "</small>")}</td>'
        assert cell in without_addresses(html)
    assert html.index("<figcaption>mean of the data sets") < html.index('id="checks"')
    assert "mean of the seeds 0, 1" in html
    assert "mean of the seeds 0, 1" in markdown


def test_with_one_seed_no_spread_is_shown(project: Path) -> None:
    html, markdown = written(project)
    gain = headline_tests(project)[None]["distilled_minus_twin"]
    shown = f"{charts.signed(gain['difference'])} ({charts.interval(gain['low'], gain['high'], True)})"
    assert mean_row(markdown, results.MEAN_OF_DATASETS)[5] == shown
    for page in (html, markdown):
        assert "sd " not in page
        assert "over seeds" not in page.lower()
        assert "seed 0" in page


def test_a_share_of_no_gap_shows_its_reason(project: Path) -> None:
    path = project / "reports/comparison.json"
    comparison = files.read_json(path)
    for test in comparison[GROUP]["tests"]:
        test["gap_closed"] = {"share": None, "low": None, "high": None, "dropped": 100, "reason": compare.NOT_ABOVE}
    files.write_json(comparison, path)
    html, markdown = written(project)
    assert mean_row(markdown, "chexpert")[-1] == f"{charts.UNDEFINED} ({compare.NOT_ABOVE})"
    assert html.count(f"<small>{compare.NOT_ABOVE}</small>") == len(DATASETS) + 1


def test_a_data_set_alone_has_no_row_for_the_mean(project: Path) -> None:
    path = project / "reports/comparison.json"
    comparison = files.read_json(path)
    for group in comparison.values():
        group["tests"] = [test for test in group["tests"] if test["dataset"]]
    files.write_json(comparison, path)
    html, markdown = written(project)
    assert results.MEAN_OF_DATASETS not in rendering.block(markdown, "results").group(1)
    assert f"<figcaption>{results.MEAN_OF_DATASETS}" not in html


def test_the_chosen_settings_are_shown_with_what_was_tried(project: Path) -> None:
    html, markdown = written(project)
    table = markdown[markdown.index("## How settings were chosen") : markdown.index("## All models")]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert rows[2] == "| twin | 3 | 0.756 | lr 0.4 | lr 0.2 to 0.8 |"
    assert rows[3] == "| sigmoid_kd | 2 | 0.791 | lr 1.6, softening sigmoid | lr 1.6; softening sigmoid, softmax |"
    assert rows[4] == "| dist_corr | 1 | 0.710 | lr 1 | lr 1 |"
    assert rows[5:] == ["| method | 600 | 1200 |", "|---|---:|---:|", "| twin | 0.756 | 0.802 |",
                        f"| sigmoid_kd | 0.791 | {charts.UNDEFINED} |"]  # fmt: skip
    section = html[html.index('id="choice"') : html.index('id="models"')]
    assert "#choice" in Page(html).links
    for shown in ("<code>drawn</code>", "600 steps each, mean of the seeds 100, 101, which no model of this page has",
                  "lr 0.2 to 0.8",
                  "softening sigmoid, softmax", '<td class="n">0.802</td>'):  # fmt: skip
        assert shown in without_addresses(section)
    assert 'class="warning"' not in html
    assert "make trials" not in html + markdown


@pytest.mark.parametrize("key", ["stale", "differs"])
def test_what_no_longer_is_as_the_trials_chose_is_shown_in_full(project: Path, key: str) -> None:
    told = ["code: stages/<trainer>.py has changed", "rates.paper.default is 0.4, the trials chose 0.2"]
    files.write_json(CHOICE | {key: told}, project / "reports/choice.json")
    html, markdown = written(project)
    section = html[html.index('<div class="warning">') : html.index('id="models"')]
    assert "<li>code: stages/&lt;trainer&gt;.py has changed</li>" in section
    assert f"<li>{told[1]}</li>" in section
    assert "<code>make trials</code>" in section
    assert "<code>make audit</code>" in section
    assert html.index('<p class="warning">') < html.index('id="checks"')
    for line in (*(f"- {text}" for text in told), "`make trials`", "`make audit`"):
        assert line in markdown


def test_without_trials_settings_are_called_guesses(project: Path) -> None:
    files.write_json(NO_CHOICE, project / "reports/choice.json")
    html, markdown = written(project)
    for page in (html, markdown):
        assert "constants of this run are guesses: no trials chose them" in page
        assert "None" not in page
    assert Page(html).open == []


def test_one_cohort_has_no_table_across_data_sets(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    html, markdown = written(project)
    assert "Trained here, tested there" in html
    assert "#matrix" in Page(html).links
    assert "## Trained here, tested there" in markdown
    monkeypatch.setattr(sys.modules[__name__], "COHORTS", {"joint": COHORTS["joint"]})
    shutil.rmtree(project / "reports")
    fill(project / "reports")
    html, markdown = written(project)
    page = Page(html)
    assert "Trained here, tested there" not in html
    assert "#matrix" not in page.links
    assert "## Trained here" not in markdown
    assert page.open == []


def test_a_finding_without_positives_shows_its_reason(project: Path) -> None:
    html, _ = written(project)
    row = html[html.index('<th scope="row">Hernia') :]
    assert row[: row.index("</tr>")].count("no positives") == 4
    assert "the mean leaves out Hernia (no positives)" in html


def test_a_precomputed_teacher_shows_dashes_with_reasons_and_that_its_targets_serve_every_view(project: Path) -> None:
    exact = {"architecture": "resnet18", "outputs": 14, "parameters": None, "weights_bytes": None, "compute": []}
    profiled, told = project / "reports/profile/teacher", "a table of probabilities"
    files.write_json(exact | {"reason": told}, profiled / "resnet18.json")
    timing = files.read_json(profiled / "resnet18.timing.json")
    files.write_json(timing | {"runs": []}, profiled / "resnet18.timing.json")
    (project / "reports/curves/teacher/joint/resnet18.csv").write_text("step,val_auroc\n0,0.91\n")
    cohort = files.read_json(project / "reports/explain/joint.json")
    scores = cohort["datasets"]["chestxray14"]["mean"]["scores"]
    for name in scores:
        scores[name] = {maker: value for maker, value in scores[name].items() if "teacher" not in maker}
    part = cohort["datasets"]["chestxray14"]["mean"]
    cohort["datasets"]["chestxray14"]["findings"] = {"Mass": part}
    files.write_json(cohort | {"left_out": {"teacher": "it has no maps"}}, project / "reports/explain/joint.json")
    html, markdown = written(project)
    for page in (html, markdown):
        assert "rgets are precomputed: one row of probabilities serves every view of a film" in page
        assert told in page
    assert "Had the teacher finished learning?" not in html
    assert f"| teacher | resnet18 (a table of probabilities) | {charts.UNDEFINED} |" in markdown
    assert "The teacher is left out: it has no maps." in html
    assert "nan" not in html.split("<script>")[0].lower().replace("finan", "")
    assert Page(html).open == []


def test_a_level_line_stands_for_a_teacher_without_a_schedule() -> None:
    assert results.points(pd.DataFrame({"step": [0], "val_auroc": [0.9]})) == ((0.0, 0.9), (1.0, 0.9))
    assert results.points(pd.DataFrame({"step": [5, 10], "val_auroc": [0.8, 0.9]})) == ((0.5, 0.8), (1.0, 0.9))


def test_a_loss_that_params_no_longer_has_stops_the_report(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "load", lambda *_: loaded(losses=("sigmoid_kd",)))
    with pytest.raises(cells.UndeclaredError, match=r"distilled/joint/eeea_net_c2/resnet18/paper/0.csv.*make prune"):
        report.main([])
    assert not (project / "reports/index.html").exists()


def test_a_removed_loss_leaves_no_trace(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "eeea_net_c2, paper from resnet18" in written(project)[1]
    losses = ("sigmoid_kd",)
    shutil.rmtree(project / "reports")
    fill(project / "reports", losses)
    monkeypatch.setattr(params, "load", lambda *_: loaded(losses=losses))
    html, markdown = written(project)
    assert "paper" not in html + markdown


def test_every_loss_is_shown_over_its_seeds(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    html, markdown = written_with(project, monkeypatch, (0, 1))
    assert "#seeds" in Page(html).links
    found = files.read_json(project / "reports/comparison.json")["joint/eeea_net_c2/resnet18/paper"]["tests"]
    assert [test["mean"] for test in found] == ["all", "competition5", "competition5_per_study", "all", "main"]
    table = markdown[markdown.index("## Over seeds") : markdown.index("## Cost")]
    row = next(line for line in table.splitlines() if line.startswith("| joint | eeea_net_c2, paper from resnet18"))
    gains = [test["distilled_minus_twin"] for test in found]
    assert row.strip("| ").split(" | ")[2:] == [
        f"{charts.signed(gain['difference'])} ({charts.interval(gain['low'], gain['high'], True)}), "
        f"sd {charts.number(gain['deviation'])}"
        for gain in gains
    ]
    assert row.count("|") == table.splitlines()[4].count("|")
    section = html[html.index('id="seeds"') : html.index('id="matrix"')]
    for gain in gains:
        seeds = ", ".join(map(charts.signed, gain["per_seed"]))
        assert f"{seeds}</small><small>sd {charts.number(gain['deviation'])}</small>" in section


def test_a_group_without_a_mean_of_the_data_sets_shows_a_dash(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written_with(project, monkeypatch, (0, 1))
    path = project / "reports/comparison.json"
    comparison = files.read_json(path)
    comparison["padchest/eeea_net_c2/resnet18/paper"]["tests"].pop()
    files.write_json(comparison, path)
    html, markdown = written(project)
    row = next(
        line for line in markdown.splitlines() if line.startswith("| padchest | eeea_net_c2, paper from resnet18 | +")
    )
    assert row.endswith(f" | {charts.UNDEFINED} |")
    assert Page(html).open == []


@pytest.mark.parametrize(
    "missing",
    ["metrics/padchest.json", "curves/twin/joint/eeea_net_c2/0.csv", "profile/student/eeea_net_c2.timing.json",
     "atlas/padchest.json", "labels.html", "export/student.json", "comparison.json", "choice.json",
     "stamps.json"],
)  # fmt: skip
def test_a_missing_part_is_named(project: Path, missing: str) -> None:
    files.remove(project / "reports" / missing)
    with pytest.raises(FileNotFoundError, match=re.escape(Path(missing).name) + ".*make repro"):
        report.main([])


def test_checks_say_no_where_the_evidence_does() -> None:
    def difference(low: float | None, high: float | None) -> dict[str, Any]:
        return {"difference": 0.0, "low": low, "high": high, "auroc": 0.6}

    summary = {
        "teacher_minus_twin": difference(-0.1, 0.1),
        "distilled_minus_twin": difference(None, None),
        "distilled_minus_teacher": difference(-0.015, 0.1),
        "twin": difference(0.4, 0.7),
    }
    learned = [{"question": "Had it?", "evidence": [{"verdict": "yes"}]}]
    rows = results.check([summary, summary], learned, margin=0.02)
    assert [[found["verdict"] for found in row["evidence"]] for row in rows] == [
        ["no", "no"], ["no", "no"], ["yes"], ["undefined", "undefined"], ["yes", "yes"],
    ]  # fmt: skip


def curve_to(end: float, late: float) -> pd.DataFrame:
    """A curve that ends so, and gained so much in the last quarter of its schedule."""
    return pd.DataFrame({"step": [30, 60, 90, 120], "val_auroc": [0.5, 0.6, end - late, end]})


def test_the_slowest_seed_decides_whether_a_kind_had_finished_learning() -> None:
    shown = results.headline_models(HEADLINE, "joint")
    twin, distilled = (shown[kind].id[:-2] for kind in ("twin", "distilled"))
    curves = {
        shown["teacher"].id: curve_to(0.9, 0.001),
        f"{twin}/0": curve_to(0.8, 0.002),
        f"{twin}/1": curve_to(0.7, 0.03),
        f"{distilled}/0": curve_to(0.85, 0.004),
        f"{distilled}/1": curve_to(0.86, -0.002),
    }
    rows = list(results.finished(curves, shown, [0, 1], 0.01))
    assert [row["question"] for row in rows] == [
        f"Had the {kind} finished learning?" for kind in ("teacher", "twins", "distilled students")
    ]
    assert [row["evidence"][0]["verdict"] for row in rows] == ["yes", "no", "yes"]
    gains = [row["evidence"][0]["value"]["difference"] for row in rows]
    assert gains == pytest.approx([0.001, 0.03, 0.004])
    assert "; it ended at 0.900" in rows[0]["meaning"]
    assert "; the lowest ended at 0.700" in rows[1]["meaning"]
    assert "; the lowest ended at 0.850" in rows[2]["meaning"]
    assert [row["evidence"][0]["verdict"] for row in results.finished(curves, shown, [0], 0.01)] == ["yes"] * 3


def test_a_table_has_no_schedule_and_an_ensemble_one_for_each_member() -> None:
    assert results.schedules(pd.DataFrame({"step": [0], "val_auroc": [0.9]})) == []
    first, second = curve_to(0.8, 0.002), curve_to(0.9, 0.03)
    parts = [first.assign(member=0.0), second.assign(member=1.0, step=second["step"] + 120)]
    own = pd.DataFrame({"step": [240], "val_auroc": [0.91]})
    found = results.schedules(pd.concat([*parts, own], ignore_index=True))
    assert [results.late_gain(part) for part in found] == [pytest.approx((0.8, 0.002)), pytest.approx((0.9, 0.03))]


def test_the_late_gain_is_that_of_the_last_quarter() -> None:
    curve = pd.DataFrame({"step": [30, 60, 90, 120], "val_auroc": [0.5, 0.6, 0.7, 0.75]})
    assert results.late_gain(curve) == pytest.approx((0.75, 0.05))


def test_labels_of_a_chart_are_kept_apart_within_limits() -> None:
    moved = charts.apart([100, 101, 99, 20], gap=15, limit=110)
    assert sorted(moved)[-1] <= 110
    assert min(np.diff(sorted(moved))) >= 15
    assert moved[3] == 20
    assert np.argsort(moved).tolist() == [3, 2, 0, 1]


def test_ticks_are_round_and_inside() -> None:
    assert charts.ticks(0.68, 0.91) == [0.7, 0.75, 0.8, 0.85, 0.9]
    assert charts.ticks(0.801, 0.849) == [0.81, 0.82, 0.83, 0.84]


def test_a_difference_always_has_its_sign() -> None:
    assert [charts.signed(value) for value in (0.0123, -0.0123, 0.0, -0.0001, None)] == [
        "+0.012", "\N{MINUS SIGN}0.012", "0.000", "0.000", "\N{EN DASH}"
    ]  # fmt: skip


def test_a_share_may_be_negative_or_above_one() -> None:
    assert [charts.whole_percent(value) for value in (0.618, -0.126, 1.24, -0.001, None)] == [
        "62%", "\N{MINUS SIGN}13%", "124%", "0%", "\N{EN DASH}"
    ]  # fmt: skip


def test_an_undefined_score_is_drawn_as_such() -> None:
    drawn = charts.forest("chart", [charts.Bar("Twin", "twin", None, None, None)], (0, 1))
    assert "undefined" in drawn
    assert "circle" not in drawn


def test_thresholds_calibration_and_subgroups_are_shown_with_their_intervals(project: Path) -> None:
    html, markdown = written(project)
    page = Page(html)
    assert {"#operating", "#subgroups"} <= set(page.links)
    found = files.read_json(project / "reports/operating/chexpert.json")
    sensitivity = found["means"]["models"]["distilled"]["sensitivity"]
    shown = f"{sensitivity['value']:.3f}"
    assert f"{shown}<small>{sensitivity['low']:.3f} to {sensitivity['high']:.3f}</small>" in html
    assert f"{shown} ({sensitivity['low']:.3f} to {sensitivity['high']:.3f})" in markdown
    assert "fewer than two groups that can be scored" in html  # of the projection, which is one
    assert "the label table has no such column" in html


def test_a_run_whose_validation_films_choose_nothing_says_why(project: Path) -> None:
    path = project / "reports/operating/padchest.json"
    found = files.read_json(path)
    for about in found["findings"].values():
        for model in about["models"].values():
            model |= dict.fromkeys(("threshold", "threshold_probability", "temperature", "bias"))
            model |= {"reason": "too few positives on validation", "scale_reason": "too few positives on validation"}
    found["means"] = {"findings": [], "models": {}, "differences": {}, "reason": "no finding has a threshold"}
    files.write_json(found, path)
    html, _ = written(project)
    assert "No means: no finding has a threshold." in html
    assert "too few positives on validation" in html
    assert Page(html).open == []


def test_each_explainers_scores_are_shown(project: Path) -> None:
    html, _ = written(project)
    section = html[html.index('id="maps"') : html.index('id="data"')]
    assert "eigen cam" in section


def test_what_maps_stand_on_is_shown_and_a_method_that_asks_no_score_is_named(project: Path) -> None:
    html, _ = written(project)
    section = html[html.index('id="soundness"') : html.index('id="data"')]
    assert "through head" in section
    assert "20 pairs, 15 patients" in section
    assert (
        "its map has its maximum beside every box in 1; a random map would in 90.0%. They are: <code>a.png</code>"
        in section
    )
    path = project / "reports/explain/joint.json"
    found = files.read_json(path)
    nothing = dict.fromkeys(("faithfulness", "agreement", "boxed"))
    found["soundness"]["chexpert"] |= nothing | {"reason": "no test film has one"}
    files.write_json(found, path)
    assert "no test film has one" in written(project)[0]


def test_the_headlines_few_numbers_are_those_of_the_page(project: Path) -> None:
    written(project)
    short = files.read_json(project / "reports/summary.json")
    tests = headline_tests(project)
    assert short["auroc"]["padchest"]["distilled"] == tests["padchest"]["distilled"]["auroc"]
    assert short["auroc"]["mean"]["distilled_minus_twin"] == tests[None]["distilled_minus_twin"]["difference"]
    assert short["cost"]["student"]["at_64_px"]["parameters"] == 4_732_838
    assert short["pointing"] == {"chestxray14": {"teacher": 0.5, "twin": 0.3, "distilled": 0.45, "random": 0.1}}
    assert len(pd.read_csv(project / "reports/plots/auroc.csv")) == 3 * len(tests)
    assert set(pd.read_csv(project / "reports/plots/calibration.csv")["model"]) >= {"chexpert, distilled"}


def test_the_first_screen_answers_in_sentences_made_of_the_numbers(project: Path) -> None:
    html, _ = written(project)
    first = html[: html.index('id="result"')]
    loss = headline_tests(project)[None]["distilled_minus_teacher"]
    assert "Does the student keep its teacher&#39;s performance?" in first
    assert charts.signed(loss["difference"]) in first
    assert "More than a random map, not more than the usual place, on chestxray14" in first
    assert "a box in 45.0% of films (mean over findings), a random map&#39;s in 10.0%" in first
    assert "4.73 million parameters, 26 million multiply-adds at 64 px" in first


def test_a_gap_that_compression_widened_is_told_and_one_that_it_did_not_is_not(project: Path) -> None:
    path = project / "reports/operating/padchest.json"
    found = files.read_json(path)
    gaps = found["subgroups"]["sex"]["gaps"]["auroc"]
    gaps["distilled_minus_teacher"] = {"value": 0.04, "low": 0.01, "high": 0.07}
    files.write_json(found, path)
    own = gaps["distilled"]
    assert f"{own['lower']} against {own['higher']} on padchest, by +0.040 (+0.010 to +0.070)" in written(project)[0]
    gaps["distilled_minus_teacher"]["low"] = -0.01
    files.write_json(found, path)
    assert "on padchest, by" not in written(project)[0]


def listed(tree: Any, start: str = "") -> dict[int, str]:
    """The addresses of a page, by their numbers."""
    if not isinstance(tree, dict):
        return {tree: start.removesuffix("/")}
    joined = {}
    for word, below in tree.items():
        joined |= listed(below, start if word == "/" else start + word + ("/" if start else ""))
    return joined


def cells_of(html: str) -> list[tuple[str, str, str]]:
    """(class, address or nothing, content) of each cell of a page's tables."""
    found = re.search(r'<script type="application/json" id="addresses">(.*?)</script>', html)
    known = {str(number): address for number, address in listed(json.loads(found[1])).items()} if found else {}
    cells_ = []
    for attributes, content in re.findall(r"<td([^>]*)>(.*?)</td>", html, re.DOTALL):
        of = re.search(r'data-of=(?:"([^"]*)"|(\d+))', attributes)
        kind = re.search(r'class="([^"]*)"', attributes)
        cells_.append((kind[1] if kind else "", (unescape(of[1] or "") or known[of[2]]) if of else "", content))
    return cells_


FORMS = [lambda value, form=form: format(value, form) for form in (".1f", ".2f", ".0f", "+.4f", "+.1e", ".2g")]
SHOWN = [*(form for name, form in rendering.NUMBERS.items() if name != "as"), *FORMS, str,
         lambda value: rendering.NUMBERS["millions"](value, 0)]  # fmt: skip


def texts(value: float) -> set[str]:
    """Every way in which a page may write a number."""
    return {form(value) for form in SHOWN}


@pytest.mark.parametrize("page", ["index", "labels"])
def test_every_number_of_a_table_is_found_where_its_cell_says(page: str) -> None:
    html = (REPOSITORY / f"reports/{page}.html").read_text(encoding="utf-8")
    contents = dict[str, Any]()
    direct, derived = 0, 0
    for _, address, content in cells_of(html):
        file, _, keys = address.partition(":")
        if file.endswith(".csv"):  # a learning curve, which the check is computed of
            assert (REPOSITORY / file).exists()
        elif address:
            if file not in contents:
                contents[file] = files.read_json(REPOSITORY / file)
            value = addresses.resolve(contents[file], keys, address)
            if isinstance(value, dict | list):  # computed of several of its numbers
                derived += 1
                continue
            direct += 1
            words = {unescape(word) for word in re.split(r"<[^>]*>|\s+", content)}
            assert texts(value) & words, (address, value, content)
    assert direct > {"index": 2400, "labels": 250}[page]
    assert derived > 0


@pytest.mark.parametrize("page", ["index", "labels"])
def test_no_number_of_a_table_is_without_its_address(page: str) -> None:
    html = (REPOSITORY / f"reports/{page}.html").read_text(encoding="utf-8")
    ours = re.sub(r"<tr><td>published</td>.*?</tr>", "", html, flags=re.DOTALL)  # of the paper
    numbers = [(kind, address, content) for kind, address, content in cells_of(ours) if kind.split()[:1] == ["n"]]
    without = [content for kind, address, content in numbers if not address and re.match(r"\W*\d", content)]
    assert without == []
    assert len(numbers) > 300


def test_an_address_leads_back_to_its_number_and_a_wrong_one_to_those_nearby(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    files.write_json({"a/b": [1, {"c": 2.5, "d": True, "e": None}], "f": {"g": 3, "h": 4}}, path)
    read = addresses.read(path)
    assert read == files.read_json(path)
    assert addresses.of(read["a/b"][1]["c"]) == f"{path}:a/b/1/c"
    assert addresses.of(read["a/b"][1]["d"]) is None
    assert addresses.resolve(read, "a/b/1/c", "") == 2.5
    total = addresses.derived(read["f"]["g"] + read["f"]["h"], read["f"].values())
    assert (total, addresses.of(total)) == (7, f"{path}:f")
    assert addresses.of(addresses.derived(7, [1, 2])) is None
    with pytest.raises(addresses.AddressError, match=r"nothing is at x:f/i: nearest are f/h, f/g|f/g, f/h"):
        addresses.resolve(read, "f/i", "x:f/i")
    with pytest.raises(addresses.AddressError, match="f/g is 3, and has nothing below"):
        addresses.resolve(read, "f/g/0", "x:f/g/0")


def test_a_cell_has_the_address_of_its_first_number_and_other_text_none() -> None:
    value = addresses.addressed({"auroc": 0.8126, "low": 0.7}, 'reports/"x".json:')
    template = "{{ v.auroc|number }}<td>{{ v.auroc|number }} {{ v.low|as('.1f') }}</td><td>{{ v.low }}</td><td>1</td>"
    page = rendering.render(template, {"v": value}, is_html=True)
    assert page == ('0.813<td data-of="reports/&#34;x&#34;.json:auroc">0.813 0.7</td>'
                    '<td data-of="reports/&#34;x&#34;.json:low">0.7</td><td>1</td>') or "&quot;" in page  # fmt: skip
    assert rendering.render(template, {"v": value}, is_html=False).startswith("0.813<td>0.813 0.7</td>")
    short = rendering.shortened(f"<main>{page}</main>")
    assert re.findall(r"data-of=(\d+)", short) == ["0", "1"]
    assert [address for _, address, _ in cells_of(short)] == ['reports/"x".json:auroc', 'reports/"x".json:low', ""]


def test_results_that_no_stage_makes_are_told_with_what_changed_since(project: Path) -> None:
    html, _ = written(project)
    part = html[html.index("Results that no stage makes") :]
    assert "<code>reports/bench.md</code>" in part
    assert "<td><code>make bench</code></td><td><code>abc1234</code></td><td>stages/judging</td>" in part
