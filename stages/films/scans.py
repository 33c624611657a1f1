"""Is the coded data of a JPEG whole? Walks its Huffman codes without decoding a pixel (ITU-T T.81, Annexes F and G).

Decoders fill what is damaged with grey or with noise and go on; the library under OpenCV and Pillow warns at most, and
does not where damage happens to leave as many blocks as there should be. So each block's codes are followed: damaged
data soon has a code that does not exist, a coefficient beyond the last, a mean brighter than white, or does not end
where its blocks do. What keeps to the code everywhere cannot be told from a picture: JPEG has no checksum.
"""

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar, cast

import numba
import numpy as np

from stages.films.headers import FRAMES, SCAN, Header, ImageError, Segment

QUANTISERS, TABLES, INTERVAL = 0xDB, 0xC4, 0xDD
SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1), 0xC2
RESTART = re.compile(rb"\xff([\xd0-\xd7])")
COEFFICIENTS = 64
# of a block's mean, 8 times its distance from mid-grey: encoders may overshoot white a little
BRIGHTEST = 1024 * 9 // 8
PADDING = bytes(512)  # more than a block can have: whether it runs over the end is asked once, behind it
LARGEST = (11, 10)  # bits of a mean's change and of another coefficient
UNKNOWN = -1

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


@dataclass
class Component:
    """A colour of the image: sampling factors, quantiser, and how many low bits of each coefficient are still open."""

    across: int
    down: int
    quantiser: int
    open_bits: np.ndarray  # (COEFFICIENTS,), UNKNOWN before the first scan of it
    is_set: np.ndarray  # (block, COEFFICIENTS) of a progressive JPEG: which are no longer zero
    grid: tuple[int, int]  # blocks (across, down)


def require_whole(header: Header) -> None:
    """Check that a JPEG's scans hold all blocks of its image.

    Raises:
        ImageError: they do not, or they are coded in a way that this does not follow and hardly anybody uses.
    """
    steps: dict[int, int] = {}
    tables: dict[int, np.ndarray] = {}
    interval = 0
    kind, frame = next((segment.kind, segment.body) for segment in header.segments if segment.kind in FRAMES)
    if kind not in (*SEQUENTIAL, PROGRESSIVE) or frame[0] != 8:
        raise ImageError("a JPEG that is arithmetic, lossless or of 12 bits, which no decoder here reads")
    components = _components(frame, header.size, kind == PROGRESSIVE)
    for segment in header.segments:
        if segment.kind == QUANTISERS:
            steps |= _steps(segment.body)
        elif segment.kind == TABLES:
            tables |= _tables(segment.body)
        elif segment.kind == INTERVAL:
            (interval,) = struct.unpack(">H", segment.body)
        elif segment.kind == SCAN:
            _follow(segment, components, header.size, kind == PROGRESSIVE, interval, steps, tables)
    if any(component.open_bits.any() for component in components.values()):
        raise ImageError("damaged JPEG: scans are missing")


