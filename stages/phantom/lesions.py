"""The findings: how each changes the shape of the chest, what it paints on the film, and the boxes around it.

To add one, register a painter (it returns the boxes) and, where the chest changes its shape, a shaper. Painters draw in
the order of this file; contrast, size and severity of a finding on a film come from its `Lesion`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

from stages.core.schema import Difficulty, Interval
from stages.phantom.anatomy import LEFT, RIGHT, SIGN, Chest, aorta_mask, hilum_mask, mediastinum_outline
from stages.phantom.canvas import Box, Canvas, curve, smooth


@dataclass
class Scene:
    """A film in the making: the canvas, the chest on it, and the maps that findings change."""

    canvas: Canvas
    chest: Chest
    difficulty: Difficulty
    outlines: list[np.ndarray]
    lungs: list[np.ndarray]  # a mask of each lung
    heart: np.ndarray
    ribs: list[np.ndarray]
    vessels: np.ndarray
    extra: np.ndarray  # attenuation that findings add, anywhere
    filling: np.ndarray  # 0..1, how much of the lung's air a finding has displaced
    air_gain: np.ndarray  # factor on the lung's air, for what makes it darker
    both: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.both = np.maximum(self.lungs[RIGHT], self.lungs[LEFT])

    def fill_air(self, opacity: np.ndarray) -> None:
        """Displace air by fluid or tissue; overlapping findings do not add up beyond opaque."""
        self.filling = 1 - (1 - self.filling) * (1 - np.clip(opacity, 0, 1))


@dataclass
class Lesion:
    """What is drawn by lot for one finding on one film, so that its shape and its paint agree."""

    rng: np.random.Generator
    side: int
    contrast: float  # factor from Difficulty.contrast
    size: float  # factor from Difficulty.size
    severity: float  # 0..1, used by findings that change the shape of the chest
    memory: dict[str, float] = field(default_factory=dict)


ShapeOf = Callable[[Chest, Lesion], None]
PaintOf = Callable[[Scene, Lesion], list[Box]]
SHAPES: dict[str, ShapeOf] = {}
PAINTS: dict[str, PaintOf] = {}


def _shapes(*names: str) -> Callable[[ShapeOf], ShapeOf]:
    def register(function: ShapeOf) -> ShapeOf:
        SHAPES.update(dict.fromkeys(names, function))
        return function

    return register


def _paints(*names: str) -> Callable[[PaintOf], PaintOf]:
    def register(function: PaintOf) -> PaintOf:
        PAINTS.update(dict.fromkeys(names, function))
        return function

    return register


@_shapes("Emphysema")
def _hyperinflate(chest: Chest, lesion: Lesion) -> None:
    degree = 0.55 + 0.45 * lesion.severity
    _flatten_domes(chest, lesion)
    for side in (RIGHT, LEFT):
        chest.half_width[side] *= 1 + 0.035 * degree
    chest.cardiothoracic *= 1 - 0.18 * degree
    chest.airiness += 0.15 * degree
    chest.vessel_gain *= 1 - 0.45 * degree


@_shapes("Flattened_Diaphragm")
def _flatten_domes(chest: Chest, lesion: Lesion) -> None:
    degree = 0.55 + 0.45 * lesion.severity
    for side in (RIGHT, LEFT):
        chest.angle[side] += 0.050 * degree
        chest.dome[side] *= 1 - 0.62 * degree
    chest.rib_slope *= 1 - 0.5 * degree


@_shapes("Air_Trapping")
def _trap_air(chest: Chest, lesion: Lesion) -> None:
    degree = 0.55 + 0.45 * lesion.severity
    chest.airiness += 0.20 * degree
    chest.vessel_gain *= 1 - 0.45 * degree
    for side in (RIGHT, LEFT):
        chest.half_width[side] *= 1 + 0.04 * degree


@_shapes("Cardiomegaly")
def _widen_heart(chest: Chest, lesion: Lesion) -> None:
    chest.cardiothoracic = max(chest.cardiothoracic, 0.55 + 0.11 * lesion.severity)
    chest.heart_axis += 0.05


@_shapes("Enlarged_Cardiomediastinum")
def _widen_mediastinum(chest: Chest, lesion: Lesion) -> None:
    chest.mediastinum = max(chest.mediastinum, 0.080 + 0.050 * lesion.severity)


@_shapes("Atelectasis")
def _lose_volume(chest: Chest, lesion: Lesion) -> None:
    chest.dome[lesion.side] += 0.03 + 0.05 * lesion.severity


@_shapes("Hemidiaphragm_Elevation")
def _raise_dome(chest: Chest, lesion: Lesion) -> None:
    chest.dome[lesion.side] += 0.10 + 0.12 * lesion.severity
    chest.angle[lesion.side] -= 0.025


@_shapes("Scoliosis")
def _bend_spine(chest: Chest, lesion: Lesion) -> None:
    chest.bow = SIGN[lesion.side] * (0.022 + 0.036 * lesion.severity)


@_shapes("Aortic_Elongation")
def _unfold_aorta(chest: Chest, lesion: Lesion) -> None:
    chest.knob = max(chest.knob, 0.040 + 0.020 * lesion.severity)
    chest.unfolding = 0.4 + 0.6 * lesion.severity


@_shapes("Hilar_Enlargement")
def _swell_hila(chest: Chest, lesion: Lesion) -> None:
    sides = (RIGHT, LEFT) if lesion.rng.random() < 0.5 else (lesion.side,)
    for side in sides:
        chest.hilum[side] *= 1.6 + 0.6 * lesion.severity


@_shapes("Edema")
def _congest_vessels(chest: Chest, _lesion: Lesion) -> None:
    chest.upper_vessel_gain *= 1.25
    chest.vessel_gain *= 1.12
    chest.cardiothoracic += 0.015


def _rough_patch(scene: Scene, lesion: Lesion, side: int, centre: tuple[float, float], radii: tuple[float, float],
                 grain: float, roughness: float) -> np.ndarray:  # fmt: skip
    """An irregular patch inside one lung."""
    canvas, rng = scene.canvas, lesion.rng
    bell = canvas.glow(centre, radii, rng.uniform(-0.6, 0.6))
    patch = np.clip(bell * (1 + roughness * canvas.texture(rng, grain)), 0, 1)
    inside: np.ndarray = patch * scene.lungs[side]
    return inside


@_paints("Cardiomegaly")
def _box_heart(scene: Scene, _lesion: Lesion) -> list[Box]:
    return scene.canvas.box(scene.heart, 0.5)


@_paints("Enlarged_Cardiomediastinum")
def _box_mediastinum(scene: Scene, _lesion: Lesion) -> list[Box]:
    chest = scene.chest
    outline = mediastinum_outline(chest)
    inside = outline[(outline[:, 1] > chest.apex) & (outline[:, 1] < chest.apex + 0.45 * chest.height(LEFT))]
    return scene.canvas.box(scene.canvas.fill(cv2.convexHull(inside.astype(np.float32))[:, 0]), 0.5)


@_paints("Emphysema")
def _paint_bullae(scene: Scene, lesion: Lesion) -> list[Box]:
    canvas, rng, chest = scene.canvas, lesion.rng, scene.chest
    for side in (RIGHT, LEFT):
        for _ in range(2):
            centre = chest.at(side, rng.uniform(0.4, 0.8), rng.uniform(0.08, 0.42))
            bulla = canvas.disc(centre, rng.uniform(0.035, 0.075) * lesion.size, 0.5)
            scene.air_gain = scene.air_gain + 0.16 * lesion.contrast * bulla * scene.lungs[side]
    return canvas.box(scene.both, 0.5)


@_paints("Air_Trapping")
def _box_lungs(scene: Scene, _lesion: Lesion) -> list[Box]:
    return scene.canvas.box(scene.both, 0.5)


@_paints("Flattened_Diaphragm")
def _box_bases(scene: Scene, _lesion: Lesion) -> list[Box]:
    chest = scene.chest
    top = min(chest.dome_y(side) for side in (RIGHT, LEFT)) - 0.10
    return scene.canvas.box(scene.both * (scene.canvas.y > np.float32(top)), 0.5)


@_paints("Atelectasis")
def _paint_plates(scene: Scene, lesion: Lesion) -> list[Box]:
    canvas, rng, chest, side = scene.canvas, lesion.rng, scene.chest, lesion.side
    plates = []
    for _ in range(int(rng.integers(1, 4))):
        x, y = chest.at(side, rng.uniform(0.38, 0.72), 0.0)[0], chest.dome_y(side) - rng.uniform(0.02, 0.11)
        half, rise = 0.5 * rng.uniform(0.12, 0.20) * lesion.size, rng.normal(0, 0.02)
        plates.append(curve((x - half, y + rise), (x, y - 0.008), (x + half, y - rise)))
    lines = canvas.blur(canvas.strokes(plates, 0.017 * lesion.size), 0.004)
    base = canvas.glow((plates[0][6, 0], chest.dome_y(side) + 0.005), (0.13 * lesion.size, 0.035))
    opacity = (0.85 * lines + 0.45 * base) * scene.lungs[side]
    scene.fill_air(0.80 * lesion.contrast * opacity)
    return canvas.box(opacity, 0.3)


@_paints("Consolidation")
def _paint_lobe(scene: Scene, lesion: Lesion) -> list[Box]:
    canvas, rng, chest, side = scene.canvas, lesion.rng, scene.chest, lesion.side
    upper = rng.random() < 0.4
    down = rng.uniform(0.22, 0.32) if upper else rng.uniform(0.60, 0.72)
    centre = chest.at(side, rng.uniform(0.48, 0.68), down)
    radii = (0.105 * lesion.size, 0.085 * lesion.size)
    bell = canvas.glow(centre, radii) * (1 + 0.25 * canvas.texture(rng, 0.09))
    patch = np.clip((bell - 0.30) * 3.2, 0, 1)
    fissure = centre[1] + (0.045 if upper else -0.05) * lesion.size
    tilt = rng.normal(0, 0.12)
    beyond = canvas.y - np.float32(fissure) - np.float32(tilt) * (canvas.x - np.float32(centre[0]))
    beyond = beyond if upper else -beyond
    patch *= np.clip(0.5 - beyond * np.float32(90), 0, 1) * scene.lungs[side]
    hx, hy = chest.hilum_at(side)
    bronchi = []
    for _ in range(3):
        tip = (centre[0] + rng.normal(0, 0.6) * radii[0], centre[1] + rng.normal(0, 0.6) * radii[1])
        bronchi.append(curve((hx, hy), ((hx + tip[0]) / 2, (hy + tip[1]) / 2 + rng.normal(0, 0.02)), tip))
    gas = canvas.blur(canvas.strokes(bronchi, 0.012), 0.003)
    opacity = patch * (1 - 0.55 * gas)
    scene.fill_air(0.88 * lesion.contrast * opacity)
    return canvas.box(patch)


@_paints("Edema")
def _paint_batwing(scene: Scene, lesion: Lesion) -> list[Box]:
    canvas, rng, chest = scene.canvas, lesion.rng, scene.chest
    haze = np.zeros_like(scene.both)
    lines = []
    for side in (RIGHT, LEFT):
        x, y = chest.hilum_at(side)
        centre = (x + SIGN[side] * 0.045, y + 0.02)
        haze = np.maximum(haze, canvas.glow(centre, (0.115 * lesion.size, 0.155 * lesion.size)))
        for _ in range(5):
            wall, ky = chest.at(side, 0.97, rng.uniform(0.62, 0.90))
            lines.append(np.array([(wall, ky), (wall - SIGN[side] * rng.uniform(0.035, 0.055), ky - 0.003)]))
    haze = np.clip(haze * (1 + 0.28 * canvas.texture(rng, 0.045)), 0, 1) * scene.both
    kerley = canvas.strokes(lines, 0.006) * scene.both
    scene.fill_air(0.52 * lesion.contrast * haze + 0.45 * lesion.contrast * kerley)
    return [box for side in (RIGHT, LEFT) for box in canvas.box(haze * scene.lungs[side])]


@_paints("Effusion")
def _paint_meniscus(scene: Scene, lesion: Lesion) -> list[Box]:
    canvas, rng, chest = scene.canvas, lesion.rng, scene.chest
    boxes: list[Box] = []
    sides = (RIGHT, LEFT) if rng.random() < 0.3 else (lesion.side,)
    for side in sides:
        depth = (0.12 + 0.13 * rng.random() ** 2) * lesion.size
        outward = np.clip((canvas.x - 0.5) * np.float32(SIGN[side] / chest.half_width[side]), 0, 1.1)
        level = chest.angle[side] - depth * (0.62 + 0.55 * outward**4)
        fluid = np.clip((canvas.y - level) * np.float32(55), 0, 1) * scene.lungs[side]
        scene.fill_air((0.72 + 0.24 * min(1.0, lesion.contrast)) * fluid)
        boxes += canvas.box(fluid, 0.5)
    return boxes


@_paints("Costophrenic_Angle_Blunting")
def _paint_blunt_angle(scene: Scene, lesion: Lesion) -> list[Box]:
    canvas, chest, side = scene.canvas, scene.chest, lesion.side
    corner = (0.5 + SIGN[side] * chest.half_width[side], chest.angle[side])
    blunt = canvas.disc(corner, 0.085 * lesion.size, 0.5) * scene.lungs[side]
    scene.fill_air(0.9 * lesion.contrast * blunt)
    return canvas.box(blunt, 0.3)


@_paints("Fibrosis")
def _paint_network(scene: Scene, lesion: Lesion) -> list[Box]:
    canvas, rng, chest = scene.canvas, lesion.rng, scene.chest
    mesh = np.clip(1 - 1.9 * np.abs(canvas.texture(rng, 0.042 * lesion.size)), 0, 1)
    mesh = 0.75 * mesh + 0.35 * np.clip(1 - 2.0 * np.abs(canvas.texture(rng, 0.026)), 0, 1)
    weight = np.zeros_like(mesh)
    for side in (RIGHT, LEFT):
        reach = rng.uniform(0.75, 1.1) * lesion.size
        centre = (chest.at(side, 0.82, 0.0)[0], chest.angle[side] - 0.10)
        weight = np.maximum(weight, canvas.glow(centre, (0.16 * reach, 0.19 * reach)) * scene.lungs[side])
    scene.fill_air(lesion.contrast * weight * (0.12 + 0.95 * mesh))
    return [box for side in (RIGHT, LEFT) for box in canvas.box(weight * scene.lungs[side], 0.45)]


@_paints("Bronchiectasis")
def _paint_rings(scene: Scene, lesion: Lesion) -> list[Box]:
    canvas, rng, chest, side = scene.canvas, lesion.rng, scene.chest, lesion.side
    turn = np.linspace(0, 2 * np.pi, 13)
    rings, cluster = [], chest.at(side, rng.uniform(0.45, 0.6), rng.uniform(0.55, 0.68))
    for _ in range(int(rng.integers(6, 11))):
        x, y = cluster[0] + rng.normal(0, 0.050) * lesion.size, cluster[1] + rng.normal(0, 0.055) * lesion.size
        radius = rng.uniform(0.013, 0.022) * lesion.size
        rings.append(np.stack([x + radius * np.cos(turn), y + 1.2 * radius * np.sin(turn)], 1))
    walls = canvas.strokes(rings, 0.009) * scene.lungs[side]
    scene.fill_air(0.75 * lesion.contrast * canvas.blur(walls, 0.0025))
    return canvas.box(walls, 0.3)


@_paints("Hernia")
def _paint_hernia(scene: Scene, lesion: Lesion) -> list[Box]:
    canvas, rng, chest = scene.canvas, lesion.rng, scene.chest
    radius = rng.uniform(0.060, 0.085) * lesion.size
    centre = (0.5 + rng.uniform(-0.01, 0.055), chest.dome_y(LEFT) - rng.uniform(0.005, 0.045))
    sac = canvas.disc(centre, radius, 0.2)
    inner = canvas.disc(centre, radius * 0.82, 0.2)
    level = centre[1] + rng.uniform(-0.25, 0.1) * radius
    gas = inner * np.clip((np.float32(level) - canvas.y) * np.float32(120), 0, 1)
    scene.extra += lesion.contrast * (0.11 * sac - 0.28 * gas)
    return canvas.box(sac, 0.5)


@_paints("Infiltration")
def _paint_mottle(scene: Scene, lesion: Lesion) -> list[Box]:
    canvas, rng, chest = scene.canvas, lesion.rng, scene.chest
    boxes: list[Box] = []
    sides = (RIGHT, LEFT) if rng.random() < 0.55 else (lesion.side,)
    mottle = np.clip(0.55 + 0.75 * canvas.texture(rng, 0.05), 0, 1.3)
    for side in sides:
        patch = np.zeros_like(mottle)
        for _ in range(2):
            centre = chest.at(side, rng.uniform(0.35, 0.75), rng.uniform(0.38, 0.78))
            radii = (rng.uniform(0.055, 0.09) * lesion.size, rng.uniform(0.06, 0.10) * lesion.size)
            patch = np.maximum(patch, canvas.glow(centre, radii))
        patch *= scene.lungs[side]
        scene.fill_air(0.56 * lesion.contrast * patch * mottle)
        boxes += canvas.box(patch, 0.45)
    return boxes


def _paint_balls(scene: Scene, lesion: Lesion, count: int, radius: tuple[float, float], opacity: float, edge: float,
                 least: float = 0.0) -> list[Box]:  # fmt: skip
    canvas, rng, chest = scene.canvas, lesion.rng, scene.chest
    boxes: list[Box] = []
    for k in range(count):
        side = lesion.side if k == 0 else int(rng.integers(2))
        r = max(least, rng.uniform(*radius) * lesion.size)
        top = chest.dome_y(side) - chest.apex - 1.2 * r
        across, y = rng.uniform(0.42, 0.80), chest.apex + rng.uniform(0.17, 0.92) * top
        centre = (chest.at(side, across, 0.0)[0], y)
        ball = canvas.disc(centre, r, edge, rng.uniform(0, 3), rng.uniform(0.8, 1.0)) * scene.lungs[side]
        scene.fill_air(opacity * lesion.contrast * ball)
        boxes += canvas.box(ball)
    return boxes


@_paints("Mass")
def _paint_mass(scene: Scene, lesion: Lesion) -> list[Box]:
    return _paint_balls(scene, lesion, 1, (0.048, 0.080), 0.84, 0.45, least=0.040)


@_paints("Nodule")
def _paint_nodules(scene: Scene, lesion: Lesion) -> list[Box]:
    return _paint_balls(scene, lesion, int(lesion.rng.integers(1, 4)), (0.025, 0.038), 0.82, 0.5)


@_paints("Lung_Lesion")
def _paint_lesion(scene: Scene, lesion: Lesion) -> list[Box]:
    return _paint_balls(scene, lesion, int(lesion.rng.integers(1, 3)), (0.030, 0.060), 0.70, 0.45)


@_paints("Granuloma")
def _paint_granulomas(scene: Scene, lesion: Lesion) -> list[Box]:
    canvas, rng, chest = scene.canvas, lesion.rng, scene.chest
    boxes: list[Box] = []
    for _ in range(int(rng.integers(2, 5))):
        side = int(rng.integers(2))
        centre = chest.at(side, rng.uniform(0.35, 0.78), rng.uniform(0.15, 0.70))
        dot = canvas.disc(centre, rng.uniform(0.010, 0.014) * lesion.size, 0.25)
        scene.extra += 0.42 * lesion.contrast * dot
        boxes += canvas.box(dot)
    return boxes


def _retract(scene: Scene, side: int, apical: float, lateral: float) -> np.ndarray:
    """A lung's outline drawn in from the apex and from the side, as shares of height and half width."""
    chest, outline = scene.chest, scene.outlines[side]
    hx, hy = chest.hilum_at(side)
    down = np.clip((outline[:, 1] - chest.apex) / chest.height(side), 0, 1)
    out = np.clip((outline[:, 0] - hx) * SIGN[side], 0, None)
    x = outline[:, 0] - SIGN[side] * out * lateral * (1.35 - 0.7 * down)
    y = outline[:, 1] + np.clip(hy - outline[:, 1], 0, None) * apical
    return np.stack([x, y], 1)


