"""Models of two channels in use: binaural ones and GSENets, over files and as streams."""

import json

import numpy as np
import pytest
import soundfile
import torch
from small_models import noise, small_binaural, small_gsenet

from unified_se_ss.__main__ import main
from unified_se_ss.errors import UserError
from unified_se_ss.inference import BinauralSeparator, GuidedEnhancer, Separator, load_model
from unified_se_ss.inference.chunks import Stitcher
from unified_se_ss.inference.export import export, write_native
from unified_se_ss.inference.models import build_network
from unified_se_ss.networks.binaural import VARIANTS
from unified_se_ss.spatial import BeamformerFrontend

FAMILIES = {
    "binaural": lambda: BinauralSeparator(small_binaural()),
    "causal": lambda: BinauralSeparator(small_binaural("cross", causal=True)),
    "gsenet": lambda: GuidedEnhancer(small_gsenet()),
}


@pytest.fixture(params=FAMILIES)
def pipeline(request):
    return FAMILIES[request.param]()


def output(pipeline, recording, sample_rate=None):
    return getattr(pipeline, pipeline.task)(recording, sample_rate)


def of_network(pipeline, signal):
    with torch.no_grad():
        return pipeline.model.network(torch.from_numpy(signal)[None])[0].numpy()


def folder_of(model, folder):
    folder.mkdir()
    write_native(model, folder)
    return folder


# ------------------------------------------------------------------ models


@pytest.mark.parametrize("variant", [*VARIANTS, None])
@pytest.mark.parametrize("causal", [False, True])
def test_an_exported_model_gives_what_the_network_gives(tmp_path, variant, causal):
    model = small_gsenet()
    facts, shapes, other = (0, 2, 1, True), "[B, 2, T] at 16000 Hz", "separate"
    if variant is not None:
        model = small_binaural(variant, n_sources=3, causal=causal)
        facts, other = (3, 2, 2, causal), "enhance"
        shapes = "[B, 2, T] at 8000 Hz to [B, 3, 2, T]"
    folder = folder_of(model, tmp_path / "run")
    export(folder, tmp_path / "out")
    again, mixture = load_model(tmp_path / "out", "cpu"), torch.from_numpy(noise())[None]
    with torch.no_grad():
        expected = model.network(mixture)
    (task,) = again.tasks
    found = getattr(again, task)(mixture)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert (again.n_sources, again.channels, again.ears, again.causal) == facts
    with pytest.raises(UserError, match=f"cannot {other}; it can {task}"):
        getattr(again, other)(mixture)
    assert shapes in (tmp_path / "out" / "README.md").read_text()
    for format in ("speechbrain", "onnx"):
        with pytest.raises(UserError, match="hears (2|several) channels"):
            export(folder, tmp_path / "other", format)
    assert not (tmp_path / "other").exists()


BLOCKS = [[[4, 8, 2, 2, True]] * 65, [[4, 8, 2, 2, "x"]], [[0, 8, 1, 1, True]], [5]]


@pytest.mark.parametrize(
    "network, key, value",
    [
        ("BinauralNetwork", "repeats", 10**6),
        ("BinauralNetwork", "variant", "other"),
        ("BinauralNetwork", "causal", 1),
        *(("GSENet", "blocks", blocks) for blocks in BLOCKS),
    ],
)
def test_a_strangers_sizes_are_looked_at_first(network, key, value):
    description = {"class": network, "arguments": {key: value}}
    with pytest.raises(UserError, match=f"config.json: network.*{key}.* expected"):
        build_network(description, "config.json")


# ------------------------------------------------------------------ recordings


def test_a_short_recording_is_what_the_network_makes_of_it_at_its_level(pipeline):
    mixture, rate = noise(), pipeline.sample_rate
    levelled = mixture if pipeline.ears == 2 else mixture[0]  # the reference microphone
    scale = np.float32(0.05 / np.sqrt(np.square(levelled).mean()))
    expected = of_network(pipeline, scale * mixture) / scale
    for gain in (1.0, 1e-3):
        found = output(pipeline, np.float32(gain) * mixture, rate)
        np.testing.assert_allclose(found, gain * expected, atol=gain * 1e-5)


def test_kinds_lengths_and_rates(pipeline):
    shape = (2, 2) if pipeline.ears == 2 else ()
    for samples, rate in ((1, 8000), (5, 44100), (44100, 48000), (3001, 16000)):
        found = output(pipeline, noise(2, samples), rate)
        assert found.shape == (*shape, samples) and np.isfinite(found).all()
    tensor = torch.from_numpy(noise()).double()
    found = output(pipeline, tensor, 8000)
    assert found.dtype == torch.float64 and found.shape == (*shape, 6000)
    silence = output(pipeline, np.zeros((2, 500), np.float32), 8000)
    assert np.abs(silence).max() < 1e-6


def test_swapped_ears_of_a_shared_network_are_swapped_in_the_output():
    """Nothing on the way treats one ear otherwise than the other."""
    separator = BinauralSeparator(small_binaural(share_ears=True), 0.3, 0.1)
    found = separator.separate(noise(), 16000)
    other = separator.separate(noise()[::-1].copy(), 16000)
    np.testing.assert_allclose(other[:, ::-1], found, atol=1e-5)


