"""Generates answers to held-out questions, under named conditions, and scores them."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from chatbridge.common.registry import RUNNERS
from chatbridge.common.schema import key
from chatbridge.conversation.stop import StopOnText
from chatbridge.datasets.annotations import Record
from chatbridge.datasets.builder import AnnotatedDataset
from chatbridge.datasets.collate import Collator, Example
from chatbridge.datasets.kinds import TaskKind
from chatbridge.evaluation.scores import is_correct, score
from chatbridge.runners.assembly import Assembly
from chatbridge.runners.config import DeviceConfig

logger = logging.getLogger("chatbridge")


@dataclass(kw_only=True)
class ConditionConfig:
    """An ablation: what is done to the media before the question is asked."""

    blank: list[str] = key([], help="modalities that are blacked out or silenced")
    shuffle: list[str] = key([], help="modalities whose media are exchanged between samples, none keeping its own")
    blind: bool = key(False, help="show no media at all, only the question")


@dataclass(kw_only=True)
class EvaluationConfig(DeviceConfig):
    """Keys of an evaluation run; its questions are the sets under validation:."""

    conditions: dict[str, ConditionConfig] = key({}, help="ablations by name; 'full' is always there")
    only: list[str] = key(["*"], help="patterns of the names of the sets under validation: that are asked")
    max_new_tokens: int = key(64, low=1, unit="tokens", help="length of an answer at most")
    num_beams: int = key(1, low=1, help="beams; 1 is greedy")

    def __post_init__(self) -> None:
        if "full" in self.conditions:
            raise ValueError("conditions: 'full' is the name of the unablated questions; take another")
        self.conditions = {"full": ConditionConfig(), **self.conditions}


@dataclass(frozen=True)
class Question:
    """One thing to ask: a record with its media as the condition leaves them."""

    record: Record
    kind: TaskKind
    item: int | None


@RUNNERS.register("evaluation", config=EvaluationConfig)
class EvaluationRunner:
    """Writes ``predictions.jsonl``, an answer a line, and ``scores.json``, by dataset, condition and group.

    Args:
        config: the ``run:`` section; assembly: builds the parts.
    """

    def __init__(self, config: EvaluationConfig, assembly: Assembly):
        self.config, self.assembly = config, assembly
        if config.threads:
            torch.set_num_threads(config.threads)
        self.accelerator = Accelerator(mixed_precision=config.precision(), cpu=config.device == "cpu")
        self.output = Path(config.output_dir)

    def run(self) -> None:
        if not self.assembly.config.validation:
            raise ValueError("an evaluation needs questions: name at least one dataset under validation:")
        self._check_conditions()
        self.model = self.assembly.model(self.accelerator.device).to(self.accelerator.device).eval()
        self.stop = StopOnText(self.assembly.task.stop, self.assembly.tokenizer) if self.assembly.task.stop else None
        rows: list[dict[str, Any]] = []
        for name, dataset in self.assembly.validation(open=True).items():
            if not any(fnmatch(name, pattern) for pattern in self.config.only):
                continue
            for condition in dataset.config.conditions:
                rows += gather_object(list(self._answers(dataset, condition)))
        if self.accelerator.is_main_process:
            self._write(rows)
        self.accelerator.wait_for_everyone()

    def _check_conditions(self) -> None:
        for name, config in self.assembly.config.validation.items():
            for condition in config.conditions:
                if condition not in self.config.conditions:
                    known = ", ".join(self.config.conditions)
                    raise ValueError(f"validation.{name}.conditions: no '{condition}' in run.conditions ({known})")

    def _answers(self, dataset: AnnotatedDataset, condition: str) -> Iterator[dict[str, Any]]:
        questions = self._questions(dataset, self.config.conditions[condition])
        mine = questions[self.accelerator.process_index :: self.accelerator.num_processes]
        size = dataset.config.batch_size
        collator = Collator.of(self.assembly.tokenizer, "left")
        bar = tqdm(
            total=len(mine), desc=f"{dataset.name} ({condition})", unit="question", mininterval=1.0,
            disable=not self.accelerator.is_local_main_process,
        )  # fmt: skip
        with bar:
            for start in range(0, len(mine), size):
                part = mine[start : start + size]
                blank = self.config.conditions[condition].blank
                read = [dataset.read(q.record, q.kind, None, q.item, blank) for q in part]
                for question, (example, rendered), text in zip(
                    part, read, self._generate(collator, [e for e, _ in read], dataset.name), strict=True
                ):
                    yield {
                        "id": rendered.id,
                        "dataset": dataset.name,
                        "group": rendered.group,
                        "condition": condition,
                        "question": rendered.question,
                        "prediction": text,
                        "references": example.references,
                        "correct": is_correct(text, example.references, dataset.config.verdict_after),
                        "media": {m: [str(dataset.media.find(m, f)) for f in question.record.files_of(m)]
                                  for m in question.kind.modalities},
                    }  # fmt: skip
                bar.update(len(part))

    def _generate(self, collator: Collator, examples: list[Example], name: str) -> list[str]:
        batch = collator(examples, name).to(self.accelerator.device)
        with self.accelerator.autocast():
            ids = self.model.generate(
                batch, self.config.max_new_tokens, num_beams=self.config.num_beams, stop=self.stop
            )
        return [self._clean(self.assembly.tokenizer.decode(row)) for row in ids]

    def _clean(self, text: str) -> str:
        for stop in self.assembly.task.stop:
            text = text.split(stop, 1)[0]
        return text.strip()

    def _questions(self, dataset: AnnotatedDataset, condition: ConditionConfig) -> list[Question]:
        """Every question of a dataset, its media exchanged or left out as the condition says."""
        records = [dataset.record(index) for index in range(len(dataset))]
        kinds = [kind if not condition.blind else replace(kind, modalities=()) for kind in dataset.kinds]
        for modality in condition.shuffle:
            order = _no_fixed_points(len(records), random.Random(f"{self.assembly.config.run.seed}/{modality}"))
            files = [record.files_of(modality) for record in records]
            records = [
                replace(record, files={**record.files, modality: files[other]})
                for record, other in zip(records, order, strict=True)
            ]
        return [
            Question(record, kind, item)
            for record in records
            for kind in kinds
            for item in self.assembly.task.items(record, kind)
        ]

    def _write(self, rows: list[dict[str, Any]]) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        with (self.output / "predictions.jsonl").open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        plain: dict[str, Any] = {}
        for dataset, by_condition in score(rows).items():
            for condition, by_group in by_condition.items():
                whole = by_group[""]
                logger.info("%s (%s): %.3f of %d", dataset, condition, whole.value, whole.n)
                groups = {group: result.as_dict() for group, result in by_group.items()}
                plain.setdefault(dataset, {})[condition] = groups
        (self.output / "scores.json").write_text(json.dumps(plain, indent=1), encoding="utf-8")


def _no_fixed_points(count: int, rng: random.Random) -> list[int]:
    """A random order in which no place keeps its own (a single place has no other)."""
    order = list(range(count))
    rng.shuffle(order)
    places = [0] * count
    for here, there in zip(order, order[1:] + order[:1], strict=True):  # one cycle through all places
        places[here] = there
    return places
