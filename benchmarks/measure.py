"""Interleaved timings, peak memory of a process, and the lines of the result table."""

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

QUARTILES = (0.25, 0.75)
LINUX_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        what: is compared.
        ours: our figure, with its unit.
        reference: what it is held against, with its unit.
        ratio: ours to the reference, median of the pairs.
        spread: the ratio's quartiles over the pairs; None of a single measurement.
        limit: the ratio that is wanted, None for a line that informs.
        at_most: whether the limit is an upper one.
    """

    what: str
    ours: str
    reference: str
    ratio: float
    spread: tuple[float, float] | None = None
    limit: float | None = None
    at_most: bool = True

    @property
    def is_met(self) -> bool:
        """Whether the ratio is within its limit."""
        return self.limit is None or (self.ratio <= self.limit if self.at_most else self.ratio >= self.limit)

    def row(self) -> str:
        """The line in Markdown."""
        spread = "" if self.spread is None else f" ({self.spread[0]:.3g} to {self.spread[1]:.3g})"
        wanted = "" if self.limit is None else f"{'at most' if self.at_most else 'at least'} {self.limit:g}"
        met = "" if self.limit is None else "yes" if self.is_met else "**no**"
        return f"| {self.what} | {self.ours} | {self.reference} | {self.ratio:.3g}{spread} | {wanted} | {met} |"


def seconds(work: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(*works: Callable[[], Any], count: int) -> list[list[float]]:
    """Seconds of each over `count` rounds, after one that does not count; every other round runs backwards."""
    for work in works:
        work()
    timed: list[list[float]] = [[] for _ in works]
    for number in range(count):
        places = range(len(works))
        for place in places if number % 2 == 0 else reversed(places):
            timed[place].append(seconds(works[place]))
    return timed


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The lower and the upper quartile (nearest rank)."""
    ordered = sorted(values)
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in QUARTILES)
    return low, high


def compare(
    what: str, timed: Sequence[Sequence[float]], unit: str, work: float, limit: float | None, is_rate: bool
) -> Line:
    """A line of paired seconds: as rates (`work` units a second; more is better) or as durations (less is better).

    Args:
        what: as of `Line`.
        timed: our seconds and theirs, as many.
        unit: of work, or s.
        work: units that were done in each.
        limit: as of `Line`.
        is_rate: whether rates are compared.
    """
    ours, theirs = timed
    ratios = [(b / a if is_rate else a / b) for a, b in zip(ours, theirs, strict=True)]

    def shown(values: Sequence[float]) -> str:
        return f"{work / median(values):.3g} {unit}/s" if is_rate else f"{median(values) / work:.3g} {unit}"

    return Line(what, shown(ours), shown(theirs), median(ratios), quartiles(ratios), limit, at_most=not is_rate)


def printed(module: str, *words: str) -> list[float]:
    """The numbers that `python -m <module> <words>` prints, one a line: what is measured in a process of its own."""
    done = subprocess.run([sys.executable, "-m", module, *words], check=True, stdout=subprocess.PIPE, text=True)
    return [float(line) for line in done.stdout.splitlines()]


def own_peak_mb() -> float:
    """Peak resident memory of this process.

    Linux carries the parent's ru_maxrss over fork and exec, so there the kernel's own mark of this program is read.
    """
    if LINUX_STATUS.exists():
        marks = [line for line in LINUX_STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:")]
        return int(marks[0].split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))
