"""Reading every sample as training does, by training's own datasets, and noting everything that is wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from chatbridge import register_all
from chatbridge.common.config import LoadedConfig, load_config
from chatbridge.common.documents import repaired
from chatbridge.common.read_mode import EVALUATION, Training
from chatbridge.common.registry import DATASETS
from chatbridge.datasets import AnnotatedDataset, AnnotationsConfig, Parts, Record, ShardDataset, TaskDataset, TaskKind
from chatbridge.datasets.base import sample_errors
from chatbridge.datasets.collate import Example
from chatbridge.datasets.shard_readers import ShardLost, samples_in_sequence
from chatbridge.datasets.shards import is_local
from chatbridge.processors import MediaError
from chatbridge.processors.base import MissingMedia
from chatbridge.processors.tokenizer import load_tokenizer
from chatbridge.runners.assembly import Assembly
from chatbridge.runners.evaluation_config import EvaluationConfig
from chatbridge.tasks import InstructionConfig, InstructionTask
from dataset_prep.prep.entries import empty_texts, fault_reason
from dataset_prep.prep.items import MALFORMED, MISSING, UNREADABLE, Drop, Item, PieceResult
from dataset_prep.prep.media_placement import processors

UNFIT = "sample cannot be written"
BAD_FILE = "unreadable annotation file"
BAD_DATASET = "dataset cannot be read"


@dataclass(frozen=True)
class ValidationSpec:
    """What is validated, small enough to be sent to every process: a run's YAML, or one annotation file."""

    cfg_path: str = ""
    overrides: tuple[str, ...] = ()
    annotations: str = ""
    kind: str = ""
    media: tuple[tuple[str, str], ...] = ()
    tokenizer: str = ""


@dataclass
class SampleCheck:
    """What became of one item: samples read, samples without a fault, faults."""

    read: int
    good: int
    drops: list[Drop]


@dataclass
class ValidationTarget:
    """A specification with everything built.

    Attributes:
        datasets: those that could be opened, by the names that they have in messages; trained: those of them that
            training draws from (others are read by the rules of evaluation).
        problems: what is known before any sample is read; notes: what is not looked at, and why.
        inputs: the files that they are described by.
    """

    datasets: dict[str, TaskDataset] = field(default_factory=dict)
    trained: set[str] = field(default_factory=set)
    problems: list[Drop] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    inputs: list[Path] = field(default_factory=list)

    def items(self) -> Iterator[Item | Drop]:
        """Every sample of every dataset, in order; first what is wrong with whole datasets."""
        yield from self.problems
        for name, dataset in self.datasets.items():
            for number, place in enumerate(_places(dataset)):
                yield Item(f"{name}#{number}", {"dataset": name, **place})

    def total(self) -> int:
        return sum(1 for dataset in self.datasets.values() for _ in _places(dataset))

    def read(self, item: Item) -> SampleCheck:
        """Everything that is wrong with one sample, entry or shard."""
        name, dataset = item.entry["dataset"], self.datasets[item.entry["dataset"]]
        if "shard" in item.entry:
            return self._shard(name, dataset, item.entry["list"], item.entry["shard"])
        if "bad" in item.entry:
            records = dataset.lists[item.entry["list"]]
            bad = records.bad[item.entry["bad"]]
            label, where = f"{name}: {bad.id}" if bad.id else name, f"{records.path}: entry {bad.number}"
            return SampleCheck(1, 0, [Drop(label, fault_reason(fault), fault, where) for fault in bad.faults])
        index = item.entry["index"]
        where, label = "{}: entry {}".format(*dataset.where(index)), name
        try:
            with sample_errors:
                record = dataset.record(index)
                label = f"{name}: {record.id}"
                drops = self._sample(name, where, record, dataset.rng(0, index))
        except ValueError as error:
            drops = [_drop(label, where, error)]
        return SampleCheck(1, int(not drops), drops)

    def _shard(self, name: str, dataset: ShardDataset, number: int, place: int) -> SampleCheck:
        """A shard that is read from its beginning to its end."""
        shard, found = dataset.lists[number][place], SampleCheck(0, 0, [])
        try:
            for index, sample in samples_in_sequence(shard):
                where, label = f"{shard.url}: entry {index}", name
                try:
                    with sample_errors:
                        record = dataset.parse(shard, sample)
                        label = f"{name}: {record.id}"
                        rng = dataset.rng(number, place, index)
                        drops = self._sample(name, where, record, rng)
                except ValueError as error:
                    drops = [_drop(label, where, error)]
                found = SampleCheck(found.read + 1, found.good + (not drops), found.drops + drops)
        except ShardLost as lost:
            where = f"{shard.url}: entry {lost.number}"
            return SampleCheck(found.read + 1, found.good, [*found.drops, Drop(name, UNREADABLE, str(lost), where)])
        return found

    def _sample(self, name: str, where: str, record: Record, rng: random.Random) -> list[Drop]:
        """What is wrong with a sample whose entry is well formed."""
        dataset, label = self.datasets[name], f"{name}: {record.id}"
        drops = [Drop(label, MALFORMED, text, where) for text in empty_texts(record, dataset.kinds)]
        mode = Training(rng) if name in self.trained and dataset.config.augment else EVALUATION
        for modality in dict.fromkeys(m for kind in dataset.kinds for m in kind.modalities):
            for file in record.files_of(modality):
                try:
                    with sample_errors:
                        dataset.media.load(modality, file, mode)
                except ValueError as error:
                    drops.append(_drop(label, where, error, f"{modality} "))
        if not drops:
            try:
                with sample_errors:
                    _write(dataset, record)
            except ValueError as error:
                drops.append(Drop(label, UNFIT, repaired(str(error)), where))
        return drops


