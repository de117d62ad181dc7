"""Options, YAML files and folders: what users meet before training starts."""

import io
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from hyperpyyaml import resolve_references
from librimix import make_tree

import train
from unified_se_ss import training
from unified_se_ss.data import audio
from unified_se_ss.errors import UserError
from unified_se_ss.plain_yaml import plain_yaml
from unified_se_ss.training.run_folder import check_folder

ROOT = Path(__file__).parent.parent
HPARAMS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("hparams/*.yaml"))
DEMO = str(ROOT / "hparams/demo.yaml")


def run(monkeypatch, capsys, *arguments):
    """Start train.py in this process; its exit code and what it printed."""
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    monkeypatch.chdir(ROOT)
    code = 0
    try:
        training.run(train.main, train.__doc__)
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def plain(name):
    """The keys of a YAML file with references resolved, nothing constructed."""
    text = (ROOT / name).read_text(encoding="utf-8")
    overrides = {} if "corpus:" in text else {"data_folder": "unset"}
    resolved = resolve_references(io.StringIO(text), overrides).read()
    return plain_yaml(resolved, name)


# ------------------------------------------------------------------ what is shipped


@pytest.mark.parametrize(
    "name, total, enhancer",
    [
        # source: counted from the published configurations
        ("hparams/libri2mix_noisy_dprnn.yaml", "19,684,098", "5,067,009"),
        ("hparams/libri2mix_noisy.yaml", "29,171,458", "3,492,097"),
    ],
)
def test_describe_needs_no_data_and_hits_the_published_sizes(
    monkeypatch, capsys, name, total, enhancer
):
    code, out, _ = run(monkeypatch, capsys, name, "--describe")
    assert code == 0
    assert re.search(rf"total +{total}\n", out)
    assert re.search(rf"network.enhancer +DualPath +{enhancer}\n", out)
    assert "latency: the whole utterance" in out and "receptive field" in out


@pytest.mark.parametrize("name", HPARAMS)
def test_every_yaml_can_be_described(monkeypatch, capsys, name):
    code, out, _ = run(
        monkeypatch, capsys, name, "--describe", "--experiment_name", "nobody"
    )
    assert code == 0 and "total" in out
    assert not (ROOT / "results/nobody").exists()


def test_yamls_differ_only_where_they_mean_to():
    two, three = (
        plain("hparams/libri2mix_noisy.yaml"),
        plain("hparams/libri3mix_noisy.yaml"),
    )
    differing = {key for key in two if two[key] != three[key]}
    named = {"experiment_name", "output_folder", "save_folder", "n_speakers"}
    # What is constructed from these keys differs with them.
    assert differing <= named | {"separator", "network", "modules", "checkpointer"}
    sepformer, dprnn = two, plain("hparams/libri2mix_noisy_dprnn.yaml")
    same = "seed rule granularity weight_se se_loss lr batch_size number_of_epochs max_grad_norm"
    for key in [
        *same.split(),
        "loss_threshold",
        "speed_percents",
        "chunk_length",
        "n_basis",
    ]:
        assert sepformer[key] == dprnn[key]


@pytest.mark.parametrize("name", [name for name in HPARAMS if "libri" in name])
def test_published_values(name):
    # source: YUCHEN005/Unified-Enhance-Separation, hparams/*-unified-gm.yaml
    keys = plain(name)
    expected = {
        "sample_rate": 8000,
        "mode": "min",
        "train_subset": "train-360",
        "mixture": "mix_both",
        "speed_percents": [95, 100, 105],
        "batch_size": 1,
        "segment_seconds": None,
        "rule": "project",
        "granularity": "parameter",
        "se_loss": "sum",
        "weight_se": 0.1,
        "loss_threshold": -30,
        "number_of_epochs": 120,
        "lr": 0.00015,
        "max_grad_norm": 5.0,
        "n_basis": 256,
        "kernel_size": 16,
        "stride": 8,
        "chunk_length": 250,
        "initial": "random",
    }
    assert {key: keys[key] for key in expected} == expected
    plateau = re.search(r"dont_halve_until_epoch: (\d+)", (ROOT / name).read_text()).group(
        1
    )
    assert int(plateau) == (85 if "dprnn" in name else 5)


