"""Parts of the page on their own: files, users, previews, examples, settings."""

from __future__ import annotations

import json
import shutil

import av
import numpy as np
import pytest
from PIL import Image

from chatbridge.demo import conversation_store, examples, file_store, generation_controls, view
from chatbridge.demo.command import _names
from chatbridge.demo.conversation_store import ConversationStore
from chatbridge.demo.file_store import FileStore, StoreFull
from chatbridge.demo.previews import preview
from chatbridge.inference import ChatSession, GenerationSettings, Medium, load_for_chat
from chatbridge.inference.limits import MediaLimits
from chatbridge.processors.base import MediaError
from tests import media_files, tiny
from tests.inference.tools import write_media


@pytest.fixture
def store():
    made = FileStore(MediaLimits(max_bytes=1000))
    yield made
    made.close()
    assert not made.root.exists()


def test_markup_is_escaped_in_place():
    for text in ("<b>", "a < b & c &amp; <", "&lt;", "</p><!-- -->", "plain"):
        assert view.unescape(view.escape(text)) == text
        assert "<b" not in view.escape(text) and "&a" not in view.escape(text)


def test_room_for_uploads_is_bounded(store):
    for number in range(file_store.MAX_FILES - 1):
        (store.upload_folder() / f"{number}.bin").write_bytes(bytes(1000))
    (store.upload_folder() / "last.bin").write_bytes(bytes(1))
    with pytest.raises(StoreFull, match="no room"):
        store.upload_folder()


def test_only_uploads_are_taken(store, tmp_path):
    mine, other = store.conversation_folder(), store.conversation_folder()
    upload = store.upload_folder() / "a.png"
    upload.write_bytes(b"x")
    taken = store.take(upload, mine)
    assert taken.is_relative_to(mine) and not upload.exists() and store.take(taken, mine) == taken
    (tmp_path / "a.png").write_bytes(b"x")
    link = store.upload_folder() / "link.png"
    link.symlink_to(tmp_path / "a.png")
    for file in (taken, tmp_path / "a.png", link, upload, mine / ".." / ".." / ".." / "etc" / "passwd", store.root):
        with pytest.raises(MediaError, match="not here"):
            store.take(file, other)
    kept = store.add_shared(tmp_path / "a.png")
    assert store.take(kept, other) != kept and kept.exists()


def test_users_make_room_and_give_memory_back(engine, store, monkeypatch):
    monkeypatch.setattr(conversation_store, "MAX_CONVERSATIONS", 3)
    monkeypatch.setattr(conversation_store, "MAX_CACHED", 1)
    conversations = ConversationStore([engine], store, kept_seconds=0.0)
    settings = GenerationSettings(max_new_tokens=3)

    def ask(name):
        conversation = conversations.of(name)
        for _ in conversation.ask("what?", [], settings, asked_at=0.0):
            pass
        return conversation

    first = ask("a")
    assert ask("b") is not first and len(first.turns) == 1
    again = ask("a").chats[0].replies[1]
    assert again.reused_positions == 0 and ask("a").chats[0].replies[2].reused_positions > 0
    plain = ChatSession(engine, settings)
    plain.say("what?")
    assert again.text == plain.say("what?").text  # a rested conversation goes on as if it had not rested
    ask("c")
    ask("d")
    assert len(conversations) == 3 and conversations.find("b") is None
    assert conversations.of("b").expired and not conversations.of("new").expired
    conversations.page_opened("d")
    conversations.sweep()
    assert conversations.find("d") is not None and conversations.find("c") is None
    conversations.page_closed("d")
    conversations.sweep()
    assert conversations.find("d") is None
    conversations.close()
    with pytest.raises(ValueError, match="shut down"):
        conversations.of("late")


def test_what_browsers_cannot_play_is_shown_otherwise(tmp_path):
    limits, sound = MediaLimits(), media_files.tone(0.5)
    old = media_files.write_video(tmp_path / "old.avi", [10, 200], sound=sound, codecs=("mpeg4", "mp3"))
    shown = preview(Medium.of("video", old), tmp_path / "old", limits)
    assert [file.name for file in shown.files] == ["frames.png"]
    assert Image.open(shown.files[0]).size == (4 * 56, 56)
    with av.open(str(tmp_path / "a.m4a"), "w") as container:
        track = container.add_stream("aac", rate=16000)
        track.layout = "mono"
        frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(track.encode(frame))
        container.mux(track.encode(None))
    shown = preview(Medium.of("audio", tmp_path / "a.m4a"), tmp_path / "m4a", limits)
    assert [file.name for file in shown.files] == ["sound.wav", "spectrogram.png"]
    assert shown.detail.startswith("0.5 s") or shown.detail.startswith("0.6 s")
    picture = tmp_path / "a.tiff"
    Image.fromarray(np.zeros((2000, 30, 3), np.uint8)).save(picture)
    (small,) = preview(Medium.of("image", picture), tmp_path / "tiff", limits).files
    assert max(Image.open(small).size) == 720 and small.suffix == ".png"


