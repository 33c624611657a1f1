"""Draw frontal chest films with findings, for use where the licensed pixels can't travel.

A film is built as a map of X-ray attenuation (bright = dense): a torso, two air-filled lungs taken out of it, then
heart, vessels, spine, ribs and findings put in, then the scanner's curve and quantum noise.

What makes the films easier or harder to read is in params.yaml under `phantom.difficulty`.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from stages.core.schema import Difficulty
from stages.phantom.anatomy import (
    DOME,
    LEFT,
    RIGHT,
    SIGN,
    TORSO,
    Anatomy,
    Chest,
    aorta_mask,
    heart_outline,
    hilum_mask,
    lung_outline,
    mediastinum_outline,
    rib_curves,
    shape_chest,
    vessel_tree,
)  # fmt: skip
from stages.phantom.canvas import Box, Canvas, curve, smooth, unit_grid
from stages.phantom.lesions import DRAWN, FINDINGS, PAINTS, SHAPES, Scene, draw_lot

FRONTAL_VIEWS = ("PA", "AP")

# Attenuation of each tissue, 0 = open air and 1 = opaque.
SOFT_TISSUE, LUNG_AIR, HEART, ABDOMEN = 0.58, 0.40, 0.25, 0.23
VERTEBRAE, RIB, CLAVICLE, SCAPULA, BREAST, VESSEL = 0.095, 0.085, 0.115, 0.055, 0.070, 0.17


@dataclass(frozen=True)
class Look:
    """What a scanner and its processing make of the same chest."""

    gamma: float
    window: tuple[float, float]  # attenuation shown black and white
    s_curve: float  # 0 = linear, 1 = strongly S-shaped
    vignette: float
    blur: float  # standard deviation, share of the side
    grain: float  # factor on the quantum noise
    border: float  # chance that collimation leaves a black margin
    marker: tuple[str, float, float] | None  # letter, and where it stands
    equalise: float = 0.0  # share of local contrast equalisation


LOOKS: dict[str, Look] = {
    "chestxray14": Look(1.0, (0.05, 1.0), 0.45, 0.05, 0.0035, 1.0, 0.25, ("L", 0.86, 0.10)),
    "chexpert": Look(0.85, (0.02, 0.96), 0.25, 0.10, 0.0045, 1.25, 0.5, ("R", 0.07, 0.12), equalise=0.45),
    "padchest": Look(1.15, (0.0, 1.02), 0.65, 0.0, 0.003, 0.8, 0.1, ("I", 0.88, 0.16)),
}


def _bones(canvas: Canvas, chest: Chest, anatomy: Anatomy, view: str, ribs: tuple[list[np.ndarray], list[np.ndarray]],
           thorax: np.ndarray) -> np.ndarray:  # fmt: skip
    posterior, anterior = ribs
    cage = canvas.strokes(posterior, 0.021) + 0.9 * canvas.strokes(posterior, 0.008)
    front = canvas.strokes(anterior, 0.019)
    bones = RIB * (canvas.blur(cage, 0.004) * 0.75 + 0.55 * canvas.blur(front, 0.005)) * thorax
    tilt, top = anatomy.clavicle_tilt, chest.apex + (0.03 if view == "AP" else 0.075)
    clavicles = [
        curve((0.5 + s * 0.04, top + 0.045), (0.5 + s * 0.14, top + 0.055), (0.5 + s * 0.21, top - 0.045 + tilt),
               (0.5 + s * 0.42, top - 0.035 + tilt))
        for s in SIGN
    ]  # fmt: skip
    bones += CLAVICLE * canvas.blur(canvas.strokes(clavicles, 0.024) + 0.5 * canvas.strokes(clavicles, 0.010), 0.003)
    inward = 0.25 if view == "AP" else 0.36
    blades = np.zeros_like(bones)
    for s in SIGN:
        x = 0.5 + s * inward
        blade = np.array(
            [(x, top + 0.06), (x + s * 0.10, top + 0.02), (x + s * 0.17, top + 0.10), (x + s * 0.085, top + 0.32)]
        )
        blades = np.maximum(blades, canvas.fill(smooth(blade)))
    for s in SIGN:  # head of the humerus
        blades = np.maximum(blades, canvas.disc((0.5 + s * 0.485 * anatomy.body, top + 0.055), 0.06, 0.3))
    bones += SCAPULA * canvas.blur(blades, 0.006)
    y = np.linspace(-0.05, 1.05, 23)
    column = np.stack([chest.spine_x(y), y], 1)
    discs = np.float32(0.72) + np.float32(0.28) * np.sin(canvas.y * np.float32(2 * np.pi / 0.062))
    bones += VERTEBRAE * canvas.blur(canvas.strokes([column], 0.070), 0.006) * discs
    spinous = [np.array([(x - 0.002, v - 0.006), (x + 0.002, v + 0.006)]) for x, v in column[2:18]]
    attenuation: np.ndarray = bones + 0.04 * canvas.strokes(spinous, 0.012)
    return attenuation


def _distract(scene: Scene, rng: np.random.Generator) -> None:
    """Densities that mean nothing, each kind on a share of the films: soft tissue, nipples, a fold of skin."""
    canvas, chest, share = scene.canvas, scene.chest, scene.difficulty.distractors
    if rng.random() < share:
        for _ in range(int(rng.integers(1, 4))):
            side = int(rng.integers(2))
            centre = chest.at(side, rng.uniform(0.25, 0.9), rng.uniform(0.15, 0.95))
            shadow = canvas.glow(centre, (rng.uniform(0.04, 0.14), rng.uniform(0.04, 0.14)), rng.uniform(0, 3))
            scene.fill_air(rng.uniform(0.08, 0.28) * shadow * scene.lungs[side])
    if rng.random() < share:
        for side in (RIGHT, LEFT):
            nipple = canvas.disc(chest.at(side, 0.62 + rng.normal(0, 0.04), 0.80 + rng.normal(0, 0.03)), 0.014, 0.6)
            scene.extra += rng.uniform(0.02, 0.06) * nipple
    if rng.random() < share:
        side = int(rng.integers(2))
        a, b = chest.at(side, rng.uniform(0.5, 0.8), 0.2), chest.at(side, rng.uniform(0.7, 0.95), 0.8)
        fold = canvas.strokes([curve(a, ((a[0] + b[0]) / 2 + 0.03, 0.5), b)], 0.008)
        scene.extra += rng.uniform(0.02, 0.06) * canvas.blur(fold, 0.004)


def _expose(attenuation: np.ndarray, canvas: Canvas, look: Look, view: str, noise: float,
            rng: np.random.Generator) -> np.ndarray:  # fmt: skip
    """What the scanner makes of the attenuation: noise, curve, collimation, letter."""
    size_px = canvas.size_px
    low, high = look.window
    spread = 1.06 if view == "AP" else 1.0
    high = high * spread * float(rng.normal(1.0, 0.025))
    film: np.ndarray = (attenuation - np.float32(low)) * np.float32(1 / (high - low))
    grain = rng.standard_normal((size_px, size_px), dtype=np.float32)
    # Fewer quanta get through dense tissue, so it is noisier before the curve.
    film += np.float32(noise * look.grain) * (np.float32(0.6) + np.float32(0.4) * np.clip(film, 0, 1)) * grain
    film = canvas.blur(film, look.blur * float(rng.uniform(0.7, 1.4)))
    film = np.clip(film, 0, 1)
    curved = film * film * (3 - 2 * film)
    film = film + np.float32(look.s_curve) * (curved - film)
    if look.equalise:
        local = canvas.blur(film, 0.16)
        film = np.clip(film + np.float32(look.equalise) * (np.float32(0.48) - local) * (local > 0.08), 0, 1)
    film = film ** np.float32(look.gamma * float(rng.normal(1.0, 0.06)))
    if look.vignette:
        x, y = unit_grid(size_px)
        film *= 1 - np.float32(2 * look.vignette) * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    if look.marker is not None:
        letter, across, down = look.marker
        _stamp(film, letter, across + float(rng.normal(0, 0.02)), down + float(rng.normal(0, 0.02)))
    if rng.random() < look.border:
        left, right = (int(size_px * rng.uniform(0.0, 0.045)) for _ in range(2))
        top, bottom = (int(size_px * rng.uniform(0.0, 0.03)) for _ in range(2))
        film[:top], film[size_px - bottom :] = 0, 0
        film[:, :left], film[:, size_px - right :] = 0, 0
    return film


def _stamp(film: np.ndarray, letter: str, x: float, y: float) -> None:
    size_px = film.shape[0]
    plate = np.zeros(film.shape, np.uint8)
    at = (int(x * size_px), int(y * size_px))
    cv2.putText(plate, letter, at, cv2.FONT_HERSHEY_SIMPLEX, size_px / 420, 255, max(1, size_px // 100), cv2.LINE_AA)
    np.maximum(film, plate * np.float32(0.95 / 255), out=film)


def draw(findings: frozenset[str], anatomy: Anatomy, view: str, look: Look, difficulty: Difficulty,
         rng: np.random.Generator, size_px: int) -> tuple[np.ndarray, dict[str, list[Box]]]:  # fmt: skip
    """Draw one film and say where its findings are.

    The lot of a finding does not depend on which others are there: the same generator state gives the same chest with
    and without it.

    Returns:
        The film, (size_px, size_px) float32 in [0, 1], bright = dense; and the boxes (x, y, w, h) of each finding, in
        shares of the side.

    Raises:
        ValueError: a finding that can't be drawn, or a view that is not frontal.
    """
    unknown = sorted(findings - DRAWN)
    if unknown:
        raise ValueError(f"findings must be among {', '.join(sorted(DRAWN))}; got {', '.join(unknown)}")
    if view not in FRONTAL_VIEWS:
        raise ValueError(f"view must be one of {', '.join(FRONTAL_VIEWS)}, got {view}")
    root = int(rng.integers(2**62))
    lots = {f: draw_lot(np.random.default_rng((root, i)), difficulty) for i, f in enumerate(FINDINGS) if f in findings}
    rng_pose, rng_distract, rng_scan = (np.random.default_rng((root, 1000 + i)) for i in range(3))

    chest = shape_chest(anatomy, view, rng_pose)
    for name, shape in SHAPES.items():  # in this order: emphysema narrows the heart that cardiomegaly then widens
        if name in lots:
            shape(chest, lots[name])
    canvas = Canvas(
        size_px,
        tilt=anatomy.rotation + float(rng_pose.normal(0, 0.02)),
        zoom=float(rng_pose.normal(0.985, 0.02)),
        shift=(float(rng_pose.normal(0, 0.012)), float(rng_pose.normal(0.01, 0.012))),
    )
    scene, base, thorax, ribs = _stage(canvas, chest, anatomy, difficulty)
    _distract(scene, rng_distract)
    boxes = {name: PAINTS[name](scene, lesion) for name, lesion in lots.items()}
    attenuation = _attenuate(scene, base, thorax, ribs, anatomy, view)
    return _expose(attenuation, canvas, look, view, difficulty.noise, rng_scan), boxes


Ribs = tuple[list[np.ndarray], list[np.ndarray]]


def _stage(
    canvas: Canvas, chest: Chest, anatomy: Anatomy, difficulty: Difficulty
) -> tuple[Scene, np.ndarray, np.ndarray, Ribs]:
    """The normal chest: its scene, the torso with all that is not lung, the rib cage's mask and curves."""
    outlines = [lung_outline(chest, side) for side in (RIGHT, LEFT)]
    lungs = [canvas.blur(canvas.fill(o), 0.004) for o in outlines]
    heart = canvas.blur(canvas.fill(heart_outline(chest)), 0.006)
    half = np.array(TORSO) * (anatomy.body, 1.0)
    torso = canvas.fill(np.concatenate([half, half[::-1] * (-1, 1)]) + np.array((0.5, 0.0)))
    depth = canvas.blur(torso, 0.045)
    base = (SOFT_TISSUE + anatomy.fat) * torso * (0.45 + 0.55 * depth)
    both = np.maximum(*lungs)
    thorax = canvas.blur(np.clip(both * 1.2, 0, 1), 0.02)
    ribs = rib_curves(chest, anatomy)
    vessels = _vessels(canvas, chest, anatomy)
    zeros = np.zeros_like(both)
    scene = Scene(canvas, chest, difficulty, outlines, lungs, heart, ribs[0], vessels, zeros, zeros.copy(),
                  np.ones_like(both))  # fmt: skip
    return scene, base, thorax, ribs


