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
    """A measure with one decimal, or a dash where there is none."""
    return f"{value:,.1f}{unit}" if finite(value) else "–"


def three(value: Any) -> str:
    """A measure with three decimals, or a dash where there is none."""
    return f"{value:.3f}" if finite(value) else "–"


def whole(value: Any) -> str:
    """A whole number, or a dash."""
    return f"{value:,.0f}" if finite(value) else "–"
