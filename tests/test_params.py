"""params.yaml: every fault is named at once, before any work."""

import copy
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages.core import params
from stages.pipeline import check
from stages.pipeline.preset import merged

ROOT = Path(__file__).parent.parent
NET = {"pretrained": False, "checkpoint": None, "checkpoint_sha256": None}
TABLE = {"pretrained": False, "checkpoint": "table.csv", "checkpoint_sha256": "0" * 64}
RKD = {"alpha": 0.3, "temperature": 2.0, "distance": 1.0, "angle": 2.0}


@pytest.fixture
def values() -> Any:
    """The committed params, and a second loss."""
    given = copy.deepcopy(params.read(ROOT / "params.yaml"))
    given["losses"]["sigmoid_kd"] = {"alpha": 0.1, "temperature": 2.0}
    given["rates"]["sigmoid_kd"] = {"default": 0.4, "per_cohort": {}}
    return given


def test_the_committed_params_and_every_preset_hold() -> None:
    params.parse(params.read(ROOT / "params.yaml"))
    presets = sorted((ROOT / "presets").glob("*.yaml"))
    assert presets
    for preset in presets:
        merged(preset, ROOT / "params.yaml")


def test_all_faults_come_in_one_message(values: Any) -> None:
    del values["ingest"]["size_px"]
    values["rates"]["twin"]["default"] = "1e-3"
    values["train"]["student"]["epochs"] = 3
    values["views"]["count"] = 2.5
    values["losses"]["sigmoid_kd"]["tau"] = 4.0
    values["datasets"]["padchest"]["findings"].append("Efusion")
    with pytest.raises(params.ParamsError) as caught:
        check.parse(values)
    message = str(caught.value)
    for part in (
        "ingest.size_px: missing",
        "rates.twin.default: ",
        "train.student.epochs: unknown key",
        "views.count: ",
        "losses.sigmoid_kd.tau: unknown, allowed are alpha, temperature",
        "datasets.padchest.findings: unknown finding 'Efusion', did you mean Effusion?",
    ):
        assert part in message
    assert "6 fault(s)" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["losses"]["sigmoid_kd"].pop("alpha"), r"losses.sigmoid_kd.alpha: missing \(float"),
        (lambda v: v["losses"]["sigmoid_kd"].update(alpha="a"), "losses.sigmoid_kd.alpha: must be float, got 'a'"),
        (lambda v: v["losses"].update(nothing={}), "losses.nothing: no file stages/losses/nothing.py"),
        (
            lambda v: v["headline"].update(teacher="densenet161"),
            "headline.teacher: must be one of the keys of teachers",
        ),
        (lambda v: v["cohorts"]["joint"]["datasets"].append("vindr"), "cohorts.joint.datasets: must be one of"),
        (lambda v: v["teachers"].update({"no-such": v["teachers"]["resnet18"]}), r"teachers.no-such: names match"),
        (lambda v: v["train"]["student"].update(lr=0.4), "train.student.lr: unknown key"),
        (lambda v: v["rates"].pop("paper"), r"rates.paper: missing: .* of their own \(the twin's is 0.4\)"),
        (lambda v: v["rates"].pop("twin"), "rates.twin: missing: .* of their own\n"),
        (lambda v: v["rates"].update(mld=v["rates"]["paper"]), "rates.mld: must be one of twin and the keys of losses"),
        (
            lambda v: v["rates"]["paper"]["per_cohort"].update(mimic=0.1),
            "rates.paper.per_cohort: must be one of the keys of cohorts .joint., got 'mimic'",
        ),
        (lambda v: v["rates"]["paper"]["per_cohort"].update(joint=0.0), "rates.paper.per_cohort.joint: .*than 0"),
        (lambda v: v["losses"].update(twin={}), "losses.twin: must be named otherwise"),
        (
            lambda v: v["loss_sums"].update(paper={"paper": 1.0, "sigmoid_kd": 1.0}),
            "loss_sums.paper: must not be named",
        ),
        (
            lambda v: v["loss_sums"].update(mix={"paper": 1.0, "rkd": 1.0}),
            "loss_sums.mix: must be one of the keys of lo",
        ),
        (lambda v: v["loss_sums"].update(mix={"paper": 1.0}), "loss_sums.mix: .* at least 2"),
        (lambda v: v["loss_sums"].update(mix={"paper": 1.0, "sigmoid_kd": 0.0}), "loss_sums.mix.sigmoid_kd: .*than 0"),
        (lambda v: v["loss_sums"].update({"a-b": {"paper": 1.0, "sigmoid_kd": 1.0}}), "loss_sums.a-b: names match"),
        (lambda v: v["loss_sums"].update(mix={"paper": 1.0, "sigmoid_kd": 1.0}), "rates.mix: missing"),
        (lambda v: v["train"]["teacher"].update(positive_weight_cap=0.5), "teacher.positive_weight_cap: .* equal to 1"),
        (
            lambda v: v["train"]["student"].update(asymmetric={"gamma_neg": 0.5, "gamma_pos": 1.0, "clip": 0.0}),
            "student.asymmetric.gamma_neg: must be 0 or at least 1",
        ),
        (
            lambda v: v["train"]["student"].update(asymmetric={"gamma_neg": 4.0, "gamma_pos": 1.0}),
            "student.asymmetric.clip: missing",
        ),
        (lambda v: v["phantom"]["difficulty"]["size"].update(low=9.0), "low must not exceed high"),
        (lambda v: v["seeds"].append(0), "seeds: an item stands twice"),
        (lambda v: v["seeds"].append(-1), "seeds.3: "),
        (lambda v: v["phantoms"].pop("padchest"), "padchest.root: data/phantom/padchest is where phantoms are drawn"),
        (
            lambda v: v["datasets"]["padchest"].update(root="/data"),
            "padchest.root: must be data/phantom/padchest, .* got '/data'",
        ),
        (
            lambda v: (v["phantoms"].pop("chexpert"), v["datasets"]["chexpert"].update(root="/a\nb; rm -r /")),
            r"datasets.chexpert.root: must be a path, and has a line break .*, got '/a\\nb; rm -r /': rename",
        ),
        (
            lambda v: (v["phantoms"].pop("chexpert"), v["datasets"]["chexpert"].update(root="s3://films")),
            "datasets.chexpert.root: must be a path, and has an address: fetch the files first, got 's3://films'",
        ),
        (
            lambda v: v["datasets"]["chexpert"].update(root=" "),
            "datasets.chexpert.root: must be a path, and has nothing",
        ),
        (
            lambda v: v["datasets"]["chexpert"].update(root="-x"),
            "datasets.chexpert.root: .* has a dash at its beginning",
        ),
        (lambda v: v["datasets"]["chexpert"].update(films="../x.csv"), "datasets.chexpert.films: .* a file below root"),
        (lambda v: v["datasets"]["chexpert"].update(films="/x.csv"), "datasets.chexpert.films: .* a file below root"),
        (
            lambda v: v["students"]["eeea_net_c2"].update(checkpoint="a\x00b", checkpoint_sha256="0" * 64),
            "students.eeea_net_c2.checkpoint: must be a path, and has a line break or another control character",
        ),
        (lambda v: v.update(choice="../drawn"), "choice: must be the name of a file in reports/choices, .*'../drawn'"),
        (lambda v: v["cohorts"].update({"a;b": {"datasets": ["chexpert"]}}), "cohorts.a;b: names match"),
        (lambda v: v["headline"].update(cohort="$(x)"), "headline.cohort: must be one of the keys of cohorts"),
        (lambda v: v["explain"].update(explainers=["x; y"]), "explain.explainers: must be one of the files in"),
        (lambda v: v["train"]["teacher"].update(lr=float("inf")), "train.teacher.lr: .* finite number, got inf"),
        (lambda v: v["losses"]["paper"].update(weight=float("inf")), "losses.paper.weight: must be finite, got inf"),
        (lambda v: v["train"]["teacher"].update(steps=10**30), "train.teacher.steps: .* less than or equal to"),
        (lambda v: v.update(seed=10**60), r"seed: .* less than 9223372036854775808, got 10{8,}\.\.\.0+"),
        (lambda v: v["datasets"]["padchest"].update(findings=[["Edema"]]), r"findings.0: .* string, got \['Edema'\]"),
        (lambda v: v["train"]["teacher"].update(steps=2), "evaluations must not exceed steps, got 8 > 2"),
        (lambda v: v["policies"]["chexpert"]["blank"].update(default="smoothed"), "policies.chexpert.blank.default"),
        (lambda v: v["students"].update(precomputed=NET), "students.precomputed: must be a net, got one of kind table"),
        (lambda v: v["students"].update(resnets=NET), "students.resnets: must be a net, got one of kind ensemble"),
        (lambda v: v["teachers"].update(precomputed=NET), "teachers.precomputed.checkpoint: must be a csv"),
        (
            lambda v: v["teachers"].update(resnets=NET | {"checkpoint": "a.pt", "checkpoint_sha256": "0" * 64}),
            "teachers.resnets.checkpoint: must be null, since an ensemble has several nets, got 'a.pt'",
        ),
        (
            lambda v: (v["teachers"].update(resnets=NET), v["losses"].update(rkd=RKD)),
            "losses.rkd: needs a net's features, teachers.resnets is of kind ensemble: take one out",
        ),
        (
            lambda v: (v["teachers"].update(precomputed=TABLE), v["losses"].update(rkd=RKD)),
            "losses.rkd: needs a net's features, teachers.precomputed is of kind table: take one out",
        ),
    ],
)
def test_a_contradiction_names_key_rule_and_value(values: Any, change: Any, message: str) -> None:
    change(values)
    with pytest.raises(params.ParamsError, match=message):
        check.parse(values)


