"""The other files of a run folder: what happened, what was run, what could not be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from chatbridge.common.documents import DocumentError, json_object, read_json, read_yaml
from chatbridge.report.follow import Follower, number, step_of

GROUPS = 2000
"""Kinds of unreadable samples that are kept apart; reasons that name what is different in every file have no end."""
OTHER_REASONS = "(other reasons)"


@dataclass(frozen=True)
class Event:
    """One line of ``events.jsonl``. `step` and `time` are None where the line has none that can be read."""

    kind: str
    step: int | None
    time: datetime | None
    text: str


class Events:
    """What happened in a run, in the order in which it was written."""

    def __init__(self, file: Path):
        self._follower = Follower(file)
        self.all: list[Event] = []

    def refresh(self) -> None:
        for line in self._follower.lines(self.all.clear):
            row = json_object(line)
            if row is not None and "event" in row:
                text = row.get("text")
                self.all.append(
                    Event(str(row["event"]), step_of(row), moment(row.get("time")), "" if text is None else str(text))
                )

    def last(self, *kinds: str) -> Event | None:
        return next((e for e in reversed(self.all) if e.kind in kinds), None)


def moment(value: Any) -> datetime | None:
    """An ISO time; one without a zone is taken as local."""
    try:
        return datetime.fromisoformat(str(value).replace("Z", "+00:00")).astimezone(timezone.utc)
    except (ValueError, OverflowError, OSError):
        return None


@dataclass
class Unreadable:
    """Samples of one dataset that could not be read for one reason.

    Attributes:
        count: samples that it cost; entries: lines of the ledger; example: the first file it happened to.
    """

    dataset: str
    reason: str
    example: str
    count: int = 0
    entries: int = 0


class LedgerFiles:
    """The ledgers of all ranks of a run, counted by dataset and reason."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: dict[Path, tuple[Follower, dict[tuple[str, str], Unreadable]]] = {}

    def refresh(self) -> None:
        for file in [self.folder / "ledger.jsonl", *sorted(self.folder.glob("ledger_rank*.jsonl"))]:
            follower, groups = self._files.setdefault(file, (Follower(file), {}))
            for line in follower.lines(groups.clear):
                row = json_object(line)
                if row is not None:
                    _count(groups, row)

    def table(self) -> list[Unreadable]:
        """Over all ranks, what cost most first."""
        joined: dict[tuple[str, str], Unreadable] = {}
        for _, groups in self._files.values():
            for key, group in groups.items():
                one = joined.setdefault(key, Unreadable(group.dataset, group.reason, group.example))
                one.count += group.count
                one.entries += group.entries
        return sorted(joined.values(), key=lambda g: (-g.count, -g.entries, g.dataset, g.reason))


def _count(groups: dict[tuple[str, str], Unreadable], row: dict[str, Any]) -> None:
    dataset, file = str(row.get("dataset", "")), str(row.get("file", ""))
    # The same failure of many files is one line of the table, also where the message names the file.
    reason = str(row.get("reason", ""))
    reason = reason.replace(file, "FILE") if len(file) > 3 else reason
    if (dataset, reason) not in groups and len(groups) >= GROUPS:
        reason = OTHER_REASONS
    group = groups.setdefault((dataset, reason), Unreadable(dataset, reason, file))
    count = number(row.get("count", 1))
    group.count += 1 if count is None or not abs(count) < 2**53 else int(count)
    group.entries += 1


@dataclass(frozen=True)
class RunInfo:
    """What ``run.json`` says was run; what it lacks is None or empty.

    Attributes:
        config: the resolved configuration, nested; sizes: samples of each dataset, None where not known.
        git: commit and whether files differed from it; annotations: dataset -> file -> SHA-256.
        problem: why run.json could not be read.
    """

    started: datetime | None = None
    command: tuple[str, ...] = ()
    world: int | None = None
    device: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    git: tuple[str, bool] | None = None
    annotations: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    total_steps: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int | None] = field(default_factory=dict)
    problem: str = ""

    @property
    def datasets(self) -> Mapping[str, Any]:
        """The configuration's ``datasets:``, name -> keys."""
        return {str(k): v for k, v in _mapping(self.config.get("datasets")).items() if isinstance(v, Mapping)}

    @property
    def mode(self) -> str:
        """How datasets share the steps."""
        found = _mapping(self.config.get("mixture")).get("mode") or _mapping(self.config.get("run")).get("mixture")
        return str(found or "")


def read_run_info(folder: Path) -> RunInfo:
    """From run.json, or as far as it goes from config.yaml, where a run wrote only that."""
    problem, row, file = "", {}, folder / "run.json"
    try:
        row = _mapping(read_json(file))
    except DocumentError as error:
        problem = f"run.json is not readable: {error.reason}" if file.exists() else ""
        row = {"config": _older(folder / "config.yaml")}
    git, command, config = _mapping(row.get("git")), row.get("command"), _mapping(row.get("config"))
    return RunInfo(
        started=moment(row["started"]) if row.get("started") else None,
        command=tuple(map(str, command)) if isinstance(command, list) else (),
        world=_whole(row.get("world")),
        device=str(row.get("device") or ""),
        versions={str(k): str(v) for k, v in _mapping(row.get("versions")).items()},
        git=(str(git.get("commit", "")), bool(git.get("dirty"))) if git else None,
        annotations={
            str(name): {str(file): str(sha) for file, sha in _mapping(files).items()}
            for name, files in _mapping(row.get("annotations")).items()
        },
        total_steps=_whole(row.get("total_steps")) or _steps(_mapping(config.get("run"))),
        config=config,
        sizes={str(k): _whole(v) for k, v in _mapping(row.get("sizes")).items()},
        problem=problem,
    )


def _older(file: Path) -> Mapping[str, Any]:
    try:
        return _mapping(read_yaml(file))
    except DocumentError:
        return {}


def _steps(run: Mapping[str, Any]) -> int | None:
    epochs, each = _whole(run.get("max_epoch")), _whole(run.get("iters_per_epoch"))
    return _whole(run.get("max_steps")) or (epochs * each if epochs and each else None)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