def _components(frame: bytes, size: tuple[int, int], is_progressive: bool) -> dict[int, Component]:
    """By the number that scans name them by."""
    described = [frame[place : place + 3] for place in range(6, 6 + 3 * frame[5], 3)]
    factors = [(sampling >> 4, sampling & 15) for _, sampling, _ in described]
    most = [max(factor) for factor in zip(*factors, strict=True)]
    components = {}
    for (name, _, quantiser), factor in zip(described, factors, strict=True):
        pixels = [-(-length * part // whole) for length, part, whole in zip(size, factor, most, strict=True)]
        grid = (-(-pixels[0] // 8), -(-pixels[1] // 8))
        is_set = np.zeros((grid[0] * grid[1] if is_progressive else 1, COEFFICIENTS), np.bool_)
        components[name] = Component(*factor, quantiser, np.full(COEFFICIENTS, UNKNOWN), is_set, grid)
    return components


def _steps(body: bytes) -> dict[int, int]:
    """Of each quantiser in a segment, the step of a block's mean."""
    steps, place = {}, 0
    while place < len(body):
        width = 1 + (body[place] >> 4)  # bytes a step
        steps[body[place] & 15] = int.from_bytes(body[place + 1 : place + 1 + width], "big")
        place += 1 + COEFFICIENTS * width
    return steps


@lru_cache(maxsize=64)  # most files have the standard's own tables
def _tables(body: bytes) -> dict[int, np.ndarray]:
    """The Huffman tables in a segment by their number: for any 16 bits, the first code's
    length * 256 + its symbol, 0 where there is no such code."""
    tables, place = {}, 0
    while place < len(body):
        counts = np.frombuffer(body[place + 1 : place + 17], np.uint8)
        symbols = np.frombuffer(body[place + 17 : place + 17 + int(counts.sum())], np.uint8)
        lengths = np.repeat(np.arange(1, 17), counts)
        kind = body[place] >> 4
        is_legal = (symbols & (15 if kind else 255)) <= LARGEST[kind]
        codes = np.repeat((lengths * 256 + symbols) * is_legal, 2 ** (16 - lengths))
        tables[body[place]] = np.zeros(2**16, np.uint16)
        tables[body[place]][: len(codes)] = codes
        place += 17 + len(symbols)
    return tables


def _follow(segment: Segment, components: dict[int, Component], size: tuple[int, int], is_progressive: bool,
            interval: int, steps: dict[int, int], tables: dict[int, np.ndarray]) -> None:  # fmt: skip
    """Follow one scan; `open_bits` and `is_set` of its components are brought up to date."""
    count = segment.body[0]
    named = [segment.body[place : place + 2] for place in range(1, 1 + 2 * count, 2)]
    members = [components[name] for name, _ in named]
    first, last, bits = segment.body[1 + 2 * count : 4 + 2 * count] if is_progressive else (0, COEFFICIENTS - 1, 0)
    before, after = bits >> 4, bits & 15
    _require_order(members, first, last, before, after, is_progressive)
    if count == 1:
        units, order = members[0].grid[0] * members[0].grid[1], [0]
    else:
        most = [max(factor) for factor in zip(*((c.across, c.down) for c in components.values()), strict=True)]
        across, down = (-(-length // (8 * factor)) for length, factor in zip(size, most, strict=True))
        units, order = across * down, [i for i, c in enumerate(members) for _ in range(c.across * c.down)]
    means = np.stack([tables[table >> 4] if first == 0 and not before else _NO_TABLE for _, table in named])
    others = np.stack([tables[16 + (table & 15)] if last else _NO_TABLE for _, table in named])
    limits = np.array([BRIGHTEST // steps[member.quantiser] + 1 for member in members])
    about = (np.array(order), means, others, limits, first, last, before, after, is_progressive, members[0].is_set)
    start = 0
    for part in _parts(segment.coded, units, interval):
        some = min(interval or units, units - start)
        data = np.frombuffer(part.rstrip(b"\xff").replace(b"\xff\0", b"\xff") + PADDING, np.uint8)
        if not _is_whole(data, len(data) - len(PADDING), start, some, *about):
            raise ImageError("damaged JPEG: its coded data breaks off or makes no sense")
        start += some


_NO_TABLE = np.zeros(2**16, np.uint16)


def _require_order(members: Sequence[Component], first: int, last: int, before: int, after: int,
                   is_progressive: bool) -> None:  # fmt: skip
    """Check that a scan refines what scans before it left open, and note what it leaves."""
    is_odd = is_progressive and (last >= COEFFICIENTS or first > last or (first == 0) != (last == 0))
    is_odd |= is_progressive and first > 0 and len(members) > 1
    for member in members:
        place = slice(first, last + 1)
        is_odd |= is_progressive and bool((member.open_bits[place] != (before or UNKNOWN)).any())
        member.open_bits[place] = after
    if is_odd:
        raise ImageError("damaged JPEG: its scans do not follow from each other")


def _parts(coded: bytes, units: int, interval: int) -> list[bytes]:
    """The coded data between restarts, as many as there should be."""
    pieces = RESTART.split(coded)
    parts, marks = pieces[::2], [mark[0] & 7 for mark in pieces[1::2]]
    wanted = -(-units // interval) if interval else 1
    if len(parts) == wanted + 1 and not parts[-1]:  # a restart after the last block restarts nothing
        parts, marks = parts[:-1], marks[:-1]
    if len(parts) != wanted or marks != [place % 8 for place in range(len(marks))]:
        raise ImageError("damaged JPEG: its restarts are not where they should be")
    return parts


def compiled(kernel: Kernel) -> Kernel:
    """A loop compiled at its first call and kept beside its source."""
    return cast(Kernel, numba.njit(cache=True, nogil=True)(kernel))


@compiled
def _bits(data: Any, place: int, count: int) -> Any:
    """The next `count` bits, at most 16."""
    at = place >> 3
    three = (np.int64(data[at]) << 16) | (np.int64(data[at + 1]) << 8) | np.int64(data[at + 2])
    return (three >> (24 - (place & 7) - count)) & ((1 << count) - 1)


@compiled
def _code(table: Any, data: Any, place: int) -> Any:
    """The next code's length * 256 + its symbol."""
    return np.int64(table[_bits(data, place, 16)])


@compiled
def _is_whole(data: Any, length: int, start: int, units: int, order: Any, means: Any, others: Any, limits: Any,
              first: int, last: int, before: int, after: int, is_progressive: bool, is_set: Any) -> bool:  # fmt: skip
    """Follow the codes of some units, each of one block or more; do they keep to the code and end with the data?

    Args:
        data: uint8, followed by PADDING.
        length: of it without, bytes.
        start: number of the first unit, which is its block's where the scan is of one component.
        units: their number.
        order: which component of the scan each block of a unit belongs to.
        means: tables of the blocks' means, by component of the scan.
        others: tables of the other coefficients.
        limits: of the means in steps.
        first: coefficient of the scan.
        last: coefficient of the scan.
        before: low bits that were open before a refining scan, 0 for a first one.
        after: low bits that are open after it.
        is_progressive: may blocks end in runs?
        is_set: (block, COEFFICIENTS), which coefficients are not zero; of progressive scans of one component.
    """
    total = 8 * length
    place, run = 0, 0
    mean = np.zeros(len(limits), np.int64)
    for unit in range(start, start + units):
        for component in order:
            k = first
            if first == 0:
                k = 1
                if before:
                    place += 1
                else:
                    code = _code(means[component], data, place)
                    place += code >> 8
                    size = code & 255
                    value = _bits(data, place, size)
                    place += size
                    if size and not value >> (size - 1):
                        value -= (1 << size) - 1
                    mean[component] += value
                    if code == 0 or abs(mean[component] << after) > limits[component]:
                        return False
            if before and last:
                while k <= last and not run:
                    code = _code(others[component], data, place)
                    place += code >> 8
                    zeros, size = (code >> 4) & 15, code & 15
                    if code == 0 or size > 1:
                        return False
                    if size == 0 and zeros < 15:
                        run = (1 << zeros) + _bits(data, place, zeros)
                        place += zeros
                        break
                    place += size
                    while k <= last and (is_set[unit, k] or zeros):  # a bit for each that is set
                        if is_set[unit, k]:
                            place += 1
                        else:
                            zeros -= 1
                        k += 1
                    if size:
                        if k > last:
                            return False
                        is_set[unit, k] = True
                    k += 1
                if run:
                    for later in range(k, last + 1):
                        place += is_set[unit, later]
                    run -= 1
            elif run:
                run -= 1
            else:
                while k <= last:
                    code = _code(others[component], data, place)
                    zeros, size = (code >> 4) & 15, code & 15
                    place += (code >> 8) + size
                    if code == 0:
                        return False
                    if size:
                        k += zeros
                        if k > last:
                            return False
                        if is_progressive:
                            is_set[unit, k] = True
                        k += 1
                    elif zeros == 15:
                        k += 16
                    else:
                        run = (1 << zeros) - 1 + _bits(data, place, zeros)
                        place += zeros
                        if run and not is_progressive:
                            return False
                        break
                if k > last + 1:
                    return False
            if place > total:
                return False
    return run == 0 and place <= total < place + 8
