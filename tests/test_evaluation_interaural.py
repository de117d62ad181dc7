"""Time and level between the ears: known angles, invariants, SpeechBrain's definition."""

import numpy as np
import pytest
from cues import ild, itd
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evaluation_metrics import voice

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation.interaural import (
    BANDS,
    interaural_errors,
    summarise_interaural,
)
from unified_se_ss.spatial import head_shadow, spherical_head, woodworth_itd

RATE = 8000
DIRECTIONS = [(0, 0), (5, 0), (30, 0), (60, 0), (90, 0), (135, 0), (-20, 0), (-75, 0)]
DIRECTIONS += [(-110, 0), (180, 0), (50, 40), (-80, -30)]


def noise(seed, samples, rate=RATE):
    """White noise [samples]."""
    return np.random.default_rng([7, seed]).standard_normal(samples)


def placed(signal, azimuth, elevation=0, rate=RATE, radius=0.0875):
    """A sound heard from a direction, [E, T]."""
    head = spherical_head(rate, [azimuth], [elevation], radius)
    return head.render(signal, 0)


def true_ild(signal, azimuth, elevation, rate, band=(0, np.inf)):
    """ILD in dB that the closed-form shadow gives a signal's spectrum."""
    power = np.abs(np.fft.rfft(signal, 2 * len(signal))) ** 2
    frequency = np.fft.rfftfreq(2 * len(signal), 1 / rate)
    inside = (frequency >= band[0]) & (frequency < band[1])
    gains = head_shadow(frequency, azimuth, elevation) ** 2
    left, right = (power * inside * gains).sum(-1)
    return 10 * np.log10(left / right)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("kind", [noise, voice])
def test_a_source_at_a_known_angle_has_the_known_cues(kind, rate):
    signal = kind(1, 2 * rate, rate)
    for azimuth, elevation in DIRECTIONS:
        ears = placed(signal, azimuth, elevation, rate)
        expected = 1e6 * woodworth_itd(azimuth, elevation)
        assert itd(ears, rate) == pytest.approx(expected, abs=0.5)  # asked for: 5 µs
        assert ild(ears) == pytest.approx(
            true_ild(signal, azimuth, elevation, rate), abs=0.15
        )


@pytest.mark.parametrize("azimuth, elevation", DIRECTIONS)
def test_octaves_have_the_known_level_differences(azimuth, elevation):
    signal = noise(2, 2 * RATE)
    ears = placed(signal, azimuth, elevation)
    for band in BANDS[:4]:
        expected = true_ild(signal, azimuth, elevation, RATE, band)
        assert ild(ears, RATE, band) == pytest.approx(expected, abs=0.2)


def test_a_voice_that_is_cut_off_has_the_itd_of_the_whole():
    signal = voice(3, 3 * RATE)
    for end in range(2 * RATE, 3 * RATE, 1111):
        ears = placed(signal, 60)[:, 3000:end]
        assert itd(ears, RATE) == pytest.approx(1e6 * woodworth_itd(60), abs=1)


def test_whole_samples_are_found_up_to_the_millisecond():
    signal = noise(4, 4000)
    for lag in range(-8, 9):
        ears = np.stack([signal[100:-100], signal[100 - lag : -100 - lag]])
        assert itd(ears, RATE) == pytest.approx(125.0 * lag, abs=2)


def test_the_itd_is_finite_and_bounded_whatever_it_hears():
    for seed in range(20):
        assert (
            np.abs(itd(np.stack([noise(seed, 500), noise(100 + seed, 500)]), RATE)) <= 1000
        )
    assert np.isnan(itd(np.zeros((2, 500)), RATE))
    assert np.isnan(ild(np.zeros((2, 500))))


@settings(deadline=None, max_examples=40)
@given(
    st.floats(-180, 180),
    st.floats(-60, 60),
    st.floats(-200, 200),
    st.sampled_from([noise, voice]),
)
def test_swapped_ears_flip_the_signs_and_a_common_gain_does_nothing(
    azimuth, up, gain, kind
):
    ears = placed(kind(5, 3000), azimuth, up)
    louder = 10 ** (gain / 20) * ears
    assert itd(ears[::-1], RATE) == pytest.approx(-itd(ears, RATE), abs=1e-6)
    assert itd(louder, RATE) == pytest.approx(itd(ears, RATE), abs=1e-6)
    for band in (None, *BANDS[:4]):
        level = ild(ears, RATE, band)
        assert ild(ears[::-1], RATE, band) == pytest.approx(-level, abs=1e-9)
        assert ild(louder, RATE, band) == pytest.approx(level, abs=1e-9)


