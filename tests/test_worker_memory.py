"""Batches of workers need no /dev/shm, which containers have little of; what goes wrong there is told with a remedy."""

from __future__ import annotations

import os
import signal

import pytest
import torch

import train
from chatbridge.common import shared
from chatbridge.common.config import load_config
from chatbridge.common.shared import shared_memory, stacked
from chatbridge.datasets import reading
from chatbridge.runners import worker_memory
from chatbridge.runners.worker_memory import worker_notes
from tests import tiny
from tests.processes import Run

needs_memfd = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memfd")


def nothing_in_dev_shm(_: int) -> None:
    """PyTorch's own ways to shared memory are closed, in this process and its workers."""

    def refuse(*_: object) -> None:
        raise RuntimeError("unable to allocate shared memory(shm)")

    share = torch.UntypedStorage._share_fd_cpu_
    torch.UntypedStorage._new_using_fd_cpu = refuse
    torch.UntypedStorage._share_fd_cpu_ = lambda self: share(self) if self.is_shared() else refuse()


@needs_memfd
@pytest.mark.parametrize("finish", ["worker", "device"])
def test_a_run_with_workers_takes_nothing_from_dev_shm(tmp_path, finish):
    tree = tiny.make_config(tmp_path, max_steps=6, num_workers=2)
    for name in ("image", "audio"):
        tree["processors"][name]["finish"] = finish
    run = Run(tmp_path / "run", ["--cfg-path", str(tiny.write_yaml(tmp_path, tree))], before=nothing_in_dev_shm)
    assert run.wait() == [0], run.text()


def test_without_memfd_a_full_dev_shm_is_told_of_before_it_is_written(monkeypatch):
    monkeypatch.setattr(shared, "_memfd", lambda: None)
    assert shared_memory(100).is_shared()
    monkeypatch.setattr(shared, "free_in_dev_shm", lambda: 64)
    with pytest.raises(OSError, match=r"/dev/shm has 64 bytes free and a batch takes 100; .*--shm-size"):
        shared_memory(100)
    monkeypatch.setattr(shared, "free_in_dev_shm", lambda: None)
    assert shared_memory(100).tolist() == [0] * 100


def test_stacking_is_the_same_everywhere(monkeypatch):
    parts = [torch.randn(2, 3).to(torch.float16) for _ in range(4)]
    here = stacked(parts)
    monkeypatch.setattr(shared, "get_worker_info", lambda: object())
    there = stacked(parts)
    assert torch.equal(here, there) and there.is_shared() and not here.is_shared()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_a_worker_that_is_killed_is_one_line(tmp_path, number):
    tree = tiny.make_config(tmp_path, max_steps=40, num_workers=1)

    def before(_: int) -> None:
        read = reading.MixtureReader.__getitems__
        reading.MixtureReader.__getitems__ = lambda self, plan: (
            os.kill(os.getpid(), number) if plan.step == 3 else read(self, plan)
        )

    run = Run(tmp_path / "run", ["--cfg-path", str(tiny.write_yaml(tmp_path, tree))], before=before)
    assert run.wait() == [1]
    (said,) = [line for line in run.text().splitlines() if line.startswith("error:")]
    assert "DataLoader worker" in said and "run.num_workers" in said and "--shm-size" in said
    assert "Traceback" not in run.text()


def test_workers_that_cannot_be_started(tmp_path, monkeypatch, capsys):
    tree = tiny.make_config(tmp_path, max_steps=2, num_workers=1)

    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reading, "Lock", full)
    assert train.main(["--cfg-path", str(tiny.write_yaml(tmp_path, tree))]) == 1
    said = capsys.readouterr().err
    assert "run.num_workers: 1 workers cannot be started, /dev/shm is full" in said and "Traceback" not in said


@pytest.fixture
def config(tmp_path):
    tree = tiny.make_config(tmp_path, num_workers=3)
    return load_config(tiny.write_yaml(tmp_path, tree)).config


def test_what_workers_need_is_held_against_what_there_is(config, monkeypatch):
    sizes = {"images": 10**6, "sounds": 10**5}  # batches of 4, 4 at a time, 3 workers
    monkeypatch.setattr(worker_memory, "room", lambda: (10**8, "memory"))
    assert worker_notes(config, sizes, 1, 0) == [
        "3 workers hold up to 0.05 GB of batches in memory, of which 0.10 GB are free"
    ]
    monkeypatch.setattr(worker_memory, "room", lambda: (64 * 2**20, "/dev/shm"))
    (note,) = worker_notes(config, {"images": 2 * 10**6}, 1, 0)
    assert note.startswith("warning: 3 workers hold up to 0.10 GB of batches in /dev/shm") and "--shm-size" in note
    assert worker_notes(config, {"images": 2 * 10**6}, 2, 1)[0].startswith("3 workers hold up to 0.05 GB")
    assert worker_notes(config, {}, 1, 0) == []


def test_gpus_that_talk_through_dev_shm(config, monkeypatch):
    monkeypatch.setattr(worker_memory, "free_in_dev_shm", lambda: 64 * 10**6)
    (note,) = worker_notes(config, {}, 8, 8)
    assert note.startswith("warning: the GPUs talk through /dev/shm, of which only 0.06 GB are free; ")
    assert worker_notes(config, {}, 1, 1) == []


def test_room_is_that_of_the_container(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "CGROUPS", ((str(tmp_path / "max"), str(tmp_path / "now")), ("/none", "/none")))
    whole, where = shared.room()
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "now").write_text("500\n")
    assert whole > 10**6 and where == "memory" and shared.room()[0] > 10**6
    (tmp_path / "max").write_text("1500\n")
    assert shared.room() == (1000, "memory")


def test_check_and_plan_say_it(tmp_path, monkeypatch, capsys):
    file = str(tiny.write_yaml(tmp_path, tiny.make_config(tmp_path, num_workers=2)))
    monkeypatch.setattr(worker_memory, "room", lambda: (1, "/dev/shm"))
    assert train.main(["--cfg-path", file, "--check"]) == 0
    assert "warning: 2 workers hold up to" in capsys.readouterr().out
    assert train.main(["--cfg-path", file, "--plan", "--gpus", "1"]) == 0
    assert "warning: 2 workers hold up to" in capsys.readouterr().out
