"""Pictures and frames as arrays [H, W, 3] -> normalised tensors [T, 3, size, size]; shared by image and video."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from chatbridge.common.schema import key
from chatbridge.processors.base import MediaError, Source, name_of, readable

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


@dataclass(kw_only=True)
class PixelConfig:
    """Keys that images and videos share."""

    image_size: int = key(224, help="side of the square that the encoder sees", unit="pixels", low=1)
    mean: list[float] = key(CLIP_MEAN, help="per colour channel, subtracted from values in [0, 1]")
    std: list[float] = key(CLIP_STD, help="per colour channel, divided by")
    transform: str = key(
        "squash",
        choices=("squash", "crop_flip"),
        help="squash: resize both sides, no randomness; crop_flip: random crop and mirror in training, "
        "shorter side and centre crop in evaluation",
    )
    train_resize: str = key("bilinear", choices=("bilinear", "bicubic"), help="resampling in training")
    eval_resize: str = key("bicubic", choices=("bilinear", "bicubic"), help="resampling in evaluation")
    max_pixels: int = key(80_000_000, help="a picture or frame with more is refused, undecoded", unit="pixels", low=1)
    compat: str = key(
        "default",
        choices=("default", "original"),
        help="original: bilinear without antialias, camera rotation and transparency ignored",
    )


@dataclass
class Crop:
    """One random draw of crop_flip, in shares of the picture, so that frames of any size get the same one."""

    area: float
    top: float
    left: float
    flip: bool


@dataclass
class PixelTransform:
    """Resizes, crops and normalises: the training rules when called with a random generator, else those of evaluation.

    Bilinear works on float tensors in [0, 1] (as the original's training does), bicubic on 8-bit pictures with
    Pillow (as its inference does).
    """

    config: PixelConfig
    mean: Tensor = field(init=False)
    std: Tensor = field(init=False)

    def __post_init__(self) -> None:
        c = self.config
        if len(c.mean) != 3 or len(c.std) != 3 or min(c.std) <= 0:
            raise ValueError(f"mean and std need three values each, std above 0; got mean {c.mean}, std {c.std}")
        self.mean = torch.tensor(c.mean).view(3, 1, 1)
        self.std = torch.tensor(c.std).view(3, 1, 1)

    def __call__(self, frames: Sequence[np.ndarray], rng: random.Random | None) -> Tensor:
        """uint8 frames [H, W, 3], T of them -> float32 [T, 3, size, size]."""
        size = self.config.image_size
        out = torch.empty(len(frames), 3, size, size)
        crop = self._draw(rng)
        for row, frame in zip(out, frames, strict=True):
            row.copy_(self._fit(self._cut(frame, crop), training=rng is not None))
        return out.sub_(self.mean).div_(self.std)

    def _draw(self, rng: random.Random | None) -> Crop | None:
        if rng is None or self.config.transform != "crop_flip":
            return None
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

    def _fit(self, frame: np.ndarray, training: bool) -> Tensor:
        """float32 [3, size, size] in [0, 1]."""
        size = self.config.image_size
        height, width = frame.shape[:2]
        keep_shape = self.config.transform == "crop_flip" and not training
        short = min(height, width)
        target = (size * height // short, size * width // short) if keep_shape else (size, size)
        mode = self.config.train_resize if training else self.config.eval_resize
        if mode == "bicubic" and target != (height, width):
            picture = Image.fromarray(np.ascontiguousarray(frame))
            frame = np.array(picture.resize((target[1], target[0]), Image.Resampling.BICUBIC))
        chw = torch.from_numpy(np.require(frame, requirements=["C", "W"])).permute(2, 0, 1).float().div_(255)
        if mode == "bilinear" and target != (height, width):
            antialias = self.config.compat != "original"
            chw = F.interpolate(chw[None], size=target, mode="bilinear", align_corners=False, antialias=antialias)[0]
        top, left = round((target[0] - size) / 2), round((target[1] - size) / 2)
        return chw[:, top : top + size, left : left + size]


def read_rgb(source: Source, max_pixels: int, compat: str = "default") -> np.ndarray:
    """A picture file as uint8 [H, W, 3]; of an animation, the first picture.

    By default the camera's rotation tag is obeyed, transparency is laid on white, and 16-bit grey is scaled; with
    ``compat="original"`` Pillow's plain conversion is used, which does none of the three.

    Raises:
        MediaError: when the file is missing, not a picture, truncated, or larger than `max_pixels`.
    """
    opened = readable(source)
    try:
        with Image.open(opened) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise MediaError(
                    name_of(source), f"has {width} x {height} pixels, more than max_pixels = {max_pixels} allows"
                )
            return np.array(picture.convert("RGB") if compat == "original" else _upright_rgb(picture))
    except MediaError:
        raise
    except UnidentifiedImageError as error:
        raise MediaError(name_of(source), "is not a picture in any format that Pillow reads") from error
    except Exception as error:
        # Pillow's decoders raise anything from OSError to struct.error on damaged files; for us it is one thing.
        raise MediaError(name_of(source), f"cannot be decoded ({error or type(error).__name__})") from error


def _upright_rgb(picture: Image.Image) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")
