"""Media that are put to their places in the memory of their batch as they are read: what a batch holds is the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chatbridge.common.raw import stack_media
from chatbridge.common.shared import Rows, SlabPool, side_by_side
from chatbridge.datasets.builder import TaskDataset
from chatbridge.datasets.local_shards import LocalShards
from chatbridge.datasets.sharded import ShardDataset
from chatbridge.processors.audio import AudioConfig, AudioProcessor
from chatbridge.processors.image import ImageConfig, ImageProcessor
from chatbridge.processors.pixels import RawPixels
from tests.reading_tools import folder_set, picture, shards, stream, take, write_folder, write_shards


def pixels(number: int, side: int = 4) -> RawPixels:
    values = torch.arange(side * side * 3, dtype=torch.uint8).view(1, 1, side, side, 3) + number
    return RawPixels(values, (0.0,) * 3, (1.0,) * 3)


def sounds(lengths: list[int], dtype=np.int16, clips: int = 1):
    processor, rng = AudioProcessor(AudioConfig(frames_per_clip=50, clips=clips)), np.random.default_rng(0)
    waves = [torch.from_numpy(rng.integers(-9000, 9000, (1, length)).astype(dtype)) for length in lengths]
    return [processor.raw(wave if dtype == np.int16 else wave / 2**15, 16000) for wave in waves]


def moved(media: list, rows: Rows) -> list:
    return [medium.moved("it", rows) for medium in media]


def test_media_at_their_places_are_the_batch():
    media = [pixels(number) for number in range(5)]
    batch = stack_media(placed := moved(media, Rows({"it": 5})))
    assert torch.equal(batch.pixels, torch.cat([medium.pixels for medium in media]))
    assert batch.pixels.data_ptr() == placed[0].pixels.data_ptr() == batch.lease.memory.data_ptr()
    assert batch.lease is placed[0].lease and all(medium.lease is None for medium in media)


@pytest.mark.parametrize(
    ("media", "count"),
    [
        ([pixels(n) for n in range(6)], 4),  # more than announced
        ([pixels(n) for n in range(3)], 5),  # fewer
        ([pixels(n) for n in range(3)], 0),  # not announced
    ],
)
def test_whatever_was_announced_the_batch_is_whole(media, count):
    batch = stack_media(moved(media, Rows({"it": count, "other": 2})))
    assert torch.equal(batch.pixels, torch.cat([medium.pixels for medium in media]))


def test_another_order_is_copied():
    media = [pixels(number) for number in range(4)]
    placed = moved(media, Rows({"it": 4}))
    batch = stack_media(placed[::-1])
    assert torch.equal(batch.pixels, torch.cat([medium.pixels for medium in media[::-1]]))
    assert batch.lease is not placed[0].lease
    assert stack_media(placed[1:]).pixels.shape == (3, 1, 4, 4, 3)


def test_media_of_other_shapes_find_no_place():
    rows = Rows({"it": 3})
    first, larger, smaller = moved([pixels(0), pixels(1, 5), pixels(2, 3)], rows)
    assert first.lease is not None and larger.lease is None and smaller.lease is None


@pytest.mark.parametrize("lengths", [[8000, 3000, 8000], [3000, 8000, 8000], [5000, 5000], [100, 9000]])
@pytest.mark.parametrize("clips", [1, 2])
def test_sounds_of_any_lengths(lengths, clips):
    media = sounds(lengths, clips=clips)
    for trial in range(2):  # in the second, on memory that other sounds were in
        batch = stack_media(moved(media, Rows({"it": len(media)})))
        expected = stack_media(media)
        assert torch.equal(batch.samples, expected.samples) and batch.clips == expected.clips, trial
        assert torch.equal(batch.finished(), expected.finished())
        batch.samples.fill_(77)


def test_sounds_of_two_types():
    media = [*sounds([8000]), *sounds([8000], np.float32), *sounds([4000])]
    batch = stack_media(moved(media, Rows({"it": 3})))
    assert batch.samples.dtype == torch.float32 and torch.equal(batch.samples, stack_media(media).samples)


def test_memory_that_no_batch_was_made_of_is_free_again(monkeypatch):
    pool = SlabPool(most=2)
    monkeypatch.setattr("chatbridge.common.shared._own_pool", pool)
    for _ in range(5):  # as when reading fails in the middle
        placed = moved([pixels(0), pixels(1)], Rows({"it": 9}))
        assert placed[0].lease.slab is not None and len(pool._slabs) == 1
        del placed
    assert pool._slabs[0].free


def test_without_memory_to_spare_media_stay_where_they_are(monkeypatch):
    pool = SlabPool(most=1)
    monkeypatch.setattr("chatbridge.common.shared._own_pool", pool)
    held = pool.borrow(10)
    media = [pixels(0), pixels(1)]
    assert moved(media, Rows({"it": 2})) == media and held is not None


def test_rows_that_lie_elsewhere_are_not_taken_for_the_batch():
    lease = SlabPool().borrow(100)
    whole = lease.tensor(((4, 5), "uint8"))
    assert side_by_side([whole[n : n + 1] for n in range(3)], lease).data_ptr() == whole.data_ptr()
    for rows in ([1, 2], [0, 2], [1, 0], [0, 0]):
        assert side_by_side([whole[n : n + 1] for n in rows], lease) is None
    assert side_by_side([whole[0:1], torch.zeros(1, 5, dtype=torch.uint8)], lease) is None
    assert side_by_side([whole[0:1], whole[1:2, :4]], lease) is None
    assert side_by_side([whole[0:1]], None) is None


def raw(dataset):
    dataset.processors["image"] = dataset.media.processors["image"] = ImageProcessor(
        ImageConfig(image_size=8, finish="device")
    )
    return dataset


def seen(batches) -> list:
    return [(batch.ids, batch.input_ids_BL.tolist(), batch.media["image"].pixels.clone()) for batch in batches]


@pytest.mark.parametrize("keys", [{}, {"pack": 64}, {"batch_tokens": 200}], ids=["rows", "packed", "budget"])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("access", ["folder", "number", "sequence"])
def test_batches_are_the_same_as_without(tmp_path, monkeypatch, access, workers, keys):
    """Some pictures cannot be read and are replaced."""
    write_folder(tmp_path / "folder", 23)
    write_shards(tmp_path / "tars", [11, 12])
    for number in (3, 11):
        (tmp_path / "folder" / f"{number}.jpg").write_bytes(picture(number)[:50])

    def read():
        if access == "folder":
            dataset = folder_set(tmp_path / "folder", batch_size=6, **keys)
        else:
            dataset = shards(tmp_path / "tars", batch_size=6, access=access, **keys)
        return seen(take(stream([raw(dataset)], 30, workers=workers), 12))

    batches = read()
    monkeypatch.setattr(Rows, "take", lambda *_: None)
    for (ids, tokens, shown), (ids_2, tokens_2, shown_2) in zip(batches, read(), strict=True):
        assert ids == ids_2 and tokens == tokens_2 and torch.equal(shown, shown_2)


def test_the_text_of_a_batch_is_written_before_its_first_medium_is_read(tmp_path, monkeypatch):
    write_folder(tmp_path, 12)
    told = []
    for name in ("begin", "finish"):
        own = getattr(TaskDataset, name)
        monkeypatch.setattr(TaskDataset, name, lambda *a, own=own, name=name: told.append(name) or own(*a))
    take(stream([raw(folder_set(tmp_path))], 5), 2)
    assert told == (["begin"] * 4 + ["finish"] * 4) * 2


def test_media_of_tars_are_read_when_their_turn_comes_and_once(tmp_path, monkeypatch):
    write_shards(tmp_path, [11, 12])
    dataset, told = raw(shards(tmp_path, batch_size=6)), []
    for name in ("entry", "bytes_at"):
        own = getattr(LocalShards, name)
        monkeypatch.setattr(LocalShards, name, lambda *a, own=own, name=name: told.append(name) or own(*a))
    assert isinstance(dataset, ShardDataset) and len(take(stream([dataset], 5), 3)) == 3
    assert told == (["entry"] * 6 + ["bytes_at"] * 6) * 3


def test_the_loader_copies_no_medium_twice(tmp_path, monkeypatch):
    write_folder(tmp_path, 12)
    monkeypatch.setattr(torch, "stack", lambda *_, **__: pytest.fail("the batch was copied together"))
    for batch in take(stream([raw(folder_set(tmp_path))], 5), 3):
        assert batch.media["image"].pixels.shape == (4, 1, 8, 8, 3)
