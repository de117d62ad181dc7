"""Long signals: cut, put into one order, stitched; nothing lost, nobody swapped."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unified_se_ss.inference.chunks import SpeakerTracker, Stitcher, context_overlap, cut

RATE = 8000
CHUNK, OVERLAP = 4 * RATE, RATE  # 4 s and 1 s


def blocks_of(signal, sizes):
    """The signal in blocks of these sizes, over and over."""
    at, number = 0, 0
    while at < len(signal):
        size = sizes[number % len(sizes)]
        yield signal[at : at + size]
        at, number = at + size, number + 1


def filtered_noise(seed, samples, low, high, sample_rate=RATE):
    """Gaussian noise in one band, of unit power: a voice with a spectrum of its own."""
    noise = np.random.default_rng(seed).standard_normal(samples)
    spectrum = np.fft.rfft(noise)
    frequency = np.fft.rfftfreq(samples, 1 / sample_rate)
    spectrum *= (frequency >= low) & (frequency < high)
    noise = np.fft.irfft(spectrum, samples)
    return (noise / noise.std()).astype(np.float32)


def shuffled(sources, seed, chunk=CHUNK, overlap=OVERLAP):
    """Cut, shuffle each chunk's sources at random, stitch; and how often was shuffled."""
    generator = np.random.default_rng(seed)
    stitcher = Stitcher(len(sources), overlap, RATE)
    parts, orders = [], []
    for piece in cut([sources.sum(0)], chunk, overlap, RATE):
        order = generator.permutation(len(sources))
        orders.append(order.tolist())
        part = sources[order, piece.start : piece.start + len(piece.signal)]
        parts.append(stitcher.add(piece.start, part, piece.is_last))
    first = np.argsort(orders[0])
    return np.concatenate(parts, 1)[first], orders


# ------------------------------------------------------------------ cutting


@given(
    samples=st.integers(0, 3000),
    sizes=st.lists(st.integers(1, 500), min_size=1, max_size=4),
    overlap=st.integers(2, 50),
    pause=st.integers(0, 3000),
)
def test_chunks_cover_the_signal_and_overlap(samples, sizes, overlap, pause):
    signal = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    signal[pause : pause + 300] = 0
    padded = signal if samples else np.zeros(1)  # an empty signal is one zero
    covered = 0
    chunks = list(cut(blocks_of(signal, sizes), 100, overlap, 500))
    for chunk in chunks:
        assert chunk.fresh == covered - chunk.start
        assert np.array_equal(chunk.signal, padded[chunk.start :][:100])
        assert not covered or overlap <= chunk.fresh <= 50
        assert len(chunk.signal) > chunk.fresh
        covered = chunk.start + len(chunk.signal)
    assert covered == len(padded)
    assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


@given(st.integers(0, 2**31), st.integers(1, 900))
def test_the_blocks_do_not_matter(seed, size):
    signal = np.random.default_rng(seed).standard_normal(2000).astype(np.float32)
    whole = list(cut([signal], 300, 60, 1000))
    pieces = list(cut(blocks_of(signal, [size]), 300, 60, 1000))
    assert len(whole) == len(pieces)
    for one, other in zip(whole, pieces, strict=True):
        assert one.start == other.start and np.array_equal(one.signal, other.signal)


def test_no_more_than_a_chunk_and_a_block_is_read_ahead():
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 70
            yield np.ones(70, dtype=np.float32)

    for number, chunk in enumerate(cut(endless(), 300, 60, 1000)):
        assert read <= chunk.start + 300 + 70
        if number == 50:
            break


