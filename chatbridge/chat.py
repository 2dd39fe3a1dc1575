"""Talk to a model in a terminal: ``python -m chatbridge.chat --cfg-path eval_configs/quickstart.yaml``.

A line is a question; lines with a slash in front are commands (/help lists them). Ctrl-C ends an answer, Ctrl-D the
program. Questions may also come through a pipe, an answer a line; the exit status is then 1 if any of them failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from typing import TextIO

from chatbridge.common.documents import repaired
from chatbridge.common.logging import setup_logging
from chatbridge.inference import ChatSession, GenerationSettings, Medium, ReplyStream
from chatbridge.inference.command_line import (
    add_device_argument,
    add_model_arguments,
    load_engine,
    on_signal,
    report_failure,
)

PROMPT, INTERRUPTED = "> ", 130


class Terminal:
    """A conversation by lines.

    Args:
        session: the conversation.
        output, errors: where answers and everything else go; None for the standard streams.

    Attributes:
        pending: media for the next question; failed: whether there was an error.
    """

    def __init__(self, session: ChatSession, output: TextIO | None = None, errors: TextIO | None = None):
        self.session, self.output, self.errors = session, output or sys.stdout, errors or sys.stderr
        self.pending: list[Medium] = []
        self.failed = self.done = False
        self.commands: dict[str, Callable[[str], None]] = {
            "image": self.image, "video": self.video, "audio": self.audio, "show": self.show, "mute": self.mute,
            "regenerate": self.regenerate, "edit": self.edit, "save": self.save, "load": self.load,
            "clear": self.clear, "help": self.help, "quit": self.quit,
        }  # fmt: skip

    def line(self, line: str) -> None:
        """Execute one line; errors are printed, not raised."""
        line = line.strip()
        try:
            if line.startswith("/") and not line.startswith("//"):
                name, _, rest = line[1:].partition(" ")
                if name not in self.commands:
                    raise ValueError(f"no command is called /{name}; /help lists them (write // for a text in /)")
                self.commands[name](rest.strip())
            elif line:
                shown, self.pending = self.pending, []
                self.answer(self.session.stream(repaired(line.removeprefix("/")), media=shown))
        except (ValueError, OSError) as error:
            self.failed = True
            self.notice(f"error: {error}")

    def image(self, file: str) -> None:
        """FILE: show a picture along with the next question"""
        self.attach([self.session.engine.medium(_file(file), "image")])

    def video(self, file: str) -> None:
        """FILE: show a video, with its sound if it has one"""
        self.attach(self.session.engine.video(_file(file)))

    def audio(self, file: str) -> None:
        """FILE: let a sound, or a video's sound alone, be heard"""
        self.attach([self.session.engine.medium(_file(file), "audio")])

    def show(self, file: str) -> None:
        """FILE: any of these, by what is in it"""
        self.attach(self.session.attach(media=[_file(file)]))

    def mute(self, which: str) -> None:
        """[NUMBER or KIND]: answer without a medium, or with it again; alone, list what was shown"""
        if which:
            place = int(which) - 1 if which.isdecimal() else which
            media = self.session.media
            chosen = media[place : place + 1] if isinstance(place, int) else [m for m in media if m.modality == place]
            self.session.mute(place, not all(medium.muted for medium in chosen))
        for number, medium in enumerate(self.session.media, 1):
            self.notice(f"{number}. {medium.modality} {medium.name}{' (muted)' if medium.muted else ''}")

    def regenerate(self, _: str) -> None:
        """answer the last question once more"""
        self.answer(self.session.stream_regenerate())

    def edit(self, rest: str) -> None:
        """[NUMBER] TEXT: ask the last question (or that one) differently, and forget what followed"""
        number, _, text = rest.partition(" ")
        if number.isdecimal() and text:
            self.answer(self.session.stream_edit(int(number) - 1, repaired(text.strip())))
        elif rest:
            self.answer(self.session.stream_edit(-1, repaired(rest)))
        else:
            raise ValueError("/edit needs the new question")

    def save(self, file: str) -> None:
        """FILE: write the conversation to a JSON file"""
        self.notice(f"wrote {self.session.save(_file(file))}")

    def load(self, file: str) -> None:
        """FILE: go on with a conversation that was saved"""
        self.session.load(_file(file))
        for turn in self.session.turns:
            shown = "".join(f"[{medium.modality} {medium.name}] " for medium in turn.media)
            self.notice(f"{PROMPT}{shown}{turn.text}\n{turn.answer or ''}")

    def clear(self, _: str) -> None:
        """forget the conversation"""
        self.session.clear()
        self.pending = []

    def help(self, _: str) -> None:
        """this list"""
        for name, command in self.commands.items():
            self.notice(f"/{name} {' '.join((command.__doc__ or '').split())}")

    def quit(self, _: str) -> None:
        """leave"""
        self.done = True

    def attach(self, media: list[Medium]) -> None:
        self.pending += media
        self.notice("will be shown: " + ", ".join(f"{medium.modality} {medium.name}" for medium in self.pending))
        for medium in media:
            if medium.remark:
                self.notice(f"note: {medium.remark}")

    def answer(self, answer: ReplyStream) -> None:
        """Write an answer as it comes; Ctrl-C ends it."""
        with on_signal(self.session.cancel, signal.SIGINT):
            for piece in answer:
                print(piece, end="", file=self.output, flush=True)
        print(file=self.output, flush=True)
        if answer.reply.finish != "stop":
            self.notice({"length": "(cut off: --max-new-tokens)", "cancelled": "(stopped)"}[answer.reply.finish])

    def notice(self, text: str) -> None:
        print(text, file=self.errors, flush=True)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    setup_logging(True)
    try:
        _, engine = load_engine(args, args.device)
        terminal = Terminal(ChatSession(engine, settings(args)))
        if args.load:
            terminal.session.load(args.load)
    except (ValueError, OSError) as error:
        return report_failure(error, args)
    try:
        return talk(terminal, sys.stdin)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader is gone; closing the stream would raise once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def talk(terminal: Terminal, lines: TextIO) -> int:
    """Everything that is typed, or comes through a pipe; returns the exit status."""
    typed = lines.isatty()
    if typed:
        with suppress(ImportError):  # Windows has none
            import readline  # noqa: F401  (input() then has a history and can be edited)
        shown = ", ".join(terminal.session.engine.modalities)
        terminal.notice(f"This model knows {shown}. /help lists commands; Ctrl-C stops an answer, Ctrl-D leaves.")
    while not terminal.done:
        try:
            line = input(PROMPT) if typed else lines.readline()
        except EOFError:
            break
        except KeyboardInterrupt:
            if not typed:
                raise
            terminal.notice("")
            continue
        if not typed and not line:
            break
        terminal.line(line)
    return int(terminal.failed and not typed)


def settings(args: argparse.Namespace) -> GenerationSettings:
    return GenerationSettings(**{field.name: getattr(args, field.name) for field in fields(GenerationSettings)})


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    usual = GenerationSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    add_device_argument(parser)
    parser.add_argument("--load", metavar="FILE", help="a conversation to go on with")
    parser.add_argument("--max-new-tokens", type=int, help="length of an answer at most")
    parser.add_argument("--temperature", type=float, default=usual.temperature, help="0 takes the likeliest tokens")
    parser.add_argument("--top-p", type=float, default=usual.top_p)
    parser.add_argument("--top-k", type=int, default=usual.top_k, help="0 for all")
    parser.add_argument("--repetition-penalty", type=float, default=usual.repetition_penalty)
    parser.add_argument("--num-beams", type=int, default=usual.num_beams)
    parser.add_argument("--seed", type=int, help="of sampling")
    return parser.parse_args(argv)


def _file(name: str) -> str:
    """A file name as people type or drop it into a terminal."""
    name = name.strip().strip("'\"")
    if not name:
        raise ValueError("a file name is missing")
    return name


if __name__ == "__main__":
    sys.exit(main())
