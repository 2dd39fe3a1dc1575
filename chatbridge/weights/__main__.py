"""Weight files from the command line: ``python -m chatbridge.weights COMMAND --help``.

Exit status 0 when all is well, 1 with one clear line for each thing that is not.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch

from chatbridge import register_all
from chatbridge.common.config import load_config
from chatbridge.common.registry import MODELS
from chatbridge.weights.download import cache_folder, fetch
from chatbridge.weights.files import DTYPES
from chatbridge.weights.inspection import inspect, inspect_config
from chatbridge.weights.manifest import find, manifest, markdown, to_dict
from chatbridge.weights.merge import merge_delta


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chatbridge.weights", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)

    one = commands.add_parser("inspect", help="say what files are, what they would fill, and what is wrong")
    one.add_argument("files", nargs="*", metavar="FILE", help="weight files or folders; none: those that CFG names")
    one.add_argument("--cfg-path", metavar="CFG", help="hold them against this run's model, not the published one")
    one.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override keys of CFG")
    one.add_argument("--json", action="store_true", help="print JSON")

    one = commands.add_parser("merge-delta", help="make Vicuna from LLaMA and a delta, shard by shard")
    one.add_argument("--base", required=True, metavar="DIR", help="LLaMA, in transformers' layout")
    one.add_argument("--delta", required=True, metavar="DIR", help="the delta, for instance lmsys/vicuna-13b-delta-v0")
    one.add_argument("--out", required=True, metavar="DIR", help="a new folder for the result")
    one.add_argument("--shard-size", type=float, default=2.0, metavar="GB", help="size of a shard of the result [2]")
    one.add_argument("--dtype", choices=sorted(DTYPES), help="precision of the result [the delta's]")

    one = commands.add_parser("manifest", help="list published weights")
    one.add_argument("--json", action="store_true", help="print JSON")

    one = commands.add_parser("download", help="fetch published weights through a cache, resuming")
    one.add_argument("names", nargs="+", metavar="NAME", help="names in the manifest")
    one.add_argument("--to", metavar="DIR", help=f"also put them here [only the cache, {cache_folder()}]")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        return {"inspect": _inspect, "merge-delta": _merge, "manifest": _manifest, "download": _download}[args.command](
            args
        )
    except (ValueError, OSError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _inspect(args: argparse.Namespace) -> int:
    if not args.files and not args.cfg_path:
        raise ValueError("name at least one FILE, or a configuration (--cfg-path)")
    register_all()
    config = load_config(args.cfg_path, args.options).config.model if args.cfg_path else None
    if args.files:
        model = None
        if config is not None:
            with torch.device("meta"):
                model = MODELS.build(config)
        found = [("", inspect(file, model)) for file in args.files]
    else:
        found = inspect_config(config)
    if args.json:
        print(json.dumps([({"key": key} if key else {}) | coverage.to_dict() for key, coverage in found], indent=1))
    else:
        for key, coverage in found:
            print((f"{key}: " if key else "") + coverage.text())
    return 0 if all(coverage.ok for _, coverage in found) else 1


def _merge(args: argparse.Namespace) -> int:
    dtype = DTYPES[args.dtype] if args.dtype else None
    print(merge_delta(args.base, args.delta, args.out, int(args.shard_size * 1e9), dtype))
    return 0


def _manifest(args: argparse.Namespace) -> int:
    print(
        json.dumps([to_dict(entry) for entry in manifest().values()], indent=1) if args.json else markdown(), end="\n"
    )
    return 0


def _download(args: argparse.Namespace) -> int:
    for entry in [find(name) for name in args.names]:
        print(fetch(entry, args.to))
    return 0


if __name__ == "__main__":
    sys.exit(main())
