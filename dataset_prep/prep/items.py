"""What goes through a job: samples to prepare, samples left out and why, and the result of one piece of work."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

MISSING = "missing media"
UNREADABLE = "unreadable media"
UNSAFE = "path outside the media folder"
EMPTY = "empty caption"
MALFORMED = "malformed annotation"
DUPLICATE = "duplicate id"
DEAD_LINK = "dead link"
CRASH = "crashes its reader"


@dataclass(frozen=True)
class Item:
    """One sample of a corpus before its media were looked for.

    Attributes:
        id: what tells it from the others; a second one with the same id is left out.
        entry: its annotation without the media keys.
        media: modality -> names to try below that modality's folder, the first that exists is taken.
        where: "file: row 3", for messages.
    """

    id: str
    entry: dict[str, Any]
    media: dict[str, tuple[str, ...]] = field(default_factory=dict)
    where: str = ""


@dataclass(frozen=True)
class Drop:
    """One sample that was left out.

    Attributes:
        id: its id, as far as it is known; reason: one of a few words that are counted.
        detail: what exactly is wrong; where: file and row.
    """

    id: str
    reason: str
    detail: str = ""
    where: str = ""


class UnusableSample(ValueError):
    """A sample that must be left out. Attributes: reason, detail: as of `Drop`."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass
class PieceResult:
    """What became of one piece of a job.

    Attributes:
        kept: lines for the output listing.
        dropped: samples left out, each of which is listed.
        counted: reason -> number of samples left out that are counted but not listed (dead links by the million).
        read: how many samples the piece held; samples: how many were kept (None: as many as `kept` has lines).
        media: modality -> [files, bytes, sum of the hashes of names and sizes], for the manifest.
    """

    kept: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[Drop] = field(default_factory=list)
    counted: dict[str, int] = field(default_factory=dict)
    read: int = 0
    samples: int | None = None
    media: dict[str, list[int]] = field(default_factory=dict)

    def to_plain(self, number: int) -> dict[str, Any]:
        """A JSON object of it, for the journal."""
        return {"part": number, **asdict(self)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> PieceResult:
        values = {name: value for name, value in plain.items() if name != "part"}
        return cls(**{**values, "dropped": [Drop(**drop) for drop in values["dropped"]]})

    def reasons(self) -> Counter[str]:
        """Reason -> how many samples were left out for it."""
        return Counter(drop.reason for drop in self.dropped) + Counter(self.counted)
