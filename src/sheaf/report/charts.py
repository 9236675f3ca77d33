"""Charts as inline SVG: lines and stacked bars, no script, no outside reference.

Colours are classes of the page's style sheet, so that light and dark need one chart; the hues are those of Okabe and
Ito (2008), which people with any common colour blindness can tell apart, and every line and part is named where it is.
A line is drawn through the least and the greatest of each of at most 300 stretches: a spike is never averaged away.
"""

from __future__ import annotations

import html
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 92, 14, 40
_STRETCHES = 300


@dataclass(frozen=True)
class Line:
    """x rising, y of the same length; points that are not finite are left out. colour: 1…6. marks: a dot at each."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    marks: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Part:
    """A part of a stacked bar."""

    name: str
    colour: int


def lines(drawn: Sequence[Line], *, title: str, x_name: str, y_name: str, from_zero: bool = False) -> Markup:
    """A chart of lines over a common x. Empty if no line has a point."""
    points = [(line, _thinned(line)) for line in drawn]
    points = [(line, p) for line, p in points if p]
    if not points:
        return Markup("")
    scale = _Scale.around([xy for _, p in points for xy in p], from_zero)
    body = [_frame(scale, x_name, y_name)]
    labels = _spread([(scale.y(p[-1][1]), line) for line, p in points if not line.faint])
    for line, p in points:
        body.append(_path(line, p, scale))
    for y, line in labels:
        name = html.escape(line.name)
        body.append(f'<text class="label c{line.colour}" x="{WIDTH - _RIGHT + 6}" y="{y + 4:.1f}">{name}</text>')
    return _svg(title, HEIGHT, body)


def stacked(rows: Sequence[tuple[str, Sequence[float]]], parts: Sequence[Part], *, title: str) -> Markup:
    """One bar a row, each filling the width: the shares of its parts. A row of zeros has no bar."""
    body: list[str] = []
    for number, (name, values) in enumerate(rows):
        top = 4 + number * 40
        body.append(f'<text class="row" x="2" y="{top + 10}">{html.escape(name)}</text>')
        body.append(_bar(values, parts, top + 15))
    return _svg(title, 8 + 40 * len(rows), body)


def histogram(
    edges: Sequence[float], counts: Sequence[int], marked: Sequence[int], threshold: float, *, title: str, x_name: str
) -> Markup:
    """Bars of equal width, one a bin, as high as log(1 + count), with the marked part of each in another colour and
    a line at the threshold. Empty bins at both ends are left out. Empty if nothing was counted.

    edges: one more than the bins, rising. marked: at most the count of each.
    """
    filled = [n for n, count in enumerate(counts) if count]
    if not filled:
        return Markup("")
    inside = min(max(bisect_right(edges, threshold) - 1, 0), len(counts) - 1)
    first, last = min(filled[0], inside), max(filled[-1], inside) + 1
    right, bottom = WIDTH - 8, HEIGHT - _BOTTOM
    step = (right - _LEFT) / (last - first)
    scale = (bottom - _TOP) / math.log1p(max(counts))
    body = [_powers(max(counts), scale, right, bottom)]
    for number in range(first, last):
        x = _LEFT + (number - first) * step
        for count, colour in ((counts[number], 3), (marked[number], 2)):
            height = math.log1p(count) * scale
            if count:
                place = f'x="{x + 0.5:.1f}" y="{bottom - height:.1f}" width="{max(step - 1, 0.5):.1f}"'
                tip = f"{short_number(edges[number])} to {short_number(edges[number + 1])}: {count:,}"
                body.append(f'<rect class="b{colour}" {place} height="{height:.1f}"><title>{tip}</title></rect>')
    every = max(1, (last - first) // 6)
    for number in range(first, last + 1, every):
        x = _LEFT + (number - first) * step
        label = short_number(edges[number])
        body.append(f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{bottom + 16}">{label}</text>')
    share = (threshold - edges[inside]) / (edges[inside + 1] - edges[inside])
    x = _LEFT + (inside - first + min(max(share, 0.0), 1.0)) * step
    body.append(f'<path class="threshold" d="M{x:.1f},{_TOP - 6} V{bottom}"/>')
    side = f'text-anchor="end" x="{x - 4:.1f}"' if x > WIDTH / 2 else f'x="{x + 4:.1f}"'
    body.append(f'<text class="label" {side} y="{_TOP + 6}">{short_number(threshold)}</text>')
    body.append(f'<path class="axis" d="M{_LEFT},{bottom} H{right}"/>')
    middle = (_LEFT + right) / 2
    body.append(f'<text class="tick" text-anchor="middle" x="{middle}" y="{HEIGHT - 6}">{html.escape(x_name)}</text>')
    body.append(f'<text class="tick" x="2" y="{_TOP - 3}">records</text>')
    return _svg(title, HEIGHT, body)


def legend(parts: Sequence[Part]) -> Markup:
    """The names of the parts beside their colours."""
    keys = [f'<span class="key"><i class="b{p.colour}"></i>{html.escape(p.name)}</span>' for p in parts]
    return Markup('<p class="legend">' + " ".join(keys) + "</p>")


def short_number(value: float) -> str:
    """1200 → 1.2k: three digits at most."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


