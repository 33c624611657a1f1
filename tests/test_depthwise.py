"""The fast weights' gradient against autograd's."""

import copy

import pytest
import torch
from torch import nn

from stages.core import depthwise, models


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("height", "width"), [(4, 4), (2, 2), (3, 5), (1, 1)])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_both_gradients_are_autograds(height: int, width: int, kernel: int, stride: int) -> None:
    slow = nn.Conv2d(6, 6, kernel, stride, kernel // 2, groups=6, bias=False).double()
    fast = copy.deepcopy(slow)
    depthwise.speed_up(fast)
    assert type(fast) is depthwise.DepthwiseConv2d
    results = []
    for module in (slow, fast):
        film = random(8, 6, height, width).requires_grad_()
        out = module(film)
        results.append([out, *torch.autograd.grad((out * random(*out.shape, seed=1)).sum(), (film, module.weight))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_gradient_is_the_numerical_one() -> None:
    film, weight = random(2, 3, 4, 4).requires_grad_(), random(3, 1, 3, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: depthwise._Depthwise.apply(*given, 2, 1), (film, weight))


def test_only_plain_depthwise_convolutions_are_changed_and_weights_keep_names_and_values() -> None:
    model = models.build_model("eeea_net_c2", 14, 64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    depthwise.speed_up(model)
    fast = [module for module in model.modules() if isinstance(module, depthwise.DepthwiseConv2d)]
    assert len(fast) == 19  # one a block
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    wider, biased, grouped = nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=2)
    others = nn.ModuleList([wider, biased, grouped])
    depthwise.speed_up(others)
    assert all(type(module) is nn.Conv2d for module in others)


def test_large_maps_and_evaluation_take_torchs_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depthwise, "weight_gradient", lambda *_: pytest.fail("took the fast way"))
    module = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
    depthwise.speed_up(module)
    module(torch.ones(2, 4, 8, 8)).sum().backward()
    module.eval()(torch.ones(2, 4, 2, 2)).sum().backward()
    assert module.weight.grad is not None


def test_a_students_step_is_that_of_the_plain_net_within_rounding() -> None:
    plain = models.build_model("eeea_net_c2", 3, 64, seed=1).train()
    fast = copy.deepcopy(plain)
    depthwise.speed_up(fast)
    films = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    for model in (plain, fast):
        model(films).square().mean().backward()
    for (name, ours), theirs in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None, name
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)
