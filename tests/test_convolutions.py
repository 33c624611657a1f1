"""The fast ways against torch's own convolutions."""

import copy

import pytest
import torch
from torch import nn

from stages.core import convolutions, models


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("height", "width"), [(4, 4), (2, 2), (3, 5), (1, 1), (8, 8)])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_both_gradients_are_autograds(height: int, width: int, kernel: int, stride: int) -> None:
    slow = nn.Conv2d(6, 6, kernel, stride, kernel // 2, groups=6, bias=False).double()
    fast = copy.deepcopy(slow)
    convolutions.speed_up(fast)
    assert type(fast) is convolutions.DepthwiseConv2d
    results = []
    for module in (slow, fast):
        film = random(8, 6, height, width).requires_grad_()
        out = module(film)
        results.append([out, *torch.autograd.grad((out * random(*out.shape, seed=1)).sum(), (film, module.weight))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("side", [1, 5])
def test_a_pointwise_convolution_and_its_gradients_are_torchs(side: int, bias: bool) -> None:
    slow = nn.Conv2d(6, 4, 1, bias=bias).double()
    fast = copy.deepcopy(slow)
    convolutions.speed_up(fast)
    assert type(fast) is convolutions.PointwiseConv2d
    results = []
    for module in (slow, fast):
        film = random(8, 6, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
        out = module(film)
        assert out.is_contiguous(memory_format=torch.channels_last)
        pull = (out * random(*out.shape, seed=1)).sum()
        results.append([out, *torch.autograd.grad(pull, (film, *module.parameters()))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_gradient_is_the_numerical_one() -> None:
    film, weight = random(2, 3, 4, 4).requires_grad_(), random(3, 1, 3, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: convolutions._Depthwise.apply(*given, 2, 1), (film, weight))


def test_only_plain_convolutions_are_changed_and_weights_keep_names_and_values() -> None:
    model = models.build_model("eeea_net_c2", 14, 64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    convolutions.speed_up(model)
    fast = [module for module in model.modules() if isinstance(module, convolutions.DepthwiseConv2d)]
    assert len(fast) == 19  # one a block
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    wider, biased, grouped = nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=2)
    others = nn.ModuleList([wider, biased, grouped, nn.Conv2d(4, 8, 1, 2), nn.Conv2d(4, 8, 1, padding=1)])
    convolutions.speed_up(others)
    assert all(type(module) is nn.Conv2d for module in others)


@pytest.mark.parametrize(("kernel", "side"), [(3, 8), (5, 14)])
def test_large_maps_and_evaluation_take_torchs_way(monkeypatch: pytest.MonkeyPatch, kernel: int, side: int) -> None:
    monkeypatch.setattr(convolutions, "weight_gradient", lambda *_: pytest.fail("took the fast way"))
    module = nn.Conv2d(4, 4, kernel, padding=kernel // 2, groups=4, bias=False)
    convolutions.speed_up(module)
    module(torch.ones(2, 4, side, side)).sum().backward()
    module.eval()(torch.ones(2, 4, 2, 2)).sum().backward()
    assert module.weight.grad is not None


def test_a_pointwise_convolution_of_other_maps_and_in_evaluation_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Conv2d(4, 8, 1)
    convolutions.speed_up(module)
    monkeypatch.setattr(convolutions.functional, "linear", lambda *_: pytest.fail("took the fast way"))
    module(torch.ones(2, 4, 3, 3)).sum().backward()
    module.eval()(torch.ones(2, 4, 3, 3).contiguous(memory_format=torch.channels_last))


def test_a_students_step_is_that_of_the_plain_net_within_rounding() -> None:
    plain = models.build_model("eeea_net_c2", 3, 64, seed=1).train().double()
    fast = copy.deepcopy(plain)
    convolutions.speed_up(fast)
    films = random(4, 3, 64, 64, seed=2).contiguous(memory_format=torch.channels_last)
    for model in (plain, fast):
        model(films).square().mean().backward()
    for (name, ours), theirs in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None, name
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-10)
