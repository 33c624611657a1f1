"""Is a map causal for its score? Deletion and insertion (Petsiuk et al., RISE, arXiv 1806.07421), beside controls.

The cells of a map's grid are taken from the film in the map's order, the strongest first, and a blurred film stands in
their place (deletion); or they are brought back into a film that is blurred all over (insertion). The area under the
finding's probability is small where the map names first what the score stands on, and large for insertion. The same is
done in a random order, and in the order of the same model's map of a finding that the film does not have.

Quantus has both as PixelFlipping, film by film and one order at a time: here the orders of a film share its batch, and
areas stay paired with their controls for the bootstrap.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from torch import nn

from stages.nets import nets

Array = NDArray[np.float64]

STEPS = 8  # that the cells are taken in
BATCH = 256  # films a pass
BLUR = 8  # the film's side over this is the blur's standard deviation: no finding is left, no edge is made


@dataclass(frozen=True)
class Areas:
    """Areas under the probability of the finding over the share of cells, (pair,) each."""

    deletion: Array
    insertion: Array


def order_of(maps: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.int64]:
    """The rank of each cell, 0 the strongest, ties in a random order: (pair, height, width)."""
    flat = maps.reshape(len(maps), -1)
    order = np.lexsort((rng.random(flat.shape), -flat), axis=1)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(flat.shape[1])[None], axis=1)
    return ranks.reshape(maps.shape)


def blurred(films: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Films without detail, (film, size_px, size_px)."""
    spread = films.shape[1] / BLUR
    return np.stack([cv2.GaussianBlur(film, (0, 0), spread, borderType=cv2.BORDER_REPLICATE) for film in films])


def areas(model: nn.Module, films: NDArray[np.uint8], outputs: NDArray[np.int64], ranks: NDArray[np.int64]) -> Areas:
    """Delete and insert the cells of each pair's film in an order.

    Args:
        model: in eval mode.
        films: (pair, size_px, size_px).
        outputs: (pair,) which logit.
        ranks: (pair, height, width) from `order_of`.
    """
    size_px, plain = films.shape[1], blurred(films)
    rows, columns = ((np.arange(size_px) * cells) // size_px for cells in ranks.shape[1:])
    place = ranks[:, rows][:, :, columns]  # of each pixel's cell
    cells = ranks[0].size
    taken = np.round(np.linspace(0, cells, STEPS + 1)).astype(int)
    found = []
    for there, then in ((films, plain), (plain, films)):
        followed = [_probabilities(model, np.where(place < count, then, there), outputs) for count in taken]
        found.append(np.trapezoid(np.stack(followed), taken / cells, axis=0))
    return Areas(*found)


def _probabilities(model: nn.Module, films: NDArray[np.uint8], outputs: NDArray[np.int64]) -> Array:
    device = next(model.parameters()).device
    batches = (films[start : start + BATCH] for start in range(0, len(films), BATCH))
    logits = nets.logits(model, batches, device)
    return np.asarray(expit(logits[np.arange(len(films)), outputs].astype(float)))