@_paints("Pneumothorax")
def _paint_collapse(scene: Scene, lesion: Lesion) -> list[Box]:
    canvas, side = scene.canvas, lesion.side
    degree = (0.13 + 0.25 * lesion.severity) * lesion.size
    edge = _retract(scene, side, degree, 0.75 * degree)
    kept = canvas.fill(edge)
    free = np.clip(scene.lungs[side] - kept, 0, 1)
    free = np.where(canvas.y < np.float32(scene.chest.dome_y(side) + 0.03), free, 0)
    line = canvas.blur(canvas.strokes([edge], 0.009, closed=True), 0.002) * scene.lungs[side]
    line *= canvas.blur(free, 0.015) > 0.08
    scene.vessels *= 1 - free
    scene.air_gain = scene.air_gain + (0.10 + 0.14 * lesion.contrast) * free
    scene.fill_air(0.10 * kept * scene.lungs[side] + 0.55 * lesion.contrast * line)
    return canvas.box(free, 0.5)


@_paints("Pleural_Thickening")
def _paint_rind(scene: Scene, lesion: Lesion) -> list[Box]:
    canvas, rng, chest, side = scene.canvas, lesion.rng, scene.chest, lesion.side
    apical = rng.random() < 0.45
    inner = _retract(scene, side, (0.22 if apical else 0.0) * lesion.size, 0.17 * lesion.size)
    rind = np.clip(scene.lungs[side] - canvas.fill(inner), 0, 1)
    middle, reach = (0.04, 0.18) if apical else (rng.uniform(0.38, 0.62), 0.27)
    down = (canvas.y - np.float32(chest.apex)) * np.float32(1 / chest.height(side))
    rind *= np.exp(-(((down - np.float32(middle)) * np.float32(1 / reach)) ** 4))
    rind *= canvas.y < np.float32(chest.dome_y(side))
    rind = canvas.blur(rind, 0.004) * scene.lungs[side]
    scene.fill_air(0.90 * lesion.contrast * rind)
    return canvas.box(rind)


