"""Line charts of a report, as inline SVG."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from vse_jax.report.text import escaped, short

Series: TypeAlias = Mapping[str, Sequence[tuple[float, float]]]


def chart(
    title: str,
    series: Series,
    marked: float | None = None,
    floor: float | None = None,
    along: str = "step",
) -> str:
    """A figure with one line a series and a legend, which gives last values by step, as SVG.

    Args:
      title: what is drawn.
      series: name -> (x, value) in ascending x, all finite; at least one point in all.
      marked: an x to mark, the step of the reported checkpoint.
      floor: the least value of the y axis; the least one drawn where None.
      along: what x is.
    """
    points = [point for line in series.values() for point in line]
    lows, highs = map(min, zip(*points, strict=True)), map(max, zip(*points, strict=True))
    (x_low, y_low), (x_high, y_high) = lows, highs
    y_ticks = _ticks(y_low if floor is None else min(floor, y_low), y_high)
    x_ticks = [tick for tick in _ticks(x_low, x_high) if x_low <= tick <= x_high]
    left, right, top, bottom = 42, 348, 8, 178

    def across(x: float) -> float:
        return left + (right - left) * ((x - x_low) / (x_high - x_low) if x_high > x_low else 0.5)

    def up(y: float) -> float:
        return bottom - (bottom - top) * (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    drawn = []
    for tick in y_ticks:
        drawn.append(f'<path class="grid" d="M{left} {up(tick):.1f}H{right}"/>')
        drawn.append(f'<text x="{left - 7}" y="{up(tick) + 4:.1f}" class="y">{short(tick)}</text>')
    for tick in x_ticks:
        drawn.append(f'<text x="{across(tick):.1f}" y="{bottom + 18}">{short(tick)}</text>')
    if marked is not None and x_low <= marked <= x_high:
        drawn.append(f'<path class="mark" d="M{across(marked):.1f} {top}V{bottom}"/>')
    legend = []
    for number, (name, line) in enumerate(series.items()):
        hue = f"c{number % 4}"
        path = "L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in _thinned(line))
        drawn.append(f'<path class="line {hue}" d="M{path}"/>')
        if len(line) <= 60:
            drawn += [
                f'<circle class="{hue}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="2.6">'
                f"<title>{escaped(name)} at {escaped(along)} {_place(x)}: {y:.5g}</title></circle>"
                for x, y in line
            ]
        last = f" <b>{short(line[-1][1], 3)}</b>" if along == "step" else ""
        legend.append(f'<span><i class="{hue}"></i>{escaped(name)}{last}</span>')
    return (
        f"<figure><figcaption>{escaped(title)}</figcaption>"
        f"<div class=legend>{''.join(legend)}</div>"
        f'<svg viewBox="0 0 360 200" role="img" aria-label="{escaped(title)} by {escaped(along)}">'
        f"{''.join(drawn)}</svg></figure>"
    )


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
