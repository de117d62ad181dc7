"""Every YAML of Gradient Remedy: its sizes, its keys, and two steps on a tree of its shape."""

import json
import re
import sys

import numpy as np
import pytest
import remedy
import torch
import transcribed_trees as trees
from remedy import RECIPE, run
from running import rows
from speechbrain.nnet.schedulers import NoamScheduler

from unified_se_ss import training

SHIPPED = ("rats_chA", "chime4", "voicebank", "librispeech_noise")
# Sizes that make a network of any of them small.
SMALL = {
    **{k: v for k, v in remedy.SMALL.items() if k != "total_steps"},
    "front.layers": 1,
    "front.dropout": 0,
    "transformer.num_decoder_layers": 1,
    "n_tokens": 24,
    "token_type": "char",
    "average_checkpoints": 1,
    "number_of_epochs": 1,
    "batch_size": 2,
    "grad_accumulation_factor": 1,
}
# The sizes that the published configuration has: source in rats_chA.yaml.
PUBLISHED_FRONT = 47_303_681


def tree_of(name, folder):
    """A small tree, and the keys that say where it is."""
    if name == "rats_chA":
        corpus, fisher = trees.make_rats(folder)
        keys = {"transcript_folder": fisher, "cut_folder": folder / "cut"}
        return {"data_folder": corpus, **keys}
    if name == "chime4":
        corpus = trees.make_chime4(folder / "CHiME4")
        return {"data_folder": corpus, "reference_folder": folder / "references"}
    if name == "voicebank":
        return {"data_folder": trees.make_voicebank(folder / "VoiceBank")}
    corpus, noise = trees.make_librispeech(folder)
    return {"data_folder": corpus, "noise_folder": noise}


def hparams_of(name, *more):
    """What a YAML describes, at its full size."""
    arguments = [str(RECIPE / "hparams" / f"{name}.yaml"), "--data_folder", "x"]
    if name == "librispeech_noise":
        arguments += ["--noise_folder", "x"]
    sys.path.insert(0, str(RECIPE))
    try:
        return training.load_hparams(training.parse_options([*arguments, *more], ""))
    finally:
        sys.path.remove(str(RECIPE))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def keys_of(name):
    """Top-level keys of a YAML in their order, by the heading that they stand under."""
    text = (RECIPE / "hparams" / f"{name}.yaml").read_text("utf-8")
    found, heading = {}, ""
    for part in text.split("\n\n"):
        if part.startswith("# ") and not part.startswith("# ##"):
            heading = re.split(r"[:,;.\n]", part[2:])[0]
        found.setdefault(heading, []).extend(re.findall(r"(?m)^(\w+):", part))
    return found


def test_every_yaml_is_in_the_table():
    shipped = {path.stem for path in (RECIPE / "hparams").glob("*.yaml")}
    assert shipped == {*SHIPPED, "demo"}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_same_keys_in_the_same_order(name):
    """But for the data, for what the demo makes itself, its schedule's length and budget."""
    ours, demo = keys_of(name), keys_of("demo")
    demo["Training"].remove("total_steps")
    demo["Training"].remove("budget_minutes")
    ours["Batches"].remove("grad_accumulation_factor")
    data = ours.pop("Data")
    assert list(ours.items()) == [(h, k) for h, k in demo.items() if h != "Data"]
    own = {"corpus", "n_train", "n_test", "snr_range"}
    assert set(demo["Data"]) - own <= set(data)


@pytest.mark.parametrize("name", SHIPPED)
def test_sizes(name):
    hparams = hparams_of(name)
    modules = hparams["modules"]
    assert count(modules["front"]) == PUBLISHED_FRONT
    millions = 13.7 if name == "voicebank" else 43.7 if name != "chime4" else 43.3
    assert count(modules["recogniser"]) / 1e6 == pytest.approx(millions, abs=0.05)
    features = hparams["features"]
    hop = features.compute_STFT.hop_length
    assert hop == hparams["recogniser"].hop  # stated twice, in samples and in ms
    assert features.compute_fbanks.f_max == hparams["sample_rate"] / 2


