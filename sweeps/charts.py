"""Small charts as inline SVG: curves over steps, and means with intervals. Colors come from the page's style."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from sweeps.intervals import Estimate

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 26
PLOT_WIDTH = 270  # of intervals, beside long labels
MAX_LABEL, LETTER = 30, 6.0  # letters of a label; pixels a letter
MAX_POINTS = 120  # a curve of more steps is averaged in bins
NUM_COLORS = 8  # of the style's --c0 ... --c7


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a chart; curves of one color belong together."""

    label: str
    color: int
    steps: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """SVG elements of class `chart` and the pixels that they take."""

    width: int
    height: int
    content: str


def color_of(index: int) -> str:
    """The style's color of that number."""
    return f"var(--c{index % NUM_COLORS})"


def curve_chart(curves: Sequence[Curve], *, width: int = WIDTH, height: int = HEIGHT) -> str:
    """Curves over optimizer steps, linear axes; an empty text if there is nothing to draw."""
    binned = [(curve, _bin(curve.steps, curve.values)) for curve in curves]
    points = [point for _, line in binned for point in line]
    if not points:
        return ""
    low, high, ticks = _nice_range([value for _, value in points])
    last = max(step for step, _ in points) or 1.0
    frame = _Frame(width=width, height=height, x_range=(0.0, last), y_range=(low, high))
    parts = [frame.horizontal_line(tick, f"{tick:.4g}") for tick in ticks]
    parts += [frame.x_label(step, f"{step:.0f}") for step in (0.0, last / 2, last)]
    for curve, line in binned:
        path = " ".join(f"{frame.x(step):.1f},{frame.y(value):.1f}" for step, value in line)
        title = f"<title>{escape(curve.label)}</title>"
        parts.append(f'<polyline points="{path}" style="stroke:{color_of(curve.color)}">{title}</polyline>')
    return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


def interval_chart(labels: Sequence[str], estimates: Sequence[Estimate], *, digits: int, marked: int | None) -> str:
    """`interval_plot` as a picture of its own; an empty text if there is nothing to draw."""
    plot = interval_plot(labels, estimates, digits=digits, marked=marked)
    if plot is None:
        return ""
    return f'<svg class="chart" viewBox="0 0 {plot.width} {plot.height}" role="img">{plot.content}</svg>'


def interval_plot(
    labels: Sequence[str], estimates: Sequence[Estimate], *, digits: int, marked: int | None
) -> Plot | None:
    """One row a setting: its mean as a dot, its interval as a bar; the `marked` one also as a dashed line down."""
    known = [e for e in estimates if e.count]
    if not known:
        return None
    bounds = [bound for e in known for bound in (e.mean, e.low, e.high) if bound is not None]
    low, high, ticks = _nice_range(bounds)
    shown = [label if len(label) <= MAX_LABEL else f"{label[: MAX_LABEL - 1]}…" for label in labels]
    label_width = 20 + math.ceil(LETTER * max(map(len, shown)))
    row, width, height = 26, max(WIDTH + 60, PLOT_WIDTH + label_width), 26 * len(labels) + BOTTOM + TOP
    frame = _Frame(width=width, height=height, x_range=(low, high), y_range=(0, 1), left=label_width)
    bottom = height - BOTTOM
    parts = []
    for tick in ticks:
        x = frame.x(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(frame.x_label(tick, f"{tick:.4g}"))
    if marked is not None and estimates[marked].count:
        x = frame.x(estimates[marked].mean)
        parts.append(f'<line class="default" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
    for index, (label, short, estimate) in enumerate(zip(labels, shown, estimates, strict=True)):
        y = TOP + row * (index + 0.5)
        parts.append(f'<text x="{label_width - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(short)}</text>')
        if not estimate.count:
            continue
        style = f'style="stroke:{color_of(index)};fill:{color_of(index)}"'
        if estimate.low is not None and estimate.high is not None:
            ends = f'x1="{frame.x(estimate.low):.1f}" x2="{frame.x(estimate.high):.1f}"'
            parts.append(f'<line class="interval" {ends} y1="{y:.1f}" y2="{y:.1f}" {style}/>')
        title = f"<title>{escape(label)}: {estimate.mean:.{digits}f}, n = {estimate.count}</title>"
        parts.append(f'<circle cx="{frame.x(estimate.mean):.1f}" cy="{y:.1f}" r="5" {style}>{title}</circle>')
    return Plot(width=width, height=height, content="".join(parts))


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """Data to SVG coordinates."""

    width: int
    height: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    left: int = LEFT

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.width - self.left - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.height - BOTTOM - (value - low) / (high - low) * (self.height - TOP - BOTTOM)

    def horizontal_line(self, value: float, text: str) -> str:
        y = self.y(value)
        line = f'<line class="grid" x1="{self.left}" x2="{self.width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        return f'{line}<text x="{self.left - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'

    def x_label(self, value: float, text: str) -> str:
        x = min(max(self.x(value), self.left + 4), self.width - RIGHT - 10)
        return f'<text x="{x:.1f}" y="{self.height - 8}" text-anchor="middle">{text}</text>'


def _bin(steps: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]]:
    """At most MAX_POINTS means of neighbouring finite values."""
    finite = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    size = max(1, math.ceil(len(finite) / MAX_POINTS))
    bins = [finite[start : start + size] for start in range(0, len(finite), size)]
    return [(sum(s for s, _ in part) / len(part), sum(v for _, v in part) / len(part)) for part in bins]


def _nice_range(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """A range around the values whose ends and ticks are round numbers."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 4 >= high - low)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return first * step, last * step, [round(index * step, 12) for index in range(first, last + 1)]
