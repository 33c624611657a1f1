"""Losses against closed forms, in float64."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor, nn
from torchdistill.losses import mid_level
from torchvision.ops import sigmoid_focal_loss

from stages.core import params, plugins, schema
from stages.learning import objectives, terms
from stages.losses import (
    attention_transfer,
    cam_transfer,
    dist_corr,
    feature_mse,
    logit_mse,
    mld,
    paper,
    rkd,
    sigmoid_kd,
    softmax_kl,
)
from stages.nets import nets


def random(seed: int, rows: int = 5, findings: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits, teacher logits, targets."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(rows, findings, dtype=torch.float64, generator=generator) for _ in range(2))
    target = (torch.rand(rows, findings, dtype=torch.float64, generator=generator) > 0.5).double()
    return student, teacher, target


def example(name: str) -> Any:
    """The settings in the entry for params.yaml with which a loss's docstring ends."""
    loss = plugins.load("losses", name)
    entry = YAML(typ="safe").load(str(loss.__doc__).split("In params.yaml:\n")[1])
    assert list(entry) == [name]
    return loss.Settings.model_validate(entry[name])


def features(maps: Tensor, weights: Tensor) -> objectives.Features:
    """Features of a net whose head is a mean over places and a linear layer."""
    return objectives.Features(maps, maps.mean(dim=(2, 3)), lambda places: places @ weights.T, maps)