def test_a_rate_is_the_cohorts_own_or_the_default(values: Any) -> None:
    values["cohorts"]["nih"] = {"datasets": ["chestxray14"]}
    values["rates"]["paper"] = {"default": 0.4, "per_cohort": {"nih": 0.1}}
    given = check.parse(values)
    rates = given.rates["paper"]
    assert (rates.of("joint"), rates.of("nih")) == (0.4, 0.1)
    assert given.train.student.at(rates.of("nih")).model_dump() == given.train.student.model_dump() | {"lr": 0.1}


def test_a_sum_may_be_the_headline(values: Any) -> None:
    values["loss_sums"] = {"mix": {"paper": 1.0, "sigmoid_kd": 0.5}}
    values["rates"]["mix"] = {"default": 0.4, "per_cohort": {}}
    values["headline"]["loss"] = "mix"
    assert check.parse(values).headline.loss == "mix"


def test_a_table_and_an_ensemble_may_teach_with_losses_of_logits(values: Any) -> None:
    values["teachers"] |= {"precomputed": TABLE, "resnets": NET | {"pretrained": True}}
    assert list(check.parse(values).teachers) == ["resnet18", "precomputed", "resnets"]


def test_what_only_a_plug_in_knows_is_checked_before_the_run(values: Any, tmp_path: Path) -> None:
    values["losses"]["sigmoid_kd"]["alpha"] = 1.5
    values["losses"]["paper"]["reduction"] = "median"
    values["datasets"]["chexpert"]["findings"].append("Hernia")
    with (tmp_path / "params.yaml").open("w") as file:
        YAML().dump(values, file)
    with pytest.raises(params.ParamsError) as caught:
        check.everything(params.read(tmp_path / "params.yaml"), "params.yaml")
    for part in ("3 fault(s)", "losses.sigmoid_kd.alpha: ", "losses.paper.reduction: ", "Hernia is never annotated"):
        assert part in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("", "must hold keys, got None"), ("a: [1", "is no YAML")])