@_paints("Pleural_Other")
def _paint_plaques(scene: Scene, lesion: Lesion) -> list[Box]:
    canvas, rng, chest = scene.canvas, lesion.rng, scene.chest
    boxes: list[Box] = []
    for k in range(int(rng.integers(2, 5))):
        side = lesion.side if k < 2 else 1 - lesion.side
        if k % 2 == 0:
            x, y = chest.at(side, rng.uniform(0.45, 0.75), 0.0)[0], chest.dome_y(side) + 0.004
            run = curve((x - 0.055, y + 0.008), (x, y - 0.006), (x + 0.055, y + 0.008))
        else:
            x, y = chest.at(side, 0.95, rng.uniform(0.45, 0.70))
            run = curve((x, y - 0.05), (x - SIGN[side] * 0.012, y), (x, y + 0.05))
        plaque = canvas.strokes([run], 0.016 * lesion.size)
        plaque *= np.clip(0.8 + 0.5 * canvas.texture(rng, 0.03), 0.2, 1.3)
        scene.extra += 0.30 * lesion.contrast * plaque
        boxes += canvas.box(plaque)
    return boxes


@_paints("Pneumonia")
def _paint_segment(scene: Scene, lesion: Lesion) -> list[Box]:
    chest, rng, side = scene.chest, lesion.rng, lesion.side
    centre = chest.at(side, rng.uniform(0.42, 0.70), rng.uniform(0.42, 0.74))
    radii = (rng.uniform(0.08, 0.11) * lesion.size, rng.uniform(0.075, 0.11) * lesion.size)
    patch = _rough_patch(scene, lesion, side, centre, radii, 0.07, 0.3)
    scene.fill_air(0.62 * lesion.contrast * patch)
    return scene.canvas.box(patch, 0.45)


