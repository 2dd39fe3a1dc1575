"""Whole media files of many formats, small, and the same at every call."""

from __future__ import annotations

import io
from collections.abc import Callable

import av
import numpy as np
import soundfile
from PIL import Image, PngImagePlugin

TITLE = "A plain title"
"""What files that have a title are called."""

TRACKS = {
    "sounding.mp4": ("mp4", "libx264", "aac"), "silent.mp4": ("mp4", "mpeg4", None),
    "pieces.mp4": ("mp4", "libx264", "aac"), "vp8.webm": ("webm", "libvpx", "libopus"),
    "vp9.webm": ("webm", "libvpx-vp9", None), "x264.mkv": ("matroska", "libx264", "flac"),
    "mjpeg.mkv": ("matroska", "mjpeg", "pcm_s16le"), "mpeg4.avi": ("avi", "mpeg4", "libmp3lame"),
    "raw.avi": ("avi", "rawvideo", "pcm_s16le"), "old.mov": ("mov", "mjpeg", "pcm_s16le"),
    "flash.flv": ("flv", "flv", "libmp3lame"), "broadcast.ts": ("mpegts", "mpeg2video", "mp2"),
    "disc.mpg": ("mpeg", "mpeg2video", "mp2"), "windows.wmv": ("asf", "msmpeg4v3", "wmav2"),
    "opus.ogg": ("ogg", None, "libopus"), "vorbis.ogg": ("ogg", None, "vorbis"), "voice.m4a": ("mp4", None, "aac"),
}  # fmt: skip
"""File -> container, and codecs of its pictures and its sound. (soundfile numbers an Ogg by the clock.)"""


def pictures() -> dict[str, bytes]:
    """Name -> bytes."""
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8), np.ones((5, 5, 1), np.uint8))
    colour = Image.fromarray(pixels)
    grey, clear = colour.convert("L"), colour.copy()
    clear.putalpha(grey)
    turned = Image.Exif()
    turned[0x0112], turned[0x010E] = 6, TITLE
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", TITLE)
    text.add_text("Comment", TITLE * 50, zip=True)
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    exact = Image.fromarray(pixels[..., 0].astype(np.float32) / 255)
    long = Image.fromarray(pixels[..., 0].astype(np.int32) * 65_793)
    film = {"save_all": True, "append_images": [colour.rotate(90), colour.rotate(180)], "duration": 50}
    made: dict[str, tuple[Image.Image, dict]] = {
        "plain.jpg": (colour, {"quality": 80}), "progressive.jpg": (colour, {"progressive": True}),
        "ink.jpg": (colour.convert("CMYK"), {}), "grey.jpg": (grey, {}), "turned.jpg": (colour, {"exif": turned}),
        "restarts.jpg": (colour, {"restart_marker_rows": 1, "comment": TITLE, "icc_profile": bytes(200)}),
        "colour.png": (colour, {"pnginfo": text}), "clear.png": (clear, {}), "deep.png": (deep, {}),
        "table.png": (colour.quantize(16), {"transparency": 3}), "bits.png": (grey.convert("1"), {}),
        "film.png": (colour, film), "film.gif": (colour, film), "one.gif": (grey, {"comment": TITLE}),
        "lossy.webp": (colour, {"exif": turned}), "exact.webp": (clear, {"lossless": True}),
        "film.webp": (colour, film), "new.avif": (colour, {"speed": 10}), "film.avif": (colour, film | {"speed": 10}),
        "plain.tif": (colour, {"description": TITLE}), "packed.tif": (colour, {"compression": "tiff_lzw"}),
        "deflated.tif": (deep, {"compression": "tiff_adobe_deflate"}), "exact.tif": (exact, {}),
        "long.tif": (long, {}), "jpeg.tif": (colour, {"compression": "jpeg"}), "pages.tif": (colour, film),
        "fax.tif": (grey.convert("1"), {"compression": "group4"}), "ink.tif": (colour.convert("CMYK"), {}),
        "plain.bmp": (colour, {}), "table.bmp": (colour.quantize(16), {}), "icon.ico": (clear, {}),
        "plain.ppm": (colour, {}), "wavelet.jp2": (colour, {}), "old.tga": (colour, {"compression": "tga_rle"}),
    }  # fmt: skip
    files = {}
    for name, (picture, options) in made.items():
        out = io.BytesIO()
        picture.save(out, {"ppm": "PPM", "jp2": "JPEG2000", "tga": "TGA"}.get(name[-3:]) or _format(name), **options)
        files[name] = out.getvalue()
    return files


