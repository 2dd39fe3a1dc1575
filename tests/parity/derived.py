"""Cases that the original's data do not hold, worked out from those that they do.

What the original would have given follows from its rules (tests/golden/README.md) and its own numbers: only the first
channel of a sound is heard, and a sequence keeps its first `max_txt_len` positions, whatever stands there. Nothing here
goes through the code that cuts or mixes; the encoders, which other cases hold to the original, are asked for gradients
alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from chatbridge.common.batch import IGNORE
from chatbridge.processors.tokenizer import load_tokenizer
from tests.parity.conftest import Case
from tests.parity.model_cases import gradients, model_of, rows_of
from tests.parity.test_assembly import placed

FILLER = "the small bird looks at a tall tree and the river "


@dataclass(frozen=True)
class DerivedCase(Case):
    """A case made of another one.

    Attributes:
        base: its name. make: gives the sidecar and the tensors.
    """

    base: str = ""
    make: Callable[[Case], tuple[dict[str, Any], dict[str, Tensor]]] | None = None

    @cached_property
    def _made(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return self.make(Case(self.folder, self.base))

    @cached_property
    def info(self) -> dict:
        return self._made[0]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return self._made[1]


def derived_cases(folder) -> list[DerivedCase]:
    """Those whose bases are in the folder."""
    known = [
        ("audio_sr22050", "audio_sr22050_stereo", stereo),
        ("audio_w1", "audio_w1_stereo", stereo),
        ("chatbridge_s2_ti", "chatbridge_s2_ti_cut_in_medium", lambda base: cut_in_medium(base, 0)),
        ("chatbridge_s2_tva", "chatbridge_s2_tva_cut_in_second_medium", lambda base: cut_in_medium(base, 1)),
        ("chatbridge_s3_multi_image", "chatbridge_s3_cut_in_medium", lambda base: cut_in_medium(base, 0)),
    ]
    return [DerivedCase(folder, name, base, make) for base, name, make in known if (folder / f"{base}.json").exists()]


def stereo(base: Case) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The same recording with another sound on a second channel, both of them resampled (as the original does)."""
    generator = torch.Generator().manual_seed(1)
    tensors = dict(base.tensors)
    for name in ("inputs/waveform", "outputs/resampled"):
        if name in tensors:
            other = 0.1 * torch.randn(tensors[name].shape, generator=generator)
            tensors[name] = torch.cat([tensors[name], other])
    return base.info, tensors


def cut_in_medium(base: Case, which: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The first sample as it is, the second with so much text in front that the limit falls into one of its media."""
    info = base.info | {"config": dict(base.info["config"])}
    kept, long = info["text_inputs"]["conversation"]
    model, tokenizer = model_of(base), load_tokenizer(base.folder / "tokenizer")

    def places(conversation: str) -> list:
        return placed(base, conversation, tokenizer, rows_of(model))

    most = len(_visible(base, 0)[0])
    before = long
    while places(long)[which].start + 3 < most:
        long = long.replace("###Human: ", "###Human: " + FILLER, 1)
    limit = places(long)[which].start + 3
    info["text_inputs"] = info["text_inputs"] | {"conversation": [kept, long]}
    info["config"]["max_txt_len"] = limit
    shift = places(long)[0].start - places(before)[0].start
    prefix = long.split("<query>")[0]

    table = model.llm.model.get_input_embeddings().weight.detach()
    start = table[tokenizer.encode(prefix)]
    rows = []
    for index, conversation in ((0, kept), (1, before)):
        embeds, targets = _visible(base, index)
        embeds = _with_gradients(base, model, index, embeds, places(conversation))
        if index == 1:
            old = places(before)[0].start
            embeds = torch.cat([start, embeds[old:]])[:limit]
            targets = pad(targets, (shift, 0), value=IGNORE)[:limit]
        rows.append((embeds, targets))
    outputs = _assembled(rows, table[tokenizer.bos_id])
    logits = model.llm.model(
        inputs_embeds=outputs["inputs_embeds"],
        attention_mask=outputs["attention_mask"],
        position_ids=torch.arange(limit + 1).expand(2, -1),
        use_cache=False,
    ).logits
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), outputs["targets"][:, 1:].flatten(), ignore_index=IGNORE)
    loss.backward()
    found = {name: grad for name, grad in gradients(model).items() if grad is not None}
    info |= {"loss": loss.item(), "grad_norms": {name: float(grad.norm()) for name, grad in found.items()}}
    tensors = {f"inputs/{name}": tensor for name, tensor in base.inputs.items()}
    tensors |= {f"outputs/{name}": tensor.detach() for name, tensor in outputs.items()}
    tensors |= {f"outputs/grad/{name}": found[name] for name in base.part("outputs/grad")}
    return info, tensors | {"outputs/logits": logits.detach()}


def _visible(base: Case, index: int) -> tuple[Tensor, Tensor]:
    """Embeddings and targets of a sample of the original's batch, without padding and BOS."""
    mask = base.outputs["attention_mask"][index].bool()
    mask[0] = False
    return base.outputs["inputs_embeds"][index][mask], base.outputs["targets"][index][mask]


def _with_gradients(base: Case, model: Any, index: int, embeds: Tensor, places: list) -> Tensor:
    """The original's embeddings of a sample, its media once more from the encoders, which know where they come from."""
    embeds = embeds.clone()
    for place in places:
        media = base.inputs[place.modality][index]
        if base.info["config"]["stage"] == 3:  # every picture for itself
            media = media.unsqueeze(1)
        rows = model.encode(place.modality, media.reshape(-1, *media.shape[-4:])).flatten(0, 1)
        torch.testing.assert_close(embeds[place.start : place.end], rows, atol=1e-4, rtol=0)
        embeds = torch.cat([embeds[: place.start], rows, embeds[place.end :]])
    return embeds


def _assembled(rows: list[tuple[Tensor, Tensor]], bos: Tensor) -> dict[str, Tensor]:
    """Padded on the left with nothing, then BOS in front, with the mask of the first column."""
    longest = max(len(targets) for _, targets in rows)
    gaps = [longest - len(targets) for _, targets in rows]
    embeds = torch.stack([pad(embeds, (0, 0, gap, 0)) for (embeds, _), gap in zip(rows, gaps, strict=True)])
    targets = torch.stack([pad(targets, (gap, 0), value=IGNORE) for (_, targets), gap in zip(rows, gaps, strict=True)])
    mask = torch.stack([pad(torch.ones(longest - gap, dtype=torch.long), (gap, 0)) for gap in gaps])
    return {
        "inputs_embeds": torch.cat([bos.expand(len(rows), 1, -1), embeds], 1),
        "targets": pad(targets, (1, 0), value=IGNORE),
        "attention_mask": torch.cat([mask[:, :1], mask], 1),
    }
