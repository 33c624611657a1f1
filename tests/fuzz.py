"""Mutations of a good film, in a process of its own so that their memory can be measured.

`python tests/fuzz.py KIND COUNT SEED` prints a JSON object: how many were accepted, the slowest in seconds, by how many
megabytes the process grew, what was no rejection and no square, and the accepted ones that differ from the good film.
"""

import json
import resource
import struct
import sys
import time
import warnings
import zlib
from typing import Any

import numpy as np
import owners

from stages.films import decoding

SIDE, SIZE_PX, MAX_PIXELS = 96, 32, 40_000_000
DIFFERENT = 4  # grey levels in the mean of a square's pixels: less is no other picture
LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT")  # whose length takes four bytes after two that are empty
SHORT = (b"US", b"SS", b"DS", b"IS", b"CS", b"LO", b"UI", b"FD", b"AT", b"PN")


def good(kind: str) -> bytes:
    """The film that is mutated."""
    film = owners.film(1, SIDE)
    if kind == "dicom":
        about: dict[str, Any] = {"WindowCenter": 1000, "WindowWidth": 2200, "RescaleSlope": 1, "RescaleIntercept": 0}
        return owners.dicom(film.astype(np.uint16) * 8, PixelPaddingValue=4095, NumberOfFrames=1, **about)
    return owners.png(film) if kind == "png" else owners.jpeg(film)


def bytes_changed(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Bytes flipped, zeroed, left out or doubled, or the end cut off."""
    start = int(rng.integers(2, len(content)))
    end = min(len(content), start + int(rng.integers(1, 100)))
    what = str(rng.choice(["flipped", "zeroed", "left out", "doubled", "cut"]))
    if what == "flipped":
        changed = bytearray(content)
        for place in rng.integers(2, len(content), rng.integers(1, 5)):
            changed[place] ^= int(rng.integers(1, 256))
        return what, bytes(changed)
    middle = {"zeroed": bytes(end - start), "left out": b"", "doubled": content[start:end] * 2}
    return what, content[:start] + (middle[what] + content[end:] if what in middle else b"")


def with_sums(content: bytes) -> bytes:
    """A PNG whose chunks have the right sums, so that its decoder sees the damage."""
    place, changed = 8, bytearray(content)
    while place + 12 <= len(content):
        end = place + 8 + int.from_bytes(content[place : place + 4], "big")
        if end + 4 > len(content):
            break
        changed[end : end + 4] = struct.pack(">I", zlib.crc32(changed[place + 4 : end]))
        place = end + 4
    return bytes(changed)


def elements(content: bytes) -> list[tuple[int, int, int]]:
    """(start, start of the value, end) of each element of an explicit little-endian DICOM."""
    place, found = 132, []
    while place < len(content):
        is_long = content[place + 4 : place + 6] in LONG
        value = place + (12 if is_long else 8)
        end = value + int.from_bytes(content[value - (4 if is_long else 2) : value], "little")
        found.append((place, value, end))
        place = end
    return found


def element_changed(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """An element emptied, of another type, repeated, or of another value."""
    found = elements(content)
    start, value, end = found[int(rng.integers(len(found)))]
    what = str(rng.choice(["emptied", "retyped", "repeated", "revalued"]))
    head, body, tail = content[start:value], content[value:end], content[end:]
    if what == "emptied":
        head, body = head[:-2] + b"\0\0" if len(head) == 8 else head[:-4] + bytes(4), b""
    elif what == "retyped":
        head = head[:4] + bytes(rng.choice(SHORT if len(head) == 8 else LONG)) + head[6:]
    elif what == "repeated":
        body = body + head + body
    else:
        body = rng.bytes(len(body))
    return what, content[:start] + head + body + tail


def mutation(kind: str, content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """What was done, and the result."""
    if kind == "dicom" and rng.random() < 0.5:
        return element_changed(content, rng)
    what, changed = bytes_changed(content, rng)
    return (f"{what}, sums mended", with_sums(changed)) if kind == "png" and rng.random() < 0.5 else (what, changed)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def run(kind: str, count: int, seed: int) -> dict[str, Any]:
    """Decode the mutations."""
    rng = np.random.default_rng(seed)
    content = good(kind)
    film = decoding.to_square(content, decoding.Stated(), SIZE_PX, MAX_PIXELS)
    before, slowest, accepted = peak_mb(), 0.0, 0
    wrong: list[str] = []
    different: list[list[Any]] = []
    for number in range(count):
        what, changed = mutation(kind, content, rng)
        start = time.perf_counter()
        try:
            square = decoding.to_square(changed, decoding.Stated(), SIZE_PX, MAX_PIXELS)
        except decoding.ImageError:
            square = None
        except BaseException as error:  # noqa: BLE001  # what is looked for
            wrong.append(f"{number} {what}: {error!r}")
            square = None
        slowest = max(slowest, time.perf_counter() - start)
        if square is None:
            continue
        accepted += 1
        if square.shape != film.shape or square.dtype != np.uint8:
            wrong.append(f"{number} {what}: {square.dtype} {square.shape}")
        elif (apart := float(np.abs(square.astype(int) - film).mean())) > DIFFERENT:
            different.append([number, what, round(apart, 1)])
    return {
        "accepted": accepted,
        "slowest_s": slowest,
        "grown_mb": peak_mb() - before,
        "wrong": wrong,
        "different": different,
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # pydicom tells of what it misses
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
