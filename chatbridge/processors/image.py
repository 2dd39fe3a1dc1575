"""Pictures: a file -> float32 [1, 3, H, W] (a picture is a video of one frame)."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from chatbridge.common.registry import PROCESSORS
from chatbridge.processors.base import Source, reading
from chatbridge.processors.pixels import PixelConfig, PixelTransform, RawPixels

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(kw_only=True)
class ImageConfig(PixelConfig):
    """Keys of the image processor: those of `PixelConfig`."""


@PROCESSORS.register("image", config=ImageConfig)
class ImageProcessor:
    """Any picture that Pillow reads -> [1, 3, image_size, image_size], normalised.

    Training resizes bilinearly as a float tensor (``preprocess_on: device``: in 8 bits), evaluation bicubically in
    8 bits, both to a square without keeping the sides' ratio, as the original does (fact sheet 2.5).
    """

    modality = "image"
    extensions = IMAGE_EXTENSIONS

    def __init__(self, config: ImageConfig):
        self.config = config
        self.transform = PixelTransform(config)

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, 3, self.config.image_size, self.config.image_size)

    def load(self, source: Source, rng: random.Random | None = None) -> Tensor | RawPixels:
        """float32 [1, 3, H, W]; `rng` given means training, raw with ``preprocess_on: device``. Raises MediaError."""
        with reading(source, "cannot be resized"):
            return self.transform([self.transform.read(source, rng is not None)], rng)

    def blank(self) -> Tensor:
        """A black picture, normalised like any other."""
        size = self.config.image_size
        return self.transform([np.zeros((size, size, 3), np.uint8)], None)
