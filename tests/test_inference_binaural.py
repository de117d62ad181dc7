"""Binaural models in use: loaded, exported, over files, in chunks, as a stream."""

import json

import numpy as np
import pytest
import soundfile
import torch

from unified_se_ss.__main__ import main
from unified_se_ss.errors import UserError
from unified_se_ss.inference import BinauralSeparator, Model, Separator, load_model
from unified_se_ss.inference.chunks import Stitcher
from unified_se_ss.inference.configuration import build_network
from unified_se_ss.inference.export import export, write_native
from unified_se_ss.networks.binaural import VARIANTS

RATE = 8000


def model(variant="mimo", n_sources=2, **arguments):
    """A small model of random weights."""
    sizes = {"n_basis": 16, "n_features": 8, "hidden": 12, "blocks": 3, "repeats": 1}
    sizes |= {"variant": variant, "n_sources": n_sources, **arguments}
    described = {"class": "BinauralNetwork", "arguments": sizes}
    torch.manual_seed(0)
    network = build_network(described)
    configuration = {"format": 1, "kind": "binaural", "sample_rate": RATE}
    configuration["network"] = described
    return Model(network, "binaural", RATE, "cpu", configuration=configuration)


def ears(samples=6000, seed=0):
    signal = 0.1 * np.random.default_rng(seed).standard_normal((2, samples))
    return signal.astype(np.float32)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("causal", [False, True])
