"""Recognizer: a run or its export, recordings as people have them, words and signals."""

import csv
import json
import re
import shutil
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references
from safetensors.torch import load_file, save_file
from small_models import small_model
from speechbrain.utils.checkpoints import average_checkpoints
from test_inference_models import change
from test_inference_separator import two_voices

from unified_se_ss.__main__ import main
from unified_se_ss.data.manifest import write_manifest
from unified_se_ss.errors import UserError
from unified_se_ss.inference import Recognizer, load_model
from unified_se_ss.inference.chunks import SilenceSplitter
from unified_se_ss.inference.export import export, write_native
from unified_se_ss.inference.folders import read_folder, read_tokens
from unified_se_ss.inference.models import build_network, outline
from unified_se_ss.inference.pipeline import training_rms
from unified_se_ss.networks import MaskingFront
from unified_se_ss.recognition import BLANK, END, BeamSearch, Tokens
from unified_se_ss.training.checkpoints import AtomicCheckpointer

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "GradientRemedy"
RATE = 8000
GELU = {"class": "GELU", "arguments": {}}
SENTENCES = ["the old man sleeps", "a dog sings", "my cat is small", "the river is cold"]
TINY = {
    "d_model": 16,
    "front": {"hidden": 8},
    "transformer": {"num_encoder_layers": 1, "d_ffn": 24, "kernel_size": 5},
    "beam_size": 3,
    "average_checkpoints": 2,
}


def make_run(folder, **changes):
    """A run's folder as train.py leaves it, of networks that were never trained."""
    text = (RECIPE / "hparams" / "demo.yaml").read_text()
    overrides = {**TINY, "output_folder": str(folder), **changes}
    folder.mkdir(parents=True)
    resolved = resolve_references(text, overrides).getvalue()
    (folder / "hyperparams.yaml").write_text(resolved)
    sys.path.insert(0, str(RECIPE))  # where the YAML's functions are
    try:
        hparams = load_hyperpyyaml(text, overrides)
    finally:
        sys.path.remove(str(RECIPE))
    Tokens.train(SENTENCES, folder / "tokens.model", 40, "char")
    modules = hparams["modules"]
    if hparams["system"] == "noisy":
        del modules["front"]
    with torch.no_grad():  # or the likeliest is that nobody speaks
        modules["recogniser"].attention.w.bias[: END + 1] -= 30
        modules["recogniser"].ctc.w.bias[BLANK + 1 : END + 1] -= 30
        modules["recogniser"].ctc.w.bias[BLANK] -= 2
    checkpointer = AtomicCheckpointer(folder / "save", modules)
    for accuracy in (30.0, 50.0, 40.0):
        with torch.no_grad():
            for parameter in torch.nn.ModuleDict(modules).parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
            if "front" in modules:
                voices = torch.from_numpy(two_voices(4.0)).float()
                modules["front"].fit_normalisation(0.2 * voices)
        checkpointer.save_checkpoint({"accuracy": accuracy, "epoch": 1})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("asr") / "joint")


@pytest.fixture(scope="module")
def noisy_run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("asr") / "noisy", system="noisy")


@pytest.fixture(scope="module")
def shared(run, tmp_path_factory):
    return export(run, tmp_path_factory.mktemp("asr") / "shared")


def talk(seconds=1.5, sample_rate=RATE):
    """Something like voices, float32 [T]."""
    return 0.3 * two_voices(seconds, sample_rate=sample_rate).sum(0).astype(np.float32)


def own_words(recognizer, signal):
    """What front, recogniser and search say of a signal [T] at their rate, and hear."""
    system = recognizer.model.network
    with torch.no_grad():
        signal = torch.from_numpy(signal)[None]
        heard = signal if system.front is None else system.front(signal).signal
        recognised = system.recogniser(heard)
        tokens = Tokens(recognizer.model.decoding.tokens)
        search = BeamSearch(system.recogniser, tokens, 3, 0.3)
        return search(recognised)[0], heard[0].numpy()


# ------------------------------------------------------------------ what is loaded


def test_the_weights_are_those_that_the_test_takes(run):
    """The mean of the two best, as SpeechBrain takes it."""
    best = AtomicCheckpointer(run / "save").find_checkpoints(
        max_key="accuracy", max_num_checkpoints=2
    )
    assert [checkpoint.meta["accuracy"] for checkpoint in best] == [50.0, 40.0]
    system = load_model(run, "cpu").network

    load = partial(torch.load, weights_only=True)
    for name in ("front", "recogniser"):
        expected = average_checkpoints(best, name, load)
        found = getattr(system, name).state_dict()
        assert set(found) == set(expected)
        for key, value in expected.items():
            assert torch.equal(found[key], value), key


