"""Generates answers to held-out questions, under named conditions, and scores them."""

from __future__ import annotations

import contextlib
import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from chatbridge.common.documents import write_whole
from chatbridge.common.read_mode import EVALUATION
from chatbridge.common.registry import RUNNERS
from chatbridge.common.run_folder import RunLock
from chatbridge.conversation.stop import StopOnText
from chatbridge.datasets.base import TaskDataset, sample_errors
from chatbridge.datasets.collate import Collator, Example
from chatbridge.datasets.kinds import TaskKind
from chatbridge.datasets.records import Record
from chatbridge.evaluation.metrics import Prediction, exact_match
from chatbridge.evaluation.rows import NAME, RowFile
from chatbridge.evaluation.scores import build_metrics, score
from chatbridge.runners.assembly import Assembly
from chatbridge.runners.evaluation_config import (
    ConditionConfig,
    EvaluationConfig,
    check_evaluation,
    selected_sets,
    without_media,
)

logger = logging.getLogger("chatbridge")


@dataclass(frozen=True)
class EvaluationQuestion:
    """One thing to ask: a record with its media as the condition leaves them.

    Attributes:
        problem: why it cannot be asked, where that is known already.
    """

    record: Record
    kind: TaskKind
    item: int | None = None
    problem: ValueError | None = None


