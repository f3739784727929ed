"""Draws the panels of the dashboard as an SVG, from what Prometheus answered. Grafana draws them otherwise."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT, COLUMNS, GAP = 400, 190, 3, 14
_TOP, _LEFT, _LEGEND, _LINES = 26, 52, 13, 6  # the most lines of a legend
_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d", "#eeca3b")
_TEXT = 'font-family="sans-serif" font-size'


class Series(NamedTuple):
    """A line: its name, and its value at each time in seconds."""

    name: str
    points: Sequence[tuple[float, float]]


class Drawn(NamedTuple):
    """A panel: title, Grafana's unit, whether it is one number, and what came."""

    title: str
    unit: str
    stat: bool
    series: Sequence[Series]


def draw(rows: dict[str, list[Drawn]], caption: str) -> str:
    """All rows of panels below each other."""
    parts: list[str] = []
    y = 34.0
    for title, row in rows.items():
        parts.append(f'<text x="{GAP}" y="{y}" {_TEXT}="15" font-weight="bold" fill="#222">{escape(title)}</text>')
        y += 10
        for number, panel in enumerate(row):
            x = GAP + number % COLUMNS * (WIDTH + GAP)
            parts += _panel(panel, x, y + number // COLUMNS * (HEIGHT + GAP))
        y += -(-len(row) // COLUMNS) * (HEIGHT + GAP) + 24
    width = GAP + COLUMNS * (WIDTH + GAP)
    parts.append(f'<text x="{GAP}" y="{y - 8}" {_TEXT}="11" fill="#555">{escape(caption)}</text>')
    size = f'width="{width}" height="{y:.0f}" viewBox="0 0 {width} {y:.0f}"'
    ground = f'<rect width="{width}" height="{y:.0f}" fill="#f4f5f5"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', ground, *parts, "</svg>\n"])


def _panel(panel: Drawn, x: float, y: float) -> Iterator[str]:
    yield f'<g transform="translate({x:.0f} {y:.0f})">'
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" rx="3" fill="#fff" stroke="#ddd"/>'
    yield f'<text x="10" y="17" {_TEXT}="12" fill="#333">{escape(panel.title)}</text>'
    series = [each for each in panel.series if each.points]
    if not series:
        yield f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle" {_TEXT}="12" fill="#888">nothing</text>'
    elif panel.stat:
        yield from _numbers(panel, series)
    else:
        yield from _lines(panel, series)
    yield "</g>"


def _numbers(panel: Drawn, series: Sequence[Series]) -> Iterator[str]:
    for number, each in enumerate(series):
        x = WIDTH * (number + 0.5) / len(series)
        value = said(each.points[-1][1], panel.unit)
        yield f'<text x="{x:.0f}" y="105" text-anchor="middle" {_TEXT}="34" fill="#2f7d32">{escape(value)}</text>'
        yield f'<text x="{x:.0f}" y="130" text-anchor="middle" {_TEXT}="11" fill="#555">{escape(each.name)}</text>'


def _lines(panel: Drawn, series: Sequence[Series]) -> Iterator[str]:
    shown = sorted(series, key=lambda each: -max(value for _, value in each.points))[:_LINES]
    first = min(each.points[0][0] for each in series)
    last = max([first + 1, *(each.points[-1][0] for each in series)])
    top = max(value for each in series for _, value in each.points) or 1.0
    bottom = HEIGHT - 10 - _LEGEND * len(shown)

    def at(when: float, value: float) -> str:
        x = _LEFT + (when - first) / (last - first) * (WIDTH - _LEFT - 10)
        return f"{x:.1f},{bottom - value / top * (bottom - _TOP):.1f}"

    for part in (0.0, 0.5, 1.0):
        y = bottom - part * (bottom - _TOP)
        yield f'<line x1="{_LEFT}" x2="{WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e6e6e6"/>'
        label = escape(said(top * part, panel.unit))
        yield f'<text x="{_LEFT - 4}" y="{y + 3:.1f}" text-anchor="end" {_TEXT}="9" fill="#666">{label}</text>'
    for number, each in enumerate(shown):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join(at(when, value) for when, value in each.points)
        yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        y = bottom + 14 + _LEGEND * number
        yield f'<rect x="{_LEFT}" y="{y - 7}" width="10" height="3" fill="{colour}"/>'
        value = said(each.points[-1][1], panel.unit)
        name = f"{each.name}, at last {value}"
        if number == _LINES - 1 and len(series) > _LINES:
            name += f"; and {len(series) - _LINES} more"
        yield f'<text x="{_LEFT + 15}" y="{y - 2}" {_TEXT}="9" fill="#444">{escape(name)}</text>'


def said(value: float, unit: str) -> str:
    """A value with its unit."""
    match unit:
        case "bool_yes_no":
            return "yes" if value else "no"
        case "s":
            return f"{value * 1000:.0f} ms" if 0 < value < 1 else f"{value:.3g} s"
        case "percentunit":
            return f"{value * 100:.3g} %"
        case "bytes" | "Bps":
            number, names = value, ["B", "KiB", "MiB", "GiB", "TiB"]
            while number >= 1024 and len(names) > 1:
                number, names = number / 1024, names[1:]
            return f"{number:.3g} {names[0]}" + ("/s" if unit == "Bps" else "")
        case "ops":
            return f"{value:.3g}/s"
        case _:
            return f"{value:.4g}"
