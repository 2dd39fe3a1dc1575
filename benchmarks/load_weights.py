"""How much host memory and time loading a language model takes: ``python benchmarks/load_weights.py --help``.

Writes a LLaMA folder of the asked size (``--sparse`` leaves its content out, so that 26 GB take no disk), loads it in a
fresh process, and prints the figures as JSON. Memory is the process's peak resident set (VmHWM) above what it was
before the load, with the file's mapped pages counted in.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

SIZES = {
    # name: hidden, layers, heads, feed-forward
    "0.3b": (1024, 16, 8, 2752),
    "1b": (2048, 16, 16, 5504),
    "13b": (5120, 40, 40, 13824),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="0.3b")
    parser.add_argument("--stored", choices=("float16", "float32", "bfloat16"), default="float16", help="in the files")
    parser.add_argument("--dtype", choices=("float16", "float32", "bfloat16"), default="float16", help="in the model")
    parser.add_argument("--container", choices=("safetensors", "bin"), default="safetensors")
    parser.add_argument("--vocabulary", type=int, default=32001)
    parser.add_argument("--shard-mb", type=float, default=100.0)
    parser.add_argument("--sparse", action="store_true", help="zeros that take no disk (safetensors only)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plain", action="store_true", help="transformers' from_pretrained, to compare with")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        print(json.dumps(measure(args)))
        return 0
    if args.sparse and args.container == "bin":
        parser.error("--sparse writes safetensors only")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), args)
        command = [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv), "--child", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        print(done.stdout or done.stderr, end="")
        return done.returncode


def write(folder: Path, args: argparse.Namespace) -> None:
    """A LLaMA folder with an index, shard by shard."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, layers, heads, ffn = SIZES[args.size]
    config = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn,
    )
    config.save_pretrained(folder)
    dtype = getattr(torch, args.stored)
    with torch.device("meta"):
        tensors = LlamaForCausalLM(config).to(dtype).state_dict()
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > args.shard_mb * 1e6:
            shards.append({})
        shards[-1][name] = tensor
    weight_map = {}
    stem, suffix = ("model", "safetensors") if args.container == "safetensors" else ("pytorch_model", "bin")
    for number, shard in enumerate(shards, 1):
        file = folder / f"{stem}-{number:05d}-of-{len(shards):05d}.{suffix}"
        if args.sparse:
            write_sparse(file, shard)
        else:
            real = {name: torch.rand(tensor.shape).to(dtype) for name, tensor in shard.items()}
            if args.container == "bin":
                torch.save(real, file)
            else:
                from safetensors.torch import save_file

                save_file(real, file)
        weight_map |= dict.fromkeys(shard, file.name)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_sparse(file: Path, shard: dict[str, torch.Tensor]) -> None:
    """A safetensors file whose data is a hole: header length, header, and a size."""
    names = {torch.float16: "F16", torch.float32: "F32", torch.bfloat16: "BF16"}
    header, offset = {}, 0
    for name, tensor in shard.items():
        end = offset + tensor.nbytes
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        handle.truncate(8 + len(text) + offset)


def measure(args: argparse.Namespace) -> dict:
    """Load the folder in this process."""
    from transformers import AutoModelForCausalLM

    from chatbridge.models import CausalLM, CausalLMConfig
    from chatbridge.weights import filling_on

    warm_up(args.device)
    reset_peak()
    before, started = resident("VmRSS"), time.perf_counter()
    if args.plain:
        model = AutoModelForCausalLM.from_pretrained(args.child, dtype=getattr(torch, args.dtype))
        model = model.to(args.device)
        model.requires_grad_(False)
        total = sum(float(p.flatten()[0]) for p in model.parameters())  # mapped weights are read when they are used
    else:
        with filling_on(args.device):
            model = CausalLM(CausalLMConfig(path=str(args.child), dtype=args.dtype))
        total = float(model.model.lm_head.weight.flatten()[0])
    seconds, peak = time.perf_counter() - started, resident("VmHWM")
    size = sum(p.nbytes for p in model.parameters())
    return {
        "size": args.size, "container": args.container, "stored": args.stored, "dtype": args.dtype,
        "device": args.device, "by": "transformers" if args.plain else "chatbridge",
        "model_mb": round(size / 1e6, 1), "peak_host_mb": round((peak - before) / 1e6, 1),
        "ratio": round((peak - before) / size, 3), "seconds": round(seconds, 2), "finite": total == total,
    }  # fmt: skip


def warm_up(device: str) -> None:
    """What the first use of a library allocates is not the load's."""
    from transformers import LlamaConfig

    from chatbridge.models import CausalLM
    from chatbridge.weights import empty_weights

    small = LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    with empty_weights():
        CausalLM.from_config(small)
    torch.aminmax(torch.rand(2**16).half())
    torch.ones(2, device=device).sum().item()


def reset_peak() -> None:
    with contextlib.suppress(OSError):  # without the right to, the peak of the imports stays: a larger figure
        Path("/proc/self/clear_refs").write_text("5")


def resident(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


if __name__ == "__main__":
    sys.exit(main())
