"""From answer files to one report: what was right after each stage, and what is left when a modality is taken away.

The datasets are told apart by their names, as eval_configs/quickstart.yaml and quickstart_captions.yaml give them:
``test_image_caption``, ``unseen_audio_qa``, ``joint_video_match``, ``joint_unseen_image_caption_both``.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatbridge.common.documents import parse_json, read_text
from chatbridge.evaluation import plots
from chatbridge.evaluation.markdown import report_markdown
from chatbridge.evaluation.metrics import Score, verdict

Row = Mapping[str, Any]

MODALITIES = ("image", "video", "audio")
FAMILIES = ("match", "two_attributes", "caption_both")
CONDITIONS = ("full", "no_audio", "no_visual", "shuffled_audio", "shuffled_visual", "blind")

_SINGLE = re.compile(r"(test|unseen)_(image|video|audio)_(caption|qa)")
_JOINT = re.compile(r"joint_(unseen_)?(image|video)_(match|two_attributes|caption_both)")


@dataclass(frozen=True, kw_only=True)
class StageFiles:
    """What one stage of training, and the questions after it, left on disk; None for what was not run.

    Attributes:
        answers: predictions.jsonl of the instructed questions (eval_configs/quickstart.yaml).
        captions: predictions.jsonl of the bare captions (eval_configs/quickstart_captions.yaml).
        metrics: metrics.jsonl of the training.
    """

    answers: Path | None = None
    captions: Path | None = None
    metrics: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ReportInput:
    """Everything that a report is made of.

    Attributes:
        stage1, stage2: files of either stage.
        wall_seconds: phase -> seconds, in the order in which they ran.
        total_seconds: of the whole run; the sum of the phases when None.
        peak_rss_bytes: the most memory that all processes held at a time.
        seed: of the bridges.
        settings: whatever else decides the result, by name; goes into the report as it is.
    """

    stage1: StageFiles
    stage2: StageFiles
    wall_seconds: Mapping[str, float]
    total_seconds: float | None = None
    peak_rss_bytes: int
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)


def write_report(out_dir: Path, runs: ReportInput) -> dict[str, Any]:
    """Write report.json, report.md, loss.png, ablations.png and samples.png.

    Args:
        out_dir: where to; made when missing.
        runs: what to read. Cells of what was not run are left out.

    Returns:
        What report.json holds.

    Raises:
        ValueError: a file that is missing, or a line of it that is no answer.
    """
    answers = {stage: read_rows(files.answers) for stage, files in _stages(runs)}
    captions = {stage: read_rows(files.captions) for stage, files in _stages(runs)}
    curves = {stage: read_rows(files.metrics, ("step", "loss")) for stage, files in _stages(runs)}
    report = assemble(runs, answers, captions)
    out_dir.mkdir(parents=True, exist_ok=True)
    drawn = {
        "loss.png": plots.loss_curves(curves, out_dir / "loss.png"),
        "ablations.png": plots.ablations(report, out_dir / "ablations.png"),
        "samples.png": plots.samples(choose_samples(answers["stage2"]), out_dir / "samples.png"),
    }
    report["plots"] = [name for name, there in drawn.items() if there]
    (out_dir / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (out_dir / "report.md").write_text(report_markdown(report), encoding="utf-8")
    return report


def assemble(
    runs: ReportInput, answers: Mapping[str, Sequence[Row]], captions: Mapping[str, Sequence[Row]]
) -> dict[str, Any]:
    """The report's figures, as JSON holds them.

    Args:
        answers, captions: rows of predictions.jsonl by "stage1" and "stage2".
    """
    total = sum(runs.wall_seconds.values()) if runs.total_seconds is None else runs.total_seconds
    after = answers["stage2"]
    report = {
        "seed": runs.seed,
        "settings": dict(runs.settings),
        "wall_seconds": {**runs.wall_seconds, "total": round(total, 1)},
        "peak_rss_bytes": runs.peak_rss_bytes,
        "joint": joint_scores(after),
        "joint_by_visual": {m: joint_scores([r for r in after if _visual(r) == m]) for m in ("image", "video")},
        "joint_by_group": joint_groups(after),
        "joint_guess": guess_levels(after),
        "single": single_table("test", answers, captions),
        "unseen": {
            "single": single_table("unseen", answers, captions),
            "joint": joint_scores(after, unseen=True),
            "joint_by_visual": {
                m: joint_scores([r for r in after if _visual(r) == m], unseen=True) for m in ("image", "video")
            },
        },
        "bare_captions": {stage: caption_scores(rows, "test") for stage, rows in captions.items()},
        "instructed_captions": {stage: caption_scores(rows, "test") for stage, rows in answers.items()},
        "joint_after_stage1": joint_scores(answers["stage1"]),
    }
    other = {r["dataset"] for r in after if not _SINGLE.fullmatch(r["dataset"]) and not _JOINT.fullmatch(r["dataset"])}
    if other:
        report["other"] = {
            name: _by(after, lambda r, name=name: r["condition"] if r["dataset"] == name else None)
            for name in sorted(other)
        }
    asked = {stage: [*answers[stage], *captions[stage]] for stage in answers}
    report["failed"] = {
        stage: dict(Counter(r["dataset"] for r in rows if "error" in r)) for stage, rows in asked.items()
    }
    return _without_empty(report)


def single_table(split: str, answers: Mapping[str, Sequence[Row]], captions: Mapping[str, Sequence[Row]]) -> dict:
    """stage -> modality -> "caption" and "qa" -> score.

    A caption is what the stage trains: after stage 1 the bare one, behind the medium alone; after stage 2 the answer
    to "what do you see?" or "what do you hear?". Questions are put in the same words after either stage.
    """
    table: dict[str, dict] = {}
    for stage, source in (("stage1", captions["stage1"]), ("stage2", answers["stage2"])):
        cells = caption_scores(source, split)
        for modality in MODALITIES:
            asked = [r for r in answers[stage] if r["dataset"] == f"{split}_{modality}_qa"]
            qa = _by(asked, lambda r: "qa" if r["condition"] == "full" else None)
            table.setdefault(stage, {})[modality] = {**_named("caption", cells.get(modality)), **qa}
    return table


def caption_scores(rows: Iterable[Row], split: str) -> dict[str, dict]:
    """modality -> score of the captions of one split ("test" or "unseen"), with nothing taken away."""

    def modality(row: Row) -> str | None:
        found = _SINGLE.fullmatch(row["dataset"])
        wanted = found and found[1] == split and found[3] == "caption" and row["condition"] == "full"
        return found[2] if wanted else None

    return _by(rows, modality)


def joint_scores(rows: Iterable[Row], unseen: bool = False) -> dict[str, dict]:
    """condition -> family -> score of the questions about two sources, pictures and videos pooled."""
    rows = [row for row in rows if (found := _JOINT.fullmatch(row["dataset"])) and bool(found[1]) == unseen]
    return {
        condition: _by(rows, lambda r, c=condition: _JOINT.fullmatch(r["dataset"])[3] if r["condition"] == c else None)
        for condition in _conditions(rows)
    }


def joint_groups(rows: Iterable[Row]) -> dict[str, dict]:
    """family -> group of questions -> score, with nothing taken away."""
    rows = [r for r in rows if (found := _JOINT.fullmatch(r["dataset"])) and not found[1] and r["condition"] == "full"]
    return {
        family: _by(rows, lambda r, f=family: r["group"] if _JOINT.fullmatch(r["dataset"])[3] == f else None)
        for family in FAMILIES
    }


def guess_levels(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """condition -> family -> the share that a guesser gets right who knows all but what the condition takes away.

    Without pictures, who hears everything still has to guess what is seen: one of the shapes, in "tell the shape and
    the tempo". Blind, both have to be guessed. The values to choose from are those among the true answers; the world
    deals them evenly.
    """
    asked: dict[str, list[tuple[str, str]]] = {family: [] for family in FAMILIES}
    for row in rows:
        found = _JOINT.fullmatch(row["dataset"])
        if found and not found[1] and row["condition"] == "full" and row["references"]:
            asked[found[3]].append((row["group"], verdict(row["references"][0])))
    levels: dict[str, dict[str, float]] = {}
    for condition in CONDITIONS[1:]:
        for family in (f for f in FAMILIES if asked[f]):
            # Either modality alone leaves two verdicts of a match, and the world balances them.
            known = family == "match" and condition != "blind"
            level = 0.5 if known else _even_guess(asked[family], HIDDEN[condition] if family != "match" else (None,))
            levels.setdefault(condition, {})[family] = round(level, 4)
    return levels


HIDDEN = {"no_audio": (1,), "shuffled_audio": (1,), "no_visual": (0,), "shuffled_visual": (0,), "blind": (0, 1)}
"""Condition -> which of "what is seen" (0) and "what is heard" (1) it takes away."""


def _even_guess(asked: Sequence[tuple[str, str]], hidden: Sequence[int | None]) -> float:
    """Mean share of right guesses among the values that occur.

    Args:
        asked: (group, answer) of every question; groups "shape+tempo" and answers "star and fast" have two halves.
        hidden: halves that are guessed, each on its own; None for whole answers.
    """
    values: dict[tuple[int | None, str], set[str]] = {}
    for half in hidden:
        for group, answer in asked:
            values.setdefault((half, _half(group, "+", half)), set()).add(_half(answer, " and ", half))
    shares = [math.prod(1 / len(values[half, _half(group, "+", half)]) for half in hidden) for group, _ in asked]
    return sum(shares) / len(shares)


def _half(text: str, joint: str, half: int | None) -> str:
    """One of two halves of a text; all of it when it has none or None is asked for."""
    parts = text.split(joint)
    return text if half is None or len(parts) != 2 else parts[half]


def choose_samples(rows: Sequence[Row]) -> list[Row]:
    """For the sheet: of every dataset's unablated answers the first right and the first wrong one."""
    chosen: list[Row] = []
    for name in dict.fromkeys(row["dataset"] for row in rows):
        if name.startswith("test_") or _JOINT.fullmatch(name) and "unseen" not in name:
            answered = [r for r in rows if r["dataset"] == name and r["condition"] == "full"]
            for outcome in (True, False):
                chosen += [r for r in answered if r["correct"] is outcome][:1]
    return chosen


