"""How a report writes numbers and names."""

import html
import math
from typing import Any

# The two ways of retrieving, as metrics name them and as a reader reads them.
WAYS = {"i2t": "Image → text", "t2i": "Text → image"}


def escaped(value: Any) -> str:
    """Anything as text that HTML takes for text, in attributes too: names are untrusted."""
    return html.escape(str(value), quote=True)


def short(value: float, digits: int = 4) -> str:
    """A number in few characters: 12k, 0.25, 2e-4."""
    if abs(value) >= 1000:
        size, unit = (1e3, "k") if abs(value) < 1e6 else (1e6, "M")
        return f"{value / size:.{digits}g}{unit}"
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.{digits}g}"


def finite(value: Any) -> bool:
    """Whether it is a number that can be drawn."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def number(value: Any, unit: str = "") -> str:
    """A measure with one decimal, or what `unknown` says of it."""
    return f"{value:,.1f}{unit}" if finite(value) else unknown(value)


def three(value: Any) -> str:
    """A measure with three decimals, or what `unknown` says of it."""
    return f"{value:.3f}" if finite(value) else unknown(value)


def whole(value: Any) -> str:
    """A whole number, or what `unknown` says of it."""
    return f"{value:,.0f}" if finite(value) else unknown(value)


def seconds_of(value: Any) -> str:
    """A duration as a person says it: 42 s, 7 min, 1 h 05 min."""
    if not finite(value):
        return unknown(value)
    minutes = round(value / 60)
    if value < 90:
        return f"{value:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def bytes_of(value: Any) -> str:
    """A size in MiB, or what `unknown` says of it."""
    return f"{value / 2**20:,.1f} MiB" if finite(value) else unknown(value)


def unknown(value: Any) -> str:
    """What stands in the place of a number: NaN and infinities as what they are, else a dash."""
    if not isinstance(value, float) or math.isfinite(value):
        return "–"
    return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