def _format(name: str) -> str:
    return Image.registered_extensions()[name[name.rindex(".") :]]


def sounds() -> dict[str, bytes]:
    """Name -> bytes."""
    rng = np.random.default_rng(0)
    wave = (0.3 * np.sin(np.arange(4000) / 6) + rng.normal(0, 0.02, 4000)).astype(np.float32)
    pair = np.stack([wave, -wave], axis=1)
    made = {
        "plain.wav": (wave, 16000, "WAV", "PCM_16"), "pair.wav": (pair, 44100, "WAV", "PCM_24"),
        "exact.wav": (wave, 8000, "WAV", "FLOAT"), "bytes.wav": (wave, 11025, "WAV", "PCM_U8"),
        "phone.wav": (wave, 8000, "WAV", "ULAW"), "coded.wav": (wave, 8000, "WAV", "MS_ADPCM"),
        "wide.wav": (pair, 48000, "WAVEX", "PCM_16"), "plain.flac": (wave, 16000, "FLAC", "PCM_16"),
        "pair.flac": (pair, 44100, "FLAC", "PCM_24"), "plain.mp3": (wave, 16000, "MP3", "MPEG_LAYER_III"),
        "plain.aiff": (wave, 16000, "AIFF", "PCM_16"), "exact.aiff": (pair, 22050, "AIFF", "FLOAT"),
        "plain.au": (wave, 16000, "AU", "PCM_16"), "plain.caf": (wave, 16000, "CAF", "PCM_16"),
        "plain.w64": (wave, 16000, "W64", "PCM_16"), "big.wav": (wave, 16000, "RF64", "PCM_16"),
        "titled.wav": (wave, 16000, "WAV", "PCM_16"), "titled.flac": (wave, 16000, "FLAC", "PCM_16"),
        "titled.mp3": (wave, 16000, "MP3", "MPEG_LAYER_III"),
    }  # fmt: skip
    files = {}
    for name, (samples, rate, container, coding) in made.items():
        out = io.BytesIO()
        channels = 1 if samples.ndim == 1 else samples.shape[1]
        with soundfile.SoundFile(out, "w", rate, channels, coding, format=container) as file:
            if name.startswith("titled"):
                file.title, file.artist = TITLE, TITLE
            file.write(samples)
        files[name] = out.getvalue()
    return files | {name: _tracks(name, *how) for name, how in TRACKS.items() if how[1] is None}


def videos() -> dict[str, bytes]:
    """Name -> bytes."""
    return {name: _tracks(name, *how) for name, how in TRACKS.items() if how[1] is not None}


def _tracks(name: str, container: str, picture_codec: str | None, sound_codec: str | None) -> bytes:
    out = io.BytesIO()
    options = {"fflags": "+bitexact"}  # no dates, no random numbers
    if name == "pieces.mp4":
        options["movflags"] = "frag_keyframe+empty_moov"
    with av.open(out, "w", format=container, options=options) as file:
        file.metadata["title"] = TITLE
        picture, sound = None, None
        if picture_codec is not None:
            picture = file.add_stream(picture_codec, rate=5 if container not in ("mpegts", "mpeg") else 25)
            picture.width, picture.height = 64, 48
            picture.pix_fmt = "yuvj420p" if picture_codec == "mjpeg" else "yuv420p"
            picture.codec_context.thread_count = 1
        if sound_codec is not None:
            rate = 48000 if sound_codec == "libopus" else 44100
            sound = file.add_stream(sound_codec, rate=rate, options={"strict": "-2"})
            sound.layout, sound.bit_rate = "stereo" if sound_codec == "vorbis" else "mono", 64_000
        for number in range(6 if picture is not None else 0):
            pixels = np.full((48, 64, 3), 40 * number, np.uint8)
            pixels[:24, :32] = (0, 255, 0)
            file.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        if picture is not None:
            file.mux(picture.encode(None))
        if sound is not None:
            _add_sound(file, sound)
    return out.getvalue()


def _add_sound(file: av.container.OutputContainer, sound: av.AudioStream) -> None:
    rate = sound.codec_context.sample_rate
    wave = (8000 * np.sin(np.arange(rate // 2) / 9)).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts = rate, 0
    codec = sound.codec_context
    fit = av.AudioResampler(format=codec.format, layout=sound.layout, rate=rate, frame_size=codec.frame_size or None)
    for piece in [*fit.resample(frame), *fit.resample(None)]:
        file.mux(sound.encode(piece))
    file.mux(sound.encode(None))


KINDS: dict[str, Callable[[], dict[str, bytes]]] = {"image": pictures, "audio": sounds, "video": videos}
