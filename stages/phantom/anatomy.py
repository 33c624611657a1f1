"""The body: patients, how one film catches them, and the outlines of their organs.

The tables below are the geometry of a chest. How much patients differ is `phantom.difficulty.anatomy` of params.yaml.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.core.schema import Difficulty
from stages.phantom.canvas import Canvas, curve, smooth

RIGHT, LEFT = 0, 1  # the patient's sides: RIGHT is drawn on the left of the film
SIGN = (-1.0, 1.0)  # direction from the midline to each side

# A lung's outline as (share of the half width, share of the height from apex to costophrenic angle). None stands for
# points of the dome, whose height is drawn per film: DOME gives (share of the half width, share of the dome's height).
OUTER_WALL = ((0.40, 0.0), (0.60, 0.03), (0.77, 0.12), (0.89, 0.28), (0.955, 0.48), (0.985, 0.68), (1.0, 0.86))
ANGLE = ((1.0, 0.97), (0.995, 1.0), (0.985, 0.985))
DOME = ((0.93, 0.48), (0.80, 0.84), (0.62, 1.0), (0.42, 0.96), (0.25, 0.76), (0.17, 0.62))
INNER_WALL = ((0.13, 0.72), (0.13, 0.55), (0.14, 0.35), (0.15, 0.20), (0.24, 0.05))
# The heart as (share of its width left or right of the midline, share of its height).
HEART_OUTLINE = (
    (-0.14, -0.20), (-0.17, 0.08), (-0.25, 0.30), (-0.33, 0.55), (-0.335, 0.82), (-0.24, 1.0), (0.05, 1.06),
    (0.38, 1.05), (0.58, 0.97), (0.655, 0.84), (0.625, 0.66), (0.53, 0.46), (0.40, 0.28), (0.29, 0.13),
    (0.22, -0.02), (0.15, -0.22),
)  # fmt: skip
TORSO = ((0.11, -0.08), (0.115, 0.02), (0.17, 0.07), (0.32, 0.115), (0.47, 0.17), (0.60, 0.26), (0.60, 0.36),
         (0.50, 0.42), (0.452, 0.52), (0.445, 0.70), (0.455, 0.85), (0.47, 1.08))  # fmt: skip


@dataclass(frozen=True)
class Anatomy:
    """One patient's chest: the same on all of the patient's films."""

    half_width: float  # of a lung at its base, from the midline
    apex: float
    height: float  # from apex to costophrenic angle
    dome: float  # height of the diaphragm's dome, share of the lung's height
    cardiothoracic: float  # width of the heart over that of the thorax
    heart_axis: float  # radians, positive lowers the apex
    mediastinum: float  # half width of the upper mediastinum
    knob: float  # radius of the aortic knob
    ribs: int
    rib_slope: float
    clavicle_tilt: float
    body: float  # factor on the torso's width
    fat: float  # thickness of soft tissue over the lungs
    breast: float  # 0 = none
    spine_bow: float
    gas: float  # radius of the stomach bubble
    vessels: int  # seed of the vessel tree
    rotation: float  # the patient's habitual tilt, radians

    @classmethod
    def of(cls, rng: np.random.Generator, sex: str, difficulty: Difficulty) -> Anatomy:
        """Draw a patient. `sex` is "F", "M" or anything else for unknown."""
        female = sex == "F" or (sex != "M" and rng.random() < 0.5)
        small = 0.97 if female else 1.0

        def vary(mean: float, spread: float, low: float, high: float) -> float:
            return float(np.clip(rng.normal(mean, spread * difficulty.anatomy), low, high))

        return cls(
            half_width=small * vary(0.375, 0.015, 0.33, 0.41),
            apex=vary(0.105, 0.012, 0.07, 0.14),
            height=small * vary(0.72, 0.025, 0.64, 0.78),
            dome=vary(0.175, 0.022, 0.11, 0.24),
            cardiothoracic=vary(0.445, 0.034, 0.35, 0.53),
            heart_axis=vary(0.05, 0.09, -0.2, 0.3),
            mediastinum=vary(0.060, 0.007, 0.045, 0.080),
            knob=vary(0.032, 0.006, 0.018, 0.046),
            ribs=int(rng.integers(9, 12)),
            rib_slope=vary(1.0, 0.15, 0.5, 1.5),
            clavicle_tilt=vary(0.0, 0.025, -0.06, 0.06),
            body=vary(1.0, 0.06, 0.9, 1.2),
            fat=vary(0.0, 0.035, -0.06, 0.09),
            breast=float(rng.uniform(0.4, 1.3)) if female else 0.0,
            spine_bow=vary(0.0, 0.006, -0.018, 0.018),
            gas=float(rng.uniform(0.0, 0.05)),
            vessels=int(rng.integers(2**31)),
            rotation=vary(0.0, 0.02, -0.06, 0.06),
        )


@dataclass
class Chest:
    """The chest on one film: the patient's anatomy after view, breath and findings have shaped it."""

    half_width: list[float]
    apex: float
    angle: list[float]  # y of each costophrenic angle
    dome: list[float]  # height of each dome, share of the lung's height
    cardiothoracic: float
    heart_axis: float
    mediastinum: float
    knob: float
    unfolding: float
    bow: float
    vessel_gain: float
    upper_vessel_gain: float
    hilum: list[float]
    airiness: float
    rib_slope: float

    def height(self, side: int) -> float:
        return self.angle[side] - self.apex

    def at(self, side: int, across: float, down: float) -> tuple[float, float]:
        """A point of a lung from its shares of half width and height."""
        return 0.5 + SIGN[side] * across * self.half_width[side], self.apex + down * self.height(side)

    def dome_y(self, side: int) -> float:
        return self.angle[side] - self.dome[side] * self.height(side)

    def hilum_at(self, side: int) -> tuple[float, float]:
        x, y = self.at(side, 0.25, 0.47 if side == LEFT else 0.50)
        return x, y

    def spine_x(self, y: np.ndarray) -> np.ndarray:
        return 0.5 + self.bow * np.sin(2.1 * np.pi * (y - 0.08))