def test_help_shows_the_manual_the_keys_and_the_run_options(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "hparams/demo.yaml", "--help")
    assert code == 0
    for words in (
        "torchrun --nproc_per_node",
        "--weight_se",
        "--granularity",
        "--precision",
    ):
        assert words in out


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], None),
        (["--rule", "sum"], "no YAML file was named"),
        (["hparams/dem.yaml"], "no such file; did you mean 'hparams/demo.yaml'"),
        (
            [DEMO, "--wieght_se", "0"],
            "--wieght_se: .* has no such key; did you mean --weight_se",
        ),
        ([DEMO, "--weight_se", "much"], "--weight_se: is 'much'; expected a number"),
        ([DEMO, "--use_se", "3"], "--use_se: is 3; expected True or False"),
        (
            [DEMO, "--rule", "projekt"],
            "rule is 'projekt'; expected one of: .*; did you mean 'project'",
        ),
        ([DEMO, "--granularity", "layer"], "granularity: is 'layer'; expected one of"),
        ([DEMO, "--se_loss", "l1"], "se_loss: is 'l1'; expected one of: sum, relative"),
        (["hparams/libri2mix_noisy.yaml"], "data_folder: not set in .*give --data_folder"),
        (
            [DEMO, "--precision", "fp16", "--device", "cpu"],
            "fp16 needs a CUDA device; on cpu use",
        ),
        ([DEMO, "--stride", "0"], "stride: is 0; expected a whole number, 1 or more"),
        (
            [DEMO, "--segment_seconds", "0.001"],
            "segment_seconds: is 0.001; expected 0.008 or",
        ),
        ([DEMO, "--chunk_length", "7"], "chunk_length is 7; expected an even number"),
        ([DEMO, "--kernel_size", "999"], "twice kernel_size"),
    ],
)
def test_a_wrong_command_line_gets_one_clear_message(monkeypatch, capsys, arguments, words):
    code, out, err = run(monkeypatch, capsys, *arguments)
    if words is None:  # nothing at all: the manual
        assert "torchrun" in out
        return
    assert code == 2
    assert re.search(words, err), err
    assert "Traceback" not in err


def test_nothing_to_test_is_told(monkeypatch, capsys, tmp_path):
    arguments = [DEMO, "--test_only", "--output_folder", tmp_path / "out"]
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2 and "--test_only: there is no checkpoint in" in err