def random_features(seed: int, channels: int, side: int, rows: int = 5, findings: int = 4) -> objectives.Features:
    """Maps as after a ReLU, weights of both signs."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(rows, channels, side, side, dtype=torch.float64, generator=generator).relu()
    return features(maps, torch.randn(findings, channels, dtype=torch.float64, generator=generator))


def random_pair(seed: int) -> tuple[objectives.Features, objectives.Features]:
    """The features of a student and of a teacher with other channels and a coarser grid."""
    return random_features(seed, channels=6, side=4), random_features(seed + 1, channels=3, side=2)


def picked(given: objectives.Features, rows: Tensor) -> objectives.Features:
    """The features of some films."""
    return objectives.Features(given.maps[rows], given.embedding[rows], given.classify, given.source[rows])


def identity(adapter: nn.Module) -> nn.Module:
    """An adapter that hands on what both sides have; the channels that only its output has are 0."""
    for parameter in adapter.parameters():
        nn.init.dirac_(parameter) if parameter.ndim == 4 else nn.init.zeros_(parameter)
    return adapter.double()


def terms_of(name: str, signals: objectives.Signals, given_settings: Any) -> dict[str, Tensor]:
    """The terms of a loss, with an adapter that is the identity if it has one."""
    loss = plugins.load("losses", name)
    if not hasattr(loss, "adapter"):
        found: dict[str, Tensor] = loss.terms(signals, given_settings)
        return found
    sides = random_pair(0) if signals._features is None else (signals.student_features, signals.teacher_features)
    channels = [side.maps.shape[1] for side in sides]
    return dict(loss.terms(signals, given_settings, identity(loss.adapter(*channels))))


LOSSES = plugins.names("losses")
OF_FEATURES = [name for name in LOSSES if plugins.load("losses", name).NEEDS == "features"]
OF_LOGITS = [name for name in LOSSES if plugins.load("losses", name).NEEDS == "logits"]
ON_SIGMOID_KD = [name for name in OF_FEATURES if hasattr(plugins.load("losses", name), "softened")]  # add to its terms
WITH_BCE = [name for name in LOSSES if hasattr(plugins.load("losses", name), "bce") or name in ON_SIGMOID_KD]
WITH_ALPHA = [name for name in OF_LOGITS if "alpha" in plugins.load("losses", name).Settings.model_fields]
KD = sigmoid_kd.Settings(alpha=0.3, temperature=2.0)
PAPER = paper.Settings(alpha=0.5, temperature=2.0, gamma=2.0, weight=1.0, softening="softmax", reduction="mean")


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


def of_training(targets: Tensor, **changes: Any) -> nn.Module:
    """The criterion of the committed schedule, but for some keys."""
    schedule = params.parse(params.read(Path(__file__).parent.parent / "params.yaml")).train.student
    return objectives.criterion(schema.Schedule.model_validate(schedule.model_dump() | changes), targets.numpy())


ASYMMETRIC = {"gamma_neg": 4.0, "gamma_pos": 1.0, "clip": 0.05}


def test_the_committed_criterion_is_plain_cross_entropy() -> None:
    student, _, target = random(40)
    plain = torch.nn.functional.binary_cross_entropy_with_logits(student, target, reduction="none")
    assert torch.equal(of_training(target)(student, target), plain)
    assert torch.equal(objectives.CROSS_ENTROPY(student, target), plain)


def test_the_asymmetric_loss_of_fully_annotated_targets_is_timms() -> None:
    student, _, target = random(41)
    signals = objectives.signals(student, target, criterion=of_training(target, asymmetric=ASYMMETRIC))
    assert objectives.bce(signals).item() == AsymmetricLossMultiLabel(reduction="mean")(student, target).item()


def test_the_asymmetric_loss_by_hand() -> None:
    """p = 1/2: a positive costs (1 - p)^1 ln 2, a negative (p - m)^4 times -ln(1 - p + m), m = 0.05."""
    student, target = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    positive, negative = of_training(target, asymmetric=ASYMMETRIC)(student, target)[0].tolist()
    assert positive == pytest.approx(0.5 * math.log(2))
    assert negative == pytest.approx(0.45**4 * -math.log(0.55), rel=1e-5)


def test_the_asymmetric_loss_without_focus_and_margin_is_cross_entropy() -> None:
    student, _, target = random(42)
    flat = of_training(target, asymmetric={"gamma_neg": 0.0, "gamma_pos": 0.0, "clip": 0.0})
    assert torch.allclose(flat(student, target).double(), objectives.CROSS_ENTROPY(student, target), rtol=1e-5)


@pytest.mark.parametrize("asymmetric", [None, ASYMMETRIC])
def test_unannotated_elements_are_masked_before_any_criterion(asymmetric: Any) -> None:
    """Where a logit is so large that the focusing weight is 0, too."""
    student, _, target = random(43)
    target[0, 0] = target[3, 2] = math.nan
    student[3, 2], student[1, 1], target[1, 1], target[1, 2] = 60.0, -60.0, 0.0, 0.7
    student.requires_grad_()
    signals = objectives.signals(student, target, criterion=of_training(target, asymmetric=asymmetric))
    loss = objectives.bce(signals)
    (gradient,) = torch.autograd.grad(loss, student)
    known = ~torch.isnan(target)
    per_element = signals.criterion(student, target.nan_to_num(7.0))
    assert loss.item() == pytest.approx(per_element[known].mean().item(), rel=1e-6)
    assert (gradient[~known] == 0).all()
    assert torch.isfinite(gradient).all()


def test_positives_weigh_the_ratio_of_annotated_negatives_but_no_more_than_the_cap() -> None:
    """Three to one, one to one, none positive, never annotated; a smoothed label counts as the share that it says."""
    nan = math.nan
    train = torch.tensor([[1, 1, 0, nan], [0, 0, 0, nan], [0, nan, nan, nan], [0, nan, nan, nan]])
    student, ones = torch.zeros(1, 4), torch.ones(1, 4)

    def weights(cap: float, targets: Tensor, **changes: Any) -> list[float]:
        plain, weighted = (of_training(targets, positive_weight_cap=c, **changes) for c in (1.0, cap))
        assert torch.equal(weighted(student, 0 * ones), plain(student, 0 * ones))
        ratios: list[float] = (weighted(student, ones) / plain(student, ones))[0].tolist()
        return ratios

    assert weights(10.0, train) == pytest.approx([3, 1, 10, 10])
    assert weights(2.0, train) == pytest.approx([2, 1, 2, 2])
    assert weights(2.0, train, asymmetric=ASYMMETRIC) == pytest.approx([2, 1, 2, 2])
    assert weights(9.0, torch.tensor([[0.75], [0.0]]).repeat(1, 4)) == pytest.approx([1.25 / 0.75] * 4)


@pytest.mark.parametrize("name", WITH_BCE)
def test_a_task_that_is_bce_follows_the_training(name: str) -> None:
    student, teacher, target = random(44)
    pair = random_pair(44)
    chosen = of_training(target, asymmetric=ASYMMETRIC, positive_weight_cap=3.0)
    given_settings = example(name)
    terms, plain = (
        terms_of(name, objectives.signals(student, target, teacher, pair, criterion), given_settings)
        for criterion in (chosen, objectives.CROSS_ENTROPY)
    )
    alone, usual = (hard(student, target).mean().item() for hard in (chosen, objectives.CROSS_ENTROPY))
    assert alone != pytest.approx(usual, rel=0.1)
    weight = plain["task"].item() / usual
    assert weight == pytest.approx(getattr(given_settings, "alpha", weight), rel=1e-6)
    assert terms.pop("task").item() == pytest.approx(weight * alone, rel=1e-6)
    assert all(value == plain[key] for key, value in terms.items())


def test_the_papers_focal_task_does_not_follow_the_training() -> None:
    student, teacher, target = random(46)
    chosen = of_training(target, asymmetric=ASYMMETRIC, positive_weight_cap=3.0)
    terms = [
        paper.terms(objectives.signals(student, target, teacher, criterion=criterion), PAPER)
        for criterion in (chosen, objectives.CROSS_ENTROPY)
    ]
    assert terms[0] == terms[1]


def test_focal_agrees_with_torchvision() -> None:
    student, _, target = random(47)
    theirs = sigmoid_focal_loss(student, target, alpha=-1, gamma=2.0, reduction="mean")
    assert paper.focal(objectives.signals(student, target), 2.0).item() == pytest.approx(theirs.item(), rel=1e-12)


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


def test_the_papers_outputs_may_be_softened_finding_by_finding() -> None:
    student, teacher, target = random(5)
    by_finding = PAPER.model_copy(update={"softening": "sigmoid"})
    found = paper.terms(objectives.signals(student, target, teacher), by_finding)["kd"]
    difference = 1 / (1 + (-student / 2).exp()) - 1 / (1 + (-teacher / 2).exp())
    assert found.item() == pytest.approx(0.5 * 4 * difference.square().mean().item(), rel=1e-9)


def test_focal_with_gamma_zero_is_cross_entropy() -> None:
    student, _, target = random(7)
    signals = objectives.signals(student, target)
    assert paper.focal(signals, 0.0).item() == pytest.approx(objectives.bce(signals).item(), rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(LOSSES))
def test_every_loss_ignores_the_order_of_films_and_pulls_to_the_teacher(seed: int, name: str) -> None:
    given_settings = example(name)
    student, teacher, target = random(seed)
    order = torch.randperm(len(student), generator=torch.Generator().manual_seed(seed))
    own, theirs = random_features(seed, channels=6, side=4), random_features(seed + 1, channels=3, side=2)
    other = picked(own, order), picked(theirs, order)
    terms = terms_of(name, objectives.signals(student, target, teacher, (own, theirs)), given_settings)
    shuffled = terms_of(name, objectives.signals(student[order], target[order], teacher[order], other), given_settings)
    at_teacher = terms_of(name, objectives.signals(teacher, target, teacher, (theirs, theirs)), given_settings)
    for key, value in terms.items():
        assert value.item() == pytest.approx(shuffled[key].item(), rel=1e-9)
        assert key == "task" or at_teacher[key] <= value + 1e-12


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_flat_at_the_teacher_but_for_its_task(name: str) -> None:
    _, teacher, target = random(9)
    student = teacher.clone().requires_grad_()
    theirs = random_features(9, channels=6, side=4)
    own = features(theirs.maps.clone().requires_grad_(), theirs.classify(torch.eye(6, dtype=torch.float64)).T)
    signals = objectives.signals(student, target, teacher, (own, theirs))
    terms = terms_of(name, signals, example(name))
    assert set(terms) > {"task"}
    for key in terms.keys() - {"task"}:
        gradients = torch.autograd.grad(terms[key], (student, own.maps), retain_graph=True, allow_unused=True)
        reached = [gradient for gradient in gradients if gradient is not None]
        assert reached
        assert all(gradient.abs().max() < 1e-7 for gradient in reached), key


@pytest.mark.parametrize("name", LOSSES)
def test_unannotated_elements_are_masked_in_the_task(name: str) -> None:
    student, teacher, target = random(10)
    student.requires_grad_()
    target[:, 1] = math.nan
    terms = terms_of(name, objectives.signals(student, target, teacher, random_pair(10)), example(name))
    (hard,) = torch.autograd.grad(terms["task"], student)
    assert (hard[:, 1] == 0).all()
    assert (hard[:, [0, 2, 3]] != 0).all()


@pytest.mark.parametrize("name", [*OF_LOGITS, *ON_SIGMOID_KD])
def test_unannotated_elements_are_taught_by_the_teachers_logits(name: str) -> None:
    student, teacher, target = random(10)
    student.requires_grad_()
    target[:, 1] = math.nan
    terms = terms_of(name, objectives.signals(student, target, teacher, random_pair(10)), example(name))
    terms.pop("task")
    (soft,) = torch.autograd.grad(torch.stack(list(terms.values())).sum(), student)
    assert (soft[:, 1] != 0).all()
    assert torch.isfinite(soft).all()


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("name", [*OF_LOGITS, *ON_SIGMOID_KD])
def test_a_teacher_that_is_silent_on_one_finding_of_one_film_lets_no_loss_be_finite(name: str, alpha: float) -> None:
    """So that the training stops: not even a loss in which the teacher has no weight learns on without it."""
    student, teacher, target = random(51)
    teacher[2, 1] = math.nan
    signals = objectives.signals(student, target, teacher, random_pair(51))
    terms = terms_of(name, signals, example(name).model_copy(update={"alpha": alpha}))
    assert torch.isfinite(terms["task"])
    assert not torch.isfinite(torch.stack(list(terms.values())).sum())


@pytest.mark.parametrize("name", WITH_ALPHA)
def test_alpha_one_of_a_loss_of_logits_is_the_task_alone(name: str) -> None:
    student, teacher, target = random(11)
    hard_only = example(name).model_copy(update={"alpha": 1.0})
    terms = terms_of(name, objectives.signals(student, target, teacher), hard_only)
    assert terms.pop("task") > 0
    assert all(value == 0 for value in terms.values())


def test_mld_by_hand() -> None:
    """One film: KL(3/4 || 1/2) = ln 2 - H(3/4), and nothing where both say 1/2; findings add up, films average."""
    student = torch.zeros(1, 2, dtype=torch.float64)
    teacher = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    only = mld.Settings(alpha=0.0)
    one = mld.terms(objectives.signals(student, student, teacher), only)["kd"].item()
    assert one == pytest.approx(math.log(2) - entropy)
    four = mld.terms(objectives.signals(student.repeat(2, 2), student.repeat(2, 2), teacher.repeat(2, 2)), only)["kd"]
    assert four.item() == pytest.approx(2 * one)


def test_mld_is_torchs_divergence_of_two_way_distributions() -> None:
    student, teacher, target = random(12)
    ours = mld.terms(objectives.signals(student, target, teacher), mld.Settings(alpha=0.0))["kd"]
    first, second = (torch.distributions.Bernoulli(logits=z) for z in (teacher, student))
    theirs = torch.distributions.kl_divergence(first, second).sum(dim=1).mean()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-10)


def test_mld_is_as_many_times_sigmoid_kd_as_there_are_findings() -> None:
    student, teacher, target = random(13)
    student.requires_grad_()
    signals = objectives.signals(student, target, teacher)
    (ours,) = torch.autograd.grad(mld.terms(signals, mld.Settings(alpha=0.3))["kd"], student)
    same = sigmoid_kd.Settings(alpha=0.3, temperature=1.0)
    (theirs,) = torch.autograd.grad(sigmoid_kd.terms(signals, same)["kd"], student)
    assert torch.allclose(ours, 4 * theirs, rtol=1e-10)


def test_logit_mse_with_an_eighth_is_sigmoid_kd_at_a_high_temperature() -> None:
    student, teacher, target = random(14)
    student.requires_grad_()
    signals = objectives.signals(student, target, teacher)
    (ours,) = torch.autograd.grad(logit_mse.terms(signals, example("logit_mse"))["kd"], student)
    warm = sigmoid_kd.Settings(alpha=0.3, temperature=1000.0)
    (theirs,) = torch.autograd.grad(sigmoid_kd.terms(signals, warm)["kd"], student)
    assert torch.allclose(ours, theirs, rtol=2e-3)


def torchdistills_mse() -> nn.Module:
    """Mean squares as torchdistill's configurations of logit and hint matching have them."""
    place = {"module_path": "net", "io": "output"}
    wanted = {"input": {"is_from_teacher": False} | place, "target": {"is_from_teacher": True} | place}
    return mid_level.SimpleLossWrapper(nn.MSELoss(), **wanted)