def _places(dataset: TaskDataset) -> Iterator[dict[str, int]]:
    """What a dataset is read by: the numbers of its samples and, where they stand in the file, its bad entries."""
    if dataset.sequential:
        for number, shards in enumerate(dataset.lists):
            yield from ({"list": number, "shard": place} for place, s in enumerate(shards) if is_local(s.url))
        return
    if not isinstance(dataset, AnnotatedDataset):
        yield from ({"index": index} for index in range(len(dataset)))
        return
    first = 0
    for number, records in enumerate(dataset.lists):
        places, bad = iter(range(first, first + len(records))), {entry.number: k for k, entry in enumerate(records.bad)}
        for entry in range(len(records) + len(bad)):
            if entry in bad:
                yield {"list": number, "bad": bad[entry]}
            elif (index := next(places)) < len(dataset):
                yield {"index": index}
        first += len(records)


def _write(dataset: TaskDataset, record: Record) -> None:
    """Write all that the task may write of a record, as tokens where there is a tokenizer."""
    task, tokenizer = dataset.parts.task, dataset.parts.tokenizer
    for kind in dataset.kinds:
        for item in task.items(record, kind):
            if tokenizer is None:
                task.render(record, kind, EVALUATION, item, dataset.prompt_only)
            else:
                _, tokens = dataset.written(record, kind, EVALUATION, item)
                dataset.checked(Example(tokens))
    if tokenizer is not None:
        questions = [text for question, answers in record.pairs for text in (question, *answers)]
        for text in (*record.captions, *record.ocr, *questions, *(text for _, text in record.turns)):
            tokenizer.encode(text)


def _drop(label: str, where: str, error: ValueError, what: str = "") -> Drop:
    detail = repaired(f"{what}{error}")
    if isinstance(error, MissingMedia):
        return Drop(label, MISSING, repaired(str(error)), where)
    malformed = isinstance(error, MediaError) and str(error.source).endswith(".json")
    return Drop(label, fault_reason(detail) if malformed else fault_reason(detail, UNREADABLE), detail, where)


@cache
def build_target(spec: ValidationSpec) -> ValidationTarget:
    """What a specification means, built once in every process.

    Raises:
        ValueError: a YAML or arguments that cannot be read at all.
    """
    register_all()
    return _from_config(spec) if spec.cfg_path else _from_files(spec)


