"""The binaural demo: the demo corpus' voices around spheres of different radii.

    {folder}/2speakers/wav8k/min/tr|cv|tt/...     as `make_binaural_corpus` writes it
    {folder}/speech/TIMBRE/*.wav                  single voices of training, one channel

Voices, radii and directions of dev and test are new: no timbre, head or direction of
training is among them. `speech` is for `prepare_speech_folder` and so for
`BinauralDynamicMixing`; its files are links to those of the demo corpus where the disk
allows it.
"""

from __future__ import annotations

import itertools
import re
import tempfile
from dataclasses import replace
from pathlib import Path

from unified_se_ss.data.cache import FINGERPRINT, atomic_folder, is_made_from, link_or_copy
from unified_se_ss.data.demo.corpus import prepare_demo_corpus, read_transcripts
from unified_se_ss.data.hrtf_bank import binaural_heads
from unified_se_ss.data.write import make_binaural_corpus, mono_manifests

# To be raised with every change that changes which voices are there.
RECIPE = 1
SPEECH = "speech"
WHAT = "folder of the binaural demo's voices"
LEAST_ANGLE = 15.0
# Names of the demo's voices are ACCENT+TIMBRE-pitch..-range..-rate..
TIMBRE = re.compile(r"\+(?P<timbre>.+)-pitch\d+-range\d+-rate\d+$")


def prepare_binaural_demo(
    folder,
    *,
    corpus=None,
    n_speakers: int = 2,
    sample_rate: int = 8000,
    n_train: int = 200,
    n_dev: int = 60,
    n_test: int = 60,
    n_speech: int = 800,
    noise: bool = False,
    seed: int = 1234,
    workers: int | None = None,
) -> Path:
    """Makes the binaural demo, unless it is there already.

    Arguments
    ---------
    folder : str or Path
        Where it goes.
    corpus : str or Path, optional
        Folder of the mono demo corpus. If there is none, it is made there; one that is
        there is used as it is. By default `demo` beside `folder`, the corpus of the main
        demo (for 3 speakers `demo_3speakers`).
    n_speakers : int
        Talkers in a mixture, 2 (default) or 3.
    sample_rate : int
        8000 (default) or 16000 Hz.
    n_train, n_dev, n_test : int
        Binaural mixtures in files (default 200, 60, 60), at most those of the mono
        corpus. Training by dynamic mixing needs none of the first.
    n_speech : int
        Mono training mixtures whose stems are taken as single voices (default 800).
    noise : bool
        Whether there is diffuse noise (default False).
    seed : int
        Who listens and from where follows from it (default 1234).
    workers : int, optional
        Processes (default: one for each core).

    Returns
    -------
    Path
        The folder, to be given to `prepare_binaural_wsj0mix`; the voices are in its
        folder `speech`.
    """
    folder = Path(folder)
    name = "demo" if n_speakers == 2 else f"demo_{n_speakers}speakers"
    corpus = Path(corpus or folder.parent / name)
    libri = corpus / f"Libri{n_speakers}Mix"
    if not libri.is_dir():
        options = {"n_speakers": n_speakers, "sample_rate": sample_rate}
        prepare_demo_corpus(corpus, **options, workers=workers)
    with tempfile.TemporaryDirectory() as place:
        mono = mono_manifests(libri, place, n_speakers, sample_rate, noise=noise)
    counts = {"train": n_train, "dev": n_dev, "test": n_test}
    make_binaural_corpus(
        folder / f"{n_speakers}speakers",
        {name: _first(mono[name], counts[name]) for name in counts},
        binaural_heads(None, sample_rate),
        noise=noise,
        seed=seed,
        least_angle=LEAST_ANGLE,
        workers=workers,
    )
    _gather_voices(folder / SPEECH, corpus, _first(mono["train"], n_speech), n_speakers)
    return folder


def _first(manifest, count):
    return replace(manifest, items=manifest.items[:count])


def _gather_voices(folder, corpus, manifest, n_speakers):
    """Links the stems of mixtures into one folder for each timbre."""
    rows = {row["ID"]: row for row in read_transcripts(corpus)}
    fingerprint = {
        "recipe": RECIPE,
        "corpus": (corpus / FINGERPRINT).read_text(encoding="utf-8"),
        "n_speech": len(manifest),
    }
    if is_made_from(folder, fingerprint):
        return
    stems = range(1, n_speakers + 1)
    # An earlier build may hold the folders of all the corpus' timbres.
    timbres = {_timbre(row[f"speaker_{j}"]) for row in rows.values() for j in stems}
    with atomic_folder(folder, fingerprint, WHAT, timbres) as building:
        for item, j in itertools.product(manifest.items, stems):
            place = building / _timbre(rows[item.id][f"speaker_{j}"])
            place.mkdir(exist_ok=True)
            link_or_copy(item.paths[f"s{j}"], place / f"{item.id}-s{j}.wav")


def _timbre(voice):
    match = TIMBRE.search(voice)
    return match["timbre"] if match else voice
