"""What the commands chat, serve and demo share: options that name a model, loading it, reporting errors, signals."""

from __future__ import annotations

import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from chatbridge.common.config import LoadedConfig
from chatbridge.inference.engine import Engine, load_for_chat


def add_model_arguments(parser: ArgumentParser) -> None:
    """Options for `load_engine`."""
    parser.add_argument("--cfg-path", required=True, help="the model's YAML")
    parser.add_argument("--checkpoint", help="instead of those that the YAML names under model.weights")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override keys of the YAML")


def add_device_argument(parser: ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ...; auto takes a GPU if there is one")


def load_engine(
    args: Namespace, device: str | torch.device, checkpoint: str | None = None
) -> tuple[LoadedConfig, Engine]:
    """The configuration that a command line names, and its model.

    Args:
        checkpoint: instead of the command line's.

    Raises:
        ValueError: a configuration or weights that cannot be used, with every problem.
    """
    loaded = load_for_chat(args.cfg_path, checkpoint or args.checkpoint, args.options)
    if loaded.config.run.threads:
        torch.set_num_threads(loaded.config.run.threads)
    return loaded, Engine.load(loaded, device=device)


def report_failure(error: Exception, args: Namespace) -> int:
    """Print why a command cannot start; returns its exit status."""
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)
    if "quickstart" in str(args.cfg_path):
        print("hint: `make quickstart` makes this model", file=sys.stderr)
    return 1


@contextmanager
def on_signal(callback: Callable[[], None], *numbers: int) -> Iterator[None]:
    """While the context is open, the first signal of each number calls `callback`; the second acts as usual."""

    def handle(number: int, _: object) -> None:
        signal.signal(number, before[number])
        callback()

    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            signal.signal(number, handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
