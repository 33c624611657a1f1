"""ONNX graphs of a trained net that take a film as it is stored and give what a person is shown.

Preprocessing is in the graph, so that nobody writes it again: a grey uint8 film of any height and width goes in, its
middle square is resized by area, rounded to 8 bits and normalised, as ingest and training do.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from stages.nets import activations, nets

FILM, LOGITS, PROBABILITIES, FINDING, MAP = "film", "logits", "probabilities", "finding", "map"
EXAMPLE = (96, 90)  # a film to trace with; its size does not stay in the graph
COMBINED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # explainer -> map of (1, channel, height, width) each
    "grad_cam": lambda features, slopes: (slopes.mean((2, 3), keepdim=True) * features).sum(1),
    "layer_cam": lambda features, slopes: (torch.relu(slopes) * features).sum(1),
}


class GraphError(RuntimeError):
    """A net that torch.onnx does not export."""


class Preprocessing(nn.Module):
    """A film (height, width) uint8 -> the net's input (1, 3, size_px, size_px) float32.

    Resizing by area is a product with two matrices: how much of each row, and of each column, of the film lies in each
    of the square's (OpenCV's INTER_AREA, where the film is not smaller than the square).
    """

    def __init__(self, size_px: int) -> None:
        """For nets of this input size."""
        super().__init__()
        self.size_px = size_px
        self.mean, self.std = (nn.Buffer(torch.tensor(values).view(1, 3, 1, 1)) for values in (nets.MEAN, nets.STD))

    def square(self, film: Tensor) -> Tensor:
        """The film's middle square at the net's size, whole numbers 0 to 255, float64 (size_px, size_px)."""
        height, width = film.shape
        side: Any = torch.sym_min(height, width)  # a number, or while a graph is made its symbol
        rows, columns = self._cover(height, side), self._cover(width, side)
        is_half = torch.ones((), dtype=torch.float64) * side == 2 * self.size_px
        up = is_half / 1024  # OpenCV rounds a half up where four pixels become one, and to the even number elsewhere
        return torch.clamp(torch.round(rows @ film.to(torch.float64) @ columns.T + up), 0, 255)

    def _cover(self, length: int, side: Any) -> Tensor:
        edges: Tensor = torch.arange(self.size_px + 1, dtype=torch.float64)
        edges = edges * side / self.size_px + (length - side) // 2
        place = torch.arange(length, dtype=torch.float64)
        low, high = torch.maximum(edges[:-1, None], place[None]), torch.minimum(edges[1:, None], place[None] + 1)
        cover: Tensor = torch.clamp(high - low, min=0) * self.size_px / side
        return cover

    def forward(self, film: Tensor) -> Tensor:
        """The film as the net takes it."""
        grey = self.square(film).to(torch.float32)[None, None] / 255
        return (grey.expand(1, 3, -1, -1) - self.mean) / self.std


class Calibration(nn.Module):
    """Logits (finding,) -> probabilities (population, finding): a sigmoid with temperature and bias."""

    def __init__(self, temperatures: np.ndarray, biases: np.ndarray) -> None:
        """Both (population, finding), NaN where validation films fixed none: there the probability is NaN too."""
        super().__init__()
        self.temperatures = nn.Buffer(torch.tensor(temperatures, dtype=torch.float32))
        self.biases = nn.Buffer(torch.tensor(biases, dtype=torch.float32))

    def forward(self, logits: Tensor) -> Tensor:
        """The probabilities."""
        return torch.sigmoid(logits / self.temperatures + self.biases)


class Answer(nn.Module):
    """A film -> the logit of each finding, and its calibrated probability in each population."""

    def __init__(self, net: nn.Module, size_px: int, calibration: Calibration) -> None:
        """Of a net for films of this size."""
        super().__init__()
        self.preprocessing, self.net, self.calibration = Preprocessing(size_px), net, calibration

    def forward(self, film: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (finding,) and probabilities (population, finding)."""
        logits = self.net(self.preprocessing(film))[0]
        return logits, self.calibration(logits)


