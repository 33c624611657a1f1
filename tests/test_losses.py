"""Losses against closed forms, in float64."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.core import objectives, params, plugins
from stages.losses import paper, sigmoid_kd


def random(seed: int, rows: int = 5, findings: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits, teacher logits, targets."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(rows, findings, dtype=torch.float64, generator=generator) for _ in range(2))
    target = (torch.rand(rows, findings, dtype=torch.float64, generator=generator) > 0.5).double()
    return student, teacher, target


LOSSES = params.read(Path(__file__).parent.parent / "params.yaml")["losses"]
KD = sigmoid_kd.Settings(alpha=0.3, temperature=2.0)
PAPER = paper.Settings(alpha=0.5, temperature=2.0, gamma=2.0, weight=1.0, reduction="mean")


def test_masked_elements_change_neither_value_nor_gradient() -> None:
    student, teacher, target = random(1)
    student.requires_grad_()
    target[0, 0] = target[3, 2] = math.nan
    loss = objectives.bce(objectives.signals(student, target, teacher))
    (gradient,) = torch.autograd.grad(loss, student)
    known = ~torch.isnan(target)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(student[known], target[known])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert gradient[0, 0] == 0
    assert gradient[3, 2] == 0
    assert torch.isfinite(gradient).all()


def test_a_batch_without_any_label_has_zero_task_loss_and_gradient() -> None:
    student, _, target = random(2)
    student.requires_grad_()
    loss = objectives.bce(objectives.signals(student, torch.full_like(target, math.nan)))
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == 0
    assert gradient.abs().max() == 0


def test_sigmoid_kd_at_student_equal_teacher_is_the_entropy_and_flat() -> None:
    _, teacher, target = random(3)
    student = teacher.clone().requires_grad_()
    kd = sigmoid_kd.terms(objectives.signals(student, target, teacher), KD)["kd"]
    chance = torch.sigmoid(teacher / 2)
    entropy = -(chance * chance.log() + (1 - chance) * (1 - chance).log())
    assert kd.item() == pytest.approx(0.7 * 4 * entropy.mean().item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(kd, student)
    assert gradient.abs().max() < 1e-15


def test_sigmoid_kd_above_its_minimum_tends_to_an_eighth_of_the_squared_difference() -> None:
    """T^2 * KL -> (z_s - z_t)^2 / 8 as T grows."""
    student, teacher, target = random(4)
    warm = sigmoid_kd.Settings(alpha=0.0, temperature=1000.0)
    loss, least = (sigmoid_kd.terms(objectives.signals(z, target, teacher), warm)["kd"] for z in (student, teacher))
    assert (loss - least).item() == pytest.approx(((student - teacher) ** 2).mean().item() / 8, rel=1e-3)


def test_sigmoid_kd_speaks_where_the_data_set_is_silent() -> None:
    student, teacher, target = random(5)
    student.requires_grad_()
    target[:, 1] = math.nan
    terms = sigmoid_kd.terms(objectives.signals(student, target, teacher), KD)
    (gradient,) = torch.autograd.grad(terms["kd"], student)
    assert (gradient[:, 1] != 0).all()


def test_the_papers_kd_term_is_zero_at_the_teacher_and_blind_to_a_constant() -> None:
    _, teacher, target = random(6)
    same = paper.terms(objectives.signals(teacher, target, teacher), PAPER)["kd"]
    shifted = paper.terms(objectives.signals(teacher + 2.5, target, teacher), PAPER)["kd"]
    assert same.item() == 0
    assert shifted.item() == pytest.approx(0, abs=1e-20)


def test_the_papers_loss_by_hand() -> None:
    """One film, two findings: sigmoid(0) = 1/2, softmax((0, 0)) = (1/2, 1/2), softmax((2 ln 3, 0) / 2) = (3/4, 1/4)."""
    student = torch.zeros(1, 2, dtype=torch.float64)
    teacher = torch.tensor([[2 * math.log(3), 0.0]], dtype=torch.float64)
    target = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    signals = objectives.signals(student, target, teacher)
    assert paper.terms(signals, PAPER)["task"].item() == pytest.approx(0.5 * 0.25 * math.log(2))
    assert paper.terms(signals, PAPER)["kd"].item() == pytest.approx(0.5 * 4 * 0.0625)
    summed = PAPER.model_copy(update={"reduction": "sum"})
    assert paper.terms(signals, summed)["kd"].item() == pytest.approx(0.5 * 4 * 0.125)


def test_focal_with_gamma_zero_is_cross_entropy() -> None:
    student, _, target = random(7)
    signals = objectives.signals(student, target)
    assert paper.focal(signals, 0.0).item() == pytest.approx(objectives.bce(signals).item(), rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(sorted(LOSSES)))
def test_every_loss_ignores_the_order_of_films_and_pulls_to_the_teacher(seed: int, name: str) -> None:
    loss = plugins.load("losses", name)
    given_settings = loss.Settings.model_validate(LOSSES[name])
    student, teacher, target = random(seed)
    order = torch.randperm(len(student), generator=torch.Generator().manual_seed(seed))
    terms = loss.terms(objectives.signals(student, target, teacher), given_settings)
    shuffled = loss.terms(objectives.signals(student[order], target[order], teacher[order]), given_settings)
    at_teacher = loss.terms(objectives.signals(teacher, target, teacher), given_settings)
    for key, value in terms.items():
        assert value.item() == pytest.approx(shuffled[key].item(), rel=1e-9)
        assert key == "task" or at_teacher[key] <= value + 1e-12


def test_a_loss_without_its_teacher_says_so() -> None:
    student, _, target = random(8)
    with pytest.raises(ValueError, match="needs a teacher's logits"):
        sigmoid_kd.terms(objectives.signals(student, target), KD)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        sigmoid_kd.Settings(alpha=0.3, temperature=0.0)
