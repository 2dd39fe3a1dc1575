"""A whole run at toy size, on real files: a random LLaMA, pictures, sounds, annotations, a YAML."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parent.parent
TOKENIZER = ROOT / "tests" / "golden" / "tokenizer"

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "yellow": (230, 220, 40)}

EVA = {"name": "eva_vit", "image_size": 28, "width": 32, "depth": 1, "heads": 2}
BEATS = {"name": "beats", "patch_width": 16, "width": 32, "depth": 1, "heads": 2, "ffn_width": 64, "conv_pos": 16}
BEATS |= {"conv_pos_groups": 2}
PERCEIVER = {"num_queries": 4, "width": 32, "layers": 2, "heads": 2, "intermediate": 64}


def write_llm(folder: Path) -> Path:
    """A LLaMA of 600 tokens with random weights, and its tokenizer."""
    if (folder / "config.json").exists():
        return folder
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=600, hidden_size=48, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96,
        bos_token_id=1, eos_token_id=2, max_position_embeddings=256, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in TOKENIZER.iterdir():
        shutil.copy(file, folder)
    return folder


def write_media(folder: Path, count: int = 12) -> dict[str, Path]:
    """Pictures of one colour, tones, and annotation files about them. Returns the annotation files by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(COLOURS)
    captions, sounds, chats = [], [], []
    for i in range(count):
        colour = names[i % len(names)]
        pixels = np.full((40, 50, 3), COLOURS[colour], np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
        wave = 0.4 * np.sin(2 * np.pi * (200 + 150 * (i % 4)) * np.arange(8000) / 16000)
        soundfile.write(folder / f"{i}.wav", wave, 16000)
        captions.append({"image_id": f"{i}.jpg", "caption": f"a {colour} picture"})
        sounds.append({"audio_id": f"{i}.wav", "caption": f"tone number {i % 4}"})
        turns = [{"from": "human", "value": "What colour is it?"}, {"from": "gpt", "value": colour}]
        chats.append({"image_id": f"{i}.jpg", "audio_id": f"{i}.wav", "conversations": turns, "group": "colour"})
    files = {}
    for name, entries in (("images", captions), ("sounds", sounds), ("chats", chats)):
        files[name] = folder / f"{name}.json"
        files[name].write_text(json.dumps(entries))
    return files


def make_config(folder: Path, task: str = "alignment", **run: Any) -> dict[str, Any]:
    """The tree of a runnable YAML over freshly written files below `folder`."""
    media = folder / "media"
    files = write_media(media)
    llm = write_llm(folder / "llm")
    image = {"annotations": str(files["images"]), "kind": "ti-cap", "media": {"image": str(media)}, "batch_size": 4}
    audio = {"annotations": str(files["sounds"]), "kind": "ta-cap", "media": {"audio": str(media)}, "batch_size": 4}
    chat = {"annotations": str(files["chats"]), "kind": "tia-conv", "batch_size": 4}
    chat["media"] = {"image": str(media), "audio": str(media)}
    alignment = task == "alignment"
    return {
        "model": {
            "llm": {"path": str(llm)},
            "bridges": {
                "vision": {"modalities": ["image", "video"], "encoder": dict(EVA), "perceiver": dict(PERCEIVER)},
                "audio": {"modalities": ["audio"], "encoder": dict(BEATS), "perceiver": dict(PERCEIVER)},
            },
        },
        "processors": {
            "image": {"name": "image", "image_size": 28},
            "video": {"name": "video", "image_size": 28},
            "audio": {"name": "audio", "frames_per_clip": 64},
        },
        "task": {"name": task},
        "datasets": {"images": image, "sounds": audio} if alignment else {"chats": chat},
        "run": {
            "output_dir": str(folder / "output"), "device": "cpu", "max_steps": 6, "init_lr": 1e-3, "min_lr": 1e-4,
            "log_every": 1, "checkpoint_every": 3, "loggers": ["jsonl"], "threads": 1, **run,
        },
    }  # fmt: skip


def write_yaml(folder: Path, tree: dict[str, Any], name: str = "run.yaml") -> Path:
    file = folder / name
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file


def run(folder: Path, tree: dict[str, Any], *arguments: str) -> int:
    """``train.py`` on a tree, in this process; its exit status."""
    import train  # here: it imports all of the package, which not every user of this file needs

    return train.main(["--cfg-path", str(write_yaml(folder, tree)), *arguments])


def json_lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
