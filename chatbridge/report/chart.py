"""Curves over steps as inline SVG, with their words and tables for those who cannot see them.

The picture is stretched to the width there is, and only the picture: labels are HTML beside it, so that they are as
readable on a telephone as on a wall.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from chatbridge.report.axis import Axis, can_be_log, is_wide, linear_axis, log_axis, step_axis
from chatbridge.report.formatting import percent, rounded, short, steps
from chatbridge.report.markup import Html, data, details, join, table, tag
from chatbridge.report.series import RECENT, Series, Summary, mean, smooth, thin, window

WIDTH, HEIGHT = 4000, 1000
"""Of a picture's own coordinates, which are whole numbers to keep the file small."""
COLOURS = 8
"""There are so many colours; line 9 has the first one again, dashed."""
SPANS = 8
"""Rows of a curve's table of means."""


class AxisScale(Enum):
    """Of the vertical axis: CHOICE offers both, and starts with what AUTO takes."""

    LINEAR = "linear"
    AUTO = "auto"
    CHOICE = "choice"


@dataclass(frozen=True)
class Line:
    """One curve. `smooth` draws the running mean, and what was logged faintly behind it."""

    name: str
    series: Series
    colour: int = 0
    smooth: bool = True

    @property
    def style(self) -> str:
        return colour_class(self.colour)


@dataclass(frozen=True)
class Mark:
    """A vertical line where something happened."""

    step: int
    kind: str
    text: str


@dataclass(frozen=True)
class Chart:
    """Curves that share their axes.

    Attributes:
        key: the figure's id on the page; note: what the quantity is, its unit included.
        zero: the vertical axis starts at zero; share: values are parts of one, shown in per cent.
        tall: the curves that a reader looks at first.
    """

    key: str
    title: str
    lines: Sequence[Line]
    note: str = ""
    scale: AxisScale = AxisScale.AUTO
    zero: bool = False
    share: bool = False
    tall: bool = False

    @property
    def text(self) -> Callable[[float | None], str]:
        return percent if self.share else rounded


@dataclass(frozen=True)
class _Curve:
    """A line ready to draw: what was logged and its running mean, thinned."""

    line: Line
    summary: Summary
    width: int
    raw: tuple[np.ndarray, np.ndarray]
    main: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, line: Line) -> _Curve:
        at, values = line.series.steps, line.series.values
        values = np.where(np.isfinite(values), values, np.nan)
        kept = thin(at, values)
        raw = at[kept], values[kept]
        if not line.smooth:
            return cls(line, line.series.summary(), 1, raw, raw)
        width = window(len(values))
        return cls(line, line.series.summary(), width, raw, (at[kept], smooth(values, width, kept)))


def draw(chart: Chart, first: int, last: int, marks: Sequence[Mark] = ()) -> Html | None:
    """The chart as a figure with its legend, its description and its tables; None when there is nothing to draw.

    Args:
        first, last: steps at the ends of the horizontal axis.
    """
    curves = [_Curve.of(line) for line in chart.lines if len(line.series)]
    if not curves:
        return None
    across = step_axis(first, last)
    raw = [c.raw[1] for c in curves]
    shown = np.concatenate([values[np.isfinite(values)] for values in raw])
    names = ["log", "linear"] if can_be_log(shown) else ["linear"]
    if chart.scale is not AxisScale.CHOICE:
        names = ["log"] if chart.scale is AxisScale.AUTO and is_wide(shown) else ["linear"]
    plots = []
    for name in names:
        up = log_axis(shown) if name == "log" else linear_axis(shown, chart.zero)
        plots.append(_plot(chart, curves, across, up, marks, name))
    head = tag("figcaption", tag("h3", chart.title), tag("p", chart.note, class_="note") if chart.note else None)
    return tag(
        "figure", head, _legend(chart, curves), *_switch(chart.key, names, "log" if is_wide(shown) else "linear"),
        *plots, _broken(curves), _tables(chart, curves, first, last),
        class_="chart tall" if chart.tall else "chart", id=chart.key,
    )  # fmt: skip


