"""Sound tracks and frames out of videos, and tar shards out of annotation files."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import soundfile
import webdataset
from PIL import Image

from chatbridge.datasets.tars import scan
from chatbridge.processors import (
    AudioConfig,
    AudioProcessor,
    Blob,
    ImageConfig,
    ImageProcessor,
    VideoConfig,
    VideoProcessor,
)
from dataset_prep import extract_audio, extract_frames, shards
from tests.dataset_prep import corpora
from tests.dataset_prep.corpora import dropped, fails, manifest, run
from tests.media_files import tone, write_video


def files(folder):
    return {
        line["file" if "file" in line else "folder"]: line for line in json.loads((folder / "files.json").read_text())
    }


@pytest.fixture
def videos(tmp_path):
    source = tmp_path / "videos"
    corpora.video(source / "a.mp4", frames=10, sound=True)
    corpora.video(source / "deep" / "vidéo b.mp4", frames=3, sound=True)
    corpora.video(source / "mute.mp4", frames=2)
    corpora.varying_video(source / "varying.mp4", [0, 0.1, 0.2, 2.0, 2.1], [30, 60, 90, 150, 250])
    (source / "page.mp4").write_text("<html>")
    whole = (source / "a.mp4").read_bytes()
    (source / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (source / "notes.txt").write_text("not a video")
    write_video(source / "a.webm", [10, 20], codecs=("libvpx", "libopus"))
    return source


def test_extract_audio(tmp_path, videos):
    out = tmp_path / "audio"
    run(extract_audio, videos, "--out", out)
    found = files(out)
    assert set(found) == {"a.flac", "deep/vidéo b.flac"}
    assert dropped(out) == {
        "mute": "no sound track",
        "varying": "no sound track",
        "page": "unreadable media",
        "cut": "unreadable media",
        "a": "duplicate id",
    }
    samples, rate = soundfile.read(out / "a.flac", dtype="float32")
    assert rate == 16000 and samples.shape == (16000,) == (found["a.flac"]["samples"],)
    # The same sound as in the video, up to 16-bit rounding.
    from chatbridge.processors.sound_files import read_sound

    assert np.abs(samples - read_sound(videos / "a.mp4", 60)[0][0].numpy()).max() < 1e-4
    assert found["a.flac"]["sha256"] == hashlib.sha256((out / "a.flac").read_bytes()).hexdigest()
    assert manifest(out)["counts"] == {"read": 7, "kept": 2, "dropped": 5}
    AudioProcessor(AudioConfig(frames_per_clip=64)).load(out / "a.flac")


def test_extract_audio_as_told(tmp_path, videos):
    run(extract_audio, videos, "--out", tmp_path / "o", "--format", "wav", "--rate", "8000", "--mono")
    samples, rate = soundfile.read(tmp_path / "o" / "a.wav")
    assert rate == 8000 and samples.shape == (8000,)
    spectrum = np.abs(np.fft.rfft(samples))
    assert abs(int(spectrum.argmax()) - 440) <= 1  # Hz, of a second


def test_extract_frames_by_number(tmp_path, videos):
    out = tmp_path / "frames"
    run(extract_frames, videos, "--out", out, "--frames", "4", "--size", "40")
    found = files(out)
    assert {name: line["frames"] for name, line in found.items()} == {
        "a": 4,
        "deep/vidéo b": 3,
        "mute": 2,
        "varying": 4,
    }
    assert dropped(out)["cut"] == "unreadable media"
    pictures = [np.asarray(Image.open(path)) for path in sorted((out / "a").iterdir())]
    assert all(picture.shape == (40, 40, 3) for picture in pictures)
    reds = [picture[..., 0].mean() for picture in pictures]
    # Ten frames of red 40, 60 ... 220, in four parts of 3, 3, 2, 2: their middle ones are 1, 4, 6, 8.
    assert np.abs(np.array(reds) - [60, 120, 160, 200]).max() < 8
    VideoProcessor(VideoConfig(image_size=16)).load(out / "a")


def test_extract_frames_by_time(tmp_path, videos):
    out = tmp_path / "frames"
    run(extract_frames, videos, "--out", out, "--fps", "2")
    found = files(out)
    assert found["varying"]["frames"] == 5  # on show at 0, 0.5, 1, 1.5 and 2 seconds
    reds = [np.asarray(Image.open(p))[..., 0].mean() for p in sorted((out / "varying").iterdir())]
    assert np.abs(np.array(reds) - [30, 90, 90, 90, 150]).max() < 10
    assert found["a"]["frames"] == 4  # frames at 0, 0.2 ... 1.8 seconds


def test_extract_frames_leaves_nothing_of_an_earlier_run(tmp_path, videos):
    run(extract_frames, videos, "--out", tmp_path / "o", "--frames", "2")
    before = {path.name: path.read_bytes() for path in (tmp_path / "o" / "a").iterdir()}
    (tmp_path / "o" / ".mute.part").mkdir()
    run(extract_frames, videos, "--out", tmp_path / "o", "--frames", "4", "--overwrite")
    assert len(list((tmp_path / "o" / "a").iterdir())) == 4
    run(extract_frames, videos, "--out", tmp_path / "o", "--frames", "2", "--overwrite")
    assert {path.name: path.read_bytes() for path in (tmp_path / "o" / "a").iterdir()} == before
    assert not list((tmp_path / "o").glob(".*.part"))


def test_extraction_needs_videos(tmp_path, capsys):
    assert "is not a folder" in fails(capsys, extract_audio, tmp_path / "no", "--out", tmp_path / "o")
    (tmp_path / "empty").mkdir()
    assert "holds no files" in fails(capsys, extract_audio, tmp_path / "empty", "--out", tmp_path / "o")
    assert "either --frames or --fps" in fails(capsys, extract_frames, tmp_path, "--out", tmp_path / "o")


# Shards


@pytest.fixture
def captioned(tmp_path):
    """Annotations with odd ids, pictures among which some cannot be used."""
    usable = corpora.odd_pictures(tmp_path / "images")
    corpora.jpeg(tmp_path / "images" / "00000" / "000000001.jpg")
    corpora.jpeg(tmp_path / "images" / "00001" / "000000001.jpg")
    listed = [{"image_id": name, "caption": [f"a {name}", "犬, “so”"]} for name in usable]
    listed += [{"image_id": f"0000{n}/000000001.jpg", "caption": f"shard {n}", "extra": n} for n in (0, 1)]
    listed += [{"id": "été 1/2.x", "image_id": "grey.jpg", "caption": "second"}]
    listed += [{"image_id": "grey.jpg", "caption": "third"}, {"image_id": "grey", "caption": "by its stem"}]
    listed += [{"image_id": "gone.jpg", "caption": "x"}, {"image_id": "../a.jpg", "caption": "x"}, {"caption": "x"}]
    return corpora.write_json(tmp_path / "annotations.json", listed)


def read_back(out):
    """What webdataset gives for the index' shards: key -> (ending -> bytes)."""
    index = json.loads((out / "index.json").read_text())
    urls = [str(out / shard["file"]) for shard in index["shards"]]
    found = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        key = sample.pop("__key__")
        assert key not in found
        found[key] = {name: data for name, data in sample.items() if not name.startswith("__")}
    return index, found


