"""Convolution and delays, against scipy and shifts that are known."""

import numpy as np
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from unified_se_ss.spatial.dsp import convolve_rir, windowed_sinc


@given(st.integers(1, 50), st.integers(1, 80), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_convolve_rir_is_a_convolution(R, T, K, seed):
    rng = np.random.default_rng(seed)
    signal, responses = rng.normal(size=T), rng.normal(size=(K, R))
    wanted = np.stack(
        [scipy.signal.convolve(signal, h, "full", "direct") for h in responses]
    )
    for start in (0, R // 2, R - 1):
        found = convolve_rir(signal, responses, start)
        np.testing.assert_allclose(found, wanted[:, start:T], atol=1e-10)
    assert convolve_rir(signal.astype(np.float32), responses).dtype == np.float32


def test_a_windowed_sinc_delays_by_a_fraction_of_a_sample():
    taps, delay = np.arange(-32, 33), 0.3
    frequency = np.linspace(0, 0.4, 50)
    response = np.exp(-2j * np.pi * np.outer(frequency, taps)) @ windowed_sinc(
        taps - delay, 33, 8.0
    )
    np.testing.assert_allclose(response, np.exp(-2j * np.pi * frequency * delay), atol=1e-3)
