"""How fast a conversation is: ``python benchmarks/chat.py --help``.

Two comparisons on one model in one run, runs taken in turn, medians: the second turn's time to its first token with
three media shown in the first one, with what was read before reused and with everything read again; and tokens per
second of a streamed answer against transformers' own ``generate`` from the same prompt.

    python benchmarks/chat.py --size medium
    python benchmarks/chat.py --cfg-path eval_configs/quickstart.yaml
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import soundfile
import torch
import transformers
from PIL import Image
from transformers import LlamaConfig

from chatbridge import register_all
from chatbridge.inference import ChatSession, Engine, GenerationSettings
from chatbridge.models import (
    BeatsConfig,
    BridgeConfig,
    CausalLM,
    ChatBridge,
    ChatBridgeConfig,
    EvaVitConfig,
    QFormerConfig,
)
from chatbridge.processors import AudioConfig, AudioProcessor, ImageConfig, ImageProcessor, VideoConfig, VideoProcessor
from chatbridge.tasks import InstructionConfig, InstructionTask

NEVER = "\u0001never\u0001"
"""A stop text that no answer holds: every answer is as long as asked for."""


@dataclass(frozen=True)
class Size:
    """A random model: language model and encoders of these widths and depths."""

    width: int
    layers: int
    heads: int
    image_size: int
    encoder_width: int
    encoder_depth: int
    queries: int


SIZES = {
    "tiny": Size(64, 2, 2, 28, 32, 1, 4),
    "small": Size(256, 6, 4, 112, 192, 4, 16),
    "medium": Size(768, 12, 12, 224, 384, 8, 32),
}


class ByteTokenizer:
    """One id per byte."""

    bos_id, eos_id, pad_id, vocab_size = 1, 2, 2, 259

    def encode(self, text: str) -> list[int]:
        return [byte + 3 for byte in text.encode("utf-8")]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return "".join(chr(32 + i % 95) for i in ids)  # a random model speaks of ids that are no bytes, too


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg-path", type=Path, help="a model of yours; without it, a random one of --size")
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128, help="of an answer, for tokens per second")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    register_all()
    engine = Engine.load(args.cfg_path, device=args.device) if args.cfg_path else random_engine(args.size, args.device)
    engine.prompt_format, engine.stop = replace(engine.prompt_format, answer_end=NEVER), ()
    engine.model.llm.eos_ids = []
    with tempfile.TemporaryDirectory() as folder:
        media = write_media(Path(folder))
        results = {
            "model": str(args.cfg_path or args.size),
            "language_model_parameters": sum(p.numel() for p in engine.model.llm.parameters()),
            "torch": torch.__version__, "transformers": transformers.__version__, "machine": platform.machine(),
            "threads": args.threads, "repeats": args.repeats,
            "second_turn": second_turn(engine, media, args.repeats),
            "speed": speed(engine, media, args.repeats, args.tokens),
        }  # fmt: skip
    print(json.dumps(results, indent=1))
    return 0


def second_turn(engine: Engine, media: list[Path], repeats: int) -> dict[str, float]:
    """Seconds from asking the second question to its first token, three ways."""
    settings = GenerationSettings(max_new_tokens=16)

    def first_token(reuse: bool, forget_media: bool) -> float:
        session = ChatSession(engine, settings, reuse=reuse)
        session.say("what is to be seen and heard here?", media=media, sound=False)
        if forget_media:
            engine.clear_media_cache()
        return session.say("and what else?").first_seconds

    ways: dict[str, Callable[[], float]] = {
        "reusing_all": lambda: first_token(True, False),
        "reusing_media_only": lambda: first_token(False, False),
        "reusing_nothing": lambda: first_token(False, True),
    }
    times = in_turn(ways, repeats)
    return times | {"times_faster": round(times["reusing_nothing"] / times["reusing_all"], 2)}


def speed(engine: Engine, media: list[Path], repeats: int, tokens: int) -> dict[str, float]:
    """Tokens per second of a streamed answer and of ``generate``, reading the prompt included in both.

    The ratio is the median over pairs of runs, by the clock and by the processor's time, which other programs on the
    machine disturb less.
    """
    settings = GenerationSettings(max_new_tokens=tokens)
    session = ChatSession(engine, settings, reuse=False)
    session.say("what?", media=media, sound=False)
    prompt = engine.prompt([replace(session.turns[0], answer=None)], settings)
    language = engine.model.llm.model

    def streamed() -> list[int]:
        answer = session.stream_regenerate()
        for _ in answer:
            pass
        return answer.reply.token_ids

    def generated() -> list[int]:
        embeds = engine.embed(prompt)
        mask = torch.ones(embeds.shape[:2], dtype=torch.int64)
        ids = language.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=tokens, do_sample=False,
                                pad_token_id=0)  # fmt: skip
        return ids[0].tolist()

    assert streamed() == generated(), "the two ways differ in their answers"
    pairs = []
    for repeat in range(repeats):
        both = {way: timed(way) for way in ((streamed, generated) if repeat % 2 else (generated, streamed))}
        pairs.append((*both[streamed], *both[generated]))
    return {
        "tokens": tokens,
        "streamed_tokens_per_s": round(statistics.median(tokens / wall for wall, *_ in pairs), 2),
        "generate_tokens_per_s": round(statistics.median(tokens / wall for *_, wall, _ in pairs), 2),
        "streamed_over_generate": round(statistics.median(other / own for own, _, other, _ in pairs), 3),
        "streamed_over_generate_cpu_time": round(statistics.median(other / own for _, own, _, other in pairs), 3),
    }


def timed(way: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    way()
    return time.perf_counter() - wall, time.process_time() - cpu


def in_turn(ways: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """The median of each way's figures, after one run of each that does not count."""
    figures: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            figure = way()
            if repeat:
                figures[name].append(figure)
    return {name: round(statistics.median(values), 5) for name, values in figures.items()}


