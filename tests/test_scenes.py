"""Items by contrast and of simulated arrays: the formulas, by scipy and by hand."""

import pickle
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_scenes import DIRECT, RATE, write_bank, write_sounds

from unified_se_ss.data import audio
from unified_se_ss.data.dataset import ItemKey, collate
from unified_se_ss.data.pools import NoisePool, SpeechPool, check_speakers_apart
from unified_se_ss.data.scenes import (
    ArrayDataset,
    PairedRIRDataset,
    PairedRIRGains,
    RandomChoiceDataset,
)
from unified_se_ss.errors import UserError
from unified_se_ss.spatial import BeamformerFrontend

SECONDS = 0.5


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    return (write_bank(folder), *write_sounds(folder))


def by_contrast(sounds, n_items=50, **options):
    return PairedRIRDataset(*sounds, n_items, SECONDS, **options)


def of_arrays(sounds, n_items=50, guide=None, **options):
    options = {"quiet_seconds": 0.2, **options}
    guide = guide or BeamformerFrontend("souden_mvdr", context_seconds=0.2)
    return ArrayDataset(*sounds, n_items, SECONDS, guide=guide, **options)


def scene_of(data, index):
    """The scene of an item of arrays, before any beamformer."""
    return data._scene(np.random.default_rng([data.seed, 0, index]), index)


def same(one, other):
    """Whether two examples are the same to the last bit."""
    return (
        one.id == other.id
        and torch.equal(one.inputs, other.inputs)
        and torch.equal(one.target, other.target)
    )


def drawn(gains, count=4000):
    """Factors of many items in dB, [count, 4]; -inf where there is no interferer."""
    rng = np.random.default_rng(1)
    with np.errstate(divide="ignore"):
        return 20 * np.log10([gains.draw(rng) for _ in range(count)])


# What is drawn


def test_levels_are_distributed_as_the_source_says():
    noise, interferer, raw_noise, raw_interferer = drawn(PairedRIRGains()).T
    is_there = np.isfinite(interferer)
    assert abs(is_there.mean() - 0.4) < 0.03
    for values, law in (
        (noise, scipy.stats.norm(-5, 10)),
        (interferer[is_there], scipy.stats.norm(-3, 3)),
        (raw_noise[raw_noise > -3.999], scipy.stats.truncnorm(-4 / 3, np.inf, 0, 3)),
        (raw_interferer[raw_interferer > 4.001], scipy.stats.truncnorm(0, np.inf, 4, 6)),
    ):
        assert scipy.stats.kstest(values, law.cdf).pvalue > 0.01
    # max(N(0, 3), -4) and max(N(4, 6), 4): as much is clipped as lies below.
    assert raw_noise.min() == pytest.approx(-4) and raw_interferer.min() == pytest.approx(4)
    clipped = (raw_noise < -3.999).mean()
    assert clipped == pytest.approx(scipy.stats.norm(0, 3).cdf(-4), abs=0.02)
    assert (raw_interferer < 4.001).mean() == pytest.approx(0.5, abs=0.03)


def test_every_figure_can_be_chosen():
    gains = PairedRIRGains((-6, 0), 1.0, (-2, 0), (1, 0), 3, (5, 0), 0)
    assert drawn(gains, 3) == pytest.approx(np.tile([-6, -2, 3, 5], (3, 1)))
    assert np.isneginf(drawn(PairedRIRGains(interferer_probability=0), 3)[:, 1]).all()
    with pytest.raises(UserError, match="interferer_probability: is 2"):
        PairedRIRGains(interferer_probability=2)
    with pytest.raises(UserError, match="noise_db.*standard deviation"):
        PairedRIRGains(noise_db=(0, -1))


# The formulas


