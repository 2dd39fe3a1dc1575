"""Losses and gradients that are not finite: the step is skipped, counted and written down; too many end the run."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from chatbridge.common.documents import write_whole
from chatbridge.common.logging import EventLog
from chatbridge.runners.step import StepResult

logger = logging.getLogger("chatbridge")


class NonFiniteGuard:
    """Keeps count of skipped steps.

    Args:
        folder: the run folder; the batches of such steps go to ``nonfinite/`` in it, every rank its own.
        rank: of this process. max_in_a_row: steps in a row after which the run stops.

    Attributes:
        skipped: steps without an update, those included in which the fp16 scaler looked for its scale.
    """

    def __init__(self, folder: Path, rank: int, max_in_a_row: int):
        self.folder, self.rank, self.max_in_a_row = folder / "nonfinite", rank, max_in_a_row
        self.skipped = self._in_a_row = 0

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.skipped, self._in_a_row = state.get("skipped", 0), state.get("in_a_row", 0)

    def passed(self) -> None:
        """A step moved the weights."""
        self._in_a_row = 0

    def note(self, step: int, result: StepResult, events: EventLog) -> None:
        """Account for a skipped step.

        Raises:
            ValueError: it was one too many in a row.
        """
        self.skipped += 1
        if result.overflow:
            events.write(step, "overflow", result.problem)
            return
        self._in_a_row += 1
        file = self._dump(step, result)
        text = f"step {step} is skipped: {result.problem}; its samples and their losses are in {file}"
        logger.warning("%s", text)
        events.write(step, "skipped", text)
        if self._in_a_row >= self.max_in_a_row:
            raise ValueError(
                f"{self._in_a_row} steps in a row had no finite loss and gradient (run.max_skipped), the last one was "
                f"step {step}: {result.problem}; look at {self.folder}, lower run.init_lr or take run.amp: bf16"
            )

    def _dump(self, step: int, result: StepResult) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"step_{step:08d}_rank{self.rank}.json"
        samples = [
            {"id": name, "dataset": source, "loss": loss if math.isfinite(loss) else str(loss)}
            for batch, losses in result.micro
            for name, source, loss in zip(batch.ids, batch.sources, losses, strict=True)
        ]
        rows = {"step": step, "problem": result.problem, "grad_norm": str(result.grad_norm), "samples": samples}
        write_whole(file, json.dumps(rows, indent=1, ensure_ascii=False))
        return file
