"""Binaural mixtures from mono ones: talkers around a head, in files.

    {folder}/wav8k|wav16k/min/tr|cv|tt/
        mix|mix_both/  s1/  s2/  [s3/]  [noise/]    ID.wav      left, right, 32-bit floats
        placements.csv                  who listens, and from where each source comes
    {folder}/fingerprint.json           all that the corpus follows from

In the shape of Binaural-WSJ0Mix, and read by `prepare_binaural_wsj0mix`. Item i of a
subset follows from its mono stems, the subset's heads and (seed, subset, i) alone. A
mixture is the sum of its sources and its noise, to the last bit.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

import numpy as np

from unified_se_ss.data.binaural import mix_binaural, write_ears
from unified_se_ss.data.cache import (
    atomic_folder,
    is_made_from,
    process_pool,
)
from unified_se_ss.data.corpora.librimix import TRAIN_SUBSETS, prepare_librimix
from unified_se_ss.data.corpora.wsj0mix import FOLDERS, PLACEMENTS, prepare_wsj0mix
from unified_se_ss.data.hrtf_bank import HRTFBank, Placement, heads_digest
from unified_se_ss.data.manifest import read_manifest
from unified_se_ss.data.mixing import Mixture, loudness_gain, measure_loudness
from unified_se_ss.data.pools import NoisePool, read_perturbed
from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_write, csv_text
from unified_se_ss.progress import progress_bar

# To be raised with every change that changes a sample of a corpus.
RECIPE = 1
WHAT = "binaural corpus"
NOISE_RATIO = (-6.0, 3.0)  # dB of the loudest source to a drawn noise, as in WHAM!
ITEMS_AT_ONCE = 8


def make_binaural_corpus(
    folder,
    manifests,
    heads,
    *,
    noise=False,
    mode: str = "min",
    seed: int = 1234,
    least_angle: float = 0.0,
    workers: int | None = None,
) -> Path:
    """Makes binaural mixtures of mono ones, unless they are there already.

    For each mixture one head is drawn, and a direction for each source, azimuth and
    elevation the same for both ears. A source's two ears together have twice its mono
    energy, so that the relative levels stay those of the mono corpus.

    Arguments
    ---------
    folder : str or Path
        Where they go; made, or replaced if it is a binaural corpus itself.
    manifests : dict of Manifest
        `train`, `dev`, `test`: mono mixtures with the stems s1, s2, ... (and noise), such
        as `prepare_librimix` or `prepare_wsj0mix` gives; a subset may be missing.
    heads : dict of list of Head
        `train`, `dev`, `test`, as `binaural_heads` gives them; nobody in two subsets.
    noise : bool or dict of Manifest
        True: each item's own noise surrounds the head, diffuse. Manifests of recordings
        for `train`, `dev` and `test` (of `prepare_speech_folder`, kind noise): a segment
        of one does, with the loudest source -6 to 3 dB (BS.1770) above it, as in WHAM!
        (arXiv 1907.01160). By default there is no noise.
    mode : str
        Name of the folder above the subsets, `min` (default) or `max`: what the mono
        corpus is.
    seed : int
        Who listens and from where follows from it (default 1234).
    least_angle : float
        Degrees between any two talkers of a mixture at least (default 0).
    workers : int, optional
        Processes (default: one for each core). The corpus does not depend on it.

    Returns
    -------
    Path
        The folder, to be given to `prepare_binaural_wsj0mix`.

    Raises
    ------
    UserError
        If a head is in two subsets, rates differ, a manifest has no noise though it is
        asked for, or the folder holds anything that is not a binaural corpus.

    Example
    -------
    >>> from unified_se_ss.data import audio
    >>> from unified_se_ss.data.manifest import Item, Manifest
    >>> from unified_se_ss.spatial import spherical_head_hrirs
    >>> place, paths = Path(getfixture("tmpdir")), {}
    >>> for stem in ("s1", "s2"):
    ...     paths[stem] = str(place / f"{stem}.wav")
    ...     audio.write(paths[stem], np.sin(np.arange(8000) / 5) / 2, 8000)
    >>> mono = Manifest("m.csv", (Item("a", 1.0, 8000, paths),), ("s1", "s2"), 8000)
    >>> folder = make_binaural_corpus(
    ...     place / "corpus", {"train": mono}, {"train": spherical_head_hrirs(2, 8000)}, workers=1
    ... )
    >>> sorted(path.name for path in (folder / "wav8k/min/tr").iterdir())
    ['mix', 'placements.csv', 's1', 's2']
    """
    folder = Path(folder)
    _check(manifests, heads, noise)
    fingerprint = {
        "recipe": RECIPE,
        "noise": _noise_digests(noise),
        "mode": mode,
        "seed": int(seed),
        "least_angle": float(least_angle),
        "mono": {name: _manifest_digest(manifests[name], noise) for name in manifests},
        "heads": {name: heads_digest(heads[name]) for name in manifests},
    }
    if is_made_from(folder, fingerprint):
        return folder
    (rate,) = {manifest.sample_rate for manifest in manifests.values()}
    wavs = f"wav{rate // 1000}k"
    with atomic_folder(folder, fingerprint, WHAT, {wavs}) as building:
        for number, (name, subset) in enumerate(FOLDERS.items()):
            if name not in manifests:
                continue
            place = building / wavs / mode / subset
            for stem in _stem_folders(manifests[name], noise):
                (place / stem).mkdir(parents=True)
            bank = HRTFBank(heads[name])
            bank.place(np.random.default_rng(0), _n_sources(manifests[name]), least_angle)
            make = functools.partial(
                _make_items,
                folder=place,
                manifest=manifests[name],
                bank=bank,
                noise=NoisePool(noise[name], rate, resample=True, needs=())
                if isinstance(noise, dict)
                else bool(noise),
                key=(int(seed), number),
                least_angle=least_angle,
            )
            # Opened per subset, so that processes inherit the manifest and the heads.
            with process_pool(workers) as run:
                rows = _make_all(run, make, len(manifests[name]), f"binaural {name}")
            atomic_write(place / PLACEMENTS, csv_text(rows))
    return folder


def mono_manifests(
    folder, manifest_folder, n_speakers=2, sample_rate=8000, mode="min", noise=False
):
    """Checks mono mixtures to make binaural ones of: LibriMix, WSJ0-2mix, WSJ0-3mix, WHAM!.

    Arguments
    ---------
    folder : str or Path
        A LibriMix folder as `prepare_librimix` takes it (train-360 or, if that is not
        there, train-100), or one that `prepare_wsj0mix` takes.
    manifest_folder : str or Path
        Where the manifests go.
    n_speakers, sample_rate, mode
        As for these.
    noise : bool
        Whether the mixtures' own noise is wanted (default False).

    Returns
    -------
    dict of Manifest
        `train`, `dev`, `test`.

    Raises
    ------
    UserError
        If the folder is neither, or something is wrong in it.

    Example
    -------
    >>> mono_manifests("/no/such", "manifests")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: data_folder: /no/such does not exist; ...
    """
    folder = Path(folder)
    choices = {"n_speakers": n_speakers, "sample_rate": sample_rate, "mode": mode}
    inner = f"wav{sample_rate // 1000}k/{mode}"
    for root in (folder, folder / f"Libri{n_speakers}Mix"):
        for subset in TRAIN_SUBSETS[::-1]:
            if (root / inner / subset).is_dir():
                paths = prepare_librimix(
                    folder,
                    manifest_folder,
                    **choices,
                    train_subset=subset,
                    mixture="mix_both" if noise else "mix_clean",
                )
                return {name: read_manifest(paths[name], folder) for name in paths}
    mixture = "mix_both" if noise else "mix"
    paths = prepare_wsj0mix(folder, manifest_folder, **choices, mixture=mixture)
    return {name: read_manifest(paths[name], folder) for name in paths}


def _make_all(run, make, count, description):
    """Makes all items, a few at a time, with a progress bar; their rows."""
    chunks = [
        range(first, min(first + ITEMS_AT_ONCE, count))
        for first in range(0, count, ITEMS_AT_ONCE)
    ]
    rows = []
    with progress_bar(description=description, total=count, unit="item") as bar:
        for made in run(make, chunks):
            rows += made
            bar.update(len(made))
    return rows


def _make_items(indices, *, folder, manifest, bank, noise, key, least_angle):
    """Writes some items; gives their rows of placements."""
    n_sources = _n_sources(manifest)
    rows = []
    for index in indices:
        item = manifest.items[index]
        rng = np.random.default_rng([*key, index])
        sources = np.stack([_mono(item, f"s{j + 1}") for j in range(n_sources)])
        placement = bank.place(rng, n_sources, least_angle)
        around = _noise(item, noise, sources, rng)
        mixture = mix_binaural(bank, placement, sources, around, rng)
        _write_item(folder, item, mixture, noise)
        rows.append(_row(item, bank, placement))
    return rows


def _mono(item, stem):
    """One mono stem, float32 [T]."""
    return read_perturbed(item, stem, 0, item.frames)


def _noise(item, noise, sources, rng):
    """An item's noise, float32 [T]: its own, a segment of a recording, or None."""
    if not isinstance(noise, NoisePool):
        return _mono(item, "noise") if noise else None
    (segment,), _ = noise.sample(rng, sources.shape[1])
    rate = item.sample_rate
    loudest = max(measure_loudness(source, rate) for source in sources)
    level = loudest - rng.uniform(*NOISE_RATIO)
    return segment * np.float32(loudness_gain(level, measure_loudness(segment, rate)))


