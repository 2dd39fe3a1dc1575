"""A language model's folder beside its weights: which Vicuna it is, and whether its tokenizer belongs to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sentencepiece

from chatbridge.weights.files import WeightsError

PADDING_MULTIPLE = 8
"""Tables of embeddings are padded to multiples of this or more; any other surplus is a token that is missing."""


def read_config(folder: str | Path) -> dict[str, Any]:
    """A folder's config.json.

    Raises:
        WeightsError: when there is none, or it cannot be read.
    """
    file = Path(folder) / "config.json"
    try:
        if not file.is_file():
            raise WeightsError(f"'{folder}' is not the folder of a language model: it has no config.json")
        settings = json.loads(file.read_text(encoding="utf-8"))
    except PermissionError:
        raise WeightsError(f"no permission to read '{file}'; allow it for this user (chmod, chown)") from None
    except ValueError as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"'{file}' is not valid JSON: {error}") from None
    if not isinstance(settings, dict):
        raise WeightsError(f"'{file}' is not a JSON object")
    return settings


def describe(settings: dict[str, Any]) -> str:
    """Which LLaMA or Vicuna a config.json is of, as far as its numbers tell."""
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
    if not file.is_file():
        return None
    try:
        size = sentencepiece.SentencePieceProcessor(model_file=str(file)).vocab_size()
    except (RuntimeError, OSError) as error:
        raise WeightsError(f"'{file}' is not a SentencePiece model ({error}); fetch it again") from None
    added = [size - 1]
    for name, ids in (
        ("added_tokens.json", lambda d: d.values()),
        ("tokenizer_config.json", lambda d: (d.get("added_tokens_decoder") or {}).keys()),
    ):
        beside = file.parent / name
        if beside.is_file():
            try:
                added += [int(index) for index in ids(json.loads(beside.read_text(encoding="utf-8")))]
            except (ValueError, AttributeError, TypeError) as error:
                raise WeightsError(f"'{beside}' cannot be read: {error}") from None
    return max(added) + 1


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
