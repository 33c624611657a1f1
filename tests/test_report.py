"""The report: what it says, what it leaves out, that it needs no network and that its bytes are stable."""

import re
import shutil
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import owners
import pandas as pd
import pytest
from PIL import Image

from stages import evaluate, report
from stages.core import files, findings, params, plugins, schema
from stages.judging import cells, evaluation
from stages.pages import charts

REPOSITORY = Path(__file__).parent.parent
SETTINGS = schema.Evaluate(replicates=100, confidence=0.95, min_positives=20, margin=0.02, plateau=0.01)
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


def declared(losses: tuple[str, ...] = LOSSES, seeds: tuple[int, ...] = (0,)) -> tuple[Any, ...]:
    """What `params.load(*cells.PARAMS)` gives."""
    also = schema.DistillAlso(cohorts=list(DATASETS), losses=["sigmoid_kd"])
    return COHORTS, {"resnet18": 0}, {"eeea_net_c2": 0}, dict.fromkeys(losses), {}, list(seeds), also, HEADLINE


def outputs(cohort: str) -> list[str]:
    """The findings of a cohort."""
    return findings.vocabulary().in_order({name for dataset in COHORTS[cohort].datasets for name in DATASETS[dataset]})


def measure(dataset: str, models: list[cells.Model], films: int = 300) -> dict[str, Any]:
    """What evaluate writes of made-up predictions."""
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
    result = evaluate.evaluate(sample, studies, dataset, means, models, SETTINGS, seed=0, workers=1)
    return result | {"without_prediction": 3}


def fill(folder: Path, losses: tuple[str, ...] = LOSSES, seeds: tuple[int, ...] = (0,)) -> None:
    """Write under `folder` what the stages before the report would."""
    models = cells.models(*declared(losses, seeds))
    for dataset in DATASETS:
        files.write_json(measure(dataset, models), folder / f"metrics/{dataset}.json")
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
        computed = [{"size_px": px, "macs": n, "macs_by_operator": {"conv": n}, "not_counted": {"aten::add_": 8}}
                    for px, n in sizes]  # fmt: skip
        exact = {"architecture": arch, "outputs": 14, "parameters": parameters, "weights_bytes": 4 * parameters}
        files.write_json(exact | {"compute": computed, "reason": None}, folder / f"profile/{role}/{arch}.json")
        quartiles = {"median": 3.2, "lower_quartile": 3.1, "upper_quartile": 3.4}
        runs = [{"size_px": px, "latency_ms": quartiles, "peak_bytes": 310_000_000, "libraries_bytes": 250_000_000}
                for px, _ in sizes]  # fmt: skip
        machine = {"cpu": "Some CPU", "system": "Linux", "python": "3.11", "torch": "2.15"}
        timing = {"architecture": arch, "batch": 1, "threads": 1, "machine": machine, "runs": runs}
        files.write_json(timing, folder / f"profile/{role}/{arch}.timing.json")
    for cohort in COHORTS:
        files.write_json(explained(cohort), folder / f"explain/{cohort}.json")
        Image.new("P", (60, 40)).save(folder / f"explain/{cohort}_gallery.png")
    page = "<p>outside</p>\n<!-- labels -->\n<p>What the labels state.</p>\n<!-- /labels -->\n"
    (folder / "labels.html").write_text(page, encoding="utf-8")
    agreement = {"mean_abs_difference": 1e-6, "max_abs_difference": 5e-6, "rank_correlation": 0.99, "bytes": 5_000_000}
    exported = {"opset": 18, "tolerance": 1e-4, "size_px": 64, "compared_films": 64, "calibration_films": 64,
                "logit_spread": 1.5, "fp32": agreement, "int8": agreement}  # fmt: skip
    files.write_json(exported, folder / "export/export.json")
    for name, title in (("ours", TITLE), ("others", "Other films")):
        files.write_json(studied(title), folder / f"kd_gain/{name}.json")


def studied(title: str) -> dict[str, Any]:
    """What a study of `make kd-gain` ends with, with made-up scores."""
    gain = {"difference": 0.0417, "low": 0.0101, "high": 0.0702, "excludes_zero": True}
    test = {"twin": {"auroc": 0.8, "low": 0.7, "high": 0.9}}
    test |= {loss: {"minus_twin": gain} for loss in ("cam_transfer", "mld")}
    study = {"choose_on": "joint", "steps": 900, "seeds": [0, 1, 2], "teacher": {"architecture": "resnet18"}}
    return {
        "title": title, "study": study, "architecture": "eeea_net_c2", "teacher": "resnet18", "loss": "mld",
        "chosen": {"cam_transfer": {}, "mld": {}, "twin": {}}, "tests": {"joint": {"joint": test, "padchest": test}},
        "verdict": {"all differences positive": True},
    }  # fmt: skip


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
    return {"cohort": cohort, "explainer": "grad_cam", "models": {}, "datasets": datasets, "gallery_rows": [],
            "left_out": {}}  # fmt: skip


TITLE = "Distilled <chest> X-ray classifiers"
NOISE = SimpleNamespace(missed=0.1, false_per_true=0.1, uncertain_present=0.5, blank_present=0.05)


def loaded(
    losses: tuple[str, ...] = LOSSES, drawn: Iterable[str] = tuple(DATASETS), seeds: tuple[int, ...] = (0,)
) -> tuple[Any, ...]:
    """What the stage gets from params."""
    return *declared(losses, seeds), TITLE, dict.fromkeys(drawn), NOISE, DATASETS


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


class Page(HTMLParser):
    """Collects what a page loads and links to, its ids, and tags that are not closed in order."""

    VOID = ("meta", "br", "img", "link", "line", "circle", "polyline")

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
    assert all(address.startswith("data:image/png;base64,") for address in page.loads)
    assert not re.search(r"@import|url\(|<script|<link|<iframe", html)
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


