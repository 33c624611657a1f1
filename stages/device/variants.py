"""Smaller files of the same graph.

`int8_weights` and `fp16_weights` keep every operator. Large weights are stored as whole numbers or half floats and made
floats again by the graph itself (`Cast`, and for whole numbers a `Mul` by a scale a channel), which runtimes fold as
they load it: such a file is as fast as the float one, and rounds weights alone, never what a film makes of them.

`int8_static` computes in whole numbers too, for processors that have nothing else: what a film makes of the weights is
rounded to 256 steps, whose range training films set before.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry

from stages.device.running import cpu_session

Stored = tuple[list[TensorProto], list[onnx.NodeProto]]  # what is kept, and what makes floats of it again

LEVELS = 127  # of int8 on either side of 0
STATIC_LEVELS = 64  # of weights in products of whole numbers: the sum of two must fit 16 bits (see `int8_static`)
SMALL = 1024  # weights of fewer values stay as they are
COVERED = 0.98  # share of the films whose values lie within int8_static's range: one film of high contrast sets none
CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0, "MatMul": 1}  # of an operator's weight, its outputs'


def _stored_as(proto: onnx.ModelProto, store: Callable[[str, NDArray[np.float32], int], Stored]) -> onnx.ModelProto:
    """A copy whose large float32 weights of products are stored otherwise.

    Args:
        proto: a model.
        store: (name, values, axis of the outputs) -> what is stored, and the nodes that make the float tensor `name`
            of it.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    graph, axes = changed.graph, dict[str, int]()
    for node in graph.node:
        if node.op_type in CHANNEL_AXIS:
            axes.setdefault(node.input[1], CHANNEL_AXIS[node.op_type])
    kept, nodes = list[TensorProto](), list[onnx.NodeProto]()
    for tensor in graph.initializer:
        if tensor.name not in axes or tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < SMALL:
            kept.append(tensor)
            continue
        stored, makers = store(tensor.name, numpy_helper.to_array(tensor), axes[tensor.name])
        kept += stored
        nodes += makers
    nodes += list(graph.node)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
    onnx.checker.check_model(changed, full_check=True)
    return changed


def _as_int8(name: str, values: NDArray[np.float32], axis: int) -> Stored:
    others = tuple(place for place in range(values.ndim) if place != axis)
    largest = np.abs(values).max(axis=others, keepdims=True)
    scale = (np.where(largest > 0, largest, 1) / LEVELS).astype(np.float32)
    whole = np.clip(np.round(values / scale), -LEVELS, LEVELS).astype(np.int8)
    stored = [numpy_helper.from_array(whole, f"{name}_int8"), numpy_helper.from_array(scale, f"{name}_scale")]
    nodes = [
        helper.make_node("Cast", [f"{name}_int8"], [f"{name}_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}_float", f"{name}_scale"], [name]),
    ]
    return stored, nodes


def _as_half(name: str, values: NDArray[np.float32], _: int) -> Stored:
    stored = [numpy_helper.from_array(values.astype(np.float16), f"{name}_half")]
    return stored, [helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT)]


Films = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]  # each (height, width)


def int8_weights(proto: onnx.ModelProto, _: Films = ()) -> onnx.ModelProto:
    """Weights as int8, symmetric, a scale an output channel."""
    return _stored_as(proto, _as_int8)


def fp16_weights(proto: onnx.ModelProto, _: Films = ()) -> onnx.ModelProto:
    """Weights as half floats."""
    return _stored_as(proto, _as_half)


def int8_static(proto: onnx.ModelProto, films: Films, covered: float = COVERED) -> onnx.ModelProto:
    """Weights as 7 bits, a scale an output channel, and activations as uint8, from the first convolution to the logits.

    On x86-64 without VNNI onnxruntime adds two products in 16 bits, which weights of 8 bits overflow:
    https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html

    Preprocessing and calibration stay as they are. An activation's range goes from a low to a high quantile, over
    films, of its least and of its largest value on each.

    Args:
        proto: a model.
        films: that set the ranges, each uint8 (height, width).
        covered: the high quantile; the low one is 1 less this.
    """
    inferred = onnx.shape_inference.infer_shapes(proto)
    nodes = inferred.graph.node
    last = max(place for place, node in enumerate(nodes) if node.op_type in CHANNEL_AXIS)
    first = next(place for place, node in enumerate(nodes) if node.op_type == "Conv")
    ranges = _ranges(inferred, list(nodes[first : last + 1]), films, covered)
    others = [node.name for node in (*nodes[:first], *nodes[last + 1 :])]
    quantizer = QDQQuantizer(
        inferred, True, True, QuantType.QInt8, QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, ranges), [], others, list(QDQRegistry), {},
    )  # fmt: skip
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    changed: onnx.ModelProto = quantizer.model.model
    onnx.checker.check_model(changed, full_check=True)
    return changed


def _ranges(
    proto: onnx.ModelProto, nodes: list[onnx.NodeProto], films: Films, covered: float
) -> dict[str, tuple[np.float32, np.float32]]:
    """What each activation of some nodes spans, 0 within."""
    constant = {tensor.name for tensor in proto.graph.initializer}
    names = list(dict.fromkeys(name for node in nodes for name in (*node.input, *node.output)))
    names = [name for name in names if name and name not in constant]
    shown, given = onnx.ModelProto(), {one.name for one in proto.graph.output}
    shown.CopyFrom(proto)
    typed = {one.name: one for one in proto.graph.value_info}
    shown.graph.output.extend(typed[name] for name in names if name not in given)
    session = cpu_session(shown.SerializeToString(), 1)
    ends = [[(made.min(), made.max()) for made in session.run(names, {"film": film})] for film in films]
    low = np.minimum(np.quantile([[one[0] for one in film] for film in ends], 1 - covered, axis=0), 0)
    high = np.maximum(np.quantile([[one[1] for one in film] for film in ends], covered, axis=0), 0)
    return dict(zip(names, zip(low.astype(np.float32), high.astype(np.float32), strict=True), strict=True))


VARIANTS: dict[str, Callable[[onnx.ModelProto, Films], onnx.ModelProto]] = {
    "int8_weights": int8_weights,
    "fp16_weights": fp16_weights,
    "int8_static": int8_static,
}
FLOAT = ("int8_weights", "fp16_weights")  # compute in floats, so that a class map's gradient goes through them