def test_a_broken_yaml_is_told_by_line(monkeypatch, capsys, tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("seed: 1\nrule: [project\nlr: 3\n")
    code, _, err = run(monkeypatch, capsys, broken)
    assert code == 2 and re.search(r"broken.yaml, line 3, column \d+: not valid YAML", err)


@pytest.mark.parametrize("joined", [True, False])
def test_values_may_hold_an_equals_sign(joined):
    """SpeechBrain's own parser would make a space of it."""
    given = {"output_folder": "results/a=b/c=d", "seed": "7"}
    pairs = given.items()
    split = [word for key, value in pairs for word in (f"--{key}", value)]
    arguments = [f"--{key}={value}" for key, value in pairs] if joined else split
    options = training.parse_options([DEMO, *arguments, "--precision=bf16"], "")
    assert options.overrides == {"output_folder": "results/a=b/c=d", "seed": 7}
    assert options.run_opts.precision == "bf16"


def test_options_of_a_rule_are_checked(monkeypatch, capsys):
    options = training.parse_options([DEMO, "--rule_options", "{strict: True}"], "")
    assert options.overrides == {"rule_options": {"strict": True}}
    arguments = [DEMO, "--rule", "remedy", "--rule_options", "{strikt: True}"]
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2 and "rule 'remedy' has no option 'strikt'; it has: k, strict" in err


def remove_stem(tree):
    (tree / "wav8k/min/train-360/s2/train-360-1.wav").unlink()
    return "train-360-1.wav"


def too_short(tree):
    for path in (tree / "wav8k/min/test").rglob("test-0.wav"):
        audio.write(path, audio.read(path)[0][:10], 8000)
    return "test-0 has 10 samples.*kernel_size is 16"


def nothing_there(tree):
    shutil.rmtree(tree)
    return "data_folder: .*does not exist"


@pytest.mark.parametrize("fault", [remove_stem, too_short, nothing_there])
def test_bad_data_gets_one_clear_message_before_training(
    monkeypatch, capsys, tmp_path, fault
):
    """More faults are those of test_data_librimix."""
    tree = make_tree(tmp_path, counts=(2, 1, 1))
    words = fault(tree)
    name, out = "hparams/libri2mix_noisy_dprnn.yaml", tmp_path / "out"
    options = ["--data_folder", tree, "--output_folder", out, "--n_features", "8"]
    # Should the fault go unseen, the test ends soon.
    options += ["--n_basis", "16", "--hidden", "4", "--number_of_epochs", "1"]
    code, _, err = run(monkeypatch, capsys, name, *options)
    assert code == 2
    message = err[err.index("error:") :]
    assert re.search(words, message, re.DOTALL), message
    assert "Traceback" not in err


def folder_options(folder, **overrides):
    file = ROOT / "hparams/libri2mix_noisy.yaml"
    keys = {"output_folder": str(folder), "data_folder": "anywhere", **overrides}
    return training.Options(file, None, keys, False)


def test_dynamic_mixing_needs_its_folders(monkeypatch, capsys, tmp_path):
    tree = make_tree(tmp_path, counts=(2, 1, 1))
    name, out = "hparams/libri2mix_noisy_dprnn.yaml", tmp_path / "out"
    options = ["--data_folder", tree, "--output_folder", out, "--dynamic_mixing", "True"]
    code, _, err = run(monkeypatch, capsys, name, *options, "--number_of_epochs", "1")
    assert code == 2 and "dynamic_speech_folder: must be set" in err


def test_a_folder_of_another_experiment_is_refused(tmp_path):
    options = folder_options(tmp_path)
    text = resolve_references(
        io.StringIO(options.hparams_file.read_text()), options.overrides
    )
    (tmp_path / "hyperparams.yaml").write_text(text.read())
    check_folder(options, tmp_path)
    check_folder(folder_options(tmp_path, number_of_epochs=99), tmp_path)
    with pytest.raises(
        UserError, match="another experiment: rule is 'project' there and 'sum'"
    ):
        check_folder(folder_options(tmp_path, rule="sum"), tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("my only copy")
    with pytest.raises(UserError, match="not empty and holds no run"):
        check_folder(folder_options(tmp_path), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "my only copy"


def test_a_folder_without_write_permission_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="output_folder: cannot write to .*choose another"):
        check_folder(folder_options(tmp_path / "file/run"), tmp_path / "file/run")
    if os.geteuid():  # root may write anywhere
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        with pytest.raises(UserError, match="Permission denied"):
            check_folder(folder_options(locked), locked)


# ------------------------------------------------------------------ the log


def test_the_log_forgets_what_is_trained_again(tmp_path):
    log = training.TrainLog(tmp_path)
    for epoch, loss in [(1, 3.0), (2, 2.0), (3, None), (2, 1.5)]:
        log.add({"epoch": epoch, "loss": loss})
    assert log.rows == [{"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": 1.5}]
    assert log.text_path.read_text() == "epoch: 1, loss: 3\nepoch: 2, loss: 1.5\n"


def test_scientific_notation_is_a_number():
    assert training.parse_options([DEMO, "--lr", "1e-3"], "").overrides == {"lr": 0.001}