def _from_files(spec: ValidationSpec) -> ValidationTarget:
    kinds = TaskKind.parse_all(spec.kind)
    for modality, folder in spec.media:
        if not Path(folder).is_dir():
            raise ValueError(f"--media: the {modality} folder {folder} does not exist")
    found = ValidationTarget()
    if not spec.tokenizer:
        found.notes.append("no --cfg-path and no --tokenizer: samples are not written in tokens")
    shown = {modality for kind in kinds for modality in kind.modalities}
    # No limit: how long samples may be, a run's YAML says.
    task = InstructionTask(InstructionConfig(max_txt_len=2**40))
    tokenizer = load_tokenizer(spec.tokenizer) if spec.tokenizer else None
    parts = Parts(task, tokenizer, dict.fromkeys(shown, _one_row), processors(), 0)
    config = AnnotationsConfig(annotations=spec.annotations, kind=spec.kind, media=dict(spec.media))
    _open(found, Path(spec.annotations).name, "", config, parts, False)
    return found


def _one_row(shape: tuple[int, ...]) -> int:
    """Of a model that nobody named: how much room media take is not asked."""
    return 1


def _from_config(spec: ValidationSpec) -> ValidationTarget:
    loaded = load_config(spec.cfg_path, spec.overrides)
    assembly = Assembly(loaded)
    found, tokenizer = ValidationTarget(), None
    try:
        tokenizer = load_tokenizer(spec.tokenizer) if spec.tokenizer else assembly.tokenizer
    except (ValueError, OSError) as error:
        found.notes.append(f"lengths in tokens are not checked: {str(error).splitlines()[0]}")
    parts = Parts(assembly.task, tokenizer, assembly.rows, assembly.processors, loaded.config.run.seed)
    # An evaluation asks questions that need no answer.
    evaluated = isinstance(loaded.config.run, EvaluationConfig)
    for section, sets in (("datasets", loaded.config.datasets), ("validation", loaded.config.validation)):
        for name, config in sets.items():
            _add(found, loaded, section, name, config, parts, evaluated and section == "validation")
    if not found.datasets and not found.problems:
        raise ValueError(
            f"{spec.cfg_path}: names no dataset that can be looked at" + "".join(f"; {n}" for n in found.notes)
        )
    return found


def _add(
    found: ValidationTarget, loaded: LoadedConfig, section: str, bare: str, config: Any, parts: Parts, unanswered: bool
) -> None:
    name = f"{section}.{bare}"
    awaited = [str(missing) for missing in loaded.awaited if missing.key.startswith(f"{name}.")]
    if awaited:
        found.problems += [Drop(name, BAD_DATASET, text) for text in awaited]
        return
    _open(found, name, bare, config, parts, unanswered)
    dataset = found.datasets.get(name)
    if dataset is not None and section == "datasets":
        found.trained.add(name)
        dataset.max_positions = config.pack or config.batch_tokens
    if dataset is not None and dataset.sequential:
        away = sum(not is_local(shard.url) for shards in dataset.lists for shard in shards)
        found.notes += [f"{name}: {away} shards are read from wherever they are: not looked at"] * bool(away)


def _open(found: ValidationTarget, name: str, bare: str, config: Any, parts: Parts, unanswered: bool) -> None:
    """Open a dataset as training does, but report all that is wrong with it instead of the first few."""
    files = getattr(config, "annotations", [])
    files = [files] if isinstance(files, str) else list(files)
    found.inputs += map(Path, files)
    try:
        config = replace(config, invalid="report") if hasattr(config, "invalid") else config
        built = DATASETS.build(config, bare or name, parts, unanswered)
    except (ValueError, OSError) as error:
        bad = next((file for file in files if str(error).startswith(f"{file}: ")), None)
        reason, where = (BAD_DATASET, "") if bad is None else (BAD_FILE, bad)
        found.problems += [Drop(name, reason, line, where) for line in str(error).splitlines()]
        return
    found.datasets[name] = built
    if not isinstance(built, AnnotatedDataset):
        found.problems += [Drop(name, BAD_DATASET, line) for line in built.skipped]


@dataclass
class SampleValidator:
    """Work: reads samples; nothing is kept but what is wrong."""

    spec: ValidationSpec

    def __call__(self, number: int, items: list[Item]) -> PieceResult:
        part = PieceResult(samples=0)
        checked = build_target(self.spec)
        for item in items:
            found = checked.read(item)
            part.read += found.read
            part.samples += found.good
            part.dropped += found.drops
        return part
