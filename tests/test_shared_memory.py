"""Memory of batches that workers use again: never while somebody looks at it."""

from __future__ import annotations

import os
import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch

from chatbridge.common.batch import MultimodalBatch
from chatbridge.common.shared import Lease, SlabPool, batch_memory
from chatbridge.processors.image import ImageConfig, ImageProcessor
from tests.reading_tools import folder_set, stream, take, write_folder


def sent(lease: Lease) -> Lease:
    """The lease as the process has it that a batch was sent to."""
    return pickle.loads(bytes(ForkingPickler.dumps(lease)))


def test_a_slab_is_free_when_its_receiver_has_done_with_it():
    pool = SlabPool(most=2)
    first, lease = pool.borrow(1000)
    there = sent(lease)
    del lease  # the worker forgets it as soon as it is sent
    second, other = pool.borrow(1000)
    assert first.data_ptr() != second.data_ptr()
    there_too = sent(other)
    assert pool.borrow(10) is None, "both are in use"
    del there
    again, lease = pool.borrow(900)
    assert again.data_ptr() == first.data_ptr() and len(again) == 900
    assert pool.borrow(10) is None and there_too.flag[0]


def test_slabs_grow():
    pool = SlabPool(most=2)
    for size in (100, 200):
        sent(pool.borrow(size)[1])
    small, large = pool.borrow(50)[0], pool.borrow(150)[0]
    assert small.untyped_storage().nbytes() == 101 and large.untyped_storage().nbytes() == 201
    pool = SlabPool(most=2)
    for _ in range(2):
        sent(pool.borrow(100)[1])
    data, _ = pool.borrow(5000)
    assert len(data) == 5000 and len(pool._slabs) == 2, "in place of one that is too small"


def test_a_forked_copy_of_a_lease_ends_nothing():
    _, lease = SlabPool().borrow(10)
    there = sent(lease)
    child = os.fork()
    if child == 0:
        there.__del__()
        os._exit(0)
    os.waitpid(child, 0)
    assert there.flag[0]


def test_outside_of_workers_memory_is_plain():
    memory, lease = batch_memory((2, 3), torch.int16)
    assert memory.shape == (2, 3) and not memory.is_shared() and lease is None


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
    for _ in range(40):
        pixels = next(batches).media["image"].pixels
        places.add(_inode(pixels))
    del batches
    assert len(places) <= 5


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
