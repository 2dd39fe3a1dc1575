"""A language model's folder beside its weights: which Vicuna it is, and whether its tokenizer belongs to it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from chatbridge.common.documents import MISSING, DocumentError, read_json
from chatbridge.common.tokenizer_files import declared_tokens, read_sentencepiece
from chatbridge.weights.files import WeightsError

PADDING_MULTIPLE = 8
"""Tables of embeddings are padded to multiples of this or more; any other surplus is a token that is missing."""

MOST_LAYERS = 1000
"""Building a model takes milliseconds for each, before anything else can be found out."""


def read_config(path: str | Path) -> dict[str, Any]:
    """The config.json of a folder, or one by its own name.

    Raises:
        WeightsError: when there is none, it cannot be read, or it has more layers than any model.
    """
    file = Path(path) if os.path.isfile(path) else Path(path) / "config.json"
    settings = read_object(file, f"'{path}' is not the folder of a language model: it has no config.json")
    for name, value in settings.items():
        if "layers" in name and isinstance(value, int) and value > MOST_LAYERS:
            raise WeightsError(f"{file}: {name} is {str(value)[:20]}, more than any model has ({MOST_LAYERS})")
    return _with_floats(settings)


FLOATS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}
"""What JSON has no numbers for, and transformers writes as ``{"__float__": ...}``."""


def _with_floats(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_floats(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    spelled = value.get("__float__") if len(value) == 1 else None
    if isinstance(spelled, str) and spelled in FLOATS:
        return FLOATS[spelled]
    return {name: _with_floats(inner) for name, inner in value.items()}


def read_object(file: Path, missing: str = "") -> dict[str, Any]:
    """What a JSON file holds, if that is an object.

    Raises:
        WeightsError: with the file and the reason, or `missing` where it is not there.
    """
    try:
        plain = read_json(file)
    except DocumentError as error:
        raise WeightsError(missing if missing and error.reason == MISSING else str(error)) from None
    if not isinstance(plain, dict):
        raise WeightsError(f"{file}: is not a JSON object")
    return plain


def describe(settings: dict[str, Any]) -> str:
    """Which LLaMA or Vicuna a config.json is of, by its numbers."""
    if settings.get("model_type") != "llama":
        return str(settings.get("model_type", "unknown model type"))
    vocabulary, epsilon = settings.get("vocab_size"), settings.get("rms_norm_eps")
    if vocabulary == 32001:
        return "LLaMA architecture, 32001 tokens: Vicuna v0"
    if vocabulary == 32000 and epsilon == 1e-5:
        return "LLaMA architecture, 32000 tokens, epsilon 1e-5: LLaMA 2 or Vicuna v1.5"
    if vocabulary == 32000:
        return "LLaMA architecture, 32000 tokens: LLaMA 1 or Vicuna v1.1, v1.3"
    return f"LLaMA architecture, {vocabulary} tokens"


def tokenizer_size(folder: str | Path) -> int | None:
    """How many ids the folder's SentencePiece tokenizer has, added tokens included; None when it holds none."""
    folder = Path(folder)
    file = folder / "tokenizer.model" if folder.is_dir() else folder
    if not os.path.lexists(file):
        return None
    try:
        size = read_sentencepiece(file).vocab_size()
        declared = declared_tokens(file.parent)
        return max([size - 1, *declared.embedded(declared.added).values()]) + 1
    except DocumentError as error:
        raise WeightsError(str(error)) from None


def check_vocabulary(tokenizer: int, rows: int, tokenizer_path: str | Path, model_path: str | Path) -> None:
    """Refuse a tokenizer that is not the model's.

    Fewer ids than embeddings are fine where the table was padded to a round number, and only there.

    Args:
        tokenizer: how many ids the tokenizer has. rows: of the model's embeddings.

    Raises:
        WeightsError: naming both and their sizes.
    """
    if tokenizer == rows or (tokenizer < rows and rows % PADDING_MULTIPLE == 0):
        return
    hint = "take the tokenizer from the model's own folder"
    if (tokenizer, rows) == (32000, 32001):
        hint = "the weights are Vicuna v0's and the tokenizer a later one's: take both from one release"
    elif (tokenizer, rows) == (32001, 32000):
        hint = "the tokenizer is Vicuna v0's and the weights are a later one's: take both from one release"
    raise WeightsError(
        f"tokenizer '{tokenizer_path}' has {tokenizer} tokens and language model '{model_path}' has {rows} embeddings; "
        f"{hint}"
    )