def test_logit_mse_agrees_with_torchdistill() -> None:
    student, teacher, target = random(48)
    ours = logit_mse.terms(objectives.signals(student, target, teacher), example("logit_mse"))["kd"]
    theirs = torchdistills_mse()(*outputs(student, teacher), target)
    assert ours.item() == pytest.approx(0.7 * 0.125 * theirs.item(), rel=1e-12)


def outputs(student: Tensor, teacher: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    """A student's and a teacher's tensor where torchdistill's losses look for them."""
    return {"net": {"output": student}}, {"net": {"output": teacher}}


def test_softmax_kl_agrees_with_torchdistill() -> None:
    student, teacher, target = random(15)
    ours = softmax_kl.terms(objectives.signals(student, target, teacher), example("softmax_kl"))["kd"]
    theirs = mid_level.KDLoss("net", "output", "net", "output", temperature=2.0, alpha=0.0)
    assert ours.item() == pytest.approx(0.7 * 4 * theirs(*outputs(student, teacher)).item(), rel=1e-10)


def test_softmax_kl_is_blind_to_a_constant() -> None:
    student, teacher, target = random(16)
    shifted, plain = (
        softmax_kl.terms(objectives.signals(z, target, teacher), example("softmax_kl"))["kd"]
        for z in (student + 2.5, student)
    )
    assert shifted.item() == pytest.approx(plain.item(), rel=1e-10)


def test_dist_agrees_with_torchdistill_on_the_same_probabilities() -> None:
    student, teacher, target = random(17)
    terms = dist_corr.terms(objectives.signals(student, target, teacher), example("dist_corr"))
    theirs = mid_level.DISTLoss("net", "output", "net", "output")
    chances = [torch.sigmoid(z / 2) for z in (student, teacher)]
    assert terms["inter"].item() == pytest.approx(0.7 * 4 * theirs.inter_class_relation(*chances).item(), rel=1e-10)
    assert terms["intra"].item() == pytest.approx(0.7 * 4 * theirs.intra_class_relation(*chances).item(), rel=1e-10)


def test_dist_asks_for_no_more_than_a_rising_line() -> None:
    _, teacher, target = random(18)
    student = torch.logit(0.2 + 0.5 * torch.sigmoid(teacher))
    plain = dist_corr.Settings(alpha=0.0, temperature=1.0, inter=1.0, intra=1.0)
    terms = dist_corr.terms(objectives.signals(student, target, teacher), plain)
    assert terms["inter"].item() == pytest.approx(0, abs=1e-10)
    assert terms["intra"].item() == pytest.approx(0, abs=1e-10)


def test_dist_of_a_student_that_says_the_same_everywhere_has_a_finite_gradient() -> None:
    _, teacher, target = random(19)
    student = torch.zeros_like(teacher).requires_grad_()
    terms = dist_corr.terms(objectives.signals(student, target, teacher), example("dist_corr"))
    (gradient,) = torch.autograd.grad(terms["inter"] + terms["intra"], student)
    assert terms["inter"].item() == pytest.approx(0.7 * 4)
    assert torch.isfinite(gradient).all()


def test_a_loss_without_its_teacher_says_so() -> None:
    student, _, target = random(8)
    with pytest.raises(ValueError, match="needs a teacher's logits"):
        sigmoid_kd.terms(objectives.signals(student, target), KD)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        sigmoid_kd.Settings(alpha=0.3, temperature=0.0)


def test_every_loss_needs_logits_or_features() -> None:
    assert sorted(OF_LOGITS + OF_FEATURES) == LOSSES
    assert OF_LOGITS
    assert OF_FEATURES
    assert all(not hasattr(plugins.load("losses", name), "adapter") for name in OF_LOGITS)


@pytest.mark.parametrize("name", ON_SIGMOID_KD)
def test_a_loss_on_top_of_sigmoid_kd_has_the_terms_of_sigmoid_kd_and_more(name: str) -> None:
    student, teacher, target = random(20)
    target[:, 1] = math.nan
    pair = random_pair(20)
    terms = terms_of(name, objectives.signals(student, target, teacher, pair), example(name))
    for key, value in sigmoid_kd.terms(objectives.signals(student, target, teacher), KD).items():
        assert terms.pop(key) == value
    assert all(value > 0 for value in terms.values())


@pytest.mark.parametrize("name", ON_SIGMOID_KD)
def test_a_loss_on_top_of_sigmoid_kd_is_zero_at_the_teacher(name: str) -> None:
    _, teacher, target = random(21)
    same = random_features(21, channels=6, side=4)
    signals = objectives.signals(teacher, target, teacher, (same, same))
    terms = terms_of(name, signals, example(name))
    assert all(terms[key] == 0 for key in terms.keys() - {"task", "kd"})


@pytest.mark.parametrize("maps", [torch.zeros(5, 6, 4, 4), torch.ones(5, 6, 4, 4), torch.full((5, 6, 4, 4), 1e-30)])
@pytest.mark.parametrize("name", OF_FEATURES)
def test_gradients_of_a_loss_of_features_are_finite_for_a_dead_student_and_without_labels(
    name: str, maps: Tensor
) -> None:
    student, teacher, target = random(22)
    dead = maps.double().requires_grad_()
    pair = features(dead, torch.ones(4, 6, dtype=torch.float64)), random_features(23, channels=3, side=2)
    target[:3] = math.nan
    terms = terms_of(name, objectives.signals(student, target, teacher, pair), example(name))
    (gradient,) = torch.autograd.grad(torch.stack(list(terms.values())).sum(), dead)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", OF_FEATURES)
def test_a_loss_of_features_without_them_says_so(name: str) -> None:
    student, teacher, target = random(24)
    with pytest.raises(ValueError, match="needs a teacher's features"):
        terms_of(name, objectives.signals(student, target, teacher), example(name))


def test_attention_by_hand() -> None:
    """Energies (1, 0) and (9, 16) / 2: the directions (1, 0) and (9, 16) / sqrt(337)."""
    student = torch.tensor([[[[1.0, 0.0]]]], dtype=torch.float64)
    teacher = torch.tensor([[[[3.0, 0.0]], [[0.0, 4.0]]]], dtype=torch.float64)
    pair = [features(maps, torch.ones(1, maps.shape[1], dtype=torch.float64)) for maps in (student, teacher)]
    logits = torch.zeros(1, 1, dtype=torch.float64)
    signals = objectives.signals(logits, logits, logits, (pair[0], pair[1]))
    expected = (1 - 9 / math.sqrt(337)) ** 2 + 256 / 337
    assert attention_transfer.terms(signals, example("attention_transfer"))["attention"] == pytest.approx(expected)


def test_attention_agrees_with_torchdistill_but_for_the_mean_over_places() -> None:
    student, teacher, target = random(25)
    own, theirs = random_features(25, channels=6, side=4), random_features(26, channels=3, side=4)
    signals = objectives.signals(student, target, teacher, (own, theirs))
    ours = attention_transfer.terms(signals, example("attention_transfer"))["attention"]
    place = {"io": "output", "path": "net"}
    reference = mid_level.ATLoss({"pair": {"student": place, "teacher": place}}, mode="code")
    assert ours.item() == pytest.approx(16 * reference(*outputs(own.maps, theirs.maps)).item(), rel=1e-10)


def test_feature_matching_by_hand() -> None:
    """One channel (1, 3) becomes (2, 6) and (1, 1) beside (2, 2) and (1, 4): (0 + 16 + 0 + 9) / 4."""
    student = torch.tensor([[[[1.0, 3.0]]]], dtype=torch.float64)
    teacher = torch.tensor([[[[2.0, 2.0]], [[1.0, 4.0]]]], dtype=torch.float64)
    adapter = feature_mse.adapter(1, 2).double()
    adapter.load_state_dict({"weight": torch.tensor([2.0, 0.0]).view(2, 1, 1, 1), "bias": torch.tensor([0.0, 1.0])})
    pair = [features(maps, torch.ones(1, maps.shape[1], dtype=torch.float64)) for maps in (student, teacher)]
    logits = torch.zeros(1, 1, dtype=torch.float64)
    signals = objectives.signals(logits, logits, logits, (pair[0], pair[1]))
    assert feature_mse.terms(signals, example("feature_mse"), adapter)["features"].item() == pytest.approx(100 * 25 / 4)


def test_feature_matching_agrees_with_torchdistills_hint_on_the_coarser_grid() -> None:
    student, teacher, target = random(49)
    own, theirs = random_pair(49)
    adapter = feature_mse.adapter(6, 3).double()
    given_settings = example("feature_mse").model_copy(update={"weight": 0.5})
    ours = feature_mse.terms(objectives.signals(student, target, teacher, (own, theirs)), given_settings, adapter)
    hint = adapter(torch.nn.functional.avg_pool2d(own.maps, 2))
    reference = torchdistills_mse()(*outputs(hint, theirs.maps), target)
    assert ours["features"].item() == pytest.approx(0.5 * reference.item(), rel=1e-12)
    gradients = torch.autograd.grad(ours["features"], list(adapter.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def sum_of(weights: dict[str, float]) -> terms.Loss:
    """A weighted sum of losses with the settings of their docstrings."""
    parts = {
        name: terms.with_settings(loss, example(name).model_dump())
        for name, loss in plugins.load_all("losses", weights).items()
    }
    return terms.weighted_sum(parts, weights)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.dictionaries(st.sampled_from(LOSSES), st.floats(0.01, 100), min_size=2, max_size=4),
)
def test_a_sum_is_the_weighted_sum_of_its_parts_term_by_term(seed: int, weights: dict[str, float]) -> None:
    student, teacher, target = random(seed)
    target[0, 1] = math.nan
    signals = objectives.signals(student, target, teacher, random_pair(seed))
    loss = sum_of(weights)
    own = {"adapter": identity(loss.adapter(6, 3))} if loss.adapter else {}
    found = loss.terms(signals, **own)
    parts = {name: terms_of(name, signals, example(name)) for name in weights}
    task = sum(weights[name] * terms.pop("task").item() for name, terms in parts.items())
    assert found.pop("task").item() == pytest.approx(task, rel=1e-12)
    assert {key: value.item() for key, value in found.items()} == pytest.approx(
        {
            f"{name}_{key}": weights[name] * value.item()
            for name, terms in parts.items()
            for key, value in terms.items()
        },
        rel=1e-12,
    )


def test_the_order_of_a_sums_parts_changes_no_bit() -> None:
    student, teacher, target = random(50)
    signals = objectives.signals(student, target, teacher, random_pair(50))
    weights = {"rkd": 0.3, "sigmoid_kd": 1.7, "paper": 0.1, "mld": 2.9}
    one, other = (sum_of(given).terms(signals) for given in (weights, dict(reversed(weights.items()))))
    assert list(one.items()) == list(other.items())


def test_a_sum_needs_what_any_part_needs() -> None:
    assert not sum_of({"sigmoid_kd": 1.0, "paper": 0.5}).needs_features
    assert sum_of({"sigmoid_kd": 1.0, "paper": 0.5}).adapter is None
    assert sum_of({"sigmoid_kd": 1.0, "rkd": 0.5}).needs_features
    assert sum_of({"sigmoid_kd": 1.0, "rkd": 0.5}).adapter is None
    both = sum_of({"rkd": 1.0, "feature_mse": 0.5})
    assert both.needs_features
    assert both.adapter
    assert [(name, value.shape) for name, value in both.adapter(6, 3).named_parameters()] == [
        ("feature_mse.weight", (3, 6, 1, 1)),
        ("feature_mse.bias", (3,)),
    ]


def trained(seed: int) -> objectives.Signals:
    """What a loss is given in a training: logits and features of the student have gradients."""
    student, teacher, target = random(seed)
    own, theirs = random_pair(seed)
    own = features(own.maps.requires_grad_(), own.classify(torch.eye(6, dtype=torch.float64)).T)
    return objectives.signals(student.requires_grad_(), target, teacher, (own, theirs))


def returning(monkeypatch: pytest.MonkeyPatch, name: str, change: Any) -> None:
    """Let a loss return something else than its terms."""
    loss = plugins.load("losses", name)
    original = loss.terms
    monkeypatch.setattr(loss, "terms", lambda given, settings: change(original(given, settings)))


WRONG_TERMS = [
    (lambda found: torch.stack(list(found.values())), "terms must return a dict of name -> scalar tensor, got Tensor"),
    (lambda _: None, "terms must return a dict of name -> scalar tensor, got NoneType"),
    (lambda found: {"kd": found["kd"]}, "terms must return the hard labels' term as 'task', got 'kd'"),
    (lambda _: {}, "terms must return the hard labels' term as 'task', got none"),
    (lambda found: found | {3: found["kd"]}, "a text that the training does not use itself, got 3"),
    (lambda found: found | {"loss": found["kd"]}, "does not use itself, got 'loss'"),
    (lambda found: found | {"kd": 0.5}, "terms must return tensors, got float for 'kd'"),
    (lambda found: found | {"kd": found["kd"].expand(64, 14)}, "must return scalars, got shape (64, 14) for 'kd'"),
    (lambda found: found | {"kd": found["kd"].reshape(1)}, "terms must return scalars, got shape (1,) for 'kd'"),
    (lambda found: found | {"kd": found["kd"].detach()}, "terms must depend on the student, got one without gradient"),
]  # fmt: skip


@pytest.mark.parametrize("weights", [{"sigmoid_kd": 1.0}, {"rkd": 0.5, "sigmoid_kd": 1.0}], ids=["alone", "in a sum"])
@pytest.mark.parametrize(("change", "message"), WRONG_TERMS)
def test_what_a_loss_returns_instead_of_its_terms_is_named_with_its_file(
    monkeypatch: pytest.MonkeyPatch, change: Any, message: str, weights: dict[str, float]
) -> None:
    signals = trained(60)
    assert sum_of(weights).terms(signals)
    returning(monkeypatch, "sigmoid_kd", change)
    with pytest.raises(terms.TermError, match=re.escape(message)) as caught:
        sum_of(weights).terms(signals)
    assert str(caught.value).startswith("stages/losses/sigmoid_kd.py: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", LOSSES)
def test_the_terms_of_every_loss_pass_the_check_and_are_what_its_file_returns(name: str) -> None:
    signals = trained(61)
    loss = terms.with_settings(plugins.load("losses", name), example(name).model_dump())
    own = {"adapter": identity(loss.adapter(6, 3))} if loss.adapter else {}
    assert loss.terms(signals, **own) == terms_of(name, signals, example(name))


def test_rkd_agrees_with_torchdistill() -> None:
    student, teacher, target = random(27)
    own, theirs = random_features(27, channels=6, side=4), random_features(28, channels=3, side=4)
    terms = rkd.terms(objectives.signals(student, target, teacher, (own, theirs)), example("rkd"))
    reference = mid_level.RKDLoss("net", "net", dist_factor=1.0, angle_factor=2.0, reduction="mean")
    distance = reference.compute_rkd_distance_loss(theirs.embedding, own.embedding)
    angle = reference.compute_rkd_angle_loss(theirs.embedding, own.embedding)
    assert terms["distance"].item() == pytest.approx(distance.item(), rel=1e-8)
    assert terms["angle"].item() == pytest.approx(2 * angle.item(), rel=1e-8)


def test_rkd_does_not_see_an_embedding_moved_turned_and_scaled() -> None:
    student, teacher, target = random(29)
    theirs = random_features(29, channels=6, side=4)
    turn, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(29)))
    own = objectives.Features(theirs.maps, 3 * theirs.embedding @ turn + 5, theirs.classify, theirs.source)
    terms = rkd.terms(objectives.signals(student, target, teacher, (own, theirs)), example("rkd"))
    assert terms["distance"].item() == pytest.approx(0, abs=1e-20)
    assert terms["angle"].item() == pytest.approx(0, abs=1e-20)


