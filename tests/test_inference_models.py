"""Models: loaded as data, refused with one clear word, never executed."""

import contextlib
import copy
import json
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch
from bomb import Bomb
from safetensors.torch import load_file, save_file
from small_models import configuration, masks, small_model

from unified_se_ss.errors import UserError
from unified_se_ss.inference import Model, load_model
from unified_se_ss.inference.export import export, write_native
from unified_se_ss.inference.folders import best_checkpoints, read_folder, read_safetensors
from unified_se_ss.inference.models import (
    DEEPEST,
    KINDS,
    ModelFamily,
    build_network,
    describe_network,
)
from unified_se_ss.plain_yaml import plain_yaml


@pytest.fixture
def model():
    return small_model()


@pytest.fixture
def folder(tmp_path, model):
    """An exported model."""
    path = tmp_path / "model"
    path.mkdir()
    write_native(model, path)
    return path


# ------------------------------------------------------------------ what a model can do


@pytest.mark.parametrize("sort", ["dprnn", "sepformer"])
def test_gives_what_the_network_gives(sort):
    model = small_model(sort)
    mixture, lengths = torch.randn(3, 700), torch.tensor([700, 430, 16])
    for given in (None, lengths):
        with torch.no_grad():  # which decides on oneDNN's LSTM or torch's
            expected = model.network(mixture, given)
        assert torch.equal(model.separate(mixture, given), expected.sources)
        assert torch.equal(model.enhance(mixture, given), expected.enhanced)
        sources, enhanced = model.both(mixture, given)
        assert torch.equal(sources, expected.sources)
        assert torch.equal(enhanced, expected.enhanced)


def test_says_what_it_is(model):
    facts = (model.n_sources, model.channels, model.causal, model.minimum_samples)
    assert facts == (2, 1, False, 16)
    assert model.can_enhance and model.sample_rate == 8000
    assert not model.network.training
    assert not model.separate(torch.randn(1, 100)).requires_grad
    sources, enhanced = small_model(n_sources=3, use_se=False).both(torch.randn(1, 100))
    assert sources.shape == (1, 3, 100) and enhanced is None


def test_bf16_is_near_and_signals_stay_fp32(model):
    rounded = Model(copy.deepcopy(model.network), "unified", 8000, "cpu", "bf16")
    mixture = torch.randn(2, 500).double()
    found, expected = rounded.separate(mixture), model.separate(mixture)
    assert found.dtype == expected.dtype == torch.float32
    error = (found - expected).norm() / expected.norm()
    assert 1e-5 < error < 0.1  # it was rounded, and no more than that


@pytest.mark.parametrize(
    "mixture, lengths",
    [
        (torch.zeros(100), None),
        (torch.zeros(1, 2, 100), None),
        (torch.zeros(1, 15), None),
        (torch.zeros(0, 100), None),
        (torch.zeros(2, 100), torch.tensor([100, 15])),
    ],
)
def test_refuses_what_the_network_cannot_take(model, mixture, lengths):
    with pytest.raises(UserError, match="the mixture has"):
        model.separate(mixture, lengths)


def test_device_and_precision_are_checked_first(tmp_path):
    for keys, word in (
        ({"device": "abacus"}, "device: abacus"),
        ({"device": "cpu", "precision": "fp8"}, "precision: is 'fp8'"),
        ({"device": "cpu", "precision": "fp16"}, "fp16 needs a GPU"),
    ):
        with pytest.raises(UserError, match=word):
            load_model(tmp_path / "absent", **keys)


# ------------------------------------------------------------------ loading


@pytest.mark.parametrize("sort", ["dprnn", "sepformer"])
def test_loads_the_same_model(tmp_path, sort):
    model = small_model(sort)
    write_native(model, tmp_path)
    state = torch.get_rng_state()
    again = load_model(tmp_path, "cpu")
    assert torch.equal(torch.get_rng_state(), state)  # first weights left no trace
    mixture = torch.randn(2, 3000)
    ours, theirs = again.both(mixture), model.both(mixture)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert again.configuration == model.configuration == configuration(sort)


def test_not_a_folder_and_not_a_model(tmp_path):
    (tmp_path / "file").touch()
    for path, word in (
        (tmp_path / "absent", "no such folder"),
        (tmp_path / "file", "no such folder"),
        (tmp_path, "holds no model"),
    ):
        with pytest.raises(UserError, match=word):
            load_model(path, "cpu")