def _write_item(folder, item, mixture: Mixture, noise):
    """The files of one item."""
    name = f"{Path(item.id).name}.wav"
    write_ears(folder / _mixture_folder(noise) / name, mixture.mix_both, item.sample_rate)
    for j, source in enumerate(mixture.sources, start=1):
        write_ears(folder / f"s{j}" / name, source, item.sample_rate)
    if noise:
        write_ears(folder / "noise" / name, mixture.noise, item.sample_rate)


def _row(item, bank: HRTFBank, placement: Placement):
    """Who listens to an item and from where its sources come."""
    row = {"ID": Path(item.id).name, "head": bank.heads[placement.head].name}
    for j, index in enumerate(placement.directions, start=1):
        azimuth, elevation = bank.direction(placement.head, index)
        row[f"azimuth_{j}"] = f"{azimuth:.2f}"
        row[f"elevation_{j}"] = f"{elevation:.2f}"
    return row


def _mixture_folder(noise):
    """Name of the folder of mixtures, as in Binaural-WSJ0Mix."""
    return "mix_both" if noise else "mix"


def _stem_folders(manifest, noise):
    """Names of the folders of one subset."""
    sources = [f"s{j + 1}" for j in range(_n_sources(manifest))]
    return [_mixture_folder(noise), *sources, *(["noise"] if noise else [])]


