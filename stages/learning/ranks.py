"""Training in several processes: each rank computes its part of every batch, and all take the same step.

`launch` starts the ranks on this machine. Under `torchrun`, also on several machines, they are there already. Either
way `joined` makes them one group: gloo on CPUs, nccl with a GPU for each rank. Without a group there is one rank, 0.

`train.teacher.processes` and `train.student.processes` of params.yaml say how many. Over several machines `torchrun`
starts them, by hand, and `dvc commit` records what rank 0 wrote; set `processes` to their number first, so that what is
recorded is what ran:

    torchrun --nproc-per-node 2 -m stages.pipeline.guard stages.train_teacher --cohort joint --teacher resnet18
"""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # torch's __all__ lacks Store
from torch.multiprocessing.spawn import ProcessException, start_processes

LOOPBACK = "127.0.0.1"
WAIT = timedelta(hours=1)  # for a rank that is busy elsewhere, before the others give up


class RankError(RuntimeError):
    """A rank has failed; the message names it and its reason."""


def are_there() -> bool:
    """Whether this process is a rank already, as `torchrun` and `launch` tell it."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def index() -> int:
    """Which rank this is; rank 0 writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def count() -> int:
    """How many ranks there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def total(values: Tensor) -> Tensor:
    """The sum over the ranks; all must ask for it, in the same order."""
    if count() > 1:
        distributed.all_reduce(values)
    return values


def of_first(value: Any) -> Any:
    """What rank 0 has, on every rank."""
    box = [value]
    if count() > 1:
        distributed.broadcast_object_list(box)
    return box[0]


@contextmanager
def joined(store: Store | None = None) -> Iterator[None]:
    """Make this rank part of its group while the block runs; its GPU, if there are any, becomes the current one.

    Args:
        store: where the ranks meet; None for where torchrun says.

    Raises:
        ValueError: there are GPUs, but not one for each rank of this machine.
    """
    local, backend = int(os.environ["LOCAL_RANK"]), "gloo"
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"each rank needs a GPU of its own, got {torch.cuda.device_count()} GPUs for rank {local} of this "
                "machine: lower processes (params.yaml: train.teacher.processes, train.student.processes)"
            )
        torch.cuda.set_device(local)
        backend = "nccl"
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    distributed.init_process_group(backend, store=store, timeout=WAIT, rank=rank, world_size=processes)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def launch(function: Callable[..., object], processes: int, *args: Any) -> None:
    """Run a function of a module in so many ranks on this machine, and wait for them.

    Args:
        function: called with `args` in every rank, and can be pickled, as they can.
        processes: number of ranks.
        args: what it is called with.

    Raises:
        RankError: a rank failed or died; the others were ended.
    """
    store = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
    given = (processes, store.port, function, args)
    begin: Any = start_processes  # torch has no types for it
    ranks = begin(_rank, given, processes, join=False, start_method="spawn")
    try:
        while not ranks.join():
            pass
    except ProcessException as error:
        exits = {rank: process.exitcode for rank, process in enumerate(ranks.processes)}
        # a rank that was killed takes the others with it, which then say no more than that it is gone
        killed = {rank: -code for rank, code in exits.items() if code and code < 0 and code != -signal.SIGTERM}
        rank = min(killed, default=error.error_index)
        reason = f"died of {signal.Signals(killed[rank]).name}" if killed else error.msg.strip().splitlines()[-1]
        raise RankError(f"rank {rank} of {processes}: {reason}") from error


def _rank(local: int, processes: int, port: int, function: Callable[..., object], args: tuple[Any, ...]) -> None:
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ |= {"RANK": str(local), "LOCAL_RANK": str(local), "WORLD_SIZE": str(processes)}
    os.environ["GLOO_SOCKET_IFNAME"] = loopback
    with joined(TCPStore(LOOPBACK, port, is_master=False)):
        function(*args)