class Follower(torch.nn.Module):
    """A causal enhancer for two microphones: y(t) = gain * (left(t) + right(t - 1))."""

    def __init__(self, taps: int):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.5))
        self.taps = taps

    def forward(self, mixture):
        delayed = torch.nn.functional.pad(mixture[:, 1, :-1], (1, 0))
        return self.gain * (mixture[:, 0] + delayed)


def test_a_model_of_another_recipe_is_one_entry(tmp_path, monkeypatch):
    """And everything else works: loading, checks, export, card."""
    facts = {"n_sources": 0, "channels": 2, "causal": True, "can_enhance": True}
    follower = ModelFamily(
        network=Follower,
        best="si_snr_i",
        properties=lambda network: {**facts, "minimum_samples": network.taps},
        forward=lambda network, mixture, lengths: (None, network(mixture)),
    )
    monkeypatch.setitem(KINDS, "follower", follower)
    described = {
        "format": 1,
        "kind": "follower",
        "sample_rate": 16000,
        "network": {"class": "Follower", "arguments": {"taps": 2}},
    }
    model = Model(Follower(2), "follower", 16000, "cpu", configuration=described)
    (tmp_path / "a").mkdir()
    write_native(model, tmp_path / "a")
    again = load_model(export(tmp_path / "a", tmp_path / "b"), "cpu")
    mixture = torch.randn(3, 2, 50)
    assert torch.equal(again.enhance(mixture), model.network(mixture))
    assert again.both(mixture)[0] is None and again.causal
    card = (tmp_path / "b" / "README.md").read_text()
    assert "removes noise" in card and "model.enhance(mixture)  # [B, 2, T]" in card
    with pytest.raises(UserError, match="cannot separate; it can enhance"):
        again.separate(mixture)
    with pytest.raises(UserError, match=r"expected \[B, 2, T\]"):
        again.enhance(torch.randn(3, 50))
    with pytest.raises(UserError, match="a model that hears several channels"):
        export(tmp_path / "a", tmp_path / "c", "speechbrain")


# ------------------------------------------------------------------ hostile config.json


def change(folder, where, value=None):
    """Give one value of config.json, or take it away; keys joined by dots.

    The keys of ``arguments`` are reached through their network's name.
    """
    path = folder / "config.json"
    found = json.loads(path.read_text())
    *way, last = where.split(".")
    place = found
    for key in way:
        place = place[key] if key in place else place["arguments"][key]
    if value is ABSENT:
        del place[last]
    elif last in place or "arguments" not in place or last in ("partial", "init"):
        place[last] = value
    else:
        place["arguments"][last] = value
    path.write_text(json.dumps(found))


def nested(levels):
    """Networks within networks within networks."""
    description = {"class": "Encoder", "arguments": {}}
    for _ in range(levels):
        description = {"class": "UnifiedNetwork", "arguments": {"encoder": description}}
    return description


ABSENT = object()
ENCODER = {"class": "Encoder", "arguments": {"n_basis": 32, "kernel_size": 16, "stride": 8}}
NO_ENCODER = (None, 1, [1])  # for a network
HOSTILE = [
    ("network.encoder.class", "Evil", "class"),
    ("network.encoder.class", "os.system", "no class 'os.system'"),
    ("network.encoder.class", "__import__", "no class '__import__'"),
    ("network.encoder.class", "UnifiedOutput", "no class 'UnifiedOutput'"),
    ("network.encoder.class", ["Encoder"], "expected a class"),
    ("network.encoder.arguments", ABSENT, "expected a class"),
    ("network.encoder.arguments", [1, 2], "expected a class, its arguments"),
    ("network.encoder.__class__", 1, "no such argument"),
    ("network.encoder.self", 1, "no such argument"),
    ("network.encoder.arguments.n_basis", ABSENT, "n_basis"),
    ("network.encoder.init", "x", "expected a class, its arguments"),
    ("network.encoder.n_basis", "32", "expected int"),
    ("network.encoder.n_basis", True, "expected int"),
    ("network.encoder.n_basis", 32.5, "expected int"),
    ("network.encoder.n_basis", 10**12, "expected 1 to"),
    ("network.encoder.n_basis", 10**4000, "expected 1 to"),
    *[("network.encoder", value, "expected Module") for value in NO_ENCODER],
    ("network.separator.intra", "os.system", "what makes a network"),
    ("network.separator.intra.partial", ABSENT, "what makes a network"),
    ("network.encoder.partial", True, "expected Module"),
    ("network.encoder.partial", 1, "expected a class, its arguments"),
    ("network.separator.blocks", 65536, "expected 1 to 64"),
    ("network.encoder.stride", 0, "expected 1 to"),
    ("network.encoder.kernel_size", -16, "expected 1 to"),
    ("network.separator.chunk_length", 11, "expected an even number"),
    ("network.encoder.initial", "evil", "initial is 'evil'"),
    ("network.encoder.initial", "x" * 9999, "expected a name"),
    ("network", nested(DEEPEST + 1), f"more than {DEEPEST} networks"),
    ("network", ENCODER, "a model of kind unified"),
    ("network", "os.system", "kind unified"),
    ("network.separator", masks("dprnn", 1, 1), "not the weights"),
    ("kind", "os", "kind is 'os'"),
    ("kind", ["unified"], "kind is"),
    ("format", 2, "reads format 1"),
    ("format", True, "reads format 1"),
    ("sample_rate", 0, "sample_rate is 0"),
    ("sample_rate", "8000", "sample_rate is '8000'"),
    ("code", "import os", "'code'"),
    ("kind", ABSENT, "kind is None"),
]


