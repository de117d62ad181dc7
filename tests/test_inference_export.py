"""Export: a run becomes a folder that gives the same output, here and elsewhere."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from hypothesis import given, settings
from hypothesis import strategies as st
from librimix import make_tree
from small_models import configuration, small_model
from speechbrain.inference.separation import SepformerSeparation
from test_pretrained import save, speechbrain_model
from test_train import command, run

from unified_se_ss.__main__ import main
from unified_se_ss.errors import UserError
from unified_se_ss.inference import export as exporting
from unified_se_ss.inference import load_model, speechbrain_format
from unified_se_ss.inference.export import (
    NEEDED_BY_ONNX,
    OnnxLSTM,
    export,
    write_native,
    write_onnx,
)
from unified_se_ss.inference.speechbrain_format import (
    longest_input,
    write_speechbrain,
)
from unified_se_ss.plain_yaml import plain_yaml
from unified_se_ss.training.pretrained import load_pretrained_ss

SIZES = {"n_basis": 32, "n_features": 12, "hidden": 10, "ss_blocks": 2, "save_waves": 0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a tiny run that began with a pretrained SS module and learnt nothing."""
    folder = tmp_path_factory.mktemp("trained")
    keys = {**SIZES, "pretrained_ss": save(speechbrain_model("dprnn"), folder / "sb")}
    name, out = "hparams/libri2mix_noisy_dprnn.yaml", folder / "run"
    tree = make_tree(folder)
    printed, _ = run(command(name, tree, out, number_of_epochs=1, lr=0, **keys))
    assert "Pretrained SS module from" in printed
    return out


@pytest.fixture
def native(tmp_path):
    """A small exported model."""
    folder = tmp_path / "native"
    folder.mkdir()
    write_native(small_model(), folder)
    return folder