def random_engine(size: str, device: str) -> Engine:
    """A model of random weights; what it says means nothing and takes as long as if it did."""
    s = SIZES[size]
    torch.manual_seed(0)
    language = CausalLM.from_config(
        LlamaConfig(
            vocab_size=32000, hidden_size=s.width, num_hidden_layers=s.layers, num_attention_heads=s.heads,
            intermediate_size=s.width * 8 // 3, max_position_embeddings=2048, initializer_range=0.05,
        )
    )  # fmt: skip
    heads = max(1, s.encoder_width // 64)
    perceiver = QFormerConfig(num_queries=s.queries, width=s.encoder_width, layers=4, heads=heads,
                                intermediate=4 * s.encoder_width)  # fmt: skip
    eva = EvaVitConfig(image_size=s.image_size, width=s.encoder_width, depth=s.encoder_depth, heads=heads)
    beats = BeatsConfig(width=s.encoder_width, depth=s.encoder_depth, heads=heads, ffn_width=4 * s.encoder_width)
    bridges = {
        "vision": BridgeConfig(modalities=["image", "video"], encoder=eva, perceiver=perceiver),
        "audio": BridgeConfig(modalities=["audio"], encoder=beats, perceiver=perceiver),
    }
    model = ChatBridge(ChatBridgeConfig(llm=None, bridges=bridges), llm=language).to(device)
    processors = {
        "image": ImageProcessor(ImageConfig(image_size=s.image_size)),
        "video": VideoProcessor(VideoConfig(image_size=s.image_size)),
        "audio": AudioProcessor(AudioConfig()),
    }
    return Engine(model, ByteTokenizer(), processors, InstructionTask(InstructionConfig(max_txt_len=2000)))


def write_media(folder: Path) -> list[Path]:
    """A picture, a video of two seconds without sound, and a sound of five."""
    rng = np.random.default_rng(0)
    files = [folder / name for name in ("picture.jpg", "video.mp4", "sound.wav")]
    Image.fromarray(rng.integers(0, 255, (360, 480, 3), dtype=np.uint8)).save(files[0])
    with av.open(str(files[1]), "w") as container:
        track = container.add_stream("libx264", rate=12)
        track.width, track.height, track.pix_fmt = 320, 240, "yuv420p"
        for brightness in range(0, 240, 10):
            picture = np.full((240, 320, 3), brightness, np.uint8)
            container.mux(track.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(track.encode(None))
    soundfile.write(files[2], 0.1 * rng.standard_normal(5 * 16000), 16000)
    return files


if __name__ == "__main__":
    sys.exit(main())
