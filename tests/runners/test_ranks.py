"""However a batch is divided over processes and micro-batches, the step is the same, and no process waits in vain."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from chatbridge import register_all
from chatbridge.common.checkpoint import find_latest, load_weights
from chatbridge.common.config import load_config
from chatbridge.runners.assembly import Assembly
from tests import tiny
from tests.processes import Run, metrics

SAMPLES = 16
"""Of a step, over all processes and micro-batches."""


def prepare(folder: Path, kind: str, accumulation: int, **run) -> Path:
    """A YAML whose steps have 16 samples: of one dataset, or of two in one batch."""
    tree = tiny.make_config(folder, max_steps=3, accum_grad_iters=accumulation, **run)
    if kind == "mixed":
        tree["mixture"] = {"mode": "mixed", "batch_size": SAMPLES // accumulation}
    else:
        del tree["datasets"]["sounds"]
        tree["datasets"]["images"]["batch_size"] = SAMPLES // accumulation
    return tiny.write_yaml(folder, tree, f"{kind}{accumulation}.yaml")


def train(yaml: Path, output: Path, world: int, *options: str, before=None):
    run = Run(output, ["--cfg-path", str(yaml), "--options", f"run.output_dir={output}", *options], world, before)
    assert set(run.wait()) == {0}, run.text()[-3000:]
    return metrics(output), load_weights(find_latest(output))


def assert_close(one, other) -> None:
    """Losses, gradients and weights of two runs over the same samples."""
    (rows, weights), (their_rows, their_weights) = one, other
    assert len(rows) == len(their_rows)
    for mine, theirs in zip(rows, their_rows, strict=True):
        assert (theirs["ids"], theirs["tokens"]) == (mine["ids"], mine["tokens"])
        assert theirs["loss"] == pytest.approx(mine["loss"], abs=1e-5)
        assert theirs["losses"] == pytest.approx(mine["losses"], abs=1e-5)
        assert theirs["grad_norms"] == pytest.approx(mine["grad_norms"], rel=1e-5, abs=1e-6)
    for name, weight in weights.items():
        torch.testing.assert_close(their_weights[name], weight, atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """kind -> folder and results of one process with undivided batches."""
    made = {}

    def run(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = folder, train(prepare(folder, kind, 1), folder / "whole", 1)
        return made[kind]

    return run


DIVIDED = [
    pytest.param(world, parts, marks=[pytest.mark.slow] * (world == 4)) for world, parts in product((1, 2, 4), repeat=2)
]


@pytest.mark.parametrize(("world", "accumulation"), DIVIDED[1:])
@pytest.mark.parametrize("kind", ["one", "mixed"])
def test_a_divided_step_is_the_whole_step(whole, kind, world, accumulation):
    """Weighted by supervised tokens, of which no two processes have as many."""
    folder, expected = whole(kind)
    yaml = prepare(folder, kind, accumulation)
    assert_close(expected, train(yaml, folder / f"{world}x{accumulation}", world))


@pytest.mark.parametrize("options", [(), ("run.offload_frozen=true",)])
def test_fsdp_is_ddp(whole, options):
    """The language model in shards (and in host memory): the same numbers."""
    folder, expected = whole("mixed")
    name = "fsdp_offload" if options else "fsdp"
    assert_close(expected, train(prepare(folder, "mixed", 2), folder / name, 2, "run.strategy=fsdp", *options))


def test_fsdp_shards_the_language_model_and_nothing_else(tmp_path):
    """Each of two processes keeps half of the language model; what learns is whole."""
    yaml = prepare(tmp_path, "mixed", 1)

    def count(rank: int) -> None:
        from torch.distributed.tensor import DTensor

        from chatbridge.runners.strategy import Strategy

        build = Strategy.build

        def counted(self, make):
            model = build(self, make)
            local = sum(p.to_local().numel() for p in model.llm.parameters() if isinstance(p, DTensor))
            whole = sum(p.numel() for p in model.llm.parameters())
            sharded = [n for n, p in model.named_parameters() if isinstance(p, DTensor) and not n.startswith("llm.")]
            (tmp_path / f"rank{rank}.json").write_text(json.dumps([local, whole, sharded]))
            return model

        Strategy.build = counted

    train(yaml, tmp_path / "out", 2, "run.strategy=fsdp", before=count)
    counts = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert counts[0][0] + counts[1][0] == counts[0][1]
    assert abs(counts[0][0] - counts[1][0]) <= 0.02 * counts[0][1]
    assert counts[0][2] == counts[1][2] == []


def test_fsdp_with_one_process_is_fsdp(whole):
    folder, expected = whole("mixed")
    assert_close(expected, train(prepare(folder, "mixed", 1), folder / "fsdp1", 1, "run.strategy=fsdp"))


def test_offloading_needs_fsdp(tmp_path, capsys):
    import train as command

    yaml = prepare(tmp_path, "one", 1)
    assert command.main(["--cfg-path", str(yaml), "--options", "run.offload_frozen=true"]) == 1
    assert "strategy: fsdp" in capsys.readouterr().err


def test_compiled_layers_give_the_same_numbers(whole):
    folder, expected = whole("mixed")
    yaml = prepare(folder, "mixed", 1)
    assert_close(expected, train(yaml, folder / "compiled", 1, "run.compile=aot_eager"))


def test_gradient_checkpointing_gives_the_same_numbers(whole):
    folder, expected = whole("mixed")
    yaml = prepare(folder, "mixed", 1)
    for strategy in ("ddp", "fsdp"):
        options = ["model.llm.gradient_checkpointing=true", f"run.strategy={strategy}"]
        assert_close(expected, train(yaml, folder / f"recomputed_{strategy}", 2, *options))


def test_four_ranks_enter_the_same_collectives_in_the_same_order(tmp_path):
    """Whatever their samples are: two to a rank and step, pictures, sounds or both."""
    yaml = prepare(tmp_path, "mixed", 2, strategy="fsdp")

    def listen(rank: int) -> None:
        from torch.distributed.fsdp._fully_shard import _fsdp_collectives as gathering

        from chatbridge.runners.step import OptimizerStep
        from chatbridge.runners.strategy import Strategy

        log = (tmp_path / f"rank{rank}.txt").open("w", buffering=1)
        all_reduce, gather, wrap, step = (
            dist.all_reduce, gathering.foreach_all_gather, Strategy.wrap, OptimizerStep.__call__,
        )  # fmt: skip

        def bucket(_, bucket):
            log.write(f"gradients {bucket.index()} {bucket.buffer().numel()}\n")
            future = dist.all_reduce(bucket.buffer().div_(4), async_op=True).get_future()
            return future.then(lambda done: done.value()[0])

        def wrapped(self, model):
            ddp = wrap(self, model)
            ddp.register_comm_hook(None, bucket)
            return ddp

        def reduced(tensor, *args, **kwargs):
            log.write(f"reduce {tuple(tensor.shape)}\n")
            return all_reduce(tensor, *args, **kwargs)

        def gathered(params, *args, **kwargs):
            log.write(f"gather {sum(p.sharded_param.numel() for p in params)}\n")
            return gather(params, *args, **kwargs)

        def stepped(self, micro, *args, **kwargs):
            log.write(f"# {[b.modalities for b in micro]}\n")
            return step(self, micro, *args, **kwargs)

        dist.all_reduce, Strategy.wrap, OptimizerStep.__call__ = reduced, wrapped, stepped
        import torch.distributed.fsdp._fully_shard._fsdp_param_group as group

        group.foreach_all_gather = gathered

    train(yaml, tmp_path / "out", 4, before=listen)
    logs = [(tmp_path / f"rank{rank}.txt").read_text().splitlines() for rank in range(4)]
    modalities = [[line for line in log if line.startswith("#")] for log in logs]
    collectives = [[line.split(" ")[0] for line in log if not line.startswith("#")] for log in logs]
    assert len({tuple(map(str, one)) for one in modalities}) > 1, "the ranks saw the same modalities"
    assert {"reduce", "gradients", "gather"} == set(collectives[0])
    assert collectives[0] == collectives[1] == collectives[2] == collectives[3]


def test_every_branch_has_a_gradient_whatever_the_batch_holds(tmp_path):
    """Without the pass of weight zero, a batch of sounds leaves the vision bridge without one."""
    register_all()
    assembly = Assembly(load_config(prepare(tmp_path, "one", 1)))
    model = assembly.model().train()
    batch = next(assembly.batches(assembly.mixture(1, 0), 0, 1, 0, False))

    def without_gradient() -> set[str]:
        for parameter in model.parameters():
            parameter.grad = None
        model(batch).loss_sum.backward()
        return {n.split(".")[1] for n, p in model.named_parameters() if p.requires_grad and p.grad is None}

    assert without_gradient() == {"audio"}
    alone = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.every_branch = True
    assert without_gradient() == set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            expected = alone.get(name, torch.zeros_like(parameter))
            torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=0)
