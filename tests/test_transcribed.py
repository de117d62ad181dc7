"""Noisy speech with its words: read in pairs, or mixed on the fly."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from manifests import manifest_of

from unified_se_ss.data import audio
from unified_se_ss.data.dataset import (
    ItemKey,
    NoisySpeechDataset,
    PairedSpeechDataset,
    collate_transcribed,
)
from unified_se_ss.errors import UserError

RATE = 8000


def recordings(folder, stem, *signals, rate=RATE, **attributes):
    """A manifest of signals of one stem."""
    named = {f"{stem}{number}": {stem: np.asarray(s)} for number, s in enumerate(signals)}
    return manifest_of(folder, named, rate, **attributes)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("speech")
    speech = [0.1 * rng.standard_normal(n) for n in (4000, 6000, 8000)]
    noise = [0.02 * rng.standard_normal(n) for n in (1000, 30000)]
    return (
        recordings(folder, "clean", *speech, transcript="the old man"),
        recordings(folder, "noise", *noise),
    )


def ratio_db(utterance):
    """Signal-to-noise ratio of an utterance."""
    clean, noise = utterance.clean.double(), (utterance.noisy - utterance.clean).double()
    return float(10 * torch.log10(clean.square().mean() / noise.square().mean()))


@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 99), index=st.integers(0, 2))
@settings(max_examples=12, deadline=None)
def test_an_item_is_a_function_of_its_key(manifests, seed, epoch, index):
    speech, noise = manifests
    data = NoisySpeechDataset(speech, noise, (-5, 10), RATE, seed)
    one, again = (data[ItemKey(epoch, index)] for _ in range(2))
    assert torch.equal(one.noisy, again.noisy) and torch.equal(one.clean, again.clean)
    assert -5.01 <= ratio_db(one) <= 10.01
    assert len(one.noisy) == speech.items[index].frames
    other = data[ItemKey(epoch + 1, index)]
    assert torch.equal(one.clean, other.clean) and not torch.equal(one.noisy, other.noisy)
    fixed = NoisySpeechDataset(speech, noise, (-5, 10), RATE, seed, epoch=epoch)
    assert torch.equal(fixed[ItemKey(epoch + 7, index)].noisy, one.noisy)


def test_ratios_are_uniform(manifests):
    data = NoisySpeechDataset(*manifests, (0, 20), RATE)
    ratios = [ratio_db(data[ItemKey(epoch, 0)]) for epoch in range(200)]
    assert abs(np.mean(ratios) - 10) < 1.5  # 3.7 standard errors
    assert min(ratios) < 1 and max(ratios) > 19


def test_what_would_clip_is_turned_down_with_its_speech(tmp_path):
    speech = recordings(tmp_path, "clean", np.full(1000, 0.9), transcript="x")
    noise = recordings(tmp_path, "noise", np.random.default_rng(0).uniform(-1, 1, 999))
    utterance = NoisySpeechDataset(speech, noise, (-20, -20), RATE)[0]
    assert utterance.noisy.abs().max() == 1
    assert abs(ratio_db(utterance) + 20) < 0.01


@pytest.mark.parametrize("levels", [(0, 0.1), (0.1, 0)])
def test_silence_has_no_ratio_but_finite_values(tmp_path, levels):
    clean, noise = (np.full(1000, level) for level in levels)
    speech = recordings(tmp_path, "clean", clean, transcript="x")
    noises = recordings(tmp_path, "noise", noise)
    assert NoisySpeechDataset(speech, noises, (0, 0), RATE)[0].noisy.isfinite().all()


def test_other_rates_are_resampled(tmp_path, manifests):
    signal = np.full(16000, 0.1)
    speech = recordings(tmp_path, "clean", signal, rate=16000, transcript="x")
    utterance = NoisySpeechDataset(speech, manifests[1], (0, 0), RATE)[0]
    assert len(utterance.noisy) == len(utterance.clean) == 8000


def test_pairs_are_read_as_they_are(tmp_path, manifests):
    rng = np.random.default_rng(1)
    pair = {s: rng.uniform(-0.5, 0.5, 500).astype(np.float32) for s in ("noisy", "clean")}
    manifest = manifest_of(tmp_path, {"a": pair}, transcript="a dog")
    data = PairedSpeechDataset(manifest)
    assert data.durations == [500 / RATE] and len(data) == 1
    utterance = data[ItemKey(5, 0)]
    for stem, signal in pair.items():
        torch.testing.assert_close(
            getattr(utterance, stem), torch.from_numpy(signal), atol=1e-4, rtol=0
        )
    batch = collate_transcribed([utterance], lambda text: [len(text)])
    assert batch.transcripts == ["a dog"] and batch.tokens.tolist() == [[5]]
    assert batch.has_clean.tolist() == [True]
    slow = PairedSpeechDataset(manifest, RATE // 2)[0]
    expected = audio.resample(utterance.noisy.numpy(), RATE, RATE // 2)
    torch.testing.assert_close(slow.noisy, torch.from_numpy(expected), atol=1e-3, rtol=0)


def test_an_utterance_without_a_clean_counterpart(tmp_path):
    pair = dict.fromkeys(("noisy", "clean"), np.full(500, 0.25))
    told = {"transcript": "a dog", "has_clean": "no"}
    data = PairedSpeechDataset(manifest_of(tmp_path, {"a": pair}, **told))
    assert not data[0].has_clean and torch.equal(data[0].clean, data[0].noisy)
    batch = collate_transcribed([data[0]], lambda text: [1])
    assert batch.has_clean.tolist() == [False]


def test_a_range_without_sense_is_refused(manifests):
    for snr_range in ((10, -5), (1,), "ab", None, (float("nan"), 1)):
        with pytest.raises(UserError, match=r"snr_range: is .*the lower one first"):
            NoisySpeechDataset(*manifests, snr_range, RATE)


def test_missing_columns_are_named(tmp_path, manifests):
    speech, noise = manifests
    untold = recordings(tmp_path, "clean", np.zeros(10))
    for pair, words in (
        ((speech, speech), "clean.csv: has no column noise"),
        ((noise, noise), "noise.csv: has no column clean"),
        ((untold, noise), "clean.csv: has no column transcript"),
    ):
        with pytest.raises(UserError, match=words):
            NoisySpeechDataset(*pair, (0, 1), RATE)
    with pytest.raises(UserError, match="has no column noisy"):
        PairedSpeechDataset(speech)
