"""JPEGs: the quick decoder against Pillow, decoding at a fraction of the size, and whether a file has its end."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from chatbridge.common.read_mode import Training
from chatbridge.processors import Blob, ImageConfig, ImageProcessor, MediaError, picture_files
from chatbridge.processors.picture_files import decode_plain, has_end, jpeg_header, read_rgb

LIMIT = 10**8


def pixels(height: int = 37, width: int = 50, seed: int = 0) -> np.ndarray:
    """Smooth areas, edges and grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)


def jpeg(array: np.ndarray, mode: str = "RGB", **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).convert(mode).save(out, "JPEG", **{"quality": 85} | options)
    return out.getvalue()


def with_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"comment": b"hello"}])
def test_the_quick_decoder_gives_pillow_s_numbers(mode, subsampling, options):
    for height, width in ((1, 1), (7, 9), (16, 16), (37, 50), (130, 61)):
        data = jpeg(pixels(height, width), mode, subsampling=subsampling, **options)
        header = jpeg_header(data)
        assert (header.height, header.width, header.components) == (height, width, {"RGB": 3, "L": 1}[mode])
        assert np.array_equal(decode_plain(data), with_pillow(data))
        assert np.array_equal(read_rgb(Blob("a.jpg", data), LIMIT), with_pillow(data))


def test_which_files_go_the_quick_way(monkeypatch, tmp_path):
    """Those where no tag says how the camera was held; a rotated one is still turned, one for print converted."""
    taken = []
    monkeypatch.setattr(picture_files, "decode_plain", lambda data: taken.append(len(data)) or decode_plain(data))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = jpeg(pixels(), exif=exif)
    assert np.array_equal(read_rgb(Blob("a.jpg", turned), LIMIT), np.rot90(with_pillow(turned), -1)) and not taken
    assert read_rgb(Blob("a.jpg", jpeg(pixels(), "CMYK")), LIMIT).shape == (37, 50, 3) and not taken
    assert (
        np.array_equal(read_rgb(Blob("a.jpg", turned), LIMIT, as_stored=True), with_pillow(turned)) and len(taken) == 1
    )
    (tmp_path / "wrong.png").write_bytes(jpeg(pixels()))
    assert np.array_equal(read_rgb(tmp_path / "wrong.png", LIMIT), with_pillow(jpeg(pixels()))) and len(taken) == 2


def test_a_file_that_the_quick_decoder_refuses_is_pillow_s(monkeypatch):
    monkeypatch.setattr(picture_files, "decode_plain", lambda data: None)
    assert np.array_equal(read_rgb(Blob("a.jpg", jpeg(pixels())), LIMIT), with_pillow(jpeg(pixels())))


def test_too_many_pixels_are_refused_undecoded(monkeypatch):
    monkeypatch.setattr(picture_files, "decode_plain", lambda data: pytest.fail("decoded"))
    with pytest.raises(MediaError, match=r"a\.jpg: has 50 x 37 pixels, more than max_pixels = 1000 allows"):
        read_rgb(Blob("a.jpg", jpeg(pixels())), 1000)


def test_damage_is_told_as_pillow_tells_it():
    """Whatever is wrong with a file: what is read is what Pillow reads, what Pillow refuses is refused."""
    rng, refused = np.random.default_rng(0), 0
    for number in range(120):
        data = bytearray(jpeg(pixels(seed=number), progressive=bool(number % 2)))
        if number % 3 == 0:
            data = data[: int(len(data) * rng.random())]
        for at in rng.integers(20, max(21, len(data)), 3):
            data[at : at + 1] = bytes([rng.integers(256)])
        blob = Blob("a.jpg", bytes(data) or b"\xff")
        try:
            expected = with_pillow(blob.data)
        except Exception:
            refused += 1
            with pytest.raises(MediaError, match=r"^a\.jpg: "):
                read_rgb(blob, LIMIT, as_stored=True)
            continue
        assert np.array_equal(read_rgb(blob, LIMIT, as_stored=True), expected)
    assert 20 < refused < 100


@pytest.mark.parametrize("gap, decoded", [(None, (400, 600)), (1.0, (100, 150)), (2.0, (200, 300)), (5.0, (400, 600))])
def test_large_pictures_are_decoded_at_a_fraction(monkeypatch, gap, decoded):
    """Never below gap x 100 pixels a side, and never in evaluation."""
    data, seen = jpeg(pixels(400, 600)), []
    ours = ImageProcessor(ImageConfig(image_size=100, reducing_gap=gap))
    fit = ours.transform._fit
    monkeypatch.setattr(ours.transform, "_fit", lambda frame, *rest: seen.append(frame.shape[:2]) or fit(frame, *rest))
    training, evaluation = ours.load(Blob("a.jpg", data), Training(random.Random(0))), ours.load(Blob("a.jpg", data))
    assert seen == [decoded, (400, 600)]
    whole = ImageProcessor(ImageConfig(image_size=100))
    assert torch.equal(evaluation, whole.load(Blob("a.jpg", data)))
    distance = (training - whole.load(Blob("a.jpg", data), Training(random.Random(0)))).abs().mean()
    assert distance == 0 if decoded == (400, 600) else 0 < distance < 0.1


def test_ends():
    whole = jpeg(pixels())
    thumbnail = Image.Exif()
    thumbnail[0x010E] = "an end mark in the description: \xff\xd9"
    described = jpeg(pixels(), exif=thumbnail.tobytes() + jpeg(pixels(8, 8)))
    for data in (whole, described, jpeg(pixels(), progressive=True)):
        header = jpeg_header(data)
        assert has_end(data, header) and has_end(data + b"trailer", header)
        for share in (0.3, 0.6, 0.99):
            short = data[: header.size + int((len(data) - header.size) * share)]
            assert not has_end(short, header)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(50)])
def test_no_header(data):
    assert jpeg_header(data) is None