class Explanation(nn.Module):
    """A film and the place of a finding -> `Answer`, and the finding's class map, negative where it speaks against.

    The gradient is part of the graph: the net's forward and backward pass are traced once, so that a runtime without
    differentiation gives the map too.
    """

    def __init__(self, net: nn.Module, size_px: int, calibration: Calibration, max_stride: int, explainer: str) -> None:
        """Of a net, with maps on the deepest layer of at most this stride.

        Raises:
            GraphError: the explainer is not one of COMBINED, or the net's gradient cannot be traced.
        """
        super().__init__()
        if explainer not in COMBINED:
            raise GraphError(f"maps of {explainer} are in no graph; those of {' and '.join(COMBINED)} are")
        self.preprocessing, self.calibration = Preprocessing(size_px), calibration
        self.outputs = calibration.biases.shape[1]
        self.traced = traced(net, size_px, self.outputs, max_stride, COMBINED[explainer])

    def forward(self, film: Tensor, finding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (finding,), probabilities (population, finding) and map (height, width)."""
        chosen = (torch.arange(self.outputs) == finding).to(torch.float32)[None]
        logits, made = self.traced(self.preprocessing(film), chosen)
        return logits[0], self.calibration(logits[0]), made[0]


class _Mean(nn.Module):
    """Global average pooling whose backward pass has ONNX operators alone."""

    def forward(self, features: Tensor) -> Tensor:
        return features.mean((2, 3), keepdim=True)


def _without_traps(net: nn.Module) -> nn.Module:
    """A copy whose layers change nothing in place and pool by a plain mean."""
    plain = copy.deepcopy(net).eval().requires_grad_(False)
    for module in plain.modules():
        if hasattr(module, "inplace"):
            setattr(module, "inplace", False)  # noqa: B010 - nn.Module types its attributes as tensors
        for name, part in module.named_children():
            if isinstance(part, nn.AdaptiveAvgPool2d) and part.output_size in (1, (1, 1)):
                setattr(module, name, _Mean())
    return plain


def _backward(grad, x, weight, _sizes, stride, padding, dilation, _transposed, _output_padding, groups, _mask):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """The gradient of a convolution by its input alone, as a transposed convolution."""
    spans = [(weight.shape[2 + axis] - 1) * dilation[axis] for axis in range(2)]
    rest = [
        x.shape[2 + axis] - ((grad.shape[2 + axis] - 1) * stride[axis] - 2 * padding[axis] + spans[axis] + 1)
        for axis in range(2)
    ]
    by_input = torch.ops.aten.convolution(grad, weight, None, stride, padding, dilation, True, rest, groups)
    return by_input, None, None


def traced(
    net: nn.Module, size_px: int, outputs: int, max_stride: int, combine: Callable[[Tensor, Tensor], Tensor]
) -> GraphModule:
    """Forward pass, and backward to the target layer's features, as a graph: (film, chosen outputs) -> logits, map."""
    plain = _without_traps(net)
    name, _ = activations.target_layer(plain, max_stride)
    layer, shapes = plain.get_submodule(name), list[torch.Size]()
    hook = layer.register_forward_hook(lambda _module, _given, made: shapes.append(made.shape))
    film, chosen = torch.zeros(1, 3, size_px, size_px), torch.zeros(1, outputs)
    plain(film)
    hook.remove()

    def explained(film: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        kept: dict[str, Tensor] = {}

        def moved(_module: nn.Module, _given: object, made: Tensor) -> Tensor:
            kept["features"] = made
            return made + kept["by"]

        def logits_of(by: Tensor) -> Tensor:
            kept["by"] = by
            logits: Tensor = plain(film)
            return logits

        hook = layer.register_forward_hook(moved)
        logits, back = torch.func.vjp(logits_of, torch.zeros(shapes[0]))[:2]
        (slopes,) = back(chosen)
        hook.remove()
        return logits, combine(kept["features"], slopes)

    table = {**core_aten_decompositions(), torch.ops.aten.convolution_backward.default: _backward}
    graph: GraphModule = make_fx(explained, decomposition_table=table)(film, chosen)
    return graph


def to_onnx(module: Answer | Explanation, opset: int) -> onnx.ModelProto:
    """A module as ONNX for films of any size, without the notes of where and how it was traced.

    Args:
        module: what an input of the graph, and an output, is called, FILM to MAP say.
        opset: version of the operator set.

    Raises:
        GraphError: torch.onnx cannot.
    """
    free = {0: torch.export.Dim("height", min=1), 1: torch.export.Dim("width", min=1)}
    film = torch.zeros(EXAMPLE, dtype=torch.uint8)
    if isinstance(module, Answer):
        return _exported(module, opset, {FILM: (film, free)}, [LOGITS, PROBABILITIES])
    given = {FILM: (film, free), FINDING: (torch.tensor(0), None)}
    return _exported(module, opset, given, [LOGITS, PROBABILITIES, MAP])


def plain(net: nn.Module, size_px: int, opset: int) -> onnx.ModelProto:
    """A net alone, to be timed: normalised films (film, 3, size_px, size_px), as many as there are, -> logits.

    Raises:
        GraphError: torch.onnx cannot.
    """
    films = torch.zeros(2, 3, size_px, size_px)
    return _exported(net, opset, {"films": (films, {0: torch.export.Dim("film", min=1)})}, [LOGITS])


def _exported(
    module: nn.Module, opset: int, given: dict[str, tuple[Tensor, dict[int, Any] | None]], outputs: list[str]
) -> onnx.ModelProto:
    """ONNX of a module; its inputs are name -> (example, axes whose length is free)."""
    try:
        program = torch.onnx.export(
            module.eval(),
            tuple(example for example, _ in given.values()),
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=list(given),
            output_names=outputs,
            dynamic_shapes=tuple(free for _, free in given.values()),
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise GraphError(f"torch.onnx does not export this net: {str(error).splitlines()[0]}") from error
    if program is None:
        raise GraphError("torch.onnx.export gave no program")
    proto = program.model_proto
    strip_notes(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def strip_notes(proto: onnx.ModelProto) -> None:
    """Remove what names the machine: stack traces with paths, signatures, the producer's build."""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    proto.producer_version = ""
