"""Reading every sample of datasets as training would, and noting everything that is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from chatbridge import register_all
from chatbridge.common.config import LoadedConfig, load_config
from chatbridge.common.registry import DATASETS, PROCESSORS
from chatbridge.datasets import Record, TaskKind
from chatbridge.processors import MediaError, MediaLoader
from chatbridge.processors.base import MissingMedia
from chatbridge.runners.assembly import Assembly
from dataset_prep.prep.entries import misnamed, read_entry
from dataset_prep.prep.items import MALFORMED, MISSING, UNREADABLE, UNSAFE, Drop, Item, Part
from dataset_prep.prep.media import processors
from dataset_prep.prep.tables import count, rows

UNFIT = "sample cannot be written"
BAD_FILE = "unreadable annotation file"
BAD_DATASET = "dataset cannot be read"


@dataclass
class Plan:
    """One dataset to validate.

    Attributes:
        name: in messages; files: its annotations; kinds: what every entry must serve for.
        media: modality -> folder; answered: whether entries need answers.
        limit: entries that training reads of it.
        built: the dataset itself, where its samples are not in annotation files but can be asked for by number.
    """

    name: str
    files: list[str]
    kinds: tuple[TaskKind, ...]
    media: dict[str, str]
    answered: bool = True
    limit: int | None = None
    built: Any = None


@dataclass(frozen=True)
class Spec:
    """What is validated, small enough to be sent to every process: a run's YAML, or one annotation file."""

    cfg_path: str = ""
    overrides: tuple[str, ...] = ()
    annotations: str = ""
    kind: str = ""
    media: tuple[tuple[str, str], ...] = ()


@dataclass
class Subject:
    """A specification with everything built: datasets, loaders, and the task where there is a YAML.

    Attributes:
        problems: (dataset, what) that are known before any entry is read; notes: what is not looked at, and why.
    """

    plans: dict[str, Plan]
    loaders: dict[str, MediaLoader]
    task: Any = None
    tokenizer: Any = None
    queries: Mapping[str, int] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def items(self) -> Iterator[Item | Drop]:
        """Every entry of every dataset, in order; first what is wrong with whole datasets."""
        for name, what in self.problems:
            yield Drop(name, BAD_DATASET, what, "")
        for plan in self.plans.values():
            if plan.built is not None:
                for index in range(len(plan.built)):
                    yield Item(f"{plan.name}#{index}", {"dataset": plan.name, "index": index}, {}, "")
                continue
            number, broken = 0, False
            for file in plan.files:
                try:
                    for index, entry in rows(file):
                        if plan.limit is not None and number >= plan.limit:
                            break
                        number += 1
                        found = {"dataset": plan.name, "index": index, "entry": entry}
                        yield Item(f"{plan.name}#{file}#{index}", found, {}, f"{file}: entry {index}")
                except ValueError as error:
                    broken = True
                    yield Drop(plan.name, BAD_FILE, str(error), file)
            if not number and not broken:
                yield Drop(plan.name, BAD_FILE, "holds no entries", ", ".join(plan.files))

    def total(self) -> int:
        """How many entries there are, as far as they can be counted."""
        total = 0
        for plan in self.plans.values():
            total += len(plan.built) if plan.built is not None else 0
            for file in plan.files:
                try:
                    total += count(file)
                except ValueError:
                    continue
        return total

    def read(self, item: Item) -> list[Drop]:
        """Everything that is wrong with one entry."""
        plan = self.plans[item.entry["dataset"]]
        if plan.built is not None:
            return self._sample(plan, item.entry["index"])
        record, problems = read_entry(item.entry["entry"], item.entry["index"], plan.kinds, plan.answered)
        label = f"{plan.name}: {record.id}" if record else plan.name
        drops = [Drop(label, MALFORMED, problem, item.where) for problem in problems]
        if record is None or misnamed(item.entry["entry"], plan.kinds):
            return drops
        for modality in dict.fromkeys(m for kind in plan.kinds for m in kind.modalities):
            try:
                names = record.files_of(modality)
            except ValueError:
                continue  # said already
            for name in names:
                drops += self._medium(self.loaders[plan.name], modality, name, label, item.where)
        return drops if drops else self._fit(plan, record, label, item.where)

    def _sample(self, plan: Plan, index: int) -> list[Drop]:
        """One sample of a dataset of shards, read as it would be in training, but by the rules of evaluation."""
        label, where = plan.name, f"sample: entry {index}"
        try:
            record = plan.built.record(index)
            label = f"{plan.name}: {record.id}"
            for kind in plan.kinds:
                plan.built.read(record, kind)
        except MediaError as error:
            return [Drop(label, UNREADABLE, str(error), where)]
        except ValueError as error:
            return [Drop(label, UNFIT, str(error), where)]
        return []

    @staticmethod
    def _medium(loader: MediaLoader, modality: str, name: str, label: str, where: str) -> list[Drop]:
        try:
            loader.load(modality, name)
        except MissingMedia as error:
            return [Drop(label, MISSING, str(error), where)]
        except MediaError as error:
            unsafe = "below its media folder" in error.reason
            return [Drop(label, UNSAFE if unsafe else UNREADABLE, f"{modality} {error}", where)]
        return []

    def _fit(self, plan: Plan, record: Record, label: str, where: str) -> list[Drop]:
        """Whether the task can write the sample in its number of tokens (with a YAML only)."""
        if self.task is None:
            return []
        for kind in plan.kinds:
            try:
                for item in self.task.items(record, kind):
                    rendered = self.task.render(record, kind, None, item, not plan.answered)
                    if self.tokenizer is not None:
                        self.task.tokenize(rendered, self.tokenizer, self.queries)
            except ValueError as error:
                return [Drop(label, UNFIT, str(error), where)]
        return []


