"""Conversations as JSON: media by path, or embedded for those who have no such files."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatbridge.common.documents import read_json, repaired
from chatbridge.common.schema import bind, key, to_plain
from chatbridge.inference.attachments import Medium
from chatbridge.inference.engine import Engine
from chatbridge.inference.prompt import Exchange
from chatbridge.processors.base import Blob, MediaError, name_of

FORMAT, VERSION = "chatbridge-conversation", 1


@dataclass(kw_only=True)
class MediumRecord:
    """A saved medium; exactly one of `path` and `data` holds it."""

    modality: str = key(help="image, video, audio, or one that a plugin adds")
    name: str = key("", help="for people")
    sha256: str = key(help="of its content, in hexadecimal")
    path: str | None = key(None, help="its file; relative ones start at the conversation's folder")
    data: str | None = key(None, help="its bytes, in base64")
    muted: bool = key(False, help="whether the model is shown an empty medium instead")

    def __post_init__(self) -> None:
        if (self.path is None) == (self.data is None):
            raise ValueError("give either path or data")


@dataclass(kw_only=True)
class TurnRecord:
    text: str = key("", help="the question")
    media: list[MediumRecord] = key([], help="what is shown before it, in order")
    answer: str | None = key(None, help="null while there is none")
    finish: str = key("", choices=("", "stop", "length", "cancelled"), help="why the answer ended")

    def __post_init__(self) -> None:
        if not self.text and not self.media:
            raise ValueError("a turn asks or shows something; this one has neither text nor media")


@dataclass(kw_only=True)
class ConversationRecord:
    format: str = key(choices=(FORMAT,), help="identifies saved conversations")
    version: int = key(choices=(VERSION,), help="of the format")
    turns: list[TurnRecord] = key([], help="in order")


def export(turns: Sequence[Exchange], embed: bool = False, folder: Path | None = None) -> dict[str, Any]:
    """A conversation as plain values for JSON.

    Args:
        embed: write the bytes of files, too; those of media that have no file, or none whose name is text, are written
            in any case.
        folder: paths below it are written relative to it.

    Raises:
        MediaError: for a folder of frames that is to be embedded, or a file that is gone.
    """
    records = [
        TurnRecord(
            text=repaired(turn.text),
            media=[_record(medium, embed, folder) for medium in turn.media],
            answer=None if turn.answer is None else repaired(turn.answer),
            finish=turn.finish,
        )
        for turn in turns
    ]
    return to_plain(ConversationRecord(format=FORMAT, version=VERSION, turns=records))


def restore(
    engine: Engine, plain: Any, source: str = "conversation", folder: Path | None = None, files: bool = True
) -> list[Exchange]:
    """The turns that `export` gave.

    Args:
        plain: what JSON holds. source: its name, for messages.
        folder: where relative paths start; None for the working folder.
        files: whether paths may be followed (not for conversations that clients send).

    Raises:
        ValueError: for anything that is not such a conversation, with every problem; media that are missing, changed
            or of a modality that this model does not know.
    """
    if not isinstance(plain, Mapping):
        raise ValueError(f"{source}: expected a mapping of keys; this is no conversation that was saved")
    version = plain.get("version")
    if isinstance(version, int) and version > VERSION:
        raise ValueError(f"{source}: its version is {version}, this ChatBridge reads up to {VERSION}; use a newer one")
    turns = []
    for number, record in enumerate(bind(ConversationRecord, _repaired(plain), source).turns):
        media = []
        for medium in record.media:
            try:
                media.append(_medium(engine, medium, folder, files))
            except ValueError as error:
                raise ValueError(f"{source}: turns[{number}]: {error}") from error
        turns.append(Exchange(record.text, media, record.answer, record.finish))
    return turns


def save(turns: Sequence[Exchange], file: str | Path, embed: bool = False) -> Path:
    """Write a conversation to a JSON file. Arguments and errors are those of `export`."""
    file = Path(file).expanduser().absolute()
    text = json.dumps(export(turns, embed, file.parent), ensure_ascii=False, indent=1)
    file.write_text(text + "\n", encoding="utf-8")
    return file


def load(engine: Engine, file: str | Path) -> list[Exchange]:
    """Read a conversation from a JSON file.

    Raises:
        ValueError: as `restore`, and for a file that cannot be read.
    """
    file = Path(file).expanduser().absolute()
    return restore(engine, read_json(file), file.name, file.parent)


def _repaired(tree: Any) -> Any:
    """The same values of JSON, with texts that can be written."""
    if isinstance(tree, str):
        return repaired(tree)
    if isinstance(tree, Mapping):
        return {name: _repaired(value) for name, value in tree.items()}
    return [_repaired(value) for value in tree] if isinstance(tree, list) else tree


def _record(medium: Medium, embed: bool, folder: Path | None) -> MediumRecord:
    path = data = None
    if isinstance(medium.source, Blob):
        data = medium.source.data
    elif embed or repaired(str(medium.source)) != str(medium.source):
        medium.check_unchanged()
        if Path(medium.source).is_dir():
            raise MediaError(medium.name, "is a folder of frames and cannot be embedded; export it by path")
        data = Path(medium.source).read_bytes()
    else:
        path = Path(medium.source)
        path = path.relative_to(folder) if folder is not None and path.is_relative_to(folder) else path
    return MediumRecord(
        modality=medium.modality,
        name=repaired(name_of(medium.source) if isinstance(medium.source, Blob) else medium.name),
        sha256=medium.digest,
        path=None if path is None else path.as_posix(),
        data=None if data is None else base64.b64encode(data).decode("ascii"),
        muted=medium.muted,
    )


def _medium(engine: Engine, record: MediumRecord, folder: Path | None, files: bool) -> Medium:
    if record.path is not None:
        if not files:
            raise MediaError(record.name, "is named by path, which is not allowed here; embed it (data)")
        source: Path | Blob = (folder or Path.cwd()) / Path(record.path).expanduser()
    else:
        try:
            source = Blob(record.name or record.modality, base64.b64decode(record.data, validate=True))
        except (binascii.Error, ValueError) as error:
            raise MediaError(record.name, f"its data is not base64 ({error})") from error
    medium = engine.medium(source, record.modality)
    if medium.digest != record.sha256:
        raise MediaError(medium.name, "is not the file it was when the conversation was saved (its SHA-256 differs)")
    medium.muted = record.muted
    return medium
