"""The quickstart's report: what was right after each stage, and what is left when a modality is taken away.

Sets of questions are recognised by their names in eval_configs/quickstart.yaml and quickstart_captions.yaml:
``test_image_caption``, ``unseen_audio_qa``, ``joint_video_match``, ``joint_unseen_image_caption_both``.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chatbridge.evaluation.metrics import Score, normalise
from chatbridge.evaluation.rows import NAME, read_rows
from dataset_prep.quickstart import plots
from dataset_prep.quickstart.tables import CONDITIONS, report_markdown

STAGES = ("stage1", "stage2")
Rows = Sequence[Mapping[str, Any]]
"""Lines of predictions.jsonl, with what their set's name says under "split", "modality" and "asks"."""

_SET = re.compile(r"(test|unseen|joint|joint_unseen)_(image|video|audio)_(\w+)")

HIDDEN = {"no_audio": (1,), "no_visual": (0,), "shuffled_audio": (1,), "shuffled_visual": (0,), "blind": (0, 1)}
"""Condition -> which of "what is seen" (0) and "what is heard" (1) it takes away."""


def write_report(out: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write report.json, report.md, loss.png, ablations.png and samples.png from the runs below `out`.

    Args:
        out: holds each stage's run, its ``<stage>_answers`` (instructed questions) and ``<stage>_captions`` (bare).
        facts: "seed", "settings", "wall_seconds" by phase with the "total", "peak_rss_bytes"; they go in as they are.

    Returns:
        What report.json holds.

    Raises:
        ValueError: a file that is missing, a line of it that is no answer, a medium that cannot be read any more.
    """
    answers, captions = (
        {stage: read_answers(out / f"{stage}_{what}" / NAME) for stage in STAGES} for what in ("answers", "captions")
    )
    losses = {stage: read_rows(out / stage / "metrics.jsonl", ("step", "loss")) for stage in STAGES}
    report = {**facts, **figures(answers, captions), "plots": ["loss.png", "ablations.png", "samples.png"]}
    plots.loss_curves(losses, out / "loss.png")
    plots.ablations(report, out / "ablations.png")
    plots.samples(choose_samples(answers["stage2"]), out / "samples.png")
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (out / "report.md").write_text(report_markdown(report), encoding="utf-8")
    return report


def read_answers(file: Path) -> Rows:
    """The rows of a predictions.jsonl, conditions in the order of `CONDITIONS`."""
    rows = read_rows(file)
    for row in rows:
        found = _SET.fullmatch(row["dataset"])
        row.update(zip(("split", "modality", "asks"), found.groups() if found else ("other", "", ""), strict=True))
    order = list(CONDITIONS)
    return sorted(rows, key=lambda r: order.index(r["condition"]) if r["condition"] in order else len(order))


def figures(answers: Mapping[str, Rows], captions: Mapping[str, Rows]) -> dict[str, Any]:
    """All shares of right answers, by stage, modality, condition and family; what nobody was asked is absent.

    A caption is what the stage trains: after stage 1 the bare one, behind the medium alone; after stage 2 the answer
    to "what do you see?" or "what do you hear?". Questions are put in the same words after either stage.
    """
    after = answers["stage2"]
    trained = {"stage1": [*captions["stage1"], *where(answers["stage1"], asks="qa")], "stage2": after}
    asked = {stage: where(rows, asks="caption") for stage, rows in answers.items()}
    return _without_empty({
        "joint": scores(where(after, split="joint"), "condition", "asks"),
        "joint_by_visual": scores(where(after, split="joint"), "modality", "condition", "asks"),
        "joint_by_group": scores(where(after, split="joint", condition="full"), "asks", "group"),
        "joint_guess": guess_levels(after),
        "single": _by_stage(trained, "test", "modality", "asks"),
        "unseen": {
            "single": _by_stage(trained, "unseen", "modality", "asks"),
            "joint": scores(where(after, split="joint_unseen"), "condition", "asks"),
            "joint_by_visual": scores(where(after, split="joint_unseen"), "modality", "condition", "asks"),
        },
        "bare_captions": _by_stage(captions, "test", "modality"),
        "instructed_captions": _by_stage(asked, "test", "modality"),
        "other": scores(where(after, split="other"), "dataset", "condition"),
        "failed": {
            stage: dict(Counter(r["dataset"] for r in [*answers[stage], *captions[stage]] if "error" in r))
            for stage in STAGES
        },
    })  # fmt: skip


def where(rows: Rows, **wanted: Any) -> Rows:
    """The rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def scores(rows: Rows, *keys: str) -> dict[str, Any]:
    """Scores of the rows that could be judged, nested by their values of `keys`."""
    if not keys:
        return Score.of(row["correct"] for row in rows).as_dict()
    groups = defaultdict(list)
    for row in rows:
        if row["correct"] is not None:
            groups[row[keys[0]]].append(row)
    return {value: scores(there, *keys[1:]) for value, there in groups.items()}


def _by_stage(stages: Mapping[str, Rows], split: str, *keys: str) -> dict[str, Any]:
    return {stage: scores(where(rows, split=split, condition="full"), *keys) for stage, rows in stages.items()}


def verdict(text: str) -> str:
    """What an answer that reasons ends in: the words behind its last "so", normalised; any other answer whole.

    "red vs blue differ, so no" is judged by its "no": a right verdict is asked for, not one way to it.
    """
    return normalise(re.split(r"\bso\b", text)[-1])


def guess_levels(rows: Rows) -> dict[str, dict[str, float]]:
    """condition -> family -> the share that a guesser gets right who knows all but what the condition takes away.

    Without pictures, who hears everything still has to guess what is seen: one of the shapes, in "tell the shape and
    the tempo". Blind, both have to be guessed. The values to choose from are those among the true answers; the world
    deals them evenly.
    """
    asked = defaultdict(list)
    for row in where(rows, split="joint", condition="full"):
        if row["references"]:
            asked[row["asks"]].append((row["group"], verdict(row["references"][0])))
    levels: dict[str, dict[str, float]] = {}
    for condition, hidden in HIDDEN.items():
        for family, questions in asked.items():
            if family != "match":
                level = _even_guess([_halves(*question) for question in questions], hidden)
            elif condition == "blind":
                level = _even_guess([[question] for question in questions], (0,))
            else:
                level = 0.5  # either modality alone leaves two verdicts, and the world balances them
            levels.setdefault(condition, {})[family] = round(level, 4)
    return levels


def _halves(group: str, answer: str) -> list[tuple[str, str]]:
    """What is seen and what is heard, each with the name of what was asked for: of "shape+tempo", "star and fast"."""
    names = group.split("+") if "+" in group else (group, group)
    return list(zip(names, answer.split(" and "), strict=True))


def _even_guess(questions: Sequence[Sequence[tuple[str, str]]], hidden: Sequence[int]) -> float:
    """Mean share of right guesses at the `hidden` parts, each on its own among the values that occur."""
    values: dict[tuple[int, str], set[str]] = defaultdict(set)
    for parts in questions:
        for place in hidden:
            name, value = parts[place]
            values[place, name].add(value)
    shares = [math.prod(1 / len(values[place, parts[place][0]]) for place in hidden) for parts in questions]
    return sum(shares) / len(shares)


def choose_samples(rows: Rows) -> Rows:
    """For the sheet: of every set's unablated answers the first right and the first wrong one."""
    shown = [row for row in rows if row["split"] in ("test", "joint") and row["condition"] == "full"]
    names = dict.fromkeys(row["dataset"] for row in shown)
    return [row for name in names for right in (True, False) for row in where(shown, dataset=name, correct=right)[:1]]


def _without_empty(tree: Any) -> Any:
    """The tree without empty branches: what was not run is absent, never zero."""
    if not isinstance(tree, dict):
        return tree
    kept = {key: _without_empty(value) for key, value in tree.items()}
    return {key: value for key, value in kept.items() if value != {}}
