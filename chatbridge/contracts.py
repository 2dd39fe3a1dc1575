"""What each kind of part must have. Read this first; whatever has these members can be named in a YAML.

A part is registered under a name together with the dataclass of its YAML keys, and built from an instance of that:

    @PROJECTORS.register("mine", config=MineConfig)
    class Mine(nn.Module): ...

Members marked optional may be left out; what is done then stands beside them. Shape letters are those of
`chatbridge.common.batch`; R counts the rows of one medium. `tests/test_contracts.py` holds all parts of the package to
this file, and `tests/plugins/` has parts from outside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from chatbridge.common.read_mode import EVALUATION, ReadMode

if TYPE_CHECKING:
    from pathlib import Path

    from chatbridge.common.batch import MultimodalBatch, RawMedia
    from chatbridge.common.tokenizer import Tokenizer
    from chatbridge.conversation.tokens import TokenizedSample
    from chatbridge.datasets.collate import Collator
    from chatbridge.datasets.kinds import TaskKind
    from chatbridge.datasets.records import Record
    from chatbridge.evaluation.metrics import Prediction, Score
    from chatbridge.models.chatbridge import ChatBridgeOutput
    from chatbridge.models.row_counts import TokenShape
    from chatbridge.processors.base import Blob
    from chatbridge.runners.config import TrainingConfig
    from chatbridge.tasks.base import Rendered

Shape = tuple[int, ...]
RowsOf = Callable[[Shape], int]
"""How many rows a medium of shape [T, ...] becomes."""


@runtime_checkable
class Encoder(Protocol):
    """Built as ``Encoder(config)``: frames or clips to tokens. A module; frozen and in eval mode inside a bridge. Its
    configuration may have the keys ``weights`` (a file) and ``dtype`` (a precision).

    Attributes:
        width: E.

    Optional:
        token_count(shape) -> int: S of one frame or clip of that shape, such as (3, H, W). Without it, an empty frame
            is sent through.
        token_grid(shape) -> Tensor | None: [rows, columns], int64: which token stands where. Without it, or None: the
            tokens stand on no grid.
        file_format: a `chatbridge.weights.formats.WeightFormat`, how published files are recognised; with it goes
            read_names(mapping, names, extras): enters what each tensor of such a file is called here
            (`chatbridge.weights.coverage.NameMapping`). Without them the class reads its files itself.
        resamplers: tensor name -> function that brings a file's tensor to this module's shape.
        copies() -> dict[str, str]: names that published files repeat -> the one name here.
    """

    width: int

    def __call__(self, media: Tensor, /) -> Tensor:
        """float32 [M, ...], M frames or clips, to tokens [M, S, E]."""
        ...


class Projector(Protocol):
    """Encoder tokens to rows of the language model's width. A module.

    Built as ``Projector(config, token_width, llm_width)`` (E, D) and, by `model.share_perceivers`, with one argument
    more, ``shared``: an earlier bridge's projector whose trainable parts this one uses, too.

    Optional:
        may_differ: keys in which projectors that share may differ. Without it, none of this class can be shared.
        projection: the last linear layer, all that trains with `model.freeze_perceivers`.
        scale_rows(length): redraws `projection` so that rows have about that length (`projection_scale: auto`).
        cross_attentions: layer number -> its `qformer.QFormerAttention` to the tokens (`chatbridge.models.attention`).
        original_parts: name in the original's checkpoints -> module or parameter here.

    The configuration may have a key ``encoder_width``: the width of tokens that is wanted; an adapter makes it.
    """

    @staticmethod
    def rows(config: Any, tokens: TokenShape, /) -> int:
        """R of one medium, by T, S and grid: asked before there are weights, so that text leaves room for it."""
        ...

    def __call__(self, tokens_NTSE: Tensor, grid: Tensor | None, /) -> Tensor:
        """Normalised tokens [N, T, S, E] to rows [N, R, D]; `grid` is the encoder's `token_grid`."""
        ...