def test_class_maps_by_hand_and_only_where_a_finding_is_present() -> None:
    """Maps (1, 0) and (0, 1) of finding 0 are sqrt(2) apart; finding 1 is absent, and unknown in the second film."""
    one, other = (torch.tensor([[[row]]] * 2, dtype=torch.float64) for row in ([1.0, 0.0], [0.0, 1.0]))
    weights = torch.ones(2, 1, dtype=torch.float64)
    pair = features(one, weights), features(other, weights)
    logits = torch.zeros(2, 2, dtype=torch.float64)

    def maps(target: list[list[float]]) -> float:
        signals = objectives.signals(logits, torch.tensor(target, dtype=torch.float64), logits, pair)
        return cam_transfer.terms(signals, example("cam_transfer"))["maps"].item()

    assert maps([[1.0, 0.0], [1.0, math.nan]]) == pytest.approx(2)
    assert maps([[0.0, 0.0], [0.0, math.nan]]) == 0
    assert maps([[math.nan] * 2] * 2) == 0


def test_class_maps_of_absent_findings_pull_nowhere() -> None:
    student, teacher, target = random(30)
    weights = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(30)).requires_grad_()
    pair = features(random_features(30, channels=6, side=4).maps, weights), random_features(31, channels=3, side=2)
    target[:, 0], target[:, 1], target[:, 2:] = 0.0, math.nan, 1.0
    terms = cam_transfer.terms(objectives.signals(student, target, teacher, pair), example("cam_transfer"))
    (gradient,) = torch.autograd.grad(terms["maps"], weights)
    assert gradient[:2].abs().max() == 0
    assert gradient[2:].abs().max() > 0


