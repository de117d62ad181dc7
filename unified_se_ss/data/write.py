"""Data sets written out as corpora: items in several processes, a folder for each stem.

A binaural corpus is in the shape of Binaural-WSJ0Mix, and read by
`prepare_binaural_wsj0mix`:

    {folder}/wav8k|wav16k/min/tr|cv|tt/
        mix|mix_both/  s1/  s2/  [s3/]  [noise/]    ID.wav      left, right, 32-bit floats
        placements.csv                  who listens, and from where each source comes
    {folder}/fingerprint.json           all that the corpus follows from
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

import numpy as np
from scipy.io import wavfile

from unified_se_ss.data.binaural import mix_binaural
from unified_se_ss.data.cache import atomic_folder, is_made_from, process_map
from unified_se_ss.data.corpora import mixtures
from unified_se_ss.data.dataset import ItemKey, SeededDataset
from unified_se_ss.data.hrtf_bank import HRTFBank, hrirs_digest
from unified_se_ss.data.manifest import Manifest, read_manifest
from unified_se_ss.data.mixing import loudness_gain, measure_loudness
from unified_se_ss.data.pools import NoisePool, Recording
from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_write, csv_text

# To be raised with every change that changes a sample of a binaural corpus.
RECIPE = 1
NOISE_RATIO = (-6.0, 3.0)  # dB of the loudest source to a drawn noise, as in WHAM!
ITEMS_AT_ONCE = 8


def write_stems(folder: Path, name: str, stems: dict, sample_rate: int) -> None:
    """Writes signals by name, int16 or float32 [T] or [C, T], as {folder}/{stem}/{name}.wav.

    The folder as a whole is to appear when it is complete, so no file is synced to the
    disk, as `audio.write` does: for ten thousand files that can take minutes.
    """
    for stem, signal in stems.items():
        (folder / stem).mkdir(parents=True, exist_ok=True)
        wavfile.write(str(folder / stem / f"{name}.wav"), sample_rate, signal.T)


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
    energy, so that the relative levels stay those of the mono corpus. Item i of a subset
    follows from its mono stems, the subset's heads and (seed, subset, i) alone. A mixture
    is the sum of its sources and its noise, to the last bit.

    Arguments
    ---------
    folder : str or Path
        Where they go; made, or replaced if it is a binaural corpus itself.
    manifests : dict of Manifest
        `train`, `dev`, `test`: mono mixtures with the stems s1, s2, ... (and noise), such
        as `prepare_librimix` or `prepare_wsj0mix` gives; a subset may be missing.
    heads : dict of list of HRIRSet
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
    """
    folder = Path(folder)
    _check(manifests, heads, noise)
    noise_digests = bool(noise)
    if isinstance(noise, dict):
        noise_digests = {name: _manifest_digest(noise[name], True) for name in noise}
    fingerprint = {
        "recipe": RECIPE,
        "noise": noise_digests,
        "mode": mode,
        "seed": int(seed),
        "least_angle": float(least_angle),
        "mono": {name: _manifest_digest(manifests[name], noise) for name in manifests},
        "heads": {name: hrirs_digest(heads[name]) for name in manifests},
    }
    if is_made_from(folder, fingerprint):
        return folder
    (rate,) = {manifest.sample_rate for manifest in manifests.values()}
    wavs = f"wav{rate // 1000}k"
    with atomic_folder(folder, fingerprint, "binaural corpus", {wavs}) as building:
        for number, (name, subset) in enumerate(mixtures.FOLDERS.items()):
            if name not in manifests:
                continue
            place = building / wavs / mode / subset
            of_subset = noise[name] if isinstance(noise, dict) else noise
            around = heads[name], of_subset, seed, least_angle
            data = _BinauralCopies(manifests[name], *around)
            # What an epoch is to a data set, a subset is to this corpus.
            keys = [ItemKey(number, index) for index in range(len(data))]
            make = functools.partial(_write_item, place, data)
            what = f"binaural {name}"
            rows = process_map(make, keys, what, "item", workers, ITEMS_AT_ONCE)
            atomic_write(place / mixtures.PLACEMENTS, csv_text(rows))
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
    manifest_folder, n_speakers, sample_rate, mode
        As for these.
    noise : bool
        Whether the mixtures' own noise is wanted (default False).

    Returns
    -------
    dict of Manifest
        `train`, `dev`, `test`.
    """
    folder = Path(folder)
    choices = {"n_speakers": n_speakers, "sample_rate": sample_rate, "mode": mode}
    inner = f"wav{sample_rate // 1000}k/{mode}"
    places = [
        subset
        for root in (folder, folder / f"Libri{n_speakers}Mix")
        for subset in mixtures.TRAIN_SUBSETS[::-1]
        if (root / inner / subset).is_dir()
    ]
    if places:
        mixture = "mix_both" if noise else "mix_clean"
        choices.update(train_subset=places[0], mixture=mixture)
        paths = mixtures.prepare_librimix(folder, manifest_folder, **choices)
    else:
        choices["mixture"] = "mix_both" if noise else "mix"
        paths = mixtures.prepare_wsj0mix(folder, manifest_folder, **choices)
    return {name: read_manifest(paths[name], folder) for name in paths}


class _BinauralCopies(SeededDataset):
    """Mono mixtures around heads: stems by name, and the row of placements."""

    def __init__(self, manifest, heads, noise, seed, least_angle):
        super().__init__([item.duration for item in manifest.items], int(seed))
        if isinstance(noise, Manifest):
            noise = NoisePool(noise, manifest.sample_rate, resample=True, needs=())
        self.manifest, self.noise, self.least_angle = manifest, noise, least_angle
        self.n_sources = _n_sources(manifest)
        self.bank = HRTFBank(heads)
        self.bank.place(np.random.default_rng(0), self.n_sources, least_angle)

    def _example(self, rng, index):
        item = self.manifest.items[index]
        names = [f"s{j + 1}" for j in range(self.n_sources)]
        sources = np.stack([Recording(item, name).read() for name in names])
        placement = self.bank.place(rng, self.n_sources, self.least_angle)
        noise = self._draw_noise(rng, item, sources)
        mixture = mix_binaural(self.bank, placement, sources, noise, rng)
        stems = {"mix_both" if self.noise else "mix": mixture.mix_both}
        stems |= dict(zip(names, mixture.sources))
        if self.noise:
            stems["noise"] = mixture.noise
        return stems, self._row(item, placement)

    def _draw_noise(self, rng, item, sources):
        """An item's noise, float32 [T]: its own, a segment of a recording, or None."""
        if not isinstance(self.noise, NoisePool):
            return Recording(item, "noise").read() if self.noise else None
        (segment,), _ = self.noise.sample(rng, sources.shape[1])
        rate = item.sample_rate
        loudest = max(measure_loudness(source, rate) for source in sources)
        level = loudest - rng.uniform(*NOISE_RATIO)
        return segment * np.float32(loudness_gain(level, measure_loudness(segment, rate)))

    def _row(self, item, placement):
        row = {"ID": Path(item.id).name, "head": self.bank.hrirs[placement.head].name}
        for j, index in enumerate(placement.directions, start=1):
            azimuth, elevation = self.bank.direction(placement.head, index)
            row[f"azimuth_{j}"] = f"{azimuth:.2f}"
            row[f"elevation_{j}"] = f"{elevation:.2f}"
        return row


