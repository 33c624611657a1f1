"""The student in whole numbers, as `make integers` trains it: it answers as the exported files do."""

import numpy as np
import onnx
import pytest
import torch
from test_device import answer as answer
from test_device import film, middle_square
from test_device import net as net

from benchmarks import integers
from stages.core import params
from stages.device import running, variants
from stages.nets import nets

FILMS = np.stack([middle_square(film(seed, 90, 80)) for seed in range(6)])
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(answer: onnx.ModelProto) -> onnx.ModelProto:
    """Its variant that computes in whole numbers."""
    return variants.int8_static(answer, FILMS)


def logits_of(proto: onnx.ModelProto) -> np.ndarray:
    """What onnxruntime says."""
    session = running.Session(proto.SerializeToString(), 1)
    return np.stack([session.answer(film)[0] for film in FILMS])


def test_unrounded_it_answers_as_the_graph_and_rounded_as_near_as_the_variant(
    answer: onnx.ModelProto, whole: onnx.ModelProto
) -> None:
    model, exact = integers.Rounding(answer, integers.steps_of(whole)), logits_of(answer)
    ours, theirs = nets.logits(model, [FILMS], CPU) - exact, logits_of(whole) - exact
    assert 0.5 < np.abs(ours).mean() / np.abs(theirs).mean() < 2
    model.is_rounded = False
    np.testing.assert_allclose(nets.logits(model, [FILMS], CPU), exact, atol=1e-5)


def test_rounding_is_to_the_grid_and_its_gradient_is_that_of_clamping() -> None:
    x = torch.tensor([-1.0, 0.26, 0.74, 9.0], requires_grad=True)
    made = integers.rounded(x, 0.5, 1, 0, 5)
    assert made.tolist() == [-0.5, 0.5, 0.5, 2.0]
    made.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_a_step_moves_every_weight_and_what_is_put_back_answers_as_trained(
    answer: onnx.ModelProto, whole: onnx.ModelProto
) -> None:
    model = integers.Rounding(answer, integers.steps_of(whole))
    model(nets.to_input(FILMS)).square().sum().backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in model.trained)
    torch.optim.SGD(model.parameters(), 1e-3).step()
    model.is_rounded = False
    changed = logits_of(model.put_back(answer))
    np.testing.assert_allclose(changed, nets.logits(model, [FILMS], CPU), atol=1e-4)
    assert not np.allclose(changed, logits_of(answer), atol=1e-3)


def test_an_operator_that_is_unknown_is_named(answer: onnx.ModelProto) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(answer)
    next(node for node in changed.graph.node if node.op_type == "HardSwish").op_type = "Mish"
    with pytest.raises(ValueError, match="computes Mish of the student's graph"):
        integers.Rounding(changed, {})


@pytest.mark.parametrize(
    ("value", "reach", "flipped", "shown"),
    [(-0.001, 0.004, 0.01, "yes"), (-0.006, 0.004, 0.01, "**no**"), (-0.001, 0.011, 0.01, "**no**"),
     (-0.001, 0.004, 0.03, "**no**")],
)  # fmt: skip
def test_a_row_says_whether_all_limits_hold(value: float, reach: float, flipped: float, shown: str) -> None:
    limits = params.load("export").limits
    found = {"mean_abs_difference": 0.05, "auroc": {"value": value, "low": -reach, "high": 0.0},
             "flipped_mean": flipped, "lowest_spearman": 0.99, "pointing": None}  # fmt: skip
    assert integers.row("what", "there", found, limits).endswith(f"| {shown} |")
