"""Films that look the same: an image that was stored twice with another size, compression or brightness.

A film's fingerprint is the sign of the change from each cell of a 17 x 16 grid to its right neighbour ("dHash", Krawetz
2013): 256 bits that survive rescaling and brightness, not another patient. Two films are near-duplicates when at most
`max_bits` of them differ. Fingerprints are cut into 8 bands of 32 bits; two that differ in `max_bits` bits share at
least `8 - max_bits` whole bands, so only films that do are compared: the time grows with n log n.
"""

from itertools import combinations

import cv2
import numpy as np

GRID = (17, 16)  # width, height of the cells
BYTES = 32
BANDS = 8
MIX = np.random.default_rng(0).integers(1, 2**64, BANDS, dtype=np.uint64) | np.uint64(1)  # of a hash, any will do


def fingerprint(square: np.ndarray) -> str:
    """256 bits of a film, uint8 (size_px, size_px), in hexadecimal."""
    cells = cv2.resize(square, GRID, interpolation=cv2.INTER_AREA)
    return np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes().hex()


def near(fingerprints: list[str], max_bits: int) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of fingerprints that differ in at most `max_bits` (below 8) bits, sorted."""
    table = np.array([np.frombuffer(bytes.fromhex(text), np.uint8) for text in fingerprints]).reshape(-1, BYTES)
    bands = table.view(np.uint32).reshape(-1, BANDS).astype(np.uint64)
    found: set[tuple[int, int]] = set()
    for chosen in combinations(range(BANDS), BANDS - max_bits):
        key = bands[:, chosen] @ MIX[: len(chosen)]  # two bands with one key are told apart below
        order = np.argsort(key, kind="stable")
        starts = np.concatenate([[0], np.flatnonzero(np.diff(key[order])) + 1])
        sizes = np.diff(starts, append=len(key))
        for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
            found |= set(combinations(sorted(order[start : start + size].tolist()), 2))
    return sorted(pair for pair in found if _differing(table, *pair) <= max_bits)


def _differing(table: np.ndarray, one: int, other: int) -> int:
    return int(np.bitwise_count(table[one] ^ table[other]).sum())