def _vessels(canvas: Canvas, chest: Chest, anatomy: Anatomy) -> np.ndarray:
    orders = vessel_tree(chest, anatomy.vessels)
    widths, darkness = (0.017, 0.012, 0.008, 0.0055), (0.85, 0.75, 0.65, 0.6)
    tree = np.zeros_like(canvas.x)
    for order, width, weight in zip(orders, widths, darkness, strict=True):
        np.maximum(tree, weight * canvas.strokes(order, width), out=tree)
    hilum_y = chest.hilum_at(LEFT)[1]
    upper = np.clip((np.float32(hilum_y) - canvas.y) * 8 + 0.5, 0, 1)
    gain = chest.vessel_gain * (1 + (chest.upper_vessel_gain - 1) * upper)
    mask: np.ndarray = canvas.blur(tree, 0.0035) * gain
    return mask


def _attenuate(
    scene: Scene, base: np.ndarray, thorax: np.ndarray, ribs: Ribs, anatomy: Anatomy, view: str
) -> np.ndarray:
    """Put the tissues together: attenuation, 0 = open air."""
    canvas, chest = scene.canvas, scene.chest
    middle = canvas.blur(canvas.fill(mediastinum_outline(chest)), 0.008)
    aorta = aorta_mask(canvas, chest)
    hila = np.maximum(hilum_mask(canvas, chest, RIGHT), hilum_mask(canvas, chest, LEFT))
    core = np.maximum(np.maximum(0.88 * middle, scene.heart), 0.85 * aorta)

    depth = canvas.blur(scene.both, 0.05)  # less air in the way near the wall
    air = scene.both * (0.70 + 0.30 * depth) * (1 + chest.airiness)
    air = air * scene.air_gain * (1 - scene.filling) * (1 - 0.86 * core)
    density: np.ndarray = base - LUNG_AIR * air

    below = _below_diaphragm(canvas, chest)
    bubble_x, bubble_y = 0.5 + 0.42 * chest.half_width[LEFT], chest.dome_y(LEFT) + 0.02 + anatomy.gas
    bubble = canvas.glow((bubble_x, bubble_y), (1.3 * anatomy.gas + 0.01, 0.7 * anatomy.gas + 0.008)) * below
    # Where heart and liver overlap the film is hardly brighter than on either: their borders vanish.
    density += np.maximum(HEART * core, base * np.float32(ABDOMEN / SOFT_TISSUE) * below)
    density -= 0.24 * bubble * (anatomy.gas > 0.012)
    vessels = VESSEL * scene.both * (0.75 * hila + scene.vessels)
    density += vessels * (1 - 0.75 * core) * (1 - 0.6 * scene.filling)
    density += _bones(canvas, chest, anatomy, view, ribs, thorax) * (1 - 0.35 * core)
    density -= 0.085 * _airway(canvas, chest)
    if anatomy.breast > 0:
        density += BREAST * min(1.0, anatomy.breast) * _breasts(canvas, chest, anatomy)
    density += scene.extra
    if view == "AP":
        density = density * 0.94 + np.float32(0.035) * (base > 0.1)
    return density


