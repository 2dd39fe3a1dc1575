"""Runs side by side: curves over each other, final figures, and the keys in which they differ."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from chatbridge.report.chart import AxisScale, Chart, Line, colour_class, draw, grid
from chatbridge.report.figures import Figures
from chatbridge.report.formatting import clock, percent, rounded
from chatbridge.report.markup import Html, data, join, table, tag
from chatbridge.report.run import Run
from chatbridge.report.series import RECENT, Series
from chatbridge.report.style import page

ABSENT = "–"


@dataclass(frozen=True)
class Row:
    """One figure of every run.

    Attributes:
        values: as they are; texts: as people read them.
        best: the text of the best of them, "" where none is.
    """

    name: str
    values: tuple[Any, ...]
    texts: tuple[str, ...]
    best: str


@dataclass(frozen=True)
class Difference:
    """A key in which runs differ: each run's value as JSON, or `ABSENT`."""

    key: str
    values: tuple[str, ...]


def names_of(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart. Raises ValueError for a run that is named twice."""
    parts = [folder.resolve().parts for folder in folders]
    again = [str(folder) for folder, n in zip(folders, map(Counter(parts).get, parts), strict=True) if n > 1]
    if again:
        raise ValueError(f"{again[0]}: named twice; name every run once")
    return ["/".join(own[-_needed(own, parts) :]) for own in parts]


def _needed(own: tuple[str, ...], parts: Sequence[tuple[str, ...]]) -> int:
    """How many parts from the end no other path shares."""
    return next(n for n in range(1, len(own) + 1) if sum(p[-n:] == own[-n:] for p in parts) == 1)


def rows_of(figures: Sequence[Figures]) -> list[Row]:
    """The table of final figures; what no run logs is left out."""

    def row(name: str, values: Sequence[Any], text: Callable[[Any], str], better: Callable | None = None) -> Row:
        known = [v for v in values if isinstance(v, (int, float)) and v == v]
        differ = better is not None and len({text(v) for v in known}) > 1
        texts = tuple(ABSENT if v is None else text(v) for v in values)
        return Row(name, tuple(values), texts, text(better(known)) if differ else "")

    losses = dict.fromkeys(name for f in figures for name in f.losses)
    held = dict.fromkeys(name for f in figures for name in f.validation)
    rows = [
        row("state", [f.state for f in figures], str),
        row("step", [f.step for f in figures], rounded),
        row("of steps", [f.total_steps for f in figures], rounded),
        row(f"loss, mean of last {RECENT}", [f.recent_loss for f in figures], rounded, min),
        *(row(f"loss {n}", [f.losses.get(n) for f in figures], rounded, min) for n in losses),
    ]
    for name in held:
        found = [f.validation.get(name) for f in figures]
        rows.append(row(f"validation {name}", [v and v.last for v in found], rounded, min))
        rows.append(row(f"lowest validation {name}", [v and v.lowest for v in found], rounded, min))
        rows.append(row(f"  at step, {name}", [v and v.at for v in found], rounded))
    rows += [
        row("gradient norm", [f.grad_norm for f in figures], rounded),
        row("samples/s", [f.samples_per_second for f in figures], rounded, max),
        row("supervised tokens/s", [f.tokens_per_second for f in figures], rounded, max),
        row("TFLOP/s per device", [f.tflops for f in figures], rounded, max),
        row("share of peak", [f.peak_share for f in figures], percent, max),
        row("seconds per step", [f.step_seconds for f in figures], rounded, min),
        row("waiting for data", [f.data_share for f in figures], percent, min),
        row("memory, GB", [f.memory_gb for f in figures], rounded, min),
        row("replaced samples", [f.replaced for f in figures], rounded),
        row("skipped steps", [f.skipped for f in figures], rounded),
        row("steps not finite", [f.not_finite for f in figures], rounded),
        row("last checkpoint at step", [f.checkpoint for f in figures], rounded),
    ]
    return [r for r in rows if any(v is not None for v in r.values)]


def differences(runs: Sequence[Run]) -> list[Difference]:
    """Keys of what was run (configuration, versions, git, processes) in which the runs differ."""
    trees = [_flat(run) for run in runs]
    keys = sorted({key for tree in trees for key in tree})
    found = []
    for key in keys:
        values = tuple(tree.get(key, ABSENT) for tree in trees)
        if len(set(values)) > 1:
            found.append(Difference(key, values))
    return found


def _flat(run: Run) -> dict[str, str]:
    info = run.info
    flat: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = json.dumps(value, ensure_ascii=False, default=str)

    walk("", info.config)
    walk("versions", info.versions)
    if info.git is not None:
        walk("git", {"commit": info.git[0], "dirty": info.git[1]})
    walk("annotations", info.annotations)
    for key, value in (("world", info.world), ("device", info.device or None)):
        if value is not None:
            walk(key, value)
    return {key: value for key, value in flat.items() if key and value != "{}"}


def render_comparison(runs: Sequence[Run], names: Sequence[str], now: datetime) -> str:
    """The page of several runs that were refreshed.

    Args:
        names: one for each, as `names_of` gives them.
    """
    figures = [Figures.of(run, now) for run in runs]
    last = max(1, *(f.step for f in figures))

    def chart(key: str, title: str, pick: Callable[[Run], Series | None], note: str = "", **style: Any) -> Html | None:
        found = [(i, name, pick(run)) for i, (run, name) in enumerate(zip(runs, names, strict=True))]
        smooth = style.pop("smooth", True)
        lines = [Line(name, series, i, smooth) for i, name, series in found if series is not None]
        return draw(Chart(key, title, lines, note, **style), 0, last)

    datasets = dict.fromkeys(n for run in runs for n in run.datasets)
    trained = [n for n in datasets if any(n in run.metrics.losses for run in runs)]
    losses = [
        chart(f"loss-{i}", f"Training loss: {n}", lambda r, n=n: r.metrics.losses.get(n),
              "Mean per supervised token.", scale=AxisScale.CHOICE)
        for i, n in enumerate(trained)
    ]  # fmt: skip
    held = [
        chart(f"validation-{i}", f"Validation loss: {n}", lambda r, n=n: r.metrics.validation.get(n),
              "Mean per supervised token.", scale=AxisScale.CHOICE, smooth=False)
        for i, n in enumerate(dict.fromkeys(n for run in runs for n in run.metrics.validation))
    ]  # fmt: skip
    rest = [
        chart("lr", "Learning rate", lambda r: r.metrics.train.lr, "Of the optimizer's steps.", scale=AxisScale.LINEAR,
              zero=True, smooth=False),
        chart("grad-norm", "Gradient norm", lambda r: r.metrics.train.grad_norm, "Before clipping."),
        chart("samples", "Samples per second", lambda r: r.metrics.train.samples_per_second, "All devices.", zero=True),
        chart("tokens", "Tokens per second", lambda r: r.metrics.train.tokens_per_second,
              "Supervised tokens, all devices.", zero=True),
    ]  # fmt: skip
    sections = [
        ("Figures", "figures", _figures(figures, names)),
        ("Training loss", "loss", grid(losses)),
        ("Validation loss", "validation", grid(held)),
        ("Optimisation and speed", "speed", grid(rest)),
        ("What differs", "differences", _differences(runs, names)),
    ]
    footer = tag("footer", f"Written {clock(now)}.")
    return page(f"{len(runs)} runs compared", _header(figures, names), sections, footer)


def _header(figures: Sequence[Figures], names: Sequence[str]) -> Html:
    items = [
        tag("li", tag("i", class_=colour_class(i)), tag("span", name, class_="name"), " ",
            tag("span", f.state, class_=f.state), f" at step {f.step:,}")
        for i, (f, name) in enumerate(zip(figures, names, strict=True))
    ]  # fmt: skip
    title = tag("h1", f"{len(figures)} runs compared")
    return tag("header", tag("p", "ChatBridge training runs", class_="kind"), title, tag("ul", *items, class_="legend"))


def _figures(figures: Sequence[Figures], names: Sequence[str]) -> Html:
    rows = []
    for row in rows_of(figures):
        cells = []
        for value, text in zip(row.values, row.texts, strict=True):
            cell = data(value, text) if isinstance(value, (int, float)) else text
            cells.append(
                join([tag("strong", cell), tag("span", " best", class_="hidden")]) if text == row.best else cell
            )
        rows.append([row.name.strip(), *cells])
    note = "Rates and shares are means over all logged steps, seconds per step are medians. The best value is bold."
    listed = table(["", *names], rows, "Figures of the runs", numeric=range(1, len(names) + 1))
    return tag("div", tag("p", note, class_="note"), listed, class_="card", id="figures")


def _differences(runs: Sequence[Run], names: Sequence[str]) -> Html:
    rows = [[tag("code", d.key), *(tag("code", v) for v in d.values)] for d in differences(runs)]
    if not rows:
        return tag("p", "Configuration, versions and data are the same, as far as they were recorded.", class_="none")
    return tag("div", table(["key", *names], rows, "Keys in which the runs differ"), class_="card", id="differences")
