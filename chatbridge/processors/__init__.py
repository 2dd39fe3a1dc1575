"""A file on disk to a tensor (image, video, audio), and text to token ids."""

from chatbridge.contracts import Processor
from chatbridge.processors.audio import AudioConfig, AudioProcessor
from chatbridge.processors.base import Blob, MediaError
from chatbridge.processors.image import ImageConfig, ImageProcessor
from chatbridge.processors.media_loader import MediaLoader
from chatbridge.processors.tokenizer import Tokenizer, load_tokenizer
from chatbridge.processors.video import VideoConfig, VideoProcessor

__all__ = [
    "AudioConfig",
    "AudioProcessor",
    "Blob",
    "ImageConfig",
    "ImageProcessor",
    "MediaError",
    "MediaLoader",
    "Processor",
    "Tokenizer",
    "VideoConfig",
    "VideoProcessor",
    "load_tokenizer",
]
