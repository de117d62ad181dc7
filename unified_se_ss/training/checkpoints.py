"""Checkpoints that are complete or not there, and the random states that they hold.

A checkpoint is written into a folder that nothing ever picks, every file of it and the
folder are flushed to the disk, and then the folder gets its name. Its ``CKPT.yaml`` lists
the files with their sizes; torch's own files carry checksums (CRC-32), so damage is noticed.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import random
import shutil
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import yaml
from speechbrain.utils.checkpoints import (
    METAFNAME,
    Checkpoint,
    Checkpointer,
    ckpt_recency,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import ddp_barrier, ddp_broadcast, if_main_process

from unified_se_ss.errors import UserError, first_line
from unified_se_ss.training.distributed import gather, world_size

logger = logging.getLogger(__name__)

UNFINISHED = ".unfinished+"  # before the name of a folder that is written or deleted
FILES = "files"  # of CKPT.yaml: sizes by name
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class AtomicCheckpointer(Checkpointer):
    """SpeechBrain's Checkpointer, which a kill at any moment leaves with whole checkpoints.

    Used as that is, with its files: a folder with a ``CKPT.yaml`` and a file per
    recoverable. Different are these:

    * A checkpoint appears when it is complete and on the disk.
    * One that is not as it was written is passed over; :meth:`tidy` warns of it.
    * A full disk is one clear error, and costs no checkpoint.
    * Nothing is loaded that could execute: ``torch.load`` with ``weights_only``.
    * A score of NaN is worse than any number, for `max_keys` and `min_keys` alike.
    * All ranks load the one that the main process chose.

    Example
    -------
    >>> network = torch.nn.Linear(2, 1)
    >>> checkpointer = AtomicCheckpointer(getfixture("tmpdir"), {"network": network})
    >>> saved = checkpointer.save_checkpoint(meta={"epoch": 1})
    >>> sorted(path.name for path in saved.path.iterdir())
    ['CKPT.yaml', 'network.ckpt']
    >>> checkpointer.recover_if_possible().meta["epoch"]
    1
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.damaged = {}

    @classmethod
    def of(cls, checkpointer: Checkpointer) -> Checkpointer:
        """Take a plain Checkpointer's place; any other kind is left as it is."""
        if type(checkpointer) is not Checkpointer:
            return checkpointer
        made = cls(checkpointer.checkpoints_dir)
        vars(made).update(vars(checkpointer))
        return made

    def tidy(self) -> None:
        """Remove what a kill left behind, and look for damage; to be called at the start.

        Damaged checkpoints are named in a warning, and neither picked nor deleted.
        """
        if if_main_process():
            self._remove_unfinished()
            for path in sorted(super()._list_checkpoint_dirs()):
                fault = _fault_of(path, thorough=True)
                if fault:
                    self.damaged[path] = fault
                    logger.warning("%s is passed over: %s", path, fault)
        self.damaged = ddp_broadcast(self.damaged, src=0)

    def _remove_unfinished(self) -> None:
        for path in self.checkpoints_dir.glob(f"{UNFINISHED}*"):
            shutil.rmtree(path, ignore_errors=True)

    # ---------------------------------------------------------------- saving

    def save_checkpoint(
        self, meta=None, end_of_epoch=True, name=None, verbosity=logging.INFO
    ):
        """Save a checkpoint, which appears when it is complete; as Checkpointer's.

        Raises
        ------
        UserError
            It cannot be written, as where the disk is full.
        """
        # YAML holds no scalars of NumPy and torch.
        meta = {k: v.item() if hasattr(v, "item") else v for k, v in (meta or {}).items()}
        try:
            saved = super().save_checkpoint(meta, end_of_epoch, name, logging.NOTSET)
            ddp_barrier()  # the files of all ranks are there
            saved = saved and self._publish(saved)
        except (OSError, RuntimeError) as error:
            reason = _reason_of_failure(error)
            if reason is None:
                raise
            free = shutil.disk_usage(self.checkpoints_dir).free / 1e6
            last = self.find_checkpoint()
            raise UserError(
                f"{self.checkpoints_dir}: a checkpoint cannot be written ({reason}): {free:.2f} "
                "MB are free; make room, and the same command goes on from "
                f"{last.path if last else 'the beginning'}"
            ) from error
        finally:
            if if_main_process():
                self._remove_unfinished()
        if saved:
            kind = "end-of-epoch" if end_of_epoch else "intra-epoch"
            logger.log(verbosity, f"Saved an {kind} checkpoint in {saved.path}")
        return saved

    def _new_checkpoint_dirpath(self):
        return _unfinished(super()._new_checkpoint_dirpath())

    def _custom_checkpoint_dirpath(self, name):
        return _unfinished(super()._custom_checkpoint_dirpath(name))

    def _publish(self, saved: Checkpoint) -> Checkpoint:
        """Flush a checkpoint to the disk and give it its name."""
        files = sorted(path for path in saved.path.rglob("*") if path.is_file())
        sizes = {
            path.relative_to(saved.path).as_posix(): {"bytes": path.stat().st_size}
            for path in files
            if path.name != METAFNAME
        }
        # Later than all checkpoints, even if the clock was set back.
        times = [checkpoint.meta["unixtime"] for checkpoint in self.list_checkpoints()]
        now = max([time.time(), *(t + 1e-3 for t in times)])
        meta = {**saved.meta, "unixtime": now, FILES: sizes}
        text = f"# yamllint disable\n{yaml.safe_dump(meta)}"
        (saved.path / METAFNAME).write_text(text, encoding="utf-8")
        for path in (*files, saved.path):
            _flush(path)
        final = saved.path.with_name(saved.path.name.removeprefix(UNFINISHED))
        if final.exists():  # one that was given a name gives way to another of that name
            shutil.rmtree(final)
        saved.path.rename(final)
        _flush(self.checkpoints_dir)
        paths = {key: final / path.name for key, path in saved.paramfiles.items()}
        return Checkpoint(final, meta, paths)

    # ---------------------------------------------------------------- choosing

    def find_checkpoints(
        self,
        importance_key=None,
        max_key=None,
        min_key=None,
        ckpt_predicate=None,
        max_num_checkpoints=None,
    ):
        """List checkpoints, the best first, as Checkpointer's; NaN is the worst score."""
        if importance_key is None and (key := max_key or min_key):
            sign, accepts = (1 if max_key else -1), ckpt_predicate or bool

            def importance_key(checkpoint):
                score = sign * checkpoint.meta[key]
                return -math.inf if math.isnan(score) else score

            def ckpt_predicate(checkpoint):
                return key in checkpoint.meta and accepts(checkpoint)

            max_key = min_key = None
        return super().find_checkpoints(
            importance_key, max_key, min_key, ckpt_predicate, max_num_checkpoints
        )

    def _list_checkpoint_dirs(self):
        return [
            path
            for path in super()._list_checkpoint_dirs()
            if path not in self.damaged and not _fault_of(path)
        ]

    def delete_checkpoints(
        self,
        *,
        num_to_keep=1,
        min_keys=None,
        max_keys=None,
        importance_keys=(ckpt_recency,),
        ckpt_predicate=None,
        verbosity=logging.INFO,
    ):
        """Delete the least important, as Checkpointer's; the main process alone decides."""
        orders = [{"min_key": key} for key in min_keys or ()]
        orders += [{"max_key": key} for key in max_keys or ()]
        orders += [{"importance_key": key} for key in importance_keys]
        if if_main_process():
            found, kept = set(), set()
            for order in orders:
                ranked = self.find_checkpoints(**order, ckpt_predicate=ckpt_predicate)
                found |= {checkpoint.path for checkpoint in ranked}
                kept |= {checkpoint.path for checkpoint in ranked[:num_to_keep]}
            for path in sorted(found - kept):
                shutil.rmtree(path.rename(_unfinished(path)))
                logger.log(verbosity, f"Deleted checkpoint in {path}")
        ddp_barrier()  # nobody saves meanwhile

    # ---------------------------------------------------------------- loading

    def recover_if_possible(
        self, importance_key=None, max_key=None, min_key=None, ckpt_predicate=None
    ):
        """Load the best checkpoint in an order, as Checkpointer's; all ranks the same."""
        chosen = self.find_checkpoint(importance_key, max_key, min_key, ckpt_predicate)
        chosen = ddp_broadcast(chosen, src=0)
        if chosen is None:
            logger.info("There is no checkpoint yet.")
        else:
            self.load_checkpoint(chosen)
        return chosen

    def load_checkpoint(self, checkpoint):
        """Load a checkpoint; nothing in it can execute.

        Raises
        ------
        UserError
            What is in it does not fit, or is more than weights and plain values.
        """
        try:
            with _weights_only():
                super().load_checkpoint(checkpoint)
        except UserError:
            raise
        except Exception as error:  # whatever a file can make a loader raise
            raise UserError(
                f"{checkpoint.path}: cannot be loaded ({first_line(error)}); was it made by this "
                "project with the same network? Move it away to go on without it"
            ) from error


