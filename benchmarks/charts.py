"""Bar charts as SVG, written by hand: a bar for the median, a line from the least to the greatest."""

import math
from xml.sax.saxutils import escape

from benchmarks.results import LoadResult
from benchmarks.stats import spread
from benchmarks.tables import UNITS

_WIDTH, _LEFT, _RIGHT, _ROW, _TOP, _BOTTOM = 760, 210, 90, 30, 44, 46
_OTHERS = ("curl", "s5cmd", "rclone", "tensorizer", "sftp", "Run:ai", "one bare", "bare", "disk alone")
_OURS, _THEIRS, _INK, _GRID = "#1f6f8b", "#b8c4cc", "#222", "#ddd"


def bar_chart(load: LoadResult) -> str:
    """One load: a bar for each contestant that has samples, the unit along the axis."""
    bars = [(each.name, spread(each.figures(load.unit))) for each in load.contested if each.samples]
    top = _round_up(max((found.high for _, found in bars if found), default=1.0))
    height = _TOP + _ROW * len(bars) + _BOTTOM
    scale = (_WIDTH - _LEFT - _RIGHT) / top
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="13" fill="{_INK}" role="img">',
        f"<title>{escape(load.title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="10" y="24" font-size="15" font-weight="bold">{escape(load.title)}</text>',
    ]
    bottom = _TOP + _ROW * len(bars)
    for step in range(6):
        value, x = top * step / 5, _LEFT + top * step / 5 * scale
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="{_GRID}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{value:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    unit = f"{UNITS[load.unit]}, median and range"
    parts.append(f'<text x="{middle}" y="{bottom + 37}" text-anchor="middle">{unit}</text>')
    for number, (name, found) in enumerate(bars):
        assert found is not None
        y = _TOP + number * _ROW
        color, centre = _THEIRS if name.startswith(_OTHERS) else _OURS, y + _ROW / 2
        low, high = _LEFT + found.low * scale, _LEFT + found.high * scale
        parts.append(f'<text x="{_LEFT - 8}" y="{centre + 5}" text-anchor="end">{escape(name)}</text>')
        width = found.median * scale
        parts.append(f'<rect x="{_LEFT}" y="{y + 5}" width="{width:.1f}" height="{_ROW - 10}" fill="{color}"/>')
        parts.append(f'<line x1="{low:.1f}" y1="{centre}" x2="{high:.1f}" y2="{centre}" stroke="{_INK}"/>')
        parts.append(f'<text x="{high + 6:.1f}" y="{centre + 5}">{_short(found.median)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _round_up(value: float) -> float:
    """The next of a few steps times a power of ten, so that the axis has round marks."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return float(next(step * power for step in (1, 1.5, 2, 2.5, 3, 4, 5, 7.5, 10) if step * power >= value))


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
