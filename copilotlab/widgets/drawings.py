"""A small drawing for each type of chart: inline SVG in the colours of the page."""

from __future__ import annotations

_FRAME = "<path d='M3 2v19h27' fill='none' stroke='currentColor' stroke-opacity='.45'/>"


def _bars(*bars: tuple[float, float, float, float], pale: bool = False) -> str:
    opacity = " fill-opacity='.4'" if pale else ""
    return "".join(f"<rect x='{x}' y='{y}' width='{w}' height='{h}' rx='.6'{opacity}/>" for x, y, w, h in bars)


def _stroke(path: str, width: float = 1.8, opacity: float = 1) -> str:
    return (
        f"<path d='{path}' fill='none' stroke='currentColor' stroke-width='{width}' stroke-opacity='{opacity}' "
        "stroke-linecap='round' stroke-linejoin='round'/>"
    )


def _ring(radius: float, width: float, start: float, length: float, opacity: float = 1) -> str:
    """Draw an arc; start and length are shares of the circle, clockwise from the top."""
    return (
        f"<circle cx='16' cy='12' r='{radius}' fill='none' stroke='currentColor' stroke-opacity='{opacity}' "
        f"stroke-width='{width}' pathLength='100' stroke-dasharray='{100 * length} 100' "
        f"stroke-dashoffset='{-100 * start}' transform='rotate(-90 16 12)'/>"
    )


_RISING = "M5 17l6-5 5 3 6-8 6-3"
_DRAWINGS = {
    "area": _FRAME + "<path d='M4 20v-5l7-4 5 3 6-7 7-3v16z' fill-opacity='.4'/>" + _stroke("M4 15l7-4 5 3 6-7 7-3"),
    "bar": _FRAME + _bars((6, 12, 4, 8), (12, 6, 4, 14), (18, 9, 4, 11), (24, 4, 4, 16)),
    "bullet": _bars((3, 5, 27, 6), (3, 14, 27, 6), pale=True) + _bars((3, 7, 18, 2), (3, 16, 12, 2), (24, 4, 1.4, 8)),
    "combo": _FRAME + _bars((6, 12, 4, 8), (13, 8, 4, 12), (20, 10, 4, 10), pale=True) + _stroke("M6 9l8-4 8 3 6-5"),
    "donut": _ring(7.5, 5, 0, 0.55) + _ring(7.5, 5, 0.57, 0.22, 0.6) + _ring(7.5, 5, 0.81, 0.17, 0.3),
    "gauge": _stroke("M6 19a10 10 0 0 1 20 0", 4, 0.35)
    + _stroke("M6 19a10 10 0 0 1 13.7-9.3", 4)
    + _stroke("M16 19l5-7"),
    "heatmap": "".join(
        f"<rect x='{3 + 6.6 * column:.1f}' y='{2 + 6.8 * row:.1f}' width='6' height='6' rx='.6' "
        f"fill-opacity='{(0.25, 0.9, 0.5, 0.7, 1, 0.35)[(3 * row + 2 * column) % 6]}'/>"
        for row in range(3)
        for column in range(4)
    ),
    "histogram": _FRAME
    + _bars((5, 16, 4.4, 4), (10, 11, 4.4, 9), (15, 4, 4.4, 16), (20, 8, 4.4, 12), (25, 15, 4.4, 5)),
    "horizontal bar": _FRAME + _bars((4, 3, 23, 3.6), (4, 8.4, 16, 3.6), (4, 13.8, 10, 3.6)),
    "kpi": "<text x='16' y='15' text-anchor='middle' font-size='13' font-weight='700'>42</text>"
    + _stroke("M8 20h16", 1.4, 0.45),
    "line": _FRAME + _stroke(_RISING),
    "map": _stroke("M3 5l8-3 10 3 8-3v17l-8 3-10-3-8 3z", 1.4, 0.6)
    + "<path d='M16 16c-3-4-4-5.5-4-7.5a4 4 0 0 1 8 0c0 2-1 3.5-4 7.5z'/>",
    "pie": "<path d='M16 12V2a10 10 0 1 1-8.7 15z' fill-opacity='.85'/>"
    "<path d='M14.5 11.2L6 16A10 10 0 0 1 14.5 1.5z' fill-opacity='.4'/>",
    "scatter": _FRAME
    + "".join(
        f"<circle cx='{x}' cy='{y}' r='1.7' fill-opacity='{opacity}'/>"
        for x, y, opacity in ((7, 16, 1), (11, 13, 0.6), (13, 17, 0.5), (16, 9, 1), (20, 11, 0.6), (25, 5, 0.9))
    ),
    "stacked bar": _FRAME
    + _bars((6, 14, 4, 6), (13, 12, 4, 8), (20, 9, 4, 11), (26, 12, 4, 8))
    + _bars((6, 9, 4, 5), (13, 5, 4, 7), (20, 3, 4, 6), (26, 6, 4, 6), pale=True),
    "table": _stroke("M3 3h26v18h-26z", 1.3, 0.6)
    + _bars((3, 3, 26, 5))
    + _stroke("M3 12.5h26M3 17h26M12 8v13M21 8v13", 1, 0.45),
    "treemap": _bars((3, 2, 14, 20)) + "<g fill-opacity='.6'>" + _bars((18, 2, 11, 11)) + "</g>"
    + _bars((18, 14, 6, 8), (25, 14, 4, 8), pale=True),
}  # fmt: skip
_UNKNOWN = _stroke("M4 3h24v18h-24z", 1.3, 0.5) + _stroke("M9 16l4-5 4 3 6-7", 1.6, 0.8)


def drawing(chart_type: str) -> str:
    """Return an SVG of 32 by 24 for that type, in the text's colour; a plain frame for a type without a drawing.

    It is hidden from screen readers, since the type's name stands beside it.
    """
    body = _DRAWINGS.get(chart_type.strip().lower(), _UNKNOWN)
    return (
        "<svg class='cl-drawing' viewBox='0 0 32 24' width='32' height='24' fill='currentColor' aria-hidden='true' "
        f"focusable='false'>{body}</svg>"
    )
