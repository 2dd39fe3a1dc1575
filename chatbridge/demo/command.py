"""The command ``python demo.py``: loads the models and serves the page until a signal."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import threading
from pathlib import Path

import torch

from chatbridge.common.config import LoadedConfig
from chatbridge.common.logging import setup_logging
from chatbridge.demo.page import PageText
from chatbridge.demo.server import DemoOptions, serve
from chatbridge.inference import Engine, limits
from chatbridge.inference.command_line import add_model_arguments, load_engine, on_signal, report_failure
from chatbridge.web import access

logger = logging.getLogger("chatbridge")

VISUAL_MODALITIES = {"image": "pictures", "video": "videos"}


def main(argv: list[str] | None = None) -> int:
    """Serve the page until Ctrl-C or SIGTERM; returns the exit status."""
    args = parse_args(argv)
    setup_logging(True)
    stopped = threading.Event()
    try:
        media_limits = limits.from_arguments(args)
        options = DemoOptions(
            host=args.host, port=args.port, share=args.share, max_waiting=args.queue, parallel=args.parallel,
            access=access.from_arguments(args),
        )  # fmt: skip
        loaded, engines, names = load(args)
        text = describe(loaded, engines, names)
        with (
            on_signal(stopped.set, signal.SIGINT, signal.SIGTERM),
            serve(engines, loaded, text, media_limits, options) as running,
        ):
            print(f"ChatBridge is at {running.address} (Ctrl-C ends it)", flush=True)
            if running.public:
                print(f"and for everybody who knows the link at {running.public}", flush=True)
            stopped.wait()
            print("ending", flush=True)
    except (ValueError, OSError) as error:
        return report_failure(error, args)
    return 0


def load(args: argparse.Namespace) -> tuple[LoadedConfig, list[Engine], list[str]]:
    """The configuration, the models and their names.

    Raises:
        ValueError: a configuration, weights or GPU that cannot be used, with every problem.
    """
    device = pick_gpu(args.gpu_id)
    loaded, engine = load_engine(args, device)
    engines, checkpoints = [engine], [_checkpoint(args.checkpoint, loaded)]
    if args.compare_checkpoint:
        other, engine = load_engine(args, device, args.compare_checkpoint)
        engines.append(engine)
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


def describe(loaded: LoadedConfig, engines: list[Engine], names: list[str]) -> PageText:
    """The page's texts about the models."""
    modalities = engines[0].modalities
    parts = []
    seen = [VISUAL_MODALITIES[modality] for modality in VISUAL_MODALITIES if modality in modalities]
    if seen:
        parts.append("sees " + " and ".join(seen))
    if "audio" in modalities:
        parts.append("hears sounds")
    other = [modality for modality in modalities if modality not in (*VISUAL_MODALITIES, "audio")]
    parts += [f"knows {modality}" for modality in other]
    about = f"{' against '.join(names)} on {engines[0].device.type}: {', '.join(parts) or 'reads text'}"
    return PageText("ChatBridge", names, about)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    usual = DemoOptions()
    parser = argparse.ArgumentParser(
        prog="demo.py", description="Chat with a model in a browser, about pictures, videos and sounds."
    )
    add_model_arguments(parser)
    parser.add_argument("--gpu-id", type=int, default=0, help="number of the GPU; -1 takes the CPU (default: 0)")
    parser.add_argument("--compare-checkpoint", help="a second one, whose answers stand beside the first one's")
    parser.add_argument("--host", default=usual.host, help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--share", action="store_true", help="also make a public link, by gradio's servers")
    parser.add_argument("--queue", type=int, default=usual.max_waiting, help="questions that may wait for their turn")
    parser.add_argument("--parallel", type=int, default=usual.parallel, help="answers that are given at a time")
    limits.add_arguments(parser)
    access.add_arguments(parser)
    parser.set_defaults(root_path=os.environ.get("GRADIO_ROOT_PATH", ""))  # gradio's own variable
    return parser.parse_args(argv)


def _names(checkpoints: list[str]) -> list[str]:
    """The shortest ends of the checkpoints' paths that are different."""
    parts = [Path(checkpoint).parts for checkpoint in checkpoints]
    for length in range(1, max(map(len, parts))):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return checkpoints


def _checkpoint(given: str | None, loaded: LoadedConfig) -> str:
    """The path of a model's checkpoint; of its configuration where it has none."""
    weights = [given] if given else [str(path) for path in getattr(loaded.config.model, "weights", None) or []]
    return str(Path(weights[-1] if weights else loaded.source).absolute())