def _below_diaphragm(canvas: Canvas, chest: Chest) -> np.ndarray:
    """The abdomen: what lies under both domes, softly ended at the flanks."""
    edge: list[tuple[float, float]] = []
    for side in (RIGHT, LEFT):
        half = [chest.at(side, u, 1 - chest.dome[side] * v) for u, v in DOME]
        tip = (chest.at(side, 1.0, 0.0)[0], chest.angle[side])
        wall = (chest.at(side, 1.05, 0.0)[0], 1.1)
        edge += [wall, tip, *half] if side == RIGHT else [*half[::-1], tip, wall]
    return canvas.blur(canvas.fill(np.array(edge)), 0.008)


def _airway(canvas: Canvas, chest: Chest) -> np.ndarray:
    y = np.linspace(-0.05, chest.apex + 0.36 * chest.height(LEFT), 9)
    x = chest.spine_x(y) - 0.004
    fork, carina = float(x[-1]), float(y[-1])
    trachea = canvas.strokes([np.stack([x, y], 1)], 0.034)
    bronchi = [
        curve((fork, carina - 0.01), (fork + s * 0.034, carina + 0.03), (fork + s * 0.079, carina + 0.07)) for s in SIGN
    ]
    return canvas.blur(np.maximum(trachea, 0.7 * canvas.strokes(bronchi, 0.022)), 0.006)


def _breasts(canvas: Canvas, chest: Chest, anatomy: Anatomy) -> np.ndarray:
    shadow = np.zeros_like(canvas.x)
    for side in (RIGHT, LEFT):
        x, y = chest.at(side, 0.60, 0.66)
        shadow = np.maximum(shadow, canvas.disc((x, y), 0.16 * (0.8 + 0.2 * anatomy.breast), 0.5, 0.0, 1.05))
    # Only the lower fold has a sharp edge.
    mask: np.ndarray = shadow * np.clip((canvas.y - np.float32(chest.at(LEFT, 0, 0.40)[1])) * 5, 0, 1)
    return mask
