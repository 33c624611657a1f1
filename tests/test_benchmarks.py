"""What `make bench` measures with; no test here depends on how fast anything is."""

import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import wiring
from torch import nn

from benchmarks import __main__ as bench
from benchmarks import ingest, maps, measure, training
from stages.core import params

OWN_PEAK = "from benchmarks import measure; print(measure.own_peak_mb())"
BALLAST_MB = 300


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process starts with no peak of its parent's")
def test_peak_memory_of_a_process_is_its_own_and_not_its_parents() -> None:
    ballast = bytearray(BALLAST_MB << 20)
    done = subprocess.run([sys.executable, "-c", OWN_PEAK], check=True, capture_output=True, text=True)
    assert float(done.stdout) < BALLAST_MB / 3
    assert measure.own_peak_mb() > len(ballast) >> 20


def test_works_are_called_in_turn_and_backwards_in_every_other_round() -> None:
    called: list[str] = []
    timed = measure.in_turn(lambda: called.append("a"), lambda: called.append("b"), count=3)
    assert called == [*"ab", *"ab", *"ba", *"ab"]
    assert [len(seconds) for seconds in timed] == [3, 3]


def test_a_group_that_is_measured_alone_leaves_the_parts_of_others_as_they_are() -> None:
    parts = {group: f"## {group.capitalize()}\n\nwhat\n\n| a |\n" for group in ("labels", "training")}
    first = bench.page("", parts)
    again = bench.page(first, {"ingest": "## Ingest\n\nnew\n", "labels": "## Labels\n\nother\n"})
    assert [line for line in again.splitlines() if line.startswith("## ")] == ["## Labels", "## Ingest", "## Training"]
    assert parts["training"] in again
    assert "## Labels\n\nother\n\n## Ingest\n\nnew\n" in again
    assert bench.page(again, {}) == again


def test_a_rate_is_ours_to_theirs_and_a_duration_too() -> None:
    rate = measure.compare("", [[2.0, 2.0], [1.0, 1.0]], "films", 10, 0.85, True)
    duration = measure.compare("", [[2.0, 2.0], [1.0, 1.0]], "s", 1, 2.5, False)
    assert (rate.ratio, rate.ours, rate.is_met) == (0.5, "5 films/s", False)
    assert (duration.ratio, duration.ours, duration.is_met) == (2.0, "2 s", True)
    assert rate.row().endswith("| 0.5 (0.5 to 0.5) | at least 0.85 | **no** |")


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> training.Case:
    """Small batches with a small teacher."""
    monkeypatch.setattr(training, "TEACHER", "resnet10t")
    settings = params.parse(params.read()).train.student.at(0.4)
    return training.Case(settings.model_copy(update={"batch_size": 4}), 64, torch.device("cpu"))


def test_both_online_sides_have_the_same_loss(case: training.Case) -> None:
    """A ratio to either is a ratio to the same work."""
    on_timm, on_torchdistill = training.online_timm(case), training.Torchdistill(case)
    films, target = on_timm.films, on_timm.target
    loss = on_torchdistill.box.forward_process(films, target, None)
    assert loss.item() == pytest.approx(on_timm.task(films, target)["loss"].item(), rel=1e-4)


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in net.parameters()])


def nets_of_timm(made: Any) -> tuple[nn.Module, nn.Module]:
    return made.task.trainable_module, made.task.teacher.model


def nets_of_torchdistill(made: Any) -> tuple[nn.Module, nn.Module]:
    return made.box.student_model, made.box.teacher_model


@pytest.mark.parametrize(
    ("build", "nets"),
    [(training.online_timm, nets_of_timm), (training.Torchdistill, nets_of_torchdistill)],
    ids=["timm", "torchdistill"],
)
def test_an_online_step_moves_the_student_and_not_the_teacher(build: Any, nets: Any, case: training.Case) -> None:
    made = build(case)
    student, teacher = nets(made)
    before = [weights(net) for net in (student, teacher)]
    made.steps(1)
    after = [weights(net) for net in (student, teacher)]
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [False, True]
    assert (student.training, teacher.training) == (True, False)


def test_the_boxes_of_the_truth_come_one_a_row() -> None:
    texts = ['{"Edema": [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.1, 0.1]], "Mass": [[0.0, 0.0, 1.0, 1.0]]}', "{}"]
    boxes = maps.boxes_of(pd.DataFrame({"image": ["a.png", "b.png"], "boxes": texts}))
    assert boxes.to_dict("list") == {
        "image": ["a.png"] * 3,
        "finding": ["Edema", "Edema", "Mass"],
        "x": [0.1, 0.5, 0.0],
        "y": [0.2, 0.5, 0.0],
        "width": [0.3, 0.1, 1.0],
        "height": [0.4, 0.1, 1.0],
    }


@pytest.mark.usefixtures("project")
def test_maps_of_a_run_without_drawn_films_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["maps"])
    with pytest.raises(SystemExit, match=r"needs drawn films, .* none of chestxray14, chexpert, padchest"):
        maps.main()


def test_the_bench_of_ingest_feeds_the_stage_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(wiring.ROOT)
    with ingest.project(2, 1) as paths:
        ingest.ours()
        assert np.load(f"data/images/{ingest.DATASET}/shard_0000.npy").shape[0] == len(paths) == 2
