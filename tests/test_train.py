"""train.py from the data to the report, on tiny trees."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from forked_ranks import start_ranks
from librimix import make_tree
from running import ROOT, as_arguments, rows, run_here, run_python, run_script

SMALL = {
    "n_basis": 64,
    "n_features": 8,
    "chunk_length": 10,
    "save_waves": 2,
    "num_workers": 0,
}
SEPFORMER = {"heads": 2, "feed_forward": 8, "ss_layers": 1, "ss_blocks": 1, "se_blocks": 1}
DPRNN = {"hidden": 4, "ss_blocks": 1, "se_blocks": 1}

# Every YAML that is shipped, and the sizes that make it small.
SHIPPED = {
    "hparams/demo.yaml": {**DPRNN, "n_basis": 128},
    "hparams/libri2mix_noisy.yaml": SEPFORMER,
    "hparams/libri2mix_noisy_dprnn.yaml": DPRNN,
    "hparams/libri3mix_noisy.yaml": SEPFORMER,
    "hparams/libri3mix_noisy_dprnn.yaml": DPRNN,
}
# Their curves are golden values; run from the data to the report, they are slow.
OTHERS = ["hparams/libri2mix_noisy.yaml", "hparams/libri2mix_noisy_dprnn.yaml"]
OTHERS += ["hparams/libri3mix_noisy_dprnn.yaml"]


def command(name, tree, out, *options, **overrides):
    """The command line that trains a small network of a recipe for two epochs."""
    keys = {**SMALL, **SHIPPED[name], "number_of_epochs": 2, **overrides}
    keys["output_folder"] = out
    arguments = as_arguments(keys)
    if "demo" in name:  # the tree instead of the demo corpus: see `yaml_of`
        name = yaml_of(name, tree)
    else:
        arguments += ["--data_folder", str(tree)]
    return [str(ROOT / "train.py"), str(name), *arguments, "--device", "cpu", *options]


def yaml_of(name, tree):
    """The demo's YAML for a tree that exists; nothing else is changed."""
    text = (ROOT / name).read_text(encoding="utf-8")
    start, end = text.index("corpus: !name"), text.index("data_folder:")
    text = text[:start] + text[end:].replace(
        "data_folder: data/demo", f"data_folder: {tree}", 1
    )
    path = Path(tree).parent / "demo.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def run(arguments, launcher=()):
    done = run_python(*launcher, *arguments) if launcher else run_script(*arguments)
    return done.stdout, done.stderr