def _switch(key: str, names: list[str], usual: str) -> list[Html]:
    """Radio buttons that need no script: the style sheet shows the plot of the checked one."""
    if len(names) < 2:
        return []
    parts = []
    for name in names:
        place = f"{key}-{name}"
        parts.append(tag("input", type="radio", name=f"{key}-scale", id=place, class_=name, checked=name == usual))
        parts.append(tag("label", name, for_=place))
    return parts


def _legend(chart: Chart, curves: list[_Curve]) -> Html:
    items = []
    for curve in curves:
        value = data(curve.summary.last, chart.text(curve.summary.last))
        items.append(
            tag(
                "li",
                tag("i", class_=curve.line.style),
                tag("span", curve.line.name, class_="name"),
                " ",
                value,
            )
        )
    return tag("ul", *items, class_="legend", aria_label="last logged values")


def _plot(chart: Chart, curves: list[_Curve], across: Axis, up: Axis, marks: Sequence[Mark], scale: str) -> Html:
    grid = [_y(up, tick) for tick in up.ticks]
    parts = [tag("path", class_="grid", d=Html("".join(f"M0 {y}h{WIDTH}" for y in grid)))]
    for mark in marks:
        x = _x(across, mark.step)
        parts.append(tag("path", tag("title", mark.text), class_=f"mark {mark.kind}", d=f"M{x} 0v{HEIGHT}"))
    for curve in curves:
        if curve.line.smooth:
            parts.append(tag("path", class_=f"raw {curve.line.style}", d=_path(*curve.raw, across, up)))
    for curve in curves:
        shape = f"line {curve.line.style}"
        parts.append(tag("path", class_=shape, d=_path(*curve.main, across, up), data_name=curve.line.name))
        gone = [_x(across, step) for step in curve.summary.broken[:2000]]
        if gone:
            parts.append(tag("path", class_="broken", d=Html("".join(f"M{x} {HEIGHT}v-60" for x in gone))))
    return frame(join(parts), _description(chart, curves, across), [(g / HEIGHT, short(t)) for g, t in
                 zip(grid, [100 * t for t in up.ticks] if chart.share else up.ticks, strict=True)],
                 across, scale, up, "%" if chart.share else "")  # fmt: skip


def frame(
    picture: Html, words: str, left: Sequence[tuple[float, str]], across: Axis, kind: str, up: Axis | None = None,
    unit: str = "",
) -> Html:  # fmt: skip
    """A picture in its own coordinates with labels around it.

    Args:
        words: what is to be seen; left: (place from the top, 0 to 1; label).
        kind: "log", "linear" or a style of the page's own; up: the axis that a pointer's reading is taken from.
    """
    svg = tag("svg", picture, viewBox=f"0 0 {WIDTH} {HEIGHT}", preserveAspectRatio="none", role="img", aria_label=words)
    rows = [tag("span", label + unit, style=f"top:{100 * place:.2f}%") for place, label in left]
    columns = [
        tag("span", short(tick), style=f"left:{100 * float(across.place(np.array(tick))):.2f}%",
            class_="odd" if i % 2 else None)
        for i, tick in enumerate(across.ticks)
    ]  # fmt: skip
    scale = {} if up is None else {"data_y0": repr(up.low), "data_y1": repr(up.high), "data_share": bool(unit)}
    return tag(
        "div", tag("div", *rows, class_="left", aria_hidden="true"), tag("div", svg, class_="picture"),
        tag("div", *columns, class_="under", aria_hidden="true"),
        class_=f"plot {kind}", data_x0=int(across.low), data_x1=int(across.high), **scale,
    )  # fmt: skip