def test_a_spectrogram_shows_pitch_and_time(tmp_path):
    wave = np.concatenate([media_files.tone(0.5, pitch=1000), np.zeros(8000, np.float32)])
    media_files.write_wav(tmp_path / "a.wav", wave)
    shown = preview(Medium.of("audio", tmp_path / "a.wav"), tmp_path / "shown", MediaLimits())
    assert shown.detail == "1.0 s, up to 8 kHz"
    pixels = np.asarray(Image.open(shown.files[1]).convert("L"), float)
    height, width = pixels.shape
    row = pixels[:, : width // 3].mean(1).argmax()
    assert abs((height - row) / height * 8000 - 1000) < 150
    assert pixels[row, : width // 3].mean() > 3 * pixels[row, -width // 3 :].mean()


def test_examples_come_from_the_configurations_own_data(tmp_path, engine):
    tree = tiny.make_config(tmp_path, "instruction")
    media = write_media(tmp_path / "shown")
    entries = {
        "looks": ("ti-shortqa", [{"image_id": "a.png", "question": "what is it?", "answer": "x"}]),
        "both": ("tva-shortqa", [{"video_id": "loud.mp4", "audio_id": "loud.mp4", "question": "fits?", "answer": "x"}]),
        "more": ("tva-shortqa", [{"video_id": "still.mp4", "audio_id": "a.wav", "question": "and?", "answer": "x"}]),
        "named": ("ti-cap", [{"image_id": "a.png", "caption": "a cat"}]),
        "gone": ("ta-shortqa", [{"audio_id": "gone.wav", "question": "what?", "answer": "x"}]),
    }
    tree["validation"] = {}
    for name, (kind, records) in entries.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
        folders = {modality: str(tmp_path / "shown") for modality in ("image", "video", "audio")}
        needed = {"ti": ["image"], "ta": ["audio"], "tva": ["video", "audio"]}[kind.split("-")[0]]
        tree["validation"][name] = {
            "annotations": str(tmp_path / f"{name}.json"), "kind": kind, "media": {m: folders[m] for m in needed}
        }  # fmt: skip
    loaded = load_for_chat(tiny.write_yaml(tmp_path, tree))
    found = examples.find_examples(loaded, engine.modalities, tmp_path / "made")
    assert [(one.text, [file.name for file in one.files]) for one in found] == [
        ("what is it?", ["a.png"]), ("fits?", ["loud.mp4"]), ("and?", ["still.mp4", "a.wav"]),
    ]  # fmt: skip
    assert found[0].files[0] == media["a.png"]
    assert [one.text for one in examples.find_examples(loaded, ["image"], tmp_path / "made")] == ["what is it?"]
    shutil.rmtree(tmp_path / "shown")
    drawn = examples.find_examples(loaded, engine.modalities, tmp_path / "made")
    assert [MediaLimits().check(one.files[0]).kind for one in drawn] == ["image", "audio", "video"]
    assert all(
        ChatSession(engine, GenerationSettings(max_new_tokens=2)).say(one.text, media=one.files) for one in drawn
    )


def test_settings_have_ranges_that_fit_the_model(engine):
    sliders = generation_controls.controls(engine)
    assert next(one for one in sliders if one.elem_id == "max_new_tokens").maximum == 128  # half of the context
    values = [one.value for one in sliders]
    usual = generation_controls.to_settings(sliders, [*values, -1])
    assert usual == GenerationSettings(max_new_tokens=engine.answer_length(GenerationSettings()))
    assert generation_controls.to_settings(sliders, [*values, 5]).seed == 5
    with pytest.raises(ValueError, match="top_p is 7"):
        generation_controls.to_settings(sliders, [7 if one.elem_id == "top_p" else one.value for one in sliders] + [-1])


def test_models_go_by_what_tells_them_apart():
    assert _names(["/a/stage2"]) == ["stage2"]
    assert _names(["/a/x/stage2", "/a/y/stage2"]) == ["x/stage2", "y/stage2"]
    assert _names(["/a/x", "/a/x"]) == ["/a/x", "/a/x"]