def content(folder):
    """What a folder and its parent hold, hidden files too."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return files, sorted(path.name for path in folder.parent.iterdir())


# ------------------------------------------------------------------ from a run and back


def test_a_run_starts_from_a_pretrained_module(trained):
    (checkpoint,) = trained.glob("save/CKPT+*/network.ckpt")
    state = torch.load(checkpoint, weights_only=True)
    expected = small_model(use_se=False).network
    load_pretrained_ss(expected, trained.parent / "sb")
    for name, value in expected.state_dict().items():
        assert torch.equal(state[name], value), name


def test_a_run_its_export_and_the_trained_network_are_the_same(trained, tmp_path, capsys):
    with open(trained / "hyperparams.yaml") as file:
        network = load_hyperpyyaml(file)["modules"]["network"]
    (checkpoint,) = trained.glob("save/CKPT+*/network.ckpt")
    network.load_state_dict(torch.load(checkpoint, weights_only=True))
    mixture, lengths = torch.randn(2, 3001), torch.tensor([3001, 1700])
    with torch.no_grad():
        expected = network.eval()(mixture, lengths)

    folder = tmp_path / "model"
    assert main(["export", str(trained), "-o", str(folder)]) == 0
    assert str(folder / "model.safetensors") in capsys.readouterr().out
    for place in (trained, folder):
        model = load_model(place, "cpu")
        for name, weights in network.state_dict().items():
            assert torch.equal(model.network.state_dict()[name], weights), name
        # MKL rounds by where in memory the weights lie, too.
        given = model.separate(mixture, lengths), model.enhance(mixture, lengths)
        wanted = expected.sources, expected.enhanced
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-6)
        assert (model.sample_rate, model.n_sources, model.minimum_samples) == (8000, 2, 16)

    again = export(folder, tmp_path / "again")  # an export of an export
    assert content(again)[0]["model.safetensors"] == content(folder)[0]["model.safetensors"]
    assert content(again)[0]["config.json"] == content(folder)[0]["config.json"]
    found, expected = json.loads((folder / "config.json").read_text()), configuration()
    assert set(found) == set(expected)
    separators = [c["network"]["arguments"]["separator"] for c in (found, expected)]
    intra, wanted = (separator["arguments"]["intra"] for separator in separators)
    assert intra == wanted


def test_the_card_says_what_the_model_is(trained, tmp_path):
    card = (export(trained, tmp_path / "model") / "README.md").read_text()
    summary = (trained / "summary.md").read_text()
    assert summary.strip() in card and "95 % interval" in card
    command_line = (trained / "env.log").read_text().splitlines()[0]
    assert command_line.removeprefix("command: ") in card
    parameters = sum(p.numel() for p in load_model(trained, "cpu").network.parameters())
    for words in (
        "# dprnn-libri2mix-noisy",
        f"| parameters | {parameters:,} |",
        "- data: Libri2Mix",
        "- rule: project",
        "## Licence",
        'load_model("model")',
        "8000 Hz",
    ):
        assert words in card, words
    card = (export(tmp_path / "model", tmp_path / "again") / "README.md").read_text()
    assert "holds no evaluation" in card and "not a run's" in card


# ------------------------------------------------------------------ whole or not at all


def test_what_is_in_the_way_is_never_lost(native, tmp_path, capsys):
    target = tmp_path / "target"
    arguments = ["export", str(native), "-o", str(target)]
    assert main(arguments) == 0
    before = content(target)
    assert main(arguments) == 2
    assert "--force" in capsys.readouterr().err
    assert content(target) == before
    (target / "config.json").write_text("{}")
    assert main([*arguments, "--force"]) == 0
    assert content(target) == before

    (target / "thesis.txt").write_text("my own")
    assert main([*arguments, "--force"]) == 2
    assert "thesis.txt" in capsys.readouterr().err
    assert (target / "thesis.txt").read_text() == "my own"

    mine = tmp_path / "mine"
    mine.mkdir()
    assert export(native, mine) == mine  # an empty folder is in nobody's way
    for path in mine.iterdir():
        path.unlink()
    (mine / "README.md").write_text("my own")
    with pytest.raises(UserError, match="no export wrote"):
        export(native, mine, force=True)
    assert (mine / "README.md").read_text() == "my own"


def test_targets_that_cannot_be(native, trained, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(native)
    for target, word in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "link", "a link"),
        (native, "the model itself"),
        (trained, "no export wrote"),
        ("/", "no folder's name"),
    ):
        with pytest.raises(UserError, match=word):
            export(native, target, force=True)
    with pytest.raises(OSError, match="File exists|Not a directory"):
        export(native, tmp_path / "file" / "below")
    with pytest.raises(UserError, match="is 'gif'; expected one of: native"):
        export(native, tmp_path / "new", "gif")


@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_leaves_nothing_behind(native, tmp_path, monkeypatch, exists):
    target = tmp_path / "target"
    if exists:
        export(native, target)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))

    def fail(model, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(exporting.FORMATS, "native", fail)
    with pytest.raises(OSError, match="No space left"):
        export(native, target, force=True)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
    load_model(target if exists else native, "cpu")


# ------------------------------------------------------------------ SpeechBrain

SORTS = [
    ("dprnn", 2, True),
    ("dprnn", 3, False),
    ("sepformer", 2, False),
    ("sepformer", 3, True),
]


def in_speechbrain(folder, tmp_path):
    """What SpeechBrain makes of the folder."""
    return SepformerSeparation.from_hparams(
        source=str(folder), savedir=str(tmp_path / "cache"), run_opts={"device": "cpu"}
    )


@pytest.mark.parametrize("sort, n_sources, use_se", SORTS)
def test_speechbrain_gives_the_same_sources(tmp_path, sort, n_sources, use_se):
    model = small_model(sort, n_sources, use_se)
    folder = tmp_path / "model"
    folder.mkdir()
    write_speechbrain(model, folder)
    theirs = in_speechbrain(folder, tmp_path)

    # Every remainder of window, hop and chunk, batches too.
    @given(samples=st.integers(16, 1500), batch=st.integers(1, 3), seed=st.integers(0, 99))
    @settings(max_examples=8, deadline=None, database=None)
    def compare(samples, batch, seed):
        generator = torch.Generator().manual_seed(seed)
        mixture = torch.randn(batch, samples, generator=generator)
        sources, enhanced = model.both(mixture)
        found = theirs.separate_batch(mixture)
        scale = max(1.0, sources.abs().max().item())
        assert found.shape == (batch, samples, n_sources)
        assert (found.transpose(1, 2) - sources).abs().max() <= 1e-5 * scale
        if use_se:
            heard = theirs.mods.decoder(theirs.mods.encoder(mixture)).view(batch, -1)
            difference = heard - enhanced[:, : heard.shape[1]]
            assert difference.abs().max() <= 1e-5 * max(1.0, enhanced.abs().max().item())

    compare()


def test_the_sources_that_are_compared_are_not_silent():
    """Otherwise the above would say nothing."""
    for sort, n_sources, use_se in SORTS:
        model = small_model(sort, n_sources, use_se)
        sources = model.separate(torch.randn(1, 800))
        assert sources.abs().amax(-1).min() > 0.05
        spread = sources - sources.mean(1, keepdim=True)
        assert spread.abs().max() > 0.05  # and not all the same


def test_the_yaml_names_speechbrain_and_torch_alone(tmp_path):
    write_speechbrain(small_model("sepformer"), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "decoder.ckpt",
        "encoder.ckpt",
        "hyperparams.yaml",
        "masknet.ckpt",
    ]
    text = (tmp_path / "hyperparams.yaml").read_text()
    assert plain_yaml(text, "hyperparams.yaml")["num_spks"] == 2
    named = [word.split(":")[1] for word in text.split() if word.startswith(("!n", "!a"))]
    assert len(named) > 10
    assert all(name.startswith(("speechbrain.", "torch.")) for name in named)


def test_speechbrain_needs_nothing_of_this_project(trained, tmp_path):
    """Another interpreter in another folder, with the network cut off."""
    folder = export(trained, tmp_path / "model", "speechbrain")
    mixture = torch.randn(1, 2345)
    torch.save(mixture, tmp_path / "mixture.pt")
    code = (
        "import sys, socket, torch\n"
        "def cut(*args, **kwargs): raise OSError('no network')\n"
        "socket.socket.connect = socket.getaddrinfo = cut\n"
        "from speechbrain.inference.separation import SepformerSeparation as S\n"
        "model = S.from_hparams(source='model', savedir='cache')\n"
        "torch.save(model.separate_batch(torch.load('mixture.pt')), 'sources.pt')\n"
        "assert 'unified_se_ss' not in sys.modules\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**environment, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "did not have parameters" not in done.stderr  # every weight was found
    found = torch.load(tmp_path / "sources.pt").transpose(1, 2)
    expected = load_model(trained, "cpu").separate(mixture)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    card = (folder / "README.md").read_text()
    assert 'SepformerSeparation.from_hparams(source="model"' in card
    with pytest.raises(UserError, match="in SpeechBrain's form"):
        load_model(folder, "cpu")


def test_what_speechbrain_cannot_express_is_refused(tmp_path):
    for model, word in (
        (small_model(kernel_size=16, stride=4), "hop of half its window"),
        (small_model(kernel_size=15, stride=8), "hop of half its window"),
    ):
        with pytest.raises(UserError, match=word):
            write_speechbrain(model, tmp_path)
    model = small_model()
    model.network.separator = torch.nn.Identity()
    with pytest.raises(UserError, match="the separator is a Identity"):
        write_speechbrain(model, tmp_path)
    assert not any(tmp_path.iterdir())


def test_other_sources_are_not_handed_out(native, tmp_path, monkeypatch):
    """A wrong translation of the weights is noticed before the folder is there."""
    right = speechbrain_format.speechbrain_states

    def wrong(network):
        states = right(network)
        states["decoder"] = {n: 1.001 * v for n, v in states["decoder"].items()}
        return states

    monkeypatch.setattr(speechbrain_format, "speechbrain_states", wrong)
    with pytest.raises(UserError, match="SpeechBrain computes differs"):
        export(native, tmp_path / "model", "speechbrain")
    assert not (tmp_path / "model").exists()


# ------------------------------------------------------------------ ONNX


@pytest.mark.parametrize(
    "sort, n_sources, use_se",
    [
        ("dprnn", 2, True),
        pytest.param("dprnn", 3, False, marks=pytest.mark.slow),
        pytest.param("sepformer", 2, False, marks=pytest.mark.slow),
        pytest.param("sepformer", 3, True, marks=pytest.mark.slow),
    ],
)
def test_onnx_gives_the_same_at_any_length(tmp_path, sort, n_sources, use_se):
    pytest.importorskip("torch", "2.11", "what torch 2.8 writes is refused: of wrong shape")
    onnxruntime = pytest.importorskip("onnxruntime")
    for name in NEEDED_BY_ONNX:
        pytest.importorskip(name)
    model = small_model(sort, n_sources, use_se)
    write_onnx(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    names = [output.name for output in session.get_outputs()]
    assert names == ["sources", "enhanced"][: 1 + use_se]
    assert session.get_modelmeta().custom_metadata_map["sample_rate"] == "8000"
    for samples in (16, 17, 31, 96, 97, 500, 7777, 40_000):
        mixture = torch.randn(1, samples)
        expected = [signal for signal in model.both(mixture) if signal is not None]
        found = session.run(None, {"mixture": mixture.numpy()})
        for ours, theirs in zip(expected, found, strict=True):
            error = (torch.from_numpy(theirs) - ours).abs().max()
            assert error <= 2e-5 * ours.abs().max()
    longest = longest_input(model.network)
    assert (longest is None) == (sort == "dprnn")
    if longest:
        session.run(None, {"mixture": torch.randn(1, longest).numpy()})
        with pytest.raises(Exception, match="2500"):
            session.run(None, {"mixture": torch.randn(1, longest + 80).numpy()})


def test_onnx_with_several_layers_and_one_direction():
    """Reordered gates against onnx's own reference of its LSTM."""
    onnx = pytest.importorskip("onnx", "1.23", "its reference knew one direction only")
    reference = pytest.importorskip("onnx.reference")
    for bidirectional in (False, True):
        rnn = torch.nn.LSTM(5, 3, 2, batch_first=True, bidirectional=bidirectional)
        ours = OnnxLSTM(rnn)
        directions = 1 + bidirectional
        x = torch.randn(2, 7, 5)
        y = x.transpose(0, 1)
        for layer in range(2):
            node = onnx.helper.make_node(
                "LSTM",
                ["x", "w", "r", "b"],
                ["y"],
                hidden_size=3,
                direction="bidirectional" if bidirectional else "forward",
            )
            infos = [
                onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None)
                for n in "xwrby"
            ]
            graph = onnx.helper.make_graph([node], "g", infos[:4], infos[4:])
            model = onnx.helper.make_model(
                graph, opset_imports=[onnx.helper.make_opsetid("", 14)]
            )
            feeds = {
                "x": y.numpy(),
                "w": getattr(ours, f"input_{layer}").numpy(),
                "r": getattr(ours, f"recurrent_{layer}").numpy(),
                "b": getattr(ours, f"bias_{layer}").numpy(),
            }
            (out,) = reference.ReferenceEvaluator(model).run(None, feeds)
            y = torch.from_numpy(out).transpose(1, 2).flatten(2)
        expected = rnn(x)[0].transpose(0, 1)
        assert y.shape[-1] == 3 * directions
        torch.testing.assert_close(y, expected.detach(), rtol=1e-4, atol=1e-5)


def test_onnx_that_is_not_installed_or_cannot_be(native, tmp_path, monkeypatch):
    there = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(
            importlib.util, "find_spec", lambda n: None if "onnx" in n else there(n)
        )
        with pytest.raises(
            UserError, match=r"needs onnx, onnxruntime, onnxscript.*\[onnx\]"
        ):
            export(native, tmp_path / "model", "onnx")
    assert not (tmp_path / "model").exists()
    with pytest.raises(UserError, match="cannot be exported"):
        OnnxLSTM(torch.nn.LSTM(3, 4, batch_first=True, proj_size=2))


def test_what_is_shared_can_be_read_by_others(tmp_path):
    write_native(small_model(), tmp_path)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert len(modes) == 1  # config.json's, which follows the umask