@_paints("Lung_Opacity")
def _paint_haze(scene: Scene, lesion: Lesion) -> list[Box]:
    chest, rng, side = scene.chest, lesion.rng, lesion.side
    centre = chest.at(side, rng.uniform(0.4, 0.7), rng.uniform(0.3, 0.75))
    radii = (rng.uniform(0.09, 0.13) * lesion.size, rng.uniform(0.09, 0.15) * lesion.size)
    patch = _rough_patch(scene, lesion, side, centre, radii, 0.12, 0.12)
    scene.fill_air(0.52 * lesion.contrast * patch)
    return scene.canvas.box(patch, 0.45)


@_paints("Tuberculosis")
def _paint_cavity(scene: Scene, lesion: Lesion) -> list[Box]:
    canvas, rng, chest, side = scene.canvas, lesion.rng, scene.chest, lesion.side
    centre = chest.at(side, rng.uniform(0.45, 0.65), rng.uniform(0.15, 0.28))
    patch = _rough_patch(scene, lesion, side, centre, (0.085 * lesion.size, 0.075 * lesion.size), 0.04, 0.5)
    hole = canvas.disc(centre, 0.034 * lesion.size, 0.3)
    scene.fill_air(0.70 * lesion.contrast * patch * (1 - 0.9 * hole))
    return canvas.box(patch, 0.45)