@pytest.mark.parametrize("samples", [768, 5000, 12000])
def test_a_run_and_its_export_give_the_network_itself(run, shared, samples):
    signal = talk()[:samples]
    first = Recognizer.from_folder(run, "cpu", match_level=False)
    second = Recognizer.from_folder(shared, "cpu", match_level=False)
    text, heard = own_words(first, signal)
    assert text or samples == 768  # one frame
    for recognizer in (first, second):
        found = recognizer.recognise(signal, RATE)
        assert found.text == text
        np.testing.assert_allclose(found.enhanced, heard, atol=1e-6)
        np.testing.assert_array_equal(recognizer.enhance(signal, RATE), found.enhanced)


def test_an_export_is_plain_data_and_can_be_exported_again(shared, tmp_path, capsys):
    names = {"config.json", "model.safetensors", "tokens.model", "README.md"}
    assert {path.name for path in shared.iterdir()} == names
    found = json.loads((shared / "config.json").read_text())
    assert found["kind"] == "recogniser"
    assert found["search"] == {"beam_size": 3, "ctc_weight": 0.3}
    card = (shared / "README.md").read_text()
    assert "unified_se_ss recognise shared NOISY.wav" in card
    assert "recognises what is said" in card and "automatic-speech-recognition" in card
    assert main(["export", str(shared), "-o", str(tmp_path / "again")]) == 0
    for name in names - {"README.md"}:
        again = tmp_path / "again" / name
        assert again.read_bytes() == (shared / name).read_bytes(), name
    assert main(["export", str(shared), "-o", str(tmp_path / "again"), "--force"]) == 0
    for format in ("speechbrain", "onnx"):
        assert main(["export", str(shared), "-o", "x", "--format", format]) == 2
        assert "cannot hold a recogniser" in capsys.readouterr().err


YAMLS = sorted((RECIPE / "hparams").glob("*.yaml"))


@pytest.mark.parametrize(
    "path, system",
    [*((path, "joint") for path in YAMLS), (YAMLS[0], "cascade"), (YAMLS[0], "noisy")],
    ids=lambda value: getattr(value, "stem", value),
)
def test_every_recipes_network_can_be_described(path, system, tmp_path, monkeypatch):
    """And the description gives the same parameters as the YAML, by name and shape."""
    text = path.read_text()
    placeholders = re.findall(r"^(\w+): !PLACEHOLDER", text, re.MULTILINE)
    overrides = dict.fromkeys(placeholders, "x") | {"system": system}
    overrides |= {"output_folder": str(tmp_path)}
    resolved = resolve_references(text, overrides).getvalue()
    (tmp_path / "hyperparams.yaml").write_text(resolved)
    (tmp_path / "tokens.model").write_bytes(b"")
    checkpoint = tmp_path / "save" / "CKPT+1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "CKPT.yaml").write_text("accuracy: 1.0\nunixtime: 1.0\n")
    for name in ("front", "recogniser"):
        torch.save({}, checkpoint / f"{name}.ckpt")
    contents = read_folder(tmp_path)
    found = outline(contents.network).state_dict()
    monkeypatch.syspath_prepend(str(RECIPE))
    with torch.device("meta"):
        modules = load_hyperpyyaml(text, overrides)["modules"]
    names = ["recogniser"] + ["front"] * (system != "noisy")
    expected = {
        f"{name}.{key}": value.shape
        for name in names
        for key, value in modules[name].state_dict().items()
    }
    assert {key: value.shape for key, value in found.items()} == expected


def test_padding_and_batch_change_nothing(run):
    recognizer = Recognizer.from_folder(run, "cpu")
    lengths = torch.tensor([12000, 5000, 768])
    signals = torch.zeros(3, 13000)
    for row, samples in zip(signals, lengths.tolist()):
        row[:samples] = torch.from_numpy(talk()[:samples])
    together = recognizer.recognise_batch(signals, lengths)
    for item, samples in enumerate(lengths.tolist()):
        (alone,) = recognizer.recognise_batch(signals[item : item + 1, :samples])
        assert together[item].text == alone.text
        enhanced = together[item].enhanced
        torch.testing.assert_close(enhanced[:samples], alone.enhanced, atol=1e-6, rtol=0)
        assert not enhanced[samples:].any()
    with pytest.raises(UserError, match="of 768 samples or more"):
        recognizer.recognise_batch(signals[:, :767])