def _n_sources(manifest):
    """Number of sources J of a manifest."""
    return sum(stem[1:].isdigit() for stem in manifest.stems)


def _check(manifests, heads, noise):
    """Raises a UserError if the manifests and heads cannot serve."""
    rates = {manifest.sample_rate for manifest in manifests.values()}
    heard = {head.sample_rate for name in manifests for head in heads[name]}
    if len(rates | heard) != 1:
        raise UserError(
            f"the mixtures have {sorted(map(str, rates))} Hz and the heads "
            f"{sorted(heard)} Hz; one rate for all was expected"
        )
    if isinstance(noise, dict) and not set(manifests) <= set(noise):
        raise UserError(
            f"noise: has recordings for {', '.join(noise)}, but {', '.join(manifests)} "
            "are to be made"
        )
    owner = {}
    for name in manifests:
        for head in heads[name]:
            if owner.setdefault(head.name, name) != name:
                raise UserError(
                    f"the head {head.name} is in {owner[head.name]} and in {name}; part "
                    "the heads with binaural_heads, so that nobody is in two subsets"
                )
    for manifest in manifests.values():
        if not _n_sources(manifest):
            raise UserError(f"{manifest.path}: has no sources (columns s1, s2, ...)")
        if noise is True and "noise" not in manifest.stems:
            raise UserError(
                f"{manifest.path}: has no column noise, but binaural noise is asked for; "
                "take a corpus with noise (LibriMix with mixture mix_both), manifests of "
                "noise recordings, or none"
            )
        names = [Path(item.id).name for item in manifest.items]
        if len(set(names)) < len(names):
            raise UserError(f"{manifest.path}: two of its items would have one file name")


def _noise_digests(noise):
    """What a fingerprint says of the noise."""
    if not isinstance(noise, dict):
        return bool(noise)
    return {name: _manifest_digest(noise[name], noise=True) for name in noise}


def _manifest_digest(manifest, noise):
    """Changes when a stem that is used, or the list of items, changes."""
    unused = ("mixture",) if noise is True else ("mixture", "noise")
    stems = [stem for stem in manifest.stems if stem not in unused]
    digest = hashlib.sha256()
    for item in manifest.items:
        digest.update(f"{item.id}\t{item.frames}\t{item.sample_rate}\n".encode())
        for stem in stems:
            try:
                status = os.stat(item.paths[stem])
            except OSError as error:
                raise UserError(
                    f"{item.paths[stem]}: cannot be read ({error.strerror}), but "
                    f"{manifest.path} lists it; delete the manifest to make it again"
                ) from error
            digest.update(f"{stem}\t{status.st_size}\t{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
