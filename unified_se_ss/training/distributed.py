"""The processes of a run: they join, agree before the first step, and notice a lost one.

A rank is one of the processes that torchrun has started. One that ends ends the others:

* On the same machine, at their next exchange, which fails as soon as its connection
  is gone (gloo); torchrun stops the others, and kills what is left 30 s later (NCCL).
* A machine that goes without a word is noticed after ``rank_timeout_minutes``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process, run_on_main

from unified_se_ss.errors import UserError, first_line, first_names
from unified_se_ss.training.signals import EXIT_CODE

logger = logging.getLogger(__name__)

# As long as one rank may be busy alone while the others wait, as with a corpus it makes.
TIMEOUT_MINUTES = 60
# In the errors of gloo, NCCL and torch's store.
OF_RANKS = ("gloo", "NCCL", "ProcessGroup", "TCPStore", "Connection closed by peer")


def world_size() -> int:
    """Number of processes of this run."""
    initialized = torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if initialized else 1


def sum_of_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Add up a tensor over all ranks, in place."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor)
    return tensor


def rank_and_size() -> dict:
    """This process' rank and the number of processes, as samplers take them."""
    return {
        "rank": int(os.environ.get("RANK", 0)),
        "world_size": int(os.environ.get("WORLD_SIZE", 1)),
    }


def on_main(function, *arguments):
    """Call a function on the main process, then on the others; each gets its result.

    For what makes files once and is quick when they are there.
    """
    results = []
    run_on_main(
        lambda: results.append(function(*arguments)),
        post_func=lambda: results.append(function(*arguments)),
    )
    return results[0]


def gather(items: list) -> list:
    """Join the lists of all ranks; each of them calls this and gets all items."""
    if not torch.distributed.is_initialized():
        return items
    parts = [None] * world_size()
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def join(backend: str, timeout_minutes: float = TIMEOUT_MINUTES) -> None:
    """Join the other processes of a run, if torchrun has started it.

    Arguments
    ---------
    backend : str
        ``"nccl"``, which needs a GPU for each process, or ``"gloo"``.
    timeout_minutes : float
        How long an exchange waits for the others (default 60).

    Raises
    ------
    UserError
        There is no GPU for this process, or the others are not there.

    Example
    -------
    >>> join("gloo")  # not started by torchrun: nothing to join
    """
    if not {"RANK", "LOCAL_RANK"} <= os.environ.keys():
        return
    if not timeout_minutes > 0:
        raise UserError(f"rank_timeout_minutes: is {timeout_minutes}; expected more than 0")
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if backend == "nccl":
        if local >= gpus:
            raise UserError(
                f"process {local} of this machine has no GPU: there are {gpus}; start with "
                f"--nproc_per_node={max(1, gpus)}, or with --distributed_backend gloo"
            )
        torch.cuda.set_device(local)
    try:
        timeout = timedelta(minutes=timeout_minutes)
        torch.distributed.init_process_group(
            backend,
            store=_store_of_this_life(timeout),
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            timeout=timeout,
        )
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"process {os.environ['RANK']} cannot join the others ({first_line(error)}); "
            "start all of them with the same torchrun command"
        ) from error


def _store_of_this_life(timeout: timedelta):
    """Make the store where the processes find each other: torchrun's, anew after a restart.

    torchrun keeps one store over all restarts, in which the addresses of those who have
    died still stand (torch 2.11); whoever reads them waits for ever, or is refused.
    """
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = torch.distributed.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        int(os.environ["WORLD_SIZE"]),
        is_master=not served and os.environ["RANK"] == "0",
        timeout=timeout,
    )
    life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return torch.distributed.PrefixStore(f"life {life}", store)


@contextmanager
def report_lost_rank():
    """Leave with one message if an exchange fails because another process is gone.

    The exit code is that of a run that was asked to stop, "try again": what was trained
    until the last checkpoint is safe.
    """
    try:
        yield
    except RuntimeError as error:
        if not (torch.distributed.is_initialized() and _is_of_ranks(error)):
            raise
        rank = torch.distributed.get_rank()
        message = (
            f"\nerror: process {rank} of {world_size()} has lost another one and stops "
            f"({first_line(error)}). The same command goes on from the last checkpoint; "
            "torchrun --max-restarts=N does so by itself"
        )
        print(message, file=sys.stderr)
        sys.exit(EXIT_CODE)


