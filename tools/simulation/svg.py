"""Plots as SVG text: curves, steps and bars, with axes, ticks and a legend. No dependencies."""

import math
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["bars", "curves"]

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 40, 50
COLOURS = (
    "#0b3c8c", "#d1495b", "#2e933c", "#edae49", "#7d5ba6", "#00798c",
    "#8d6a3b", "#e377c2", "#555555", "#9ab87a", "#17becf", "#c23b22",
)  # fmt: skip
TICKS = 5

Points = Sequence[tuple[float, float]]


def curves(
    title: str, x_label: str, y_label: str, series: Mapping[str, Points], steps: bool = False
) -> str:
    """Return a plot of named curves, rising in x; `steps`: each value holds until the next.

    Axes begin at 0.
    """
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    x_top, y_top = _top(xs), _top(ys)
    parts = _axes(title, x_label, y_label, y_top)
    for k in range(TICKS + 1):
        x = x_top * k / TICKS
        parts.append(_text(_x(x / x_top), HEIGHT - BOTTOM + 18, _number(x), "middle"))
    for (name, points), colour in zip(series.items(), _colours(len(series)), strict=True):
        path: list[str] = []
        last = None
        for x, y in points:
            if steps and last is not None:
                path.append(f"{_x(x / x_top):.1f},{_y(last / y_top):.1f}")
            path.append(f"{_x(x / x_top):.1f},{_y(y / y_top):.1f}")
            last = y
        name_of = f"<title>{escape(name)}</title>"
        parts.append(
            f'<polyline points="{" ".join(path)}" fill="none" stroke="{colour}" '
            f'stroke-width="1.6">{name_of}</polyline>'
        )
    return _document(parts, list(series))


def bars(title: str, y_label: str, labels: Sequence[str], groups: Mapping[str, list[float]]) -> str:
    """Return bars: for each label, such as a device, one of each named group side by side."""
    y_top = _top([y for values in groups.values() for y in values])
    parts = _axes(title, "", y_label, y_top)
    slot = 1.0 / len(labels)
    width = 0.8 * slot / len(groups)
    for i, label in enumerate(labels):
        parts.append(_text(_x((i + 0.5) * slot), HEIGHT - BOTTOM + 18, label, "middle"))
    for g, ((name, values), colour) in enumerate(
        zip(groups.items(), _colours(len(groups)), strict=True)
    ):
        for i, value in enumerate(values):
            x, y = _x((i + 0.1) * slot + g * width), _y(value / y_top)
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{_x(width) - LEFT:.1f}" '
                f'height="{_y(0) - y:.1f}" fill="{colour}">'
                f"<title>{escape(name)}, {escape(labels[i])}: {_number(value)}</title></rect>"
            )
    return _document(parts, list(groups))


def _colours(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def _top(values: Sequence[float]) -> float:
    """Return a round number at or above all values, above 0."""
    most = max(values, default=0.0)
    if most <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(most))
    return unit * next(m for m in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if m * unit >= most * (1 - 1e-9))


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _text(x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _axes(title: str, x_label: str, y_label: str, y_top: float) -> list[str]:
    parts = [_text(LEFT, 22, title, more=' font-weight="bold"')]
    for k in range(TICKS + 1):
        y = _y(k / TICKS)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, y + 4, _number(y_top * k / TICKS), "end"))
    parts.append(_text(_x(0.5), HEIGHT - 10, x_label, "middle"))
    turned = f' transform="rotate(-90 16 {_y(0.5):.1f})"'
    parts.append(_text(16, _y(0.5), y_label, "middle", turned))
    return parts


def _document(parts: list[str], names: list[str]) -> str:
    for k, (name, colour) in enumerate(zip(names, _colours(len(names)), strict=True)):
        y = TOP + 20 * k
        parts.append(
            f'<rect x="{WIDTH - RIGHT + 14}" y="{y}" width="12" height="12" fill="{colour}"/>'
        )
        parts.append(_text(WIDTH - RIGHT + 32, y + 10, name))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" '
        f'fill="white"/>\n{body}\n</svg>\n'
    )