class LanguageModel(Protocol):
    """Built as ``LanguageModel(config)``: reads embeddings. A module; what it trains itself (LoRA) has requires_grad.

    Attributes:
        model: the transformers model inside. width: D. vocab_size: V. eos_ids: ids that end a text.
        dtype: of its embeddings. context: positions it was made for; None where that is not known.
    """

    model: Any
    width: int
    vocab_size: int
    eos_ids: list[int]

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def context(self) -> int | None: ...

    def embed(self, ids_BL: Tensor, /) -> Tensor:
        """Token embeddings [B, L, D]."""
        ...

    def embedding_norm(self) -> float:
        """The mean length of a token's embedding."""
        ...

    def block_mask(self, samples_BL: Tensor, /) -> Any:
        """The mask that keeps packed samples apart (-1: padding). Raises ValueError where that cannot be had."""
        ...

    def logits_at(self, embeds_BLD: Tensor, mask: Any, positions_BL: Tensor, keep_BL: Tensor, /) -> Tensor:
        """Logits [K, V], fp32, where `keep_BL` is true; `mask` is [B, L], or what `block_mask` gave."""
        ...

    def generate(self, embeds_BLD: Tensor, mask_BL: Tensor, max_new_tokens: int, /, *args: Any, **options: Any) -> Any:
        """New ids [B, new] after left-padded prompts; options as in `chatbridge.models.llm.CausalLM.generate`."""
        ...

    def new_cache(self) -> Any:
        """An empty cache for `step`."""
        ...

    def step(self, cache: Any, ids_BL: Tensor | None = None, embeds_BLD: Tensor | None = None) -> Tensor:
        """Logits [B, V], fp32, of what follows the given positions, which enter the cache."""
        ...

    def trim(self, ids: list[int], stop: Callable[[list[int]], bool] | None = None, /) -> list[int]:
        """A generated row without its end."""
        ...

    def portable_config(self, path: str, /) -> Any:
        """This model's configuration where a folder holds its config.json (`save_pretrained`)."""
        ...