@cache
def subject(spec: Spec) -> Subject:
    """What a specification means, built once in every process.

    Raises:
        ValueError: a YAML or arguments that cannot be read at all.
    """
    register_all()
    return _from_config(spec) if spec.cfg_path else _from_files(spec)


def _from_files(spec: Spec) -> Subject:
    kinds = TaskKind.parse_all(spec.kind)
    media = dict(spec.media)
    for modality, folder in media.items():
        if not Path(folder).is_dir():
            raise ValueError(f"--media: the {modality} folder {folder} does not exist")
    known = processors()
    plan = Plan(Path(spec.annotations).name, [spec.annotations], kinds, media)
    loader = MediaLoader({m: known[m] for m in media}, media)
    notes = ["no --cfg-path: samples are not written out, so that none is found too long"]
    return Subject({plan.name: plan}, {plan.name: loader}, notes=notes)


def _from_config(spec: Spec) -> Subject:
    loaded = load_config(spec.cfg_path, spec.overrides)
    assembly = Assembly(loaded)
    found = Subject({}, {}, assembly.task, None, assembly.queries)
    try:
        found.tokenizer = assembly.tokenizer
    except (ValueError, OSError) as error:
        found.notes.append(f"lengths in tokens are not checked: {str(error).splitlines()[0]}")
    for section in ("datasets", "validation"):
        for name, config in getattr(loaded.config, section).items():
            _add(found, assembly, loaded, f"{section}.{name}", config, section == "datasets")
    if not found.plans and not found.problems:
        raise ValueError(
            f"{spec.cfg_path}: names no dataset that can be looked at" + "".join(f"; {n}" for n in found.notes)
        )
    return found


def _add(found: Subject, assembly: Assembly, loaded: LoadedConfig, name: str, config: Any, answered: bool) -> None:
    awaited = [str(missing) for missing in loaded.awaited if missing.key.startswith(f"{name}.")]
    if awaited:
        found.problems += [(name, text) for text in awaited]
        return
    if not all(hasattr(config, attribute) for attribute in ("annotations", "kind", "media")):
        _add_built(found, assembly, name, config, answered)
        return
    built = {m: PROCESSORS.build(c) for m, c in getattr(config, "processors", {}).items()}
    served = {**assembly.processors, **built}
    try:
        kinds = TaskKind.parse_all(config.kind, {*served, *assembly.queries})
        for kind in kinds:
            assembly.task.check_kind(kind)
            for modality in kind.modalities:
                if modality not in served or modality not in config.media:
                    what = "processor" if modality not in served else "media folder"
                    raise ValueError(f"kind '{kind.name}' shows '{modality}', for which no {what} is given")
        loader = MediaLoader(served, config.media)
    except ValueError as error:
        found.problems.append((name, str(error)))
        return
    files = [config.annotations] if isinstance(config.annotations, str) else list(config.annotations)
    found.plans[name] = Plan(name, files, kinds, dict(config.media), answered, getattr(config, "limit", None))
    found.loaders[name] = loader


def _add_built(found: Subject, assembly: Assembly, name: str, config: Any, answered: bool) -> None:
    """A dataset without annotation files: tar shards, or one of the user's own."""
    if found.tokenizer is None:
        found.notes.append(f"{name} cannot be read without the tokenizer: not looked at")
        return
    try:
        built = DATASETS.build(config, name, assembly.parts, not answered)
        if getattr(built, "sequential", False):
            found.notes.append(f"{name} is read in sequence, from wherever its shards are: not looked at")
            return
        found.problems += [(name, line) for line in built.skipped]
        found.plans[name] = Plan(name, [], tuple(built.kinds), {}, answered, None, built)
    except (ValueError, OSError) as error:
        found.problems += [(name, line) for line in str(error).splitlines()]


@dataclass
class Validate:
    """Work: reads entries; nothing is kept but what is wrong."""

    spec: Spec

    def __call__(self, number: int, items: list[Item]) -> Part:
        part = Part(read=len(items), samples=0)
        checked = subject(self.spec)
        for item in items:
            drops = checked.read(item)
            part.dropped += drops
            part.samples += not drops
        return part
