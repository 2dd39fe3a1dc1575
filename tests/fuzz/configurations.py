"""A run's YAML, through ``train.py --check``; what it lets pass at toy size, also through the run itself."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import train
from tests import tiny
from tests.fuzz.damage import ODD, PIPE, damaged_text, damaged_tree, deepened, misplaced
from tests.fuzz.target import ROOT, SENTINEL, Refused, Step, Target, command

LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""Nine lines that stand for a thousand million values."""

SIGNS = (
    "\t", ":", ": ", "- ", "-", "[", "]", "{", "}", "[[", "{{", '"', "'", "#", "&a ", "*a", "*nobody", "<<: *a\n", "|",
    ">", "%", "@", "`", "!", "!!", "? ", "---\n", "...\n", "\n", "\r", "\0", "\x1b", "\ufeff", "\u2028", "é", "\ud83d",
    "~", "null", "yes", "1_000", "0x1F", "1e5", "1:30", ".inf", ".nan", "2020-01-01", "=", "${", "${run.seed}", "}",
    "!!binary aaa", "!!bool maybe", "!!set {a}", "!!timestamp x", "!!int x", "!!float x", "!!omap [a: b]", "!!pairs 1",
    f"!!python/object/apply:os.system ['touch {SENTINEL}']", f"!!python/object/new:os.system ['touch {SENTINEL}']",
    "!!python/name:os.system", "!!python/module:os", "!!python/tuple [1]", "!local x", "x: &x [*x]\n", "[" * 5000,
    "{a: " * 2000, "a: " + "&b " * 50 + "1\n", "9" * 5000, "- " * 3000,
    "base: run.yaml\n", "base: .\n", "base: none.yaml\n",
    LAUGHS,
)  # fmt: skip
"""What stands in a damaged YAML."""

OPTIONS = (
    "base=run.yaml", "run.seed=1", "run.seed=x", "run.seed=", "run.seed", "=", "=1", ".", ".=1", "run.=1",
    "run..seed=1", "run=1",
    "run.seed={", "run.seed=[", "run.seed=${", "run.seed=${nothing}", "run.seed=1=2", "run.betas=[2,2]", "é=1",
    "run.betas[0]=1", "datasets=", "model.llm.path=", "plugins=[null]", "\ud83d=1", "a" * 5000 + "=1", "run.seed=\0",
    "run.seed=!!python/name:os.system", "run.init_lr=1e400", "run.seed=" + "9" * 5000, f"run.resume={PIPE}",
)  # fmt: skip

PLUGINS: tuple[Any, ...] = (
    [None], ["nothing.py"], ["no.such.module"], [""], ["."], ["run.yaml"], [".py"], ["/"], [1], "a", {"a": "b"},
    [["a"]],
    ["../run.py"], ["json"], ["\ud83d.py"], ["x\0.py"],
)  # fmt: skip

RUNNABLE = re.compile(r"(?<![\w.])\d{3,}")
"""A number of three digits: perhaps so many steps, samples or processes, which this machine need not bear."""


