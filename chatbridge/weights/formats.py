"""Telling from a file's names what it is. Contents are not read, file names are not believed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from chatbridge.common.registry import ENCODERS

VISION, AUDIO, LANGUAGE, WHOLE = "vision encoder", "audio encoder", "language model", "whole model"
"""The slots that a file can be for."""


@dataclass(frozen=True)
class WeightFormat:
    """A kind of file.

    Attributes:
        title: what it is, for people. slot: what it is for.
        place: where a configuration names such a file.
        refusal: why it cannot be used, where that is so.
        recognises: of an encoder's files: whether these names are of one.
    """

    title: str
    slot: str
    place: str
    refusal: str = ""
    recognises: Callable[[Collection[str]], bool] | None = None


_WHOLE_PLACE = "model.weights"

FORMATS = {
    "llama": WeightFormat("LLaMA or Vicuna language model", LANGUAGE, "llm.path (its folder)"),
    "chatbridge": WeightFormat("checkpoint of this project", WHOLE, _WHOLE_PLACE),
    "original": WeightFormat("original ChatBridge checkpoint", WHOLE, _WHOLE_PLACE),
    "blip2": WeightFormat("LAVIS BLIP-2 checkpoint", WHOLE, _WHOLE_PLACE),
    "minigpt4": WeightFormat("MiniGPT-4 checkpoint", WHOLE, _WHOLE_PLACE),
    "instructblip": WeightFormat(
        "InstructBLIP checkpoint", WHOLE, _WHOLE_PLACE,
        "its Q-Former reads the instruction too and cannot stand in for BLIP-2's; take a BLIP-2 checkpoint",
    ),
    "llama_meta": WeightFormat(
        "LLaMA in Meta's own layout", LANGUAGE, "llm.path",
        "convert it with transformers' LLaMA conversion first",
    ),
    "unknown": WeightFormat("nothing known", "", "", "its tensors have the names of no format that ChatBridge reads"),
}  # fmt: skip
"""Of whole models and language models; encoders state those of their files themselves."""


def encoder_formats() -> dict[str, WeightFormat]:
    """Registered encoder -> the format of its files, of those that state one."""
    stated = {name: getattr(ENCODERS.get(name).target, "file_format", None) for name in ENCODERS}
    return {name: found for name, found in stated.items() if found is not None}


def format_of(kind: str) -> WeightFormat:
    """The format that `detect` names."""
    return FORMATS[kind] if kind in FORMATS else encoder_formats()[kind]


def detect(names: Iterable[str]) -> str:
    """The key in `FORMATS`, or the name of the encoder, of a file with these tensors."""
    names = [name.removeprefix("module.") for name in names]
    known = set(names)

    def any_below(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    if any_below("bridges."):
        return "chatbridge"
    if any_below("audio_trans.") or "audio_query_tokens" in known:
        return "original"
    if "image_query_tokens" in known and "query_tokens" not in known:
        return "original"
    if any_below("llm_proj."):
        return "instructblip"
    if any_below("llama_proj."):
        return "minigpt4"
    if "query_tokens" in known or any_below("Qformer."):
        return "blip2"
    for name, kind in encoder_formats().items():
        if kind.recognises(known):
            return name
    if "layers.0.attention.wq.weight" in known:
        return "llama_meta"
    if "model.embed_tokens.weight" in known or "model.layers.0.self_attn.q_proj.weight" in known:
        return "llama"
    return "unknown"


def wrong_slot(what: str, kind: str, slot: str) -> str:
    """The line that says that a file is not what its place needs."""
    found = format_of(kind)
    if found.refusal:
        return f"{what}: {found.title} is not usable as {slot}: {found.refusal}"
    return f"{what} is {article(found.title)}, not {article(slot)}; a configuration names it under {found.place}"


def article(noun: str) -> str:
    """The noun with "a" or "an"."""
    return ("an " if noun[0].lower() in "aeio" else "a ") + noun
