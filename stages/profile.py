"""Measure what an architecture costs: exact figures, and times and memory of this machine, in two files.

Reads params only. Writes `reports/profile/<role>/<arch>.json` (parameters, weight bytes, multiply-adds by two counters
and by layer, activation memory: the same on every machine) and `<arch>.timing.json` (start, latency, memory and energy
in PyTorch and onnxruntime: they differ from run to run). A table of probabilities has no cost: all is null, with the
reason. Stops on an architecture that cannot be built at a size of `profile.sizes_px`.

fvcore counts a batch norm's and a pooling's multiply-adds, torch.utils.flop_counter only those of products of matrices
(convolutions, linear layers, attention), and as two operations each; over what both count they agree.
"""

import os
import platform
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from safetensors.torch import save
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stages.core import arguments, files, params, plugins
from stages.device import graphs, runtimes, variants
from stages.nets import nets
from stages.pipeline import pinning

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # fvcore scripts its losses when imported, which torch deprecates
    from fvcore.nn import FlopCountAnalysis

NO_NET = "a table of probabilities that were computed elsewhere"


def count_macs(model: nn.Module, size_px: int) -> dict[str, Any]:
    """Multiply-adds and activation memory of one film.

    `macs` is fvcore's count (it calls them flops), `not_counted` the operators that it knows no count for, `by_torch`
    the other counter's (its operations halved), `layers` fvcore's of each part of the net, and `activation_bytes` the
    largest input and output of one layer together, in float32: what a runtime needs at least.

    Args:
        model: in eval mode.
        size_px: side of the input.
    """
    film = torch.zeros(1, 3, size_px, size_px)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of every shape that a model reads
        counter = FlopCountAnalysis(model, film)
        counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        found = {
            "size_px": size_px,
            "macs": int(counter.total()),
            "macs_by_operator": {name: int(count) for name, count in counter.by_operator().items()},
            "not_counted": {name: int(count) for name, count in counter.unsupported_ops().items()},
        }
        by_module = counter.by_module()
    return found | {
        "by_torch": count_by_torch(model, film),
        "activation_bytes": activation_bytes(model, film),
        "layers": [
            {"name": name, "macs": int(by_module[name]), "parameters": sum(one.numel() for one in layer.parameters())}
            for name, layer in layers(model)
            if by_module[name] or any(True for _ in layer.parameters())
        ],
    }


def count_by_torch(model: nn.Module, film: torch.Tensor) -> dict[str, Any]:
    """Multiply-adds by torch.utils.flop_counter, which counts each as two operations, in all and by operator."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(film)
    by_operator = {str(name): count // 2 for name, count in counter.get_flop_counts()["Global"].items()}
    return {"macs": counter.get_total_flops() // 2, "macs_by_operator": by_operator}


def layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a net, from input to output; in place of a sequence, its own parts."""
    for name, part in model.named_children():
        if isinstance(part, nn.Sequential):
            yield from ((f"{name}.{inner}", layer) for inner, layer in part.named_children())
        else:
            yield name, part


def activation_bytes(model: nn.Module, film: torch.Tensor) -> int:
    """The largest sum of a module's input and output, over the modules that have no part of their own."""
    sizes = [0]

    def measure(_: nn.Module, given: tuple[Any, ...], made: Any) -> None:
        tensors = [one for one in (*given, made) if isinstance(one, torch.Tensor)]
        sizes.append(sum(one.numel() * one.element_size() for one in tensors))

    hooks = [module.register_forward_hook(measure) for module in model.modules() if not any(module.children())]
    with torch.inference_mode():
        model(film)
    for hook in hooks:
        hook.remove()
    return max(sizes)


def exact_cost(architecture: str, outputs: int, sizes_px: list[int]) -> dict[str, Any]:
    """What does not depend on the machine; parameters and weights are those of the largest size.

    Nets with position embeddings have some more parameters at larger sizes.
    """
    model = nets.build_model(architecture, outputs, max(sizes_px))
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return {
        "architecture": architecture,
        "outputs": outputs,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_bytes": len(save(weights)),
        "compute": [
            count_macs(nets.build_model(architecture, outputs, size).eval(), size) for size in sorted(sizes_px)
        ],
        "reason": None,
    }


def no_cost(architecture: str, outputs: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both files of a table of probabilities, in the form of nets'."""
    nothing: dict[str, Any] = {"parameters": None, "weights_bytes": None, "compute": []}
    exact = {"architecture": architecture, "outputs": outputs, **nothing, "reason": NO_NET}
    return exact, {"architecture": architecture, "machine": machine(), "runs": [], "no_onnx": NO_NET}


def machine() -> dict[str, Any]:
    """What the times were measured on."""
    return {
        "cpu": pinning.processor(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def measured_cost(architecture: str, outputs: int, sizes_px: list[int], repeats: int, opset: int) -> dict[str, Any]:
    """What each runtime takes on this machine, on one thread and on all, each in a fresh process.

    Such a process has neither this one's memory nor its threads, nor its pinned instruction set. A net that torch.onnx
    does not export is timed in PyTorch alone, and `no_onnx` says why.
    """
    asked: dict[str, tuple[Callable[..., list[dict[str, Any]]], tuple[Any, ...]]] = {
        "pytorch": (runtimes.of_torch, (architecture, outputs, sizes_px))
    }
    no_onnx = None
    try:
        protos = {
            size: graphs.plain(nets.build_model(architecture, outputs, size), size, opset) for size in sorted(sizes_px)
        }
    except graphs.GraphError as error:
        no_onnx = str(error)
    else:
        small = {size: variants.int8_weights(proto) for size, proto in protos.items()}
        for name, made in (("onnxruntime", protos), ("onnxruntime, int8 weights", small)):
            contents = {size: proto.SerializeToString() for size, proto in made.items()}
            asked[name] = (runtimes.of_onnx, (contents,))
    runs = []
    for name, (measure, given) in asked.items():
        for threads in sorted({1, os.cpu_count() or 1}):
            with pinning.released(), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                rows = pool.submit(measure, *given, threads, repeats).result()
            runs += [{"runtime": name, "threads": threads, **row} for row in rows]
    return {"architecture": architecture, "machine": machine(), "runs": runs, "no_onnx": no_onnx}


def main(argv: list[str] | None = None) -> None:
    """Profile one architecture."""
    args = arguments.parser(__doc__, "arch", role={"choices": ("teacher", "student")}).parse_args(argv)
    settings, opset, threads = params.load("profile", "export.opset", "threads")
    plugins.load("models", args.arch)
    nets.fix(threads)
    if plugins.model_kind(args.arch) == "table":
        exact, timing = no_cost(args.arch, settings.outputs)
    else:
        exact = exact_cost(args.arch, settings.outputs, settings.sizes_px)
        timing = measured_cost(args.arch, settings.outputs, settings.sizes_px, settings.repeats, opset)
    with (
        files.output(f"reports/profile/{args.role}/{args.arch}.json") as exact_path,
        files.output(f"reports/profile/{args.role}/{args.arch}.timing.json") as timing_path,
    ):
        files.write_json(exact, exact_path)
        files.write_json(timing, timing_path)


if __name__ == "__main__":
    main()
