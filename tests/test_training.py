"""The training loop: same bytes for the same seed, the same bytes after a kill, and a clear stop on bad numbers."""

import dataclasses
import math
import shutil
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import owners
import pandas as pd
import pytest
import test_files
import torch
from dvc.repo import Repo
from ruamel.yaml import YAML
from torch import Tensor
from torch._dynamo import OptimizedModule

from stages.core import files, params, plugins, schema
from stages.learning import objectives, soft_labels, terms, training
from stages.learning.cohort import Cohort, load_cohort
from stages.learning.trainer import Recipe, Task, Trainer, TrainingError, build_adapter
from stages.nets import nets

ROOT = Path(__file__).parent.parent
NAMES = ("student", "tiny", "eeea_net_c2", 0)
CPU = torch.device("cpu")


def settings(**changes: Any) -> Any:
    """`train.student` of the embedded default, shortened."""
    given = params.parse(params.read(ROOT / "params.yaml")).train.student.at(0.4)
    return given.model_copy(update={"steps": 12, "batch_size": 8, "evaluations": 4, "checkpoint_steps": 5} | changes)


@pytest.fixture
def views() -> Any:
    return params.parse(params.read(ROOT / "params.yaml")).views


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return drawn(tmp_path / "cohort", 32)


def drawn(folder: Path, size_px: int) -> Cohort:
    """40 films in which the first finding is a bright lower half; the second is never annotated in half of them."""
    rng = np.random.default_rng(0)
    targets = (rng.random((40, 2)) < 0.5).astype(np.float32)
    films = rng.integers(0, 120, (40, size_px, size_px), dtype=np.uint8)
    films[targets[:, 0] == 1, size_px // 2 :] += 100
    targets[::2, 1] = np.nan
    folder.mkdir()
    np.save(folder / "a_0000.npy", films)
    np.save(folder / "targets.npy", targets)
    split = np.where(np.arange(40) < 28, "train", "val")
    rows = pd.DataFrame(
        {"dataset": "a", "image": [f"{n}.png" for n in range(40)], "patient": range(40), "split": split}
    )
    files.write_table(rows.assign(shard="a_0000.npy", row=range(40)), folder / "rows.parquet")
    files.write_json({"cohort": "tiny", "findings": ["Edema", "Mass"], "size_px": size_px}, folder / "cohort.json")
    return load_cohort(folder)


def trainer(
    cohort: Cohort,
    views: Any,
    *,
    soft: Any = None,
    terms: Any = None,
    teacher: Any = None,
    adapter: Any = None,
    seed: int = 1,
    **changes: Any,
) -> Any:
    """A run of a few steps."""
    nets.fix(threads=1)
    model = nets.build_model("eeea_net_c2", 2, 32, seed=seed)
    chosen = terms or objectives.undistilled
    recipe = Recipe(cohort, chosen, settings(**changes), views, 17, NAMES, soft, teacher, adapter)
    return Trainer(model, recipe, CPU)


def distilled(name: str, views: Any, **changes: Any) -> dict[str, Any]:
    """What `trainer` takes for a loss with its docstring's settings, but for some; a teacher only if it is needed."""
    loss = terms.with_settings(plugins.load("losses", name), entry(name) | changes)
    return {
        "terms": loss.terms,
        "soft": np.random.default_rng(3).normal(size=(views.count, 28, 2)).astype(np.float16),
        "teacher": nets.build_model("resnet10t", 2, 32, seed=5) if loss.needs_features else None,
        "adapter": loss.adapter,
    }


def entry(name: str) -> dict[str, Any]:
    """The settings with which a loss's docstring ends."""
    text = str(plugins.load("losses", name).__doc__).split("In params.yaml:\n")[1]
    return dict(YAML(typ="safe").load(text)[name])


def weights(model: torch.nn.Module) -> bytes:
    """All tensors as bytes."""
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


def test_same_seed_same_bytes_and_another_seed_other_bytes(cohort: Any, views: Any, tmp_path: Path) -> None:
    runs = [trainer(cohort, views, seed=seed).fit(tmp_path / f"{n}.pt") for n, seed in enumerate((1, 1, 2))]
    assert weights(runs[0][0]) == weights(runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert weights(runs[0][0]) != weights(runs[2][0])


@pytest.mark.parametrize("loss", ["sigmoid_kd", "rkd", "feature_mse"])
def test_a_run_stopped_after_any_checkpoint_ends_with_the_bytes_of_an_undisturbed_one(
    views: Any, tmp_path: Path, loss: str
) -> None:
    cohort = drawn(tmp_path / "cohort", 64)
    kd = distilled(loss, views)
    whole = trainer(cohort, views, **kd)
    undisturbed, history = whole.fit(tmp_path / "whole.pt")

    class Stopped(Exception):  # noqa: N818
        pass

    broken = trainer(cohort, views, **kd)
    original = broken._step

    def step() -> None:
        if broken.progress.step == 7:
            raise Stopped
        original()

    broken._step = step
    with pytest.raises(Stopped):
        broken.fit(tmp_path / "last.pt")
    resumed = trainer(cohort, views, **kd)
    resumed._restore(tmp_path / "last.pt")
    assert resumed.progress.step == 5
    resumed = trainer(cohort, views, **kd)
    model, again = resumed.fit(tmp_path / "last.pt")
    assert weights(model) == weights(undisturbed)
    assert weights(resumed.adapter) == weights(whole.adapter)
    assert again == history


def test_an_adapter_is_seeded_by_the_run_and_learns_under_its_clipping(views: Any, tmp_path: Path) -> None:
    cohort = drawn(tmp_path / "cohort", 64)
    kd = distilled("feature_mse", views)
    state = torch.get_rng_state()
    first, second = (trainer(cohort, views, clip_norm=1e-3, **kd) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    start = weights(first.adapter)
    assert start == weights(second.adapter)
    other = build_adapter(dataclasses.replace(first.recipe, seed=1), first.task.trainable_module)
    assert weights(other) != start
    first._step()
    assert weights(first.adapter) != start
    assert weights(first.adapter) != weights(second.adapter)
    trained = [*first.task.trainable_module.parameters(), *first.adapter.parameters()]
    assert torch.nn.utils.get_total_norm([one.grad for one in trained]).item() == pytest.approx(1e-3, rel=1e-3)
    assert {id(one) for group in first.optimizer.param_groups for one in group["params"]} == {
        id(one) for one in trained
    }


def test_an_adapter_is_dropped_at_the_end(views: Any, tmp_path: Path) -> None:
    cohort = drawn(tmp_path / "cohort", 64)
    model, _ = trainer(cohort, views, steps=4, **distilled("feature_mse", views)).fit(tmp_path / "last.pt")
    assert model.state_dict().keys() == nets.build_model("eeea_net_c2", 2, 64).state_dict().keys()


def test_a_teacher_that_is_silent_on_one_film_stops_the_step_that_sees_it(
    cohort: Any, views: Any, tmp_path: Path
) -> None:
    kd = distilled("sigmoid_kd", views)
    run = trainer(cohort, views, batch_size=7, **kd)
    kd["soft"][0, run._rows(2)[0][3], 1] = math.nan
    with pytest.raises(TrainingError, match="the loss is nan at step 2 "):
        run.fit(tmp_path / "none.pt")


@pytest.mark.parametrize("value", [math.nan, math.inf, 7e4])
def test_soft_labels_that_are_not_finite_in_fp16_are_not_written(
    cohort: Any, views: Any, tmp_path: Path, value: float
) -> None:
    logits = np.zeros((views.count, 28, 2), np.float32)
    logits[1, 3, 0] = value
    with pytest.raises(soft_labels.SoftLabelError, match=f"finite in fp16, got 1 of {logits.size}"):
        soft_labels.write(logits, cohort, views, 17, tmp_path / "soft", tmp_path)
    assert not (tmp_path / "soft").exists()


@pytest.mark.parametrize(
    "changes",
    [{"positive_weight_cap": 5.0}, {"asymmetric": schema.Asymmetric(gamma_neg=4.0, gamma_pos=1.0, clip=0.05)}],
)
def test_a_training_takes_its_criterion_from_its_schedule(
    cohort: Any, views: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """The task of the first step, before any weight has moved, is that of the criterion over the annotated elements."""
    run = trainer(cohort, views, **changes)
    plain = trainer(cohort, views)
    for one in (run, plain):
        one._step()
    assert run.progress.sums["task"] != plain.progress.sums["task"]
    expected = objectives.criterion(settings(**changes), cohort.train.targets)
    assert type(run.task.criterion) is type(expected)
    _, history = trainer(cohort, views, steps=4, **changes).fit(tmp_path / "last.pt")
    assert all(math.isfinite(row["loss"]) for row in history)


def test_training_learns_what_is_there_to_learn(cohort: Any, views: Any, tmp_path: Path) -> None:
    _, history = trainer(cohort, views, steps=60, lr=0.05, ema_decay=0.9).fit(tmp_path / "none.pt")
    assert history[-1]["loss"] < history[0]["loss"]
    assert [row["step"] for row in history] == [15, 30, 45, 60]


def test_every_row_is_seen_once_an_epoch_in_another_order_each(cohort: Any, views: Any) -> None:
    run = trainer(cohort, views, batch_size=7)
    epochs = [[row for step in range(4 * e, 4 * e + 4) for row in run._rows(step)[0]] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(28))
    assert epochs[0] != epochs[1]


def test_a_loss_that_is_not_a_number_stops_with_step_and_films(cohort: Any, views: Any, tmp_path: Path) -> None:
    def poisoned(given: objectives.Signals) -> dict[str, Tensor]:
        return {"task": objectives.bce(given) * (math.nan if run.progress.step == 3 else 1.0)}

    run = trainer(cohort, views, terms=poisoned)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 3 .*batch of \d+\.png, \d+\.png"):
        run.fit(tmp_path / "none.pt")


def test_a_disk_that_fills_during_a_checkpoint_keeps_the_last_one_and_the_next_run_goes_on(
    cohort: Any, views: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, _ = trainer(cohort, views).fit(tmp_path / "whole.pt")
    run, path = trainer(cohort, views), tmp_path / "kept/last.pt"
    opened, original = Path.open, run.save
    kept = []

    def full(self: Path, mode: str = "r", **options: Any) -> Any:
        return test_files.Full(self, 100_000) if self.suffix == ".part" else opened(self, mode, **options)

    def save(place: Path) -> None:
        if run.progress.step == 10:
            kept.append(place.read_bytes())
            monkeypatch.setattr(Path, "open", full)
        original(place)

    run.save = save
    with pytest.raises(files.DiskFullError, match=r"the disk is full: .*last.pt was not written"):
        run.fit(path)
    monkeypatch.setattr(Path, "open", opened)
    assert [(place.name, place.read_bytes()) for place in path.parent.iterdir()] == [("last.pt", kept[0])]
    model, _ = trainer(cohort, views).fit(path)
    assert weights(model) == weights(undisturbed)


def test_live_curves_hold_each_row_of_the_history_once_also_after_a_kill(
    cohort: Any, views: Any, tmp_path: Path
) -> None:
    """The kill comes after the row of step 9, which the checkpoint of step 5 does not know."""
    live = tmp_path / "live"

    def points(name: str) -> list[tuple[int, float]]:
        lines = (live / f"plots/metrics/{name}.tsv").read_text().splitlines()
        assert lines[0] == f"step\t{name}"
        return [(int(step), float(value)) for step, value in (line.split("\t") for line in lines[1:])]

    broken = trainer(cohort, views)
    original = broken._step

    def step() -> None:
        if broken.progress.step == 9:
            raise KeyboardInterrupt
        original()

    broken._step = step
    with pytest.raises(KeyboardInterrupt):
        broken.fit(tmp_path / "last.pt", live)
    assert [step for step, _ in points("val_auroc")] == [3, 6, 9]
    _, history = trainer(cohort, views).fit(tmp_path / "last.pt", live)
    for name in ("loss", "lr", "val_auroc"):
        assert points(name) == [(row["step"], pytest.approx(row[name])) for row in history]
    assert [path.relative_to(live).as_posix() for path in live.rglob("*.yaml")] == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # DVC leaves what it opened to the end
def test_dvc_plots_shows_the_live_curves_and_the_finished_ones(
    cohort: Any, views: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "project"
    (place / ".dvc").mkdir(parents=True)
    (place / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    plots = YAML(typ="safe").load(ROOT / "dvc.yaml")["plots"]
    YAML().dump({"stages": {}, "plots": plots}, place / "dvc.yaml")
    monkeypatch.chdir(place)
    trainer(cohort, views, steps=4).fit(tmp_path / "last.pt", Path(".live/student-joint"))
    Path("reports/curves").mkdir(parents=True)
    training.write_history([{"step": 7, "val_auroc": 0.8125}], Path("reports/curves/a.csv"))
    shown = Repo().plots.show()["workspace"]
    titles = set(shown["sources"]["data"])
    assert {".live/student-joint/plots/metrics/val_auroc.tsv", "reports/curves/a.csv"} <= titles


@pytest.mark.parametrize("architecture", ["eeea_net_c2", "resnet18", "autoformer_v2_t"])
def test_layer_decay_slows_the_early_layers_and_1_is_off(cohort: Any, views: Any, architecture: str) -> None:
    nets.fix(threads=1)
    model = nets.build_model(architecture, 2, 32, seed=1)
    chosen = settings(layer_decay=0.5, warmup=0.5)
    recipe = Recipe(cohort, objectives.undistilled, chosen, views, 17, NAMES)
    run = Trainer(model, recipe, CPU)
    run.scheduler.step_update(3)
    rate = {id(value): group["lr"] for group in run.optimizer.param_groups for value in group["params"]}
    rates = [rate[id(value)] for value in model.parameters()]
    classifier = [rate[id(value)] for value in model.get_classifier().parameters()]
    assert classifier == [max(rates)] * 2
    assert rates[0] == min(rates) < 0.1 * max(rates)
    assert max(rates) == pytest.approx(chosen.lr * 3 / 6)
    off = Trainer(model, dataclasses.replace(recipe, settings=settings()), CPU)
    assert len(off.optimizer.param_groups) == 2  # with and without weight decay
    assert not any("lr_scale" in group for group in off.optimizer.param_groups)


def test_a_compiled_net_trains_alike_and_keeps_the_names_of_its_weights(
    cohort: Any, views: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured as torch.compile does, and run by PyTorch: inductor takes minutes."""
    monkeypatch.setattr(Task, "compile", partialmethod(Task.compile, backend="eager"))
    plain, _ = trainer(cohort, views, steps=6).fit(tmp_path / "plain.pt")
    run = trainer(cohort, views, steps=6, compile=True)
    compiled, _ = run.fit(tmp_path / "compiled.pt")
    assert isinstance(run.task.trainable_module, OptimizedModule)
    kept, own = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("compiled", "plain"))
    assert list(kept["model"]) == list(own["model"]) == list(compiled.state_dict()) == list(plain.state_dict())
    assert weights(compiled) == weights(plain)


def test_twin_and_distilled_student_see_the_same_batches(cohort: Any, views: Any) -> None:
    """Alpha 1 makes the distilled student its twin, to the byte: nothing else differs between them."""
    from stages.losses import sigmoid_kd

    hard_only = sigmoid_kd.Settings(alpha=1.0, temperature=2.0)
    soft = np.random.default_rng(3).normal(size=(views.count, 28, 2)).astype(np.float16)
    twin = trainer(cohort, views, steps=4)
    distilled = trainer(cohort, views, steps=4, soft=soft, terms=lambda given: sigmoid_kd.terms(given, hard_only))
    for run in (twin, distilled):
        for _ in range(4):
            run._step()
            run.progress.step += 1
    assert weights(twin.task.trainable_module) == weights(distilled.task.trainable_module)


def test_each_term_is_logged_with_its_pull_beside_the_task(cohort: Any, views: Any, tmp_path: Path) -> None:
    """Of terms that are multiples of the task, the ratio is the factor; a task without weight has none."""

    def scaled(given: objectives.Signals, task: float = 1.0) -> dict[str, Tensor]:
        loss = objectives.bce(given)
        return {"task": task * loss, "half": -0.5 * loss, "triple": 3 * loss}

    _, history = trainer(cohort, views, steps=4, terms=scaled).fit(tmp_path / "a.pt")
    assert [row["half_grad_ratio"] for row in history] == pytest.approx([0.5] * 4)
    assert [row["triple_grad_ratio"] for row in history] == pytest.approx([3] * 4)
    assert list(history[0])[-3:] == ["half_grad_ratio", "triple_grad_ratio", "val_auroc"]
    _, unweighted = trainer(cohort, views, steps=4, terms=partial(scaled, task=0.0)).fit(tmp_path / "b.pt")
    assert all(math.isnan(row["triple_grad_ratio"]) for row in unweighted)
    _, twin = trainer(cohort, views, steps=4).fit(tmp_path / "c.pt")
    assert list(twin[0]) == ["step", "lr", "loss", "task", "val_auroc"]


def test_logging_the_pull_of_terms_changes_no_byte(
    cohort: Any, views: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.losses import sigmoid_kd

    terms = partial(sigmoid_kd.terms, settings=sigmoid_kd.Settings(alpha=0.3, temperature=2.0))
    soft = np.random.default_rng(3).normal(size=(views.count, 28, 2)).astype(np.float16)
    logged, history = trainer(cohort, views, soft=soft, terms=terms).fit(tmp_path / "a.pt")
    monkeypatch.setattr("stages.learning.trainer.gradient_ratios", lambda _terms, _logits: {})
    unlogged, _ = trainer(cohort, views, soft=soft, terms=terms).fit(tmp_path / "b.pt")
    assert weights(logged) == weights(unlogged)
    assert all(row["kd_grad_ratio"] > 0 for row in history)


@pytest.mark.parametrize("loss", ["attention_transfer", "rkd", "cam_transfer", "feature_mse"])
def test_a_loss_of_features_without_weight_pulls_like_the_twin_and_with_it_otherwise(
    views: Any, tmp_path: Path, loss: str
) -> None:
    """Gradients of one step, to float rounding: those of the features reach the net in another memory layout."""
    cohort = drawn(tmp_path / "cohort", 64)
    off: dict[str, Any] = {"distance": 0.0, "angle": 0.0} if loss == "rkd" else {"weight": 0.0}
    pulls = []
    for given in ({}, distilled(loss, views, alpha=1.0, **off), distilled(loss, views, alpha=1.0)):
        run = trainer(cohort, views, clip_norm=1e9, **given)
        run._step()
        pulls.append(torch.cat([parameter.grad.flatten() for parameter in run.task.trainable_module.parameters()]))
    twin, silent, heard = pulls
    assert (silent - twin).norm() < 1e-4 * twin.norm()
    assert (heard - twin).norm() > 1e-2 * twin.norm()


@pytest.mark.parametrize(
    ("loss", "added"),
    [
        ("attention_transfer", ["attention"]),
        ("rkd", ["distance", "angle"]),
        ("cam_transfer", ["maps"]),
        ("feature_mse", ["features"]),
    ],
)
def test_a_loss_of_features_logs_the_pull_of_each_term_and_leaves_the_teacher_alone(
    views: Any, tmp_path: Path, loss: str, added: list[str]
) -> None:
    cohort = drawn(tmp_path / "cohort", 64)
    kd = distilled(loss, views, alpha=1.0)
    before = weights(kd["teacher"])
    _, history = trainer(cohort, views, steps=4, **kd).fit(tmp_path / "last.pt")
    assert weights(kd["teacher"]) == before
    assert all(parameter.grad is None for parameter in kd["teacher"].parameters())
    assert all(row[f"{term}_grad_ratio"] > 0 for row in history for term in added)


def test_a_step_shows_the_teacher_the_very_input_of_the_student_in_eval_mode(cohort: Any, views: Any) -> None:
    run = trainer(cohort, views, **distilled("rkd", views))
    seen: list[tuple[Tensor, bool]] = []
    for model in (run.recipe.teacher, run.task.trainable_module):
        original = model.forward_features
        model.forward_features = lambda images, model=model, original=original: (
            seen.append((images, model.training)) or original(images)
        )
    run.task.train()
    run._step()
    (teachers, teaching), (students, learning) = seen
    assert teachers is students
    assert (teaching, learning) == (False, True)


def test_soft_labels_are_the_teachers_logits_of_the_very_views_that_students_see(
    cohort: Any, views: Any, tmp_path: Path
) -> None:
    from stages import soft_label

    teacher = nets.build_model("resnet18", 2, 32, seed=5).eval()
    films = list(soft_label.films_of_view(cohort.train, 1, views, 17))
    cached = nets.logits(teacher, films, CPU)
    soft_labels.write(np.stack([cached] * views.count), cohort, views, 17, tmp_path / "soft", tmp_path / "cohort")
    stored = soft_labels.read(tmp_path / "soft", cohort, views, 17)
    online = nets.logits(teacher, [cohort.train.view(9, 1, views, 17)[None]], CPU)
    assert np.allclose(stored[1, 9], online[0], atol=2e-3 * max(1.0, np.abs(online).max()))


def test_a_step_shows_the_student_the_pixels_that_its_soft_labels_were_made_of(
    cohort: Any, views: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages import soft_label

    labelled = [np.concatenate(list(soft_label.films_of_view(cohort.train, n, views, 17))) for n in range(views.count)]
    soft = np.arange(views.count * 28 * 2, dtype=np.float16).reshape(views.count, 28, 2)
    run = trainer(cohort, views, soft=soft, batch_size=8)
    seen: dict[str, Any] = {}
    to_input = nets.to_input
    spy = lambda films, device: seen.update(films=films) or to_input(films, device)  # noqa: E731
    monkeypatch.setattr(nets, "to_input", spy)

    def terms(given: objectives.Signals) -> dict[str, Tensor]:
        seen["soft"] = given.teacher.numpy()
        return objectives.undistilled(given)

    run.task.terms = terms
    for step in (0, 3, 4, 8):  # the first and later epochs, and with them other views
        run.progress.step = step
        rows, epochs = run._rows(step)
        run._step()
        for place, (row, epoch) in enumerate(zip(rows, epochs, strict=True)):
            assert np.array_equal(seen["films"][place], labelled[epoch % views.count][row])
            assert np.array_equal(seen["soft"][place], soft[epoch % views.count, row])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c, v: (dataclasses.replace(c, about=c.about | {"findings": ["Mass", "Edema"]}), v), "findings"),
        (lambda c, v: (c, v.model_copy(update={"count": v.count + 1})), "views"),
        (
            lambda c, v: (dataclasses.replace(c, train=dataclasses.replace(c.train, rows=c.train.rows[::-1])), v),
            "images_sha256",
        ),
    ],
)
def test_soft_labels_of_something_else_are_refused(
    cohort: Any, views: Any, tmp_path: Path, change: Any, named: str
) -> None:
    soft_labels.write(np.zeros((views.count, 28, 2)), cohort, views, 17, tmp_path / "soft", tmp_path / "cohort")
    other_cohort, other_views = change(cohort, views)
    with pytest.raises(soft_labels.SoftLabelError, match=f"made for other {named}"):
        soft_labels.read(tmp_path / "soft", other_cohort, other_views, 17)


@pytest.mark.usefixtures("cohort")
def test_a_cohort_without_validation_films_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cohort"
    rows = files.read_table(folder / "rows.parquet")
    files.write_table(rows.assign(split="train"), folder / "rows.parquet")
    with pytest.raises(ValueError, match="has no val images"):
        load_cohort(folder)


CELL = ["--cohort", "joint", "--student", "eeea_net_c2", "--teacher", "resnet10t", "--seed", "0"]


def ready(project: Path, cohort: Cohort, folder: Path, views: Any, **changes: Any) -> dict[str, Any]:
    """A project in which a cell can be distilled in four steps; what is known of its teacher."""
    short = {"steps": 4, "batch_size": 8, "evaluations": 4, "checkpoint_steps": 5}
    changes |= {f"train__student__{key}": value for key, value in short.items()}
    used = {name: entry(name) for name in ("sigmoid_kd", "rkd", "feature_mse")}
    rates = {name: {"default": 0.4, "per_cohort": {}} for name in ("twin", *used, *changes.get("loss_sums", {}))}
    owners.project(project, losses=used, rates=rates, threads=1, **changes)
    shutil.copytree(folder, project / "data/cohorts/joint")
    seed = params.read(project / "params.yaml")["seed"]
    soft, teacher = project / "data/soft_labels/joint/resnet10t", project / "data/models/teacher/joint/resnet10t"
    about = {"architecture": "resnet10t", "findings": ["Edema", "Mass"], "size_px": cohort.about["size_px"]}
    nets.write(nets.build_model("resnet10t", 2, 32), about, teacher)
    soft_labels.write(np.zeros((views.count, 28, 2)), cohort, views, seed, soft, teacher)
    return about


def test_a_sum_is_distilled_like_a_loss_and_logs_each_part(views: Any, project: Path, tmp_path: Path) -> None:
    from stages import distill_sum

    cohort = drawn(tmp_path / "cohort", 64)
    ready(project, cohort, tmp_path / "cohort", views, loss_sums={"mix": {"sigmoid_kd": 1.0, "feature_mse": 0.5}})
    distill_sum.main([*CELL, "--loss", "mix"])
    place = "distilled/joint/eeea_net_c2/resnet10t/mix/0"
    curve = pd.read_csv(project / f"data/curves/{place}.csv")
    added = ["feature_mse_kd", "feature_mse_features", "sigmoid_kd_kd"]
    pulls = [f"{name}_grad_ratio" for name in added]
    assert list(curve.columns) == ["step", "lr", "loss", "task", *added, *pulls, "val_auroc"]
    assert (curve[pulls] > 0).all(axis=None)
    assert curve["loss"].to_numpy() == pytest.approx(curve[["task", *added]].sum(axis=1).to_numpy(), rel=1e-4)
    model, about = nets.load_model(project / f"data/models/{place}")
    assert about["findings"] == ["Edema", "Mass"]
    assert not any("adapter" in name or "feature_mse" in name for name in model.state_dict())


def test_only_a_loss_of_features_opens_and_runs_the_teacher(
    cohort: Any, views: Any, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A loss of logits trains beside a teacher whose weights are rubbish; a loss of features needs them."""
    from stages import distill

    about = ready(project, cohort, tmp_path / "cohort", views)
    seed = params.read(project / "params.yaml")["seed"]
    soft, teacher = project / "data/soft_labels/joint/resnet10t", project / "data/models/teacher/joint/resnet10t"

    def label() -> None:
        files.remove(soft)
        soft_labels.write(np.zeros((views.count, 28, 2)), cohort, views, seed, soft, teacher)

    ran = []
    original = objectives.with_features
    monkeypatch.setattr(objectives, "with_features", lambda *given: ran.append(1) or original(*given))
    distill.main([*CELL, "--loss", "rkd"])
    assert len(ran) == 8  # the teacher and the student, in four steps
    files.write_json(about | {"findings": ["Mass", "Edema"]}, teacher / "model.json")
    label()
    with pytest.raises(soft_labels.SoftLabelError, match=r"teacher resnet10t has outputs \['Mass', 'Edema'\] at 32 px"):
        distill.main([*CELL, "--loss", "rkd"])
    (teacher / "weights.safetensors").write_bytes(b"rubbish")
    label()
    distill.main([*CELL, "--loss", "sigmoid_kd"])
    assert len(ran) == 8
    assert (project / "data/models/distilled/joint/eeea_net_c2/resnet10t/sigmoid_kd/0/model.json").is_file()
