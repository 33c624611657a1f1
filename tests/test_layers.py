"""The fast ways against torch's and timm's own layers."""

import copy
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from stages.learning import kernels, layers
from stages.nets import nets

LAST = torch.channels_last


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return drawn.contiguous(memory_format=LAST) if len(shape) == 4 else drawn


def assert_same(slow: nn.Module, fast: nn.Module, film: torch.Tensor) -> None:
    """Output, gradients and buffers."""
    results = []
    for module in (slow, fast):
        given = film.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        out = module(given)
        assert out.is_contiguous(memory_format=LAST)
        pull = (out * random(*out.shape, seed=1)).sum()
        gradients = torch.autograd.grad(pull, (given, *module.parameters()))
        results.append([out, *gradients, *module.buffers()])
    for ours, theirs in zip(*reversed(results), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (2, 2), (3, 5), (1, 1), (9, 8), (16, 17)])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [6, 100])
def test_a_depthwise_convolution_and_its_gradients_are_torchs(
    height: int, width: int, kernel: int, stride: int, channels: int
) -> None:
    slow = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False).double()
    fast = copy.deepcopy(slow)
    layers.speed_up(fast)
    assert type(fast) is layers.DepthwiseConv2d
    assert_same(slow, fast, random(5, channels, height, width))


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_a_depthwise_convolution_may_be_padded_otherwise(padding: int) -> None:
    slow = nn.Conv2d(4, 4, 5, 2, padding, groups=4, bias=False).double()
    fast = copy.deepcopy(slow)
    layers.speed_up(fast)
    assert_same(slow, fast, random(3, 4, 9, 6))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("side", [1, 5])
def test_a_pointwise_convolution_and_its_gradients_are_torchs(side: int, bias: bool) -> None:
    slow = nn.Conv2d(6, 4, 1, bias=bias).double()
    fast = copy.deepcopy(slow)
    layers.speed_up(fast)
    assert type(fast) is layers.PointwiseConv2d
    assert_same(slow, fast, random(8, 6, side, side))


def norms(channels: int, activation: type[nn.Module] | None) -> tuple[BatchNormAct2d, BatchNormAct2d]:
    """timm's normalisation with weights of all signs, and the fast one."""
    slow = BatchNormAct2d(channels, apply_act=activation is not None, act_layer=activation or nn.ReLU).double()
    with torch.no_grad():
        for place, values in enumerate((slow.weight, slow.bias, slow.running_mean)):
            values.copy_(random(channels, seed=2 + place))
    fast = copy.deepcopy(slow)
    layers.speed_up(fast)
    assert type(fast) is layers.FastBatchNormAct2d
    return slow, fast


@pytest.mark.parametrize("shape", [(8, 6, 4, 4), (3, 5, 3, 3), (2, 300, 1, 1), (9, 130, 5, 3), (64, 16, 8, 8)])
@pytest.mark.parametrize("activation", [None, nn.ReLU, nn.Hardswish])
def test_batch_norm_with_its_activation_is_timms(shape: tuple[int, ...], activation: type[nn.Module] | None) -> None:
    slow, fast = norms(shape[1], activation)
    assert_same(slow, fast, 3 * random(*shape) + random(1, shape[1], 1, 1, seed=9))
    assert int(fast.num_batches_tracked) == 1


def test_batch_norm_in_single_precision_is_as_exact_as_timms_far_from_zero() -> None:
    slow, fast = norms(12, nn.ReLU)
    film = random(16, 12, 9, 9) + 1000
    exact = slow(film)
    errors = [(module.float()(film.float()).double() - exact).abs().max() for module in (fast, slow)]
    assert errors[0] < 1.5 * errors[1] + 1e-6


@pytest.mark.parametrize("activation", [None, nn.ReLU, nn.Hardswish])
def test_what_is_not_a_number_stays_so(activation: type[nn.Module] | None) -> None:
    _, fast = norms(4, activation)
    film = random(2, 4, 3, 3)
    film[1, 2, 0, 0] = torch.nan
    out = fast(film)
    assert out[:, 2].isnan().all()
    assert not out[:, [0, 1, 3]].isnan().any()
    film[1, 2, 0, 0] = 0
    given = film.requires_grad_()
    pull = random(2, 4, 3, 3, seed=1)
    pull[0, 1, 1, 1] = torch.nan
    (gradient,) = torch.autograd.grad(fast(given), given, pull)
    assert gradient[:, 1].isnan().any()
    assert not gradient[:, [0, 2, 3]].isnan().any()


def test_one_pixel_has_no_deviation() -> None:
    slow, fast = norms(4, nn.ReLU)
    for module in (slow, fast):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            module(random(1, 4, 1, 1))


@pytest.mark.parametrize(
    "norm",
    [
        BatchNormAct2d(4, affine=False),
        BatchNormAct2d(4, track_running_stats=False),
        BatchNormAct2d(4, momentum=None),
        BatchNormAct2d(4, act_layer=nn.SiLU),
        BatchNormAct2d(4, drop_layer=nn.Dropout),
        nn.BatchNorm2d(4),
    ],
)
def test_other_norms_are_left_alone(norm: nn.Module) -> None:
    kind = type(norm)
    layers.speed_up(norm)
    assert type(norm) is kind


def test_gradients_are_the_numerical_ones() -> None:
    film = random(2, 3, 4, 4).requires_grad_()
    kernel, weight, bias = random(3, 1, 3, 3, seed=1), random(3, seed=2), random(3, seed=3)
    given = [parameter.contiguous().requires_grad_() for parameter in (kernel, weight, bias)]
    assert torch.autograd.gradcheck(lambda *inputs: layers._Depthwise.apply(*inputs, 2, 1), (film, given[0]))
    for activation in layers.ACTIVATIONS.values():
        state = random(4, 3)
        assert torch.autograd.gradcheck(
            lambda *inputs, a=activation, s=state: layers._BatchNorm.apply(*inputs, s, 1e-5, a), (film, *given[1:])
        )


