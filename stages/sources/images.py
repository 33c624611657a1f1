"""Image shards in memory maps, and the fixed augmented views that teacher and student share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from stages.core import seeds

cv2.setNumThreads(0)  # one process a core does it; OpenCV's own threads would compete with the training


class Images:
    """Films of a table's rows, read from uint8 shards without loading them.

    Args:
        folder: where the shards lie.
        shards: shard file name of each row.
        positions: position of each row within its shard.
    """

    def __init__(self, folder: Path, shards: Sequence[str], positions: Sequence[int]) -> None:
        self._given = (folder, shards, positions)
        names, self._shard = np.unique(np.asarray(shards, dtype=str), return_inverse=True)
        self._maps = [np.load(folder / name, mmap_mode="r") for name in names]
        self._position = np.asarray(positions, dtype=np.int64)

    def __reduce__(self) -> Any:
        """Pickled without pixels: another process maps the shards itself."""
        return Images, self._given

    @classmethod
    def of_rows(cls, folder: Path, rows: pd.DataFrame) -> "Images":
        """The films of a table with the columns `shard` and `row`."""
        return cls(folder, rows["shard"].tolist(), rows["row"].tolist())

    def __len__(self) -> int:
        return len(self._position)

    def __getitem__(self, index: int) -> np.ndarray:
        """One film, uint8 (size_px, size_px)."""
        return np.asarray(self._maps[self._shard[index]][self._position[index]])

    def take(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Films by row number, uint8 (n, size_px, size_px)."""
        return np.stack([self[int(index)] for index in indices])


def view(film: np.ndarray, settings: Any, seed: int, dataset: str, image: str, number: int) -> np.ndarray:
    """One augmented view of a film: a pure function of its arguments, so that a teacher's and a student's are the same.

    Args:
        film: uint8 (size_px, size_px).
        settings: `views` of params.yaml.
        seed: the run's seed.
        dataset: the film's data set.
        image: the film's key.
        number: which of the fixed views.

    Returns:
        uint8 (size_px, size_px): rotated, scaled and shifted about the centre (black outside), then contrast about
        mid-grey and brightness.
    """
    rng = seeds.of("view", seed, dataset, image, number)
    angle, scale, shift_x, shift_y, contrast, brightness = rng.uniform(-1, 1, size=6)
    size = film.shape[0]
    centre = ((size - 1) / 2, (size - 1) / 2)
    matrix = cv2.getRotationMatrix2D(centre, settings.rotate_deg * angle, 1 + settings.scale * scale)
    matrix[:, 2] += (settings.shift * size * shift_x, settings.shift * size * shift_y)
    moved = cv2.warpAffine(film, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    levels = np.arange(256, dtype=np.float64)
    levels = (levels - 127.5) * (1 + settings.contrast * contrast) + 127.5 + 255 * settings.brightness * brightness
    return cv2.LUT(moved, np.clip(np.rint(levels), 0, 255).astype(np.uint8))