def _write_item(folder, data, key):
    stems, row = data[key]
    write_stems(folder, row["ID"], stems, data.manifest.sample_rate)
    return row


def _n_sources(manifest):
    return sum(stem[1:].isdigit() for stem in manifest.stems)


def _check(manifests, heads, noise):
    """Raises a UserError if the manifests and heads cannot serve."""
    rates = {str(manifest.sample_rate) for manifest in manifests.values()}
    at_heads = {str(head.sample_rate) for name in manifests for head in heads[name]}
    if len(rates | at_heads) != 1:
        both = f"mixtures have {', '.join(rates)} Hz and the heads {', '.join(at_heads)} Hz"
        raise UserError(f"the {both}; one rate for all was expected")
    if isinstance(noise, dict) and not set(manifests) <= set(noise):
        missing = ", ".join(sorted(set(manifests) - set(noise)))
        raise UserError(f"noise: has no recordings for {missing}; give them, too")
    owner = {}
    for name in manifests:
        for head in heads[name]:
            if owner.setdefault(head.name, name) != name:
                where = f"the head {head.name} is in {owner[head.name]} and in {name}"
                raise UserError(f"{where}; part the heads with binaural_heads")
    for manifest in manifests.values():
        if not _n_sources(manifest):
            raise UserError(f"{manifest.path}: has no sources (columns s1, s2, ...)")
        if noise is True and "noise" not in manifest.stems:
            remedy = "take mixtures with noise (mix_both), noise recordings, or none"
            raise UserError(f"{manifest.path}: has no column noise; {remedy}")
        if len({Path(item.id).name for item in manifest.items}) < len(manifest):
            raise UserError(f"{manifest.path}: two of its items would have one file name")


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
                what = f"cannot be read ({error.strerror}); delete {manifest.path}"
                raise UserError(f"{item.paths[stem]}: {what} to make it again") from error
            digest.update(f"{stem}\t{status.st_size}\t{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
