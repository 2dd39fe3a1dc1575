"""The list of published weights: what they are, where they come from, where they go."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from importlib import resources

import yaml

from chatbridge.common.registry import nearest
from chatbridge.weights.files import WeightsError


@dataclass(frozen=True)
class PublishedWeights:
    """One published file or folder; the keys are explained in manifest.yaml."""

    name: str
    title: str
    place: str
    save_as: str
    size: str
    url: str | None = None
    hub: str | None = None
    file: str | None = None
    page: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if sum(source is not None for source in (self.url, self.hub, self.page)) != 1:
            raise ValueError(f"manifest entry {self.name}: exactly one of url, hub, page")

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        return self.url or self.page or (f"{self.hub} on the hub" + (f", {self.file}" if self.file else ""))


@cache
def manifest() -> dict[str, PublishedWeights]:
    """All entries by name."""
    text = resources.files("chatbridge.weights").joinpath("manifest.yaml").read_text(encoding="utf-8")
    entries = [PublishedWeights(**row) for row in yaml.safe_load(text)]
    return {entry.name: entry for entry in entries}


def find(name: str) -> PublishedWeights:
    """The entry of that name. Raises WeightsError, with the nearest one, when there is none."""
    if name not in manifest():
        raise WeightsError(f"no published weights are called '{name}'; {nearest(name, list(manifest()))}")
    return manifest()[name]


def markdown() -> str:
    """The table of docs/weights.md."""
    lines = ["| name | what | size | from | named in the YAML under | SHA-256 |", "|---|---|---|---|---|---|"]
    for entry in manifest().values():
        what = f"{entry.title}. {entry.note[:1].upper()}{entry.note[1:]}." if entry.note else entry.title
        source = f"<{entry.url or entry.page}>" if entry.hub is None else f"`{entry.hub}`" + (
            f", `{entry.file}`" if entry.file else "")  # fmt: skip
        by_hand = " (by hand)" if entry.page else ""
        known = entry.sha256 or "not published"
        lines.append(f"| `{entry.name}` | {what} | {entry.size} | {source}{by_hand} | `{entry.place}` | {known} |")
    return "\n".join(lines) + "\n"


def to_dict(entry: PublishedWeights) -> dict:
    """For JSON."""
    return {field.name: getattr(entry, field.name) for field in fields(entry)}