def by_hand(data, key):
    """An item by contrast, from its dry sounds, by direct convolution in float64."""
    rng = np.random.default_rng([data.seed, key.epoch, key.index])
    gains, room = data.gains.draw(rng), data.rooms.draw(rng)
    raw, beam = rng.choice(len(room.target), 2, replace=False)
    target, other = data.speech.draw_speakers(rng, 2)
    level, length = rng.uniform(-33, -25), data.length + data.lead
    s, _ = data.speech.sample(rng, target, length, level)
    n = data.noise.sample(rng, length)[0][0]
    i, _ = data.speech.sample(rng, other, length, level)

    def through(source, response):
        return np.convolve(source.astype(float), response.astype(float), "valid")

    direct = np.zeros(room.target.shape[-1])
    direct[:DIRECT] = room.direct[raw, :DIRECT]
    at_beam = np.array(room.target[beam], dtype=float)
    at_beam[:DIRECT] = direct[:DIRECT]
    s_beam, s_raw = through(s, at_beam), through(s, room.target[raw])
    n_beam, i_beam = through(n, room.noises[0, beam]), through(i, room.interferers[0, beam])
    # As strong as the speech in the beamformed input, before the gains.
    to_n, to_i = (s_beam.std() / x.std() for x in (n_beam, i_beam))
    n_raw, i_raw = through(n, room.noises[0, raw]), through(i, room.interferers[0, raw])
    g_n, g_i, alpha, beta = gains
    y_beam = s_beam + g_n * to_n * n_beam + g_i * to_i * i_beam
    y_raw = s_raw + alpha * g_n * to_n * n_raw + beta * g_i * to_i * i_raw
    return np.stack([y_raw, y_beam]), through(s, direct)


@pytest.mark.parametrize("index", range(6))
def test_an_item_is_the_formulas_for_its_room_and_sounds(sounds, index):
    gains = PairedRIRGains(noise_db=(-15, 2), interferer_probability=1.0)
    data, key = by_contrast(sounds, gains=gains, seed=3), ItemKey(2, index)
    example = data[key]
    inputs, target = by_hand(data, key)
    factor = min(1.0, 0.9 / max(np.abs(inputs).max(), np.abs(target).max()))
    # Powers there, standard deviations here: nothing has a mean worth speaking of.
    np.testing.assert_allclose(example.inputs, factor * inputs, atol=2e-4)
    np.testing.assert_allclose(example.target, factor * target, atol=2e-5)


def test_the_target_is_equal_in_both_inputs(sounds, tmp_path):
    """Without reflections, both inputs hold the target itself, to rounding."""
    dry = (write_bank(tmp_path, reflections=0.0), *sounds[1:])
    example = by_contrast(dry, components=True)[4]
    for role in (0, 1):
        error = example.components[0, role] - example.target
        assert error.abs().max() < 1e-6 * example.target.abs().max() + 1e-7


def test_gains_are_ratios_in_the_beamformed_input(sounds):
    gains = PairedRIRGains((-12, 0), 1.0, (-3, 0), (2, 0), -4, (7, 0), 4)
    for index in range(5):
        known = by_contrast(sounds, gains=gains)[index].conditions
        assert known["snr_beamformed"] == pytest.approx(12, abs=1e-3)
        assert known["sir_beamformed"] == pytest.approx(3, abs=1e-3)
        assert 0 <= known["angle"] <= 180 and known["reverberation"] == pytest.approx(0.2)


def test_the_contrast_is_exact_where_both_microphones_hear_alike(sounds, tmp_path):
    """With one microphone in both roles, alpha and beta are all the difference."""
    single = (write_bank(tmp_path, C=1), *sounds[1:])
    gains = PairedRIRGains((-12, 0), 1.0, (-3, 0), (2, 0), -4, (7, 0), 4)
    example = by_contrast(single, gains=gains, components=True)[0]
    powers = example.components.square().mean(-1)
    ratios = 10 * torch.log10(powers[:, 0] / powers[:, 1])
    assert ratios.tolist() == pytest.approx([0, 7, 2], abs=1e-3)


def test_components_add_up_and_are_left_out_where_one_has_none(sounds):
    gains = PairedRIRGains(interferer_probability=0)
    example = by_contrast(sounds, gains=gains, components=True)[0]
    assert not example.components[1].any() and np.isnan(example.conditions["sir"])
    torch.testing.assert_close(example.components.sum(0), example.inputs)
    other = by_contrast(sounds)[0]
    assert other.components is None
    assert collate([example, example]).components.shape == (2, 3, 2, 8000)
    assert collate([example, other]).components is None


