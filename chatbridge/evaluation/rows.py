"""Answers as JSON lines: written as they come, so that a run that is killed leaves those that it had; read again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chatbridge.common.documents import json_line, parse_json, read_text, write_whole

NAME = "predictions.jsonl"


class RowFile:
    """The rows of one rank: ``predictions.jsonl`` of the first, ``predictions_rank1.jsonl`` and so on of the others.

    Args:
        folder: made when missing; rows of an earlier run are removed.
    """

    def __init__(self, folder: Path, rank: int):
        self.folder, self.rank = folder, rank
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / (NAME if rank == 0 else f"predictions_rank{rank}.jsonl")
        self._file = self.path.open("w", encoding="utf-8", errors="backslashreplace")

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row; after this it survives a kill of the process."""
        self._file.write(json_line(row))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def join(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Put the rows of all ranks, in their order, in the place of this one's; the others' files go."""
        self.close()
        write_whole(self.path, map(json_line, rows))
        for part in self.folder.glob("predictions_rank*.jsonl"):
            part.unlink()


def read_rows(path: Path, keys: Sequence[str] = ("dataset", "condition", "correct")) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, each with `keys`.

    Raises:
        ValueError: when the file is missing or a line is not such an object.
    """
    rows, text = [], read_text(path)
    # Not splitlines(): an answer may hold a character that it takes for the end of a line.
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), start=1):
        row = parse_json(line, f"{path}: line {number}")
        missing = [key for key in keys if not isinstance(row, dict) or key not in row]
        if missing:
            raise ValueError(f"{path}: line {number} has no '{missing[0]}'; is it the right file?")
        rows.append(row)
    return rows