@settings(deadline=None, max_examples=20)
@given(st.permutations([0, 1, 2]), st.floats(1e-6, 1e6), st.floats(-40, 40))
def test_errors_follow_the_given_order_and_no_common_gain(order, gain, turn):
    targets = np.stack([placed(voice(j, 3000), 50 * j - 50) for j in range(3)])
    moved = np.stack([placed(voice(j, 3000), 50 * j - 50 + turn) for j in range(3)])
    straight = interaural_errors(moved, targets, RATE, (0, 1, 2))
    estimates = np.empty_like(moved)
    estimates[list(order)] = gain * moved
    row = interaural_errors(estimates, targets, RATE, order)
    assert row.keys() == straight.keys()
    for name, value in row.items():
        assert value == pytest.approx(straight[name], abs=1e-5)
    expected = [
        woodworth_itd(50 * j - 50 + turn) - woodworth_itd(50 * j - 50) for j in range(3)
    ]
    assert row["delta_itd"] == pytest.approx(1e6 * np.abs(expected).mean(), abs=1)


def test_a_perfect_estimate_has_no_error_and_a_wrong_order_has():
    targets = np.stack(
        [placed(voice(j, 4000), azimuth) for j, azimuth in enumerate((-40, 40))]
    )
    perfect = interaural_errors(targets, targets, RATE, (0, 1))
    assert (
        perfect["delta_itd"] == perfect["delta_ild"] == perfect["delta_ild_2000_4000"] == 0
    )
    assert perfect["itd_1"] == pytest.approx(1e6 * woodworth_itd(-40), abs=0.5)
    assert perfect["ild_1"] < 0 < perfect["ild_2"]
    wrong = interaural_errors(targets, targets, RATE, (1, 0))
    assert wrong["delta_itd"] == pytest.approx(2e6 * woodworth_itd(40), abs=1)


def test_silent_and_one_eared_sources_are_counted_and_not_averaged():
    targets = np.stack([placed(noise(j, 4000), 30 * j) for j in range(3)])
    estimates = np.stack([placed(noise(j, 4000), 30 * j + 10) for j in range(3)])
    good = interaural_errors(estimates, targets, RATE, (0, 1, 2))
    silent, monaural, lost = targets.copy(), targets.copy(), estimates.copy()
    silent[0] = 0
    monaural[0, 1] *= 1e-5
    lost[1, 0] = 0
    rows = [
        interaural_errors(estimates, silent, RATE, (0, 1, 2)),
        interaural_errors(estimates, monaural, RATE, (0, 1, 2)),
        interaural_errors(lost, targets, RATE, (0, 1, 2)),
    ]
    states = [[row[f"cues_{j}"] for j in (1, 2, 3)] for row in rows]
    assert states == [
        ["silent", "measured", "measured"],
        ["monaural", "measured", "measured"],
        ["measured", "monaural", "measured"],
    ]
    assert (
        rows[0]["delta_itd_1"] is rows[1]["delta_ild_1"] is rows[2]["delta_itd_2"] is None
    )
    assert rows[0]["delta_itd"] == np.mean([good["delta_itd_2"], good["delta_itd_3"]])
    summary = summarise_interaural(rows)
    assert [summary[name] for name in ("measured", "silent", "monaural")] == [6, 1, 2]
    nothing = interaural_errors(0 * estimates, targets, RATE, (0, 1, 2))
    assert nothing["delta_itd"] is None and nothing["cues_2"] == "silent"
    assert summarise_interaural([nothing])["delta_ild_mean"] is None


def test_a_band_without_sound_has_no_level_difference():
    t = np.arange(8000) / RATE
    targets = np.stack([placed(np.sin(2 * np.pi * 700 * t), 45)])
    row = interaural_errors(0.9 * targets, targets, RATE, (0,))
    assert row["delta_ild_500_1000"] == pytest.approx(0, abs=1e-9)
    assert row["delta_ild_2000_4000"] is None and row["cues_1"] == "measured"