def test_reaches_back_across_a_pause_and_no_farther():
    speech = np.ones(RATE)
    for pause in (0.0, 0.5, 1.2):
        signal = np.r_[speech, speech, speech, speech][: int((4 - pause) * RATE)]
        signal = np.r_[signal, np.zeros(CHUNK - len(signal))]
        reach = context_overlap(signal, OVERLAP, RATE)
        assert reach == pytest.approx(max(RATE, (pause + 0.25) * RATE), abs=RATE // 25)
    # Silence, or speech too far back: no more than the overlap.
    assert context_overlap(np.zeros(CHUNK), OVERLAP, RATE) == OVERLAP
    assert context_overlap(np.r_[speech, np.zeros(3 * RATE)], OVERLAP, RATE) == OVERLAP


# ------------------------------------------------------------------ stitching


@settings(deadline=None, max_examples=30)
@given(
    samples=st.integers(1, 12000),
    n_sources=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_any_order_of_the_chunks_sources_gives_the_sources(samples, n_sources, seed):
    sources = np.random.default_rng(seed).standard_normal((n_sources, samples))
    sources = (sources * 10.0 ** np.arange(0, -n_sources, -1)[:, None]).astype(np.float32)
    stitched, _ = shuffled(sources, seed, chunk=2000, overlap=400)
    np.testing.assert_allclose(stitched, sources, rtol=0, atol=1e-6)


def turns(voices, pattern, pause):
    """Voices that speak by turns, [J, T]; pattern: who speaks, with a pause between."""
    sources = np.zeros((len(voices), 0), dtype=np.float32)
    for who, seconds in pattern:
        turn = np.zeros((len(voices), int((seconds + pause) * RATE)), dtype=np.float32)
        for j in who:
            at = sources.shape[1]
            turn[j, : int(seconds * RATE)] = voices[j][at : at + int(seconds * RATE)]
        sources = np.concatenate((sources, turn), 1)
    return sources


CONVERSATION = [
    ((0, 1), 3.5),
    ((0,), 3.0),
    ((1,), 2.5),
    ((0, 1), 3.0),
    ((1,), 4.0),
    ((0,), 3.5),
]


def voices(seconds, count=2):
    """Noises of a band each, as long as that."""
    bands = ((100, 3000), (300, 3800), (1000, 3500))[:count]
    return [filtered_noise(j, seconds * RATE, *band) for j, band in enumerate(bands, 1)]


@pytest.mark.parametrize("is_longer_than_a_chunk", [False, True])
def test_no_swap_across_a_pause(is_longer_than_a_chunk):
    if is_longer_than_a_chunk:
        # Nothing is shared by the chunks on both sides: voices are told by their spectra.
        sources = turns(voices(120), CONVERSATION * 2, pause=4.5)
    else:
        # Two voices that sound the same: only what both chunks hear can tell them apart.
        alike = [filtered_noise(j, 60 * RATE, 0, RATE) for j in (1, 2)]
        sources = turns(alike, [((0, 1), 3.2)] * 12, pause=1.4)
    for seed in range(4):
        stitched, orders = shuffled(sources, seed)
        assert len({tuple(order) for order in orders}) == 2  # it was provoked
        np.testing.assert_allclose(stitched, sources, rtol=0, atol=1e-6)


def test_without_the_memory_that_file_is_swapped(monkeypatch):
    sources = turns(voices(120), CONVERSATION * 2, pause=4.5)
    nobody = lambda self, sums, counts: np.zeros((2, 2))  # noqa: E731
    monkeypatch.setattr(SpeakerTracker, "similarity", nobody)
    errors = [np.abs(shuffled(sources, seed)[0] - sources).max() for seed in range(3)]
    assert max(errors) > 0.1


def test_noise_in_pauses_does_not_wear_the_memory_out():
    sources = turns(voices(200), CONVERSATION, pause=12.0)
    noise = 0.02 * np.random.default_rng(5).standard_normal(sources.shape).astype("f4")
    for seed in range(2):
        stitched, _ = shuffled(sources + noise, seed)
        is_loud = np.abs(sources) > 0.1
        assert np.abs((stitched - sources - noise)[is_loud]).max() < 1e-5


def test_a_third_voice_is_told_by_its_sound_while_the_first_speaks_on():
    pattern = [((0, 1, 2), 4.0), ((0,), 9.0), ((0, 1), 4.0), ((0,), 8.0), ((0, 2), 4.0)]
    sources = turns(voices(60, 3), pattern * 2, pause=0.0)[:, : 55 * RATE]
    for seed in range(2):
        stitched, _ = shuffled(sources, seed)
        np.testing.assert_allclose(stitched, sources, rtol=0, atol=1e-6)


def test_voices_that_have_not_spoken_are_like_nobody():
    tracker = SpeakerTracker(2, RATE)
    noise = filtered_noise(0, RATE, 0, RATE)
    sums, counts = tracker.describe(np.stack((noise, np.zeros_like(noise))))
    assert counts[0] > 20 and counts[1] == 0
    tracker.add(sums, counts)
    similarity = tracker.similarity(sums, counts)
    assert similarity[0, 0] > 0.3
    assert similarity[0, 1] == similarity[1, 0] == similarity[1, 1] == 0
    assert not tracker.similarity(
        *tracker.describe(np.zeros((2, 10)))
    ).any()  # shorter than a window
