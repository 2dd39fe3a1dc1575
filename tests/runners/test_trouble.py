"""What breaks runs: numbers that are not finite, a full disk, a rank that hangs, secrets in a file."""

from __future__ import annotations

import json
import resource
import time

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

import train as command
from chatbridge import register_all
from chatbridge.common.checkpoint import find_latest, load_trainer, load_weights
from chatbridge.common.config import load_config
from chatbridge.runners.assembly import Assembly
from chatbridge.runners.step import OptimizerStep
from chatbridge.runners.watchdog import Watchdog
from tests import tiny
from tests.patience import PATIENCE
from tests.processes import Run, arguments, events, metrics


def prepare(folder, **run):
    return tiny.write_yaml(folder, tiny.make_config(folder, **run))


def spoil(*steps: int, rank: int | None = None, value: float = float("nan")):
    """Losses of these steps (of one rank) are not finite."""

    def before(this: int) -> None:
        from chatbridge.models import ChatBridge
        from chatbridge.runners.step import OptimizerStep

        forward, step, taken = ChatBridge.forward, OptimizerStep.__call__, [0]

        def spoilt(self, batch, **options):
            output = forward(self, batch, **options)
            if taken[0] in steps and rank in (None, this):
                output.loss_sum = output.loss_sum * value
            return output

        def counted(self, *args, **kwargs):
            taken[0] += 1
            return step(self, *args, **kwargs)

        ChatBridge.forward, OptimizerStep.__call__ = spoilt, counted

    return before


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_skipped_counted_and_written_down(tmp_path, world, value):
    """On one rank only: all of them skip it."""
    yaml, out = prepare(tmp_path, max_steps=6), tmp_path / "out"
    run = Run(out, arguments(yaml, out), world, before=spoil(3, rank=world - 1, value=value))
    assert set(run.wait()) == {0}, run.text()
    rows = metrics(out)
    assert [row["skipped"] for row in rows] == [0, 0, 1, 1, 1, 1]
    assert all(torch.isfinite(w).all() for w in load_weights(find_latest(out)).values())
    assert "skipped" in events(out)
    dump = json.loads((out / "nonfinite" / f"step_00000003_rank{world - 1}.json").read_text())
    assert "loss" in dump["problem"] and len(dump["samples"]) == 4 // world
    assert {"id", "dataset", "loss"} == dump["samples"][0].keys()
    assert load_trainer(find_latest(out))["guard"] == {"skipped": 1, "in_a_row": 0}


def test_a_skipped_step_leaves_weights_and_moments_alone(tmp_path):
    yaml, one, two = prepare(tmp_path, max_steps=6), tmp_path / "one", tmp_path / "two"
    assert Run(one, arguments(yaml, one, "run.stop_at=2")).wait() == [0]
    assert Run(two, arguments(yaml, two, "run.stop_at=3"), before=spoil(3)).wait() == [0]
    before, after = find_latest(one), find_latest(two)
    assert (before.name, after.name) == ("step_00000002", "step_00000003")
    a, b = load_weights(before), load_weights(after)
    assert all(torch.equal(a[name], b[name]) for name in a)
    moments = [load_trainer(folder)["optimizers"][0]["state"] for folder in (before, after)]
    assert moments[0] and all(
        torch.equal(moments[0][n][k], moments[1][n][k]) for n in moments[0] for k in ("exp_avg", "exp_avg_sq", "step")
    )


def test_the_scaler_looks_for_its_scale_and_its_collapse_is_told(tmp_path):
    """An overflow halves the scale and is no error; below 1 it is one."""
    register_all()
    assembly = Assembly(load_config(prepare(tmp_path)))
    model = assembly.model().train()
    batch = next(assembly.batches(assembly.mixture(1, 0), 0, 1, 0, False))
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    prepared = AcceleratedOptimizer(optimizer, scaler=accelerator.scaler)
    accelerator._optimizers = [prepared]
    names = list(assembly.datasets)
    step = OptimizerStep(model, model, [prepared], accelerator, names, None)
    handle = model.bridges["audio"].projector.projection.weight.register_hook(lambda grad: grad * float("inf"))
    found = [step([batch], 1e-3) for _ in range(3)]
    assert [(r.overflow, bool(r.problem)) for r in found] == [(True, True), (True, True), (False, True)]
    assert "gradient not finite at loss scale 1" in found[-1].problem
    assert accelerator.scaler.get_scale() == 0.5
    handle.remove()
    before = model.bridges["audio"].projector.projection.weight.detach().clone()
    assert step([batch], 1e-3).problem == ""
    assert not torch.equal(before, model.bridges["audio"].projector.projection.weight)


def test_too_many_in_a_row_stop_the_run(tmp_path):
    yaml, out = prepare(tmp_path, max_steps=20, max_skipped=3), tmp_path / "out"
    run = Run(out, arguments(yaml, out), before=spoil(2, 3, 5, 6, 7, 8))
    assert run.wait() == [1]
    assert "3 steps in a row" in run.text() and "step 7" in run.text()
    assert len(list((out / "nonfinite").iterdir())) == 5


