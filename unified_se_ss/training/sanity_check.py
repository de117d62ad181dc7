"""What every start looks at before it trains, in seconds: else it would show in hours."""

from __future__ import annotations

import logging
import time

import torch
from speechbrain import Stage

from unified_se_ss.data import audio
from unified_se_ss.data.audit import items_of
from unified_se_ss.data.skipping import EmptyBatch
from unified_se_ss.errors import UserError
from unified_se_ss.training.probe import (
    batch_of,
    checkpoint_bytes,
    free_bytes,
    in_units,
    middle_of,
    planned_batches,
    scores,
    usable_item,
)

logger = logging.getLogger(__name__)

HEADERS = 24  #: Items of each subset whose files' headers are read.
CPU_SECONDS = 1.0  #: Of an item, for a large network on a CPU.
BATCHES = 8  #: Of the training set that are tried until one can be made.
SECONDS = 1.0  #: For the headers of one subset, at most.


def first_look(brain, loaders: dict) -> float:
    """Look at a sample of everything that a run will need.

    The headers of files evenly over each subset, one training batch, an item of the
    validation and of the test set through the network and its metrics (so a metric's
    package that is missing shows now), the scores that checkpoints are chosen by, and
    the room on the disk. Nothing is written, no weight changes, and no random number that
    training would draw is drawn.

    Arguments
    ---------
    brain : RecipeBrain
        Before its ``fit``.
    loaders : dict
        Of train, dev and test.

    Returns
    -------
    float
        Seconds that it took.

    Raises
    ------
    UserError
        What would end the run later.
    """
    began = time.perf_counter()
    devices = [brain.device] if brain.device_type == "cuda" else []
    _check_space(brain)
    for subset, loader in loaders.items():
        _check_headers(subset, items_of(loader.dataset))
    with torch.random.fork_rng(devices):
        if not brain.test_only:
            _check_batch(loaders["train"])
            _check_scores(brain, loaders["dev"], Stage.VALID, {"loss", brain.best})
        _check_scores(brain, loaders["test"], Stage.TEST, {"ID"})
    _check_checkpoints(brain)
    seconds = time.perf_counter() - began
    logger.info("Looked at a sample of all that the run needs in %.1f s", seconds)
    return seconds


def _check_space(brain) -> None:
    """Stop if there is no room for the first two checkpoints; warn if it is scarce."""
    folder = brain.hparams.output_folder
    size, free = checkpoint_bytes(brain), free_bytes(folder)
    if free < 2 * size:
        raise UserError(
            f"output_folder: {folder} has {in_units(free)} of free space, but a checkpoint "
            f"takes about {in_units(size)} and there are two at a time at least; make "
            "room, or choose another with --output_folder"
        )
    if free < 5 * size:
        logger.warning(
            "%s has room for %d checkpoints only (%s free)",
            folder,
            free // size,
            in_units(free),
        )


def _check_headers(subset: str, items: list) -> None:
    """Read the headers of some items' files; warn of faults, stop if they are the rule."""
    until = time.perf_counter() + SECONDS
    looked, faults = 0, []
    for item in items[:: max(1, len(items) // HEADERS)]:
        if time.perf_counter() > until:
            break
        looked += 1
        faults += _header_faults(item)[:1]
    if 2 * len(faults) > looked:
        raise UserError(
            f"{len(faults)} of {looked} items of the subset {subset} that were looked at "
            f"cannot be used; the first: {faults[0]}. Is the data in its place? --check "
            "looks at all of it"
        )
    if faults:
        logger.warning(
            "%d of %d items of the subset %s that were looked at cannot be used; the first: "
            "%s. --check looks at all of them",
            len(faults),
            looked,
            subset,
            faults[0],
        )


def _header_faults(item) -> list[str]:
    """What the headers of an item's files say against it."""
    faults = []
    for path in item.paths.values():
        try:
            found = audio.info(path)
        except (UserError, OSError) as error:
            faults.append(str(error))
            continue
        if (found.sample_rate, found.frames) != (item.sample_rate, item.frames):
            faults.append(
                f"{path}: has {found.frames} samples at {found.sample_rate} Hz, but its "
                f"manifest says {item.frames} at {item.sample_rate} Hz"
            )
    return faults


def _check_batch(loader) -> None:
    """Make a batch: of the first, which may be a single bad item, one that can be made."""
    for _, indices in planned_batches(loader)[:BATCHES]:
        batch = batch_of(loader, indices[:4])
        if not isinstance(batch, EmptyBatch):
            return
    raise UserError(
        "the first items of the training set cannot be used, such as: "
        f"{batch.skipped[0].reason}; --check looks at all of the data"
    )


def _check_scores(brain, loader, stage, wanted: set) -> None:
    """Take one item through the network and the metrics."""
    subset = stage.name.lower()
    index = usable_item(loader)
    if index is None:
        raise UserError(
            f"no item of the {subset} set can be used, as far as was looked; --check looks "
            "at all of them"
        )
    batch, seconds = batch_of(loader, [index]), loader.dataset.durations[index]
    if brain.device_type == "cpu" and seconds > CPU_SECONDS:
        batch = middle_of(batch, CPU_SECONDS / seconds)
    rows = scores(brain, batch, stage)
    lacking = wanted - set(rows[0] if rows else ())
    if lacking:
        raise UserError(
            f"compute_objectives appends no {', '.join(sorted(lacking))} to self.rows in "
            f"{stage}; there are: {', '.join(rows[0]) if rows else 'no rows'}"
        )


def _check_checkpoints(brain) -> None:
    """Stop if the checkpoints that are there were chosen by another score."""
    for checkpoint in brain.checkpointer.list_checkpoints():
        meta = checkpoint.meta
        if meta.get("end-of-epoch", True) and "epoch" in meta and brain.best not in meta:
            raise UserError(
                f"{checkpoint.path}: was chosen by another score than {brain.best}; choose "
                "another folder with --output_folder"
            )
