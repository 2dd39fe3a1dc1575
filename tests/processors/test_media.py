"""Finding and loading the media that a record refers to."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from PIL import Image

from chatbridge.common.read_mode import Training
from chatbridge.common.registry import PROCESSORS
from chatbridge.common.schema import bind
from chatbridge.processors.audio import AudioConfig, AudioProcessor
from chatbridge.processors.base import MediaError
from chatbridge.processors.image import ImageConfig, ImageProcessor
from chatbridge.processors.media_loader import MediaLoader
from chatbridge.processors.video import VideoConfig, VideoProcessor
from tests.media_files import tone, write_video, write_wav


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "root"
    for name in ("images/deep", "videos", "sounds"):
        (root / name).mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (8, 8), (80 * i, 0, 0)).save(root / f"images/{i}.png")
    Image.new("RGB", (8, 8)).save(root / "images/deep/shot.JPG")
    write_video(root / "videos/clip7.mp4", [0] * 4, sound=tone(0.5))
    write_wav(root / "sounds/clip7.wav", tone(0.5))
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    return root


@pytest.fixture
def loader(folder):
    return make(folder)


def make(folder, **keys) -> MediaLoader:
    processors = {
        "image": ImageProcessor(ImageConfig(image_size=8)),
        "video": VideoProcessor(VideoConfig(image_size=8)),
        "audio": AudioProcessor(AudioConfig(frames_per_clip=64)),
    }
    roots = {"image": folder / "images", "video": str(folder / "videos"), "audio": folder / "sounds"}
    return MediaLoader(processors, roots, **keys)


def test_media_of_every_modality(loader):
    dark, light = (loader.load("image", name) for name in ("0.png", "2.png"))
    assert dark.shape == light.shape == (1, 3, 8, 8) and dark.mean() < light.mean()
    assert loader.load("video", "clip7.mp4").shape == (4, 3, 8, 8)
    assert loader.load("audio", "clip7.wav").shape == (1, 64, 64)


@pytest.mark.parametrize(
    "modality, name, file",
    [
        ("image", "1", "images/1.png"),
        ("image", "deep/shot", "images/deep/shot.JPG"),
        ("image", "./1.png", "images/1.png"),
        ("audio", "clip7", "sounds/clip7.wav"),
        ("audio", "clip7.mp4", "sounds/clip7.wav"),
        ("video", "clip7.wav", "videos/clip7.mp4"),
    ],
)
def test_endings_are_found(loader, folder, modality, name, file):
    assert loader.find(modality, name).samefile(folder / file)


def test_a_dot_in_a_name_is_not_an_ending(loader, folder):
    (folder / "images/0.5").touch()
    with pytest.raises(MediaError, match=r"0\.7: no such image"):
        loader.find("image", "0.7")


@pytest.mark.parametrize(
    "name",
    ["../../secret.png", "deep/../../../secret.png", "/etc/hostname", "..", "", "a\0b", "..\\x.png", "C:\\x.png"],
)
def test_references_stay_in_their_folder(loader, name):
    with pytest.raises(MediaError, match="is not a file name below its media folder"):
        loader.load("image", name)


def test_missing_file_says_where_it_was_looked_for(loader, folder):
    with pytest.raises(MediaError) as caught:
        loader.load("image", "none.png")
    message = str(caught.value)
    assert message.startswith("none.png: no such image in") and str(folder / "images") in message and ".jpeg" in message


def test_unknown_modality(loader, folder):
    with pytest.raises(ValueError, match=r"no processor is given for modality 'smell' \(given: audio, image, video\)"):
        loader.load("smell", "x")
    with pytest.raises(ValueError, match="media folders are given for smell, but processors only for"):
        MediaLoader(loader.processors, {"smell": folder})
    rootless = MediaLoader(loader.processors, {"image": folder})
    with pytest.raises(ValueError, match="no media folder is given for 'audio'"):
        rootless.load("audio", "clip7.wav")


def test_cache_holds_evaluation_tensors_only(folder):
    loader = make(folder, cache_bytes=1 << 20)
    first = loader.load("image", "1.png")
    (folder / "images/1.png").unlink()
    assert loader.load("image", "1.png") is first
    with pytest.raises(MediaError):
        loader.load("image", "1.png", Training(random.Random(0)))


def test_cache_forgets_the_least_recently_used(folder):
    one = 3 * 8 * 8 * 4
    loader = make(folder, cache_bytes=2 * one)
    zero, _ = loader.load("image", "0.png"), loader.load("image", "1.png")
    assert loader.load("image", "0.png") is zero
    loader.load("image", "2.png")
    for name in ("0.png", "1.png"):
        (folder / "images" / name).unlink()
    assert loader.load("image", "0.png") is zero
    with pytest.raises(MediaError):
        loader.load("image", "1.png")


def test_what_is_larger_than_the_cache_is_loaded_anyway(folder):
    loader = make(folder, cache_bytes=10)
    assert torch.equal(loader.load("image", "0.png"), loader.load("image", "0.png"))
    assert not loader._cache


def test_blank(loader):
    assert loader.blank("audio").shape == (1, 64, 64)


def test_a_processor_from_outside(folder):
    """Any object with the protocol's members serves a modality of any name."""

    class Thermal:
        modality, extensions, shape = "thermal", (".heat",), (1, 2)

        def load(self, source, mode=None):
            return torch.tensor([[float(v) for v in source.read_text().split()]])

        def blank(self):
            return torch.zeros(self.shape)

    (folder / "scene.heat").write_text("36.6 37.1")
    loader = MediaLoader({"thermal": Thermal()}, {"thermal": folder})
    assert loader.load("thermal", "scene").tolist() == [[pytest.approx(36.6), pytest.approx(37.1)]]


@pytest.mark.parametrize("name", ["image", "video", "audio"])
def test_processors_are_registered_with_typed_keys(name):
    config = bind(PROCESSORS.get(name).config, {}, name)
    assert PROCESSORS.name_of(config) == name and PROCESSORS.build(config).modality == name
    assert all(field.metadata["help"] for field in dataclasses.fields(config))