@_paints("Fracture")
def _paint_break(scene: Scene, lesion: Lesion) -> list[Box]:
    canvas, rng, side = scene.canvas, lesion.rng, lesion.side
    boxes: list[Box] = []
    first = int(rng.integers(2, 6))
    for k in range(int(rng.integers(1, 4))):
        rib = scene.ribs[2 * (first + k) + side]
        at = int(rng.integers(5, 9))
        x, y = rib[at]
        step = 0.017 * lesion.size
        gap = canvas.disc((x, y), 0.017, 0.5)
        stump = canvas.strokes([rib[at - 3 : at] - np.array((0, step)), rib[at : at + 4] + np.array((0, step))], 0.014)
        callus = canvas.glow((x, y), (0.022 * lesion.size, 0.017 * lesion.size))
        scene.extra += lesion.contrast * (0.20 * canvas.blur(stump, 0.002) - 0.14 * gap + 0.11 * callus)
        boxes += canvas.box(np.maximum(stump, callus), 0.4)
    return boxes


@_paints("Support_Devices")
def _paint_devices(scene: Scene, lesion: Lesion) -> list[Box]:
    canvas, rng, chest = scene.canvas, lesion.rng, scene.chest
    tubes: list[np.ndarray] = []
    wires: list[np.ndarray] = []
    solid = np.zeros_like(scene.both)
    kinds = set(rng.choice(5, size=int(rng.integers(1, 4)), replace=False, p=(0.24, 0.28, 0.16, 0.16, 0.16)).tolist())
    carina = chest.apex + 0.34 * chest.height(LEFT)
    if 0 in kinds:  # endotracheal tube
        tubes.append(np.array([(0.503, -0.05), (0.502, carina - 0.16), (0.5, carina - rng.uniform(0.03, 0.09))]))
    if 1 in kinds:  # central line from a subclavian or a jugular vein
        s = SIGN[lesion.side]
        start = (0.5 + s * 0.30, 0.16) if rng.random() < 0.6 else (0.5 + s * 0.08, -0.02)
        tubes.append(curve(start, (0.5 + s * 0.16, 0.16), (0.5 - 0.01 * s, 0.22), (0.455, 0.26), (0.45, carina + 0.10)))
    if 2 in kinds:  # pacemaker and its leads
        x, y = 0.5 + 0.27, chest.apex + 0.15
        case = np.array([(-0.05, 0.0), (0.0, -0.038), (0.05, 0.0), (0.03, 0.05), (-0.03, 0.05)])
        solid = canvas.fill(smooth(case) + np.array((x, y)))
        foot = chest.dome_y(LEFT)
        ventricle = (0.42, foot - 0.12), (0.50, foot - 0.01), (0.60, foot - 0.05)
        wires.append(curve((x, y), (0.60, 0.15), (0.43, 0.28), *ventricle))
        wires.append(curve((x, y), (0.60, 0.17), (0.44, 0.30), (0.43, foot - 0.10), (0.45, foot - 0.18)))
    if 3 in kinds:  # electrodes and their cables
        for _ in range(int(rng.integers(2, 5))):
            side = int(rng.integers(2))
            x, y = chest.at(side, rng.uniform(0.5, 0.95), rng.uniform(0.15, 0.9))
            solid = np.maximum(solid, canvas.disc((x, y), 0.017, 0.2))
            first, last = (x + rng.normal(0, 0.06), y + 0.1), (0.5 + rng.normal(0, 0.2), 1.1)
            wires.append(curve((x, y), first, (0.5 + 0.6 * (x - 0.5), 1.0), last))
    if 4 in kinds:  # feeding tube
        foot = chest.dome_y(LEFT)
        tubes.append(curve((0.512, -0.05), (0.508, 0.4), (0.51, foot), (0.54, foot + 0.09), (0.66, foot + 0.12)))
    lines = np.zeros_like(solid)
    if tubes:
        lines = canvas.strokes(tubes, 0.009)
    if wires:
        lines = np.maximum(lines, canvas.strokes(wires, 0.006))
    device = np.maximum(solid, lines)
    scene.extra += 0.30 * (0.4 + 0.6 * lesion.contrast) * device
    return canvas.box(device, 0.3)


