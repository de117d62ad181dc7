"""GSENet on recordings: two channels or all microphones, any rate, any length."""

import json

import numpy as np
import pytest
import soundfile
import torch

from unified_se_ss.__main__ import main
from unified_se_ss.errors import UserError
from unified_se_ss.inference import GuidedEnhancer, Model, load_model
from unified_se_ss.inference.configuration import build_network
from unified_se_ss.networks import GSENet
from unified_se_ss.spatial import BeamformerFrontend

RATE = 16000
BLOCKS = [[4, 8, 2, 2, True], [8, 8, 1, 3, False]]
YAML = f"""\
experiment_name: tiny
sample_rate: {RATE}
blocks: {BLOCKS}
modules:
    network: !new:unified_se_ss.networks.GSENet
        blocks: {BLOCKS}
        bottleneck: 6
        head: mask_both
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with a tiny network."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    network = GSENet(BLOCKS, bottleneck=6, head="mask_both")
    (folder / "hyperparams.yaml").write_text(YAML)
    checkpoint = folder / "save" / "CKPT+1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "CKPT.yaml").write_text("si_snr_i: 1.0\nunixtime: 1.0\n")
    torch.save(network.state_dict(), checkpoint / "network.ckpt")
    return folder


def noise(channels=2, samples=20000):
    rng = np.random.default_rng(0)
    return 0.1 * rng.standard_normal((channels, samples)).astype(np.float32)


def test_a_run_and_its_export_give_the_network_itself(run, tmp_path):
    model = load_model(run, "cpu")
    assert (model.kind, model.channels, model.n_sources, model.causal) == (
        "gsenet",
        2,
        0,
        True,
    )
    signals = torch.from_numpy(noise())[None]
    with torch.no_grad():
        expected = model.network(signals)
    assert torch.equal(model.enhance(signals), expected)
    assert main(["export", str(run), "-o", str(tmp_path / "shared")]) == 0
    shared = load_model(tmp_path / "shared", "cpu").enhance(signals)
    torch.testing.assert_close(shared, expected, rtol=1e-4, atol=1e-6)
    assert "[B, 2, T] at 16000 Hz" in (tmp_path / "shared" / "README.md").read_text()
    with pytest.raises(UserError, match="cannot separate; it can enhance"):
        model.separate(signals)


def test_enhance_gives_what_the_network_gives_at_its_level(run):
    model = load_model(run, "cpu")
    enhancer, signals = GuidedEnhancer(model), noise()
    given = enhancer.enhance(signals, RATE)
    scale = 0.05 / np.sqrt(np.square(signals[0]).mean())
    expected = model.enhance(torch.from_numpy(scale * signals)[None])[0].numpy() / scale
    assert given.shape == (20000,)
    np.testing.assert_allclose(given, expected, atol=1e-5)
    np.testing.assert_allclose(enhancer.enhance(3 * signals, RATE), 3 * given, atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
@pytest.mark.parametrize("samples", [1, 999, 30011])
def test_other_rates_and_lengths(run, rate, samples):
    given = GuidedEnhancer.from_folder(run, "cpu").enhance(noise(2, samples), rate)
    assert given.shape == (samples,) and np.isfinite(given).all()


def test_silence_stays_silence(run):
    given = GuidedEnhancer.from_folder(run, "cpu").enhance(np.zeros((2, 500), "f4"), RATE)
    assert np.abs(given).max() < 1e-6


def test_a_beamformer_makes_the_guide(run):
    guide = BeamformerFrontend("multichannel_wiener", sample_rate=RATE, taps=2)
    enhancer = GuidedEnhancer.from_folder(run, "cpu", guide=guide)
    microphones = noise(3)
    pair = np.stack([microphones[0], guide(torch.from_numpy(microphones)).numpy()])
    expected = GuidedEnhancer.from_folder(run, "cpu").enhance(pair, RATE)
    np.testing.assert_allclose(enhancer.enhance(microphones, RATE), expected, atol=1e-6)


def test_a_stream_gives_the_same(run):
    enhancer = GuidedEnhancer.from_folder(run, "cpu")
    signals = torch.from_numpy(noise())[None]
    stream = enhancer.stream()
    parts = [stream(block) for block in signals.split(777, -1)]
    streamed = torch.cat([*parts, stream.flush()], -1)
    assert (streamed - enhancer.model.enhance(signals)).abs().max() < 1e-5


def test_the_command_line_takes_both_kinds_of_files(run, tmp_path, capsys):
    pair, array, out = tmp_path / "pair.wav", tmp_path / "array.wav", tmp_path / "out"
    soundfile.write(pair, noise().T, RATE, subtype="FLOAT")
    soundfile.write(array, noise(4).T, 44100, subtype="FLOAT")
    assert main(["enhance", str(run), str(pair), "-o", str(out)]) == 0
    given, _ = soundfile.read(out / "pair_enhanced.wav", dtype="float32")
    expected = GuidedEnhancer.from_folder(run).enhance(noise(), RATE)
    np.testing.assert_allclose(given, expected, atol=1e-6)
    capsys.readouterr()
    command = ["enhance", str(run), str(array), "-o", str(out), "--json"]
    assert main([*command, "--guide", "souden_mvdr", "--context_seconds", "0.1"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["files"]
    assert soundfile.info(entry["outputs"][0]).frames == 20000


def test_what_cannot_be_done_is_said(run, tmp_path, capsys):
    array = tmp_path / "array.wav"
    soundfile.write(array, noise(4).T, RATE)
    command = ["enhance", str(run), str(array), "-o", str(tmp_path / "out")]
    assert main(command) == 1
    assert "has 4 channels; expected two" in capsys.readouterr().err
    assert main([*command, "--guide", "mvdr"]) == 2
    assert "mvdr needs to know where microphones" in capsys.readouterr().err
    assert main([*command, "--guide", "nothing"]) == 2
    assert "--guide: beamformer: 'nothing'" in capsys.readouterr().err
    assert main([*command, "--downmix"]) == 1
    assert "needs all channels" in capsys.readouterr().err
    assert main(["separate", str(run), str(array), "-o", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    enhancer = GuidedEnhancer.from_folder(run)
    with pytest.raises(UserError, match="is empty"):
        enhancer.enhance(noise(2, 0), RATE)
    with pytest.raises(UserError, match="sample 5 "):
        bad = noise()
        bad[1, 5] = np.nan
        enhancer.enhance(bad, RATE)


@pytest.mark.parametrize(
    "blocks", [[[4, 8, 2, 2, True]] * 65, [[4, 8, 2, 2, "x"]], [[0, 8, 1, 1, True]], [5]]
)
def test_a_strangers_blocks_are_looked_at_first(blocks):
    description = {"class": "GSENet", "arguments": {"blocks": blocks}}
    with pytest.raises(UserError, match="config.json: network.blocks: is .* expected at"):
        build_network(description, "config.json")


def test_only_gsenet_is_guided():
    class Other:
        kind = "unified"

    with pytest.raises(UserError, match="of kind unified; expected gsenet"):
        GuidedEnhancer(Other())
    assert isinstance(Model(GSENet(BLOCKS, 4), "gsenet", RATE, "cpu"), Model)
