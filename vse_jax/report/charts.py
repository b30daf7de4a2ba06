"""Line charts of a report, as inline SVG."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from vse_jax.report.text import escaped, short

Series: TypeAlias = Mapping[str, Sequence[tuple[float, float]]]
# Colours of lines, as classes of the page's style; lines beyond them are dashed.
HUES = 8
# The frame, in units of the drawing.
LEFT, RIGHT, TOP, BOTTOM = 46, 348, 8, 178
NONE: Mapping[str, Any] = MappingProxyType({})
# Of a largest value over the smallest, from where on a loss is drawn by its logarithm.
WIDE = 30.0


@dataclasses.dataclass(frozen=True)
class _Frame:
    """Where values are drawn: between which x, by which ticks of y, and whether by logarithm."""

    x_low: float
    x_high: float
    y_ticks: Sequence[float]
    by_logarithm: bool

    @classmethod
    def around(cls, series: Series, floor: float | None, logarithm: bool) -> "_Frame":
        columns = list(zip(*(point for line in series.values() for point in line), strict=True))
        (x_low, low), (x_high, high) = (tuple(map(end, columns)) for end in (min, max))
        wide = logarithm and low > 0 and high > WIDE * low
        if floor is not None:
            low = min(low, floor)
        return cls(x_low, x_high, (_decades if wide else _ticks)(low, high), wide)

    def across(self, x: float) -> float:
        wide = self.x_high - self.x_low
        return LEFT + (RIGHT - LEFT) * ((x - self.x_low) / wide if wide > 0 else 0.5)

    def up(self, y: float) -> float:
        low, high, y = map(self._scaled, (self.y_ticks[0], self.y_ticks[-1], y))
        return BOTTOM - (BOTTOM - TOP) * (y - low) / (high - low)

    def has(self, x: float) -> bool:
        return self.x_low <= x <= self.x_high

    def _scaled(self, y: float) -> float:
        return math.log10(y) if self.by_logarithm else y


def chart(
    title: str,
    series: Series,
    marked: float | None = None,
    floor: float | None = None,
    along: str = "step",
    *,
    logarithm: bool = False,
    rings: Mapping[str, float] = NONE,
    hues: Mapping[str, int] = NONE,
) -> str:
    """A figure with one line a series and a legend, which gives last values by step, as SVG.

    Args:
      title: what is drawn.
      series: name -> (x, value) in ascending x, all finite; at least one point in each.
      marked: an x to mark, the step of the reported checkpoint.
      floor: the least value of the y axis; the least one drawn where None.
      along: what x is.
      logarithm: whether values wide apart, all above 0, are drawn by theirs; needs no floor.
      rings: name -> an x to mark on its line, as `marked` does on all.
      hues: name -> number of its colour, where that is not its place in `series`.
    """
    frame = _Frame.around(series, floor, logarithm)
    drawn = _axes(frame, along)
    if marked is not None and frame.has(marked):
        drawn.append(f'<path class="mark" d="M{frame.across(marked):.1f} {TOP}V{BOTTOM}"/>')
    legend = []
    for place, (name, line) in enumerate(series.items()):
        hue = hue_of(hues.get(name, place))
        drawn += _drawn(name, line, hue, frame, along)
        if name in rings and line[0][0] <= rings[name] <= line[-1][0]:
            drawn.append(_ring(line, rings[name], hue, frame))
        last = f" <b>{short(line[-1][1], 3)}</b>" if along == "step" else ""
        legend.append(f'<span><i class="{hue}"></i>{escaped(name)}{last}</span>')
    scale = " <span class=muted>logarithmic</span>" if frame.by_logarithm else ""
    return (
        f"<figure><figcaption>{escaped(title)}{scale}</figcaption>"
        f"<div class=legend>{''.join(legend)}</div>"
        f'<svg viewBox="0 0 360 214" role="img" aria-label="{escaped(title)} by {escaped(along)}">'
        f"{''.join(drawn)}</svg></figure>"
    )


def hue_of(number: int) -> str:
    """The classes of a line: its colour, and dashes where the colours are used up."""
    return f"c{number % HUES}" + (" dashed" if number // HUES % 2 else "")


def _axes(frame: _Frame, along: str) -> list[str]:
    """Grid lines with their values, and what x is."""
    drawn = []
    for tick in frame.y_ticks:
        y = frame.up(tick)
        drawn.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{RIGHT}"/>')
        drawn.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" class="y">{short(tick)}</text>')
    for tick in filter(frame.has, _ticks(frame.x_low, frame.x_high)):
        drawn.append(f'<text x="{frame.across(tick):.1f}" y="{BOTTOM + 17}">{short(tick)}</text>')
    middle = (LEFT + RIGHT) / 2
    drawn.append(f'<text x="{middle}" y="{BOTTOM + 32}" class="axis">{escaped(along)}</text>')
    return drawn


def _drawn(
    name: str, line: Sequence[tuple[float, float]], hue: str, frame: _Frame, along: str
) -> list[str]:
    """A line, with a dot at each point where these are few."""
    path = "L".join(f"{frame.across(x):.1f} {frame.up(y):.1f}" for x, y in _thinned(line))
    drawn = [f'<path class="line {hue}" d="M{path}"/>']
    if len(line) <= 60:
        drawn += [
            f'<circle class="{hue}" cx="{frame.across(x):.1f}" cy="{frame.up(y):.1f}" r="2.6">'
            f"<title>{escaped(name)} at {escaped(along)} {_place(x)}: {y:.5g}</title></circle>"
            for x, y in line
        ]
    return drawn


def _ring(line: Sequence[tuple[float, float]], x: float, hue: str, frame: _Frame) -> str:
    """A ring around the point of a line at x, which lies between two that were logged."""
    y = float(np.interp(x, [place for place, _ in line], [value for _, value in line]))
    return f'<circle class="ring {hue}" cx="{frame.across(x):.1f}" cy="{frame.up(y):.1f}" r="5"/>'


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten from at most `low` to at least `high`."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**power for power in range(first, last + 1)]


def _place(x: float) -> str:
    """A step or rank whole, anything else to three digits."""
    return f"{x:,.0f}" if x == round(x) else f"{x:.3g}"


def _thinned(line: Sequence[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """The line by means of equal shares of it, where it has more points than a chart can show."""
    if len(line) <= most:
        return list(line)
    size = -(-len(line) // most)
    shares = [line[first : first + size] for first in range(0, len(line), size)]
    return [(sum(x) / len(x), sum(y) / len(y)) for x, y in (zip(*s, strict=True) for s in shares)]


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers from at most `low` to at least `high`."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    size = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(size * nice for nice in (1, 2, 5, 10) if size * nice * 5 >= high - low)
    return [step * n for n in range(math.floor(low / step), math.ceil(high / step - 1e-9) + 1)]
