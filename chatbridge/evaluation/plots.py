"""The report's pictures: loss curves, the ablation table as bars, and a sheet of samples with their media."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from chatbridge.evaluation.media import frames_of, sound_of

Row = Mapping[str, Any]

DATASET_COLOURS = {"image": "#1b6ca8", "video": "#d1495b", "audio": "#3a8a4f"}
OTHER_COLOURS = ("#7a5195", "#b07d2b", "#5f6b73", "#17a398")
CONDITION_COLOURS = {
    "full": "#22577a",
    "no_audio": "#e0a458",
    "no_visual": "#c8553d",
    "shuffled_audio": "#f2d0a4",
    "shuffled_visual": "#e8a598",
    "blind": "#9aa0a6",
}
RIGHT, WRONG, GREY = "#2e7d32", "#c62828", "#555555"


def _figure(width: float, height: float) -> Figure:
    """An empty figure in inches. Drawn by Agg, beside pyplot and its global state."""
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """The mean of every value with the `window` - 1 before it (fewer at the start): float [len(values)]."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    last = np.arange(1, len(values) + 1)
    first = np.maximum(0, last - window)
    return (total[last] - total[first]) / (last - first)


def loss_curves(stages: Mapping[str, Sequence[Row]], path: Path) -> bool:
    """One panel per stage, one curve per dataset; validation sets dashed.

    Args:
        stages: rows of metrics.jsonl by stage.
        path: PNG to write.

    Returns:
        Whether there was anything to draw.
    """
    there = {stage: rows for stage, rows in stages.items() if rows}
    if not there:
        return False
    figure = _figure(5.2 * len(there), 3.6)
    panels = figure.subplots(1, len(there), squeeze=False, sharey=True)[0]
    for axes, (stage, rows) in zip(panels, there.items(), strict=True):
        curves: dict[tuple[str, bool], list[tuple[int, float]]] = {}
        for row in rows:
            held = row.get("split", "train") != "train"
            curves.setdefault((row.get("dataset", "loss"), held), []).append((row["step"], row["loss"]))
        order = list(DATASET_COLOURS)
        curves = dict(sorted(curves.items(), key=lambda c: order.index(c[0][0]) if c[0][0] in order else len(order)))
        spare = iter(OTHER_COLOURS * len(curves))
        colours: dict[str, str] = {}
        for (name, held), points in curves.items():
            colour = colours.setdefault(name, DATASET_COLOURS.get(name) or next(spare))
            steps, losses = zip(*points, strict=True)
            if held:
                axes.plot(steps, losses, "--o", color=colour, markersize=3, linewidth=1, label=f"{name} (held out)")
                continue
            axes.plot(steps, losses, color=colour, linewidth=0.7, alpha=0.3)
            window = max(1, len(losses) // 12)
            axes.plot(steps, running_mean(losses, window), color=colour, linewidth=1.8, label=name)
        axes.set(title={"stage1": "Stage 1: alignment", "stage2": "Stage 2: instructions"}.get(stage, stage))
        axes.set(xlabel="step", yscale="log")
        axes.legend(frameon=False)
        _plain(axes)
    panels[0].set_ylabel("loss per supervised token")
    figure.savefig(path)
    return True


def ablations(report: Mapping[str, Any], path: Path) -> bool:
    """Every family of joint questions under every condition, with 95 % intervals and what an even guess would reach.

    Args:
        report: as report.json holds it ("joint", "joint_guess").
        path: PNG to write.

    Returns:
        Whether there was anything to draw.
    """
    joint = report.get("joint", {})
    families = [f for f in ("match", "two_attributes", "caption_both") if any(f in s for s in joint.values())]
    if not families:
        return False
    figure = _figure(9.5, 4.2)
    axes = figure.subplots()
    width = 0.86 / len(joint)
    guessed = False
    for i, (condition, scores) in enumerate(joint.items()):
        places = [k + (i - (len(joint) - 1) / 2) * width for k, f in enumerate(families) if f in scores]
        shown = [scores[f] for f in families if f in scores]
        values = [s["value"] for s in shown]
        reach = [[max(0, v - s["ci95"][0]), max(0, s["ci95"][1] - v)] for v, s in zip(values, shown, strict=True)]
        axes.bar(
            places, values, width * 0.92, label=condition.replace("_", " "),
            color=CONDITION_COLOURS.get(condition, "#5f6b73"),
            yerr=np.array(reach).T, error_kw={"elinewidth": 1, "capsize": 2.5, "ecolor": "#333333"},
        )  # fmt: skip
        for place, family in zip(places, [f for f in families if f in scores], strict=True):
            score, level = scores[family], report.get("joint_guess", {}).get(condition, {}).get(family)
            if level is not None:
                label = None if guessed else "even guess without it"
                axes.hlines(level, place - width / 2, place + width / 2, color="black", linewidth=1.6, label=label)
                guessed = True
            top, text = max(score["ci95"][1], level or 0), f"{score['value']:.2f}".removeprefix("0")
            axes.text(place, top + 0.015, text, ha="center", va="bottom", fontsize=7.5, color="#333333")
    counts = [next(s[f]["n"] for s in joint.values() if f in s) for f in families]
    axes.set_xticks(
        range(len(families)), [f"{f.replace('_', ' ')}\n(n = {n})" for f, n in zip(families, counts, strict=True)]
    )
    axes.set(ylim=(0, 1.1), ylabel="share right", yticks=np.linspace(0, 1, 6))
    axes.set_title("Sound and sight together, and what is left when one is taken away", fontsize=11)
    axes.legend(frameon=False, ncols=1, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _plain(axes)
    figure.savefig(path)
    return True


CELL = (7.6, 1.16)
"""Width and height of one sample on the sheet, inches; the boxes below are in inches within it."""
SEEN_BOX, HEARD_BOX, WORDS_X = (0.1, 0.08, 2.3, 1.0), (2.5, 0.08, 1.3, 1.0), 3.95


def samples(rows: Sequence[Row], path: Path, columns: int = 2) -> bool:
    """A sheet: picture, frames or spectrogram of every sample beside its question, the truth and the answer.

    Args:
        rows: of predictions.jsonl; their media are read again.
        path: PNG to write.
        columns: of the sheet, filled one after the other.

    Returns:
        Whether there was anything to draw.

    Raises:
        ValueError: a medium that cannot be read any more.
    """
    if not rows:
        return False
    lines = -(-len(rows) // columns)
    sheet = _Sheet(CELL[0] * columns, CELL[1] * lines + 0.45)
    sheet.figure.suptitle(
        "The first right and the first wrong answer of every set (not a fair draw)",
        fontsize=12,
        y=1 - 0.1 / sheet.size[1],
    )
    for place, row in enumerate(rows):
        _sample(sheet, place // lines * CELL[0], (lines - 1 - place % lines) * CELL[1], row)
    sheet.figure.savefig(path)
    return True


class _Sheet:
    """A figure whose axes are placed in inches from the lower left corner."""

    def __init__(self, width: float, height: float):
        self.size = (width, height)
        self.figure = Figure(figsize=self.size, dpi=130)
        FigureCanvasAgg(self.figure)

    def axes(self, x: float, y: float, box: tuple[float, float, float, float]) -> Any:
        left, low, width, height = box
        w, h = self.size
        return self.figure.add_axes([(x + left) / w, (y + low) / h, width / w, height / h])

    def text(self, x: float, y: float, text: str, size: float, colour: str, **style: Any) -> None:
        self.figure.text(x / self.size[0], y / self.size[1], text, fontsize=size, color=colour, va="top", **style)


def _sample(sheet: _Sheet, x: float, y: float, row: Row) -> None:
    """Media on the left, words on the right, in the cell whose lower left corner is at (x, y)."""
    seen = [file for m in ("image", "video") for file in row["media"].get(m, [])]
    heard = row["media"].get("audio", [])
    if seen:
        _show_frames(sheet.axes(x, y, SEEN_BOX), frames_of(Path(seen[0])))
    if heard:
        _show_sound(sheet.axes(x, y, HEARD_BOX if seen else SEEN_BOX), *sound_of(Path(heard[0])))
    left = x + (WORDS_X if seen and heard else HEARD_BOX[0])
    mark, colour = {True: ("✓", RIGHT), False: ("✗", WRONG)}.get(row["correct"], ("", GREY))
    lines = [
        (row["dataset"].replace("_", " "), GREY, 7),
        (row["question"] or "(the medium alone)", "black", 8.5),
        (f"truth: {' / '.join(row['references']) or '–'}", GREY, 8.5),
        (f"{mark} answer: {row['prediction'] or '(nothing)'}", colour, 8.5),
    ]
    top = y + CELL[1] - 0.08
    for text, tint, size in lines:
        wrapped = textwrap.wrap(text, 56, max_lines=2, placeholder=" …")
        sheet.text(left, top, "\n".join(wrapped), size, tint)
        top -= 0.145 * len(wrapped) + 0.05


def _show_frames(axes: Any, frames: np.ndarray) -> None:
    """A picture, or frames side by side with a gap of white."""
    gap = np.full((frames.shape[1], 3, 3), 255, np.uint8)
    strip = [part for frame in frames for part in (frame, gap)][:-1]
    axes.imshow(np.concatenate(strip, axis=1), interpolation="bilinear")
    axes.set_anchor("W")
    axes.axis("off")


def _show_sound(axes: Any, wave: np.ndarray, rate: int) -> None:
    """A spectrogram, 60 dB deep, up to 8 kHz."""
    if len(wave) < 512:
        axes.text(0.5, 0.5, "(no sound)", ha="center", va="center", fontsize=7)
    else:
        pieces = np.lib.stride_tricks.sliding_window_view(wave, 512)[::128] * np.hanning(512)
        decibel = 20 * np.log10(np.abs(np.fft.rfft(pieces)).T + 1e-6)
        top = decibel.max()
        extent = (0, len(wave) / rate, 0, rate / 2000)
        axes.imshow(decibel, origin="lower", aspect="auto", cmap="magma", vmin=top - 60, vmax=top, extent=extent)
        axes.set_ylim(0, min(8, rate / 2000))
    axes.set(xticks=[], yticks=[])