def _is_of_ranks(error: BaseException) -> bool:
    """Tell if an error comes from an exchange among processes.

    Example
    -------
    >>> _is_of_ranks(RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed"))
    True
    >>> _is_of_ranks(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    is_known = isinstance(error, torch.distributed.DistError)
    return is_known or any(word in str(error) for word in OF_RANKS)


# ------------------------------------------------------------------ their number


@register_checkpoint_hooks
class RankCount:
    """Remembers in checkpoints how many processes a run has.

    Example
    -------
    >>> from speechbrain.utils.checkpoints import Checkpointer
    >>> checkpointer = Checkpointer(getfixture("tmpdir"), {"ranks": RankCount()})
    >>> _ = checkpointer.save_checkpoint()
    >>> _ = checkpointer.recover_if_possible()
    >>> checkpointer.recoverables["ranks"].check()
    """

    def __init__(self):
        self.saved = self.folder = None  # nothing was loaded, or it was checked
        self.within_epoch = False

    def check(self) -> None:
        """Compare with the checkpoint that training goes on from, if it was loaded.

        To be called before an epoch is trained. Another number is logged.

        Raises
        ------
        UserError
            The number is another, and the checkpoint lies within an epoch, whose rest is
            not known, because its batches were divided otherwise.
        """
        saved, now, self.saved = self.saved, world_size(), None
        if saved in (None, now):
            return
        if self.within_epoch:
            raise UserError(
                f"{self.folder}: was saved within an epoch by {saved} process(es), whose "
                f"batches {now} would divide otherwise; start with {saved}, or move this "
                "folder away to go on from the end of an epoch"
            )
        if if_main_process():
            logger.warning(
                f"Trained by {saved} process(es) so far, by {now} from now on: a step takes "
                f"{now / saved:.3g} times as many items, in another order, at the same "
                "learning rate; the result is not that of either number alone."
            )

    @mark_as_saver
    def _save(self, path):
        Path(path).write_text(str(world_size()), encoding="utf-8")

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        self.saved = int(Path(path).read_text(encoding="utf-8"))
        self.within_epoch, self.folder = not end_of_epoch, Path(path).parent


# ------------------------------------------------------------------ agreement


def _check_agreement(equal: dict, items=None) -> None:
    """Stop all processes unless `equal` is the same everywhere and the items differ.

    Every process calls this and gets the same error. Digests are bytes, which no message
    shows.
    """
    all_ranks = gather([(equal, tuple(map(str, items or ())))])
    first, seen = all_ranks[0][0], {}
    for rank, (theirs, items) in enumerate(all_ranks):
        names = [n for n in {**first, **theirs} if first.get(n) != theirs.get(n)]
        if names:
            for i, name in enumerate(names):
                one, other = first.get(name), theirs.get(name)
                if not isinstance(one, bytes):
                    names[i] = f"{name} ({one} and {other})"
            raise UserError(
                f"processes 0 and {rank} differ before the first step: {first_names(names)}. "
                "Start all with the same command and the same files (YAML, data, "
                "checkpoints), and change no module once the Brain has begun"
            )
        other = seen.setdefault(items, rank)
        if items and other != rank:
            raise UserError(
                f"processes {other} and {rank} have the same items in their first batch "
                f"({first_names(items)}): the data are not divided among them; give the "
                "sampler its rank and world_size (training.rank_and_size())"
            )


def _digest(tensor: torch.Tensor) -> bytes:
    """A hash of a tensor's type, shape and bits."""
    found = hashlib.blake2b(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), digest_size=8)
    if tensor.numel():
        bits = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(memoryview(bits.numpy()))
    return found.digest()


def check_first_step(brain, batch) -> None:
    """Stop before the first step of a run, or of a resumed one, unless all ranks agree.

    Equal must be parameters, buffers, the optimizers' state and learning rates, the
    length of the epoch and the place in it. Different must be the items of the batch,
    where it has ``ids`` (or SpeechBrain's ``id``).

    Raises
    ------
    UserError
        Names the processes and their differences, or the items that they share.
    """
    tensors = dict(brain.modules.named_parameters()) | dict(brain.modules.named_buffers())
    equal = {
        "batches of the epoch": getattr(brain, "_batches", None),
        "batches done": brain.step,
        "steps done": brain.optimizer_step,
        "grad_accumulation_factor": brain.grad_accumulation_factor,
        "precision": str(brain.precision),
    }
    for name, optimizer in brain.optimizers_dict.items():
        state = optimizer.state_dict()
        for number, kept in state["state"].items():
            for key, value in kept.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{name}'s {key} of parameter {number}"] = value
        rates = [str(float(group["lr"])) for group in state["param_groups"]]
        equal[f"{name}'s learning rate"] = ", ".join(rates)
    ids = getattr(batch, "ids", getattr(batch, "id", None))
    equal |= {name: _digest(tensor) for name, tensor in tensors.items()}
    _check_agreement(equal, ids)
    brain.ranks_agree = True
