"""Smaller files of the same graph: weights stored in fewer bits and computed with as before.

A variant keeps every operator. Its large weights are stored as whole numbers or half floats and made floats again by
the graph itself (`Cast`, and for whole numbers a `Mul` by a scale a channel), which runtimes fold as they load it: such
a file is as fast as the float one, and rounds weights alone, never what a film makes of them.
"""

from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Stored = tuple[list[TensorProto], list[onnx.NodeProto]]  # what is kept, and what makes floats of it again

LEVELS = 127  # of int8 on either side of 0
SMALL = 1024  # weights of fewer values stay as they are
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


def int8_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Weights as int8, symmetric, a scale an output channel."""
    return _stored_as(proto, _as_int8)


def fp16_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Weights as half floats."""
    return _stored_as(proto, _as_half)


VARIANTS = {"int8_weights": int8_weights, "fp16_weights": fp16_weights}