def test_a_study_is_shown_where_it_is_of_the_same_films(project: Path) -> None:
    html, markdown = written(project)
    for page in (html, markdown):
        assert "+0.042" in page
        assert page.count("A study of its own") == 1
    assert "study-ours" in html
    assert "study-others" not in html
    assert f"| mld {charts.MINUS} twin | cam_transfer {charts.MINUS} twin |" in markdown
    assert markdown.index("| joint | padchest | 0.800") < markdown.index("| joint | joint | 0.800")


@pytest.mark.parametrize(
    ("means", "quoted"),
    [
        (["all", "shared7"], "all"),
        (["all", "shared7", "ten", "ten_per_study"], "ten"),
        (["shared7", "all", "zone_per_study", "zone", "area", "area_per_study"], "area"),
    ],
)
def test_a_data_set_is_quoted_by_a_mean_of_its_own_if_it_has_one(means: list[str], quoted: str) -> None:
    assert report.main_mean({"means": dict.fromkeys(means)}) == quoted


def test_the_headline_is_what_evaluate_wrote(project: Path) -> None:
    html, markdown = written(project)
    measured = files.read_json(project / "reports/metrics/chexpert.json")
    mean = measured["models"]["distilled/joint/eeea_net_c2/resnet18/sigmoid_kd/0"]["means"]["competition5"]
    shown = f"{mean['auroc']:.3f} ({mean['low']:.3f} to {mean['high']:.3f})"
    row = next(line for line in markdown.splitlines() if line.startswith("| chexpert | 5 |"))
    assert shown in row
    assert f"{mean['auroc']:.3f}<small>{mean['low']:.3f} to {mean['high']:.3f}" in html


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
    assert f"| teacher | resnet18 (a table of probabilities) | {charts.UNDEFINED} |" in markdown
    assert "The teacher is left out: it has no maps." in html
    assert "nan" not in html.lower().replace("finan", "")
    assert Page(html).open == []


def test_a_level_line_stands_for_a_teacher_without_a_schedule() -> None:
    assert report.points(pd.DataFrame({"step": [0], "val_auroc": [0.9]})) == ((0.0, 0.9), (1.0, 0.9))
    assert report.points(pd.DataFrame({"step": [5, 10], "val_auroc": [0.8, 0.9]})) == ((0.5, 0.8), (1.0, 0.9))


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


def test_several_seeds_show_their_mean_and_spread_and_one_seed_does_not(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all("sd " not in page and "over seeds" not in page.lower() for page in written(project))
    shutil.rmtree(project / "reports")
    fill(project / "reports", seeds=(0, 1))
    monkeypatch.setattr(params, "load", lambda *_: loaded(seeds=(0, 1)))
    html, markdown = written(project)
    assert "#seeds" in Page(html).links
    measured = files.read_json(project / "reports/metrics/padchest.json")
    key = "distilled/joint/eeea_net_c2/resnet18/paper - twin/joint/eeea_net_c2"
    mean = measured["over_seeds"][key]["means"]["all"]
    spread = f"; sd {charts.number(mean['deviation']['difference'])}"
    assert ", ".join(map(charts.signed, mean["per_seed"]["difference"])) + spread in html
    table = markdown[markdown.index("## Over seeds") : markdown.index("## Cost")]
    row = next(line for line in table.splitlines() if "eeea_net_c2, paper from resnet18" in line)
    shown = f"{charts.signed(mean['difference'])} ({charts.interval(mean['low'], mean['high'], True)})"
    assert row.split(" | ")[-1] == f"{shown}, sd {charts.number(mean['deviation']['difference'])} |"
    assert row.count("|") == table.splitlines()[4].count("|")


@pytest.mark.parametrize(
    "missing",
    ["metrics/padchest.json", "curves/twin/joint/eeea_net_c2/0.csv", "profile/student/eeea_net_c2.timing.json",
     "explain/joint_gallery.png", "labels.html", "export/export.json"],
)  # fmt: skip
def test_a_missing_part_is_named(project: Path, missing: str) -> None:
    files.remove(project / "reports" / missing)
    with pytest.raises(FileNotFoundError, match=re.escape(Path(missing).name) + ".*make repro"):
        report.main([])


def test_checks_say_no_where_the_evidence_does() -> None:
    def difference(low: float | None, high: float | None) -> dict[str, Any]:
        return {"difference": 0.0, "low": low, "high": high, "auroc": 0.6}

    differences = {
        "teacher_minus_twin": difference(-0.1, 0.1),
        "distilled_minus_twin": difference(None, None),
        "distilled_minus_teacher": difference(-0.015, 0.1),
    }
    summary = {"dataset": "a", "scores": {"twin": difference(0.4, 0.7)}, "differences": differences}
    curve = pd.DataFrame({"step": [25, 50, 75, 100], "val_auroc": [0.5, 0.6, 0.7, 0.75]})
    verdicts = [row["evidence"][0]["verdict"] for row in report.check([summary], curve, margin=0.02, plateau=0.01)]
    assert verdicts == ["no", "no", "no", "undefined", "yes"]


def test_the_late_gain_is_that_of_the_last_quarter() -> None:
    curve = pd.DataFrame({"step": [30, 60, 90, 120], "val_auroc": [0.5, 0.6, 0.7, 0.75]})
    assert report.late_gain(curve) == pytest.approx((0.75, 0.05))


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


def test_an_undefined_score_is_drawn_as_such() -> None:
    drawn = charts.forest("chart", [charts.Bar("Twin", "twin", None, None, None)], (0, 1))
    assert "undefined" in drawn
    assert "circle" not in drawn
