"""Batches of workers need no /dev/shm, which containers have little of; what goes wrong there is told with a remedy."""

from __future__ import annotations

import os
import pickle
import signal
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch

import train
from chatbridge.common import shared_memory
from chatbridge.common.config import load_config
from chatbridge.common.shared_memory import free_for_batches, shared_copy, worker_notes
from chatbridge.datasets import reading
from chatbridge.processors.image import ImageConfig, ImageProcessor
from tests import tiny
from tests.datasets.tools import folder_set, stream, take, write_folder
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
@pytest.mark.parametrize("place", ["worker", "device"])
def test_a_run_with_workers_takes_nothing_from_dev_shm(tmp_path, place):
    tree = tiny.make_config(tmp_path, max_steps=6, num_workers=2)
    for name in ("image", "audio"):
        tree["processors"][name]["preprocess_on"] = place
    run = Run(tmp_path / "run", ["--cfg-path", str(tiny.write_yaml(tmp_path, tree))], before=nothing_in_dev_shm)
    assert run.wait() == [0], run.text()


@pytest.mark.parametrize("memfd", [pytest.param(True, marks=needs_memfd), False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_a_shared_copy_is_the_same_tensor(monkeypatch, memfd, dtype):
    if not memfd:
        monkeypatch.setattr(shared_memory, "_memfd", lambda: None)
    whole = torch.arange(120).view(2, 3, 20).to(dtype)
    for tensor in (whole, whole[1:], whole.transpose(0, 2), whole[0, 0, 0]):
        copy = shared_copy(tensor)
        assert copy.is_shared() and copy.dtype == dtype and torch.equal(copy, tensor)
        assert torch.equal(pickle.loads(bytes(ForkingPickler.dumps(copy))), tensor)


def test_without_memfd_a_full_dev_shm_is_told_of_before_it_is_written(monkeypatch):
    monkeypatch.setattr(shared_memory, "_memfd", lambda: None)
    monkeypatch.setattr(shared_memory, "free_in_dev_shm", lambda: 64)
    with pytest.raises(OSError, match=r"/dev/shm has 64 bytes free and a batch takes 100; .*--shm-size"):
        shared_copy(torch.zeros(100, dtype=torch.uint8))
    assert free_for_batches() == (64, "/dev/shm")
    monkeypatch.setattr(shared_memory, "free_in_dev_shm", lambda: None)
    assert shared_copy(torch.ones(100, dtype=torch.uint8)).tolist() == [1] * 100


def test_numbers_of_a_batch_travel_by_value(tmp_path):
    write_folder(tmp_path, 8)
    (batch,) = take(stream([folder_set(tmp_path, pack=64)], 1), 1)
    arrived = pickle.loads(bytes(ForkingPickler.dumps(batch)))
    for name in ("input_ids_BL", "attention_mask_BL", "labels_BL", "slots_BL", "position_ids_BL", "samples_BL"):
        mine, theirs = getattr(batch, name), getattr(arrived, name)
        assert torch.equal(mine, theirs) and not theirs.is_shared()
        theirs.add_(1)  # writable, and nobody else's
        assert not torch.equal(mine, theirs)
    assert (arrived.ids, arrived.sources, arrived.dataset) == (batch.ids, batch.sources, batch.dataset)
    assert torch.equal(arrived.media["image"], batch.media["image"])


def raw_set(folder):
    dataset = folder_set(folder)
    dataset.processors["image"] = dataset.media.processors["image"] = ImageProcessor(
        ImageConfig(image_size=8, preprocess_on="device")
    )
    return dataset


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts what is open and mapped, in /proc")
def test_what_a_batch_was_in_is_given_back_and_no_sooner(tmp_path):
    """Three batches are held at any time and stay what they were; files and maps of those that are gone, too.

    How many more are on their way from two workers, two each, depends on who is faster: up to four files and maps.
    """
    write_folder(tmp_path, 30)
    expected = [batch.media["image"].finished() for batch in take(stream([raw_set(tmp_path)], 80), 80)]
    batches, held, used = stream([raw_set(tmp_path)], 80, workers=2), [], []
    for number in range(80):
        held = [*held[-2:], next(batches).media["image"]]
        assert held[-1].pixels.is_shared() and held[-1].pixels.dtype == torch.uint8
        for back, media in enumerate(reversed(held)):
            assert torch.equal(media.finished(), expected[number - back])
        maps = sum("memfd:chatbridge" in line for line in Path("/proc/self/maps").read_text().splitlines())
        used.append(maps + len(os.listdir("/proc/self/fd")))
    assert max(used[20:]) <= max(used[:20]) + 2 * 4


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_a_worker_that_is_killed_is_one_line(tmp_path, number):
    tree = tiny.make_config(tmp_path, max_steps=40, num_workers=1)

    def before(_: int) -> None:
        read = reading.MixtureReader.__getitem__
        reading.MixtureReader.__getitem__ = lambda self, plan: (
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
    assert tiny.run(tmp_path, tree) == 1
    said = capsys.readouterr().err
    assert "run.num_workers: 1 workers cannot be started, /dev/shm is full" in said and "Traceback" not in said


@pytest.fixture
def config(tmp_path):
    tree = tiny.make_config(tmp_path, num_workers=3)
    return load_config(tiny.write_yaml(tmp_path, tree)).config


def test_what_workers_need_is_held_against_what_there_is(config, monkeypatch):
    sizes = {"images": 10**6, "sounds": 10**5}  # batches of 4, 4 at a time, 3 workers
    monkeypatch.setattr(shared_memory, "free_for_batches", lambda: (10**8, "memory"))
    assert worker_notes(config, sizes, 1, 0) == [
        "3 workers hold up to 0.05 GB of batches in memory, of which 0.10 GB are free"
    ]
    monkeypatch.setattr(shared_memory, "free_for_batches", lambda: (64 * 2**20, "/dev/shm"))
    (note,) = worker_notes(config, {"images": 2 * 10**6}, 1, 0)
    assert note.startswith("warning: 3 workers hold up to 0.10 GB of batches in /dev/shm") and "--shm-size" in note
    assert worker_notes(config, {"images": 2 * 10**6}, 2, 1)[0].startswith("3 workers hold up to 0.05 GB")
    assert worker_notes(config, {}, 1, 0) == []


def test_gpus_that_talk_through_dev_shm(config, monkeypatch):
    monkeypatch.setattr(shared_memory, "free_in_dev_shm", lambda: 64 * 10**6)
    (note,) = worker_notes(config, {}, 8, 8)
    assert note.startswith("warning: the GPUs talk through /dev/shm, of which only 0.06 GB are free; ")
    assert worker_notes(config, {}, 1, 1) == []


def test_check_and_plan_say_it(tmp_path, monkeypatch, capsys):
    file = str(tiny.write_yaml(tmp_path, tiny.make_config(tmp_path, num_workers=2)))
    monkeypatch.setattr(shared_memory, "free_for_batches", lambda: (1, "/dev/shm"))
    assert train.main(["--cfg-path", file, "--check"]) == 0
    assert "warning: 2 workers hold up to" in capsys.readouterr().out
    assert train.main(["--cfg-path", file, "--plan", "--gpus", "1"]) == 0
    assert "warning: 2 workers hold up to" in capsys.readouterr().out
