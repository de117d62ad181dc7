"""GSENet's recipe from the data to the report, on tiny data.

Every YAML, its kinds of scenes and its losses are run by test_golden.py.
"""

from pathlib import Path

import golden_values as golden
import numpy as np
import pytest
from running import ROOT, as_arguments, rows, run_script

from unified_se_ss.inference import GuidedEnhancer

RECIPE = ROOT / "recipes" / "GSENet"
RATE = 16000
SMALL = {
    "blocks": "[[4, 8, 2, 3, False]]",
    "bottleneck": 4,
    "kernel_size": 3,
    "batch_size": 2,
    "num_workers": 0,
    "number_of_epochs": 1,
    "metrics": "[]",
    "scoring_processes": 1,
    "save_waves": 1,
    "device": "cpu",
}
SCENES = {
    "segment_seconds": 1.2,
    "test_seconds": 1.5,
    "n_train": 3,
    "n_valid": 2,
    "n_test": 2,
    "n_rooms": "[1, 1, 1]",
}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    return golden.speech_and_noise(tmp_path_factory.mktemp("sounds"))


def run(yaml, folder, out, expected=0, **keys):
    keys = {**keys, "data_folder": folder, "output_folder": out}
    script, words = RECIPE / "train.py", as_arguments(keys)
    done = run_script(script, RECIPE / yaml, *words, expected=expected)
    return done.stdout + done.stderr


def without_corpus(yaml, folder):
    """The demo's YAML with sounds that are there; nothing else is changed."""
    text = (RECIPE / yaml).read_text(encoding="utf-8")
    start, end = text.index("corpus: !name"), text.index("sample_rate: 16000")
    path = Path(folder) / Path(yaml).name
    path.write_text(text[:start] + text[end:], encoding="utf-8")
    return path


def test_the_demo_from_its_sounds_to_the_report(sounds, tmp_path):
    yaml, out = without_corpus("hparams/demo.yaml", tmp_path), tmp_path / "run"
    bucket = tmp_path / "bucket"
    printed = run(yaml, sounds, out, **SMALL, **SCENES, upload_uri=bucket)
    results = rows(out / "results.csv")
    guides = {row["guide"] for row in results}
    assert len(results) == 2 * len(guides) and len(guides) >= 2
    for key in ("si_snr", "raw_si_snr", "beamformed_si_snr", "sir", "sar", "input_sir"):
        assert all(np.isfinite(float(row[key])) for row in results), key
    by_item = {}
    for row in results:  # the same scenes, whichever beamformer
        by_item.setdefault(row["item"], set()).add(row["raw_si_snr"])
    assert len(by_item) == 2 and all(len(values) == 1 for values in by_item.values())
    report = (out / "report.html").read_text(encoding="utf-8")
    for words in ("Reference microphone, beamformer and enhancement", *guides, "<audio"):
        assert words in report
    (waves,) = (out / "wavs").iterdir()
    names = {path.stem for path in waves.glob("*.wav")}
    assert names == {"raw", "beamformed", "enhanced", "target"}
    assert (out / "guided.md").read_text() in printed
    assert "over the beamformer" in printed and f"uploaded to   {bucket}" in printed
    assert (bucket / "results.csv").read_text() == (out / "results.csv").read_text()
    assert len(list((bucket / "save").glob("CKPT*/network.ckpt"))) == 1
    pair = np.random.default_rng(0).standard_normal((2, 4000)).astype(np.float32)
    enhanced = [
        GuidedEnhancer.from_folder(f, "cpu").enhance(pair, RATE) for f in (out, bucket)
    ]
    assert np.array_equal(*enhanced)


@pytest.mark.slow
def test_recordings_with_a_beamformer_for_their_guide(tmp_path):
    guide = "souden_mvdr"
    options = {**SMALL, "segment_seconds": 1.0, "guide_of_recordings": guide}
    options["quiet_seconds"] = 0.2
    folder = golden.recordings(tmp_path / "recordings")
    run("hparams/gsenet.yaml", folder, tmp_path / "run", **options)
    results = rows(tmp_path / "run" / "results.csv")
    assert [row["guide"] for row in results] == [guide] * 2
    assert "sir" not in results[0]
    assert (tmp_path / "run" / "manifests" / f"{guide}_test_report.txt").is_file()


def test_what_cannot_be_used_is_said(sounds, tmp_path):
    out, demo = tmp_path / "run", "hparams/demo.yaml"
    said = run(demo, tmp_path, out, 2, device="cpu", loss="linear")
    assert "loss: is 'linear'; expected one of: compressed, linear_l1" in said
    said = run(demo, tmp_path, out, 2, device="cpu", guides="[mvdrr]")
    assert "guides: is 'mvdrr'" in said and "did you mean" in said
    wrong = {
        "{mvdr: {tapss: 3}}": "expected options by name",
        "{mvdrr: {}}": "did you mean",
        "{multichannel_wiener: {taps: -1}}": "taps: is -1; expected a whole number",
    }
    for value, words in wrong.items():
        said = run(demo, tmp_path, out, 2, device="cpu", guide_options=value)
        assert "guide_options" in said and words in said