@_paints("Scoliosis")
def _box_spine(scene: Scene, _lesion: Lesion) -> list[Box]:
    y = np.linspace(0.05, 0.95, 24)
    return scene.canvas.box(scene.canvas.strokes([np.stack([scene.chest.spine_x(y), y], 1)], 0.06))


@_paints("Aortic_Elongation")
def _box_aorta(scene: Scene, _lesion: Lesion) -> list[Box]:
    return scene.canvas.box(aorta_mask(scene.canvas, scene.chest), 0.4)


@_paints("Hilar_Enlargement")
def _box_hila(scene: Scene, _lesion: Lesion) -> list[Box]:
    canvas, chest = scene.canvas, scene.chest
    swollen = [side for side in (RIGHT, LEFT) if chest.hilum[side] > 1.4]
    return [box for side in swollen for box in canvas.box(hilum_mask(canvas, chest, side), 0.4)]


@_paints("Hemidiaphragm_Elevation")
def _box_dome(scene: Scene, lesion: Lesion) -> list[Box]:
    chest, side = scene.chest, lesion.side
    top, bottom = chest.dome_y(side), chest.angle[side]
    inner, outer = (chest.at(side, across, 0.0)[0] for across in (0.15, 1.0))
    corners = np.array([(inner, top), (outer, top), (outer, bottom), (inner, bottom)])
    return scene.canvas.box(scene.canvas.fill(corners), 0.5)


FINDINGS: tuple[str, ...] = tuple(PAINTS)
DRAWN: frozenset[str] = frozenset(FINDINGS)


def draw_lot(rng: np.random.Generator, difficulty: Difficulty) -> Lesion:
    severity = float(rng.random())
    return Lesion(
        rng=rng,
        side=int(rng.integers(2)),
        contrast=_between(difficulty.contrast, severity),
        size=_between(difficulty.size, float(rng.random())),
        severity=severity,
    )


def _between(interval: Interval, share: float) -> float:
    return interval.low + (interval.high - interval.low) * share