@pytest.mark.parametrize(
    "attention, encoder",
    [("regularMHA", "transformer"), ("RoPEMHA", "conformer")],
)
def test_other_encoders(tmp_path, attention, encoder):
    transformer = {"attention_type": attention, "encoder_module": encoder}
    transformer = {**TINY["transformer"], **transformer}
    run = make_run(tmp_path / "run", transformer=transformer)
    recognizer = Recognizer.from_folder(export(run, tmp_path / "shared"), "cpu")
    assert recognizer.recognise(talk(), RATE).enhanced.shape == (12000,)


# ------------------------------------------------------------------ recordings


def test_without_a_front_the_words_are_all_there_is(noisy_run, tmp_path, capsys):
    shared = export(noisy_run, tmp_path / "shared")
    signal = talk()
    for folder in (noisy_run, shared):
        recognizer = Recognizer.from_folder(folder, "cpu", match_level=False)
        found = recognizer.recognise(signal, RATE)
        assert found == (own_words(recognizer, signal)[0], None)
        with pytest.raises(UserError, match="cannot enhance; it can recognise"):
            recognizer.enhance(signal, RATE)
    with pytest.raises(UserError, match="cannot enhance; it can recognise"):
        load_model(noisy_run, "cpu").enhance(torch.zeros(1, 900))
    soundfile.write(tmp_path / "a.wav", signal, RATE)
    out = tmp_path / "out"
    assert main(["recognise", str(shared), str(tmp_path / "a.wav"), "-o", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.txt", "transcripts.csv"]
    row = {"ID": "a", "duration": 1.5, "sample_rate": RATE}
    row |= {"mixture": "a.wav", "s1": "a.wav"}
    write_manifest(tmp_path / "a.csv", [row], {})
    assert main(["evaluate", str(shared), str(tmp_path / "a.csv"), "-o", "no"]) == 2
    assert "noisy, clean are missing" in capsys.readouterr().err


def test_the_level_of_a_recording_does_not_matter(run):
    recognizer, signal = Recognizer.from_folder(run, "cpu"), talk()
    found = recognizer.recognise(signal, RATE)
    other = recognizer.recognise(1e-3 * signal, RATE)
    assert other.text == found.text
    np.testing.assert_allclose(1e3 * other.enhanced, found.enhanced, atol=1e-5)


@pytest.mark.parametrize("level", [0.01, 0.3])
def test_the_level_is_that_of_training(level):
    front = MaskingFront(n_fft=64, hop=32, hidden=4, layers=1)
    generator = torch.Generator().manual_seed(0)
    signals = [level * torch.randn(20000, generator=generator) for _ in range(4)]
    signals[0] *= 3.0
    front.fit_normalisation(signals)
    rms = float(torch.cat(signals).square().mean().sqrt())
    assert training_rms(front) == pytest.approx(rms, rel=0.01)


@pytest.mark.parametrize(
    "samples, rate", [(1, 8000), (2, 48000), (100, 48000), (767, 8000), (20000, 16000)]
)
def test_what_is_short_or_silent_has_no_words(run, noisy_run, samples, rate):
    signal = talk(3.0)[1000 : 1000 + samples]
    signal = np.zeros_like(signal) if samples == 20000 else signal
    text, enhanced = Recognizer.from_folder(run, "cpu").recognise(signal, rate)
    assert text == "" and enhanced.shape == signal.shape and np.isfinite(enhanced).all()
    assert signal.any() or not enhanced.any()
    assert Recognizer.from_folder(noisy_run, "cpu").recognise(signal, rate).text == ""


# ------------------------------------------------------------------ long recordings


def test_pauses_are_where_segments_end():
    rng = np.random.default_rng(0)
    signal = rng.standard_normal(RATE * 33).astype(np.float32)
    pauses = [(7.2, 7.7), (14.0, 14.5), (20.0, 20.3), (29.3, 30.4)]
    for start, end in pauses:
        signal[int(start * RATE) : int(end * RATE)] *= 1e-3
    for size in (1000, 77777, len(signal)):
        cutter = SilenceSplitter(10 * RATE, RATE)
        blocks = [signal[at : at + size] for at in range(0, len(signal), size)]
        segments = [part for block in blocks for part in cutter.add(block)]
        segments += cutter.rest()
        np.testing.assert_array_equal(np.concatenate(segments), signal)
        ends = np.cumsum([len(part) for part in segments])[:-1] / RATE
        assert len(ends) == len(pauses)
        for found, (start, end) in zip(ends, pauses):
            assert start + 0.1 < found < end - 0.1


@pytest.mark.parametrize("signal", [np.zeros(5000), np.ones(5000), np.ones(2)])
def test_segments_without_pauses_end_all_the_same(signal):
    for longest in (2, 7, 999):
        cutter = SilenceSplitter(longest, 100)
        segments = [*cutter.add(signal.astype(np.float32)), *cutter.rest()]
        assert all(0 < len(part) <= longest for part in segments)
        np.testing.assert_array_equal(np.concatenate(segments), signal)


def test_a_long_recording_is_heard_in_pieces(run):
    """Each as long as is allowed; the words are those of the segments on their own."""
    options = {"match_level": False, "segment_seconds": 1.0}
    recognizer = Recognizer.from_folder(
        run, "cpu", chunk_seconds=2.048, overlap_seconds=0.512, **options
    )
    signal = talk(5.0)
    text, enhanced = recognizer.recognise(signal, RATE)
    whole = own_words(recognizer, signal)[1]
    assert enhanced.shape == whole.shape
    # Both directions of the LSTM end with a chunk, but chunks begin with a frame.
    np.testing.assert_allclose(enhanced[:12000], whole[:12000], atol=1e-5)
    assert np.square(enhanced - whole).mean() < 0.05 * np.square(whole).mean()
    cutter = SilenceSplitter(RATE, RATE)
    segments = [*cutter.add(enhanced), *cutter.rest()]
    assert len(segments) >= 5
    with torch.no_grad():
        texts = [
            recognizer.search(recognizer.network(torch.from_numpy(part)[None]))[0]
            for part in segments
            if len(part) >= 768
        ]
    assert text == " ".join(filter(None, texts))


def test_memory_does_not_grow_with_the_length(run, tmp_path, monkeypatch):
    """Of what Python and NumPy hold; a network's own does not depend on the length."""
    peaks = []
    for seconds in (40, 160):
        path = tmp_path / f"{seconds}.wav"
        with soundfile.SoundFile(path, "w", RATE, 1, "FLOAT") as file:
            for _ in range(seconds // 4):
                file.write(talk(4.0))
        recognizer = Recognizer.from_folder(run, "cpu", segment_seconds=4.0)
        monkeypatch.setattr(recognizer, "search", lambda said: ["a"])
        outputs = [tmp_path / f"{seconds}.txt", tmp_path / f"{seconds}_out.wav"]
        tracemalloc.start()
        result = recognizer.separate_file(path, outputs, subtype="pcm16")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert result.segments == len(result.text.split()) >= seconds // 4
        assert soundfile.info(outputs[1]).frames == seconds * RATE
    assert peaks[1] < peaks[0] + 1e6  # the signals differ by 3.84 MB


@pytest.mark.parametrize(
    "options, message",
    [
        ({"segment_seconds": 0.05}, "segment_seconds: is 0.05; the model takes 0.096 to"),
        ({"segment_seconds": 1e4}, "the model takes 0.096 to 160"),
        ({"chunk_seconds": 3.0}, "at most half of chunk_seconds"),
        ({"beam_size": 0}, "beam_size: is 0; expected 1 to 1000"),
    ],
)
def test_wrong_options(run, options, message):
    with pytest.raises(UserError, match=message):
        Recognizer.from_folder(run, "cpu", **options)


# ------------------------------------------------------------------ the command line


def test_files_get_text_and_sound_and_a_table(shared, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    soundfile.write(folder / "one.wav", talk(), RATE, subtype="FLOAT")
    soundfile.write(folder / "sub" / "two.flac", talk(2.0, 44100), 44100)
    (folder / "bad.wav").write_bytes(b"no sound")
    command = ["recognise", str(shared), str(folder), "-o", str(out), "--device", "cpu"]
    assert main(command) == 1
    said = capsys.readouterr()
    assert "bad.wav: is" in said.err and "2 files done, 1 failed" in said.out
    found = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    outputs = ["one.txt", "one_enhanced.wav", "sub/two.txt", "sub/two_enhanced.wav"]
    assert found == [*outputs, "transcripts.csv"]
    recognizer = Recognizer.from_folder(shared, "cpu")
    rows = list(csv.DictReader((out / "transcripts.csv").open()))
    assert [row["seconds"] for row in rows] == ["1.500", "2.000"]
    for name, row in zip(("one.wav", "sub/two.flac"), rows):
        text, enhanced = recognizer.recognise(folder / name)
        assert row == {**row, "input": str(folder / name), "text": text}
        stem = name.rsplit(".", 1)[0]
        assert (out / f"{stem}.txt").read_text() == f"{text}\n"
        assert f"\n    {text or '(no words)'}\n" in said.out
        written, _ = soundfile.read(out / f"{stem}_enhanced.wav", dtype="float32")
        np.testing.assert_array_equal(written, enhanced)

    for name in outputs:  # nothing is replaced unless told
        (out / name).unlink()
    assert main(command) == 2
    assert "transcripts.csv: exists already (1 of 7" in capsys.readouterr().err
    one = [*command[:2], str(folder / "one.wav"), *command[3:], "--force"]
    assert main([*one, "--text_only", "--beam_size", "1"]) == 0
    assert sorted(path.name for path in out.glob("*.*")) == ["one.txt", "transcripts.csv"]
    capsys.readouterr()
    assert main([*one, "--json", "--segment_seconds", "0.5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["files"][0]["segments"] >= 3
    assert found["transcripts"] == str(out / "transcripts.csv")


def test_what_models_cannot_do_is_refused(shared, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    write_native(small_model(), tmp_path / "other")
    soundfile.write(tmp_path / "a.wav", talk(), RATE, subtype="FLOAT")
    for model, command, message in (
        (shared, "separate", "cannot separate; it can enhance and recognise"),
        (shared, "enhance", "--guide: a model of kind recogniser does not use it"),
        (tmp_path / "other", "recognise", "this unified model cannot recognise"),
    ):
        options = ["--guide", "souden_mvdr"] if command == "enhance" else []
        words = [command, str(model), str(tmp_path / "a.wav"), "-o", "x", *options]
        assert main(words) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="of kind unified is for Separator"):
        Recognizer(load_model(tmp_path / "other"))


# ------------------------------------------------------------------ what strangers made


@pytest.fixture
def stranger(shared, tmp_path):
    folder = tmp_path / "stranger"
    shutil.copytree(shared, folder)
    return folder


RECOGNISER = "network.recogniser"
TRANSFORMER, FEATURES = f"{RECOGNISER}.transformer", f"{RECOGNISER}.features"


@pytest.mark.parametrize(
    "where, value, message",
    [
        ("search.beam_size", 10**9, "search: beam_size: is 1000000000; expected 1 to"),
        ("search.ctc_weight", 2, "search: ctc_weight: is 2; expected 0 to 1"),
        ("search.more", 2, "search: is .* expected beam_size and ctc_weight"),
        ("search", None, "search: is None; expected"),
        ("kind", "gsenet", "unknown: 'search'"),
        ("kind", ["recogniser"], "kind is"),
        (f"{TRANSFORMER}.encoder_module", "os", "encoder_module: is 'os'; expected conf"),
        (f"{TRANSFORMER}.num_encoder_layers", 65, "expected 1 to 64"),
        (f"{TRANSFORMER}.nhead", 3, "TransformerASR: "),
        (f"{TRANSFORMER}.custom_src_module", 3, "has no such argument"),
        (f"{TRANSFORMER}.activation", "torch.nn.GELU", "TransformerASR: "),
        (f"{TRANSFORMER}.activation", GELU, "TransformerASR: GELU.forward"),
        (f"{FEATURES}.n_mels", 4000, "n_mels: is 4000; expected 1 to 512"),
        (f"{FEATURES}.n_mels", 41, "not the weights of this network"),
        (f"{FEATURES}.hop_length", 0.001, "hop: is 128 samples; the features' is 0"),
        (f"{RECOGNISER}.normalisation.norm_type", "global", "expected sen"),
        (f"{RECOGNISER}.n_tokens", 60, "not the weights of this network"),
        (f"{FEATURES}.class", "STFT", "there is no class 'STFT'"),
        (FEATURES, 3, "RecognitionSystem: "),
        ("network.front.class", "ReLU", "has no such argument"),
    ],
)
def test_a_strangers_description_is_refused(stranger, where, value, message):
    change(stranger, where, value)
    with pytest.raises(UserError, match=message):
        Recognizer.from_folder(stranger, "cpu")


def test_an_activation_can_be_named(stranger):
    change(stranger, f"{TRANSFORMER}.activation", {**GELU, "partial": True})
    network = build_network(json.loads((stranger / "config.json").read_text())["network"])
    assert [m for m in network.modules() if isinstance(m, torch.nn.GELU)]
    assert Recognizer.from_folder(stranger, "cpu").recognise(talk(), RATE)


def test_weights_that_do_not_fit_each_other(stranger):
    """An embedding that knows fewer tokens than the search can give."""
    change(stranger, f"{TRANSFORMER}.tgt_vocab", 50)
    path = stranger / "model.safetensors"
    state = load_file(path)
    (name,) = [key for key in state if "custom_tgt_module" in key]
    state[name] = state[name][:50].clone()
    save_file(state, path)
    with pytest.raises(UserError, match="do not fit together"):
        Recognizer.from_folder(stranger, "cpu")


def test_a_tokenizer_that_is_none(stranger, tmp_path, capsys):
    path = stranger / "tokens.model"
    whole = path.read_bytes()
    for content in (b"", b"no model", whole[: len(whole) // 2], b"\x80\x04cos\nsystem\n"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="tokens.model: .*(sentencepiece|tokens)"):
            Recognizer.from_folder(stranger, "cpu")
        assert main(["export", str(stranger), "-o", str(tmp_path / "no")]) == 2
        assert not (tmp_path / "no").exists()
    path.unlink()
    with pytest.raises(UserError, match="tokens.model: there is no such file"):
        Recognizer.from_folder(stranger, "cpu")
    path.symlink_to("/etc/hostname")
    with pytest.raises(UserError, match="a link out of the folder"):
        Recognizer.from_folder(stranger, "cpu")


def test_a_tokenizer_of_another_network(tmp_path, monkeypatch):
    path = tmp_path / "tokens.model"
    tokens = Tokens.train(SENTENCES, path, 40, "char")
    assert len(read_tokens(path, 40)) == len(tokens)
    with pytest.raises(UserError, match=f"holds {len(tokens)} tokens, .* knows 9"):
        read_tokens(path, 9)
    monkeypatch.setattr("unified_se_ss.inference.folders.LARGEST_TOKENIZER", 99)
    with pytest.raises(UserError, match="more than 99"):
        read_tokens(path, 40)


def test_any_damage_to_a_tokenizer_is_said_or_harmless(tmp_path):
    whole = Tokens.train(SENTENCES, tmp_path / "a.model", 40, "char").path.read_bytes()
    rng, refused = np.random.default_rng(0), 0
    path = tmp_path / "b.model"
    for _ in range(100):
        content = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for place in rng.integers(0, len(content), rng.integers(0, 5)):
            content[place] = rng.integers(0, 256)
        path.write_bytes(content)
        try:
            tokens = read_tokens(path, 100)
            assert isinstance(tokens.decode(range(100)), str)
        except UserError as error:
            assert "b.model" in str(error)
            refused += 1
    assert refused > 30


@pytest.mark.parametrize(
    "old, new, message",
    [
        (r"accuracy: [\d.]+", "wer: 1.0", "no checkpoint of a whole epoch"),
        (r"average_checkpoints: 2", "average_checkpoints: 0", "expected 1 to 1000"),
        (r"norm_type: sentence", "norm_type: global", "expected sentence"),
        (r"!new:speechbrain.lobes.features.Fbank", "!new:os.mkdir", "cannot be shared"),
        (r"features.Fbank", "features.MFCC", "cannot be shared"),
        (r"make_search: ", "make_nothing: ", "make_search: expected what makes a search"),
        (r" beam_size: 3\n", " language_model: 3\n", "cannot be shared"),
        (r"recogniser: \*?\w+\n", "other: 3\n", "not a run of this project"),
        (r"sample_rate: 8000", "sample_rate: x", "sample_rate is 'x'"),
    ],
)
def test_a_run_that_cannot_be_used(run, tmp_path, old, new, message):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for path in (folder / "hyperparams.yaml", *folder.glob("save/*/CKPT.yaml")):
        path.write_text(re.sub(old, new, path.read_text()))
    with pytest.raises(UserError, match=message):
        Recognizer.from_folder(folder, "cpu")


def test_checkpoints_of_other_networks(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for number, path in enumerate(folder.glob("save/*/front.ckpt")):
        torch.save({"a": torch.ones(1 + number)}, path)
    with pytest.raises(UserError, match="not those of the run's other checkpoints"):
        Recognizer.from_folder(folder, "cpu")
