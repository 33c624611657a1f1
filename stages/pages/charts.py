"""Small charts as inline SVG: text stays text, the same numbers give the same bytes, and nothing is loaded.

A panel is 360 units wide, so that its 12-unit text is readable at phone width; a page lays several side by side. A heat
map is as wide as it needs to be, and scrolls.
Styles are classes of the page's sheet; who is who is written at the mark as well as coloured.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

WIDTH = 360
MINUS = "\N{MINUS SIGN}"
UNDEFINED = "\N{EN DASH}"
STRONG = 0.5  # a share from which a cell is so dark that its text is white
LEAST = 0.005  # a share that rounds to 1%


@dataclass(frozen=True)
class Bar:
    """An estimate with its interval: one line of a forest chart.

    Attributes:
        label: what is written to its left.
        style: the class that colours it.
        value: the estimate; `None` draws a dash.
        low: lower end of the interval, or `None`.
        high: upper end of the interval, or `None`.
    """

    label: str
    style: str
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Line:
    """A curve of a line chart.

    Attributes:
        label: what is written at its end.
        style: the class that colours and dashes it.
        points: (x, y), by ascending x.
    """

    label: str
    style: str
    points: tuple[tuple[float, float], ...]


def ticks(low: float, high: float) -> list[float]:
    """At most eight round numbers that lie within a range."""
    for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
        if (high - low) / step <= 7:
            break
    first = int(-(-low // step))
    return [round(place * step, 2) for place in range(first, int(high // step + 1e-9) + 1)]


def span(values: Sequence[float | None], pad: float) -> tuple[float, float]:
    """The range of the defined values, wider by `pad` on both sides; 0 to 1 if there is none."""
    defined = [value for value in values if value is not None]
    return (min(defined) - pad, max(defined) + pad) if defined else (0.0, 1.0)


def forest(title: str, bars: Sequence[Bar], limits: tuple[float, float], mark: float | None = None) -> Markup:
    """Estimates below each other with their intervals, values written at the right.

    Args:
        title: what the chart says, for those who cannot see it.
        bars: from top to bottom.
        limits: the range of the horizontal axis.
        mark: a value with an upright line, e.g. no difference.
    """
    left, right, row, low, high = 92, 212, 30, *limits
    height = row * len(bars) + 30

    def x(value: float) -> str:
        return f"{left + (right - left) * (min(max(value, low), high) - low) / (high - low):.1f}"

    parts = []
    for tick in ticks(low, high):
        parts.append(f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="4" y2="{height - 22}"/>')
        parts.append(f'<text class="tick" x="{x(tick)}" y="{height - 7}" text-anchor="middle">{tick:.2f}</text>')
    if mark is not None:
        parts.append(f'<line class="mark" x1="{x(mark)}" x2="{x(mark)}" y1="2" y2="{height - 20}"/>')
    for place, bar in enumerate(bars):
        y = row * place + 20
        parts.append(f'<text x="0" y="{y + 4}" class="{bar.style}">{escape(bar.label)}</text>')
        if bar.value is None:
            parts.append(f'<text x="{right + 10}" y="{y + 4}">undefined</text>')
            continue
        if bar.low is not None and bar.high is not None:
            parts.append(f'<line class="{bar.style}" x1="{x(bar.low)}" x2="{x(bar.high)}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="{bar.style}" cx="{x(bar.value)}" cy="{y}" r="4.5"/>')
        text = number(bar.value) if mark is None else signed(bar.value)
        shown = interval(bar.low, bar.high, mark is not None)
        ends = f' <tspan class="tick">{shown}</tspan>' if shown else ""
        parts.append(f'<text x="{right + 12}" y="{y + 4}">{text}{ends}</text>')
    return _svg(title, WIDTH, height, parts)


def lines(
    title: str, drawn: Sequence[Line], limits: tuple[float, float], x_ticks: Sequence[tuple[float, str]]
) -> Markup:
    """Curves with their names written at their ends, over x from 0 to 1.

    Args:
        title: what the chart says, for those who cannot see it.
        drawn: the curves.
        limits: the range of the vertical axis.
        x_ticks: (place, text) of the horizontal axis.
    """
    left, right, top, bottom = 34, 236, 10, 176

    def x(value: float) -> float:
        return left + (right - left) * value

    y, parts = _upright(left, right, (top, bottom), limits)
    for place, text in x_ticks:
        at = f'x="{x(place):.1f}" y="{bottom + 18}"'
        parts.append(f'<text class="tick" {at} text-anchor="middle">{escape(text)}</text>')
    for line in drawn:
        points = " ".join(f"{x(across):.1f},{y(up):.1f}" for across, up in line.points)
        parts.append(f'<polyline class="{line.style}" points="{points}"/>')
        for across, up in line.points:
            told = f"{line.label}: {number(up)} at {number(across)}"
            at = f'cx="{x(across):.1f}" cy="{y(up):.1f}"'
            parts.append(f'<circle class="hover" {at} r="6"><title>{escape(told)}</title></circle>')
    ends = [y(line.points[-1][1]) if line.points else top for line in drawn]
    for line, end in zip(drawn, apart(ends, 15, bottom + 6), strict=True):
        parts.append(f'<text class="{line.style}" x="{right + 7}" y="{end + 4:.1f}">{escape(line.label)}</text>')
    return _svg(title, WIDTH, bottom + 26, parts)


def _upright(
    left: int, right: int, ends: tuple[int, int], limits: tuple[float, float]
) -> tuple[Callable[[float], float], list[str]]:
    """A vertical axis: where a value lies on it, and its grid with the numbers beside it."""
    (top, bottom), (low, high) = ends, limits

    def y(value: float) -> float:
        return bottom - (bottom - top) * (min(max(value, low), high) - low) / (high - low)

    parts = []
    for tick in ticks(low, high):
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 5}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.2f}</text>')
    return y, parts


def cost(title: str, bars: Sequence[Bar], costs: Sequence[float], limits: tuple[float, float], unit: str) -> Markup:
    """Estimates with their intervals over what they cost, on a logarithmic axis.

    Args:
        title: what the chart says, for those who cannot see it.
        bars: the estimates; those without a value are left out.
        costs: of each bar, above 0.
        limits: the range of the vertical axis.
        unit: of the costs.
    """
    left, right, top, bottom = 40, 270, 10, 176
    first, last = (math.log10(end) for end in (min(costs) / 1.6, max(costs) * 1.6))

    def x(value: float) -> float:
        return left + (right - left) * (math.log10(value) - first) / (last - first)

    y, parts = _upright(left, right, (top, bottom), limits)
    for value in dict.fromkeys(costs):
        at = f'x="{x(value):.1f}" y="{bottom + 18}"'
        parts.append(f'<text class="tick" {at} text-anchor="middle">{value:.3g} {escape(unit)}</text>')
    known = [(bar, x(value)) for bar, value in zip(bars, costs, strict=True) if bar.value is not None]
    for bar, across in known:
        if bar.low is not None and bar.high is not None:
            ends = f'y1="{y(bar.low):.1f}" y2="{y(bar.high):.1f}"'
            parts.append(f'<line class="{bar.style}" x1="{across:.1f}" x2="{across:.1f}" {ends}/>')
        told = f"{bar.label} {number(bar.value)} ({interval(bar.low, bar.high)})"
        at = f'cx="{across:.1f}" cy="{y(bar.value or 0):.1f}"'
        parts.append(f'<circle class="{bar.style}" {at} r="4.5"><title>{escape(told)}</title></circle>')
    for (bar, across), end in zip(known, apart([y(bar.value or 0) for bar, _ in known], 15, bottom), strict=True):
        parts.append(f'<text class="{bar.style}" x="{across + 9:.1f}" y="{end + 4:.1f}">{escape(bar.label)}</text>')
    return _svg(title, WIDTH, bottom + 26, parts)


def bars(title: str, labels: Sequence[str], values: Sequence[float], style: str) -> Markup:
    """Shares of a whole below each other, the share written at the end of each.

    Args:
        title: what the chart says, for those who cannot see it.
        labels: what is written to the left of each.
        values: 0 or more each.
        style: the class that colours them.
    """
    left, right, row, whole = 120, 300, 18, sum(values) or 1.0
    widest, parts = max(values, default=0) / whole or 1.0, []
    for place, (label, value) in enumerate(zip(labels, values, strict=True)):
        y, width = row * place + 4, (right - left) * value / whole / widest
        parts.append(f'<text x="{left - 6}" y="{y + 11}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<rect class="{style}" x="{left}" y="{y + 2}" width="{width:.1f}" height="11"/>')
        parts.append(f'<text class="tick" x="{left + width + 5:.1f}" y="{y + 11}">{percent(value / whole)}</text>')
    return _svg(title, WIDTH, row * len(labels) + 8, parts)


def heat(title: str, labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Markup:
    """How often things go together: in row and column, the share of the row's that are also the column's.

    The share is written in the cell as per cent and is its depth of colour; what it is a share of is told on hover. An
    empty cell: none.

    Args:
        title: what the chart says, for those who cannot see it.
        labels: of the rows, and of the columns.
        counts: (row, column) how many are both; on the diagonal, how many the row has.
    """
    cell, left, top = 24, 212, 134
    parts = []
    for row, label in enumerate(labels):
        y = top + cell * row
        whole = counts[row][row]
        parts.append(f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{escape(label)} ({whole:,})</text>')
        across = left + cell * row + 15
        place = f'x="{across}" y="{top - 7}" transform="rotate(-55 {across} {top - 7})"'
        parts.append(f"<text {place}>{escape(label)}</text>")
        parts.append(f'<g transform="translate({left} {y})">')  # a row's cells have short places: there are hundreds
        parts.append(f'<path class="row" d="M0 0h{cell * len(labels)}v{cell}H0z"/>')
        for column, other in enumerate(labels):
            x, both = cell * column, counts[row][column]
            square = f'd="M{x} 0h{cell}v{cell}h-{cell}z"'
            if column == row or not whole:
                parts.append(f'<path class="self" {square}/>')
                continue
            share = both / whole
            if both:
                told = f"{both:,} of {whole:,} also have {other}"
                parts.append(f'<path {square} fill-opacity="{share:.2g}"><title>{escape(told)}</title></path>')
                style = ' class="on"' if share > STRONG else ""
                text = f"{100 * share:.0f}" if share >= LEAST else "&lt;1"
                parts.append(f'<text{style} x="{x + cell / 2:g}" y="16">{text}</text>')
        parts.append("</g>")
    side = cell * len(labels)
    return _svg(title, left + side + 56, top + side + 2, parts, style="heat")


def apart(places: Sequence[float], gap: float, limit: float) -> list[float]:
    """Move labels as little as needed so that they are `gap` apart and none lies beyond `limit`."""
    order = sorted(range(len(places)), key=lambda index: (places[index], index))
    moved = list(places)
    for before, index in pairwise(order):
        moved[index] = max(moved[index], moved[before] + gap)
    ceiling = limit
    for index in reversed(order):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


def number(value: float | None) -> str:
    """An AUROC or another share, three decimals."""
    return UNDEFINED if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A share as per cent, one decimal."""
    return UNDEFINED if value is None else f"{100 * value:.1f}%"


