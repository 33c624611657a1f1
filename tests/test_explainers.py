"""The rules of `stages/explainers`, for every file in that folder."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stages.core import plugins
from stages.nets import nets

SIZE_PX = 64
STRIDE = 16
OUTPUTS = 3
EXPLAINERS = plugins.names("explainers")
NETS = ["eeea_net_c2", "resnet10t", "autoformer_v2_t"]  # maps first or last, and with a head that has a layer more

PAIRS = [(name, net) for name in EXPLAINERS for net in NETS if (name, net) != ("score_cam", "autoformer_v2_t")]

of_every_pair = pytest.mark.parametrize(("name", "architecture"), PAIRS)  # without the one that takes half a minute
of_every_explainer = pytest.mark.parametrize("name", EXPLAINERS)
of_every_net = pytest.mark.parametrize("architecture", NETS)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small nets are faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def films() -> torch.Tensor:
    """Three inputs of noise."""
    return torch.randn(3, 3, SIZE_PX, SIZE_PX, generator=torch.Generator().manual_seed(0))


def build(architecture: str) -> Any:
    """A net in eval mode."""
    return nets.build_model(architecture, OUTPUTS, SIZE_PX, seed=3).eval()


def explain(name: str, net: nn.Module, films: torch.Tensor, outputs: list[int]) -> np.ndarray:
    """The maps of an explainer."""
    maps: np.ndarray = plugins.load("explainers", name).maps(net, films, outputs, STRIDE)
    return maps


def says(name: str, what: str, otherwise: bool) -> bool:
    """What an explainer says of itself."""
    return bool(getattr(plugins.load("explainers", name), what, otherwise))


IN_LOGITS = [name for name in EXPLAINERS if not says(name, "IS_RELATIVE", False)]
of_every_one_with_a_unit = pytest.mark.parametrize("name", IN_LOGITS)


@of_every_pair
def test_there_is_a_finite_map_of_each_film_and_output(name: str, architecture: str, films: torch.Tensor) -> None:
    maps = explain(name, build(architecture), films, [0, 1, 2])
    assert (maps.dtype, maps.ndim, maps.shape[:2]) == (np.float32, 4, (3, OUTPUTS))
    assert min(maps.shape[2:]) >= SIZE_PX / STRIDE
    assert np.isfinite(maps).all()
    assert maps.max() > 0


@of_every_pair
def test_outputs_come_in_the_order_asked_for_and_films_do_not_see_each_other(
    name: str, architecture: str, films: torch.Tensor
) -> None:
    net = build(architecture)
    maps = explain(name, net, films, [2, 0])
    tolerance = 1e-4 * np.abs(maps).max()
    for place, output in enumerate((2, 0)):
        alone = explain(name, net, films[1:2], [output])[0, 0]
        np.testing.assert_allclose(maps[1, place], alone, atol=tolerance)
    differ = bool(np.abs(maps[:, 0] - maps[:, 1]).max() > 10 * tolerance)
    assert differ is says(name, "KNOWS_FINDINGS", True)


@of_every_one_with_a_unit
@of_every_net
def test_maps_have_the_unit_of_the_logit(name: str, architecture: str, films: torch.Tensor) -> None:
    net = build(architecture)
    plain, classifier = explain(name, net, films, [0, 1]), net.get_classifier()
    with torch.no_grad():
        classifier.weight *= 2
        classifier.bias *= 2
    np.testing.assert_allclose(explain(name, net, films, [0, 1]), 2 * plain, rtol=1e-5, atol=1e-6 * plain.max())


@of_every_one_with_a_unit
@of_every_net
def test_logits_that_depend_on_nothing_have_maps_of_zeros(name: str, architecture: str, films: torch.Tensor) -> None:
    net = build(architecture)
    nn.init.zeros_(net.get_classifier().weight)
    assert not explain(name, net, films, [0, 1]).any()


def state(net: nn.Module) -> dict[str, Any]:
    """All that an explainer must leave as it is."""
    return {
        "weights": {key: value.clone() for key, value in net.state_dict().items()},
        "gradients": {key: None if value.grad is None else value.grad.clone() for key, value in net.named_parameters()},
        "trains": {key: value.requires_grad for key, value in net.named_parameters()},
        "modes": [module.training for module in net.modules()],
        "hooks": [
            (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
            for module in net.modules()
        ],
        "is_grad_enabled": torch.is_grad_enabled(),
        "rng": torch.get_rng_state(),
    }


@of_every_explainer
@pytest.mark.parametrize("fails", [False, True], ids=["done", "refused"])
def test_the_model_is_left_as_it_was(name: str, films: torch.Tensor, fails: bool) -> None:
    net = build("resnet10t").train()
    net.get_submodule("layer1").eval()
    net.fc.bias.grad = torch.ones(OUTPUTS)
    net.conv1[0].weight.requires_grad_(False)
    before = state(net)
    if fails:
        with pytest.raises((ValueError, RuntimeError, IndexError)):
            explain(name, net, films, [OUTPUTS])  # no such output
    else:
        explain(name, net, films, [0])
    torch.testing.assert_close(state(net), before, rtol=0, atol=0)


@of_every_explainer
def test_a_frozen_model_has_the_same_maps_and_another_has_others(name: str, films: torch.Tensor) -> None:
    net = build("eeea_net_c2")
    maps = explain(name, net, films, [0])
    with torch.no_grad():
        np.testing.assert_array_equal(explain(name, net.requires_grad_(False), films, [0]), maps)
    other = nets.build_model("eeea_net_c2", OUTPUTS, SIZE_PX, seed=4).eval()
    assert not np.allclose(explain(name, other, films, [0]), maps, atol=0.01 * maps.max())
