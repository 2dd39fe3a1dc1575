"""The report as text: report.md of one run, and tables over several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chatbridge.common.documents import read_json
from dataset_prep.world.annotations import FAMILIES, MODALITIES

CONDITIONS = {
    "full": "sound and sight",
    "no_audio": "sound silenced",
    "no_visual": "picture blanked",
    "shuffled_audio": "sound of another sample",
    "shuffled_visual": "picture of another sample",
    "blind": "blind: the question alone",
}
NAMES = {family: family.replace("_", " ") for family in FAMILIES}
LONG_NAMES = {**NAMES, "match": "match (yes/no, or which of the two)"}
SINGLE = {
    "stage 1: bare caption": ("stage1", "caption"),
    "stage 1: questions": ("stage1", "qa"),
    "stage 2: caption": ("stage2", "caption"),
    "stage 2: questions": ("stage2", "qa"),
}
"""What one medium alone was asked for -> where that stands in "single"."""

MEASURES = {
    **{f"{NAMES[f]}: {text}": ("joint", condition, f) for f in FAMILIES for condition, text in CONDITIONS.items()},
    **{
        f"{modality}, {title}": ("single", stage, modality, asks)
        for title, (stage, asks) in SINGLE.items()
        if title != "stage 1: questions"
        for modality in MODALITIES
    },
    **{f"unseen pairs, {NAMES[f]}": ("unseen", "joint", "full", f) for f in FAMILIES},
}
"""Rows of the table over runs: name -> path in report.json."""


def get(tree: Mapping, *path: str) -> Any:
    """What stands at a path of nested mappings, or None."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def cell(score: Mapping | None) -> str:
    """A score with its interval: ".93 (.87–.96)"; a dash for what was not run."""
    if score is None:
        return "–"
    low, high = score["ci95"]
    return f"**{share(score['value'])}** ({share(low)}–{share(high)})"


def share(value: float) -> str:
    """A share to two places as papers print it: ".93", "1.00"."""
    return f"{value:.2f}".removeprefix("0")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def report_markdown(report: Mapping[str, Any]) -> str:
    """report.md: every figure of report.json that a reader wants, and how to read it."""
    seconds, peak = report["wall_seconds"]["total"], report["peak_rss_bytes"]
    parts = [
        "# Both stages on the embedded world",
        f"Bridge seed {report['seed']}; {seconds:.0f} s in all, {peak / 2**30:.2f} GiB of memory at most. "
        "Shares of exact answers, with 95 % Wilson intervals. All media were held out of training.",
        *_failed(report),
        *_joint(report),
        *_single(report),
        *_unseen(report),
        *_plot("What is left when a modality is taken away", "ablations.png"),
        *_plot("Samples: the first right and the first wrong answer of every set", "samples.png"),
        *_plot("Training loss by dataset", "loss.png"),
        "## Time",
        table(["phase", "seconds"], [[name, f"{value:.1f}"] for name, value in report["wall_seconds"].items()]),
        "## Settings",
        table(["key", "value"], [[f"`{name}`", str(value)] for name, value in report["settings"].items()]),
    ]
    return "\n\n".join(parts) + "\n"


def _plot(title: str, file: str) -> list[str]:
    return [f"## {title}", f"![{title}]({file})"]


def _failed(report: Mapping) -> list[str]:
    """What is in none of the figures."""
    failed = report.get("failed", {}).items()
    parts = [f"{n} questions of {name} ({stage})" for stage, sets in failed for name, n in sets.items()]
    return [f"**Failed, and left out of every figure below: {', '.join(parts)}.**"] if parts else []


def _joint(report: Mapping) -> list[str]:
    """The questions about two sources."""
    joint, rows = report["joint"], []
    for condition, scores in joint.items():
        guess = [get(report, "joint_guess", condition, f) for f in FAMILIES]
        cells = [
            cell(scores.get(f)) + ("" if g is None else f" · {share(g)}") for f, g in zip(FAMILIES, guess, strict=True)
        ]
        rows.append([CONDITIONS.get(condition, condition), *cells])
    split = report["joint_by_visual"]
    return [
        "## Sound and sight together",
        "No training sample of either stage held both something to see and something to hear. Questions about pictures "
        "and about videos are pooled. Behind the dot: what an even guess gets right which knows everything but what "
        "was taken away.",
        table(["", *(f"{LONG_NAMES[f]}, n = {joint['full'][f]['n']}" for f in FAMILIES)], rows),
        table(
            ["nothing taken away", *LONG_NAMES.values()],
            [[f"{m} + sound", *(cell(get(split, m, "full", f)) for f in FAMILIES)] for m in split],
        ),
        "*Match* holds two kinds of questions: whether the sound goes with the colour, by a rule that was given "
        "in text only (`rule`, yes or no), and which of two claims about sound and shape is true (`while`, four "
        "verdicts).",
        table(
            ["group", "n", "value"],
            [[f"`{name}`", str(score["n"]), cell(score)] for name, score in report["joint_by_group"]["match"].items()],
        ),
    ]


