"""A report as text: report.md of one run, and tables over several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chatbridge.common.documents import read_json

MODALITIES = ("image", "video", "audio")
FAMILY_NAMES = {
    "match": "match (yes/no, or which of the two)",
    "two_attributes": "two attributes",
    "caption_both": "caption both",
}
FAMILY_NAMES_SHORT = ("match", "two attributes", "caption both")
CONDITION_NAMES = {
    "full": "sound and sight",
    "no_audio": "sound silenced",
    "no_visual": "picture blanked",
    "shuffled_audio": "sound of another sample",
    "shuffled_visual": "picture of another sample",
    "blind": "blind: the question alone",
}


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
        *_figures(report),
        "## Time",
        table(["phase", "seconds"], [[name, f"{value:.1f}"] for name, value in report["wall_seconds"].items()]),
    ]
    if report.get("settings"):
        parts += ["## Settings", table(["key", "value"], [[f"`{k}`", str(v)] for k, v in report["settings"].items()])]
    return "\n\n".join(parts) + "\n"


def _failed(report: Mapping) -> list[str]:
    """What is in none of the figures."""
    told = [
        f"{n} questions of {name} ({stage})"
        for stage, sets in report.get("failed", {}).items()
        for name, n in sets.items()
    ]
    return [f"**Failed, and left out of every figure below: {', '.join(told)}.**"] if told else []


def _joint(report: Mapping) -> list[str]:
    """The questions about two sources."""
    joint = report.get("joint", {})
    if not joint:
        return []
    families = [f for f in FAMILY_NAMES if any(f in scores for scores in joint.values())]
    rows = []
    for condition, scores in joint.items():
        guess = [get(report, "joint_guess", condition, family) for family in families]
        row = [
            cell(scores.get(f)) + ("" if g is None else f" · {share(g)}") for f, g in zip(families, guess, strict=True)
        ]
        rows.append([CONDITION_NAMES.get(condition, condition), *row])
    counts = {f: next(s[f]["n"] for s in joint.values() if f in s) for f in families}
    header = ["", *(f"{FAMILY_NAMES[f]}, n = {counts[f]}" for f in families)]
    parts = [
        "## Sound and sight together",
        "No training sample of either stage held both something to see and something to hear. Questions about pictures "
        "and about videos are pooled. Behind the dot: what an even guess gets right which knows everything but what "
        "was taken away.",
        table(header, rows),
    ]
    split = report.get("joint_by_visual", {})
    rows = [[f"{m} + sound", *(cell(get(split, m, "full", f)) for f in families)] for m in split]
    before = report.get("joint_after_stage1", {}).get("full")
    if before:
        rows.append(["after stage 1 already", *(cell(before.get(f)) for f in families)])
    if rows:
        parts.append(table(["nothing taken away", *(FAMILY_NAMES[f] for f in families)], rows))
    groups = report.get("joint_by_group", {}).get("match", {})
    if len(groups) > 1:
        rows = [[f"`{name}`", str(score["n"]), cell(score)] for name, score in groups.items()]
        parts += [
            "*Match* holds two kinds of questions: whether the sound goes with the colour, by a rule that was told "
            "in text only (`rule`, yes or no), and which of two claims about sound and shape is true (`while`, four "
            "verdicts).",
            table(["group", "n", "value"], rows),
        ]
    return parts


def _single(report: Mapping) -> list[str]:
    """One source at a time."""
    single = report.get("single", {})
    if not single:
        return []
    rows = [
        [
            modality,
            *(cell(get(single, stage, modality, what)) for stage in ("stage1", "stage2") for what in ("caption", "qa")),
        ]
        for modality in MODALITIES
    ]
    parts = [
        "## One source at a time",
        "A caption is what the stage trains: after stage 1 the *bare* one, behind the medium alone; after stage 2 the "
        'answer to "what do you see?" or "what do you hear?". Questions are put in the same words after either stage.',
        table(["", "stage 1: bare caption", "stage 1: questions", "stage 2: caption", "stage 2: questions"], rows),
    ]
    bare, asked = report.get("bare_captions", {}), report.get("instructed_captions", {})
    if get(bare, "stage2") or get(asked, "stage1"):
        rows = [[m, cell(get(asked, "stage1", m)), cell(get(bare, "stage2", m))] for m in MODALITIES]
        parts += [
            "The other way round: what was asked for in words before stage 2 taught it, and what is left of bare "
            "captions after it.",
            table(["", "stage 1: caption when asked", "stage 2: bare caption"], rows),
        ]
    return parts


def _unseen(report: Mapping) -> list[str]:
    """Pairs of attributes that no training label joined."""
    unseen = report.get("unseen", {})
    rows = []
    for modality in MODALITIES:
        cells = [get(unseen, "single", "stage2", modality, what) for what in ("caption", "qa")]
        if any(cells):
            rows.append([modality, *map(cell, cells)])
    parts = []
    if rows:
        parts.append(table(["after stage 2", "caption", "questions"], rows))
    joint = get(unseen, "joint", "full")
    if joint:
        families = [f for f in FAMILY_NAMES if f in joint]
        parts.append(table([FAMILY_NAMES[f] for f in families], [[cell(joint[f]) for f in families]]))
    if not parts:
        return []
    text = (
        "Shapes in colours, and sounds at pitches, that no label of the encoders or bridges ever joined: each value "
        "was seen, but never these pairs."
    )
    return ["## Unseen combinations within a modality", text, *parts]


def _figures(report: Mapping) -> list[str]:
    titles = {
        "ablations.png": "What is left when a modality is taken away",
        "samples.png": "Samples: the first right and the first wrong answer of every set",
        "loss.png": "Training loss by dataset",
    }
    return [f"## {title}\n\n![{title}]({name})" for name, title in titles.items() if name in report.get("plots", [])]


MEASURES: tuple[tuple[str, tuple[str, ...]], ...] = (
    *((f"{family}: {text}", ("joint", condition, key))
      for key, family in (("match", "match"), ("two_attributes", "two attributes"), ("caption_both", "caption both"))
      for condition, text in CONDITION_NAMES.items()),
    *((f"{m}, stage 1: bare caption", ("single", "stage1", m, "caption")) for m in MODALITIES),
    *((f"{m}, stage 2: caption", ("single", "stage2", m, "caption")) for m in MODALITIES),
    *((f"{m}, stage 2: questions", ("single", "stage2", m, "qa")) for m in MODALITIES),
    *((f"unseen pairs, {name}", ("unseen", "joint", "full", key))
      for key, name in (("match", "match"), ("two_attributes", "two attributes"), ("caption_both", "caption both"))),
)  # fmt: skip
"""Rows of the table over runs: name, and the path in report.json."""


SUMMARY_CONDITIONS = ("full", "no_audio", "no_visual", "blind")


def runs_table(files: Sequence[Path]) -> str:
    """A Markdown table over the report.json files of several runs: a row per measure, mean, range and every run's.

    Raises:
        ValueError: for no files, or one that is missing or no report.
    """
    reports = _read_all(files)
    rows = []
    for name, path in MEASURES:
        scores = [get(report, *path) for report in reports]
        if any(score is not None for score in scores):
            rows.append([name, _count(scores), _mean(scores), _range(scores), *(cell(score) for score in scores)])
    rows.append(["seconds in all", "", "", "", *(f"{r['wall_seconds']['total']:.0f}" for r in reports)])
    rows.append(["memory at most, GB", "", "", "", *(f"{r['peak_rss_bytes'] / 1e9:.2f}" for r in reports)])
    return table(["", "n", "mean", "range", *map(_run_name, reports)], rows)


def summary_table(files: Sequence[Path]) -> str:
    """The questions about two sources alone: mean and range over several runs, "**.96** (.94–.97)".

    Raises:
        ValueError: for no files, or one that is missing or no report.
    """
    reports = _read_all(files)
    rows = []
    for condition in SUMMARY_CONDITIONS:
        row = [CONDITION_NAMES[condition]]
        for family in FAMILY_NAMES:
            scores = [get(report, "joint", condition, family) for report in reports]
            row.append(f"**{_mean(scores)}** ({_range(scores)})")
        rows.append(row)
    return table([f"mean (range), runs: {len(reports)}", *FAMILY_NAMES_SHORT], rows)


def _run_name(report: Mapping) -> str:
    processor = get(report, "settings", "processor")
    return f"seed {report['seed']}" + (f", {processor}" if processor else "")


def _read_all(files: Sequence[Path]) -> list[dict]:
    if not files:
        raise ValueError("a table over runs needs at least one report.json")
    return [_read(Path(file)) for file in files]


def _count(scores: Iterable[Mapping | None]) -> str:
    return "/".join(dict.fromkeys(str(score["n"]) for score in scores if score is not None))


def _mean(scores: Iterable[Mapping | None]) -> str:
    values = _values(scores)
    return share(sum(values) / len(values)) if values else "–"


def _range(scores: Iterable[Mapping | None]) -> str:
    values = _values(scores)
    return f"{share(min(values))}–{share(max(values))}" if values else "–"


def _values(scores: Iterable[Mapping | None]) -> list[float]:
    return [score["value"] for score in scores if score is not None]


def _read(file: Path) -> dict:
    report = read_json(file)
    missing = [k for k in ("seed", "wall_seconds", "peak_rss_bytes") if not isinstance(report, dict) or k not in report]
    if missing:
        raise ValueError(f"{file}: no report.json of the quickstart: it has no '{missing[0]}'")
    return report
