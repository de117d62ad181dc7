"""The binaural recipe from the data to the report, on tiny trees.

Every YAML is run by test_golden.py.
"""

import json
from pathlib import Path

import golden_values as golden
import numpy as np
import pytest
import soundfile
import yaml
from running import ROOT, as_arguments, rows, run_python, run_script

from unified_se_ss.inference import BinauralSeparator, load_model

RECIPE = ROOT / "recipes" / "BinauralWSJ0Mix"
RATE = 8000
SMALL = {
    "n_basis": 8,
    "n_features": 4,
    "hidden": 6,
    "blocks": 2,
    "repeats": 1,
    "number_of_epochs": 2,
    "save_waves": 1,
    "num_workers": 0,
}
# Every YAML that is shipped, and the keys in which it differs from convtasnet-mimo.yaml.
SHIPPED = {
    "convtasnet-mimo": set(),
    "convtasnet-independent": {"variant"},
    "convtasnet-cross": {"variant"},
    "convtasnet-noise": {"mixture"},
    "convtasnet-reverb": {"listeners"},
    "convtasnet-causal": {"causal"},
    "demo": None,
}


def arguments_of(name, out, **keys):
    """The command line that trains a small network of a recipe's YAML."""
    path = name if isinstance(name, Path) else RECIPE / "hparams" / f"{name}.yaml"
    keys = {**SMALL, **keys, "output_folder": out, "device": "cpu"}
    return [str(path), *as_arguments(keys)]


def run(arguments, launcher=()):
    """Run train.py; what was printed."""
    script = RECIPE / "train.py"
    if launcher:
        return run_python(*launcher, str(script), *arguments).stdout
    return run_script(script, *arguments).stdout