def read_rows(path: Path | None, keys: Sequence[str] = ("dataset", "condition", "correct")) -> list[dict]:
    """The objects of a JSON-lines file, each with `keys`; none when `path` is None.

    Raises:
        ValueError: when the file is missing or a line is not such an object.
    """
    if path is None:
        return []
    rows, text = [], read_text(path)
    # Not splitlines(): an answer may hold a character that it takes for the end of a line.
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), start=1):
        row = parse_json(line, f"{path}: line {number}")
        missing = [key for key in keys if not isinstance(row, dict) or key not in row]
        if missing:
            raise ValueError(f"{path}: line {number} has no '{missing[0]}'; is it the right file?")
        rows.append(row)
    return rows


def _stages(runs: ReportInput) -> tuple[tuple[str, StageFiles], ...]:
    return ("stage1", runs.stage1), ("stage2", runs.stage2)


def _visual(row: Row) -> str | None:
    found = _JOINT.fullmatch(row["dataset"])
    return found[2] if found else None


def _conditions(rows: Iterable[Row]) -> list[str]:
    """The conditions that occur, known ones first and in their order."""
    there = dict.fromkeys(row["condition"] for row in rows)
    return [c for c in CONDITIONS if c in there] + [c for c in there if c not in CONDITIONS]


def _by(rows: Iterable[Row], name: Callable[[Row], str | None]) -> dict[str, dict]:
    """Scores of rows by name; rows without a name, and answers that had nothing to compare with, are left out."""
    outcomes: dict[str, list[bool]] = {}
    for row in rows:
        label = name(row)
        if label is not None and row["correct"] is not None:
            outcomes.setdefault(label, []).append(row["correct"])
    return {label: Score.of(values).as_dict() for label, values in outcomes.items()}


def _named(name: str, value: dict | None) -> dict:
    return {} if value is None else {name: value}


def _without_empty(tree: Any) -> Any:
    """The tree without empty branches: what was not run is absent, never zero."""
    if not isinstance(tree, dict):
        return tree
    kept = {key: _without_empty(value) for key, value in tree.items()}
    return {key: value for key, value in kept.items() if value != {} or key == "settings"}