def test_a_full_disk_leaves_the_checkpoint_before_and_says_so(tmp_path):
    """Files of more than 1 kB cannot be written from the second checkpoint on; training goes on, and ends in error."""
    yaml, out = prepare(tmp_path, max_steps=6, checkpoint_every=2), tmp_path / "out"

    def fill(_: int) -> None:
        from chatbridge.runners import checkpoint_writer

        save = checkpoint_writer.save_checkpoint

        def limited(folder, step, *rest):
            if step > 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
            try:
                return save(folder, step, *rest)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

        checkpoint_writer.save_checkpoint = limited

    run = Run(out, arguments(yaml, out, "run.async_checkpoints=false"), before=fill)
    assert run.wait() == [1]
    assert "step_00000002 is intact" in run.text()
    assert len(metrics(out)) == 6 and events(out).count("checkpoint_failed") == 2
    assert find_latest(out).name == "step_00000002" and load_trainer(find_latest(out))["step"] == 2
    assert not list((out / "checkpoints").glob(".partial*"))
    assert Run(out, arguments(yaml, out)).wait() == [0]
    assert find_latest(out).name == "step_00000006"


def hang_at_step_5(rank: int) -> None:
    """Rank 1 reads for ever. Its watchdog's patience becomes short then, not before: a slow machine is no hang."""
    if rank == 1:
        from chatbridge.datasets.reading import BatchStream
        from chatbridge.runners.watchdog import READING, Watchdog

        read, report = BatchStream.__next__, Watchdog.report_progress

        def impatient(self, step, doing):
            if (step, doing) == (5, READING):
                self.seconds, self._rearm_at = 1.0, 0.0
            report(self, step, doing)

        def reads_forever(self):
            if self.step == 4:
                time.sleep(3600)
            return read(self)

        Watchdog.report_progress, BatchStream.__next__ = impatient, reads_forever


def test_a_rank_that_hangs_is_named_with_its_stack(tmp_path):
    yaml, out = prepare(tmp_path, max_steps=20, hang_seconds=32), tmp_path / "out"
    run = Run(out, arguments(yaml, out), 2, before=hang_at_step_5)
    assert all(status != 0 for status in run.wait(PATIENCE))
    told = [log.read_text() for log in run.logs]
    assert all("furthest behind: rank 1 (reading, step 5)" in text for text in told), run.text()
    assert "reads_forever" in (out / "hang_rank1.txt").read_text()
    stacks = out / "hang_rank0.txt"
    assert not stacks.exists() or "reads_forever" not in stacks.read_text()


def test_whoever_gives_up_first_names_the_rank_that_hangs(tmp_path):
    """A collective that fails says "connection closed by peer" on a rank that did nothing wrong."""
    yaml, out = prepare(tmp_path, max_steps=20, hang_seconds=32), tmp_path / "out"

    def before(rank: int) -> None:
        if rank == 1:
            hang_at_step_5(rank)
            from chatbridge.runners.watchdog import Watchdog

            Watchdog._report = lambda self, still: time.sleep(3600)  # it cannot speak for itself
            return
        from chatbridge.runners.step import OptimizerStep
        from chatbridge.runners.training import TrainingRunner

        one_step, take = TrainingRunner._one_step, OptimizerStep.__call__

        def known(self, bar):
            OptimizerStep.__call__ = lambda step, *a, **k: gives_up(self) if self.step == 4 else take(step, *a, **k)
            return one_step(self, bar)

        def gives_up(runner):
            while "reading, step 5" not in (runner.watchdog.ranks_behind() or ""):
                time.sleep(0.01)
            runner.watchdog._store = None  # gone with its process
            raise RuntimeError("Connection closed by peer")

        TrainingRunner._one_step = known

    run = Run(out, arguments(yaml, out), 2, before=before)
    assert run.until(lambda: "failed" in events(out))  # written after the words
    run.kill()
    assert "gave up at step 5; furthest behind: rank 1 (reading, step 5)" in run.text()


def test_a_rank_never_heard_from_is_the_one_furthest_behind(tmp_path):
    watchdog = Watchdog(tmp_path, 0, 3, 60.0)
    watchdog._progress, watchdog._known = (7, "computing"), {1: (7, "computing")}
    assert watchdog.ranks_behind() == "rank 2 (not heard from, step 0)"
    watchdog._known[2] = (7, "computing")
    assert watchdog.ranks_behind() is None


def test_a_quiet_run_leaves_no_stacks(tmp_path):
    yaml, out = prepare(tmp_path, hang_seconds=60.0), tmp_path / "out"
    assert Run(out, arguments(yaml, out)).wait() == [0]
    assert not list(out.glob("hang*"))


@pytest.mark.parametrize(
    "option",
    ["run.wandb_api_key=abc", "paths.token=abc", "paths.shards=https://me:secret@host/shard.tar"],
)
def test_secrets_are_refused(tmp_path, option, capsys):
    assert command.main(arguments(prepare(tmp_path), tmp_path / "out", option)) == 1
    told = capsys.readouterr().err
    assert option.split("=")[0] in told and "environment" in told
    assert "abc" not in told and "me:secret" not in told


def test_what_was_run_is_written_down(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "not-for-files")
    yaml, out = prepare(tmp_path), tmp_path / "out"
    assert command.main(arguments(yaml, out)) == 0
    record = json.loads((out / "run.json").read_text())
    assert record["versions"]["torch_build"] == torch.__version__
    assert record["config"]["run"]["init_lr"] == 1e-3 and record["world"] == 1
    hashes = record["annotations"]["images"]
    assert list(hashes) == ["images.json"] and len(hashes["images.json"]) == 64
    assert record["git"] is None or len(record["git"]["commit"]) == 40
    for file in out.rglob("*"):
        assert not file.is_file() or b"not-for-files" not in file.read_bytes()
