"""Graphs for other runtimes: the film as it is stored goes in; what comes out is what the pipeline says."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from stages.core import plugins
from stages.device import gates, graphs, variants
from stages.judging import metrics
from stages.nets import nets

SIZE, OUTPUTS, STRIDE, OPSET = 64, 5, 8, 20
TEMPERATURES = np.array([[1.0, 2.0, 3.0, 4.0, np.nan], [0.5] * OUTPUTS])
BIASES = np.zeros_like(TEMPERATURES)


def film(seed: int, height: int, width: int) -> np.ndarray:
    """A smooth random film."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3)


def middle_square(image: np.ndarray) -> np.ndarray:
    """As ingest makes it."""
    side = min(image.shape)
    top, left = ((length - side) // 2 for length in image.shape)
    return cv2.resize(image[top : top + side, left : left + side], (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """On the CPU."""
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """An untrained student whose batch norms have met films."""
    model = nets.build_model("eeea_net_c2", OUTPUTS, SIZE, seed=0)
    films = np.stack([middle_square(film(seed, 80, 80)) for seed in range(8)])
    with torch.no_grad():
        for _ in range(20):
            model.train()(nets.to_input(films))
    return model.eval()


@pytest.fixture(scope="module")
def answer(net: nn.Module) -> onnx.ModelProto:
    """The graph that answers."""
    return graphs.to_onnx(graphs.Answer(net, SIZE, graphs.Calibration(TEMPERATURES, BIASES)), OPSET)


@settings(max_examples=30, deadline=None)
@example(2 * SIZE, 2 * SIZE)
@example(4 * SIZE, 5 * SIZE)
@given(st.integers(64, 400), st.integers(64, 400))
def test_a_film_is_resized_as_ingest_does(height: int, width: int) -> None:
    image = film(height, height, width)
    ours = graphs.Preprocessing(SIZE).square(torch.from_numpy(image)).numpy()
    off = np.abs(ours - middle_square(image))
    assert off.max() <= 1  # OpenCV adds up in single precision where the sides do not divide
    assert (off > 0).mean() < 0.002


@pytest.mark.parametrize("shape", [(64, 64), (300, 256), (129, 500)])
def test_the_graph_answers_as_the_net_for_films_of_any_size(
    net: nn.Module, answer: onnx.ModelProto, shape: tuple[int, int]
) -> None:
    image = film(1, *shape)
    logits, probabilities = session(answer).run(None, {graphs.FILM: image})
    square = graphs.Preprocessing(SIZE).square(torch.from_numpy(image)).numpy().astype(np.uint8)
    wanted = nets.logits(net, [square[None]], torch.device("cpu"))[0]
    np.testing.assert_allclose(logits, wanted, atol=1e-4)
    stated = 1 / (1 + np.exp(-(wanted / TEMPERATURES + BIASES)))
    np.testing.assert_allclose(probabilities, stated, atol=1e-4)  # NaN where there is no temperature


@pytest.mark.parametrize("name", sorted(graphs.COMBINED))
def test_the_graph_of_maps_gives_the_explainers(net: nn.Module, answer: onnx.ModelProto, name: str) -> None:
    calibration = graphs.Calibration(TEMPERATURES, BIASES)
    graph = session(graphs.to_onnx(graphs.Explanation(net, SIZE, calibration, STRIDE, name), OPSET))
    image, asked = film(2, 200, 180), [0, 3]
    ready = graphs.Preprocessing(SIZE)(torch.from_numpy(image))
    explained = plugins.load("explainers", name).maps(net, ready, asked, STRIDE)[0]
    for finding, wanted in zip(asked, explained, strict=True):
        logits, _, made = graph.run(None, {graphs.FILM: image, graphs.FINDING: np.array(finding)})
        np.testing.assert_allclose(logits, session(answer).run(["logits"], {graphs.FILM: image})[0], atol=1e-5)
        assert made.shape == wanted.shape
        np.testing.assert_allclose(made, wanted, atol=1e-4 * np.abs(wanted).max())


def test_another_export_has_the_same_bytes_and_names_no_path(net: nn.Module, answer: onnx.ModelProto) -> None:
    again = graphs.to_onnx(graphs.Answer(net, SIZE, graphs.Calibration(TEMPERATURES, BIASES)), OPSET)
    content = answer.SerializeToString(deterministic=True)
    assert again.SerializeToString(deterministic=True) == content
    assert b"/stages/" not in content
    assert b".py" not in content


@pytest.mark.parametrize(("name", "smaller", "share"), [("int8_weights", 3.5, 0.05), ("fp16_weights", 1.9, 0.005)])
def test_a_variant_is_smaller_and_answers_nearly_the_same(
    answer: onnx.ModelProto, name: str, smaller: float, share: float
) -> None:
    made = variants.VARIANTS[name](answer)
    assert len(answer.SerializeToString()) > smaller * len(made.SerializeToString())
    films = [film(seed, 70, 70) for seed in range(6)]
    ours, theirs = (
        np.array([session(proto).run([graphs.LOGITS], {graphs.FILM: one})[0] for one in films])
        for proto in (made, answer)
    )
    assert np.abs(ours - theirs).max() < share * theirs.std()
    assert np.abs(ours - theirs).max() > 0


LIMITS = SimpleNamespace(auroc=0.005, interval=0.01, flipped=0.02, pointing=0.02)


def labelled(rng: np.random.Generator, rows: int = 800) -> tuple[gates.Tested, np.ndarray]:
    """Films with labels and a model that knows something of them."""
    targets = (rng.random((rows, 3)) < 0.3).astype(float)
    logits = 1.5 * targets + rng.normal(size=targets.shape)
    drawn = metrics.patient_weights(rows // 2, 100, rng)
    weights = np.concatenate([np.ones((rows // 2, 1), drawn.dtype), drawn], axis=1)
    about: dict[str, Any] = {"thresholds": np.array([0.7, 0.7, np.nan]), "temperatures": np.ones(3)}
    about |= {"biases": np.zeros(3), "confidence": 0.95, "findings": ["a", "b", "c"]}
    return gates.Tested(targets=targets, patients=np.arange(rows) // 2, weights=weights, **about), logits


def test_a_variant_that_answers_the_same_loses_nothing_and_passes() -> None:
    films, logits = labelled(np.random.default_rng(0))
    found = gates.compare(films, logits, logits + 1e-6)
    gates.require("int8_weights", "mine", found, LIMITS)
    assert found["auroc"]["value"] == 0
    assert found["lowest_spearman"] == 1
    assert set(found["flipped"]) == {"a", "b"}


def test_a_bad_variant_is_refused_by_name_and_figure() -> None:
    rng = np.random.default_rng(1)
    films, logits = labelled(rng)
    found = gates.compare(films, logits, logits + rng.normal(scale=0.5, size=logits.shape))
    with pytest.raises(gates.GateError, match=r"int8 answers .* on mine: mean AUROC -0\.\d+.*calls change"):
        gates.require("int8", "mine", found, LIMITS)


def test_one_bad_finding_is_named() -> None:
    rng = np.random.default_rng(2)
    films, logits = labelled(rng)
    worse = logits.copy()
    worse[:, 1] = rng.normal(size=len(worse))
    found = gates.compare(films, logits, worse)
    assert found["worst"]["finding"] == "b"
    assert found["spearman"]["a"] == 1
    assert abs(found["spearman"]["b"]) < 0.2
    assert found["brier"]["value"] > 0


def test_maps_that_point_worse_are_refused() -> None:
    rng = np.random.default_rng(3)
    films, logits = labelled(rng)
    given, places = np.array(["a", "b"] * 50), np.arange(100)
    points = (rng.random(100) < 0.8).astype(float)
    worse = np.where(np.arange(100) % 5 == 0, 0.0, points)
    same = gates.pointing({"model": points, "variant": points}, given, places, films.weights, 0.95)
    assert (same["value"], same["low"], same["high"]) == (0, 0, 0)
    lost = gates.pointing({"model": points, "variant": worse}, given, places, films.weights, 0.95)
    by_hand = np.mean([(worse - points)[given == name].mean() for name in ("a", "b")])
    assert lost["value"] == pytest.approx(by_hand, abs=1e-6)
    assert lost["low"] < lost["value"] < lost["high"]
    with pytest.raises(gates.GateError, match=r"its maps' pointing -0\.\d+, 0\.02 may be lost"):
        gates.require("int8", "mine", gates.compare(films, logits, logits, lost), LIMITS)


def static(proto: onnx.ModelProto, covered: float, shown: Sequence[np.ndarray]) -> float:
    """How far int8_static's logits are from the float ones, as a share of what these vary."""
    made = variants.int8_static(proto, shown, covered)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in made.graph.node}
    films = [film(seed, 70, 70) for seed in range(20, 28)]
    ours, theirs = (
        np.array([session(one).run([graphs.LOGITS], {graphs.FILM: each})[0] for each in films]) for one in (made, proto)
    )
    return float(np.abs(ours - theirs).mean() / theirs.std())


def test_one_strange_film_does_not_set_the_ranges_of_whole_numbers(answer: onnx.ModelProto) -> None:
    plain = [film(seed, 64, 64) for seed in range(60)]
    strange = (255 * (np.indices((64, 64)).sum(axis=0) % 2)).astype(np.uint8)
    far = static(answer, variants.COVERED, [*plain, strange])
    assert static(answer, variants.COVERED, plain) < 0.2
    assert far < 0.2
    assert static(answer, 1.0, [*plain, strange]) > 1.25 * far
