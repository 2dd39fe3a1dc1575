"""Memory of batches that workers use again: never while somebody looks at it."""

from __future__ import annotations

import ctypes
import os
import pickle
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch

from chatbridge.common import shared
from chatbridge.common.batch import MultimodalBatch
from chatbridge.common.shared import Lease, SlabPool, batch_memory, packed, unpacked
from chatbridge.processors.image import ImageConfig, ImageProcessor
from tests.reading_tools import folder_set, stream, take, write_folder


def sent(lease: Lease) -> Lease:
    """The lease as the process has it that a batch was sent to."""
    return pickle.loads(bytes(ForkingPickler.dumps(lease)))


def test_a_slab_is_free_when_its_receiver_has_done_with_it():
    pool = SlabPool(most=2)
    lease = pool.borrow(1000)
    first, there = lease.memory.data_ptr(), sent(lease)
    del lease  # the worker forgets it as soon as it is sent
    other = pool.borrow(1000)
    assert other.memory.data_ptr() != first
    there_too = sent(other)
    assert pool.borrow(10) is None, "both are in use"
    del there
    again = pool.borrow(900)
    assert again.memory.data_ptr() == first
    assert pool.borrow(10) is None and there_too.memory[-1]


def test_slabs_grow():
    pool = SlabPool(most=2)
    for size in (100, 200):
        sent(pool.borrow(size))
    assert [len(pool.borrow(size).memory) for size in (50, 150)] == [101, 201]
    pool = SlabPool(most=2)
    for _ in range(2):
        sent(pool.borrow(100))
    large = pool.borrow(5000)
    assert len(large.memory) == 5001 and len(pool._slabs) == 2, "in place of one that is too small"
    large.memory[:3] = 7
    assert sent(large).tensor(((3,), "uint8")).tolist() == [7, 7, 7]


def test_a_large_slab_is_left_to_large_batches_while_there_may_be_more():
    pool = SlabPool(most=2)
    sent(pool.borrow(1000))
    assert [len(sent(pool.borrow(size)).memory) for size in (100, 600, 60, 20)] == [101, 1001, 101, 101]


def test_a_slab_is_handed_over_once():
    pool, mapped = SlabPool(most=1), shared._mapped
    mapped.clear()
    for number in range(3):
        lease = pool.borrow(4000)
        lease.memory[0] = number
        data = bytes(ForkingPickler.dumps(lease))
        there = pickle.loads(data)
        assert there.tensor(((1,), "uint8")).tolist() == [number]
        assert there.memory is next(iter(mapped.values()))[0] and len(mapped) == 1
        del lease, there
    kept = sent(pool.borrow(4000))
    shared.forget([os.getpid() + 1])
    assert len(mapped) == 1
    shared.forget([os.getpid()])
    assert mapped == {} and kept.memory[-1] == 1


def test_only_what_fills_the_slab_from_its_start_is_sent_without_its_numbers():
    lease = SlabPool().borrow(100)
    whole = lease.tensor(((10, 5), "int16"))
    whole.copy_(torch.arange(50).view(10, 5))
    for part in (whole, whole[:4], whole[3:], whole.T, whole + 1):
        there, lent = packed(part, lease)
        assert torch.equal(unpacked(there, sent(lent)), part)
    assert not isinstance(packed(whole, lease)[0], torch.Tensor)
    assert isinstance(packed(whole[3:], lease)[0], torch.Tensor)


def test_a_process_uses_its_own_memory_again_and_lends_it_to_nobody(tmp_path):
    write_folder(tmp_path, 30)
    batches, places = stream([raw_set(tmp_path)], 60), set()
    expected = [b.media["image"].finished() for b in take(stream([raw_set(tmp_path)], 60), 40)]
    held = []
    for number in range(40):
        held.append(next(batches).media["image"])
        places.add(held[-1].pixels.data_ptr())
        assert not held[-1].pixels.is_shared()
        copy = pickle.loads(bytes(ForkingPickler.dumps(held[-1])))
        assert copy.lease is None and copy.pixels.data_ptr() != held[-1].pixels.data_ptr()
        del copy
        assert all(torch.equal(one.finished(), expected[number - n]) for n, one in enumerate(reversed(held)))
        held = held[-2:]
    assert len(places) <= 4


