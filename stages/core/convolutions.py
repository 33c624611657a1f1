"""Faster training of two kinds of convolutions on CPUs (`make bench` compares whole steps).

A pointwise convolution of a map in channels-last is one matrix product, and is computed as one: oneDNN's convolutions
take up to twice as long at it, backward, and several times where the map is 1x1.

oneDNN is slow at the weights' gradient of depthwise convolutions on maps of 2x2 to 8x8. That gradient is a small sum:

    dL/dw[c, i, j] = sum_{b, y, x} g[b, c, y, x] * input[b, c, s y + i - p, s x + j - p]

All products of an output and an input pixel of a channel, summed over the batch, are one small matrix product a
channel; each entry then belongs to one kernel offset (i, j), or to none. The work grows with (pixels in) x (pixels
out), so only small maps take this way. Results differ from oneDNN's in the last digits.
"""

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

MAX_PRODUCTS = 64 * 64  # pixels in x pixels out of a channel; with more, oneDNN is as fast
MAX_PRODUCTS_3 = 16 * 16  # of kernels of 3x3, at which oneDNN is better


@cache
def offsets(size: tuple[int, int], out: tuple[int, int], kernel: int, stride: int, padding: int) -> Tensor:
    """Which kernel offset joins an output to an input pixel: 0 or 1, float (out pixels * in pixels, kernel^2)."""
    row, column = (
        torch.arange(size[axis])[None] - stride * torch.arange(out[axis])[:, None] + padding for axis in (0, 1)
    )  # (out, in) of one axis
    i, j = row[:, None, :, None], column[None, :, None, :]  # (out y, out x, in y, in x)
    inside = (i >= 0) & (i < kernel) & (j >= 0) & (j < kernel)
    number = torch.where(inside, i * kernel + j, kernel**2).flatten()
    return functional.one_hot(number, kernel**2 + 1)[:, :-1].float()


def weight_gradient(input: Tensor, grad: Tensor, kernel: int, stride: int, padding: int) -> Tensor:  # noqa: A002 - torch's name
    """The gradient of a depthwise convolution's weights.

    Args:
        input: (batch, channel, height, width).
        grad: of the output, (batch, channel, out height, out width).
        kernel: side of the kernel.
        stride: of both axes.
        padding: of both axes.

    Returns:
        (channel, 1, kernel, kernel).
    """
    channels = input.shape[1]
    # contiguous: bmm is twenty times slower on strided operands
    wanted = grad.flatten(2).permute(1, 2, 0).contiguous()  # (channel, out pixel, batch)
    seen = input.flatten(2).permute(1, 0, 2).contiguous()  # (channel, batch, in pixel)
    products = torch.bmm(wanted, seen).flatten(1)  # (channel, out pixel * in pixel)
    joined = offsets(tuple(input.shape[2:]), tuple(grad.shape[2:]), kernel, stride, padding)
    return (products @ joined.to(products)).reshape(channels, 1, kernel, kernel)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:  # noqa: A002 - torch's name
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(input, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        input, weight = ctx.saved_tensors  # noqa: A001 - likewise
        stride, padding = ctx.stride, ctx.padding
        sides = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], len(weight), [True, False, False])
        to_input = torch.ops.aten.convolution_backward(grad, input, weight, None, *sides)[0]
        return to_input, weight_gradient(input, grad, weight.shape[-1], stride, padding), None, None


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise `nn.Conv2d` whose weights' gradient takes the fast way where the maps are small."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as in nn.Module
        """As `nn.Conv2d`: (batch, channel, height, width) to (batch, channel, out height, out width)."""
        (side, _), (stride, _), (padding, _) = self.kernel_size, self.stride, cast(tuple[int, int], self.padding)
        height, width = input.shape[2:]
        pixels_out = ((height + 2 * padding - side) // stride + 1) * ((width + 2 * padding - side) // stride + 1)
        is_small = height * width * pixels_out <= (MAX_PRODUCTS if side > 3 else MAX_PRODUCTS_3)
        if self.training and is_small and _is_plain(input):
            return cast(Tensor, _Depthwise.apply(input, self.weight, stride, padding))
        return super().forward(input)


class PointwiseConv2d(nn.Conv2d):
    """A pointwise `nn.Conv2d` that is a matrix product where the map is in channels-last."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as in nn.Module
        """As `nn.Conv2d`: (batch, channel, height, width) to (batch, out channel, height, width)."""
        if self.training and _is_plain(input) and input.is_contiguous(memory_format=torch.channels_last):
            pixels = input.permute(0, 2, 3, 1)
            return functional.linear(pixels, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        return super().forward(input)


def speed_up(model: nn.Module) -> None:
    """Let a model's depthwise and pointwise convolutions train the fast way; weights and names stay."""
    for module in model.modules():
        if type(module) is not nn.Conv2d:
            continue
        if _is_plain_depthwise(module):
            module.__class__ = DepthwiseConv2d
        elif module.kernel_size == module.stride == (1, 1) and module.padding == (0, 0) and module.groups == 1:
            module.__class__ = PointwiseConv2d


def _is_plain(maps: Tensor) -> bool:
    return maps.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def _is_plain_depthwise(module: nn.Conv2d) -> bool:
    """Depthwise without bias or dilation, the same on both axes, padded with zeros."""
    is_depthwise = module.groups == module.in_channels == module.out_channels > 1
    is_bare = module.bias is None and module.dilation == (1, 1) and module.padding_mode == "zeros"
    sides = (module.kernel_size, module.stride, module.padding)
    return is_depthwise and is_bare and all(isinstance(side, tuple) and side[0] == side[1] for side in sides)