def test_an_exported_model_gives_what_the_network_gives(tmp_path, variant, causal):
    first = model(variant, n_sources=3, causal=causal)
    (tmp_path / "run").mkdir()
    write_native(first, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    again = load_model(tmp_path / "out", "cpu")
    mixture = torch.from_numpy(ears())[None]
    with torch.no_grad():
        expected = first.network(mixture)
    torch.testing.assert_close(again.separate(mixture), expected, rtol=1e-4, atol=1e-6)
    assert (again.n_sources, again.channels, again.ears) == (3, 2, 2)
    assert again.causal is causal and not again.can_enhance
    with pytest.raises(
        UserError, match="this binaural model cannot enhance; it can separate"
    ):
        again.enhance(mixture)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "[B, 2, T] at 8000 Hz to [B, 3, 2, T]" in card and "separates a mixture" in card


@pytest.mark.parametrize("format", ["speechbrain", "onnx"])
def test_other_formats_are_refused_in_words(tmp_path, format):
    (tmp_path / "run").mkdir()
    write_native(model(), tmp_path / "run")
    with pytest.raises(UserError, match="binaural"):
        export(tmp_path / "run", tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_a_hostile_configuration_is_refused(tmp_path):
    write_native(model(), tmp_path)
    path = tmp_path / "config.json"
    found = json.loads(path.read_text())
    for key, value in (("repeats", 10**6), ("variant", "other"), ("causal", 1)):
        changed = json.loads(json.dumps(found))
        changed["network"]["arguments"][key] = value
        path.write_text(json.dumps(changed))
        with pytest.raises(UserError, match="config.json: network"):
            load_model(tmp_path, "cpu")


@pytest.mark.parametrize("causal", [False, True])
def test_a_short_recording_is_what_the_network_makes_of_it_at_its_level(causal):
    first = model(causal=causal)
    mixture = ears()
    for gain in (1.0, 1e-3):
        found = BinauralSeparator(first).separate(gain * mixture, RATE)
        scale = 0.05 / np.sqrt(np.square(mixture).mean())
        with torch.no_grad():
            expected = first.network(torch.from_numpy(scale * mixture)[None])[0] / scale
        np.testing.assert_allclose(found, gain * expected.numpy(), atol=gain * 1e-5)


def test_kinds_lengths_and_rates():
    separator = BinauralSeparator(model())
    for samples, rate in ((1, 8000), (5, 44100), (44100, 44100), (3001, 16000)):
        assert separator.separate(ears(samples), rate).shape == (2, 2, samples)
    tensor = torch.from_numpy(ears()).double()
    found = separator.separate(tensor, RATE)
    assert found.dtype == torch.float64 and found.shape == (2, 2, 6000)
    assert not separator.separate(np.zeros((2, 500), np.float32), RATE).any()


def test_swapped_ears_of_a_shared_network_are_swapped_in_the_output():
    """Nothing on the way treats one ear otherwise than the other."""
    separator = BinauralSeparator(model(share_ears=True), 0.3, 0.1)
    found = separator.separate(ears(), 16000)
    other = separator.separate(ears()[::-1].copy(), 16000)
    np.testing.assert_allclose(other[:, ::-1], found, atol=1e-5)


def test_a_stream_is_the_network_at_once():
    separator = BinauralSeparator(model("cross", causal=True))
    mixture = torch.from_numpy(ears())[None]
    stream = separator.stream()
    parts = [stream(block) for block in mixture.split([7, 1, 993, 2999, 2000], -1)]
    found = torch.cat([*parts, stream.flush()], -1)
    with torch.no_grad():
        expected = separator.model.network(mixture)
    assert (found - expected).abs().max() <= 1e-5
    with pytest.raises(UserError, match="not causal"):
        BinauralSeparator(model()).stream()


def test_talkers_of_chunks_are_matched_and_ears_keep_their_levels():
    """Chunks in any order come out as one signal; no ear or chunk has a gain."""
    rng = np.random.default_rng(1)
    signals = rng.standard_normal((3, 2, 2500)) * [[[1.0], [0.2]]]
    stitcher, parts = Stitcher(3, overlap=200, sample_rate=1000), []
    for start in range(0, 2400, 800):
        order = rng.permutation(3)
        piece = signals[order][..., start : start + 1000]
        parts.append(stitcher.add(start, piece, start + 1000 >= 2500))
    found = np.concatenate(parts, -1)
    first = [int(np.argmax(np.abs(np.einsum("et,jet->j", x, signals)))) for x in found]
    assert sorted(first) == [0, 1, 2]
    np.testing.assert_allclose(found, signals[first], atol=1e-12)


def test_files_become_stereo_files(tmp_path):
    separator = BinauralSeparator(model())
    mixture = ears()
    soundfile.write(tmp_path / "in.wav", mixture.T, RATE, subtype="FLOAT")
    outputs = [tmp_path / f"{j}.wav" for j in (1, 2)]
    result = separator.separate_file(tmp_path / "in.wav", outputs)
    expected = separator.separate(tmp_path / "in.wav")
    for path, signal in zip(outputs, expected):
        found, rate = soundfile.read(path, dtype="float32")
        assert rate == RATE
        np.testing.assert_array_equal(found.T, signal)
    assert (result.seconds, result.chunks, result.turned_down_db) == (0.75, 1, 0.0)

    soundfile.write(tmp_path / "loud.wav", 1e3 * mixture.T, RATE, subtype="FLOAT")
    result = separator.separate_file(tmp_path / "loud.wav", outputs, subtype="pcm16")
    assert result.turned_down_db > 0
    found = np.stack([soundfile.read(path)[0].T for path in outputs])
    gain = 10 ** (-result.turned_down_db / 20)  # one for all ears of all talkers
    np.testing.assert_allclose(found, gain * 1e3 * expected, atol=2e-4)


def test_the_command_line_gives_stereo_files_that_add_up(tmp_path, capsys):
    write_native(model(), tmp_path)
    mixture = ears(3000)
    soundfile.write(tmp_path / "in.wav", mixture.T, RATE, subtype="FLOAT")
    arguments = ["separate", str(tmp_path), str(tmp_path / "in.wav")]
    arguments += ["-o", str(tmp_path / "o"), "--device", "cpu"]
    assert main([*arguments, "--mixture_consistency"]) == 0
    found = [soundfile.read(tmp_path / "o" / f"in_source{j}.wav")[0].T for j in (1, 2)]
    np.testing.assert_allclose(sum(found), mixture, atol=1e-6)
    assert "binaural model, 2 sources" in capsys.readouterr().out


def test_what_is_not_binaural_is_refused(tmp_path):
    separator = BinauralSeparator(model())
    soundfile.write(tmp_path / "mono.wav", ears()[0], RATE)
    with pytest.raises(UserError, match="mono.wav: .*two channels"):
        separator.separate(tmp_path / "mono.wav")
    broken = ears()
    broken[1, 7] = np.inf
    for given in (ears()[0], np.zeros((2, 0), np.float32), broken):
        with pytest.raises(UserError, match="the recording"):
            separator.separate(given, RATE)
    with pytest.raises(UserError, match="floating-point"):
        separator.separate(ears().astype(int), RATE)
    with pytest.raises(UserError, match="need their sampling rate"):
        separator.separate(ears())
    with pytest.raises(UserError, match="needs all channels"):
        separator.separate_file(tmp_path / "mono.wav", [], downmix=True)
    with pytest.raises(UserError, match="cannot enhance; it can separate"):
        separator.n_signals("enhance")
    with pytest.raises(UserError, match="BinauralSeparator"):
        Separator(separator.model)
    with pytest.raises(UserError, match="overlap_seconds"):
        BinauralSeparator(separator.model, 1.0, 0.6)