@pytest.mark.parametrize(
    "where, value, word", HOSTILE, ids=[f"{where}, {word}" for where, _, word in HOSTILE]
)
def test_hostile_configuration_is_refused(folder, where, value, word):
    change(folder, where, value)
    with pytest.raises(UserError, match=word) as caught:
        load_model(folder, "cpu")
    assert "config.json" in str(caught.value) or "safetensors" in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "text, word",
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[1, 2]", "expected a JSON object"),
        ('"format"', "expected a JSON object"),
        ('{"format": NaN}', "NaN is not a number"),
        ('{"format": -Infinity}', "not a number"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a":' * 50_000, "not valid JSON"),
        ('{"format": ' + "9" * 5000 + "}", "not valid JSON"),
        ("!!python/object/apply:os.system [id]", "not valid JSON"),
        ("\x80\x04\x95", "not valid JSON"),
        (" " * (2 << 20), "larger than"),
    ],
)
def test_not_json(folder, text, word):
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=word) as caught:
        load_model(folder, "cpu")
    assert len(str(caught.value)) < 1000


def test_a_size_that_the_weights_do_not_have_costs_no_memory(folder):
    """65536 x 65536 numbers are 16 GiB: compared by shape, never made."""
    big = {"n_basis": 65536, "kernel_size": 65536, "stride": 1}
    change(folder, "network.encoder.arguments", big)
    with pytest.raises(UserError, match="another shape.*65536"):
        load_model(folder, "cpu")


def test_parts_that_do_not_fit_are_found_before_use(tmp_path):
    """A decoder for fewer basis functions, with weights to match."""
    wrong = configuration()
    wrong["network"]["arguments"]["decoder"]["arguments"]["n_basis"] = 16
    network = build_network(wrong["network"])
    model = Model(network, "unified", 8000, "cpu", configuration=wrong)
    write_native(model, tmp_path)
    with pytest.raises(UserError, match="do not fit together"):
        load_model(tmp_path, "cpu")


@pytest.mark.parametrize("seed", range(60))
def test_a_configuration_with_random_damage_is_loaded_or_refused(folder, seed):
    """Whatever is put where: a model or a UserError, nothing else."""
    rng = random.Random(seed)
    values = [None, True, -1, 0, 7, 1e308, "x", [], {}, {"class": "Decoder"}, "Encoder"]

    def damage(found):
        while isinstance(found, dict) and found:
            key = rng.choice(sorted(found))
            if rng.random() < 0.3 or not isinstance(found[key], dict):
                found[key] = rng.choice(values)
                return
            found = found[key]

    path = folder / "config.json"
    found = json.loads(path.read_text())
    damage(found)
    path.write_text(json.dumps(found))
    with contextlib.suppress(UserError):
        assert isinstance(load_model(folder, "cpu"), Model)


# ------------------------------------------------------------------ hostile weights