def _fault_of(folder, thorough: bool = False) -> str | None:
    """Describe the damage of a checkpoint; None if there is none.

    One without sizes in its ``CKPT.yaml`` was written by SpeechBrain's own Checkpointer,
    and is taken as it is. Where `thorough`, torch's files are read and compared with their
    checksums, else the sizes alone.
    """
    folder = Path(folder)
    try:
        meta = yaml.safe_load((folder / METAFNAME).read_text(encoding="utf-8"))
        float(meta["unixtime"]), meta["end-of-epoch"]
        listed = {name: file["bytes"] for name, file in meta.get(FILES, {}).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        return f"{METAFNAME} cannot be read"
    for name, size in listed.items():
        path = folder / name
        try:
            found = path.stat().st_size
            if found != size:
                return f"{name} has {found} bytes of {size}"
            if thorough and zipfile.is_zipfile(path):  # torch.save wrote it
                with zipfile.ZipFile(path) as file:
                    if file.testzip() is not None:
                        raise zipfile.BadZipFile
        except zipfile.BadZipFile:
            return f"{name} is not what was written (another checksum)"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _flush(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on the disk."""
    if path.is_dir() and os.name != "posix":
        return  # a folder cannot be opened there
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{UNFINISHED}{path.name}")


def _reason_of_failure(error: BaseException) -> str | None:
    """Tell why a file could not be written; None if something else went wrong."""
    if isinstance(error, OSError):
        return "the disk is full" if error.errno in FULL else error.strerror or str(error)
    if any(word in str(error) for word in ("PytorchStreamWriter", "inline_container")):
        return "the disk is full or does not take it"  # torch does not say which
    return None


@contextmanager
def _weights_only():
    """Have every torch.load refuse what could execute, whatever its caller asks for."""
    force, never = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {name: os.environ.pop(name, None) for name in (force, never)}
    os.environ[force] = "1"
    try:
        yield
    finally:
        del os.environ[force]
        os.environ.update({n: value for n, value in before.items() if value is not None})


class RandomStates:
    """The states of the global random generators of every rank, as a recoverable.

    Python's, NumPy's, torch's, and that of the CUDA device in use. A run on another
    number of processes cannot go on from them and keeps its own.

    Example
    -------
    >>> checkpointer = AtomicCheckpointer(getfixture("tmpdir"), {"random": RandomStates()})
    >>> _ = checkpointer.save_checkpoint()
    >>> first = torch.rand(1)
    >>> _ = checkpointer.recover_if_possible()
    >>> bool(torch.rand(1) == first)
    True
    """

    @mark_as_saver
    def _save(self, path):
        states = gather([_random_state()])
        if if_main_process():
            torch.save(states, path)

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        del end_of_epoch
        states = torch.load(path, map_location="cpu", weights_only=True)
        if len(states) == world_size():
            _set_random_state(
                states[torch.distributed.get_rank() if len(states) > 1 else 0]
            )


register_checkpoint_hooks(RandomStates, save_on_main_only=False)  # all ranks take part


def _random_state() -> dict:
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def _set_random_state(state: dict) -> None:
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