def demo_yaml(folder):
    """The demo's YAML for data that are there; nothing else is changed."""
    text = (RECIPE / "hparams" / "demo.yaml").read_text(encoding="utf-8")
    start, end = text.index("corpus: !name"), text.index("data_folder:")
    path = folder / "demo.yaml"
    path.write_text(text[:start] + text[end:], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A causal network and the demo, from mono mixtures to their reports."""
    folder = tmp_path_factory.mktemp("binaural")
    causal = {"mono_folder": golden.wsj0mix(folder), "data_folder": folder / "binaural"}
    demo = {
        "mono_folder": causal["mono_folder"],
        "data_folder": folder / "apart",  # its least angle makes another corpus
        "dynamic_speech_folder": golden.voices(folder)["dynamic_speech_folder"],
        "n_basis": 64,
        "dynamic_items": 4,
        "segment_seconds": 0.3,
    }
    printed = run(arguments_of("convtasnet-causal", folder / "causal", **causal))
    run(arguments_of(demo_yaml(folder), folder / "demo", **demo))
    return folder, printed


def test_every_yaml_is_in_the_table_and_differs_only_where_it_means_to():
    shipped = {path.stem for path in (RECIPE / "hparams").glob("*.yaml")}
    assert shipped == set(SHIPPED)
    first = plain("convtasnet-mimo")
    for name, keys in SHIPPED.items():
        here = plain(name)
        if keys is None:
            assert set(here) - set(first) == {"corpus", "final_lr", "budget_minutes"}
        else:
            different = {k for k in {**first, **here} if first.get(k) != here.get(k)}
            assert different <= {"experiment_name", *keys} and keys <= different, name


def plain(name):
    """The keys of a YAML file; what is constructed as its tag and text."""

    class Loader(yaml.SafeLoader):
        pass

    def construct(loader, suffix, node):
        return suffix, yaml.serialize(node)

    Loader.add_multi_constructor("!", construct)
    text = (RECIPE / "hparams" / f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader)


@pytest.mark.parametrize("name", ["causal", "demo"])
def test_a_run_from_the_data_to_the_report(runs, name):
    out = runs[0] / name
    for file in ("hyperparams.yaml", "env.log", "log.txt", "train.py", "train_log.txt"):
        assert (out / file).is_file(), file
    log = rows(out / "train_log.csv")
    assert [row["epoch"] for row in log] == ["1", "2"]
    for key in ("train_loss", "valid_snr_i"):
        assert np.isfinite(float(log[-1][key])), key
    results = rows(out / "results.csv")
    assert [row["ID"] for row in results] == ["tt-0", "tt-1"]
    for key in ("snr_i", "delta_itd", "delta_ild", "azimuth_1", "angle"):
        assert all(np.isfinite(float(row[key])) for row in results), key
    cues = json.loads((out / "interaural.json").read_text())
    assert cues["measured"] + cues["silent"] + cues["monaural"] == 4
    assert {row["by"] for row in rows(out / "by_angle.csv")} == {
        "azimuth",
        "min_separation_deg",
    }
    wave, rate = soundfile.read(out / "wavs" / "tt-0" / "s2_estimate.wav")
    assert wave.shape == (4000, 2) and rate == RATE
    report = (out / "report.html").read_text(encoding="utf-8")
    for words in ("Where the talkers are heard", "By angle", "from above", "<audio"):
        assert words in report


def test_a_run_can_be_used(runs):
    folder, printed = runs
    assert "ΔITD" in printed and "epoch" in printed.lower()
    separator = BinauralSeparator(load_model(folder / "causal", "cpu"))
    mixture, _ = soundfile.read(
        folder / "binaural/wav8k/min/tt/mix/tt-0.wav", dtype="float32"
    )
    found = separator.separate(mixture.T.copy(), RATE)
    assert found.shape == (2, 2, 4000) and separator.model.causal
    # What was evaluated is what is loaded: the estimate in the run's folder.
    estimates = [
        soundfile.read(folder / f"causal/wavs/tt-0/s{j}_estimate.wav")[0].T for j in (1, 2)
    ]
    order = rows(folder / "causal/results.csv")[0]["permutation"].split()
    for j, i in enumerate(map(int, order)):
        np.testing.assert_allclose(found[i], estimates[j], atol=1e-3)


def test_rooms_noise_three_talkers_cue_losses_and_speechbrains_protocol(tmp_path):
    """The YAML of rooms, with all options that the others leave alone."""
    text = (RECIPE / "hparams" / "convtasnet-reverb.yaml").read_text(encoding="utf-8")
    path = tmp_path / "rooms.yaml"
    text = golden.in_small_rooms(text).replace("head_rooms", str(tmp_path / "cache"))
    path.write_text(text, encoding="utf-8")
    keys = {
        "data_folder": tmp_path / "binaural",
        "mono_folder": golden.wsj0mix(tmp_path, 3, noise=True),
        "mixture": "mix_both",
        "n_speakers": 3,
        "dynamic_mixing": True,
        **golden.voices(tmp_path),
        "dynamic_items": 3,
        "segment_seconds": 0.3,
        "speed_percents": "null",
        "share_ears": True,
        "ild_weight": 0.1,
        "ipd_weight": 1.0,
        "protocol": "speechbrain",
        "number_of_epochs": 1,
        "precision": "bf16",
    }
    printed = run(arguments_of(path, tmp_path / "out", **keys))
    results = rows(tmp_path / "out" / "results.csv")
    assert len(results) == 2 and "snr_3" in results[0] and "cues_1" not in results[0]
    assert float(results[0]["delta_itd"]) * RATE / 1e6 * 3 == pytest.approx(
        round(float(results[0]["delta_itd"]) * RATE / 1e6 * 3), abs=1e-4
    )
    assert "ΔILD" in printed


@pytest.mark.slow
def test_two_ranks_train_and_evaluate_like_one(runs, tmp_path):
    """torchrun on two processes: the same results as one with the joined batches."""
    folder, _ = runs
    keys = {
        "data_folder": folder / "binaural",
        "speed_percents": "null",
        "number_of_epochs": 1,
        "ild_weight": 0.1,
    }
    run(arguments_of("convtasnet-mimo", tmp_path / "one", batch_size=2, **keys))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    run(arguments_of("convtasnet-mimo", tmp_path / "two", batch_size=1, **keys), launcher)
    one, two = (rows(tmp_path / name / "results.csv") for name in ("one", "two"))
    assert [row["ID"] for row in one] == [row["ID"] for row in two]
    for a, b in zip(one, two):
        for key in ("snr", "delta_ild"):
            assert float(a[key]) == pytest.approx(float(b[key]), abs=0.01), key
