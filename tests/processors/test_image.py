"""Pictures of every kind that data sets hold, and the broken ones."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image

from chatbridge.common.read_mode import EVALUATION, Training
from chatbridge.common.registry import PROCESSORS
from chatbridge.processors.base import Blob, MediaError, Processor
from chatbridge.processors.image import ImageConfig, ImageProcessor
from tests.media_files import cut
from tests.variants import built


def processor(**keys) -> ImageProcessor:
    """Without normalisation, so that pixels come out as values in 0..255."""
    defaults = {"image_size": 16, "mean": [0.0] * 3, "std": [1 / 255] * 3}
    return built(PROCESSORS, "image", **(defaults | keys))


def colour(tensor: torch.Tensor) -> list[int]:
    return tensor[0].mean((1, 2)).round().int().tolist()


@pytest.fixture
def noise(tmp_path):
    path = tmp_path / "noise.jpg"
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_shape_and_normalisation(noise):
    ours = ImageProcessor(ImageConfig(image_size=28))
    assert isinstance(ours, Processor)
    loaded = ours.load(noise)
    assert loaded.shape == ours.shape == (1, 3, 28, 28) and loaded.dtype == torch.float32
    plain = processor(image_size=28).load(noise) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (ours.config.mean, ours.config.std))
    torch.testing.assert_close(loaded, (plain - mean) / std)


def test_blank_is_black_through_the_pipeline():
    assert colour(processor().blank()) == [0, 0, 0]
    ours = ImageProcessor(ImageConfig(image_size=8))
    black = -torch.tensor(ours.config.mean) / torch.tensor(ours.config.std)
    torch.testing.assert_close(ours.blank(), black.view(1, 3, 1, 1).expand(ours.shape))


def test_bytes_equal_file(noise):
    assert torch.equal(processor().load(Blob("x.jpg", noise.read_bytes())), processor().load(noise))
    assert torch.equal(processor().load(str(noise)), processor().load(noise))


def test_training_differs_from_evaluation_only_by_its_resampling(noise):
    same = processor(train_resize="bicubic")
    assert torch.equal(same.load(noise, Training(random.Random(0))), same.load(noise))
    assert not torch.equal(processor().load(noise, Training(random.Random(0))), processor().load(noise))


def test_camera_rotation(tmp_path):
    """Tag 6: the camera was held upright; red was at the sensor's left and belongs on top."""
    picture = Image.new("RGB", (32, 16), (0, 0, 255))
    picture.paste((255, 0, 0), (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    upright = processor().load(tmp_path / "a.png")[0]
    assert upright[0, 0, 8] > 250 > 5 > upright[0, 15, 8]
    ignored = processor(compat="original").load(tmp_path / "a.png")[0]
    assert ignored[0, 8, 0] > 250 > 5 > ignored[0, 8, 15]


@pytest.mark.parametrize("mode, value, expected", [("L", 128, 128), ("1", 1, 255), ("I;16", 128 * 257, 128)])
def test_grey(tmp_path, mode, value, expected):
    Image.new(mode, (8, 8), value).save(tmp_path / "a.png")
    assert colour(processor().load(tmp_path / "a.png")) == [expected] * 3


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    red, green, blue = colour(processor().load(tmp_path / "a.jpg"))
    assert red > 245 and green < 10 and blue < 10


def test_transparency_is_laid_on_white(tmp_path):
    """What a transparent pixel's colour happens to be must not show, whether by alpha channel or by palette."""
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(tmp_path / "a.png")
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.save(tmp_path / "clear.png", transparency=1)
    palette.save(tmp_path / "solid.png")
    assert colour(processor().load(tmp_path / "a.png")) == [255, 255, 255]
    assert colour(processor(compat="original").load(tmp_path / "a.png")) == [10, 20, 30]
    assert colour(processor().load(tmp_path / "clear.png")) == [255, 255, 255]
    assert colour(processor().load(tmp_path / "solid.png")) == [200, 0, 0]


def test_animation_gives_its_first_picture(tmp_path):
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert colour(processor().load(tmp_path / "a.gif")) == [255, 0, 0]


def test_crop_flip(noise):
    """Reproducible by seed, different between seeds, mirrored about half of the time."""
    ours = processor(transform="crop_flip", image_size=32)
    views = [ours.load(noise, Training(random.Random(seed))) for seed in range(8)]
    assert torch.equal(views[3], ours.load(noise, Training(random.Random(3))))
    assert len({view.sum().item() for view in views}) == 8
    assert all(view.shape == ours.shape for view in views)
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    flips = [ours.transform([ramp], Training(random.Random(seed)))[0, 0, 0].diff().sum() < 0 for seed in range(40)]
    assert 8 < sum(flips) < 32


def test_crop_flip_evaluation_keeps_the_ratio_and_takes_the_middle(tmp_path):
    picture = Image.new("RGB", (60, 20), (255, 0, 0))
    picture.paste((0, 255, 0), (20, 0, 40, 20))
    picture.save(tmp_path / "a.png")
    ours = processor(transform="crop_flip", image_size=10)
    red, green, _ = colour(ours.load(tmp_path / "a.png"))
    assert green > 240 and red < 15


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), (9, 9, 9)).save(tmp_path / "a.png")
    for transform in ("squash", "crop_flip"):
        for mode in (EVALUATION, Training(random.Random(0))):
            assert colour(processor(transform=transform).load(tmp_path / "a.png", mode)) == [9, 9, 9]


