"""Start from SpeechBrain's separation models: the same sources, and a report."""

from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from bomb import Bomb
from huggingface_hub.errors import LocalEntryNotFoundError
from small_models import small_model
from speechbrain.lobes.models import dual_path as theirs

import train
from unified_se_ss.errors import UserError
from unified_se_ss.inference.speechbrain_format import write_speechbrain
from unified_se_ss.training.pretrained import load_pretrained_ss


def speechbrain_model(sort, n_sources=2, n_features=12):
    """Encoder, masknet, decoder, as a SpeechBrain recipe makes them."""
    if sort == "dprnn":
        models = [theirs.SBRNNBlock(n_features, 10, 1, bidirectional=True) for _ in "ab"]
    else:
        models = [
            theirs.SBTransformerBlock(
                2, n_features, 3, 20, use_positional_encoding=True, norm_before=True
            )
            for _ in "ab"
        ]
    masknet = theirs.Dual_Path_Model(
        32,
        n_features,
        *models,
        num_layers=2,
        norm="ln",
        K=10,
        num_spks=n_sources,
        linear_layer_after_inter_intra=sort == "dprnn",
    )
    encoder = theirs.Encoder(kernel_size=16, out_channels=32)
    decoder = theirs.Decoder(32, 1, kernel_size=16, stride=8, bias=False)
    modules = {"encoder": encoder, "masknet": masknet, "decoder": decoder}
    with torch.no_grad():
        for module in modules.values():
            for parameter in module.eval().parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return modules


def save(modules, folder):
    folder.mkdir(exist_ok=True)
    for name, module in modules.items():
        torch.save(module.state_dict(), folder / f"{name}.ckpt")
    return folder


@pytest.mark.parametrize("sort", ["dprnn", "sepformer"])
def test_all_of_it_gives_speechbrains_sources(tmp_path, sort):
    modules = speechbrain_model(sort)
    network = small_model(sort, use_se=False).network
    report = load_pretrained_ss(network, save(modules, tmp_path / "sb"))
    assert not (report.misshapen or report.left or report.missing)
    assert report.parameters == sum(p.numel() for p in network.parameters())
    mixture = torch.randn(2, 488)
    with torch.no_grad():
        w = modules["encoder"](mixture)
        expected = torch.stack(
            [modules["decoder"](m * w) for m in modules["masknet"](w)], 1
        )
        found = network(mixture).sources
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_reported_and_left(tmp_path):
    """Three speakers into two, an SE module beside it, a stranger's tensor."""
    modules = speechbrain_model("dprnn", n_sources=3)
    modules["masknet"].stranger = torch.nn.Linear(1, 1)
    folder = save(modules, tmp_path / "sb")
    (folder / "decoder.ckpt").unlink()
    model = small_model()
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    report = load_pretrained_ss(model.network, folder)
    assert report.misshapen == [
        "separator.split.weight [36, 12] instead of [24, 12]",
        "separator.split.bias [36] instead of [24]",
    ]
    assert report.left == ["separator: stranger.weight", "separator: stranger.bias"]
    assert report.missing == [
        "separator.split.weight",
        "separator.split.bias",
        "decoder.convolution.weight",
    ]
    after = model.network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(report.loaded)
    assert not any(name.startswith("enhancer") for name in changed)
    printed = str(report)
    for words in ("encoder 1, separator", "decoder 0", "another shape", "stranger.bias"):
        assert words in printed


def test_what_this_project_exported_for_speechbrain(tmp_path):
    """The SS module of a unified model; its SE module, in the encoder's file, is left."""
    source = small_model("sepformer", n_sources=3)
    write_speechbrain(source, tmp_path)
    network = small_model("sepformer", n_sources=3, use_se=False).network
    report = load_pretrained_ss(network, tmp_path)
    assert not report.missing and not report.misshapen
    assert report.left and all("enhancer" in name for name in report.left)
    expected = source.network.state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_nothing_that_fits(tmp_path):
    """Other sizes: only the activation, one number, has the same shape."""
    folder = save(speechbrain_model("sepformer", n_features=24), tmp_path / "sb")
    for name in ("encoder.ckpt", "decoder.ckpt"):
        (folder / name).unlink()
    network = small_model("dprnn").network
    state = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(UserError, match="next to nothing of .* fits") as caught:
        load_pretrained_ss(network, folder)
    assert "separator.bottleneck.weight [24, 32] instead of [12, 32]" in str(caught.value)
    assert all(torch.equal(state[n], v) for n, v in network.state_dict().items())


def test_a_pickle_is_not_run_and_a_yaml_not_read(tmp_path):
    marker = tmp_path / "executed"
    folder = save(speechbrain_model("dprnn"), tmp_path / "sb")
    (folder / "hyperparams.yaml").write_text(f"x: !apply:os.mkdir [{marker}]")
    load_pretrained_ss(small_model().network, folder)
    torch.save({"a": Bomb(marker)}, folder / "masknet.ckpt")
    with pytest.raises(UserError, match="nothing in it was run"):
        load_pretrained_ss(small_model().network, folder)
    torch.save([1, 2], folder / "masknet.ckpt")
    with pytest.raises(UserError, match="expected weights by name"):
        load_pretrained_ss(small_model().network, folder)
    content = (folder / "encoder.ckpt").read_bytes()
    (folder / "masknet.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="not a whole checkpoint"):
        load_pretrained_ss(small_model().network, folder)
    assert not marker.exists()


def test_no_such_model(tmp_path):
    network = small_model().network
    with pytest.raises(UserError, match="holds none of encoder.ckpt"):
        load_pretrained_ss(network, tmp_path)
    for source in (tmp_path / "absent", "absent", "a/b/c", "../up"):
        with pytest.raises(UserError, match="is no folder"):
            load_pretrained_ss(network, source)


def test_from_the_hub(tmp_path, monkeypatch):
    """The hub's client is asked for the three files; what it says is passed on."""
    folder = save(speechbrain_model("dprnn"), tmp_path / "sb")
    (folder / "decoder.ckpt").unlink()
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    report = load_pretrained_ss(small_model().network, "someone/model")
    assert asked == [("someone/model", ["encoder.ckpt", "masknet.ckpt", "decoder.ckpt"])]
    assert report.missing == ["decoder.convolution.weight"]
    folder = tmp_path
    with pytest.raises(UserError, match="someone/model holds none of encoder.ckpt"):
        load_pretrained_ss(small_model().network, "someone/model")

    def offline(name, allow_patterns):
        raise LocalEntryNotFoundError("no connection\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"someone/model is no folder.*\(no connection\)"):
        load_pretrained_ss(small_model().network, "someone/model")


def test_a_run_that_goes_on_does_not_look_for_it():
    checkpointer = SimpleNamespace(list_checkpoints=lambda: checkpoints)
    brain = SimpleNamespace(
        hparams=SimpleNamespace(pretrained_ss="gone"),
        checkpointer=checkpointer,
        modules=SimpleNamespace(network=small_model().network),
    )
    checkpoints = ["one"]
    train.UnifiedBrain.before_training(brain)
    checkpoints = []
    with pytest.raises(UserError, match="gone is no folder"):
        train.UnifiedBrain.before_training(brain)
