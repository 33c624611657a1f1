"""Loops of a training step that PyTorch runs slower on CPUs, compiled by Numba for the processor at hand.

Maps are in channels-last: pixels of all images in a row, channels innermost. A loop runs on the thread that calls it
and in a fixed order, so the same processor gives the same bytes. Sums over pixels are taken in the maps' precision over
BLOCK rows, and in double precision over the blocks. A value that is not a number stays one.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import numba
import numpy as np

BLOCK = 64  # rows that are summed in the maps' precision
CHANNELS = 48  # that a depthwise kernel's gradient takes at a time: their sums stay in the nearest cache
IDENTITY, RELU, HARDSWISH = "identity", "relu", "hardswish"

Kernel = TypeVar("Kernel", bound=Callable[..., None])


def compiled(kernel: Kernel) -> Kernel:
    """A loop compiled at its first call and kept beside its source; only its rounding depends on the processor."""
    return cast(
        Kernel, numba.njit(cache=True, nogil=True, fastmath={"afn", "arcp", "contract", "nsz", "reassoc"})(kernel)
    )


@cache
def batch_norm(activation: str) -> tuple[Callable[..., None], Callable[..., None]]:
    """Batch normalisation and the activation behind it, y = a(scale x + shift) with scale = weight / deviation.

    One pass for the moments and one for the result, where separate layers need another two; backward likewise.
    `rows` of maps may hold several pixels, so that loops over few channels are long: the number of columns is a
    multiple of that of channels.

    Args:
        activation: IDENTITY, RELU or HARDSWISH.

    Returns:
        forward(x, weight, bias, eps, y, state): x and y (row, column); weight and bias (channel,); into `state`
            (4, channel) go mean, variance (of the batch, biased), scale and shift.
        backward(x, grad, eps, state, grad_x, grad_weight, grad_bias): shapes as above.
    """
    is_relu, is_hardswish = activation == RELU, activation == HARDSWISH

    @compiled
    def forward(x: Any, weight: Any, bias: Any, eps: float, y: Any, state: Any) -> None:
        rows, columns = x.shape
        channels = len(weight)
        first = x[0].copy()  # sums are of distances to it: no digits are lost where the mean is far from zero
        total, squares = np.zeros(columns), np.zeros(columns)
        some, some_squares = np.empty(columns, x.dtype), np.empty(columns, x.dtype)
        for start in range(0, rows, BLOCK):
            some[:] = 0
            some_squares[:] = 0
            for row in range(start, min(start + BLOCK, rows)):
                for column in range(columns):
                    distance = x[row, column] - first[column]
                    some[column] += distance
                    some_squares[column] += distance * distance
            for column in range(columns):
                total[column] += some[column]
                squares[column] += some_squares[column]
        scale, shift = np.empty(columns, x.dtype), np.empty(columns, x.dtype)
        for channel in range(channels):
            mean = variance = 0.0
            for column in range(channel, columns, channels):
                mean += first[column] + total[column] / rows
            mean /= columns // channels
            for column in range(channel, columns, channels):
                distance = first[column] - mean
                variance += squares[column] + distance * (2 * total[column] + rows * distance)
            variance /= rows * (columns // channels)
            variance = 0.0 if variance < 0 else variance
            state[0, channel], state[1, channel] = mean, variance
            state[2, channel] = weight[channel] / np.sqrt(variance + eps)
            state[3, channel] = bias[channel] - mean * state[2, channel]
            for column in range(channel, columns, channels):
                scale[column], shift[column] = state[2, channel], state[3, channel]
        for row in range(rows):
            for column in range(columns):
                value = x[row, column] * scale[column] + shift[column]
                if is_relu:
                    value = np.float32(0) if value < 0 else value
                elif is_hardswish:
                    gate = value + np.float32(3)
                    gate = np.float32(0) if gate < 0 else gate
                    gate = np.float32(6) if gate > 6 else gate
                    value = value * gate / np.float32(6)
                y[row, column] = value

    @compiled
    def backward(x: Any, grad: Any, eps: float, state: Any, grad_x: Any, grad_weight: Any, grad_bias: Any) -> None:
        def before(grad: Any, value: Any) -> Any:  # inside, since a compiled one would keep this loop out of the cache
            if is_relu:
                return np.float32(0) if value <= 0 else grad
            if is_hardswish:
                slope = value / np.float32(3) + np.float32(0.5)
                slope = np.float32(1) if value > 3 else slope
                slope = np.float32(0) if value < -3 else slope
                return grad * slope
            return grad

        rows, columns = x.shape
        channels = len(grad_weight)
        mean, scale, shift = np.empty(columns, x.dtype), np.empty(columns, x.dtype), np.empty(columns, x.dtype)
        for column in range(columns):
            channel = column % channels
            mean[column], scale[column], shift[column] = state[0, channel], state[2, channel], state[3, channel]
        total, products = np.zeros(columns), np.zeros(columns)
        some, some_products = np.empty(columns, x.dtype), np.empty(columns, x.dtype)
        for start in range(0, rows, BLOCK):
            some[:] = 0
            some_products[:] = 0
            for row in range(start, min(start + BLOCK, rows)):
                for column in range(columns):
                    value = x[row, column]
                    pull = before(grad[row, column], value * scale[column] + shift[column])
                    some[column] += pull
                    some_products[column] += pull * (value - mean[column])
            for column in range(columns):
                total[column] += some[column]
                products[column] += some_products[column]
        # d/dx = scale (pull - mean of pulls - (x - mean) / variance * mean of products): linear in x and pull
        slope, offset = np.empty(columns, x.dtype), np.empty(columns, x.dtype)
        for channel in range(channels):
            pulls = product = 0.0
            for column in range(channel, columns, channels):
                pulls += total[column]
                product += products[column]
            precision = 1 / (state[1, channel] + eps)
            grad_bias[channel] = pulls
            grad_weight[channel] = product * np.sqrt(precision)
            pixels = rows * (columns // channels)
            to_x = -state[2, channel] * precision * product / pixels
            constant = -state[2, channel] * pulls / pixels - to_x * state[0, channel]
            for column in range(channel, columns, channels):
                slope[column], offset[column] = to_x, constant
        for row in range(rows):
            for column in range(columns):
                value = x[row, column]
                pull = before(grad[row, column], value * scale[column] + shift[column])
                grad_x[row, column] = scale[column] * pull + slope[column] * value + offset[column]

    return forward, backward


@cache
def depthwise_gradient(kernel: int, stride: int) -> Callable[..., None]:
    """The gradient of a depthwise convolution's weights, for square kernels of this side and this stride.

        dL/dw[i, j, c] = sum_{b, y, x} grad[b, y, x, c] * maps[b, s y + i - p, s x + j - p, c]

    Returns:
        gradient(maps, grad, padding, grad_weight, first, end): maps (batch, height, width, channel), grad (batch,
            out height, out width, channel), into grad_weight (kernel * kernel, channel) from channel `first` on and
            before `end`.
    """

    @compiled
    def gradient(maps: Any, grad: Any, padding: int, grad_weight: Any, first: int, end: int) -> None:
        batch, height, width, _ = maps.shape
        out_height, out_width = grad.shape[1:3]
        pairs = (out_width + 1) // 2  # two output pixels at a time: half the reads and writes of the sums
        padded_height, padded_width = (out_height - 1) * stride + kernel, (2 * pairs - 1) * stride + kernel
        padded = np.zeros((padded_height, padded_width, CHANNELS), maps.dtype)
        pulls = np.zeros((out_height, 2 * pairs, CHANNELS), maps.dtype)
        sums = np.empty((kernel * kernel, CHANNELS), maps.dtype)
        for start in range(first, end, CHANNELS):
            some = min(CHANNELS, end - start)
            sums[:] = 0
            for image in range(batch):
                for y in range(min(height, padded_height - padding)):
                    for x in range(min(width, padded_width - padding)):
                        for channel in range(some):
                            padded[y + padding, x + padding, channel] = maps[image, y, x, start + channel]
                for y in range(out_height):
                    for x in range(out_width):
                        for channel in range(some):
                            pulls[y, x, channel] = grad[image, y, x, start + channel]
                for y in range(out_height):
                    for i in range(kernel):
                        for x in range(0, 2 * pairs, 2):
                            for j in range(kernel):
                                for channel in range(CHANNELS):
                                    sums[i * kernel + j, channel] += (
                                        pulls[y, x, channel] * padded[y * stride + i, x * stride + j, channel]
                                        + pulls[y, x + 1, channel]
                                        * padded[y * stride + i, x * stride + j + stride, channel]
                                    )
            for offset in range(kernel * kernel):
                for channel in range(some):
                    grad_weight[offset, start + channel] = sums[offset, channel]

    return gradient