def test_missing(tmp_path):
    with pytest.raises(MediaError, match=r"no\.jpg: does not exist"):
        processor().load(tmp_path / "no.jpg")


def test_folder_and_empty_file(tmp_path):
    with pytest.raises(MediaError, match="is a folder"):
        processor().load(tmp_path)
    (tmp_path / "a.jpg").touch()
    with pytest.raises(MediaError, match=r"a\.jpg: is empty"):
        processor().load(tmp_path / "a.jpg")
    with pytest.raises(MediaError, match=r"b\.jpg: is empty"):
        processor().load(Blob("b.jpg", b""))


def test_text_named_jpg(tmp_path):
    (tmp_path / "a.jpg").write_text("not a picture")
    with pytest.raises(MediaError, match=r"a\.jpg: is not a picture in any format"):
        processor().load(tmp_path / "a.jpg")


def test_truncated_jpeg(noise):
    with pytest.raises(MediaError, match=r"cut_noise\.jpg: cannot be decoded \(.*truncated"):
        processor().load(cut(noise, 0.5))


def test_damaged_bytes_never_escape_as_other_errors(noise):
    """200 random injuries: each either still decodes or is a MediaError."""
    generator, refused = np.random.default_rng(1), 0
    for _ in range(200):
        data = bytearray(noise.read_bytes())
        for at in generator.integers(0, len(data), 20):
            data[at] = generator.integers(0, 256)
        try:
            assert processor().load(Blob("hurt.jpg", bytes(data))).shape == (1, 3, 16, 16)
        except MediaError as error:
            refused += 1
            assert str(error).startswith("hurt.jpg: ")
    assert refused > 0


def test_decompression_bomb(tmp_path):
    Image.new("1", (2000, 2000)).save(tmp_path / "bomb.png")
    with pytest.raises(MediaError, match=r"2000 x 2000 pixels, more than max_pixels = 1000000"):
        processor(max_pixels=1_000_000).load(tmp_path / "bomb.png")


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(MediaError("a.jpg", "is empty")))
    assert (error.source, error.reason, str(error)) == ("a.jpg", "is empty", "a.jpg: is empty")
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("keys", [{"std": [1.0, 1.0]}, {"std": [0.0, 1.0, 1.0]}, {"mean": [0.0]}])
def test_wrong_statistics(keys):
    with pytest.raises(ValueError, match="mean and std need three values"):
        processor(**keys)