@given(st.integers(0, 2**31), st.floats(-40, 30))
@settings(max_examples=25, deadline=None)
def test_nothing_clips_and_everything_is_finite(sounds, seed, level):
    data = by_contrast(sounds, seed=seed, levels=(level, level + 1))
    example = data[0]
    assert example.inputs.abs().max() <= 0.9001 and example.target.abs().max() <= 0.9001
    assert example.inputs.isfinite().all() and example.target.isfinite().all()
    assert example.inputs.shape == (2, 8000) and example.inputs.dtype == torch.float32
    assert example.target.abs().max() > 0


# A function of (seed, epoch, index)


@pytest.mark.parametrize("make", [by_contrast, of_arrays])
def test_an_item_follows_from_seed_epoch_and_index(sounds, make):
    data = make(sounds, seed=7)
    first = data[ItemKey(1, 3)]
    data[0]
    assert same(first, data[ItemKey(1, 3)])
    assert same(first, make(sounds, seed=7)[ItemKey(1, 3)])
    assert same(first, pickle.loads(pickle.dumps(data))[ItemKey(1, 3)])
    others = data[ItemKey(2, 3)], data[ItemKey(1, 4)], make(sounds, seed=8)[ItemKey(1, 3)]
    for other in others:
        assert not torch.equal(first.inputs, other.inputs)


# Simulated arrays


def test_a_scene_has_the_drawn_ratios_at_the_first_microphone(sounds):
    data = of_arrays(sounds, sir_db=(4, 4), snr_db=(11, 11))
    speech, *others = np.square(scene_of(data, 5).images[:, 0, 3200:], dtype=float).mean(-1)
    measured = 10 * np.log10(speech / others)
    known = data[5].conditions
    for found in (measured, [known["sir"], known["snr"]]):
        assert found == pytest.approx([4, 11], abs=1e-3)


def test_the_target_is_the_direct_sound_and_is_quiet_first(sounds, tmp_path):
    dry = (write_bank(tmp_path, reflections=0.0), *sounds[1:])
    scene = scene_of(of_arrays(dry), 1)
    np.testing.assert_allclose(scene.images[0, 0], scene.target, atol=1e-6)
    assert not np.abs(scene.target[:3200]).max() > 1e-6
    assert np.abs(scene.target[3200:3400]).max() > 1e-4
    # The others are there from the beginning.
    assert (np.abs(scene.images[1:, :, :3200]).max(-1) > 1e-4).all()


