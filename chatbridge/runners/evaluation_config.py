"""The keys of an evaluation, and whether what they ask can be asked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch

from chatbridge.common.registry import nearest
from chatbridge.common.schema import key
from chatbridge.contracts import Task
from chatbridge.datasets.base import DatasetConfig
from chatbridge.datasets.kinds import TaskKind
from chatbridge.evaluation.scores import build_metrics
from chatbridge.runners.config import DeviceConfig


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
    max_new_tokens: int = key(64, low=1, high=1 << 20, unit="tokens", help="length of an answer at most")
    num_beams: int = key(1, low=1, high=256, help="beams; 1 is greedy")

    def __post_init__(self) -> None:
        if "full" in self.conditions:
            raise ValueError("conditions: 'full' is the name of the unablated questions; take another")
        self.conditions = {"full": ConditionConfig(), **self.conditions}


def selected_sets(config: EvaluationConfig, names: Iterable[str]) -> list[str]:
    """Those of the sets under ``validation:`` that ``run.only`` chooses."""
    return [name for name in names if any(fnmatch(name, pattern) for pattern in config.only)]


def without_media(kind: TaskKind) -> TaskKind:
    """The same questions without their media. Raises ValueError where nothing is left to ask."""
    return replace(kind, modalities=())


def check_evaluation(
    config: EvaluationConfig, sets: Mapping[str, DatasetConfig], task: Task, known: Collection[str]
) -> None:
    """Raise ValueError for an evaluation that asks nothing, or under conditions that do not exist or do not apply."""
    if not sets:
        raise ValueError("an evaluation needs questions: name at least one dataset under validation:")
    asked = selected_sets(config, sets)
    if not asked:
        raise ValueError(f"run.only: {config.only} matches no set under validation: {', '.join(sets)}")
    problems = []
    for name, condition in config.conditions.items():
        for modality in [*condition.blank, *condition.shuffle]:
            if modality not in known:
                hint = nearest(modality, list(known))
                problems.append(f"run.conditions.{name}: no bridge serves '{modality}'; {hint}")
    for name in asked:
        build_metrics(sets[name].metrics)
        for condition in sets[name].conditions:
            where = f"validation.{name}.conditions"
            if condition not in config.conditions:
                problems.append(f"{where}: no '{condition}' in run.conditions ({', '.join(config.conditions)})")
            elif config.conditions[condition].blind:
                try:
                    for kind in TaskKind.parse_all(sets[name].kind, known):
                        task.check_kind(without_media(kind))
                except ValueError as error:
                    problems.append(f"{where}: '{condition}' is blind, and shows no media: {error}; ask without it")
    if problems:
        raise ValueError("\n".join(problems))