def test_a_file_that_holds_no_keys_says_so(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(params.ParamsError, match=message):
        params.read(tmp_path / "params.yaml")


def test_a_stage_cannot_read_what_it_does_not_declare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv(params.DECLARED, "seed threads")
    assert params.load("seed", "threads") == (17, 1)
    with pytest.raises(params.ParamsError, match="differ: views"):
        params.load("seed", "threads", "views")


def test_every_key_has_a_comment() -> None:
    """A reader learns what a key does from the file alone; a key that comes again is explained the first time.

    The keys of a loss are explained in its own docstring.
    """
    explained, bare, section = set[str](), set[str](), ""
    for line in (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines():
        key, colon, value = line.strip().partition(":")
        if not colon or key.startswith(("#", "-")):
            continue
        section = key if line.startswith(key) else section
        if section == "losses" and line.startswith("    "):
            continue
        if "#" in value:
            explained.add(key)
        elif value and key not in explained:  # a key without a value of its own is a heading
            bare.add(key)
    assert bare - explained == set()


@pytest.mark.parametrize("depth", [40, 3000])
def test_a_value_of_any_depth_or_size_is_told_in_a_short_line(values: Any, depth: int) -> None:
    """YAML's aliases write a tree of 2^40 leaves in forty lines."""
    tree: list[Any] = []
    for _ in range(depth):
        tree = [tree, tree] if depth == 40 else [tree]
    values["title"] = tree
    with pytest.raises(params.ParamsError, match=r"title: .* string, got \[\[\[") as caught:
        check.parse(values)
    assert len(str(caught.value)) < 300