def test_a_forked_copy_of_a_lease_ends_nothing():
    there = sent(SlabPool().borrow(10))
    child = os.fork()
    if child == 0:
        there.__del__()
        os._exit(0)
    os.waitpid(child, 0)
    assert there.memory[-1]


def test_outside_of_workers_memory_is_not_shared():
    memory, lease = batch_memory((2, 3), torch.int16)
    assert memory.shape == (2, 3) and not memory.is_shared() and lease.slab is None


def raw_set(folder, **keys):
    dataset = folder_set(folder, **keys)
    dataset.processors["image"] = dataset.media.processors["image"] = ImageProcessor(
        ImageConfig(image_size=8, finish="device")
    )
    return dataset


def test_batches_that_are_kept_do_not_change(tmp_path):
    """Three batches are held at any time, more than a worker has slabs for are read, and all are as they should be."""
    write_folder(tmp_path, 30)
    expected = [b.media["image"].finished() for b in take(stream([raw_set(tmp_path)], 40), 24)]
    batches, held = stream([raw_set(tmp_path)], 40, workers=2), []
    for number in range(24):
        held.append(next(batches))
        held[-1].media["image"] = held[-1].media["image"].to("cpu")  # another object, the same memory
        assert held[-1].media["image"].pixels.is_shared()
        for back, batch in enumerate(reversed(held)):
            assert torch.equal(batch.media["image"].finished(), expected[number - back])
        held = held[-3:]
    del batches, held


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at what is mapped where, in /proc")
def test_slabs_are_used_again(tmp_path):
    write_folder(tmp_path, 30)
    batches, places = stream([raw_set(tmp_path)], 60, workers=1), set()
    before, mapped = len(shared._mapped), set()
    for _ in range(40):
        pixels = next(batches).media["image"].pixels
        places.add(_inode(pixels))
        mapped.add(pixels.data_ptr())
    assert len(places) <= 5 and len(mapped) <= 5 and len(shared._mapped) > before
    del batches
    assert len(shared._mapped) == before


def _inode(tensor: torch.Tensor) -> int:
    """Which file of shared memory a tensor is in."""
    with open("/proc/self/maps") as lines:
        for line in lines:
            span, _, _, _, inode, *_ = line.split()
            first, last = (int(end, 16) for end in span.split("-"))
            if first <= tensor.data_ptr() < last:
                return int(inode)
    raise AssertionError("not mapped")


def test_numbers_of_a_batch_travel_by_value(tmp_path):
    write_folder(tmp_path, 8)
    (batch,) = take(stream([folder_set(tmp_path, pack=64)], 1), 1)
    arrived = pickle.loads(bytes(ForkingPickler.dumps(batch)))
    assert isinstance(arrived, MultimodalBatch) and not arrived.input_ids_BL.is_shared()
    for name in ("input_ids_BL", "attention_mask_BL", "labels_BL", "slots_BL", "position_ids_BL", "samples_BL"):
        mine, theirs = getattr(batch, name), getattr(arrived, name)
        assert torch.equal(mine, theirs)
        theirs.add_(1)  # writable, and nobody else's
        assert not torch.equal(mine, theirs)
    assert (arrived.ids, arrived.sources, arrived.dataset) == (batch.ids, batch.sources, batch.dataset)
    assert torch.equal(arrived.media["image"], batch.media["image"])


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library is not glibc")
def test_freed_memory_is_kept_for_what_comes_next():
    """Pages that the system has to hand out anew, in 20 rounds of 8 MB: in the first one only, or in each."""
    program = (
        "import resource, sys; import numpy as np; from chatbridge.common.shared import keep_freed\n"
        "if sys.argv[1] == 'kept': keep_freed()\n"
        "for round in range(20):\n"
        "    if round == 2: before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    media = [np.ones(200_000, np.uint8) for _ in range(40)]\n"
        "    del media\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    pages = {}
    for how in ("kept", "given back"):
        done = subprocess.run([sys.executable, "-c", program, how], capture_output=True, text=True, check=True)
        pages[how] = int(done.stdout)
    assert pages["kept"] < 1000 and pages["given back"] > 5 * pages["kept"]
