"""``python demo.py``: arguments, models, the page, and its end."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path

import torch

from chatbridge.common.config import LoadedConfig
from chatbridge.common.logging import setup_logging
from chatbridge.demo.page import Words
from chatbridge.demo.server import Serving, serve
from chatbridge.inference import Engine, limits, load_for_chat
from chatbridge.web import access

logger = logging.getLogger("chatbridge")

SEEING = {"image": "pictures", "video": "videos"}


def main(argv: list[str] | None = None) -> int:
    """Serve the page until Ctrl-C or SIGTERM; returns the exit status."""
    args = parse_args(argv)
    setup_logging(True)
    over = threading.Event()
    try:
        bounds = limits.from_arguments(args)
        serving = Serving(
            host=args.host, port=args.port, share=args.share, waiting=args.queue, parallel=args.parallel,
            access=access.from_arguments(args),
        )  # fmt: skip
        loaded, engines, names = load(args)
        words = describe(loaded, engines, names)
        with _signals(over), serve(engines, loaded, words, bounds, serving) as running:
            print(f"ChatBridge is at {running.address} (Ctrl-C ends it)", flush=True)
            if running.public:
                print(f"and for everybody who knows the link at {running.public}", flush=True)
            over.wait()
            print("ending", flush=True)
    except (ValueError, OSError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        if "quickstart" in str(args.cfg_path):
            print("hint: `make quickstart` makes this model", file=sys.stderr)
        return 1
    return 0


def load(args: argparse.Namespace) -> tuple[LoadedConfig, list[Engine], list[str]]:
    """The configuration, the models and their names.

    Raises:
        ValueError: a configuration, weights or GPU that cannot be used, with every problem.
    """
    device = pick_gpu(args.gpu_id)
    loaded = load_for_chat(args.cfg_path, args.checkpoint, args.options)
    if loaded.config.run.threads:
        torch.set_num_threads(loaded.config.run.threads)
    engines, checkpoints = [Engine.load(loaded, device=device)], [_checkpoint(args.checkpoint, loaded)]
    if args.compare_checkpoint:
        other = load_for_chat(args.cfg_path, args.compare_checkpoint, args.options)
        engines.append(Engine.load(other, device=device))
        checkpoints.append(_checkpoint(args.compare_checkpoint, other))
    return loaded, engines, _names(checkpoints)


def pick_gpu(number: int) -> torch.device:
    """The GPU of that number; the CPU for -1, and where there is no GPU at all.

    Raises:
        ValueError: for a number that no GPU has.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number < 0 or not count:
        if number >= 0:
            logger.info("no GPU is here; the CPU answers")
        return torch.device("cpu")
    if number >= count:
        raise ValueError(f"--gpu-id is {number}; there are {count} GPUs, counted from 0 (-1 takes the CPU)")
    return torch.device("cuda", number)


def describe(loaded: LoadedConfig, engines: list[Engine], names: list[str]) -> Words:
    """What the page says about the models."""
    modalities = engines[0].modalities
    parts = []
    seen = [SEEING[modality] for modality in SEEING if modality in modalities]
    if seen:
        parts.append("sees " + " and ".join(seen))
    if "audio" in modalities:
        parts.append("hears sounds")
    other = [modality for modality in modalities if modality not in (*SEEING, "audio")]
    parts += [f"knows {modality}" for modality in other]
    about = f"{' against '.join(names)} on {engines[0].device.type}: {', '.join(parts) or 'reads text'}"
    return Words("ChatBridge", names, about)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    usual = Serving()
    parser = argparse.ArgumentParser(
        prog="demo.py", description="Chat with a model in a browser, about pictures, videos and sounds."
    )
    parser.add_argument("--cfg-path", required=True, help="the model's YAML")
    parser.add_argument("--gpu-id", type=int, default=0, help="number of the GPU; -1 takes the CPU (default: 0)")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override keys of the YAML")
    parser.add_argument("--checkpoint", help="instead of those that the YAML names under model.weights")
    parser.add_argument("--compare-checkpoint", help="a second one, whose answers stand beside the first one's")
    parser.add_argument("--host", default=usual.host, help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--share", action="store_true", help="also make a public link, by gradio's servers")
    parser.add_argument("--queue", type=int, default=usual.waiting, help="questions that may wait for their turn")
    parser.add_argument("--parallel", type=int, default=usual.parallel, help="answers that are given at a time")
    limits.add_arguments(parser)
    access.add_arguments(parser)
    parser.set_defaults(root_path=os.environ.get("GRADIO_ROOT_PATH", ""))  # where gradio's users may have set it
    return parser.parse_args(argv)


def _names(checkpoints: list[str]) -> list[str]:
    """What models are called on the page: their checkpoints' paths, as much of them as tells one from the other."""
    parts = [Path(checkpoint).parts for checkpoint in checkpoints]
    for length in range(1, max(map(len, parts))):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return checkpoints


def _checkpoint(given: str | None, loaded: LoadedConfig) -> str:
    """The checkpoint that a model comes from; for one without any, its configuration."""
    weights = [given] if given else [str(path) for path in getattr(loaded.config.model, "weights", None) or []]
    return str(Path(weights[-1] if weights else loaded.source).absolute())


class _signals:
    """While it is open, Ctrl-C and SIGTERM set an event; Ctrl-C pressed again ends the program as usual."""

    def __init__(self, over: threading.Event):
        self._over, self._before = over, {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._end)

    def _end(self, number: int, _: object) -> None:
        self._over.set()
        signal.signal(number, self._before[number])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
