"""Pictures: a file -> float32 [1, 3, H, W] (a picture is a video of one frame), and what videos share with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from chatbridge.common.batch import RawMedia
from chatbridge.common.read_mode import EVALUATION, ReadMode, Training
from chatbridge.common.registry import PROCESSORS
from chatbridge.common.schema import key
from chatbridge.processors.base import PREPROCESS_ON, Source, media_errors
from chatbridge.processors.picture_files import MAX_PIXELS, MAX_SIDE, read_rgb
from chatbridge.processors.time_limit import PICTURE_SECONDS

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]

LONGEST_SHAPE = 100
"""Where a picture keeps its shape, no more of it is resized than so many squares side by side."""


@dataclass(kw_only=True)
class PixelConfig:
    """Keys that images and videos share."""

    image_size: int = key(224, help="side of the square that the encoder sees", unit="pixels", low=1, high=4096)
    mean: list[float] = key(CLIP_MEAN, help="per colour channel, subtracted from values in [0, 1]", low=-1e6, high=1e6)
    std: list[float] = key(CLIP_STD, help="per colour channel, divided by", low=1e-6, high=1e6)
    transform: str = key(
        "squash",
        choices=("squash", "crop_flip"),
        help="squash: resize both sides, no randomness; crop_flip: random crop and mirror in training, "
        "shorter side and centre crop in evaluation",
    )
    train_resize: str = key("bilinear", choices=("bilinear", "bicubic"), help="resampling in training")
    eval_resize: str = key("bicubic", choices=("bilinear", "bicubic"), help="resampling in evaluation")
    reducing_gap: float | None = key(
        None,
        low=1.0,
        high=64.0,
        help="training JPEGs are decoded at 1/2, 1/4 or 1/8 where that leaves both sides this many times image_size or "
        "more; null decodes them whole",
    )
    preprocess_on: str = key(
        "worker",
        choices=PREPROCESS_ON,
        help="where training pixels are normalised; device: they are resized in 8 bits and travel so (a quarter of "
        "the bytes), which rounds them once or twice to 1/255. Evaluation is as with worker",
    )
    finish: str | None = key(None, choices=PREPROCESS_ON, help="earlier name of preprocess_on")
    max_pixels: int = key(
        MAX_PIXELS, help="a picture or frame with more is refused, undecoded", unit="pixels", low=1, high=1 << 31
    )
    max_side: int = key(MAX_SIDE, help="and one that is wider or higher than this", unit="pixels", low=1, high=1 << 31)
    read_seconds: float = key(
        PICTURE_SECONDS, help="a picture that is not decoded in this time is refused", unit="seconds", low=0.1, high=1e5
    )

    def __post_init__(self) -> None:
        self.preprocess_on, self.finish = self.finish or self.preprocess_on, None


@dataclass
class Crop:
    """One random draw of crop_flip, in shares of the picture, so that frames of any size get the same one."""

    area: float
    top: float
    left: float
    flip: bool


@dataclass(slots=True)
class RawPixels(RawMedia):
    """Resized pictures or frames that are not normalised.

    Attributes:
        pixels: uint8 [N, T, size, size, 3], as decoders give them.
        mean, std: per colour channel, of values in [0, 1].
    """

    pixels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        frames, height, width, channels = self.pixels.shape[1:]
        return frames, channels, height, width

    @property
    def settings(self) -> tuple:
        return self.mean, self.std

    def __len__(self) -> int:
        return len(self.pixels)

    def finished(self) -> Tensor:
        """float32 [N, T, 3, size, size], normalised."""
        device, channels = self.pixels.device, (-1, 1, 1)
        mean, std = torch.tensor([self.mean, self.std], device=device).view(2, *channels)
        values = self.pixels.movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format)
        return values.div_(255).sub_(mean).div_(std)

    @classmethod
    def joined(cls, media: Sequence[RawPixels]) -> RawPixels:
        return replace(media[0], pixels=torch.cat([medium.pixels for medium in media]))


@dataclass
class PixelTransform:
    """Resizes, crops and normalises, by the rules of training or of evaluation.

    Bilinear works on float tensors in [0, 1] (as the original's training does), with ``preprocess_on: device`` in
    8 bits; bicubic on 8-bit pictures with Pillow (as its inference does).
    """

    config: PixelConfig
    mean: Tensor = field(init=False)
    std: Tensor = field(init=False)
    antialias: ClassVar[bool] = True
    as_stored: ClassVar[bool] = False

    def __post_init__(self) -> None:
        c = self.config
        if len(c.mean) != 3 or len(c.std) != 3 or min(c.std) <= 0:
            raise ValueError(f"mean and std need three values each, std above 0; got mean {c.mean}, std {c.std}")
        self.mean = torch.tensor(c.mean).view(3, 1, 1)
        self.std = torch.tensor(c.std).view(3, 1, 1)

    def read(self, source: Source, mode: ReadMode) -> np.ndarray:
        """A picture file as uint8 [H, W, 3], within the configured bounds. Raises MediaError."""
        c = self.config
        reduced = isinstance(mode, Training) and c.reducing_gap is not None
        side = ceil(c.image_size * c.reducing_gap) if reduced else None
        return read_rgb(source, c.max_pixels, side, c.max_side, c.read_seconds, self.as_stored)

    def __call__(self, frames: Sequence[np.ndarray], mode: ReadMode) -> Tensor | RawPixels:
        """uint8 frames [H, W, 3], T of them -> float32 [T, 3, size, size], or what the device makes that of."""
        size, training = self.config.image_size, isinstance(mode, Training)
        crop = self._draw(mode)
        if training and self.config.preprocess_on == "device":
            fitted = [self._fit(self._cut(frame, crop), training, torch.uint8) for frame in frames]
            pixels = (fitted[0] if len(fitted) == 1 else torch.cat(fitted)).permute(0, 2, 3, 1)
            return RawPixels(pixels[None], tuple(self.config.mean), tuple(self.config.std))
        out = torch.empty(len(frames), 3, size, size)
        for row, frame in zip(out, frames, strict=True):
            row.copy_(self._fit(self._cut(frame, crop), training, torch.float32)[0])
        return out.sub_(self.mean).div_(self.std)

    def _draw(self, mode: ReadMode) -> Crop | None:
        if not isinstance(mode, Training) or self.config.transform != "crop_flip":
            return None
        rng = mode.rng
        return Crop(rng.uniform(0.8, 1.0), rng.random(), rng.random(), rng.random() < 0.5)

    @staticmethod
    def _cut(frame: np.ndarray, crop: Crop | None) -> np.ndarray:
        """The square part of the frame that a random crop keeps, mirrored or not."""
        if crop is None:
            return frame
        height, width = frame.shape[:2]
        side = max(1, min(round((height * width * crop.area) ** 0.5), height, width))
        top, left = round(crop.top * (height - side)), round(crop.left * (width - side))
        part = frame[top : top + side, left : left + side]
        return part[:, ::-1].copy() if crop.flip else part

    def _fit(self, frame: np.ndarray, training: bool, dtype: torch.dtype) -> Tensor:
        """[1, 3, size, size]: float32 in [0, 1], or uint8, whose channels vary fastest in memory."""
        size = self.config.image_size
        height, width = frame.shape[:2]
        keep_shape = self.config.transform == "crop_flip" and not training
        short = min(height, width)
        if keep_shape and max(height, width) > LONGEST_SHAPE * short:
            frame = _middle(frame, LONGEST_SHAPE * short)  # of which the middle square is kept, the same as ever
            height, width = frame.shape[:2]
        target = (size * height // short, size * width // short) if keep_shape else (size, size)
        mode = self.config.train_resize if training else self.config.eval_resize
        if mode == "bicubic" and target != (height, width):
            picture = Image.fromarray(np.ascontiguousarray(frame))
            frame = np.array(picture.resize((target[1], target[0]), Image.Resampling.BICUBIC))
        if not (frame.flags.c_contiguous and frame.flags.writeable):
            frame = frame.copy()
        hwc = torch.from_numpy(frame)
        if dtype == torch.uint8:
            nchw = hwc[None].permute(0, 3, 1, 2)  # with N in front, resizing sees the order in memory and keeps it
        else:
            nchw = hwc.permute(2, 0, 1)[None].float().div_(255)
        if mode == "bilinear" and target != (height, width):
            nchw = F.interpolate(nchw, size=target, mode="bilinear", align_corners=False, antialias=self.antialias)
        if target == (size, size):
            return nchw
        top, left = round((target[0] - size) / 2), round((target[1] - size) / 2)
        return nchw[:, :, top : top + size, left : left + size]


def _middle(frame: np.ndarray, side: int) -> np.ndarray:
    """The middle of a frame [H, W, 3], no longer than `side` (or one more) in either direction."""
    top, left = (max(0, (length - side) // 2) for length in frame.shape[:2])
    return frame[top : len(frame) - top, left : frame.shape[1] - left]


@dataclass(kw_only=True)
class ImageConfig(PixelConfig):
    """Keys of the image processor: those of `PixelConfig`."""


@PROCESSORS.register("image", config=ImageConfig)
class ImageProcessor:
    """Any picture that Pillow reads -> [1, 3, image_size, image_size], normalised.

    Training resizes bilinearly as a float tensor (``preprocess_on: device``: in 8 bits), evaluation bicubically in
    8 bits, both to a square without keeping the sides' ratio, as the original's data.py and blip_processors.py do.
    """

    modality = "image"
    extensions = IMAGE_EXTENSIONS

    def __init__(self, config: ImageConfig):
        self.config = config
        self.transform = PixelTransform(config)

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, 3, self.config.image_size, self.config.image_size)

    def load(self, source: Source, mode: ReadMode = EVALUATION) -> Tensor | RawPixels:
        """float32 [1, 3, H, W]; in training raw with ``preprocess_on: device``. Raises MediaError."""
        with media_errors(source, "cannot be resized"):
            return self.transform([self.transform.read(source, mode)], mode)

    def blank(self) -> Tensor:
        """A black picture, normalised like any other."""
        size = self.config.image_size
        return self.transform([np.zeros((size, size, 3), np.uint8)], EVALUATION)
