"""Masks on the grid of a film, and smooth curves through few points.

Coordinates are fractions of the film's side, x to the right (the patient's left side is on the right of the film), y
downwards.
"""

from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np

Box = tuple[float, float, float, float]  # x, y, width, height in shares of the side
SUBPIXEL_BITS = 4


@lru_cache(maxsize=16)
def _closed_basis(points: int, between: int = 6) -> np.ndarray:
    """Catmull-Rom weights that turn a closed polygon of `points` into a smooth one."""
    t = np.arange(between) / between
    rows = np.stack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3]) / 2
    basis = np.zeros((points * between, points))
    for p in range(points):
        for k in range(4):
            basis[p * between : (p + 1) * between, (p + k - 1) % points] += rows[k]
    return basis


@lru_cache(maxsize=8)
def _bezier_basis(points: int, steps: int = 12) -> np.ndarray:
    t = np.linspace(0, 1, steps)[:, None]
    k = np.arange(points)
    binomial = np.array([1.0] + [np.prod([(points - 1 - j) / (j + 1) for j in range(i)]) for i in range(1, points)])
    return binomial * t**k * (1 - t) ** (points - 1 - k)


def smooth(points: np.ndarray | tuple[tuple[float, float], ...]) -> np.ndarray:
    points = np.asarray(points)
    smoothed: np.ndarray = _closed_basis(len(points)) @ points
    return smoothed


def curve(*points: tuple[float, float]) -> np.ndarray:
    smoothed: np.ndarray = _bezier_basis(len(points)) @ np.asarray(points)
    return smoothed


@lru_cache(maxsize=8)
def unit_grid(size_px: int) -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px
    x, y = np.meshgrid(axis, axis)
    return x, y


class Canvas:
    """Masks in [0, 1] on the film's grid, drawn in body coordinates under the film's tilt and shift."""

    def __init__(
        self, size_px: int, tilt: float = 0.0, zoom: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        self.size_px = size_px
        self.tilt = tilt
        self.forward = zoom * np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
        self.zoom = zoom
        self.offset = np.array([0.5 + shift[0], 0.5 + shift[1]])
        back = np.linalg.inv(self.forward).astype(np.float32)
        x, y = unit_grid(size_px)
        dx, dy = x - np.float32(self.offset[0]), y - np.float32(self.offset[1])
        self.x = back[0, 0] * dx + back[0, 1] * dy + np.float32(0.5)
        self.y = back[1, 0] * dx + back[1, 1] * dy + np.float32(0.5)

    def _fixed_point(self, points: np.ndarray) -> np.ndarray:
        unit = (np.asarray(points) - 0.5) @ self.forward.T + self.offset
        pixels: np.ndarray = np.round((unit * self.size_px - 0.5) * (1 << SUBPIXEL_BITS)).astype(np.int32)
        return pixels

    def fill(self, outline: np.ndarray) -> np.ndarray:
        mask = np.zeros((self.size_px, self.size_px), np.uint8)
        cv2.fillPoly(mask, [self._fixed_point(outline)], 255, cv2.LINE_AA, SUBPIXEL_BITS)
        return mask * np.float32(1 / 255)

    def strokes(self, curves: list[np.ndarray], width: float, closed: bool = False) -> np.ndarray:
        """Lines of a width given as a share of the side; thinner than a pixel they fade instead."""
        width_px = width * self.size_px * self.zoom
        thickness = max(1, round(width_px))
        mask = np.zeros((self.size_px, self.size_px), np.uint8)
        ends = np.cumsum([0, *(len(curve) for curve in curves)])
        flat = self._fixed_point(np.concatenate(curves))
        points = [flat[start:end] for start, end in pairwise(ends.tolist())]
        cv2.polylines(mask, points, closed, 255, thickness, cv2.LINE_AA, SUBPIXEL_BITS)
        return mask * np.float32(min(1.0, width_px / thickness) / 255)

    def blur(self, mask: np.ndarray, sigma: float) -> np.ndarray:
        sigma_px = sigma * self.size_px
        if sigma_px < 0.25:
            return mask
        if sigma_px < 3:
            return cv2.GaussianBlur(mask, (0, 0), sigma_px, borderType=cv2.BORDER_REPLICATE)
        side = 2 * round(sigma_px * 0.87) + 1  # three boxes of this side have the wanted variance
        for _ in range(3):
            mask = cv2.blur(mask, (side, side), borderType=cv2.BORDER_REPLICATE)
        return mask

    def _window(self, centre: tuple[float, float], reach: float) -> tuple[slice, slice]:
        """Rows and columns within `reach` of a point: the only ones worth computing."""
        x, y = ((np.array(centre) - 0.5) @ self.forward.T + self.offset).tolist()
        low, high = ([int((v + sign * reach * self.zoom) * self.size_px + sign) for v in (y, x)] for sign in (-1, 1))
        rows, columns = (slice(max(0, a), max(0, b)) for a, b in zip(low, high, strict=True))
        return rows, columns

    def _distance(
        self, window: tuple[slice, slice], centre: tuple[float, float], radii: tuple[float, float], turn: float
    ) -> np.ndarray:
        """Squared distance from a point, in units of an ellipse's radii, on a window of the film."""
        dx, dy = self.x[window] - np.float32(centre[0]), self.y[window] - np.float32(centre[1])
        c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
        along, across = (c * dx + s * dy) * np.float32(1 / radii[0]), (c * dy - s * dx) * np.float32(1 / radii[1])
        squared: np.ndarray = along * along + across * across
        return squared

    def glow(self, centre: tuple[float, float], radii: tuple[float, float], turn: float = 0.0) -> np.ndarray:
        """A bell-shaped patch, half bright at the ellipse of these radii; beyond 3.5 radii it is nothing."""
        window = self._window(centre, 3.5 * max(radii))
        shadow: np.ndarray = np.zeros_like(self.x)
        shadow[window] = np.exp(np.float32(-np.log(2)) * self._distance(window, centre, radii, turn))
        return shadow

    def disc(
        self, centre: tuple[float, float], radius: float, edge: float = 0.35, turn: float = 0.0, squeeze: float = 1.0
    ) -> np.ndarray:
        """A ball's shadow: 1 in the middle, falling over the outer `edge` share of the radius."""
        edge = max(edge, 0.8 / (radius * self.size_px))
        window = self._window(centre, radius * max(1.0, squeeze) * (1 + edge / 2))
        r = np.sqrt(self._distance(window, centre, (radius, radius * squeeze), turn))
        ramp = np.clip((1 + edge / 2 - r) * np.float32(1 / edge), 0, 1)
        shadow: np.ndarray = np.zeros_like(self.x)
        shadow[window] = ramp * ramp * (3 - 2 * ramp)
        return shadow

    def texture(self, rng: np.random.Generator, grain: float) -> np.ndarray:
        """Smooth noise of mean 0 and about unit variance whose spots are `grain` of the side wide."""
        cells = max(3, round(1 / grain))
        coarse = rng.standard_normal((cells, cells), dtype=np.float32)
        return cv2.resize(coarse, (self.size_px, self.size_px), interpolation=cv2.INTER_CUBIC)

    def box(self, mask: np.ndarray, level: float = 0.35) -> list[Box]:
        """The box around what exceeds a share of the mask's peak; none for an empty mask."""
        peak = float(mask.max())
        if peak < 0.02:
            return []
        x, y, w, h = cv2.boundingRect((mask >= level * peak).astype(np.uint8))
        return [(x / self.size_px, y / self.size_px, w / self.size_px, h / self.size_px)]
