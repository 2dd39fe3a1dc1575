"""Run folders for the report to read, and its pages read back as a tree."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from chatbridge.report import RunReport

START = datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
DATASETS = ("image", "video", "sound")
VOID = {"meta", "link", "input", "br"}


def train_row(step: int, **changed: Any) -> dict[str, Any]:
    """What a run logs of a step, with numbers that all differ."""
    name = DATASETS[step % 3]
    loss = 4.0 / step + 0.01 * (step % 7)
    row = {
        "step": step, "split": "train", "loss": loss, "dataset": name, "losses": {name: loss}, "lr": 1e-4 / step,
        "grad_norm": 1 + 1 / step, "grad_norms": {"bridges.vision.perceiver": 0.7 / step}, "tokens": 100 + step,
        "samples": 8, "tokens_per_second": 200.5 + step, "samples_per_second": 16.25 + step % 5,
        "tflops": 300.5 - step % 3, "peak_share": 0.3 + 0.001 * (step % 4), "step_seconds": 0.5 + 0.01 * (step % 6),
        "data_seconds": 0.02, "data_share": 0.04 + 0.001 * (step % 9), "memory_gb": 10 + 0.01 * step,
        "replaced": step // 20, "skipped": 0,
        "drawn": {n: 8 * sum(s % 3 == i for s in range(1, step + 1)) for i, n in enumerate(DATASETS)},
    }  # fmt: skip
    return row | changed


def validation_row(step: int, dataset: str, loss: float) -> dict[str, Any]:
    return {"step": step, "split": "validation", "loss": loss, "dataset": dataset}


def event(step: int, kind: str, text: str = "") -> dict[str, Any]:
    return {"step": step, "time": (START + timedelta(seconds=step)).isoformat(), "event": kind, "text": text}


def record(**changed: Any) -> dict[str, Any]:
    """A run.json."""
    found = {
        "started": START.isoformat(), "command": ["train.py", "--cfg-path", "a b.yaml"], "world": 2, "device": "H100",
        "versions": {"torch": "2.11.0"}, "git": {"commit": "abc123", "dirty": True},
        "annotations": {"image": {"image.json": "f00d"}}, "total_steps": 200,
        "sizes": {"image": 600, "video": 300, "sound": None},
        "config": {
            "datasets": {n: {"weight": w, "batch_size": 8} for n, w in zip(DATASETS, (2.0, 1.0, 1.0), strict=True)},
            "mixture": {"mode": "random"}, "run": {"init_lr": 1e-4, "seed": 1},
        },
    }  # fmt: skip
    return found | changed


def write_lines(file: Path, rows: list[Any], mode: str = "w") -> None:
    with file.open(mode, encoding="utf-8") as out:
        out.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def write_run(
    folder: Path, rows: list[Any], events: list[Any] | None = None, ledger: list[Any] | None = None,
    run: dict[str, Any] | None = None, age: float = 0.0,
) -> Path:  # fmt: skip
    """A run folder whose files are `age` seconds old; None leaves a file out."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("metrics.jsonl", rows), ("events.jsonl", events), ("ledger.jsonl", ledger)):
        if lines is not None:
            write_lines(folder / name, lines)
    if run is not None:
        (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    then = time.time() - age
    for file in folder.iterdir():
        os.utime(file, (then, then))
    return folder


@dataclass
class Node:
    """An element with its children; text is a string among them."""

    tag: str
    attrs: dict[str, str | None]
    children: list[Node | str] = field(default_factory=list)

    def walk(self) -> Iterator[Node]:
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child.walk()

    def all(self, tag: str, **attrs: str) -> list[Node]:
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attrs.items()}
        return [n for n in self.walk() if n.tag == tag and all(n.attrs.get(k) == v for k, v in wanted.items())]

    def one(self, tag: str, **attrs: str) -> Node:
        found = self.all(tag, **attrs)
        assert len(found) == 1, (tag, attrs, len(found))
        return found[0]

    def has_class(self, name: str) -> bool:
        return name in (self.attrs.get("class") or "").split()

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    @property
    def figures(self) -> list[float]:
        """The machine-readable values in it, in order."""
        return [float(n.attrs["value"]) for n in self.all("data")]

    def tile(self, name: str) -> Node:
        """The box of the headline with this heading."""
        found = [n for n in self.walk() if n.tag == "div" and n.all("dt") and n.all("dt")[0].text == name]
        assert found, name
        return found[-1]

    def table(self, caption: str) -> dict[str, list[str]]:
        """Rows of the table with this caption: heading of the row -> exact value, or text, of every other cell."""
        found = [t for t in self.all("table") if t.one("caption").text == caption]
        assert len(found) == 1, caption
        rows = {}
        for line in found[0].one("tbody").all("tr"):
            cells = [c.all("data")[0].attrs["value"] if c.all("data") else c.text for c in line.all("td")]
            rows[line.one("th").text] = cells
        return rows


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Node("document", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read_page(text: str) -> Node:
    """The tree of a page whose elements are all closed in their order."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == [reader.root], "elements are left open"
    return reader.root


def report_of(folder: Path) -> Node:
    return read_page(RunReport(folder).write().read_text(encoding="utf-8"))


def curve(path: Node) -> list[list[tuple[int, int]]]:
    """Points of SVG path data, piece by piece between gaps."""
    pieces: list[list[tuple[int, int]]] = []
    for piece in path.attrs["d"].split("M")[1:]:
        start, steps = piece.split("l")
        x, y = map(int, start.split())
        moves = list(map(int, steps.split()))
        points = []
        for dx, dy in zip(moves[::2], moves[1::2], strict=True):
            x, y = x + dx, y + dy
            points.append((x, y))
        pieces.append(points)
    return pieces
