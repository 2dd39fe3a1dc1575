"""Segments to token ids: one flat sequence with a placeholder run for every slot, and labels beside it.

Done in the data-loader worker. When a sample is too long, media are never cut and a label always remains: first
whole exchanges go, then the middle of long prompt text, then the tail of the answer; what still does not fit is
refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from chatbridge.common.batch import IGNORE
from chatbridge.common.documents import repaired
from chatbridge.common.tokenizer import Tokenizer
from chatbridge.conversation.segments import Media, Segment, Text

_EDGE = 8
"""Tokens kept at each end of a prompt piece that is shortened in the middle: its tags and first words."""


@dataclass(slots=True)
class Slot:
    """A run of positions that `count` media of one modality fill, `length` positions in all."""

    modality: str
    start: int
    length: int
    count: int = 1


@dataclass(slots=True)
class TokenizedSample:
    """One sample, without BOS and padding (those belong to the batch).

    Attributes:
        id: the sample's id, for messages and reports.
        input_ids: token ids; 0 at media positions, where nothing is looked up.
        labels: the token itself where it is supervised, else `IGNORE`.
        slots: where media go, in reading order.
        cut: how many text tokens were cut away to make it fit.
    """

    id: str
    input_ids: list[int]
    labels: list[int]
    slots: list[Slot] = field(default_factory=list)
    cut: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(slots=True)
class Piece:
    """A segment's tokens (text) or its number of positions (media)."""

    ids: list[int]
    supervised: bool = False
    media: Media | None = None
    length: int = 0

    def __len__(self) -> int:
        return self.length if self.media is not None else len(self.ids)


def fit_into(sample_id: str, pieces: Sequence[Piece], limit: int) -> list[Piece]:
    """Shorten until everything fits, keeping all media and, where there was one, a supervised token.

    Raises:
        ValueError: when that cannot be.
    """
    pieces = _drop_exchanges(list(pieces), limit)
    over = sum(map(len, pieces)) - limit
    if over <= 0:
        return pieces
    room = limit - _media_length(pieces)
    texts = [piece for piece in pieces if piece.media is None]
    answer = texts.pop() if texts and texts[-1].supervised else None
    # A long question may not starve the answer, nor a long answer the question: the answer keeps up to half the room.
    wanted = min(len(answer), max(1, room // 2)) if answer is not None else 0
    over -= _shorten(texts, min(over, max(0, sum(map(len, texts)) + wanted - room)))
    if answer is not None and over > 0:
        cut = min(over, len(answer) - 1)
        answer.ids = answer.ids[: len(answer) - cut]
        over -= cut
    if over > 0:
        raise ValueError(
            f"sample '{sample_id}' does not fit into {limit} positions: its media take {_media_length(pieces)} and "
            f"its text cannot be cut below {_text_length(pieces)}; raise the limit of tokens or show fewer media"
        )
    return pieces


def tokenize(
    sample_id: str,
    segments: Sequence[Segment],
    tokenizer: Tokenizer,
    rows: Mapping[str, int],
    max_tokens: int | None = None,
    budget: str = "all",
    fit: Callable[[str, Sequence[Piece], int], list[Piece]] = fit_into,
) -> TokenizedSample:
    """Tokenise the pieces of one sample, each on its own, and make them fit.

    Args:
        sample_id: named in errors.
        segments: what `PromptFormat.segments` or `caption_segments` gave.
        tokenizer: the language model's.
        rows: modality -> positions that one medium of it fills.
        max_tokens: the limit, BOS not counted; None for no limit.
        budget: what the limit counts: "all" positions, media included (stage 2), or "text" alone (stage 1).
        fit: makes pieces fit that are over the limit.

    Raises:
        ValueError: a modality that `rows` does not have, or a sample that cannot be made to fit.
    """
    if budget not in ("all", "text"):
        raise ValueError(f"budget is 'all' or 'text', not '{budget}'")
    pieces = [_piece(sample_id, segment, tokenizer, rows) for segment in segments]
    sample = _assemble(sample_id, pieces)
    media = sum(slot.length for slot in sample.slots)
    limit = len(sample) if max_tokens is None else max_tokens + (media if budget == "text" else 0)
    if len(sample) > limit:
        before = _text_length(pieces)
        pieces = fit(sample_id, pieces, limit)
        sample = _assemble(sample_id, pieces)
        sample.cut = before - _text_length(pieces)
    return sample


def _piece(sample_id: str, segment: Segment, tokenizer: Tokenizer, rows: Mapping[str, int]) -> Piece:
    if isinstance(segment, Text):
        # Here all text passes on its way to a tokenizer, and tokenizers refuse what is not Unicode.
        return Piece(tokenizer.encode(repaired(segment.text)), segment.supervised)
    if segment.modality not in rows:
        raise ValueError(
            f"sample '{sample_id}' shows '{segment.modality}', which this model has no bridge for; "
            f"it has: {', '.join(sorted(rows)) or 'none'}"
        )
    return Piece([], media=segment, length=segment.count * rows[segment.modality])


def _assemble(sample_id: str, pieces: Sequence[Piece]) -> TokenizedSample:
    sample = TokenizedSample(sample_id, [], [])
    for piece in pieces:
        if piece.media is not None:
            slot = Slot(piece.media.modality, len(sample.input_ids), piece.length, piece.media.count)
            sample.slots.append(slot)
            sample.input_ids += [0] * piece.length
            sample.labels += [IGNORE] * piece.length
        else:
            sample.input_ids += piece.ids
            sample.labels += piece.ids if piece.supervised else [IGNORE] * len(piece.ids)
    return sample


def _drop_exchanges(pieces: list[Piece], limit: int) -> list[Piece]:
    """Leave out whole exchanges behind the last medium, but never the first one nor a question still open.

    In training the latest go: what remains is the beginning of the dialogue, as it was. In generation the oldest go,
    except for the first, whose text closes the introduction of the media.
    """
    start = max((i + 1 for i, piece in enumerate(pieces) if piece.media is not None), default=0)
    while sum(map(len, pieces)) > limit:
        ends = [i + 1 for i in range(start, len(pieces)) if pieces[i].supervised]
        if len(ends) < 2:
            break
        is_open = ends[-1] < len(pieces)
        pieces = pieces[: ends[0]] + pieces[ends[1] :] if is_open else pieces[: ends[-2]]
    return pieces


def _shorten(pieces: Sequence[Piece], amount: int) -> int:
    """Take up to `amount` tokens out of the middles of the longest pieces; returns how many were taken."""
    total = sum(map(len, pieces))
    low, high = 2 * _EDGE, max([2 * _EDGE, *map(len, pieces)])
    while low < high:  # the largest common cap that takes enough
        cap = (low + high + 1) // 2
        if total - sum(min(len(piece), cap) for piece in pieces) >= amount:
            low = cap
        else:
            high = cap - 1
    for piece in pieces:
        surplus = min(len(piece) - low, amount)
        if surplus > 0:
            keep = len(piece) - surplus
            piece.ids = piece.ids[: keep - keep // 2] + piece.ids[len(piece.ids) - keep // 2 :]
            amount -= surplus
    return total - sum(map(len, pieces))


def _media_length(pieces: Sequence[Piece]) -> int:
    return sum(len(piece) for piece in pieces if piece.media is not None)


def _text_length(pieces: Sequence[Piece]) -> int:
    return sum(len(piece) for piece in pieces if piece.media is None)
