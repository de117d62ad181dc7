"""The demo corpus: shape, repeatability, disjoint voices, and the folder's safety."""

import collections
import hashlib
import itertools
import os
import shutil
import signal
import sys

import numpy as np
import pytest
import soundfile
from running import run_python
from transcribed_trees import write

from unified_se_ss.data.cache import atomic_folder, is_made_from
from unified_se_ss.data.corpora.mixtures import prepare_librimix
from unified_se_ss.data.demo import espeak, noises, speakers
from unified_se_ss.data.demo.corpus import prepare_demo_corpus, read_transcripts
from unified_se_ss.data.demo.espeak import ACCENTS, Voice, speak
from unified_se_ss.data.demo.speakers import SUBSETS, cast_voices, say_sentences
from unified_se_ss.data.mixing import measure_loudness
from unified_se_ss.errors import UserError

TINY = {"n_train": 4, "n_dev": 1, "n_test": 2, "seed": 5, "workers": 1}
STEMS = ["mix_both", "mix_clean", "noise", "s1", "s2"]


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_item(data_folder, row):
    folder = data_folder / "wav8k" / "min" / row["subset"]
    return {
        stem: soundfile.read(folder / stem / f"{row['ID']}.wav", dtype="int16")[0]
        for stem in STEMS
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return prepare_demo_corpus(tmp_path_factory.mktemp("demo") / "demo", **TINY)


def median_pitch(speech, sample_rate):
    """Fundamental frequency by the peak of the autocorrelation of loud frames."""
    pitches = []
    for start in range(0, len(speech) - 2048, 1024):
        frame = speech[start : start + 2048] * np.hanning(2048)
        spectrum = np.abs(np.fft.rfft(frame, 8192)) ** 2
        correlation = np.fft.irfft(spectrum)
        lags = slice(sample_rate // 400, sample_rate // 60)
        peak = lags.start + int(np.argmax(correlation[lags]))
        if correlation[peak] > 0.4 * correlation[0] > 0:
            pitches.append(sample_rate / peak)
    return np.median(pitches)


# Sentences


def test_the_grammar_has_about_sixty_words_and_uses_them_all():
    rng = np.random.default_rng(0)
    sentences = [speakers._sentence(rng).split() for _ in range(3000)]
    assert {len(words) for words in sentences} == set(range(4, 10))
    every = set(itertools.chain(*sentences))
    assert 50 <= len(every) <= 70
    assert all(word.isalpha() and word.islower() for word in every)
    for article, word in (pair for words in sentences for pair in zip(words, words[1:])):
        if article in ("a", "an"):
            assert (article == "an") == (word[0] in "aeiou")


# Voices


def test_every_voice_of_the_casts_can_speak():
    known = {path.name for path in (espeak._paths()[1] / "voices/!v").iterdir()}
    assert known.issuperset(speakers.HIGH_TIMBRES + speakers.LOW_TIMBRES)
    for accent in ACCENTS:
        speech, sample_rate = speak("the boy sings", Voice(accent))
        assert sample_rate == 22050 and speech.dtype == np.float32
        assert 0.5 < len(speech) / sample_rate < 2
        assert 0.05 < np.abs(speech).max() < 1


def test_speech_repeats_whatever_was_spoken_before():
    voices = [Voice("en-us", "f3"), Voice("en-gb", "Reed")]
    first = [speak("my cat sleeps", voice)[0] for voice in voices]
    speak("our teacher walks", Voice("en-caribbean", "m3", pitch=20))
    for voice, speech in zip(voices, first):
        assert np.array_equal(speech, speak("my cat sleeps", voice)[0])
    program = (
        "import hashlib; from unified_se_ss.data.demo.espeak import Voice, speak;"
        "speech, _ = speak('my cat sleeps', Voice('en-us', 'f3'));"
        "print(hashlib.sha256(speech.tobytes()).hexdigest())"
    )
    elsewhere = run_python("-c", program).stdout.strip()
    assert elsewhere == hashlib.sha256(first[0].tobytes()).hexdigest()


def test_pitch_rate_variant_and_accent_change_the_sound():
    text = "the old farmer waits near the green door"
    plain, sample_rate = speak(text, Voice("en-us", "m3"))
    low, high = (
        median_pitch(speak(text, Voice("en-us", "m3", pitch=pitch))[0], sample_rate)
        for pitch in (20, 80)
    )
    # espeak-ng's table of pitch: 80 instead of 20 is a factor of about 1.7.
    assert 1.5 < high / low < 1.9
    female = median_pitch(speak(text, Voice("en-us", "f3"))[0], sample_rate)
    assert 85 < median_pitch(plain, sample_rate) < 130 < 180 < female < 240
    fast, _ = speak(text, Voice("en-us", "m3", rate=250))
    assert len(fast) < 0.8 * len(plain)
    others = [speak(text, Voice(accent, "m3"))[0] for accent in ACCENTS]
    assert len({speech.tobytes() for speech in others}) == len(ACCENTS)


def test_without_espeak_the_extra_is_named(monkeypatch, tmp_path):
    espeak._paths.cache_clear()
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match=r"unified_se_ss\[demo\].*--demo_speech"):
        prepare_demo_corpus(tmp_path / "demo", **TINY)
    assert not list(tmp_path.iterdir())


def test_no_voice_and_no_timbre_is_in_two_subsets():
    everyone, timbres = [], []
    for cast in cast_voices(1234).values():
        talkers = sum(cast.talkers, ())
        voices = [*talkers, *cast.babble_speakers]
        everyone += [voice.name for voice in voices]
        timbres.append({voice.variant for voice in voices})
        high = [v for v in talkers if v.variant in speakers.HIGH_TIMBRES]
        assert 0.4 < len(high) / len(talkers) < 0.6
    assert len(everyone) == len(set(everyone)) == 126 + 48
    assert sum(map(len, timbres)) == len(set.union(*timbres))


# Noises


@pytest.mark.parametrize("kind", noises.MADE_NOISES)
def test_made_noises_follow_from_their_generator(kind):
    make = noises.MADE_NOISES[kind]
    noise, again, other = (make(np.random.default_rng(s), 16000, 8000) for s in (1, 1, 2))
    assert noise.shape == (16000,) and np.isfinite(noise).all() and noise.any()
    assert np.array_equal(noise, again) and not np.array_equal(noise, other)


# The corpus


def test_shape_sums_and_levels_are_those_of_librimix(corpus, tmp_path):
    assert corpus.name == "Libri2Mix"
    rows, casts = read_transcripts(corpus.parent), cast_voices(TINY["seed"])
    assert [sum(row["subset"] == s for row in rows) for s in SUBSETS] == [4, 1, 2]
    for row in rows:
        known = {voice.name for voice in sum(casts[row["subset"]].talkers, ())}
        assert {row["speaker_1"], row["speaker_2"]} < known
        assert row["speaker_1"] != row["speaker_2"]
        for words in (row["transcript_1"].split(), row["transcript_2"].split()):
            assert len(words) >= 4 and all(map(str.isalpha, words))
        item = read_item(corpus, row)
        (length,) = {len(stem) for stem in item.values()}
        assert 3.0 <= length / 8000 <= 4.8
        assert np.array_equal(item["s1"] + item["s2"], item["mix_clean"])
        assert np.array_equal(item["mix_clean"] + item["noise"], item["mix_both"])
        item = {name: stem / 32768 for name, stem in item.items()}
        assert all(np.abs(stem).max() < 0.9001 for stem in item.values())
        for name, low, high in (("s1", -33, -25), ("s2", -33, -25), ("noise", -38, -30)):
            assert low - 0.1 <= measure_loudness(item[name], 8000) <= high + 0.1
        # From the first to the last sound, both speak for most of the time.
        speaking = [len(speakers._trim_silence(item[name], 8000)) for name in ("s1", "s2")]
        assert min(speaking) > 0.8 * length
    folder = corpus / "wav8k" / "min"
    for subset in SUBSETS:
        assert sorted(path.name for path in (folder / subset).iterdir()) == STEMS
    file = soundfile.info(next((folder / "dev" / "s1").iterdir()))
    assert (file.samplerate, file.channels, file.subtype) == (8000, 1, "PCM_16")
    prepare_librimix(corpus, tmp_path / "manifests", train_subset="train-360")
    assert list((tmp_path / "manifests").glob("*.csv"))


def test_transcript_is_what_is_spoken(corpus):
    """A source is its sentences, spoken again, but for pauses and gain."""
    row = read_transcripts(corpus.parent)[0]
    talkers = sum(cast_voices(TINY["seed"])["train-360"].talkers, ())
    (voice,) = (voice for voice in talkers if voice.name == row["speaker_1"])
    samples, texts = say_sentences(voice, 24, TINY["seed"], 8000)
    source = read_item(corpus, row)["s1"] / 32768
    rest = row["transcript_1"]
    while rest:
        index = next(i for i, text in enumerate(texts) if rest.startswith(text))
        utterance = samples[index]
        correlation = np.correlate(source, utterance, mode="valid")
        at = int(np.argmax(correlation))
        part = source[at : at + len(utterance)]
        assert np.corrcoef(part, utterance)[0, 1] > 0.999
        rest = rest[len(texts[index]) :].strip()


def test_an_item_depends_on_no_number_of_items_or_processes(corpus, tmp_path):
    fewer = prepare_demo_corpus(tmp_path / "demo", **{**TINY, "n_train": 2, "workers": 2})
    kept = hashes(fewer)
    assert len(kept) == 5 * (2 + 1 + 2)
    assert kept.items() <= hashes(corpus).items()


def test_same_fingerprint_rebuilds_nothing_another_everything(corpus, tmp_path):
    folder = tmp_path / "demo"
    shutil.copytree(corpus.parent, folder)
    marked = next((folder / "Libri2Mix").rglob("*.wav"))
    marked.write_bytes(b"mark")
    prepare_demo_corpus(folder, **TINY)
    assert marked.read_bytes() == b"mark"
    prepare_demo_corpus(folder, **{**TINY, "n_train": 1, "n_test": 1, "seed": 6})
    assert len(list(folder.rglob("*.wav"))) == 5 * 3


def test_a_folder_is_replaced_as_a_whole_and_only_if_it_is_ours(tmp_path):
    place = tmp_path / "corpus"

    def build(seed, ends=lambda: None):
        with atomic_folder(place, {"seed": seed}, "corpus", {"a.wav"}) as building:
            (building / "a.wav").write_text(f"seed {seed}")
            ends()

    build(1)
    with pytest.raises(KeyboardInterrupt):
        build(2, ends=lambda: signal.raise_signal(signal.SIGINT))
    assert (place / "a.wav").read_text() == "seed 1" and is_made_from(place, {"seed": 1})
    (tmp_path / ".corpus.incomplete-killed").mkdir()
    os.utime(tmp_path / ".corpus.incomplete-killed", (0, 0))
    build(2)
    assert (place / "a.wav").read_text() == "seed 2"
    (place / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="notes.txt"):
        build(3)
    (place / "fingerprint.json").unlink()
    with pytest.raises(UserError, match="is no corpus"):
        build(3)
    assert {path.name for path in place.iterdir()} == {"a.wav", "notes.txt"}
    assert list(tmp_path.iterdir()) == [place]
    with (
        pytest.raises(UserError, match="is a file"),
        atomic_folder(place / "a.wav", {}, ""),
    ):
        pass


def test_bad_arguments_are_named(tmp_path):
    wrong = {
        "n_speakers": 4,
        "sample_rate": 11025,
        "n_dev": 0,
        "seconds": 1.0,
        "workers": 0,
    }
    for argument, value in wrong.items():
        name = "dev" if argument == "n_dev" else argument
        with pytest.raises(UserError, match=f"^{name}: (is )?{value}"):
            prepare_demo_corpus(tmp_path / "demo", **{**TINY, argument: value})
    with pytest.raises(UserError, match="does not tell who speaks"):
        read_transcripts(tmp_path)
    with pytest.raises(UserError, match="'f99'"):
        speak("hello", Voice("en-us", "f99"))
    assert not list(tmp_path.iterdir())


# Own recordings


@pytest.fixture
def recordings(tmp_path):
    """Six people and three noises, each with a spectrum of its own, at 16 kHz."""
    rng = np.random.default_rng(0)
    time = np.arange(3 * 16000) / 16000
    for person in range(6):
        tone = 0.1 * np.sin(2 * np.pi * 300 * (person + 1) * time)
        for ending in ("wav", "flac"):
            write(tmp_path / f"speech/person{person}/book/1.{ending}", tone, 16000)
    for number in range(3):
        noise = 0.05 * rng.normal(size=8000)
        write(tmp_path / f"noise/{number}.wav", noise, 8000)
    return tmp_path


def build_own(folder, **options):
    own = {"speech_folder": folder / "speech", "noise_folder": folder / "noise"}
    return prepare_demo_corpus(folder / "demo", **{**TINY, **own, **options})


def test_own_recordings_are_split_by_speaker_and_resampled(recordings):
    corpus = build_own(recordings)
    seen = collections.defaultdict(set)
    for row in read_transcripts(corpus.parent):
        assert row["noise"] == "recorded" and row["transcript_1"] == ""
        item = read_item(corpus, row)
        for number in "12":
            name = row[f"speaker_{number}"]
            seen[row["subset"]].add(name)
            spectrum = np.abs(np.fft.rfft(item[f"s{number}"]))
            hertz = np.argmax(spectrum) * 8000 / len(item["s1"])
            assert hertz == pytest.approx(300 * (int(name[-1]) + 1), rel=0.01)
    assert [len(seen[subset]) for subset in SUBSETS] == [2, 2, 2]
    assert len(set.union(*seen.values())) == 6
    before = hashes(corpus)
    noise = np.random.default_rng(9).normal(size=9000)
    for number in range(3):
        soundfile.write(recordings / "noise" / f"{number}.wav", 0.1 * noise, 8000)
    assert hashes(build_own(recordings)) != before


def test_own_speech_with_made_noise_has_no_babble(recordings):
    corpus = build_own(recordings, noise_folder=None, n_train=30)
    kinds = {row["noise"] for row in read_transcripts(corpus.parent)}
    assert kinds == set(noises.MADE_NOISES)


FAULTS = {
    "three speakers": (None, {"n_speakers": 3}, "6 speakers of speech, but 9 are needed"),
    "noise": ("noise/0.wav", None, "2 recordings of noise, but 3 are needed"),
    "speech": ("speech", None, "speech: does not exist"),
    "stereo": (np.full((800, 2), 0.1), {}, r"person\d.*1\.wav"),
    "not finite": (np.full(800, np.nan), {}, r"person\d.*1\.wav"),
    "corrupt": (b"RIFF, but not really", {}, r"person\d.*1\.wav"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_own_recordings_is_named(recordings, fault):
    change, options, words = FAULTS[fault]
    if isinstance(change, str):
        (recordings / change).rename(recordings / "elsewhere")
    elif change is not None:
        for file in (recordings / "speech").rglob("*.wav"):
            if isinstance(change, bytes):
                file.write_bytes(change)
            else:
                soundfile.write(file, change, 16000, "FLOAT")
    with pytest.raises(UserError, match=words):
        build_own(recordings, **options or {})
    assert not (recordings / "demo").exists()
