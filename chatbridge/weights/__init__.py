"""Weight files: reading them safely, telling what they are, mapping their names, filling models, fetching them."""

from chatbridge.weights.coverage import Coverage
from chatbridge.weights.files import DTYPES, WeightsError, WeightSource, open_weights
from chatbridge.weights.filling import empty_weights, filling_on, on_meta
from chatbridge.weights.loading import load_checkpoint, load_encoder, load_language_model

__all__ = [
    "DTYPES",
    "Coverage",
    "WeightSource",
    "WeightsError",
    "empty_weights",
    "filling_on",
    "load_checkpoint",
    "load_encoder",
    "load_language_model",
    "on_meta",
    "open_weights",
]