def shape_chest(anatomy: Anatomy, view: str, rng: np.random.Generator) -> Chest:
    """The patient's chest as this film catches it, before any finding."""
    supine = view == "AP"
    breath = float(rng.normal(-0.050 if supine else 0.0, 0.018))
    base = anatomy.apex + anatomy.height + breath
    lift = float(np.clip(rng.normal(0.022, 0.010), 0.0, 0.05))  # the liver holds the right dome higher
    turn = float(rng.normal(0.0, 0.012))
    return Chest(
        half_width=[anatomy.half_width + turn, anatomy.half_width - turn],
        apex=anatomy.apex,
        angle=[base - 0.3 * lift, base],
        dome=[anatomy.dome + lift, anatomy.dome],
        cardiothoracic=anatomy.cardiothoracic + (0.030 if supine else 0.0) + float(rng.normal(0, 0.006)),
        heart_axis=anatomy.heart_axis - (0.04 if supine else 0.0),
        mediastinum=anatomy.mediastinum * (1.12 if supine else 1.0),
        knob=anatomy.knob,
        unfolding=0.0,
        bow=anatomy.spine_bow,
        vessel_gain=float(rng.uniform(0.85, 1.15)) * (1.1 if supine else 1.0),
        upper_vessel_gain=1.15 if supine else 1.0,
        hilum=[float(rng.uniform(0.85, 1.15)), float(rng.uniform(0.85, 1.15))],
        airiness=float(rng.normal(0.0, 0.03)) - (0.03 if supine else 0.0),
        rib_slope=anatomy.rib_slope,
    )


def lung_outline(chest: Chest, side: int) -> np.ndarray:
    height, dome = chest.height(side), chest.dome[side]
    shares = [*OUTER_WALL, *ANGLE, *((u, 1 - dome * v) for u, v in DOME), *INNER_WALL]
    outline = smooth(np.array([(SIGN[side] * u * chest.half_width[side], v * height) for u, v in shares]))
    placed: np.ndarray = outline + np.array((0.5, chest.apex))
    return placed


def heart_outline(chest: Chest) -> np.ndarray:
    width = chest.cardiothoracic * (chest.half_width[RIGHT] + chest.half_width[LEFT])
    bottom = max(chest.dome_y(RIGHT), chest.dome_y(LEFT)) + 0.035
    top = chest.apex + 0.43 * chest.height(LEFT)
    outline = smooth(np.array(HEART_OUTLINE)) * (width, bottom - top)
    c, s = np.cos(chest.heart_axis), np.sin(chest.heart_axis)
    turned = (outline - (0, (bottom - top) / 2)) @ np.array([[c, s], [-s, c]]) + (0, (bottom - top) / 2)
    turned[:, 0] *= width / (turned[:, 0].max() - turned[:, 0].min())  # the axis must not change the width
    placed: np.ndarray = turned + np.array((0.5, top))
    return placed


