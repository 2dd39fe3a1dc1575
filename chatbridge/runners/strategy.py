"""How a model is spread over processes: DDP for what learns, FSDP2 for the frozen language model where asked for.

Either way one reducer, DDP's, joins the gradients of the trainable parameters; it never sees a frozen one. Under
``fsdp`` the language model's layers are sharded as well, and gathered one at a time as the forward and the backward
pass come to them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from chatbridge.common.registry import nearest
from chatbridge.models.language_model_checks import PACKING, READING
from chatbridge.models.llm import CausalLM
from chatbridge.runners.config import TrainingConfig

logger = logging.getLogger("chatbridge")


class Strategy:
    """Places a model on this process' device, as the ``run:`` section says.

    Args:
        config: its `strategy`, `offload_frozen` and `compile`.
        device: this process' device; rank, world, local_rank, local_world: its place among all, and on its node.
    """

    def __init__(
        self, config: TrainingConfig, device: torch.device, rank: int, world: int, local_rank: int, local_world: int
    ):
        self.config, self.device = config, device
        self.rank, self.world, self.local_rank, self.local_world = rank, world, local_rank, local_world

    @property
    def name(self) -> str:
        return self.config.strategy

    def build(self, make: Callable[[torch.device], nn.Module]) -> nn.Module:
        """The model, on the device, its frozen part sharded where that is asked for.

        Under fsdp the processes of a node build one after the other in host memory and keep their shard, so that the
        node holds one whole copy at a time and a GPU never does.

        Args:
            make: builds the model with its weights on the device it is given.

        Raises:
            ValueError: for a language model that cannot be read from as bridges need it.
        """
        if self.name == "ddp":
            model = make(self.device).to(self.device)
        else:
            self._require_processes()
            for turn in range(self.local_world):
                if turn == self.local_rank:
                    model = make(torch.device("cpu"))
                    self._shard(model.llm)
                    for name, child in model.named_children():
                        if name != "llm":
                            child.to(self.device)
                if self.world > 1:
                    dist.barrier()
        model.every_branch = self.world > 1
        if isinstance(getattr(model, "llm", None), CausalLM):
            model.llm.try_out(READING, PACKING)  # before anything is compiled, or operations are counted
            model.llm.require(READING)
        if self.config.compile is not None:
            compile_blocks(model, self.config.compile)
        return model

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as it is called in training: with its gradients joined over the processes."""
        if self.world == 1:
            return model
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        frozen += [name for name, _ in model.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True, broadcast_buffers=False)

    def _require_processes(self) -> None:
        if not dist.is_initialized():  # a single process, started without torchrun
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)

    def _shard(self, llm: nn.Module) -> None:
        """Shard every block, the embeddings and the head, each on its own, and what is left with the whole."""
        learning = [name for name, parameter in llm.named_parameters() if parameter.requires_grad]
        if learning:
            raise ValueError(f"run.strategy fsdp shards a frozen language model, and {learning[0]} learns; take ddp")
        mesh = init_device_mesh(self.device.type, (self.world,))
        offload = CPUOffloadPolicy(pin_memory=self.device.type == "cuda") if self.config.offload_frozen else None
        settings = {"mesh": mesh, "reshard_after_forward": True, "offload_policy": offload or OffloadPolicy()}
        for block in blocks_of(llm):
            fully_shard(block, **settings)
        tables = [llm.model.get_input_embeddings(), llm.model.get_output_embeddings()]
        ignored = set()
        if tables[1] is not None and tables[0].weight is tables[1].weight:
            # One tensor in two modules that run apart from each other: it stays whole.
            tables[0].to(self.device)
            ignored = {tables[0].weight}
        else:
            for table in filter(None, tables):
                fully_shard(table, **settings)
        fully_shard(llm, ignored_params=ignored or None, **settings)
        for method in ("embed", "logits_at", "generate", "try_out"):
            register_fsdp_forward_method(llm, method)
        left = [n for n, p in llm.named_parameters() if not isinstance(p, DTensor) and p not in ignored]
        if left:
            raise ValueError(f"run.strategy fsdp: cannot shard this language model, {left[0]} stayed whole; take ddp")


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The repeated layers of a transformer: the longest list of modules of one class. Empty when there is none."""
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList) and len({type(c) for c in m}) == 1]
    return list(max(lists, key=len)) if lists else []


def check_backend(backend: str) -> None:
    """Raise ValueError for a backend of ``torch.compile`` that does not exist, or whose library is not installed."""
    if backend == "inductor":
        return
    known = [name for name in torch._dynamo.list_backends(exclude_tags=()) if not name.endswith("TESTING_ONLY")]
    if backend not in known:
        raise ValueError(f"run.compile: no backend is called '{backend}'; {nearest(backend, known)}")
    library = {"tvm": "tvm", "openxla": "torch_xla", "openxla_eval": "torch_xla"}.get(backend)
    if library is not None and importlib.util.find_spec(library) is None:
        raise ValueError(f"run.compile: '{backend}' needs {library}, which is not installed")


def compile_blocks(model: nn.Module, backend: str) -> int:
    """Compile the repeated layers of the language model and of every encoder, in place; returns how many.

    One compilation serves all layers of a stack. Whole models are not compiled: lengths and modalities change from
    step to step.

    Raises:
        ValueError: an unknown backend.
    """
    check_backend(backend)
    blocks = blocks_of(model.llm)
    for bridge in model.bridges.values():
        blocks += blocks_of(bridge.encoder)
    for block in blocks:
        block.compile(backend=backend, dynamic=True)
    logger.info("%d layers will be compiled when they first run (%s)", len(blocks), backend)
    return len(blocks)


@contextlib.contextmanager
def no_reduction(wrapped: nn.Module, wanted: bool) -> Iterator[None]:
    """Inside, backward passes add to the gradients of this process only."""
    with wrapped.no_sync() if wanted and isinstance(wrapped, DistributedDataParallel) else contextlib.nullcontext():
        yield


def join_restarted(timeout: timedelta, cpu: bool) -> None:
    """After a restart by torchrun on a single node, meet the other processes under names of this attempt.

    The agent's store outlives its workers, and still holds the addresses of the dead ones, which gloo would try
    (PyTorch 2.11). With several nodes, agents count restarts differently: see docs/multinode.md.
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("GROUP_WORLD_SIZE") == "1"
    if attempt == 0 or not shared or dist.is_initialized():
        return
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, world, is_master=False, timeout=timeout)
    backend = "gloo" if cpu or not torch.cuda.is_available() else "nccl"
    prefixed = dist.PrefixStore(f"attempt_{attempt}", store)
    dist.init_process_group(backend, store=prefixed, rank=rank, world_size=world, timeout=timeout)