def chance(value: float | None) -> str:
    """A p value."""
    return UNDEFINED if value is None else "<0.001" if value < 0.001 else f"{value:.2g}"


def whole_percent(value: float | None) -> str:
    """A share as per cent without decimals, which may be negative or above 100."""
    if value is None:
        return UNDEFINED
    text = f"{100 * abs(value):.0f}%"
    return MINUS + text if value < 0 and text != "0%" else text


def signed(value: float | None) -> str:
    """A difference, three decimals, with its sign unless it rounds to 0."""
    if value is None:
        return UNDEFINED
    text = f"{abs(value):.3f}"
    return text if float(text) == 0 else ("+" if value > 0 else MINUS) + text


def interval(low: float | None, high: float | None, is_difference: bool = False) -> str:
    """The ends of an interval."""
    text = signed if is_difference else number
    return "" if low is None or high is None else f"{text(low)} to {text(high)}"


def _svg(title: str, width: int, height: int, parts: Sequence[str], style: str = "") -> Markup:
    body = "\n".join(parts)
    shape = f'viewBox="0 0 {width} {height}"'
    if style:  # drawn at its own size, not at its panel's
        shape = f'class="{style}" style="width:{width}px" {shape}'
    return Markup(  # noqa: S704 - built above from numbers and escaped text
        f'<svg {shape} role="img" aria-label="{escape(title)}">\n{body}\n</svg>'
    )
