"""From corpora's own folders to manifests with transcripts: on small trees of their shapes."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import transcribed_trees as trees
from hypothesis import given, settings
from hypothesis import strategies as st

from unified_se_ss.data.dataset import NoisySpeechDataset, PairedSpeechDataset
from unified_se_ss.data.manifest import read_manifest
from unified_se_ss.errors import UserError

SUBSETS = ("train", "dev", "test")
KINDS = ("voicebank", "librispeech", "rats", "chime4")
voicebank, librispeech, rats, chime4 = (trees.load(f"{kind}_prepare") for kind in KINDS)


class Corpus:
    """A small tree below root/corpus, and how the recipe prepares it."""

    def __init__(self, kind, root):
        self.kind, self.root, self.manifests = kind, root, root / "manifests"

    def prepare(self, sample_rate=16000, **changes):
        made, root = self.root / "corpus", self.root
        subsets = {s: [f"{s}-clean{'-100' * (s == 'train')}"] for s in SUBSETS}
        run, folder, options = {
            "voicebank": (voicebank.prepare_voicebank, "", {}),
            "librispeech": (
                librispeech.prepare_librispeech,
                "LibriSpeech",
                {**subsets, "noise_folder": made / "noise"},
            ),
            "rats": (
                rats.prepare_rats,
                "RATS_SAD",
                {"transcript_folder": made / "fisher", "cut_folder": root / "cut"},
            ),
            "chime4": (chime4.prepare_chime4, "", {"reference_folder": root / "refs"}),
        }[self.kind]
        return run(made / folder, self.manifests, sample_rate, **{**options, **changes})

    def read(self, kind="speech", **options):
        """Manifest of speech, or of noise, by subset."""
        return {
            subset: read_manifest(path, root, one_rate=False)
            for subset, of in self.prepare(**options).items()
            for found, path, root in of
            if found == kind
        }

    def find(self, pattern):
        """The first file of the tree that fits a pattern, noise and transcripts included."""
        return sorted((self.root / "corpus").rglob(pattern))[0]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trees")
    for kind in KINDS:
        getattr(trees, f"make_{kind}")(folder / kind / "corpus")
    return {kind: Corpus(kind, folder / kind) for kind in KINDS}


@pytest.fixture()
def corpus(originals, tmp_path):
    """A copy of a tree that a test may damage."""

    def copy(kind):
        shutil.copytree(originals[kind].root / "corpus", tmp_path / "corpus")
        return Corpus(kind, tmp_path)

    return copy


def texts(manifest):
    return {item.id: item.attributes["transcript"] for item in manifest.items}


# ------------------------------------------------------------------ what comes out


def test_voicebank(originals):
    found = originals["voicebank"].read()
    speakers = {s: {i.attributes["speaker"] for i in m.items} for s, m in found.items()}
    assert speakers == {"train": {"p227", "p228"}, "dev": {"p226"}, "test": {"p232"}}
    assert texts(found["test"]) == {"p232_001": "THE OLD MAN", "p232_002": "A DOG SINGS"}
    utterance = PairedSpeechDataset(found["test"], 16000)[0]
    clean, _ = soundfile.read(found["test"].items[0].paths["clean"])
    np.testing.assert_allclose(utterance.clean, clean, atol=1e-4)


def test_voicebank_as_it_is_distributed_is_resampled(tmp_path):
    trees.make_voicebank(tmp_path / "corpus", rate=48000)
    manifest = Corpus("voicebank", tmp_path).read()["train"]
    utterance = PairedSpeechDataset(manifest, 16000)[0]
    assert manifest.sample_rate == 48000
    assert len(utterance.noisy) == len(utterance.clean) == round(1.2 * 16000)


def test_librispeech_with_noise(originals):
    corpus = originals["librispeech"]
    speech, noise = corpus.read(), corpus.read("noise")
    assert texts(speech["dev"]) == {"84-7-0000": "THE OLD MAN", "84-7-0001": "A DOG SINGS"}
    heard = [item.id for manifest in noise.values() for item in manifest.items]
    assert sorted(heard) == [f"street/{n}.wav" for n in range(4)]  # each in one subset
    utterance = NoisySpeechDataset(speech["dev"], noise["dev"], (0, 0), 16000)[0]
    assert utterance.noisy.isfinite().all() and len(utterance.noisy) == round(1.2 * 16000)
    before = {path: path.stat().st_mtime_ns for path in corpus.manifests.iterdir()}
    corpus.prepare()
    assert before == {path: path.stat().st_mtime_ns for path in corpus.manifests.iterdir()}


def test_rats_is_cut_where_its_link_was_open(originals, caplog):
    corpus = originals["rats"]
    found = corpus.read(sample_rate=8000)
    assert texts(found["train"]) == {
        "fe_03_04161-B-000050-000190-A": "a dog sings",
        "fe_03_04161-B-000300-000440-A": "my cat is small",
        "fe_03_04162-A-000050-000190-A": "my cat is small",
        "fe_03_04162-A-000300-000440-A": "the river is cold",
    }
    assert {len(found[subset]) for subset in ("dev", "test")} == {2}
    assert "4 left out of which not all was sent" in caplog.text
    assert "8 left out that were not understood, or have no words" in caplog.text
    for item in found["test"].items:
        noisy, clean = (soundfile.read(item.paths[stem])[0] for stem in ("noisy", "clean"))
        assert item.sample_rate == 8000 and len(noisy) == round(8000 * 1.4)
        np.testing.assert_allclose(noisy, clean / 2, atol=2e-4)  # as the link made it


def test_a_table_says_what_of_rats_is_cut(corpus, tmp_path):
    made = corpus("rats")
    noisy, clean = (made.find(f"*_{end}.flac") for end in ("A", "src"))
    values = {"speaker": "x", "transcript": "Wie, bitte?", "noisy": noisy, "clean": clean}
    values |= {"noisy_start": 0.5 + trees.LAG, "clean_start": 0.5, "duration": 1}
    with open(tmp_path / "t.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rats.COLUMNS)
        writer.writeheader()
        for subset in rats.PARTS:
            writer.writerow({"subset": subset, "ID": f"{subset}-1", **values})
    found = made.read(transcript_folder=None, table=tmp_path / "t.csv")
    assert texts(found["dev"]) == {"dev-1": "Wie, bitte?"}
    paths = found["dev"].items[0].paths
    signals = [soundfile.read(paths[stem])[0] for stem in ("noisy", "clean")]
    np.testing.assert_allclose(signals[0], signals[1] / 2, atol=1e-4)


def test_chime4(originals):
    found = originals["chime4"].read()
    for manifest in found.values():
        sets = [(i.attributes["set"], i.attributes["has_clean"]) for i in manifest.items]
        assert sorted(sets) == 4 * [("real", "no")] + 4 * [("simu", "yes")]
        environments = {i.attributes["environment"] for i in manifest.items}
        assert environments == set(chime4.ENVIRONMENTS)
        assert {i.attributes["speaker"] for i in manifest.items} == {"F01"}
        assert set(texts(manifest).values()) == {text.upper() for text in trees.TEXTS}
    for item in found["train"].items:
        if item.attributes["set"] == "simu":
            original = item.id.rsplit("_", 2)[0]
            place = originals["chime4"].find(f"{original}_ORG.wav")
            expected = trees.speech_in_noise(soundfile.read(place)[0])
            reference, _ = soundfile.read(item.paths["clean"])
            error = reference - expected
            assert np.sum(error**2) < 0.02 * np.sum(expected**2)  # in time, at its level


# ------------------------------------------------------------------ what is wrong with it


def remove(pattern):
    return lambda corpus: corpus.find(pattern).unlink()


def rewrite(pattern, change):
    """Write a recording again, in another way."""

    def damage(corpus):
        path = corpus.find(pattern)
        signal, rate = soundfile.read(path)
        signal, rate = change(signal, rate)
        soundfile.write(path, signal, rate)

    return damage


def put(pattern, content):
    return lambda corpus: corpus.find(pattern).write_bytes(content)


def replace(pattern, old, new):
    def damage(corpus):
        path = corpus.find(pattern)
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    return damage


def stereo(signal, rate):
    return np.stack([signal, signal], 1), rate


def shorter(signal, rate):
    return signal[:-100], rate


def slower(signal, rate):
    return signal, rate // 2


def drop(name):
    return lambda corpus: shutil.rmtree(corpus.find(name))


def few_noises(corpus):
    for number in (2, 3):
        corpus.find(f"street/{number}.wav").unlink()


CLEAN = "clean_testset_wav_16k"
WAV, FLAC = f"{CLEAN}/p232_001.wav", "84-7-0001.flac"
CHANNEL_A, SEGMENTS = "train/audio/eng/A/*.flac", "train/sad/eng/A/*.tab"
ORIGINAL = "F01_002C0101_ORG.wav"
FAULTS = [
    ("voicebank", drop("testset_txt"), r"p232_001.txt cannot be read \(No such file"),
    ("voicebank", drop(CLEAN), "no folder clean_testset_wav_16k or clean"),
    ("voicebank", remove(WAV), "1 problem.*p232_001.wav: does not exist"),
    ("voicebank", put("p227_002.txt", b"caf\xe9"), "p227_002.txt .*not text in UTF-8"),
    ("voicebank", put(WAV, b"RIFF"), "1 problem.*p232_001.wav"),
    ("voicebank", rewrite(WAV, stereo), "p232_001.wav: of several channels, one"),
    ("voicebank", rewrite(WAV, shorter), "p232_001.wav: differ in length or"),
    ("voicebank", rewrite(WAV, slower), "p232_001.wav: differ in .* sampling rate"),
    ("librispeech", drop("dev-clean"), "dev-clean does not exist; expected LibriSpeech"),
    ("librispeech", drop("84"), "dev-clean holds no .*trans.txt"),
    ("librispeech", remove(FLAC), "1 problem.*84-7-0001.flac: does not exist"),
    ("librispeech", replace("84-7.trans.txt", "0001", "0000"), "two utterances named 84-7"),
    ("librispeech", few_noises, "noise_folder: .* holds 2 recordings .* three or more"),
    ("librispeech", drop("noise"), "noise: does not exist; a folder of wav"),
    ("rats", drop("fisher"), "transcript_folder: .* holds no fe_03"),
    ("rats", drop("docs"), "source_file_info.tab cannot be read"),
    ("rats", remove("fe_03_04161.txt"), "holds no fe_03_04161.txt, .*what .*_eng_A.flac"),
    ("rats", replace("source*.tab", "fe_03_04161_B", "fe_03_04161"), "line 2: SRC_FILE is"),
    ("rats", replace("source*.tab", "fisher", "other"), "names no English source"),
    ("rats", drop("dev-2/audio/A"), "holds no .*/A/.*_eng_A.flac; expected LDC2015S02"),
    ("rats", remove(SEGMENTS), "00001_07777_eng_A.tab cannot be read"),
    ("rats", replace(SEGMENTS, "RX", "??"), r"eng_A.tab, line 2: label \?\?; expected S"),
    ("rats", replace(SEGMENTS, "\t", " "), "eng_A.tab, line 1: expected 12 columns"),
    ("rats", replace(SEGMENTS, "6.05", "7.05"), "by 0.250 s at first and by 1.250 s"),
    ("rats", put(SEGMENTS, b""), "eng_A.tab: names no speech"),
    ("rats", rewrite(CHANNEL_A, stereo), "eng_A.flac: has 2 channels, one was expected"),
    ("rats", rewrite(CHANNEL_A, lambda s, r: (s[: 4 * r], r)), "lasts 4.00 s, but fe_03"),
    ("chime4", drop("tr05_caf_real"), r"tr05_caf_real holds no \*.CH5.wav"),
    ("chime4", drop("isolated_1ch_track"), r"dt05_bus_real holds no \*.wav"),
    ("chime4", remove("dt05_real.dot_all"), "dt05_real.dot_all cannot be read"),
    ("chime4", drop("WSJ0"), r"WSJ0 holds no \*.dot"),
    ("chime4", replace("*.dot", "(002c", "(999c"), "no transcript says .*F01_002C0101"),
    ("chime4", put("dt05_real.dot_all", b"words\n"), "dot_all, line 1: expected a trans"),
    ("chime4", rewrite(ORIGINAL, lambda s, r: (0 * s, r)), "is not what is"),
    ("chime4", rewrite(ORIGINAL, slower), "8000 Hz, but .* 16000 Hz"),
]


@pytest.mark.parametrize("kind, damage, message", FAULTS)
def test_what_is_wrong_is_said_once_and_clearly(corpus, kind, damage, message):
    made = corpus(kind)
    damage(made)
    with pytest.raises(UserError, match=f"(?s){message}"):
        made.prepare()
    assert kind in KINDS[:2] or not list(made.manifests.glob("*train.csv"))


NUMBERS = "train,a,s,t,n,c,x,0,1", "train,a,s,t,n,c,0,0,0", "train,a,s,t,n,c,0,0,nan"
LINES = dict.fromkeys((*NUMBERS, "train,a,s"), "line 2: noisy_start, .*expected numbers")
LINES |= {
    "other,a,s,t,n,c,0,0,1": "line 2: subset is 'other'",
    "train,../a,s,t,n,c,0,0,1": "line 2: ID is '../a'",
    None: "has no column speaker; expected subset, ID",
}


@pytest.mark.parametrize("line, message", LINES.items())
def test_a_table_that_cannot_be_used(tmp_path, line, message):
    path, columns = tmp_path / "t.csv", ",".join(rats.COLUMNS)
    path.write_text(f"{columns}\n{line}\n" if line else "ID,subset\na,train\n")
    with pytest.raises(UserError, match=message):
        rats.read_table(path)


def test_sides_of_calls():
    for name, side in {
        "fe_03_04165_B.sph": ("04165", "B"),
        "fe_03_04165.sph:2": ("04165", "2"),
        "audio/041/fe_03_04165-A": ("04165", "A"),
        "fe_03_04165.ch1.wav": ("04165", "1"),
        "fe_03_04165.wav": None,
        "fe_03_04165.sph": None,
    }.items():
        found = rats.SIDE.search(name)
        assert (found and found.groups()) == side


# ------------------------------------------------------------------ for any text, any names


@given(text=st.text(max_size=60))
@settings(max_examples=20, deadline=None)
def test_normalised_text_stays_as_it_is(text):
    for module in (voicebank, rats):
        once = module.normalise(text)
        assert module.normalise(once) == once and "  " not in once
    assert not set(voicebank.normalise(text)) & set("'’-.,;:!?\"()[]<>")


@given(names=st.lists(st.text(min_size=1), min_size=3, max_size=60, unique=True))
@settings(max_examples=20, deadline=None)
def test_noise_is_in_one_subset_each_whatever_the_order(names):
    split = librispeech.subsets_of(names, Path("noise"))
    assert all(split.values()) and set().union(*split.values()) == set(names)
    assert sum(map(len, split.values())) == len(names)
    assert split == librispeech.subsets_of(names[::-1], Path("noise"))
    assert len(split["train"]) >= 0.8 * len(names) - 2


@given(
    lag=st.integers(-chime4.LARGEST_LAG, chime4.LARGEST_LAG),
    level=st.floats(0.05, 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_a_reference_is_found_at_any_lag_and_level(lag, level, seed):
    original = np.random.default_rng(seed).standard_normal(3000)
    shifted = np.pad(original, (max(lag, 0), 0))[max(-lag, 0) :][:3000]
    noisy = level * np.pad(shifted, (0, 3000 - len(shifted)))
    np.testing.assert_allclose(chime4.fit(original, noisy), noisy, atol=1e-5 * level)