def test_the_beamformed_input_is_the_beamformers(sounds):
    guide = BeamformerFrontend("multichannel_wiener", context_seconds=0.2, taps=2)
    data = of_arrays(sounds, guide=guide, components=True)
    example, scene = data[2], scene_of(data, 2)
    mixture = torch.from_numpy(scene.images.sum(0))
    torch.testing.assert_close(example.inputs[0], mixture[0])
    torch.testing.assert_close(example.inputs[1], guide(mixture), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(example.components.sum(0), example.inputs)
    torch.testing.assert_close(
        example.components[:, 0], torch.from_numpy(scene.images[:, 0])
    )


def test_data_sets_that_differ_in_the_guide_have_the_same_scenes(sounds):
    one = of_arrays(sounds, guide=BeamformerFrontend("mvdr", context_seconds=0.2))[3]
    other = of_arrays(sounds, guide=BeamformerFrontend("superdirective"))[3]
    assert one.id == other.id and torch.equal(one.inputs[0], other.inputs[0])
    assert torch.equal(one.target, other.target)
    assert not torch.equal(one.inputs[1], other.inputs[1])
    assert one.conditions["sir"] == other.conditions["sir"]


def test_either_is_chosen_with_its_share(sounds):
    contrast, arrays = by_contrast(sounds, 1000), of_arrays(sounds, 1000)
    for share, least, most in ((0.0, 0, 0), (1.0, 1000, 1000), (0.25, 200, 300)):
        data = RandomChoiceDataset(contrast, arrays, share, seed=1)
        data.contrast, data.arrays = [defaultdict(lambda s=source: s) for source in "ca"]
        assert least <= sum(data[index] == "a" for index in range(1000)) <= most
    data = RandomChoiceDataset(contrast, arrays, 1.0)
    assert same(data[ItemKey(4, 2)], arrays[ItemKey(4, 2)])
    assert data.durations == contrast.durations and data.sample_rate == RATE


# What cannot be


@pytest.mark.parametrize(
    "make, options, message",
    [
        (by_contrast, {"n_items": 0}, "n_items"),
        (by_contrast, {"levels": (-20, -30)}, r"levels: is \(-20, -30\)"),
        (by_contrast, {"levels": 3}, "levels: is 3, but two numbers"),
        (of_arrays, {"quiet_seconds": 0.1}, "quiet_seconds: is 0.1, but the guide learns"),
        (of_arrays, {"quiet_seconds": 0.5}, "quiet_seconds: is 0.5, but has to be"),
        (of_arrays, {"sample_rate": 8000}, "guide: is for 8000 Hz"),
        (of_arrays, {"interferer_probability": -1}, "interferer_probability"),
    ],
)
def test_wrong_values_are_refused(sounds, make, options, message):
    if "sample_rate" in options:
        options = {"guide": BeamformerFrontend("superdirective", **options)}
    with pytest.raises(UserError, match=message):
        make(sounds, **options)


def test_sounds_that_do_not_serve_are_refused(sounds, tmp_path):
    with pytest.raises(UserError, match="segment_seconds"):
        PairedRIRDataset(*sounds, 10, None)
    with pytest.raises(UserError, match="n_items: 10 by contrast and 9"):
        RandomChoiceDataset(by_contrast(sounds, 10), of_arrays(sounds, 9))
    with pytest.raises(IndexError):
        by_contrast(sounds, 10)[10]
    with pytest.raises(UserError, match="2 are needed; add recordings"):
        by_contrast((sounds[0], *write_sounds(tmp_path, speakers=1)))
    slow = write_sounds(tmp_path, rate=8000)
    with pytest.raises(UserError, match="8000 Hz"):
        by_contrast((sounds[0], *slow))
    assert by_contrast((sounds[0], *slow), resample=True)[0].inputs.isfinite().all()


# Speech and noise of any length


def test_a_talker_goes_on_after_a_pause(sounds):
    talkers = SpeechPool(sounds[1], RATE)
    speech, name = talkers.sample(np.random.default_rng(0), 2, 5 * RATE, -26.0)
    assert len(speech) == 5 * RATE and name == "v2-speech"
    recording = 10 ** (-6 / 20) * audio.read(sounds[1].items[2].paths["speech"])[0]
    np.testing.assert_allclose(speech[: len(recording)], recording, atol=1e-6)
    pause = np.flatnonzero(speech[len(recording) :])[0]
    assert 0.1 * RATE <= pause <= 0.5 * RATE
    assert len(talkers) == 4
    short, _ = talkers.sample(np.random.default_rng(0), 2, 800, -26.0)
    start = np.argmax(np.correlate(recording, short, "valid"))
    np.testing.assert_allclose(short, recording[start : start + 800], atol=1e-6)


def test_a_short_noise_is_repeated(sounds):
    noises = NoisePool(sounds[2], RATE)
    stretches, _ = noises.sample(np.random.default_rng(0), 2 * RATE, count=2)
    period = round(0.7 * RATE)
    assert stretches.shape == (2, 2 * RATE)
    np.testing.assert_array_equal(stretches[:, period:], stretches[:, :-period])
    assert not np.array_equal(stretches[0], stretches[1])


def test_a_speaker_in_two_subsets_is_told(sounds):
    speech = sounds[1]
    halves = (speech.items[:2], speech.items[2:])
    train, test = (replace(speech, items=half) for half in halves)
    check_speakers_apart({"train": train, "test": test})
    with pytest.raises(UserError, match=r"2 speaker\(s\) of test are in train.*: v2, v3"):
        check_speakers_apart({"train": speech, "test": test})


# Batches
