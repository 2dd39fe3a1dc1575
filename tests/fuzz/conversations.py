"""What is typed or piped into ``chatbridge.chat``, and the conversations that it loads."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chatbridge import chat
from chatbridge.inference import ChatSession
from tests.fuzz.annotations import SIGNS
from tests.fuzz.damage import ODD, as_json, damaged, damaged_text, damaged_tree, misplaced
from tests.fuzz.target import Step, Target, command
from tests.inference.tools import SHORT, make_engine, write_config, write_media

LINES = (
    b"what is it?", b"/image files/a.png", b"/video files/loud.mp4", b"/audio files/a.wav", b"/show files/b.png",
    b"/mute 1", b"/help",
    b"/regenerate", b"/edit 1 and now?", b"/clear", b"/save saved.json", b"/load saved.json", b"//a text", b"", b" ",
    b"/",
    b"/image", b"/image nothing.png", b"/image /dev/zero", b"/image .", b"/image " + b"n" * 300, b"/image a\0b",
    b"/image pipe",
    b"/mute x", b"/mute 99999999999999999999", b"/mute -1", b"/edit", b"/edit x y", b"/edit 0 x",
    b"/edit " + b"9" * 5000 + b" x",
    b"/nothing", b"/load conversation.json", b"/load /dev/zero", b"/save /nowhere/x.json", b"/save .", b"caf\xe9",
    b"\xff\xfe",
    b"\xed\xa0\xbd", b"\x1b[2J", b"word " * 3000, b"\0", b"\r", b"/quit", "é \U0001f600".encode(),
    b"/image caf\xe9.png", b"</s><s>",
)  # fmt: skip

VALUES: tuple[Any, ...] = (
    *ODD, "files/a.png", "../a.png", "image", "audio", "video", "pipe", "AAAA", "A", "chatbridge-conversation", 2,
    "stop", "0" * 64,
)  # fmt: skip


class Conversations(Target):
    def __init__(self, folder: Path):
        super().__init__(folder)
        self.config = write_config(folder)
        media = write_media(folder / "media")
        session = ChatSession(make_engine(folder), SHORT)
        session.say("what is it?", media=[media["a.png"]])
        session.say("and that?", media=[media["loud.mp4"]])
        self.saved = [session.export(embed=True), session.export()]
        for turn in self.saved[1]["turns"]:
            for medium in turn["media"]:
                medium["path"] = "files/" + Path(medium["path"]).name

    def trial(self, rng: random.Random, folder: Path) -> Iterator[Step]:
        (folder / "files").symlink_to(self.folder / "media")
        self._conversation(rng, folder / "conversation.json")
        lines = b"\n".join(rng.choice(LINES) for _ in range(rng.choice((1, 3, 8))))
        (folder / "lines").write_bytes(damaged(lines, rng) if rng.random() < 0.2 else lines)
        misplaced(folder / "pipe", rng)
        given = ["--cfg-path", str(self.config), "--device", "cpu", "--max-new-tokens", "3"]
        yield "go on with", lambda: _chat(b"and?\n", *given, "--load", "conversation.json")
        yield "lines", lambda: _chat((folder / "lines").read_bytes(), *given)

    def _conversation(self, rng: random.Random, file: Path) -> None:
        tree = rng.choice(self.saved)
        chance = rng.random()
        if chance < 0.8:
            file.write_bytes(as_json(damaged_tree(tree, rng, VALUES) if chance > 0.2 else tree, rng))
        else:
            file.write_bytes(damaged_text(json.dumps(tree), rng, SIGNS))
        if rng.random() < 0.05:
            misplaced(file, rng)


def _chat(typed: bytes, *given: str) -> None:
    """As when these bytes come through a pipe."""
    Path("typed").write_bytes(typed)
    before = sys.stdin
    with open("typed", encoding="utf-8") as sys.stdin:
        try:
            command(chat.main, *given)()
        finally:
            sys.stdin = before