def _description(chart: Chart, curves: list[_Curve], across: Axis) -> str:
    texts = []
    for curve in curves:
        s = curve.summary
        if s.lowest is None or s.highest is None:
            texts.append(f"{curve.line.name}: nothing finite")
            continue
        texts.append(
            f"{curve.line.name}: last {chart.text(s.last)}, lowest {chart.text(s.lowest[1])} at step {s.lowest[0]:,}, "
            f"highest {chart.text(s.highest[1])} at step {s.highest[0]:,}"
        )
    return f"{chart.title}, steps {across.low:,.0f} to {across.high:,.0f}. " + "; ".join(texts)


def _broken(curves: list[_Curve]) -> Html | None:
    """The steps that a curve has gaps at."""
    texts = [f"{c.line.name} at step {steps(list(c.summary.broken))}" for c in curves if c.summary.broken]
    return tag("p", "Not finite, drawn as gaps: " + "; ".join(texts), class_="broken") if texts else None


def _tables(chart: Chart, curves: list[_Curve], first: int, last: int) -> Html:
    def at(found: tuple[int, float] | None) -> list[Html]:
        step, value = found or (None, None)
        return [data(value, chart.text(value)), data(step, rounded(step))]

    rows = []
    for curve in curves:
        s = curve.summary
        cells = [data(v, chart.text(v)) for v in (s.last, s.recent, s.median)]
        rows.append(
            [curve.line.name, data(s.count, f"{s.count:,}"), *cells, *at(s.lowest), *at(s.highest),
             data(len(s.broken), f"{len(s.broken):,}")]
        )  # fmt: skip
    head = ["", "logged", "last", f"mean of last {RECENT}", "median", "lowest", "at step", "highest", "at step"]
    summary = table([*head, "not finite"], rows, f"{chart.title}: summary", numeric=range(1, 10))
    edges = np.unique(np.linspace(first, last, SPANS + 1).round().astype(int))
    lines = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        cells = [_mean_between(curve.line.series, low, high) for curve in curves]
        lines.append([f"{low + 1:,} – {high:,}", *(data(v, chart.text(v)) for v in cells)])
    spans = table(
        ["mean over steps", *(c.line.name for c in curves)], lines, f"{chart.title}: means by steps",
        numeric=range(1, len(curves) + 1),
    )  # fmt: skip
    width = max(curve.width for curve in curves)
    drawn = f"Drawn: the mean of up to {width:,} logged steps; faint: every value." if width > 1 else None
    return details("Table", tag("p", drawn, class_="note") if drawn else None, summary, spans)


def _mean_between(series: Series, low: int, high: int) -> float | None:
    """Mean of the finite values at steps after `low`, up to `high`."""
    at = series.steps
    return mean(series.values[np.searchsorted(at, low, "right") : np.searchsorted(at, high, "right")])


def _path(at: np.ndarray, values: np.ndarray, across: Axis, up: Axis) -> Html:
    """SVG path data: "M x y l dx dy ..." for every piece between gaps; a lone point is a line of no length."""
    x = np.rint(across.place(at) * WIDTH)
    y = np.rint((1 - up.place(values)) * HEIGHT)
    parts: list[str] = []
    before: tuple[int, int] | None = None
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        if b != b:
            before = None
            continue
        here = int(a), int(b)
        if before is None:
            parts.append(f"M{here[0]} {here[1]}l0 0")
        elif here != before:
            parts.append(f" {here[0] - before[0]} {here[1] - before[1]}")
        before = here
    return Html("".join(parts))


def _x(across: Axis, step: int) -> int:
    return round(float(across.place(np.array(step))) * WIDTH)


def _y(up: Axis, value: float) -> int:
    return round((1 - float(up.place(np.array(value)))) * HEIGHT)


def colour_class(index: int) -> str:
    """The style of a line or dataset by its number."""
    return f"c{index % COLOURS}" + (" dashed" if index >= COLOURS else "")


def grid(charts: Iterable[Html | None]) -> Html | None:
    """Charts side by side; None where none has anything to draw."""
    drawn = [chart for chart in charts if chart]
    return tag("div", *drawn, class_="grid") if drawn else None