@pytest.mark.parametrize("written_by", ["pickle", "torch"])
def test_a_pickle_in_place_of_weights_is_not_run(folder, tmp_path, written_by):
    marker, path = tmp_path / "executed", folder / "model.safetensors"
    if written_by == "pickle":
        path.write_bytes(pickle.dumps({"a": Bomb(marker)}))
        pickle.loads(path.read_bytes())
    else:
        torch.save({"a": Bomb(marker)}, path)
        with path.open("rb") as file:  # torch 2.15 goes by a path's suffix
            torch.load(file, weights_only=False)
    assert marker.is_dir()  # the bomb does go off
    marker.rmdir()
    with pytest.raises(UserError, match="is a pickle.*refused"):
        load_model(folder, "cpu")
    assert not marker.exists()


@pytest.mark.parametrize("share", [0, 0.0001, 0.1, 0.5, 0.999, None])
def test_truncated_weights_and_a_yaml_in_their_place(folder, share):
    path = folder / "model.safetensors"
    content = b"!!python/object/apply:os.mkdir [executed]\n" * 20
    if share is not None:
        content = path.read_bytes()
        content = content[: int(share * len(content))]
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_model(folder, "cpu")


def test_foreign_weights_are_listed(folder, model):
    path = folder / "model.safetensors"
    state = load_file(path)
    names = list(model.network.state_dict())
    for name in names[:7]:
        del state[name]
    state["stranger"] = torch.zeros(3)
    state[names[8]] = torch.zeros(3, 5)
    state[names[9]] = state[names[9]].half()
    state[names[10]] = torch.full_like(state[names[10]], float("nan"))
    save_file(state, path)
    with pytest.raises(UserError) as caught:
        load_model(folder, "cpu")
    message = str(caught.value)
    assert "missing (7)" in message and "and 2 more" in message
    assert "unexpected (1): stranger" in message
    assert f"of another shape (1): {names[8]} [3, 5] instead of" in message
    assert f"of another type (1): {names[9]} torch.float16" in message
    assert f"not finite (1): {names[10]}" in message
    assert f"{names[5]}," not in message and f"{names[6]}\n" not in message  # shortened


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_links_out_of_the_folder_are_refused(folder, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(folder / name, elsewhere)
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match="link out of the folder"):
        load_model(folder, "cpu")


def test_links_within_the_folder_and_to_it_are_followed(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    (tmp_path / "link").symlink_to(folder)
    load_model(tmp_path / "link", "cpu")


def test_a_dangling_link_a_circle_and_a_folder(folder):
    path = folder / "model.safetensors"
    path.unlink()
    for make in (lambda: path.symlink_to("absent"), lambda: path.symlink_to(path.name)):
        make()
        with pytest.raises(UserError, match="no such file"):
            load_model(folder, "cpu")
        path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="is no file"):
        load_model(folder, "cpu")


# ------------------------------------------------------------------ a run's folder

RUN = """\
sample_rate: 8000
encoder: &encoder !new:unified_se_ss.networks.Encoder
  n_basis: 32
  kernel_size: 16
  stride: 8
modules:
  network: {network}
boom: !apply:os.mkdir [{marker}]
"""


def run_folder(tmp_path, network, state=None):
    """A run with one checkpoint."""
    marker = tmp_path / "executed"
    run = tmp_path / "run"
    checkpoint = run / "save" / "CKPT+1"
    checkpoint.mkdir(parents=True)
    text = RUN.format(network=network, marker=marker)
    (run / "hyperparams.yaml").write_text(text)
    (checkpoint / "CKPT.yaml").write_text("si_snr_i: 1.0\nunixtime: 1.0\n")
    torch.save({} if state is None else state, checkpoint / "network.ckpt")
    return run, marker


@pytest.mark.parametrize(
    "network, word",
    [
        ("!apply:os.mkdir [x]", "cannot be shared"),
        ("!new:torch.nn.Linear {in_features: 1, out_features: 1}", "cannot be shared"),
        ("!new:unified_se_ss.networks_evil.Encoder {n_basis: 1}", "cannot be shared"),
        ("!new:evil.unified_se_ss.networks.Encoder {n_basis: 1}", "cannot be shared"),
        ("!name:unified_se_ss.networks.unified.torch {a: 1}", "cannot be shared"),
        ("!new:unified_se_ss.networks.Encoder []", "cannot be shared"),
        ("!!python/object/apply:os.mkdir [x]", "not valid YAML"),
        ("*encoder", "expected one of: UnifiedNetwork"),
        ("7", "expected one of: UnifiedNetwork"),
    ],
)
def test_a_hostile_run_is_refused_and_not_executed(tmp_path, network, word):
    run, marker = run_folder(tmp_path, network)
    with pytest.raises(UserError, match=word):
        load_model(run, "cpu")
    assert not marker.exists() and not Path("x").exists()