def test_what_is_published_of_rats():
    hparams = hparams_of("rats_chA")
    expected = {
        "sample_rate": 8000,
        "weight_se": 0.3,
        "weight_ctc": 0.3,
        "label_smoothing": 0.1,
        "number_of_epochs": 50,
        "lr": 0.002,
        "warmup_steps": 25000,
        "max_grad_norm": 5.0,
        "grad_accumulation_factor": 4,
        "batch_size": 8,  # of each of two GPUs
        "average_checkpoints": 10,
        "n_tokens": 1000,
        "token_type": "bpe",
        "max_duration": 30.0,
        "beam_size": 60,
        "search_ctc_weight": 0.3,
        "rule": "remedy",
        "granularity": "parameter",
    }
    assert {key: hparams[key] for key in expected} == expected
    transformer = hparams["transformer"]
    assert len(transformer.encoder.layers) == 12 and len(transformer.decoder.layers) == 6
    first = transformer.encoder.layers[0]
    assert first.mha_layer.num_heads == 4
    assert 2048 in {len(p) for p in first.ffn_module1.parameters()}
    assert first.convolution_module.conv.kernel_size == (15,)
    front = hparams["front"]
    assert (front.n_fft, front.hop, front.rnn.rnn.num_layers) == (512, 256, 3)
    # Every line with a number says where it is from.
    text = (RECIPE / "hparams" / "rats_chA.yaml").read_text("utf-8")
    above = text[: text.index("# Front")]
    bare = [
        line
        for line in above.splitlines()
        if re.match(r"\w+: [\d\[]", line) and "source:" not in line
    ]
    assert [line.split(":")[0] for line in bare] == [
        "aux_ratio",  # neither is used: aux_scale is null
        "aux_decay",
        "log_interval",
        "save_waves",
    ]


def test_the_warm_up_is_the_published_one():
    """ESPnet's WarmupLR: lr * warmup ** 0.5 * min(step ** -0.5, step * warmup ** -1.5)."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.002)
    schedule = NoamScheduler(lr_initial=0.002, n_warmup_steps=25)
    for step in range(1, 80):
        schedule(optimizer)
        expected = 0.002 * 25**0.5 * min(step**-0.5, step * 25**-1.5)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


# That of voicebank is a golden run.
@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "voicebank"])
def test_a_run_on_a_small_tree(tmp_path, monkeypatch, name):
    monkeypatch.delitem(remedy.SMALL, "total_steps")  # a key of the demo's schedule alone
    out = tmp_path / "run"
    keys = {**SMALL, **tree_of(name, tmp_path)}
    printed = run(RECIPE / "hparams" / f"{name}.yaml", out, **keys)
    log = rows(out / "train_log.csv")[0]
    for key in ("train_se_loss", "conflict_rate", "valid_wer"):
        assert np.isfinite(float(log[key])), key
    results = rows(out / "results.csv")
    expected = {"rats_chA": 2, "chime4": 8, "librispeech_noise": 2}
    assert len(results) == expected[name]
    assert all(row["words"] and float(row["wer"]) >= 0 for row in results)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["metrics"]["wer"]["count"] == len(results)
    if name == "chime4":
        check_sets(out, results, printed)


def check_sets(out, results, printed):
    """Real and simulated recordings are told apart; only the latter can be compared."""
    assert sorted(row["set"] for row in results) == 4 * ["real"] + 4 * ["simu"]
    assert all(bool(row["si_snr_i"]) == (row["set"] == "simu") for row in results)
    table = (out / "sets.md").read_text()
    assert table in printed
    for name in ("real", "simu"):
        of = [row for row in results if row["set"] == name]
        words, errors = (sum(int(r[key]) for r in of) for key in ("words", "word_errors"))
        assert f"| {name} | {words} | {100 * errors / words:.2f} %" in table