@RUNNERS.register("evaluation", config=EvaluationConfig)
class EvaluationRunner:
    """Writes ``predictions.jsonl``, an answer a line, as they come; then ``scores.json``, by dataset, condition, group.

    A question that cannot be asked or answered costs its own row: that has an "error" and no answer, is left out of
    the score, and counted beside it.

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
        config, parts = self.config, self.assembly
        with RunLock(self.output, self.accelerator.is_main_process, gather_object) as lock:
            check_evaluation(config, parts.config.validation, parts.task, parts.rows)
            opened = parts.validation(prompt_only=True)
            datasets = {name: opened[name] for name in selected_sets(config, opened)}
            self.model = parts.model(self.accelerator.device).to(self.accelerator.device).eval()
            self.stop = StopOnText(parts.task.stop, parts.tokenizer) if parts.task.stop else None
            lock.acquire()
            self._ask(datasets)

    def _ask(self, datasets: Mapping[str, TaskDataset]) -> None:
        rows: list[dict[str, Any]] = []
        if self.accelerator.is_main_process:
            (self.output / "scores.json").unlink(missing_ok=True)  # an earlier run's
        file = RowFile(self.output, self.accelerator.process_index)
        with contextlib.closing(file):
            for dataset in datasets.values():
                for condition in dataset.config.conditions:
                    own = []
                    for row in self._answers(dataset, condition):
                        file.add(row)
                        own.append(row)
                    rows += gather_object(own)
        if self.accelerator.is_main_process:
            file.join(rows)
            self._score(rows, datasets)
        self.accelerator.wait_for_everyone()
        errors = [row["error"] for row in rows if "error" in row]
        if errors and len(errors) == len(rows):
            raise ValueError(f"{file.path}: not one of {len(rows)} questions was answered; the first: {errors[0]}")

    def _answers(self, dataset: TaskDataset, condition: str) -> Iterator[dict[str, Any]]:
        """This rank's rows, in order."""
        config = self.config.conditions[condition]
        questions = self._questions(dataset, config)
        mine = questions[self.accelerator.process_index :: self.accelerator.num_processes]
        size = dataset.config.batch_size
        bar = tqdm(
            total=len(mine), desc=f"{dataset.name} ({condition})", unit="question", mininterval=1.0,
            disable=not self.accelerator.is_local_main_process,
        )  # fmt: skip
        with bar:
            for start in range(0, len(mine), size):
                part = mine[start : start + size]
                read = [self._read(dataset, question, config.blank) for question in part]
                answers = iter(self._generated([one for one in read if isinstance(one, Example)], dataset.name))
                for question, one in zip(part, read, strict=True):
                    answer = next(answers) if isinstance(one, Example) else one
                    yield self._row(dataset, condition, question, answer)
                bar.update(len(part))

    @staticmethod
    def _read(dataset: TaskDataset, question: EvaluationQuestion, blank: Sequence[str]) -> Example | ValueError:
        if question.problem is not None:
            return question.problem
        try:
            return dataset.read(question.record, question.kind, EVALUATION, question.item, blank)
        except ValueError as error:
            return error

    def _generated(self, examples: list[Example], name: str) -> list[str | ValueError]:
        """The answers; those of a batch that fails are tried one by one."""
        if not examples:
            return []
        try:
            with sample_errors:
                return self._generate(examples, name)
        except ValueError as error:
            if len(examples) == 1:
                return [error]
            return [answer for example in examples for answer in self._generated([example], name)]

    def _generate(self, examples: list[Example], name: str) -> list[str]:
        collator = Collator.of(self.assembly.tokenizer, "left")
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

    def _row(
        self, dataset: TaskDataset, condition: str, question: EvaluationQuestion, answer: str | ValueError
    ) -> dict[str, Any]:
        record, kind = question.record, question.kind
        row: dict[str, Any] = {
            "id": record.id, "dataset": dataset.name, "group": record.group, "condition": condition, "question": "",
            "prediction": None, "references": list(record.references), "correct": None,
            "media": {modality: _files(dataset, record, modality) for modality in kind.modalities},
        }  # fmt: skip
        with contextlib.suppress(ValueError), sample_errors:
            rendered = dataset.parts.task.render(record, kind, EVALUATION, question.item, True)
            row |= {"id": rendered.id, "question": rendered.question, "references": list(rendered.references)}
        if isinstance(answer, ValueError):
            logger.warning("%s: no answer to %s: %s", dataset.name, row["id"], answer)
            return {**row, "error": str(answer)}
        row["prediction"] = answer
        compared = Prediction.of(row, dataset.config.verdict_after)
        return {**row, "correct": exact_match(compared.prediction, compared.references)}

    def _questions(self, dataset: TaskDataset, condition: ConditionConfig) -> list[EvaluationQuestion]:
        """Every question of a dataset, its media exchanged or left out as the condition says."""
        kinds = [kind if not condition.blind else without_media(kind) for kind in dataset.kinds]
        records: list[Record] = []
        lost: list[EvaluationQuestion] = []
        for index in range(len(dataset)):
            try:
                with sample_errors:
                    records.append(dataset.record(index))
            except ValueError as error:
                lost.append(EvaluationQuestion(Record(f"#{index}"), kinds[0], problem=error))
        for modality in condition.shuffle:
            order = _derangement(len(records), random.Random(f"{self.assembly.config.run.seed}/{modality}"))
            files = [record.files_of(modality) for record in records]
            records = [
                replace(record, files={**record.files, modality: files[other]})
                for record, other in zip(records, order, strict=True)
            ]
        asked = [
            EvaluationQuestion(record, kind, item)
            for record in records
            for kind in kinds
            for item in self.assembly.task.items(record, kind)
        ]
        return asked + lost

    def _score(self, rows: Sequence[Mapping[str, Any]], datasets: Mapping[str, TaskDataset]) -> None:
        plain: dict[str, Any] = {}
        for name, dataset in datasets.items():
            metrics, own = build_metrics(dataset.config.metrics), [row for row in rows if row["dataset"] == name]
            for condition, groups in score(own, metrics, dataset.config.verdict_after).items():
                plain.setdefault(name, {})[condition] = {group: scores.as_dict() for group, scores in groups.items()}
                for metric, value in groups[""].values.items():
                    logger.info("%s (%s): %s %.3f of %d", name, condition, metric, value.value, value.n)
                if groups[""].failed:
                    logger.warning(
                        "%s (%s): %d of %d questions failed, which are NOT in this score; their errors are in %s",
                        name, condition, groups[""].failed, sum(row["condition"] == condition for row in own),
                        self.output / NAME,
                    )  # fmt: skip
        write_whole(self.output / "scores.json", json.dumps(plain, indent=1))


def _files(dataset: TaskDataset, record: Record, modality: str) -> list[str]:
    """The files that a record names, by their paths where they are there."""
    found: list[str] = []
    try:
        names = record.files_of(modality)
    except ValueError:
        return found
    for name in names:
        try:
            found.append(str(dataset.media.find(modality, name)))
        except (ValueError, OSError):
            found.append(name)
    return found


def _derangement(count: int, rng: random.Random) -> list[int]:
    """A random order in which no place keeps its own (a single place has no other)."""
    order = list(range(count))
    rng.shuffle(order)
    following = dict(zip(order, order[1:] + order[:1], strict=True))  # one cycle through all places
    return [following[place] for place in range(count)]
