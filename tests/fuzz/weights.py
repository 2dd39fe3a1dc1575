"""Weight files, tokenizers, model folders and checkpoints, through everything that loads or inspects them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import yaml

import train
from chatbridge.common.checkpoint import CheckpointError
from chatbridge.common.config import load_config
from chatbridge.common.documents import DocumentError
from chatbridge.common.schema import ConfigError
from chatbridge.models import CausalLM, CausalLMConfig, ChatBridge, EvaVit
from chatbridge.processors.tokenizer import load_tokenizer
from chatbridge.runners.assembly import Assembly
from chatbridge.weights import WeightsError, open_weights
from chatbridge.weights.__main__ import main as inspect
from chatbridge.weights.pretrained import from_pretrained, load_processors
from tests import tiny
from tests.fuzz import weight_files
from tests.fuzz.configurations import SIGNS, portable
from tests.fuzz.damage import as_json, damaged, damaged_text, damaged_tree, misplaced
from tests.fuzz.target import Step, Target, command

CASES = ("encoder", "encoder", "llm", "sharded", "fast", "saved", "whole", "output", "output")

JSON_SIGNS = (
    *'{}[],:"\\',
    "null",
    "NaN",
    "1e999",
    "-",
    "9" * 5000,
    "[" * 100_000,
    '{"a":' * 5000,
    "\\ud83d",
    "\0",
    "//",
)


class Weights(Target):
    errors = (WeightsError, ConfigError, CheckpointError, DocumentError)
    plain = True

    def __init__(self, folder: Path):
        super().__init__(folder)
        weight_files.write_all(folder)
        tree = yaml.safe_load((folder / "run.yaml").read_text())
        tree["run"].pop("stop_at")
        self.run = portable(tree, folder)

    def trial(self, rng: random.Random, folder: Path) -> Iterator[Step]:
        case = rng.choice(CASES)
        place = folder / case
        shutil.copytree(self.folder / case, place)
        (folder / "files").symlink_to(self.folder)
        files = sorted(file for file in place.rglob("*") if file.is_file() and self._counts(case, file))
        chosen = rng.sample(files, min(len(files), rng.choice((1, 1, 1, 2))))
        silent = [file for file in chosen if _damage(file, rng) and file.name in ("model.safetensors", "trainer.pt")]
        steps: dict[str, Callable[[], Iterator[Step]]] = {
            "encoder": lambda: self._encoder(chosen[0]),
            "whole": lambda: self._checkpoint(folder, place),
            "output": lambda: self._resumed(folder, place, bool(silent)),
            "saved": lambda: self._saved(place),
        }
        yield from steps.get(case, lambda: self._language(place))()

    @staticmethod
    def _counts(case: str, file: Path) -> bool:
        """Of a run's folder, only what a resumed one reads."""
        return case != "output" or "checkpoints" in file.parts

    def _encoder(self, file: Path) -> Iterator[Step]:
        config = type(weight_files.EVA)(**{**vars(weight_files.EVA), "weights": str(file)})
        yield "load encoder", partial(EvaVit, config)
        yield "open", partial(_read, file)
        yield "inspect", command(inspect, "inspect", str(file))

    def _language(self, place: Path) -> Iterator[Step]:
        if (place / "tokenizer_config.json").exists():
            yield "tokenizer", partial(_tokenized, place)
        if place.name != "fast":
            yield "load language model", partial(CausalLM, CausalLMConfig(path=str(place)))
            yield "inspect", command(inspect, "inspect", str(place))

    def _saved(self, place: Path) -> Iterator[Step]:
        yield "from_pretrained", partial(ChatBridge.from_pretrained, place)
        yield "from_pretrained, unverified", partial(from_pretrained, place, local_files_only=True, verify=False)
        yield "processors", partial(load_processors, place)
        yield "inspect", command(inspect, "inspect", str(place))

    def _checkpoint(self, folder: Path, place: Path) -> Iterator[Step]:
        tree = self.run | {"model": self.run["model"] | {"weights": [place.name + "/model.safetensors"]}}
        file = tiny.write_yaml(folder, tree)
        yield "start from weights", lambda: Assembly(load_config(file)).model()
        yield "inspect", command(inspect, "inspect", str(place / "model.safetensors"))
        yield "inspect for a run", command(inspect, "inspect", "--cfg-path", str(file))

    def _resumed(self, folder: Path, place: Path, must_tell: bool) -> Iterator[Step]:
        file = tiny.write_yaml(folder, self.run | {"run": self.run["run"] | {"output_dir": str(place)}})
        resume = command(train.main, "--cfg-path", str(file))
        yield "resume", partial(_resume, resume, place, must_tell)
        yield "open", partial(_read, place)
        yield "inspect", command(inspect, "inspect", str(place))


def _resume(resume: Callable[[], str], place: Path, must_tell: bool) -> None:
    """A checkpoint whose tensors were changed is not gone on from without a word."""
    resume()
    events = tiny.json_lines(place / "events.jsonl")
    resumed = [event for event in events if event.get("event") == "resumed"]
    assert not (must_tell and resumed), "resumed from a damaged checkpoint"


def _read(path: Path) -> None:
    source = open_weights(path)
    for name, tensor in source.stream(source.tensors):
        assert tensor.shape == source.tensors[name].shape


def _tokenized(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.decode(tokenizer.encode("what colour is it? </s>"))


def _damage(file: Path, rng: random.Random) -> bool:
    """Change a file; whether its bytes are others now, and it is still a file."""
    before = file.read_bytes()
    chance = rng.random()
    if chance < 0.04:
        file.unlink()
        return False
    if chance < 0.12:
        misplaced(file, rng)
        return False
    file.write_bytes(_knowing(file, before, rng) if chance < 0.6 else damaged(before, rng))
    return file.read_bytes() != before


def _knowing(file: Path, data: bytes, rng: random.Random) -> bytes:
    if file.suffix == ".json":
        if rng.random() < 0.3:
            return damaged_text(data.decode(), rng, JSON_SIGNS)
        tree = json.loads(data)
        if rng.random() < 0.2:
            for name in ("theirs.py", "modeling.py", "tokenization.py"):
                (file.parent / name).write_text(weight_files.CODE)
            where = tree.get("llm", tree)
            where["auto_map"] = weight_files.AUTO_MAP
            where |= rng.choice(
                ({}, {"model_type": "theirs"}, {"tokenizer_class": "Tokenizer"}, {"trust_remote_code": True})
            )
            return as_json(tree, rng)
        return as_json(damaged_tree(tree, rng, weight_files.IN_JSON), rng)
    if file.suffix == ".yaml":
        return damaged_text(data.decode(), rng, SIGNS)
    if file.suffix == ".safetensors":
        return weight_files.safetensors(data, rng)
    if file.suffix in (".pth", ".pt", ".bin"):
        if rng.random() < 0.6:
            return weight_files.pickled(data, rng)
        return weight_files.zipped(data, rng, damaged)
    return damaged(data, rng)
