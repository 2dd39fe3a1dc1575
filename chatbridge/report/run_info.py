"""What was run: command, software, data and configuration, as the run recorded them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from chatbridge.report.formatting import clock
from chatbridge.report.markup import Html, details, join, table, tag
from chatbridge.report.run_files import RunInfo


def run_info_section(info: RunInfo) -> Html | None:
    """What run.json says, for reading; None where there is none."""
    facts: list[tuple[str, str | None]] = []
    if info.command:
        facts.append(("command", tag("code", " ".join(info.command))))
    if info.started is not None:
        facts.append(("started", clock(info.started)))
    if info.device:
        facts.append(("device", info.device))
    if info.world is not None:
        facts.append(("processes", str(info.world)))
    if info.git is not None:
        commit, dirty = info.git
        facts.append(("git commit", join([tag("code", commit), ", with changes not committed" if dirty else ""])))
    if info.versions:
        facts.append(("versions", ", ".join(f"{name} {version}" for name, version in info.versions.items())))
    sizes = [f"{name} {'unknown' if n is None else f'{n:,}'}" for name, n in info.sizes.items()]
    if sizes:
        facts.append(("samples", ", ".join(sizes)))
    parts = []
    if facts:
        parts.append(tag("dl", *(part for k, v in facts for part in (tag("dt", k), tag("dd", v))), class_="facts"))
    rows = [
        [name, tag("code", file), tag("code", sha)]
        for name, files in info.annotations.items()
        for file, sha in files.items()
    ]
    if rows:
        caption = "Annotation files and their SHA-256"
        parts.append(details(f"{caption} ({len(rows)})", table(["dataset", "file", "SHA-256"], rows, caption)))
    if info.config:
        text = yaml.safe_dump(_plain(info.config), sort_keys=False, allow_unicode=True)
        parts.append(details("Resolved configuration", tag("pre", tag("code", text)), anchor="config"))
    return tag("div", *parts, class_="card", id="record") if parts else None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value
