"""Speech and noise folders, and mixtures made of them anew for every item."""

from __future__ import annotations

import numpy as np
import pyloudnorm
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from manifests import lengths_read

from unified_se_ss.data import audio
from unified_se_ss.data.corpora import speech_folder
from unified_se_ss.data.corpora.speech_folder import prepare_speech_folder
from unified_se_ss.data.dataset import DynamicMixingDataset, ItemKey
from unified_se_ss.data.manifest import read_manifest
from unified_se_ss.data.pools import Recording
from unified_se_ss.errors import UserError

RATE = 8000
SPEAKERS = {"11": 300, "22": 500, "33": 700, "44": 900}


def _voice(frequency, seconds, rng, rate=RATE):
    """A voice-like sound: a tone of the speaker's own, with its loudness swaying."""
    time = np.arange(round(seconds * rate)) / rate
    sway = 1 + 0.3 * np.sin(2 * np.pi * 3 * time + rng.uniform(0, 6))
    return rng.uniform(0.05, 0.4) * sway * np.sin(2 * np.pi * frequency * time)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Speech of four speakers in LibriSpeech's shape, and stationary noise."""
    root, rng = tmp_path_factory.mktemp("folders"), np.random.default_rng(0)
    for speaker, frequency in SPEAKERS.items():
        for n in range(3):
            path = root / f"speech/{speaker}/7/{speaker}-7-{n}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, _voice(frequency, 2 + n, rng), RATE)
    for name, seconds in (("long", 6.0), ("short", 0.7)):
        noise = rng.uniform(-0.3, 0.3, round(seconds * RATE))
        audio.write(root / f"noise/{name}.wav", noise, RATE)
    return root


def prepared(folder, **options):
    """The manifest of a folder, made beside it."""
    path = prepare_speech_folder(folder, f"{folder}.csv", RATE, **options)
    return read_manifest(path, folder)


@pytest.fixture(scope="module")
def manifests(folders):
    return [prepared(folders / kind, kind=kind) for kind in ("speech", "noise")]


def _dataset(manifests, n_speakers=2, n_items=20, seed=0, segment=1.5, **options):
    return DynamicMixingDataset(
        *manifests, n_speakers, n_items, seed, segment, RATE, **options
    )


def test_manifest_holds_what_was_measured(manifests, folders):
    spoken, noise = manifests
    assert len(spoken) == 12 and len(noise) == 2
    assert spoken.stems == ("speech",) and noise.stems == ("noise",)
    for item in (*spoken.items, *noise.items):
        signal, rate = soundfile.read(*item.paths.values())
        assert item.duration == len(signal) / rate and item.sample_rate == rate
        expected = pyloudnorm.Meter(rate).integrated_loudness(signal)
        assert float(item.attributes["loudness"]) == pytest.approx(expected, abs=0.01)
    assert {item.attributes["speaker"] for item in spoken.items} == set(SPEAKERS)
    assert "speaker" not in noise.items[0].attributes


def test_speaker_is_the_first_folder(tmp_path):
    speakers = {
        "Ann/x.wav": "Ann",
        "Bob/chapter/x.wav": "Bob",
        "train-clean-360/84/121/x.flac": "84",
        "test-other/85/121/x.flac": "85",
    }
    for name in speakers:
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        soundfile.write(tmp_path / "in" / name, np.full(RATE, 0.5), RATE)
    items = prepared(tmp_path / "in").items
    assert {item.id: item.attributes["speaker"] for item in items} == speakers


