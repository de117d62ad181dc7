"""Loaders whose place within the epoch can be saved, and what they mix on the fly."""

from __future__ import annotations

import torch
from speechbrain.dataio.dataloader import SaveableDataLoader

from unified_se_ss.data.batching import BucketBatchSampler, LeavingOut, SkippingDataset
from unified_se_ss.data.corpora.speech_folder import prepare_speech_folder
from unified_se_ss.data.dataset import ItemKey
from unified_se_ss.data.manifest import read_manifest
from unified_se_ss.errors import UserError
from unified_se_ss.training.distributed import on_main, rank_and_size
from unified_se_ss.training.hparams import manifest_folder, pick
from unified_se_ss.training.options import AUTO
from unified_se_ss.training.signals import ignore_signals_in_worker


def make_loader(dataset, batch_sampler, collate, num_workers: int) -> SaveableDataLoader:
    """A loader whose place within the epoch can be saved.

    An item that cannot be used is left out of its batch, which says so (``skipped``).

    Arguments
    ---------
    dataset : torch.utils.data.Dataset
        Taken by the keys that the sampler gives.
    batch_sampler : iterable
        Gives lists of keys.
    collate : callable
        Makes a batch of a list of examples.
    num_workers : int
        Processes that read.
    """
    return SaveableDataLoader(
        SkippingDataset(dataset),
        batch_sampler=batch_sampler,
        collate_fn=LeavingOut(collate),
        num_workers=num_workers,
        # Without one of its own, every new iterator draws from the global generator,
        # and a run that is resumed makes another number of them.
        generator=torch.Generator(),
        worker_init_fn=ignore_signals_in_worker,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
    )


def make_loaders(datasets: dict, collate, hparams: dict) -> dict:
    """Loaders of every subset: shuffled batches to train on, others in order.

    Arguments
    ---------
    datasets : dict
        Data sets by subset; each has ``durations``, in seconds. "train" is shuffled and
        divided into batches of ``batch_size`` items or ``batch_seconds``; all others
        into batches of ``valid_batch_size``. Where ``batch_seconds`` is auto, a batch is
        one of the longest items until the Brain has found how many fit.
    collate : callable
        Makes a batch of a list of examples.
    hparams : dict
        ``batch_size``, ``batch_seconds``, ``valid_batch_size``, ``num_workers``, ``seed``.

    Returns
    -------
    dict
        A :class:`speechbrain.dataio.dataloader.SaveableDataLoader` by subset.
    """
    loaders = {}
    for subset, dataset in datasets.items():
        if subset == "train":
            plan = pick(hparams, "batch_size", "batch_seconds", "seed")
            if plan["batch_seconds"] == AUTO:
                if plan["batch_size"] is not None:
                    raise UserError(
                        f"batch_size is {plan['batch_size']} and batch_seconds is {AUTO}, but "
                        "just one of the two must be set; give --batch_size null, too"
                    )
                plan["batch_seconds"] = float(max(dataset.durations))
        else:
            plan = {"batch_size": hparams["valid_batch_size"], "shuffle": False}
        sampler = BucketBatchSampler(dataset.durations, **plan, **rank_and_size())
        loaders[subset] = make_loader(dataset, sampler, collate, hparams["num_workers"])
    return loaders


def prepare_dynamic_mixing(hparams: dict, noise: bool = True) -> list:
    """Manifests of speech and of noise (None without) that training mixes on the fly."""
    speech = on_main(_prepare_folder, hparams, "speech")
    return [speech, on_main(_prepare_folder, hparams, "noise") if noise else None]


def _prepare_folder(hparams: dict, kind: str):
    folder = hparams[f"dynamic_{kind}_folder"]
    if folder is None:
        raise UserError(f"dynamic_{kind}_folder: must be set where dynamic_mixing is True")
    path = prepare_speech_folder(
        folder,
        manifest_folder(hparams) / f"dynamic_{kind}.csv",
        hparams["sample_rate"],
        kind=kind,
        resample=True,  # LibriSpeech, WSJ0 and WHAM are 16 kHz, the mixtures may be 8
        channel=0 if kind == "noise" else None,  # WHAM is stereo; as LibriMix does
    )
    return read_manifest(path, folder, one_rate=False)


def end_readers(loaders: dict) -> None:
    """End the processes that read for loaders.

    They outlive a signal (``ignore_signals_in_worker``), and so would those that end with a
    program, for as long as they are given to let training save.
    """
    for loader in loaders.values():
        if loader._iterator is not None:  # kept, since the processes are persistent
            loader._iterator._shutdown_workers()
            loader._iterator = None


# ------------------------------------------------------------------ single batches


def batch_of(loader, indices, epoch: int = 1):
    """A batch of some items, as the loader makes it; unusable ones are left out."""
    return loader.collate_fn([loader.dataset[ItemKey(epoch, int(i))] for i in indices])


def planned_batches(loader) -> list[tuple[float, list]]:
    """Seconds of audio, padding included, and items' indices of an epoch's batches."""
    durations = loader.dataset.durations
    batches = []
    for keys in loader.batch_sampler:
        indices = [key[1] if isinstance(key, tuple) else key for key in keys]
        longest = max(durations[index] for index in indices)
        batches.append((len(indices) * longest, indices))
    return batches


def longest_axis(batch) -> int:
    """Samples of a batch's signals, padding included; 0 where it has no tensors."""
    return max((tensor.shape[-1] for tensor in signals_of_batch(batch).values()), default=0)


def signals_of_batch(batch) -> dict:
    """The signals of a batch by name: its tensors of floating-point numbers."""
    return {
        name: value
        for name, value in getattr(batch, "__dict__", {}).items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim()
    }
