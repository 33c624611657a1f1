"""Layers that train faster on CPUs than PyTorch's own (`make bench` compares whole steps).

A pointwise convolution of a map in channels-last is one matrix product, and NumPy computes it: oneDNN's convolutions
take longer at it, backward, and several times as long where the map is 1x1; PyTorch's own product is MKL's, which needs
1.6 times as long once it gives the same bytes on Intel and AMD (see `pipeline/pinning.py`). The weights' gradient of a
depthwise convolution of 5x5 or 7x7 (3x3 on small maps), at which oneDNN is slow, is a loop of its own. Batch
normalisation and its activation pass over memory together where training has one thread; with more, PyTorch's own are
as fast.

Results differ from PyTorch's by rounding, which a deep net amplifies. In evaluation, on GPUs, in bf16, under
torch.compile and in other memory layouts all layers are PyTorch's.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, cast

import numpy as np
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from stages.learning import kernels

SMALL_SIDE = 4  # up to which oneDNN is slow at 3x3 too
COLUMNS = 256  # that a row of pixels may have in `rows_of`
ACTIVATIONS = {nn.Identity: kernels.IDENTITY, nn.ReLU: kernels.RELU, nn.Hardswish: kernels.HARDSWISH}


def rows_of(maps: Tensor) -> Any:
    """Maps in channels-last as the rows of `kernels.batch_norm`, a numpy view (pixels / n, n * channel)."""
    channels, pixels = maps.shape[1], maps.numel() // maps.shape[1]
    together = 1
    while pixels % (2 * together) == 0 and 2 * together * channels <= COLUMNS:
        together *= 2
    return maps.detach().permute(0, 2, 3, 1).view(pixels // together, together * channels).numpy()


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, eps: float, activation: str
    ) -> Tensor:
        ctx.save_for_backward(x, state)
        ctx.eps, ctx.activation = eps, activation
        y = torch.empty_like(x)
        forward, _ = kernels.batch_norm(activation)
        forward(rows_of(x), weight.detach().numpy(), bias.detach().numpy(), eps, rows_of(y), state.numpy())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, state = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = torch.empty_like(x), torch.empty_like(state[0]), torch.empty_like(state[0])
        _, backward = kernels.batch_norm(ctx.activation)
        pulls = rows_of(grad.contiguous(memory_format=torch.channels_last))
        backward(rows_of(x), pulls, ctx.eps, state.numpy(), rows_of(grad_x), grad_weight.numpy(), grad_bias.numpy())
        return grad_x, grad_weight, grad_bias, None, None, None


class FastBatchNormAct2d(BatchNormAct2d):
    """timm's batch normalisation with an activation, both in one."""

    num_batches_tracked: Tensor
    running_mean: Tensor
    running_var: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """As of `BatchNormAct2d`: (batch, channel, height, width) to the same."""
        pixels = x.numel() // x.shape[1]
        if not (self.training and pixels > 1 and torch.get_num_threads() == 1 and _is_looped(x)):
            return cast(Tensor, super().forward(x))  # type: ignore[no-untyped-call]  # of timm
        state = x.new_empty(4, self.num_features)
        y = cast(Tensor, _BatchNorm.apply(x, self.weight, self.bias, state, self.eps, ACTIVATIONS[type(self.act)]))
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(state[0], self.momentum)
            self.running_var.lerp_(state[1] * (pixels / (pixels - 1)), self.momentum)
        return y


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:  # noqa: A002 - torch's name
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(input, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        input, weight = ctx.saved_tensors  # noqa: A001 - likewise
        channels, _, side, _ = weight.shape
        grad = grad.contiguous(memory_format=torch.channels_last)
        sides = ([ctx.stride] * 2, [ctx.padding] * 2, [1, 1], False, [0, 0], channels, [True, False, False])
        to_input = torch.ops.aten.convolution_backward(grad, input, weight, None, *sides)[0]
        to_weight = weight.new_empty(side * side, channels)
        maps, pulls = (given.permute(0, 2, 3, 1).numpy() for given in (input.detach(), grad))
        loop = partial(kernels.depthwise_gradient(side, ctx.stride), maps, pulls, ctx.padding, to_weight.numpy())
        threads = torch.get_num_threads()
        if threads == 1:
            loop(0, channels)
        else:
            ends = [channels * part // threads for part in range(threads + 1)]
            list(_pool(threads).map(loop, ends[:-1], ends[1:]))
        return to_input, to_weight.t().reshape(weight.shape), None, None


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise `nn.Conv2d` whose weights' gradient takes the fast way."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as in nn.Module
        """As `nn.Conv2d`: (batch, channel, height, width) to (batch, channel, out height, out width)."""
        (side, _), (stride, _), (padding, _) = self.kernel_size, self.stride, cast(tuple[int, int], self.padding)
        is_slow = side > 3 or max(input.shape[2:]) <= SMALL_SIDE
        if self.training and is_slow and _is_looped(input):
            return cast(Tensor, _Depthwise.apply(input, self.weight, stride, padding))
        return super().forward(input)


def _pixels(maps: Tensor) -> Any:
    """Maps in channels-last as a numpy view (pixel, channel)."""
    return maps.detach().permute(0, 2, 3, 1).reshape(-1, maps.shape[1]).numpy()


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:  # noqa: A002 - torch's name
        ctx.save_for_backward(input, weight)
        shape = (len(input), len(weight), *input.shape[2:])
        out = torch.empty(shape, dtype=input.dtype, memory_format=torch.channels_last)
        np.matmul(_pixels(input), weight.detach().flatten(1).numpy().T, out=_pixels(out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        input, weight = ctx.saved_tensors  # noqa: A001 - likewise
        pulls = _pixels(grad.contiguous(memory_format=torch.channels_last))  # (pixel, out channel)
        to_input, to_weight = torch.empty_like(input, memory_format=torch.channels_last), torch.empty_like(weight)
        np.matmul(pulls, weight.detach().flatten(1).numpy(), out=_pixels(to_input))
        np.matmul(pulls.T, _pixels(input), out=to_weight.flatten(1).numpy())
        return to_input, to_weight


class PointwiseConv2d(nn.Conv2d):
    """A pointwise `nn.Conv2d` that is a matrix product."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as in nn.Module
        """As `nn.Conv2d`: (batch, channel, height, width) to (batch, out channel, height, width)."""
        if self.training and _is_looped(input):
            out = cast(Tensor, _Pointwise.apply(input, self.weight))
            return out if self.bias is None else out + self.bias.view(1, -1, 1, 1)
        return super().forward(input)


def speed_up(model: nn.Module) -> None:
    """Let a model's convolutions and normalisations train the fast way; weights and names stay."""
    for module in model.modules():
        if type(module) is BatchNormAct2d and _is_plain_norm(module):
            module.__class__ = FastBatchNormAct2d
        if type(module) is not nn.Conv2d:
            continue
        if _is_plain_depthwise(module):
            module.__class__ = DepthwiseConv2d
        elif module.kernel_size == module.stride == (1, 1) and module.padding == (0, 0) and module.groups == 1:
            module.__class__ = PointwiseConv2d


def _is_plain(maps: Tensor) -> bool:
    is_on_cpu = maps.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return is_on_cpu and maps.is_contiguous(memory_format=torch.channels_last)


def _is_looped(maps: Tensor) -> bool:
    return _is_plain(maps) and not torch.compiler.is_compiling()


def _is_plain_norm(module: BatchNormAct2d) -> bool:
    """With weights and a running mean, nothing dropped, and an activation that there is a loop for."""
    is_whole = module.affine and module.track_running_stats and module.momentum is not None
    return is_whole and isinstance(module.drop, nn.Identity) and type(module.act) in ACTIVATIONS


def _is_plain_depthwise(module: nn.Conv2d) -> bool:
    """Depthwise without bias or dilation, the same on both axes, padded with zeros."""
    is_depthwise = module.groups == module.in_channels == module.out_channels > 1
    is_bare = module.bias is None and module.dilation == (1, 1) and module.padding_mode == "zeros"
    sides = (module.kernel_size, module.stride, module.padding)
    return is_depthwise and is_bare and all(isinstance(side, tuple) and side[0] == side[1] for side in sides)