@pytest.mark.parametrize(("first", "second"), [((4, 4), (2, 2)), ((3, 5), (7, 2)), ((1, 2), (4, 4))])
def test_maps_meet_on_the_coarser_grid_as_torch_pools_them(first: tuple[int, int], second: tuple[int, int]) -> None:
    grids = [torch.rand(2, 3, *size, dtype=torch.float64) for size in (first, second)]
    coarser = (min(first[0], second[0]), min(first[1], second[1]))
    for ours, maps in zip(objectives.on_one_grid(grids[0], grids[1]), grids, strict=True):
        assert torch.allclose(ours, torch.nn.functional.adaptive_avg_pool2d(maps, coarser))


@pytest.mark.parametrize("name", ["attention_transfer", "cam_transfer", "feature_mse"])
def test_a_grid_of_one_place_is_refused_by_a_loss_that_compares_places(name: str) -> None:
    student, teacher, target = random(32)
    pair = random_features(32, channels=6, side=2), random_features(33, channels=3, side=1)
    with pytest.raises(ValueError, match=r"more than one, got grids of \(2, 2\) and \(1, 1\): raise ingest"):
        terms_of(name, objectives.signals(student, target, teacher, pair), example(name))


@pytest.mark.parametrize("name", ["eeea_net_c2", "resnet10t", "visformer_s", "autoformer_v2_t"])
def test_features_come_with_the_very_logits_of_the_net(name: str) -> None:
    """In eval mode; the class maps' mean and the bias make the logit where the head is no more than linear."""
    model: Any = nets.build_model(name, 3, 64, seed=5).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        logits, seen = objectives.with_features(model, images)
        assert torch.equal(logits, model(images))
        assert torch.equal(logits, model.get_classifier()(seen.embedding))
        summed = seen.class_maps.mean(dim=(2, 3)) + model.get_classifier().bias
    assert seen.maps.shape == (2, model.num_features, 2, 2)
    assert seen.class_maps.shape == (2, 3, 2, 2)
    assert name == "eeea_net_c2" or torch.allclose(summed, logits, atol=1e-5)