def test_the_summary_is_over_sources():
    errors = [[0.0, 10.0], [60.0, 50.0], [None, 200.0]]
    rows = []
    for pair in errors:
        row = {}
        for j, value in enumerate(pair, 1):
            row[f"delta_itd_{j}"] = value
            row[f"delta_ild_{j}"] = None if value is None else value / 10
            row[f"cues_{j}"] = "silent" if value is None else "measured"
        rows.append(row)
    summary = summarise_interaural(rows)
    assert summary["delta_itd_mean"] == 64 and summary["delta_itd_median"] == 50
    assert summary["delta_itd_large"] == 0.4  # 60 and 200, not 50
    assert summary["delta_ild_mean"] == pytest.approx(6.4)
    assert (summary["measured"], summary["silent"], summary["monaural"]) == (5, 1, 0)


@pytest.mark.parametrize("name", ["estimates", "targets"])
def test_what_is_not_finite_is_refused(name):
    signals = {key: np.ones((2, 2, 100)) for key in ("estimates", "targets")}
    signals[name][0, 0, 3] = np.nan
    with pytest.raises(UserError, match=name):
        interaural_errors(**signals, sample_rate=RATE, permutation=(0, 1))


def test_wrong_shapes_and_protocols_are_refused():
    ears = np.ones((2, 2, 100))
    with pytest.raises(ValueError, match="shape"):
        interaural_errors(ears[:, :1], ears[:, :1], RATE, (0, 1))
    with pytest.raises(ValueError, match="protocol"):
        interaural_errors(ears, ears, RATE, (0, 1), protocol="speechbrian")


def plain_tdoa(left, right):
    """Whole-sample GCC-PHAT lag, by the definition: sums over all circular shifts."""
    n = 2 * len(left)
    whitened = []
    for signal in (left, right):
        spectrum = np.fft.fft(np.pad(signal, (0, n - len(signal))))
        whitened.append(np.fft.ifft(spectrum / np.abs(spectrum)).real)
    lags = range(-len(left), len(left))
    values = [abs(whitened[0] @ np.roll(whitened[1], lag)) for lag in lags]
    return lags[int(np.argmax(values))]


@pytest.mark.parametrize("sources", [2, 3])
def test_the_protocol_of_speechbrain(sources):
    rng = np.random.default_rng(sources)
    azimuths = rng.uniform(-90, 90, (2, sources))
    targets, estimates = (
        np.stack([placed(noise(j, 600), azimuth) for j, azimuth in enumerate(row)])
        for row in azimuths
    )
    estimates = estimates + 0.2 * rng.standard_normal(estimates.shape)
    estimates = np.roll(estimates, 1, axis=0)
    row = interaural_errors(estimates, targets, RATE, range(sources), "speechbrain")
    times = [np.array([plain_tdoa(*s) for s in x]) * 125.0 for x in (targets, estimates)]
    power = [np.sum(x**2, axis=-1) for x in (targets, estimates)]
    levels = [10 * np.log10(p[:, 0] / (p[:, 1] + 1e-8) + 1e-8) for p in power]
    for name, (true, found) in {"delta_itd": times, "delta_ild": levels}.items():
        orders = [np.abs(true - found).mean(), np.abs(true - found[::-1]).mean()]
        assert row[name] == pytest.approx(min(orders), abs=1e-9)
    assert set(row) == {"delta_itd", "delta_ild"}
    summary = summarise_interaural([row, {"delta_itd": 0.0, "delta_ild": 0.0}])
    assert summary["delta_itd_mean"] == pytest.approx(row["delta_itd"] / 2)


def test_the_protocol_of_speechbrain_has_its_coarse_steps_and_no_bound():
    signal = noise(9, 4000)
    near = np.stack([placed(signal, 10)])
    still = np.stack([placed(signal, 12)])
    row = interaural_errors(still, near, RATE, (0,), "speechbrain")
    assert row["delta_itd"] % 125 == 0
    far = np.stack([signal[:3000], signal[500:3500]])[None]
    zero = np.stack([signal[:3000]] * 2)[None]
    row = interaural_errors(far, zero, RATE, (0,), "speechbrain")
    assert row["delta_itd"] == 500 * 125
    assert interaural_errors(far, zero, RATE, (0,))["delta_itd"] <= 1000
