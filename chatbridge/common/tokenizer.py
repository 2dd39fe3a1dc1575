"""What the package asks of a tokenizer (implementations: `chatbridge.processors.tokenizer`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """What the rest of the package asks of a tokenizer. It must survive pickling (data-loader workers).

    Attributes:
        bos_id: id that opens a sequence, or None when the model has none.
        eos_id: id that closes one, or None.
        pad_id: id written at padded positions (masked everywhere, so any valid id serves).
        vocab_size: how many ids there are, added ones included.
    """

    bos_id: int | None
    eos_id: int | None
    pad_id: int
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Token ids of one piece of text, without BOS or EOS (unless the text spells them)."""
        ...

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of token ids; special ones are left out, or spelled."""
        ...