def test_aliases_of_aliases_are_counted_before_they_are_followed(tmp_path):
    """Ten to the power of 40 encoders in a file of 4 KiB."""
    encoder = "!new:unified_se_ss.networks.Encoder"
    lines = [f"a0: &a0 {encoder} {{n_basis: 1}}"]
    for level in range(1, 41):
        ten = ", ".join(f"k{k}: *a{level - 1}" for k in range(10))
        lines.append(f"a{level}: &a{level} {encoder} {{{ten}}}")
    tagged = plain_yaml("\n".join(lines), "a.yaml")["a40"]
    with pytest.raises(UserError, match="more than 10000 values"):
        describe_network(tagged, "a.yaml")


def test_a_former_path_in_a_runs_file_is_read_as_todays(tmp_path, caplog):
    network = "!new:unified_se_ss.networks.UnifiedNetwork {encoder: *encoder}"
    run, _ = run_folder(tmp_path, network)
    with open(run / "hyperparams.yaml", "a") as file:
        file.write("arrays: !new:unified_se_ss.spatial.Guide {taps: 2}\n")
    hparams = read_folder(run).hparams
    assert hparams["arrays"] == (
        "!new:unified_se_ss.spatial.BeamformerFrontend",
        {"taps": 2},
    )
    assert "spatial.Guide is now spatial.BeamformerFrontend" in caplog.text


def test_a_hostile_checkpoint_is_not_executed(tmp_path):
    network = "!new:unified_se_ss.networks.UnifiedNetwork {encoder: *encoder}"
    bomb = {"a": Bomb(tmp_path / "executed")}
    run, marker = run_folder(tmp_path, network, bomb)
    with pytest.raises(UserError, match="nothing in it was run"):
        load_model(run, "cpu")
    assert not marker.exists()


def test_the_best_checkpoint_is_taken_and_the_later_of_equals(tmp_path):
    metas = {
        "CKPT+a": "si_snr_i: 1.5\nunixtime: 1.0",
        "CKPT+b": "si_snr_i: 2.5\nunixtime: 2.0",
        "CKPT+c": "si_snr_i: 2.5\nunixtime: 3.0",
        "CKPT+d": "si_snr_i: .nan\nunixtime: 4.0",
        "CKPT+e": "unixtime: 5.0",  # within an epoch
        "CKPT+f": "si_snr_i: high",
    }
    for name, text in metas.items():
        (tmp_path / "save" / name).mkdir(parents=True)
        (tmp_path / "save" / name / "CKPT.yaml").write_text(f"# yamllint disable\n{text}\n")
    assert best_checkpoints(tmp_path, "si_snr_i")[0].name == "CKPT+c"
    for name in ("CKPT+a", "CKPT+b", "CKPT+c"):
        shutil.rmtree(tmp_path / "save" / name)
    with pytest.raises(UserError, match="no checkpoint of a whole epoch"):
        best_checkpoints(tmp_path, "si_snr_i")


def test_descriptions_of_yaml_and_of_json_are_the_same():
    text = (
        "m: &m !name:unified_se_ss.networks.Recurrent {n_features: 12, hidden: 10}\n"
        "n: !new:unified_se_ss.networks.DualPath {intra: *m, inter: *m, n_basis: 32,\n"
        "  n_features: 12, n_sources: 2, blocks: 2, chunk_length: 10, linear_after: true}"
    )
    described = describe_network(plain_yaml(text, "a.yaml")["n"], "a.yaml")
    assert described == configuration()["network"]["arguments"]["separator"]


def test_no_length_of_the_header_is_taken_for_a_pickle(tmp_path):
    path, lengths = tmp_path / "model.safetensors", set()
    for width in range(8, 8 + 256, 8):
        state = {"x" * width: torch.arange(3.0)}
        save_file(state, path)
        lengths.add(path.read_bytes()[0])
        assert read_safetensors(path).keys() == state.keys()
    assert 0x80 in lengths
