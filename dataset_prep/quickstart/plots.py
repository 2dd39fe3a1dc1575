"""The report's pictures: loss curves, the ablation table as bars, and a sheet of samples with their media."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from chatbridge.processors.picture_files import read_rgb
from chatbridge.processors.sound_files import read_sound
from chatbridge.processors.video_files import read_frames
from dataset_prep.world.annotations import FAMILIES

Row = Mapping[str, Any]

TITLES = {"stage1": "Stage 1: alignment", "stage2": "Stage 2: instructions"}
DATASET_COLOURS = {"image": "#1b6ca8", "video": "#d1495b", "audio": "#3a8a4f"}
CONDITION_COLOURS = {
    "full": "#22577a",
    "no_audio": "#e0a458",
    "no_visual": "#c8553d",
    "shuffled_audio": "#f2d0a4",
    "shuffled_visual": "#e8a598",
    "blind": "#9aa0a6",
}
RIGHT, WRONG, GREY = "#2e7d32", "#c62828", "#555555"


def _figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    """An empty figure in inches. Drawn by Agg, beside pyplot and its global state."""
    figure = Figure(figsize=(width, height), dpi=130, layout=layout)
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


def loss_curves(stages: Mapping[str, Sequence[Row]], path: Path) -> None:
    """One panel per stage, one curve per dataset: rows of metrics.jsonl by stage, drawn as a PNG."""
    figure = _figure(5.2 * len(stages), 3.6)
    panels = figure.subplots(1, len(stages), squeeze=False, sharey=True)[0]
    for axes, (stage, rows) in zip(panels, stages.items(), strict=True):
        for name, colour in DATASET_COLOURS.items():
            points = [(row["step"], row["loss"]) for row in rows if row["dataset"] == name and row["split"] == "train"]
            if points:
                steps, losses = zip(*points, strict=True)
                axes.plot(steps, losses, color=colour, linewidth=0.7, alpha=0.3)
                smooth = running_mean(losses, max(1, len(losses) // 12))
                axes.plot(steps, smooth, color=colour, linewidth=1.8, label=name)
        axes.set(title=TITLES[stage], xlabel="step", yscale="log")
        axes.legend(frameon=False)
        _plain(axes)
    panels[0].set_ylabel("loss per supervised token")
    figure.savefig(path)


def ablations(report: Mapping[str, Any], path: Path) -> None:
    """Every family of joint questions under every condition, with 95 % intervals and what an even guess would reach.

    Args:
        report: as report.json holds it ("joint", "joint_guess"). path: PNG to write.
    """
    joint, guesses = report["joint"], report["joint_guess"]
    figure = _figure(9.5, 4.2)
    axes = figure.subplots()
    width = 0.86 / len(joint)
    guessed = False
    for i, (condition, scores) in enumerate(joint.items()):
        shown = [
            (k + (i - (len(joint) - 1) / 2) * width, scores[f], guesses.get(condition, {}).get(f))
            for k, f in enumerate(FAMILIES)
            if f in scores
        ]
        values = [score["value"] for _, score, _ in shown]
        reach = [[max(0, s["value"] - s["ci95"][0]), max(0, s["ci95"][1] - s["value"])] for _, s, _ in shown]
        axes.bar(
            [place for place, _, _ in shown], values, width * 0.92, label=condition.replace("_", " "),
            color=CONDITION_COLOURS.get(condition, GREY),
            yerr=np.array(reach).T, error_kw={"elinewidth": 1, "capsize": 2.5, "ecolor": "#333333"},
        )  # fmt: skip
        for place, score, level in shown:
            if level is not None:
                label = None if guessed else "even guess without it"
                axes.hlines(level, place - width / 2, place + width / 2, color="black", linewidth=1.6, label=label)
                guessed = True
            top, text = max(score["ci95"][1], level or 0), f"{score['value']:.2f}".removeprefix("0")
            axes.text(place, top + 0.015, text, ha="center", va="bottom", fontsize=7.5, color="#333333")
    names = [f"{f.replace('_', ' ')}\n(n = {joint['full'][f]['n']})" for f in FAMILIES]
    axes.set_xticks(range(len(FAMILIES)), names)
    axes.set(ylim=(0, 1.1), ylabel="share right", yticks=np.linspace(0, 1, 6))
    axes.set_title("Sound and sight together, and what is left when one is taken away", fontsize=11)
    axes.legend(frameon=False, ncols=1, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _plain(axes)
    figure.savefig(path)


CELL, TITLE = (7.6, 1.16), 0.45
"""Width and height of a sample on the sheet, and height of the title, inches. Within a cell, shares of it count."""
FIRST, SECOND, WORDS = (0.013, 0.07, 0.303, 0.86), (0.329, 0.07, 0.171, 0.86), 0.52
MOST_PIXELS, MOST_SECONDS, FRAMES = 1 << 24, 60.0, 4


def samples(rows: Sequence[Row], path: Path, columns: int = 2) -> None:
    """A sheet: picture, frames or spectrogram of every sample beside its question, the truth and the answer.

    Args:
        rows: of predictions.jsonl; their media are read again.
        path: PNG to write.
        columns: of the sheet, filled one after the other.

    Raises:
        ValueError: a medium that cannot be read any more.
    """
    lines = -(-len(rows) // columns)
    figure = _figure(CELL[0] * columns, CELL[1] * lines + TITLE, layout=None)
    title = "The first right and the first wrong answer of every set (not a fair draw)"
    figure.suptitle(title, fontsize=12, y=1 - 0.1 / figure.get_figheight())
    grid = figure.add_gridspec(1 + lines, columns, height_ratios=[TITLE] + [CELL[1]] * lines)
    for place, row in enumerate(rows):
        _sample(figure.add_subfigure(grid[1 + place % lines, place // lines]), row)
    figure.savefig(path)


def _sample(cell: Any, row: Row) -> None:
    """Media on the left, words on the right."""
    boxes = iter((FIRST, SECOND, (WORDS,)))
    for file in row["media"].get("image", []):
        _show_frames(cell.add_axes(next(boxes)), [read_rgb(file, MOST_PIXELS)])
    for file in row["media"].get("video", []):
        _show_frames(cell.add_axes(next(boxes)), read_frames(file, _spread, MOST_PIXELS))
    for file in row["media"].get("audio", []):
        wave, rate = read_sound(file, MOST_SECONDS)
        _show_sound(cell.add_axes(next(boxes)), wave.mean(0).numpy(), rate)
    mark, colour = {True: ("✓", RIGHT), False: ("✗", WRONG)}.get(row["correct"], ("", GREY))
    words = [
        (row["dataset"].replace("_", " "), GREY, 7),
        (row["question"] or "(the medium alone)", "black", 8.5),
        (f"truth: {' / '.join(row['references']) or '–'}", GREY, 8.5),
        (f"{mark} answer: {row['prediction'] or '(nothing)'}", colour, 8.5),
    ]
    left, top = next(boxes)[0], 0.93
    for text, tint, size in words:
        wrapped = textwrap.wrap(text, 56, max_lines=2, placeholder=" …")
        cell.text(left, top, "\n".join(wrapped), fontsize=size, color=tint, va="top")
        top -= (0.145 * len(wrapped) + 0.05) / CELL[1]


def _spread(total: int) -> list[int]:
    """Numbers of frames spread over a video of so many."""
    return [int((place + 0.5) * total / FRAMES) for place in range(FRAMES)]


def _show_frames(axes: Any, frames: Sequence[np.ndarray]) -> None:
    """A picture, or frames side by side with a gap of white."""
    gap = np.full((frames[0].shape[0], 3, 3), 255, np.uint8)
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