class Configurations(Target):
    def __init__(self, folder: Path):
        super().__init__(folder)
        self.tiny = [portable(tree, folder) for tree in _tiny(folder)]
        published = sorted(ROOT.glob("*_configs/*.yaml"))
        self.published = [file.read_text().replace("base: ../", f"base: {ROOT}/") for file in published]

    def trial(self, rng: random.Random, folder: Path) -> Iterator[Step]:
        (folder / "files").symlink_to(self.folder)
        file = folder / "run.yaml"
        options = rng.sample(OPTIONS, rng.choice((1, 1, 2))) if rng.random() < 0.1 else []
        runnable = self._write(rng, file) and not options
        given = ["--cfg-path", str(file), *(["--options", *options] if options else [])]
        check = command(train.main, *given, "--check")
        passed: list[str] = []
        yield "check", lambda: passed.append(check())
        if rng.random() < 0.1:
            yield "plan", command(train.main, *given, "--plan")
        if passed and runnable and "to fetch" not in passed[0] and rng.random() < 0.5:
            yield "run after check said ok", lambda: _run(given)

    def decoded(self, folder: Path, step: str) -> int:
        """A run has the model that its file describes, which is large where a small one's keys are gone."""
        return 3 << 30 if step.startswith("run") else 0

    def _write(self, rng: random.Random, file: Path) -> bool:
        """Whether it is a small run by its numbers, so that it may be tried."""
        chance = rng.random()
        if chance < 0.02:
            file.write_text("x")
            misplaced(file, rng)
            return False
        small = chance < 0.75
        tree = rng.choice(self.tiny) if small else yaml.safe_load(rng.choice(self.published))
        if rng.random() < 0.65:
            changed = damaged_tree(tree, rng, (*ODD, *_values(tree)))
            if isinstance(changed, dict) and rng.random() < 0.03:
                changed["plugins"] = rng.choice(PLUGINS)
            text = deepened(yaml.safe_dump(changed, sort_keys=False))
            file.write_text(text)
            run = changed.get("run") if isinstance(changed, dict) else None
            kept = small and isinstance(run, dict) and run.get("output_dir") == tree["run"]["output_dir"]
            short = kept and ("max_steps" in run or run.get("runner") == "evaluation")
            return short and not RUNNABLE.search(text)
        text = yaml.safe_dump(tree, sort_keys=False) if small else rng.choice(self.published)
        file.write_bytes(damaged_text(text, rng, SIGNS))
        return False


def _values(tree: Any) -> list[Any]:
    """Everything in a tree: values in another's place are of the wrong kind, or of the right kind and wrong."""
    inner = list(tree.values()) if isinstance(tree, dict) else tree if isinstance(tree, list) else []
    return [tree, *(value for one in inner for value in _values(one))]


def _run(given: list[str]) -> None:
    """What the check lets pass, the run does not refuse."""
    try:
        command(train.main, *given)()
    except Refused as error:
        raise AssertionError(f"refused after --check said ok: {str(error).splitlines()[-1]}") from error


def portable(tree: Any, folder: Path) -> Any:
    """The tree with its files below a link to them, so that a trial is the same in every folder."""
    text = yaml.safe_dump(tree, sort_keys=False).replace(str(folder / "output"), "output")
    return yaml.safe_load(text.replace(str(folder), "files"))


def _tiny(folder: Path) -> list[dict[str, Any]]:
    alignment = tiny.make_config(folder, max_steps=1, checkpoint_every=1, report_every=0)
    instruction = tiny.make_config(folder, "instruction", max_steps=1, checkpoint_every=1, report_every=0)
    instruction["validation"] = {"held_out": dict(instruction["datasets"]["chats"])}
    instruction["run"] |= {
        "validate_every": 1,
        "optimizer": "muon",
        "betas": [0.9, 0.99],
        "accept_changes": ["run.seed"],
    }
    mixed = tiny.make_config(folder, max_steps=1, checkpoint_every=1, report_every=0, lr_sched="linear_warmup_step_lr")
    mixed["mixture"] = {"mode": "mixed", "batch_size": 4}
    mixed["datasets"] = {"images": mixed["datasets"]["images"]}
    packed = tiny.make_config(folder, max_steps=1, checkpoint_every=1, report_every=0, warmup_steps=1, warmup_lr=0.0)
    for dataset in packed["datasets"].values():
        dataset |= {"batch_tokens": 96, "pack": 64, "weight": 1.0}
    packed["paths"] = {"media": str(folder / "media")}
    packed["datasets"]["images"]["media"] = {"image": "${paths.media}"}
    evaluation = {name: part for name, part in instruction.items() if name != "datasets"}
    evaluation["run"] = {
        "runner": "evaluation", "output_dir": str(folder / "output"), "device": "cpu", "max_new_tokens": 2,
        "conditions": {"silent": {"blank": ["audio"]}, "mixed_up": {"shuffle": ["image"]}},
    }  # fmt: skip
    return [alignment, instruction, mixed, packed, evaluation]
