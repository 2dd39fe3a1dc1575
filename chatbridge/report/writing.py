"""Writing ``report.html``, cheaply enough to do it while the run goes on."""

from __future__ import annotations

from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path

from chatbridge.common.documents import write_whole
from chatbridge.report.page import render
from chatbridge.report.run import Run

NAME = "report.html"


class RunReport:
    """Keeps what it has read of a run's files, so that writing the page again reads only what was added.

    Args:
        folder: the run folder (``run.output_dir``).
    """

    def __init__(self, folder: Path):
        self.run = Run(folder)

    def write(self, now: datetime | None = None) -> Path:
        """Read on and write the page. Returns its path.

        Raises:
            OSError: it cannot be written, for instance on a full disk; the one before is then left whole.
        """
        self.run.refresh()
        file = self.run.folder / NAME
        write_whole(file, render(self.run, now or datetime.now(timezone.utc)))
        return file


@lru_cache(maxsize=2)
def _report_of(folder: Path) -> RunReport:
    return RunReport(folder)


def write_report(folder: str | Path) -> Path:
    """As `RunReport.write`; what was read of a folder is kept for the next time."""
    return _report_of(Path(folder).resolve()).write()