def test_every_yaml_is_in_the_table():
    shipped = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("hparams/*.yaml")}
    assert shipped == set(SHIPPED)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("hparams/demo.yaml", marks=pytest.mark.pictures),
        "hparams/libri3mix_noisy.yaml",  # the other kind of separator, three sources
        *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS),
    ],
)
def test_a_run_from_the_data_to_the_report(tmp_path, name):
    n_speakers = 3 if "libri3mix" in name else 2
    tree = make_tree(tmp_path, n_speakers)
    out = tmp_path / "run"
    printed, progress = run(command(name, tree, out))

    for file in ("hyperparams.yaml", "env.log", "log.txt", "train.py", "train_log.txt"):
        assert (out / file).is_file(), file
    log = rows(out / "train_log.csv")
    assert [row["epoch"] for row in log] == ["1", "2"]
    for key in ("train_si_snr", "train_se_loss", "conflict_rate", "valid_si_snr_i"):
        assert np.isfinite(float(log[-1][key])), key
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    windows = rows(out / "gradients.csv")
    assert {row["epoch"] for row in windows} == {"1", "2"}
    assert {"all", "network.encoder.convolution"} < {row["scope"] for row in windows}
    assert (out / "gradients.png").read_bytes().startswith(b"\x89PNG")

    results = rows(out / "results.csv")
    assert [row["ID"] for row in results] == ["test-0", "test-1", "test-2"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["metrics"]["si_snr_i"]["count"] == 3
    files = ("report.html", "gradients.png", str(out / "wavs"))
    for words in ("SI-SNRi", "SDRi", "enhanced mixture", *files):
        assert words in printed
    assert "si_snr=" in progress and "conflicts=" in progress

    for item in ("test-0", "test-1"):
        frames = {
            soundfile.info(path).frames for path in (out / "wavs" / item).glob("*.wav")
        }
        assert frames == {soundfile.info(tree / f"wav8k/min/test/s1/{item}.wav").frames}
        assert len(list((out / "wavs" / item).glob("s*_estimate.wav"))) == n_speakers
    assert "<audio" in (out / "report.html").read_text(encoding="utf-8")


def test_ablations_by_override_and_the_evaluated_graph_is_the_trained_one(tmp_path):
    name = "hparams/libri2mix_noisy_dprnn.yaml"
    tree = make_tree(tmp_path)
    out = tmp_path / "alone"
    run(command(name, tree, out, use_se=False, rule="sum", number_of_epochs=1))
    log = rows(out / "train_log.csv")
    for key in ("train_se_loss", "conflict_rate", "valid_se_si_snr_i"):
        assert key not in log[0]
    assert "se_si_snr" not in rows(out / "results.csv")[0]
    assert not list((out / "wavs").rglob("enhanced.wav"))
    assert not (out / "gradients.png").exists()  # there was nothing to compare

    first = rows(out / "results.csv")
    # Once more from the checkpoint alone: the same numbers.
    run(
        command(
            name, tree, out, "--test_only", use_se=False, rule="sum", number_of_epochs=1
        )
    )
    assert rows(out / "results.csv") == first

    # More epochs in the same folder go on; another rule there is refused.
    run(command(name, tree, out, use_se=False, rule="sum", number_of_epochs=2))
    assert [row["epoch"] for row in rows(out / "train_log.csv")] == ["1", "2"]


def test_options_of_the_data(tmp_path):
    """Batches by seconds, crops, dynamic mixing, bf16, accumulation, in one run."""
    tree = make_tree(tmp_path)
    speech, noise = tmp_path / "speech", tmp_path / "noise"
    for speaker in range(3):
        (speech / f"speaker{speaker}").mkdir(parents=True)
        for number in range(2):
            source = tree / f"wav8k/min/train-360/s{1 + speaker % 2}/train-360-{number}.wav"
            target = speech / f"speaker{speaker}" / f"{number}.wav"
            target.write_bytes(source.read_bytes())
    noise.mkdir()
    (noise / "n.wav").write_bytes((tree / "wav8k/min/dev/noise/dev-0.wav").read_bytes())
    out = tmp_path / "run"
    overrides = {
        "dynamic_mixing": True,
        "dynamic_speech_folder": speech,
        "dynamic_noise_folder": noise,
        "dynamic_items": 5,
        "segment_seconds": 0.3,
        "batch_size": "null",
        "batch_seconds": 0.6,
        "num_workers": 1,
        "number_of_epochs": 1,
        "se_loss": "relative",
        "granularity": "global",
    }
    name = "hparams/libri2mix_noisy_dprnn.yaml"
    flags = ("--precision", "bf16", "--grad_accumulation_factor", "2")
    _, told = run(command(name, tree, out, *flags, **overrides))
    assert len(rows(out / "results.csv")) == 3
    # The process that reads ends with the run, although it outlives a signal.
    assert "Traceback" not in told, told[-2000:]


def test_two_ranks_train_and_evaluate_like_one(tmp_path):
    """Two processes: the same results as one process with the joined batches."""
    name = "hparams/libri2mix_noisy_dprnn.yaml"
    tree = make_tree(tmp_path)
    alone = {"speed_percents": "null", "number_of_epochs": 1}
    run(command(name, tree, tmp_path / "one", batch_size=2, **alone))
    two = command(name, tree, tmp_path / "two", batch_size=1, **alone)
    ranks = start_ranks(run_here, 2, *two)
    assert ranks.codes() == [0, 0], ranks.said(0) + ranks.said(1)
    one, two = (rows(tmp_path / folder / "results.csv") for folder in ("one", "two"))
    assert [row["ID"] for row in one] == [row["ID"] for row in two]
    for a, b in zip(one, two):
        assert float(a["si_snr"]) == pytest.approx(float(b["si_snr"]), abs=0.01)
