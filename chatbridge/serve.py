"""Answer OpenAI's clients over HTTP: ``python -m chatbridge.serve --cfg-path eval_configs/quickstart.yaml``.

Listens on http://127.0.0.1:8000/v1 until SIGTERM or Ctrl-C. docs/serving.md says what may be asked.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from chatbridge.common.logging import setup_logging
from chatbridge.inference import limits
from chatbridge.inference.command_line import add_device_argument, add_model_arguments, load_engine, report_failure
from chatbridge.serving import Endpoint, ServingOptions
from chatbridge.serving.server import Server
from chatbridge.web import access

logger = logging.getLogger("chatbridge")


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    setup_logging(True)
    try:
        options, access_options = serving_options(args), access.from_arguments(args)
        _, engine = load_engine(args, args.device)
    except (ValueError, OSError) as error:
        return report_failure(error, args)
    if not access.is_local(args.host) and not options.keys:
        logger.warning("everybody who can reach %s may ask: give --api-key-env, or leave --host as it is", args.host)
    return Server(Endpoint(engine, options), args.host, args.port, args.grace, access_options).run_until_stopped()


def serving_options(args: argparse.Namespace) -> ServingOptions:
    """The options of a command line.

    Raises:
        ValueError: for values out of range, and a missing folder or key.
    """
    return ServingOptions(
        model_name=args.model_name or Path(args.cfg_path).stem,
        limits=limits.from_arguments(args),
        max_body=round(args.max_request_mb * limits.MIB),
        folder=args.media_folder,
        keys=api_keys(args.api_key_env),
        parallel=args.parallel,
        queue=args.queue,
        max_beams=args.max_beams,
        cache_positions=args.cache_positions,
        separate=args.separate,
        system=args.system_messages,
    )


def api_keys(variable: str | None) -> tuple[str, ...]:
    """The keys in an environment variable, separated by commas; none without one.

    Raises:
        ValueError: when the variable is not set.
    """
    if variable is None:
        return ()
    keys = tuple(key.strip() for key in os.environ.get(variable, "").split(",") if key.strip())
    if not keys:
        raise ValueError(f"--api-key-env: the environment has no {variable}, or it is empty; set it to the API key")
    return keys


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    usual = ServingOptions(model_name="")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    add_device_argument(parser)
    parser.add_argument("--model-name", help="what clients call the model; the YAML's name without its ending")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in; give --api-key-env then")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--api-key-env", metavar="NAME", help="environment variable that holds the API key")
    parser.add_argument("--media-folder", type=Path, metavar="DIR", help="requests may name files below it")
    parser.add_argument("--parallel", type=int, default=usual.parallel, help="answers at a time")
    parser.add_argument(
        "--queue", type=int, default=usual.queue, help="requests that may wait; further ones get status 429"
    )
    parser.add_argument("--max-beams", type=int, default=usual.max_beams, help="that a request may search with")
    parser.add_argument(
        "--cache-positions", type=int, default=usual.cache_positions,
        help="positions whose keys and values are kept for further turns; 0 for none",
    )  # fmt: skip
    parser.add_argument("--separate", action="store_true", help="reuse nothing across API keys and users")
    parser.add_argument(
        "--system-messages", choices=("refuse", "ignore", "prepend"), default=usual.system,
        help="prepend puts them before the first question",
    )  # fmt: skip
    parser.add_argument("--grace", type=float, default=3.0, help="seconds for answers to end after SIGTERM")
    parser.add_argument(
        "--max-request-mb", type=float, default=usual.max_body / limits.MIB, help="of a whole request, in MiB"
    )  # fmt: skip
    limits.add_arguments(parser)
    access.add_arguments(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