@pytest.mark.parametrize("name", ["causal", "gsenet"])
def test_a_stream_is_the_network_at_once(name):
    pipeline = FAMILIES[name]()
    stream = pipeline.stream()
    blocks = torch.from_numpy(noise())[None].split([7, 1, 993, 2999, 2000], -1)
    found = torch.cat([*map(stream, blocks), stream.flush()], -1)[0]
    np.testing.assert_allclose(found, of_network(pipeline, noise()), atol=1e-5)
    with pytest.raises(UserError, match="not causal"):
        FAMILIES["binaural"]().stream()


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


def test_a_beamformer_makes_the_guide():
    guide = BeamformerFrontend("multichannel_wiener", sample_rate=16000, taps=2)
    model, microphones = small_gsenet(), noise(3)
    pair = np.stack([microphones[0], guide(torch.from_numpy(microphones)).numpy()])
    expected = GuidedEnhancer(model).enhance(pair, 16000)
    found = GuidedEnhancer(model, guide).enhance(microphones, 16000)
    np.testing.assert_allclose(found, expected, atol=1e-6)


# ------------------------------------------------------------------ files


def wav(folder, signal, rate, name="in.wav"):
    soundfile.write(folder / name, signal.T, rate, subtype="FLOAT")
    return folder / name


def test_files_become_stereo_files(tmp_path):
    separator, mixture = BinauralSeparator(small_binaural()), noise()
    path = wav(tmp_path, mixture, 8000)
    outputs = [tmp_path / f"{j}.wav" for j in (1, 2)]
    result = separator.separate_file(path, outputs)
    expected = separator.separate(path)
    for output, signal in zip(outputs, expected):
        found, rate = soundfile.read(output, dtype="float32")
        assert rate == 8000
        np.testing.assert_array_equal(found.T, signal)
    assert (result.seconds, result.chunks, result.turned_down_db) == (0.75, 1, 0.0)

    wav(tmp_path, 1e3 * mixture, 8000)
    result = separator.separate_file(path, outputs, subtype="pcm16")
    assert result.turned_down_db > 0
    found = np.stack([soundfile.read(output)[0].T for output in outputs])
    gain = 10 ** (-result.turned_down_db / 20)  # one for all ears of all talkers
    np.testing.assert_allclose(found, gain * 1e3 * expected, atol=2e-4)


def test_the_command_line_gives_stereo_files_that_add_up(tmp_path, capsys):
    folder, mixture = folder_of(small_binaural(), tmp_path / "model"), noise()
    command = ["separate", str(folder), str(wav(tmp_path, mixture, 8000))]
    assert main([*command, "-o", str(tmp_path / "o"), "--mixture_consistency"]) == 0
    found = [soundfile.read(tmp_path / "o" / f"in_source{j}.wav")[0].T for j in (1, 2)]
    np.testing.assert_allclose(sum(found), mixture, atol=1e-6)
    assert "binaural model, 2 sources" in capsys.readouterr().out


def test_the_command_line_takes_pairs_and_arrays(tmp_path, capsys):
    model, out = small_gsenet(), tmp_path / "out"
    command = ["enhance", str(folder_of(model, tmp_path / "model")), "-o", str(out)]
    assert main([*command, str(wav(tmp_path, noise(), 16000))]) == 0
    found, _ = soundfile.read(out / "in_enhanced.wav", dtype="float32")
    expected = GuidedEnhancer(model).enhance(noise(), 16000)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    array = str(wav(tmp_path, noise(4, 20000), 44100, "array.wav"))
    capsys.readouterr()
    options = ["--guide", "souden_mvdr", "--context_seconds", "0.1", "--json"]
    assert main([*command, array, *options]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["files"]
    assert soundfile.info(entry["outputs"][0]).frames == 20000
    for options, code, message in (
        ([], 1, "has 4 channels; expected two"),
        (["--downmix"], 1, "needs all channels"),
        (["--guide", "mvdr"], 2, "mvdr needs to know where microphones"),
        (["--guide", "nothing"], 2, "--guide: beamformer: 'nothing'"),
    ):
        assert main([*command, array, "--force", *options]) == code
        assert message in capsys.readouterr().err
    assert not list(out.rglob("*source*"))


@pytest.mark.parametrize(
    "name, recording, sample_rate, message",
    [
        ("binaural", noise(1), 8000, "expected two channels"),
        ("binaural", noise(2, 0), 8000, "is empty"),
        ("binaural", np.float32([[0, 0], [0, np.inf]]), 8000, "channel 1: sample 1 "),
        ("binaural", noise().astype(int), 8000, "floating-point"),
        ("binaural", noise(), None, "need their sampling rate"),
        ("gsenet", noise(2, 0), 16000, "is empty"),
        ("gsenet", np.float32([[0, 0], [np.nan, 0]]), 16000, "channel 1: sample 0 "),
    ],
)
def test_a_recording_that_cannot_be_is_refused(name, recording, sample_rate, message):
    with pytest.raises(UserError, match=message):
        output(FAMILIES[name](), recording, sample_rate)


def test_models_of_other_kinds_are_refused():
    separator = BinauralSeparator(small_binaural())
    with pytest.raises(UserError, match="BinauralSeparator"):
        Separator(separator.model)
    with pytest.raises(UserError, match="of kind binaural is for BinauralSeparator"):
        GuidedEnhancer(separator.model)
    with pytest.raises(UserError, match="cannot enhance; it can separate"):
        separator.n_signals("enhance")
    with pytest.raises(UserError, match="overlap_seconds"):
        BinauralSeparator(separator.model, 1.0, 0.6)
