"""Batches whose loss or gradient was not finite: found without waiting, kept for replay."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import torch

from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_path

logger = logging.getLogger(__name__)

FORMAT = 1
FILES = 5  #: Files that one rank leaves in a run's folder, at most.
WEIGHTS_MB = 512  #: Larger networks are not put into the file; it names a checkpoint.


class NonFiniteMonitor:
    """Watches the losses and gradients of a run, and saves the batches that went wrong.

    A step leaves a few flags on the device and a record on the host. When the Brain looks
    at the device anyhow, the flags come along; a batch whose flag is down is saved under
    ``nonfinite/`` in the run's folder: its IDs and keys, its tensors, the random state
    before its forward pass, and the weights as they are then. With ``log_interval`` 1 (always
    so on a CPU) these are the weights that it met; else the file says how many steps later
    they were taken.

    Arguments
    ---------
    brain : RecipeBrain
        Whose steps are watched.
    files : int
        Files to write at most, by this process (default 5).
    """

    def __init__(self, brain, files: int = FILES):
        self.brain = brain
        self.folder = Path(brain.option("output_folder", ".")) / "nonfinite"
        self.files = files
        self._random = {}
        self._pending, self._since_step = [], []
        self._latest = None

    def forward_begins(self) -> None:
        """Keep the random state that the batch's forward pass begins with."""
        self._random = random_state()

    def record_losses(self, batch, losses) -> None:
        """Take down whether the losses of a batch are finite."""
        brain = self.brain
        record = {
            "epoch": brain.skipped.epoch,
            "batch": brain.step,
            "optimizer_step": brain.optimizer_step,
            "ids": [str(i) for i in getattr(batch, "ids", ())],
            "random": self._random,
        }
        self._latest = (brain.step, batch)
        self._since_step.append(record)
        flags = {
            f"{task} loss": loss.total.detach().isfinite()
            for task, loss in losses._asdict().items()
            if loss is not None
        }
        self._note(flags, [record])

    def note_gradients(self, combined) -> None:
        """Take down whether the gradients of a step are finite, all ranks' together."""
        records, self._since_step = self._since_step, []
        if not self.brain.scaler.is_enabled():  # its scale overflows now and then
            flags = {
                "main gradient": combined.main_finite,
                "auxiliary gradient": combined.auxiliary_finite,
            }
            self._note(flags, records)

    def _note(self, flags: dict, records: list) -> None:
        self._pending.append((list(flags), torch.stack(list(flags.values())), records))
        if self.brain.log_interval == 1:
            self.look()

    def look(self) -> None:
        """Fetch the flags (one transfer) and save what is due."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        flags = torch.cat([flags for _, flags, _ in pending]).tolist()
        for names, _, records in pending:
            down = [name for name in names if not flags.pop(0)]
            for record in records if down else ():
                if "found" not in record:
                    record["found"] = down
                    self._save(record)

    def _save(self, record: dict) -> None:
        """Write one batch down, unless there are enough of them."""
        place = f"epoch {record['epoch']}, batch {record['batch']}"
        what = f"{place}: not finite: {', '.join(record['found'])}"
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        path = self.folder / "epoch{epoch:04d}_batch{batch:06d}_rank{rank}.pt".format(
            **record, rank=rank
        )
        there = set(self.folder.glob(f"*_rank{rank}.pt"))
        if path not in there and len(there) >= self.files:
            logger.warning("%s (not saved: %s holds %d)", what, self.folder, len(there))
            return
        with atomic_path(path) as temporary:
            torch.save(self._contents(record), temporary)
        logger.warning("%s; saved, look at it with --replay %s", what, path)

    def _contents(self, record: dict) -> dict:
        """What the file holds: plain values and tensors alone."""
        brain = self.brain
        keys = self._keys(record["batch"])
        return {
            "format": FORMAT,
            **record,
            "seed": getattr(brain.hparams, "seed", None),
            "keys": keys,
            "tensors": self._tensors(record["batch"], keys),
            "steps_later": brain.optimizer_step - record["optimizer_step"],
            **self._weights(),
        }

    def _keys(self, batch: int) -> list:
        """What the sampler gave for a batch: (epoch, index), or indices."""
        for number, keys in enumerate(brain_batches(self.brain), 1):
            if number == batch:
                return [tuple(map(int, k)) if isinstance(k, tuple) else k for k in keys]
        return []

    def _tensors(self, batch: int, keys: list) -> dict:
        """The batch' tensors; made again from its keys if it is not at hand any more."""
        number, latest = self._latest
        if number != batch:
            loader = self.brain.loaders.get("train")
            if loader is None or not keys:
                return {}
            latest = loader.collate_fn([loader.dataset[key] for key in keys])
        return {
            name: value.detach().cpu()
            for name, value in vars(latest).items()
            if isinstance(value, torch.Tensor)
        }

    def _weights(self) -> dict:
        """The weights, or the newest checkpoint if they are large."""
        modules = self.brain.modules
        tensors = [*modules.parameters(), *modules.buffers()]
        if sum(t.numel() * t.element_size() for t in tensors) <= WEIGHTS_MB * 2**20:
            weights = {name: t.detach().cpu() for name, t in modules.state_dict().items()}
            return {"weights": weights, "checkpoint": None}
        checkpointer = self.brain.checkpointer
        newest = checkpointer.find_checkpoint() if checkpointer else None
        return {"weights": None, "checkpoint": newest and str(newest.path)}


def brain_batches(brain):
    """The batches of keys of the epoch that a Brain trains, from its sampler."""
    sampler = brain.train_sampler
    return [] if sampler is None else sampler


def random_state() -> dict:
    """The state of torch's generators, without waiting for a device."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict) -> None:
    """Go on from what :func:`random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def load_suspect(path) -> dict:
    """Read a file that :class:`NonFiniteMonitor` wrote; runs no code that it may hold.

    Raises
    ------
    UserError
        It is not there, or is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"--replay: {path} does not exist; a file in the folder nonfinite of a run "
            "was expected"
        )
    kept = None
    with suppress(Exception):  # whatever torch finds wrong with it
        kept = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(kept, dict) or kept.get("format") != FORMAT:
        raise UserError(
            f"--replay: {path} does not hold a batch; a file that training left in the "
            "folder nonfinite of its run was expected"
        )
    return kept