class Model(Protocol):
    """Built as ``Model(config)``: what a runner trains, an evaluation asks and a conversation is held with. A module.

    Attributes:
        every_branch: set by the runner where processes train together: every trainable parameter must then get a
            gradient from every batch, zeros where it has no use for it.

    Optional:
        rows_of(config) -> Mapping[str, RowsOf]: as `rows`, of a configuration, static. Without it no medium is known.
    """

    every_branch: bool
    llm: Any

    @property
    def device(self) -> torch.device: ...

    @property
    def rows(self) -> Mapping[str, RowsOf]:
        """Modality -> how many rows a medium becomes."""
        ...

    def __call__(self, batch: MultimodalBatch, /) -> ChatBridgeOutput:
        """The loss of a batch."""
        ...

    def encode(self, modality: str, media_NT: Tensor, /) -> Tensor:
        """Media [N, T, ...] to rows [N, R, D]."""
        ...

    def generate(self, batch: MultimodalBatch, max_new_tokens: int, /, *args: Any, **options: Any) -> list[list[int]]:
        """New token ids of every sample of a left-padded batch."""
        ...

    def branches(self) -> Mapping[str, list[nn.Parameter]]:
        """Trainable parameters that a batch may leave unused, by branch."""
        ...

    def branches_of(self, batch: MultimodalBatch, /) -> set[str]:
        """The branches that a batch goes through."""
        ...

    def trainable_state(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        ...

    def load_trainable(self, state: Mapping[str, Tensor], where: str = "", /) -> None:
        """Take over what `trainable_state` gave. Raises ValueError for anything missing, left over or misshapen."""
        ...


@runtime_checkable
class Processor(Protocol):
    """Built as ``Processor(config)``: a file of one modality (or its bytes) to a tensor [T, ...].

    Attributes:
        modality: the name it goes by when a configuration gives no other.
        extensions: file name endings (lower case, with dot) that are tried when a reference has none.
        shape: of every tensor that `load` and `blank` return (of raw media, when they are finished), T first.
    """

    modality: str

    @property
    def extensions(self) -> tuple[str, ...]: ...

    @property
    def shape(self) -> Shape: ...

    def load(self, source: str | Path | Blob, mode: ReadMode = EVALUATION) -> Tensor | RawMedia:
        """float32 [T, ...]; the training rules may leave the last of it to the model's device.

        Raises:
            MediaError: when the file is missing, unreadable, truncated or empty of this modality.
        """
        ...

    def blank(self) -> Tensor:
        """A medium with nothing in it (a black picture, silence), put through the same pipeline: for ablations."""
        ...


class Task(Protocol):
    """Built as ``Task(config)``: from a record to pieces of text and media slots. `chatbridge.tasks.base.BaseTask` has
    usual forms of all but `render`.

    Attributes:
        stop: texts that end a generated answer. max_txt_len: the limit of `tokenize`, BOS not counted.

    Optional:
        prompt: a `PromptFormat`. Without it no conversation can be held.
    """

    stop: tuple[str, ...]
    max_txt_len: int

    def parse(self, entry: Any, index: int = 0, /) -> Record:
        """An annotation entry, the `index`-th of its file, typed. Raises ValueError where it is no JSON object."""
        ...

    def render(
        self, record: Record, kind: TaskKind, mode: ReadMode, item: int | None, prompt_only: bool, /
    ) -> Rendered:
        """One sample; in evaluation nothing is drawn, `item` picks a question, `prompt_only` omits the answer."""
        ...

    def items(self, record: Record, kind: TaskKind, /) -> Sequence[int | None]:
        """The questions of a record that evaluation asks one by one."""
        ...

    def check_kind(self, kind: TaskKind, /) -> None:
        """Raise ValueError for a kind of sample that this task cannot write."""
        ...

    def tokenize(self, rendered: Rendered, tokenizer: Tokenizer, rows: Mapping[str, int], /) -> TokenizedSample:
        """Ids, labels and slots; `rows` is what one medium of each modality takes."""
        ...

    def collator(self, tokenizer: Tokenizer, /) -> Collator:
        """What makes training batches of samples."""
        ...


class Metric(Protocol):
    """Built as ``Metric(config)``: how good answers are."""

    def __call__(self, answers: Sequence[Prediction], /) -> Mapping[str, Score]:
        """Named values, each with the number of answers it is of, from all answers of a set, or of a group of it, at
        once. An answer without references has an empty tuple of them."""
        ...


class Optimizer(Protocol):
    """A function (or class) that makes `torch.optim.Optimizer` objects, called once a run."""

    def __call__(self, config: Any, named: Sequence[tuple[str, nn.Parameter]], run: TrainingConfig, /) -> list[Any]:
        """One or more optimizers that hold every parameter of `named`, all of which are trainable, once.

        Before every step the loop sets each group's "lr": the schedule's rate times the group's "lr_scale", 1 where it
        has none (`chatbridge.common.optim.with_peak`). What a resumed run needs is in `state_dict`. Parameters may be
        DTensors. Raises ValueError for keys that do not go together.
        """
        ...


class Schedule(Protocol):
    """Made by ``function(config, run)``, `run` being the `TrainingConfig`: a pure function, so that there is no state.

    Raises ValueError when it is made for keys that do not go together.
    """

    def __call__(self, step: int, /) -> float:
        """The learning rate of a step, counted from 0; `run.init_lr` is its peak."""
        ...


class Logger(Protocol):
    """Built as ``Logger(config)``, also by `--check`: raises ValueError where it could not log. Used on rank 0 only."""

    def start(self, folder: Path, resumed_at: int, config: Mapping[str, Any], /) -> None:
        """Begin, or go on: what a killed run logged after step `resumed_at` is dropped; 0 for a new run.

        Args:
            folder: the run folder. config: the whole configuration, as plain values.
        """
        ...

    def write(self, step: int, values: Mapping[str, Any], split: str, /) -> None:
        """Numbers and names of a step, some of them nested (`chatbridge.common.loggers.scalars` flattens them).

        Args:
            split: "train", or "validation", once for every held-out set, whose name is "dataset".
        """
        ...

    def close(self) -> None: ...


class Runner(Protocol):
    """Built as ``Runner(config, assembly)``, `chatbridge.runners.assembly.Assembly`: does what train.py was started
    for."""

    def run(self) -> None:
        """Raises ValueError with what the user has to change."""
        ...
