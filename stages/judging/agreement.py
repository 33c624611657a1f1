"""Does a student look where its teacher looks? Three measures of two maps' likeness, each beside its controls.

Spearman's correlation over pixels, the overlap (IoU) of the strongest tenth, and structural similarity (SSIM, Wang et
al. 2004; scikit-image's). Any two maps of films are somewhat alike, since findings have their usual places: so the
student's map is also held against its teacher's of another film with the same finding and of another finding on the
same film, and the undistilled twin's against the teacher's. Agreement is not correctness: see `hits`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from skimage.metrics import structural_similarity

from stages.judging import localisation

Array = NDArray[np.float64]

MEASURES = "spearman", "iou", "ssim"
TOP = 0.1  # share of pixels that are the strongest
WINDOW_PX = 7  # of SSIM


def likeness(maps: NDArray[np.floating], others: NDArray[np.floating], size_px: int) -> Array:
    """How alike maps are, pair by pair: (pair, measure), NaN where one of the two is even or does not exist.

    Args:
        maps: (pair, height, width), 0 or more; NaN where there is none.
        others: likewise, on any grid.
        size_px: the film's side, on whose pixels both are compared.
    """
    found = np.full((len(maps), len(MEASURES)), np.nan)
    one, other = (localisation.enlarge(of, size_px) for of in (maps, others))
    for pair in range(len(maps)):
        if all(np.isfinite(of[pair]).all() and of[pair].max() > of[pair].min() for of in (one, other)):
            found[pair] = _of_pair(one[pair], other[pair])
    return found


def _of_pair(one: Array, other: Array) -> tuple[float, float, float]:
    first, second = one / one.max(), other / other.max()
    strong = [of >= np.quantile(of, 1 - TOP) for of in (first, second)]
    overlap = (strong[0] & strong[1]).sum() / (strong[0] | strong[1]).sum()
    alike = structural_similarity(first, second, win_size=WINDOW_PX, data_range=1.0)  # type: ignore[no-untyped-call]  # of skimage
    return float(stats.spearmanr(first.ravel(), second.ravel()).statistic), float(overlap), float(alike)


def of_another_film(keys: NDArray[Any], patients: NDArray[Any]) -> NDArray[np.int64]:
    """For each pair, the next pair with the same key and another patient; -1 where there is none.

    Args:
        keys: (pair,) the finding.
        patients: (pair,).
    """
    found = np.full(len(keys), -1)
    for key in np.unique(keys):
        places = np.flatnonzero(keys == key)
        for turn, place in enumerate(places):
            rest = np.roll(places, -turn - 1)
            others = rest[patients[rest] != patients[place]]
            if len(others):
                found[place] = others[0]
    return found


def hits(alike: Array, pointing: Array) -> dict[str, int]:
    """How many pairs agree with the teacher more than the median, and hit a box with their maximum, and not.

    Args:
        alike: (pair,) one measure of `likeness`; NaN is left out.
        pointing: (pair,) share of the student's maximum inside the boxes.
    """
    known = ~np.isnan(alike) & ~np.isnan(pointing)
    is_alike, is_hit = alike[known] > np.median(alike[known]) if known.any() else known[known], pointing[known] >= 0.5
    return {
        f"{'alike' if same else 'unlike'}_{'hit' if hit else 'miss'}": int(((is_alike == same) & (is_hit == hit)).sum())
        for same in (True, False)
        for hit in (True, False)
    }