def test_several_processes_measure_the_same(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(speech_folder, "PROCESSES_FROM", 1)
    path = prepare_speech_folder(folders / "speech", tmp_path / "speech.csv", RATE)
    alone = prepare_speech_folder(folders / "speech", folders / "speech.csv", RATE)
    assert path.read_bytes() == alone.read_bytes()


def test_measured_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    measured = []
    measure = lambda signal, _: measured.append(len(signal)) or -9  # noqa: E731
    monkeypatch.setattr(speech_folder, "measure_loudness", measure)
    for length in (4000, 4000, 5000):
        if length not in measured:
            audio.write(tmp_path / "in/Ann/x.wav", np.full(length, 0.5), RATE)
        prepared(tmp_path / "in")
    assert measured == [4000, 5000]


def write(signal, name="Ann/x.wav", rate=RATE):
    def make(folder):
        (folder / name).parent.mkdir(parents=True)
        soundfile.write(folder / name, signal, rate)

    return make


def broken_link(folder):
    write([])(folder)
    (folder / "Ann/x.wav").unlink()
    (folder / "Ann/x.wav").symlink_to("gone.wav")


FAULTS = {
    "missing": (lambda folder: None, ["does not exist"]),
    "empty": (lambda folder: folder.mkdir(), ["holds no wav, flac or ogg"]),
    "no speaker": (write(np.full(100, 0.5), "x.wav"), ["x.wav", "no speaker's folder"]),
    "no sound": (write([]), ["Ann/x.wav", "is empty"]),
    "stereo": (write(np.full((99, 2), 0.5)), ["Ann/x.wav", "2 channels"]),
    "rate": (write(np.full(99, 0.5), rate=16000), ["16000 Hz", "8000 Hz"]),
    "silent": (write(np.zeros(99)), ["silent"]),
    "broken link": (broken_link, ["Ann/x.wav: is a link to gone.wav, but cannot be"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_named(tmp_path, fault):
    break_it, words = FAULTS[fault]
    break_it(tmp_path / "in")
    with pytest.raises(UserError) as error:
        prepared(tmp_path / "in")
    assert all(word in str(error.value) for word in [str(tmp_path / "in"), *words])
    assert not (tmp_path / "in.csv").exists()


def test_silent_recordings_are_left_out(tmp_path, caplog):
    for name, level in (("x", 0), ("y", 0.5)):
        audio.write(tmp_path / f"in/Ann/{name}.wav", np.full(RATE, level), RATE)
    assert [item.id for item in prepared(tmp_path / "in").items] == ["Ann/y.wav"]
    assert "1 silent left out" in caplog.text


def test_one_channel_of_stereo_noise(tmp_path):
    stereo = np.stack([np.full(4 * RATE, 0.5), np.zeros(4 * RATE)], 1)
    stereo[::2] *= -1
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in/x.wav", stereo, RATE)
    item = prepared(tmp_path / "in", kind="noise", channel=0).items[0]
    first, _ = audio.read(item.paths["noise"], channel=0)
    assert (Recording(item, "noise").read(100, 200) == first[100:200]).all()
    expected = pyloudnorm.Meter(RATE).integrated_loudness(stereo[:, 0])
    assert float(item.attributes["loudness"]) == pytest.approx(expected, abs=0.01)


item_keys = st.builds(ItemKey, st.integers(0, 99), st.integers(0, 19))


@settings(max_examples=15, deadline=None)
@given(item_keys, st.sampled_from([2, 3]), st.sampled_from([None, (95, 100, 105)]))
def test_same_key_same_bits(manifests, key, n_speakers, speeds):
    first, second = (_dataset(manifests, n_speakers, speed_percents=speeds) for _ in "ab")
    other_seed = _dataset(manifests, n_speakers, seed=1, speed_percents=speeds)
    second[ItemKey(7, 7)]
    expected, again = first[key], second[key]
    assert expected.id == again.id
    assert torch.equal(expected.mixture, again.mixture)
    assert torch.equal(expected.sources, again.sources)
    assert expected.mixture.dtype == expected.sources.dtype == torch.float32
    assert expected.mixture.shape == expected.sources.shape[1:]
    later, next_one = key._replace(epoch=100), key._replace(index=(key.index + 1) % 20)
    examples = [expected, first[later], first[next_one], other_seed[key]]
    assert len({float(example.mixture.abs().sum()) for example in examples}) == 4


def peaks_of(example, rate=RATE):
    """Hz of the largest value of each source's spectrum, a tone of its speaker's own."""
    return [
        np.abs(np.fft.rfft(source)).argmax() * rate / len(source)
        for source in example.sources.numpy()
    ]


@settings(max_examples=15, deadline=None)
@given(item_keys, st.sampled_from([2, 3]))
def test_speakers_are_distinct_and_named(manifests, key, n_speakers):
    example = _dataset(manifests, n_speakers)[key]
    *utterances, noise = example.id.split("_")
    assert noise in ("long", "short")
    speakers = [name.split("-")[0] for name in utterances]
    assert len(set(speakers)) == n_speakers
    assert peaks_of(example) == pytest.approx([SPEAKERS[s] for s in speakers], abs=5)


def test_loudness_is_that_of_librimix(manifests):
    """Measured by pyloudnorm on stationary sounds: segment and whole are as loud."""
    data = _dataset(manifests, 3, n_items=150)
    meter = pyloudnorm.Meter(RATE)
    sources, noises = [], []
    for index in range(len(data)):
        example = data[index]
        noise = (example.mixture - example.sources.sum(0)).numpy()
        assert np.abs(example.mixture.numpy()).max() <= 0.9
        sources += [meter.integrated_loudness(s) for s in example.sources.numpy()]
        noises.append(meter.integrated_loudness(noise))
    for levels, low, high in ((sources, -33, -25), (noises, -38, -30)):
        # That they are uniform is shown of the draws themselves.
        assert low - 0.7 < min(levels) < low + 1 and high - 1 < max(levels) < high + 0.7


def test_loud_peaks_are_guarded_by_one_gain(tmp_path):
    """Clicks have much peak for their loudness: the guard must act on all stems."""
    for speaker in ("Ann", "Bob"):
        clicks = np.zeros(RATE * 2)
        clicks[:: RATE // 2] = 0.9
        audio.write(tmp_path / f"in/{speaker}/x.wav", clicks, RATE)
    examples = [*_dataset([prepared(tmp_path / "in"), None], n_items=9, segment=1.0)]
    assert 0.89 < max(float(example.mixture.abs().max()) for example in examples) <= 0.9
    for example in examples:
        torch.testing.assert_close(example.mixture, example.sources.sum(0))


def test_cut_to_the_shortest(manifests):
    data = _dataset(manifests, segment=3.5)
    lengths = {len(data[index].mixture) for index in range(20)}
    assert lengths == {2 * RATE, 3 * RATE, round(3.5 * RATE)}


def test_short_noise_is_repeated(manifests, folders):
    data = _dataset(manifests, 2, segment=1.5)
    example = next(e for e in map(data.__getitem__, range(20)) if e.id.endswith("short"))
    noise = (example.mixture - example.sources.sum(0)).numpy()
    period = round(0.7 * RATE)
    assert len(noise) > 2 * period
    np.testing.assert_allclose(noise[period:], noise[:-period], atol=1e-6)


def test_resampling_where_asked_for(folders, manifests):
    with pytest.raises(UserError, match="8000 Hz, 16000 Hz was expected"):
        DynamicMixingDataset(*manifests, 2, 4, 0, 1.5, 16000)
    data = DynamicMixingDataset(*manifests, 2, 4, 0, 1.5, 16000, resample=True)
    for index in range(4):
        example = data[index]
        assert example.mixture.shape == (24000,)
        expected = [SPEAKERS[name.split("-")[0]] for name in example.id.split("_")[:2]]
        assert peaks_of(example, 16000) == pytest.approx(expected, abs=5)


def test_only_the_segment_is_read(manifests, monkeypatch):
    asked = lengths_read(monkeypatch)
    data = _dataset(manifests, segment=0.5)
    for index in range(10):
        data[index]
    assert set(asked) == {RATE // 2}


def test_short_utterances_can_be_left_out(manifests):
    data = _dataset(manifests, min_seconds=3.0)
    names = {name for index in range(20) for name in data[index].id.split("_")[:2]}
    assert not any(name.endswith("-0") for name in names)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"n_speakers": 5}, "4 speaker"),
        ({"segment": None}, "segment_seconds"),
        ({"segment": -1}, "segment_seconds: is -1"),
        ({"n_items": 0}, "n_items: is 0"),
        ({"speed_percents": [300]}, "speed_percents: holds 300"),
        ({"min_seconds": 9.0}, r"0 speaker\(s\) that last 9.0 s"),
        ("noise", "no column speech"),
        ("", "has no loudness"),
        ("-inf", "'-inf'"),
        ("x", "'x'"),
    ],
)
def test_arguments_and_manifests_that_cannot_serve(manifests, tmp_path, change, words):
    spoken, noise = manifests
    if change == "noise":
        spoken = noise
    elif isinstance(change, str):
        header = "ID,duration,sample_rate,speech,speaker,loudness"
        (tmp_path / "a.csv").write_text(f"{header}\na,2,8000,a.wav,Ann,{change}\n")
        spoken = read_manifest(tmp_path / "a.csv")
    with pytest.raises(UserError, match=words):
        _dataset((spoken, noise), **({} if isinstance(change, str) else change))