def _single(report: Mapping) -> list[str]:
    """One source at a time."""
    single, bare, asked = report["single"], report["bare_captions"], report["instructed_captions"]
    return [
        "## One source at a time",
        "A caption is what the stage trains: after stage 1 the *bare* one, behind the medium alone; after stage 2 the "
        'answer to "what do you see?" or "what do you hear?". Questions are put in the same words after either stage.',
        table(
            ["", *SINGLE],
            [[m, *(cell(get(single, stage, m, asks)) for stage, asks in SINGLE.values())] for m in MODALITIES],
        ),
        "The other way round: what was asked for in words before stage 2 taught it, and what is left of bare "
        "captions after it.",
        table(
            ["", "stage 1: caption when asked", "stage 2: bare caption"],
            [[m, cell(get(asked, "stage1", m)), cell(get(bare, "stage2", m))] for m in MODALITIES],
        ),
    ]


def _unseen(report: Mapping) -> list[str]:
    """Pairs of attributes that no training label joined."""
    single, joint = get(report, "unseen", "single", "stage2"), get(report, "unseen", "joint", "full")
    return [
        "## Unseen combinations within a modality",
        "Shapes in colours, and sounds at pitches, that no label of the encoders or bridges ever joined: each value "
        "was seen, but never these pairs.",
        table(
            ["after stage 2", "caption", "questions"],
            [[m, *(cell(get(single, m, asks)) for asks in ("caption", "qa"))] for m in MODALITIES],
        ),
        table(list(LONG_NAMES.values()), [[cell(get(joint, f)) for f in FAMILIES]]),
    ]


def runs_table(files: Sequence[Path]) -> str:
    """A Markdown table over the report.json files of several runs: a row per measure, mean, range and every run's.

    Raises:
        ValueError: for no files, or one that is missing or no report.
    """
    reports, rows = _read_all(files), []
    for name, path in MEASURES.items():
        scores = [get(report, *path) for report in reports]
        there = [score for score in scores if score is not None]
        if there:
            counts = "/".join(dict.fromkeys(str(score["n"]) for score in there))
            rows.append([name, counts, *_mean_and_range(there), *map(cell, scores)])
    rows.append(["seconds in all", "", "", "", *(f"{r['wall_seconds']['total']:.0f}" for r in reports)])
    rows.append(["memory at most, GB", "", "", "", *(f"{r['peak_rss_bytes'] / 1e9:.2f}" for r in reports)])
    return table(["", "n", "mean", "range", *map(_run_name, reports)], rows)


def summary_table(files: Sequence[Path]) -> str:
    """The questions about two sources alone: mean and range over several runs, "**.96** (.94–.97)".

    Raises:
        ValueError: for no files, or one that is missing or no report.
    """
    reports, rows = _read_all(files), []
    for condition in ("full", "no_audio", "no_visual", "blind"):
        scores = {f: [get(report, "joint", condition, f) for report in reports] for f in FAMILIES}
        cells = [_mean_and_range([s for s in scores[f] if s is not None]) for f in FAMILIES]
        rows.append([CONDITIONS[condition], *(f"**{mean}** ({between})" for mean, between in cells)])
    return table([f"mean (range), runs: {len(reports)}", *NAMES.values()], rows)


def _mean_and_range(scores: Sequence[Mapping]) -> tuple[str, str]:
    values = [score["value"] for score in scores]
    if not values:
        return "–", "–"
    return share(sum(values) / len(values)), f"{share(min(values))}–{share(max(values))}"


def _run_name(report: Mapping) -> str:
    processor = get(report, "settings", "processor")
    return f"seed {report['seed']}" + (f", {processor}" if processor else "")


def _read_all(files: Sequence[Path]) -> list[dict]:
    if not files:
        raise ValueError("a table over runs needs at least one report.json")
    return [_read(Path(file)) for file in files]


def _read(file: Path) -> dict:
    report = read_json(file)
    missing = [k for k in ("seed", "wall_seconds", "peak_rss_bytes") if not isinstance(report, dict) or k not in report]
    if missing:
        raise ValueError(f"{file}: no report.json of the quickstart: it has no '{missing[0]}'")
    return report