def mediastinum_outline(chest: Chest) -> np.ndarray:
    """The great vessels' outline, swaying with the spine."""
    w, top, bottom = chest.mediastinum, chest.apex, chest.apex + 0.66 * chest.height(LEFT)
    right = [(-0.8 * w, top - 0.2), (-0.8 * w, top), (-1.0 * w, top + 0.13), (-1.1 * w, top + 0.24), (-0.075, bottom)]
    left = [(0.095, bottom), (1.15 * w, top + 0.27), (1.15 * w, top + 0.20), (0.9 * w, top + 0.09), (0.75 * w, top),
            (0.8 * w, top - 0.2)]  # fmt: skip
    outline = smooth(np.array(right + left))
    return outline + np.stack([0.1 + 0.8 * chest.spine_x(outline[:, 1]), np.zeros(len(outline))], 1)


def rib_curves(chest: Chest, anatomy: Anatomy) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Posterior ribs, then anterior ones."""
    posterior, anterior = [], []
    top = chest.apex + 0.005
    spacing = (0.93 * chest.height(RIGHT)) / anatomy.ribs
    for i in range(anatomy.ribs + 1):
        y, down = top + i * spacing, (0.02 + 0.008 * i) * chest.rib_slope
        for side in (RIGHT, LEFT):
            s, w = SIGN[side], chest.half_width[side]
            reach = w * min(1.02, 0.62 + 0.11 * i)
            x0 = float(chest.spine_x(np.array(y))) + s * 0.028
            posterior.append(
                curve((x0, y), (0.5 + s * 0.45 * reach, y - 0.022), (0.5 + s * 0.95 * reach, y + 0.5 * down),
                       (0.5 + s * reach, y + 0.045 + 1.7 * down))
            )  # fmt: skip
            if i < anatomy.ribs - 3:
                start = y + 0.045 + 1.7 * down
                anterior.append(
                    curve((0.5 + s * reach, start), (0.5 + s * 0.92 * reach, start + 0.065),
                           (0.5 + s * 0.60 * reach, start + 0.075), (0.5 + s * 0.36 * w, start + 0.055 + 2.2 * down))
                )  # fmt: skip
    return posterior, anterior


def vessel_tree(chest: Chest, seed: int) -> list[list[np.ndarray]]:
    """Branches from both hila in three orders, thickest first; each a short curve."""
    rng = np.random.default_rng(seed)
    orders: list[list[np.ndarray]] = []
    fan = np.array([-1.35, -0.95, -0.45, 0.0, 0.45, 0.85, 1.15, 1.45])
    start = np.concatenate([np.tile(chest.hilum_at(s), (8, 1)) for s in (RIGHT, LEFT)])
    sign = np.repeat(SIGN, 8)
    angle = np.tile(fan, 2) + rng.normal(0, 0.15, 16)
    length = rng.uniform(0.055, 0.095, 16) * (1 + 0.35 * np.abs(np.sin(angle)))
    for shrink in (1.0, 0.85, 0.75, 0.7):
        bend = rng.normal(0, 0.30, len(start))
        step = np.stack([sign * np.cos(angle), np.sin(angle)], 1) * length[:, None]
        end = start + np.stack([sign * np.cos(angle + bend), np.sin(angle + bend)], 1) * length[:, None]
        orders.append(list(np.stack([start, start + 0.5 * step, end], 1)))
        start, sign = np.repeat(end, 2, 0), np.repeat(sign, 2)
        angle = np.repeat(angle + bend, 2) + np.tile((0.30, -0.30), len(end)) + rng.normal(0, 0.15, 2 * len(end))
        length = np.repeat(length, 2) * shrink * rng.uniform(0.75, 1.15, 2 * len(end))
    return orders


def aorta_mask(canvas: Canvas, chest: Chest) -> np.ndarray:
    y = chest.apex + 0.235 * chest.height(LEFT)
    x = 0.5 + 0.85 * chest.mediastinum + 0.10 * chest.knob
    arch = canvas.disc((x, y), 1.25 * chest.knob, 0.45, 0.5 * np.pi, 0.85)
    if chest.unfolding > 0:
        foot = chest.dome_y(LEFT)
        bend = x + (0.012 + 0.035 * chest.unfolding)
        run = canvas.strokes([curve((x, y), (bend + 0.02, y + 0.08), (bend, y + 0.22), (0.52, foot))], 1.5 * chest.knob)
        arch = np.maximum(arch, 0.75 * canvas.blur(run, 0.006))
    return arch


def hilum_mask(canvas: Canvas, chest: Chest, side: int) -> np.ndarray:
    x, y = chest.hilum_at(side)
    swell = chest.hilum[side]
    return canvas.glow((x - SIGN[side] * 0.012, y), (0.028 * swell, 0.048 * swell), SIGN[side] * 0.25)