@dataclass(frozen=True)
class _Scale:
    x0: float
    x1: float
    y0: float
    y1: float

    @staticmethod
    def around(points: Sequence[tuple[float, float]], from_zero: bool) -> _Scale:
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        low, high = (0.0 if from_zero else min(ys)), max(ys)
        room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        return _Scale(min(xs), max(max(xs), min(xs) + 1), low if from_zero else low - room, high + room)

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - _TOP - _BOTTOM)


def _thinned(line: Line) -> list[tuple[float, float]]:
    pairs = zip(line.x, line.y, strict=True)
    points = [(float(x), float(y)) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]
    if len(points) <= 2 * _STRETCHES:
        return points
    kept: list[tuple[float, float]] = []
    for number in range(_STRETCHES):
        stretch = points[len(points) * number // _STRETCHES : len(points) * (number + 1) // _STRETCHES]
        ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept += sorted(ends)
    return [*kept, points[-1]] if kept[-1] != points[-1] else kept


def _path(line: Line, points: Sequence[tuple[float, float]], scale: _Scale) -> str:
    places = [(scale.x(x), scale.y(y)) for x, y in points]
    drawn = "M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in places)
    faint = " faint" if line.faint else ""
    path = f'<path class="line l{line.colour}{faint}" d="{drawn}"/>'
    if not line.marks and len(points) > 1:
        return path
    return path + "".join(f'<circle class="b{line.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places)


def _frame(scale: _Scale, x_name: str, y_name: str) -> str:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts: list[str] = []
    for value in _ticks(scale.y0, scale.y1, 5):
        y = scale.y(value)
        parts.append(f'<path class="grid" d="M{_LEFT},{y:.1f} H{right}"/>')
        parts.append(
            f'<text class="tick" text-anchor="end" x="{_LEFT - 6}" y="{y + 4:.1f}">{short_number(value)}</text>'
        )
    for value in _ticks(scale.x0, scale.x1, 5):
        label = short_number(value)
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{scale.x(value):.1f}" y="{bottom + 16}">{label}</text>'
        )
    parts.append(f'<path class="axis" d="M{_LEFT},{bottom} H{right}"/>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text class="tick" text-anchor="middle" x="{middle}" y="{HEIGHT - 6}">{html.escape(x_name)}</text>')
    parts.append(f'<text class="tick" x="2" y="{_TOP - 3}">{html.escape(y_name)}</text>')
    return "".join(parts)


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round values inside [low, high]."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _spread(labels: Sequence[tuple[float, Line]]) -> list[tuple[float, Line]]:
    """Move labels apart that would lie upon each other."""
    result: list[tuple[float, Line]] = []
    for y, line in sorted(labels, key=lambda label: label[0]):
        result.append((max(y, result[-1][0] + 15) if result else max(y, _TOP + 4), line))
    return result


def _powers(most: int, scale: float, right: float, bottom: float) -> str:
    """Grid lines of a logarithmic axis, at 1, 10, 100 …"""
    parts: list[str] = []
    for power in range(len(str(most))):
        y = bottom - math.log1p(10**power) * scale
        label = short_number(10.0**power)
        parts.append(f'<path class="grid" d="M{_LEFT},{y:.1f} H{right}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{_LEFT - 6}" y="{y + 4:.1f}">{label}</text>')
    return "".join(parts)


def _bar(values: Sequence[float], parts: Sequence[Part], top: int) -> str:
    total = sum(values)
    drawn: list[str] = []
    x = 2.0
    for value, part in zip(values, parts, strict=True):
        width = (WIDTH - 4) * value / total if total > 0 else 0.0
        if width <= 0:
            continue
        share = f"{100 * value / total:.0f}%" if value / total >= 0.005 else "<1%"
        tip = html.escape(f"{part.name}: {share}")
        rectangle = f'<rect class="b{part.colour}" x="{x:.1f}" y="{top}" width="{width:.1f}" height="18">'
        drawn.append(f"{rectangle}<title>{tip}</title></rect>")
        if width > 40:
            drawn.append(f'<text class="on" text-anchor="middle" x="{x + width / 2:.1f}" y="{top + 13}">{share}</text>')
        x += width
    return "".join(drawn)


def _svg(title: str, height: int, body: Sequence[str]) -> Markup:
    name = html.escape(title)
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{name}">'
    return Markup(head + f"<title>{name}</title>" + "".join(body) + "</svg>")
