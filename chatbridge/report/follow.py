"""Reading a file of lines while another process, or this one, still writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from chatbridge.common.documents import open_regular


class Follower:
    """The lines that were ended since the last look at a growing file.

    A last line without its end is left for the next time: it is being written, or a kill has cut it. A file that was
    cut or written anew (a resumed run drops the lines after its checkpoint) is read from its beginning again.
    """

    def __init__(self, file: Path):
        self.file = file
        self._offset = 0
        self._last = b""

    def lines(self, restart: Callable[[], None]) -> Iterator[bytes]:
        """New lines.

        Args:
            restart: called before any line comes when all that was read before is void.

        Raises:
            OSError, DocumentError: a file that is there and cannot be read.
        """
        try:
            handle = open_regular(self.file)
        except FileNotFoundError:
            if self._offset:
                self._offset, self._last = 0, b""
                restart()
            return
        with handle:
            handle.seek(max(0, self._offset - len(self._last)))
            if handle.read(len(self._last)) != self._last:
                self._offset, self._last = 0, b""
                restart()
            handle.seek(self._offset)
            for line in handle:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                self._last = line
                yield line


def number(value: Any) -> float | None:
    """A JSON number as float, which may be NaN; None for anything else."""
    if type(value) is float:
        return value
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def step_of(row: dict[str, Any]) -> int | None:
    """The row's step, where it is one."""
    step = row.get("step")
    return step if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**53 else None
