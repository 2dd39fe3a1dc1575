"""The file that makes a job restartable: one line per finished piece of work, in whatever order they finish."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from chatbridge.common.documents import parse_json
from dataset_prep.prep.items import PieceResult


class Journal:
    """Appends finished parts to a file and finds them again after an interruption.

    Args:
        path: the file; its first line is `signature`.
        signature: everything that decides what the parts hold. A journal of another signature is refused.

    Raises:
        ValueError: when the file belongs to a run with another signature, naming what differs.
    """

    def __init__(self, path: Path, signature: dict[str, Any]):
        self.path = path
        self._offsets: dict[int, int] = {}
        if path.exists():
            self._read(signature)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"signature": signature}) + "\n", encoding="utf-8")
        self._file: BinaryIO = path.open("ab")

    def _read(self, signature: dict[str, Any]) -> None:
        """Find the parts; a last line that was cut off by a kill is removed."""
        good = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                try:
                    plain = parse_json(line, self.path) if line.endswith(b"\n") else None
                except ValueError:
                    plain = None
                if not isinstance(plain, dict) or (number and not isinstance(plain.get("part"), int)):
                    break
                if number == 0:
                    differs = changed(plain.get("signature", {}), signature)
                    if differs:
                        raise ValueError(
                            f"{self.path.parent} holds the beginning of another run ({differs}); "
                            "finish that one, take another --out, or start over with --overwrite"
                        )
                else:
                    self._offsets[plain["part"]] = good
                good += len(line)
        if good == 0:
            self.path.write_text(json.dumps({"signature": signature}) + "\n", encoding="utf-8")
        elif good < self.path.stat().st_size:
            with self.path.open("r+b") as file:
                file.truncate(good)

    def __contains__(self, number: int) -> bool:
        return number in self._offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, number: int, part: PieceResult) -> None:
        """Append a finished part; after this it survives a kill of the process."""
        line = json.dumps(part.to_plain(number), ensure_ascii=True).encode() + b"\n"
        self._offsets[number] = self._file.tell()
        self._file.write(line)
        self._file.flush()

    def parts(self) -> Iterator[tuple[int, PieceResult]]:
        """Every finished part in the order of the corpus."""
        self._file.flush()
        with self.path.open("rb") as file:
            for number in sorted(self._offsets):
                file.seek(self._offsets[number])
                yield number, PieceResult.from_plain(parse_json(file.readline(), self.path))

    def close(self) -> None:
        self._file.close()


def changed(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs between two signatures, in words; "" when nothing does."""
    old, new = json.loads(json.dumps(old)), json.loads(json.dumps(new))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return "; ".join(f"{name}: {_short(old.get(name))} then, {_short(new.get(name))} now" for name in names)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 100 else text[:97] + "..."