def test_shards_are_what_webdataset_reads(tmp_path, captioned):
    out = tmp_path / "shards"
    command = ["--annotations", captioned, "--kind", "ti-cap", "--media", tmp_path / "images", "--samples", "3"]
    run(shards, *command, "--out", out, "--check", "decode")
    index, found = read_back(out)
    assert index["format"] == "webdataset" and index["kind"] == "ti-cap"
    assert index["samples"] == len(found) == 10 == manifest(out)["counts"]["kept"]
    entries = {key: json.loads(sample["json"]) for key, sample in found.items()}
    assert entries["00001_000000001"]["caption"] == "shard 1" and entries["00001_000000001"]["extra"] == 1
    assert entries["00001_000000001"]["id"] == "00001/000000001.jpg"
    assert [e["caption"] for e in entries.values()].count("third") == 1
    assert entries["été_1_2_x"]["caption"] == "second"
    processor = ImageProcessor(ImageConfig(image_size=16))
    for key, sample in found.items():
        ending = entries[key]["image_id"].removeprefix(f"{key}.")
        assert set(sample) == {ending, "json"}
        processor.load(Blob(f"{key}.{ending}", sample[ending]))
    assert found["cmyk"]["jpg"] == (tmp_path / "images" / "cmyk.jpg").read_bytes()
    for shard in index["shards"]:
        data = (out / shard["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
        assert shard["samples"] == len(scan(out / shard["file"]))
    reasons = {"unreadable media": 3, "missing media": 1, "path outside the media folder": 1, "malformed annotation": 1}
    assert manifest(out)["reasons"] == reasons


def test_shards_have_the_same_bytes_with_any_number_of_processes(tmp_path, captioned):
    command = ["--annotations", captioned, "--kind", "ti-cap", "--media", tmp_path / "images", "--samples", "4"]
    command = list(map(str, command))
    run(shards, *command, "--out", tmp_path / "one")
    (tmp_path / "images" / "grey.jpg").touch()  # times are no part of the bytes
    assert shards.main([*command, "--out", str(tmp_path / "two"), "--workers", "1", "--quiet"]) == 0
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [p.name for p in first] == [p.name for p in second]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_shards_of_several_modalities(tmp_path, capsys):
    media = tmp_path / "media"
    corpora.video(media / "clip1.mp4", sound=True)
    corpora.video(media / "clip2.mp4")
    soundfile.write(media / "clip2.wav", tone(0.2), 16000)
    (media / "clip3").mkdir()
    corpora.jpeg(media / "clip3" / "0.jpg")
    talk = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
    listed = [{"video_id": f"clip{n}", "conversations": talk} for n in (1, 2, 3)]
    annotations = corpora.write_json(tmp_path / "a.json", listed)
    run(shards, "--annotations", annotations, "--kind", "tva-conv", "--media", media, "--out", tmp_path / "o")
    _, found = read_back(tmp_path / "o")
    first, second = json.loads(found["clip1"]["json"]), json.loads(found["clip2"]["json"])
    assert set(found["clip1"]) == {"mp4", "json"} and set(found["clip2"]) == {"mp4", "wav", "json"}
    assert (first["video_id"], first["audio_id"]) == ("clip1.mp4", "clip1.mp4")
    assert (second["video_id"], second["audio_id"]) == ("clip2.mp4", "clip2.wav")
    assert first["conversations"] == talk
    VideoProcessor(VideoConfig(image_size=16)).load(Blob("clip1.mp4", found["clip1"]["mp4"]))
    AudioProcessor(AudioConfig(frames_per_clip=32)).load(Blob("clip1.mp4", found["clip1"]["mp4"]))
    assert dropped(tmp_path / "o") == {"clip3": "unreadable media"}
    said = fails(capsys, shards, "--annotations", annotations, "--kind", "tva-conf", "--media", media, "--out", "x")
    assert "'conf'" in said
    said = fails(capsys, shards, "--annotations", annotations, "--kind", "tva-conv", "--media", "imag=x", "--out", "x")
    assert "the kind shows no 'imag'" in said


def test_shards_of_several_pictures_and_of_shared_endings(tmp_path):
    for name in ("a.jpg", "b.png", "c.json.jpg"):
        picture = corpora.picture()
        picture.save(tmp_path / name, "PNG" if name.endswith("png") else "JPEG")
    listed = [{"image_id": ["a.jpg", "b.png"], "question": "Same?", "answer": "no", "question_id": 7}]
    annotations = corpora.write_json(tmp_path / "a.json", [*listed, {**listed[0], "image_id": "c.json.jpg"}])
    out = tmp_path / "o"
    run(shards, "--annotations", annotations, "--kind", "ti-shortqa", "--media", tmp_path, "--out", out)
    _, found = read_back(out)
    assert set(found["a"]) == {"0.jpg", "1.png", "json"}
    entry = json.loads(found["a"]["json"])
    assert entry["image_id"] == ["a.0.jpg", "a.1.png"] and entry["question_id"] == 7
    assert set(found["c_json"]) == {"jpg", "json"}