def test_only_plain_layers_are_changed_and_weights_keep_names_and_values() -> None:
    model = nets.build_model("eeea_net_c2", 14, 64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layers.speed_up(model)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(layers.DepthwiseConv2d) == 19  # one a block
    assert kinds.count(layers.FastBatchNormAct2d) == 58
    assert BatchNormAct2d not in kinds
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    wider, biased, grouped = nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=2)
    others = nn.ModuleList([wider, biased, grouped, nn.Conv2d(4, 8, 1, 2), nn.Conv2d(4, 8, 1, padding=1)])
    layers.speed_up(others)
    assert all(type(module) is nn.Conv2d for module in others)


def test_channels_are_shared_out_among_threads() -> None:
    slow = nn.Conv2d(100, 100, 5, padding=2, groups=100, bias=False).double()
    fast = copy.deepcopy(slow)
    layers.speed_up(fast)
    torch.set_num_threads(3)
    assert_same(slow, fast, random(5, 100, 6, 6))


def test_with_two_threads_norms_are_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = norms(4, nn.ReLU)
    monkeypatch.setattr(kernels, "batch_norm", lambda *_: pytest.fail("took the fast way"))
    torch.set_num_threads(2)
    assert_same(slow, fast, random(2, 4, 6, 6))


@pytest.mark.parametrize("case", ["evaluation", "contiguous", "bf16"])
def test_in_other_cases_layers_are_torchs(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    def used(*_: object) -> None:
        raise AssertionError("took the fast way")

    monkeypatch.setattr(kernels, "batch_norm", used)
    monkeypatch.setattr(kernels, "depthwise_gradient", used)
    depthwise, norm = nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False), BatchNormAct2d(4)
    net = nn.Sequential(depthwise, norm)
    layers.speed_up(net)
    film = torch.ones(2, 4, 6, 6).contiguous(memory_format=LAST).requires_grad_()
    with pytest.raises(AssertionError, match="took the fast way"):
        net(film)
    if case == "evaluation":
        net.eval()
    elif case == "contiguous":
        film = film.detach().contiguous()
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "bf16"):
        net(film).float().sum().backward()
    assert depthwise.weight.grad is not None


def test_a_depthwise_convolution_of_3x3_is_torchs_on_larger_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "depthwise_gradient", lambda *_: pytest.fail("took the fast way"))
    module = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
    layers.speed_up(module)
    module(torch.ones(2, 4, 5, 5).contiguous(memory_format=LAST)).sum().backward()


def test_a_pointwise_convolution_of_other_maps_and_in_evaluation_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Conv2d(4, 8, 1)
    layers.speed_up(module)
    monkeypatch.setattr(layers.functional, "linear", lambda *_: pytest.fail("took the fast way"))
    module(torch.ones(2, 4, 3, 3)).sum().backward()
    module.eval()(torch.ones(2, 4, 3, 3).contiguous(memory_format=LAST))


def test_a_students_step_is_that_of_the_plain_net_within_rounding() -> None:
    plain = nets.build_model("eeea_net_c2", 3, 64, seed=1).train().double()
    fast = copy.deepcopy(plain)
    layers.speed_up(fast)
    films = random(4, 3, 64, 64, seed=2)
    for model in (plain, fast):
        model(films).square().mean().backward()
    for (name, ours), theirs in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None, name
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-10)
    for (name, ours), theirs in zip(fast.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10, msg=name)


def test_in_single_precision_a_students_gradient_is_nearer_the_exact_one_than_the_plain_nets() -> None:
    plain = nets.build_model("eeea_net_c2", 3, 64, seed=1).train()
    fast, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    layers.speed_up(fast)
    films = random(16, 3, 64, 64, seed=2)
    whole = []
    for model, given in ((plain, films.float()), (fast, films.float()), (exact, films.float().double())):
        model(given).square().mean().backward()
        whole.append(torch.cat([parameter.grad.double().flatten() for parameter in model.parameters()]))
    errors = [((gradient - whole[2]).norm() / whole[2].norm()).item() for gradient in whole[:2]]
    assert errors[1] < errors[0], errors


LOOPS = """
import numpy
from stages.learning import kernels
rows, values, maps = numpy.ones((4, 4), "f4"), numpy.ones((4, 4), "f4"), numpy.ones((2, 4, 4, 4), "f4")
loops = []
for activation in (kernels.IDENTITY, kernels.RELU, kernels.HARDSWISH):
    forward, backward = kernels.batch_norm(activation)
    forward(rows, values[0], values[1], 1e-5, rows.copy(), values)
    backward(rows, rows, 1e-5, values, rows.copy(), values[2].copy(), values[3].copy())
    loops += [forward, backward]
gradient = kernels.depthwise_gradient(3, 2)
gradient(maps, numpy.ones((2, 2, 2, 4), "f4"), 1, numpy.ones((9, 4), "f4"), 0, 4)
print(sum(sum(loop.stats.cache_misses.values()) for loop in [*loops, gradient]))
"""


def test_the_next_process_finds_every_loop_compiled() -> None:
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", LOOPS], check=True, capture_output=True, text=True)
    assert done.stdout == "0\n"


def test_two_steps_alike_give_the_same_bytes() -> None:
    films = random(4, 3, 64, 64, seed=2).float()
    results = []
    for _ in range(2):
        net = nets.build_model("eeea_net_c2", 3, 64, seed=1).train()
        layers.speed_up(net)
        net(films).square().mean().backward()
        results.append([*(parameter.grad for parameter in net.parameters()), *net.buffers()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
