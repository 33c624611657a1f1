"""Films that look the same: an image that was stored twice with another size, compression or brightness.

A film's fingerprint is the sign of the change from each cell of a 17 x 16 grid to its right neighbour ("dHash", Krawetz
2013): 256 bits that survive rescaling and brightness, not another patient. Two films are near-duplicates when at most
`max_bits` of them differ. Fingerprints are cut into 8 bands of 32 bits; two that differ in fewer than 8 bits share a
band, so only films that share one are compared.
"""

from itertools import combinations

import cv2
import numpy as np

GRID = (17, 16)  # width, height of the cells
BYTES = 32
BANDS = 8  # so max_bits is at most 7
CROWD = 500  # films that share a band; more say nothing (empty margins) and are left to the other bands


def fingerprint(square: np.ndarray) -> str:
    """256 bits of a film, uint8 (size_px, size_px), in hexadecimal."""
    cells = cv2.resize(square, GRID, interpolation=cv2.INTER_AREA)
    return np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes().hex()


def near(fingerprints: list[str], max_bits: int) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of fingerprints that differ in at most `max_bits` (below 8) bits, sorted."""
    table = np.array([np.frombuffer(bytes.fromhex(text), np.uint8) for text in fingerprints]).reshape(-1, BYTES)
    bands = table.view(np.uint32).reshape(-1, BANDS)
    found: set[tuple[int, int]] = set()
    for band in bands.T:
        order = np.argsort(band, kind="stable")
        edges = np.flatnonzero(np.diff(band[order])) + 1
        for crowd in np.split(order, edges):
            if 1 < len(crowd) <= CROWD:
                found |= {(i, j) for i, j in combinations(sorted(crowd.tolist()), 2)}
    return sorted(pair for pair in found if _differing(table, *pair) <= max_bits)


def _differing(table: np.ndarray, one: int, other: int) -> int:
    return int(np.bitwise_count(table[one] ^ table[other]).sum())
