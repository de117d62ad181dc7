"""The command ``evaluate``: from a model's folder and a manifest to the report."""

import csv
import json

import numpy as np
import pytest
import soundfile
import torch
from librimix import make_tree
from small_models import noise, small_binaural, small_gsenet, small_model

from unified_se_ss import evaluate_model
from unified_se_ss.__main__ import main
from unified_se_ss.data.dataset import MixtureDataset
from unified_se_ss.data.manifest import read_manifest, write_manifest
from unified_se_ss.evaluation import metrics
from unified_se_ss.evaluation.results import read_results
from unified_se_ss.evaluation.rows import (
    evaluate_item,
    score_binaural,
    score_guided,
    score_recognition,
)
from unified_se_ss.inference import Recognizer
from unified_se_ss.inference.export import export, write_native


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Folder of a model, manifest, data folder."""
    folder = tmp_path_factory.mktemp("given")
    tree = make_tree(folder)
    assert main(["check", str(tree), "--manifests", str(folder / "manifests")]) == 0
    (folder / "model").mkdir()
    write_native(small_model(), folder / "model")
    (manifest,) = (folder / "manifests").glob("*test*.csv")
    return folder / "model", manifest, tree


@pytest.fixture
def command(given, tmp_path):
    """Evaluates into a folder of its own, with further options."""
    model, manifest, tree = map(str, given)

    def run(*options, manifest=manifest, model=model):
        common = ["--data_folder", tree, "--device", "cpu", "--jobs", "1"]
        return main(
            ["evaluate", model, manifest, "-o", str(tmp_path / "out"), *common, *options]
        )

    run.out = tmp_path / "out"
    return run


def copied(manifest, path, change):
    """A manifest with other rows."""
    with open(manifest, newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [change(dict(row)) for row in rows]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_rows_are_those_of_the_model_and_the_files_are_there(given, command, capsys):
    from unified_se_ss.inference import load_model

    assert command("--metrics", "stoi,sdr", "--save_waves", "1") == 0
    printed = capsys.readouterr().out
    rows = read_results(command.out / "results.csv")
    data = MixtureDataset(read_manifest(given[1], given[2]), 2)
    model = load_model(given[0], "cpu")
    assert [row["ID"] for row in rows] == [item.id for item in data.manifest.items]
    for number, row in enumerate(rows):
        mixture, targets = data[number].mixture, data[number].sources
        estimates, enhanced = model.both(mixture[None])
        expected = evaluate_item(
            mixture.numpy(),
            estimates[0].numpy(),
            targets.numpy(),
            enhanced[0].numpy(),
            sample_rate=8000,
        )
        for key, value in expected.items():
            assert row[key] == (
                value if key == "permutation" else pytest.approx(value, abs=1e-3)
            )
        assert row["duration"] == mixture.shape[0] / 8000
        assert np.isfinite(row["stoi"]) and np.isfinite(row["stoi_i_2"])
    summary = json.loads((command.out / "summary.json").read_text())
    assert summary["metrics"]["si_snr_i"]["count"] == 3
    page = (command.out / "report.html").read_text(encoding="utf-8")
    assert page.count("<section") == 3 and "STOIi" in page
    assert [path.name for path in (command.out / "wavs").iterdir()] == [rows[0]["ID"]]
    for words in ("SI-SNRi", "SDRi", "STOI", "95 % interval", "report.html", "2 sources"):
        assert words in printed

    # What is there is replaced only when told so.
    before = (command.out / "results.csv").read_bytes()
    assert command() == 2
    assert "--force" in capsys.readouterr().err
    assert (command.out / "results.csv").read_bytes() == before
    assert command("--force") == 0
    assert "stoi" not in read_results(command.out / "results.csv")[0]


def test_a_silent_reference_is_counted_and_named(given, command, tmp_path, capsys):
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(4000), 8000, subtype="PCM_16")
    manifest = copied(
        given[1],
        tmp_path / "m.csv",
        lambda row: {**row, "s2": str(silent)} if row["ID"] == "test-0" else row,
    )
    assert command(manifest=manifest) == 0
    printed = capsys.readouterr().out
    assert "1 of 3 utterances lack a value: test-0 (the reference of source 2" in printed
    rows = read_results(command.out / "results.csv")
    assert rows[0]["si_snr_2"] is None and rows[0]["si_snr"] is not None
    assert rows[1]["why_empty"] is None
    assert (
        "the reference of source 2 is silent" in (command.out / "report.html").read_text()
    )


@pytest.mark.parametrize(
    "options, words",
    [
        (["--metrics", "si_snr,pecq"], "'pecq'; expected some of: si_snr, sdr, pesq"),
        (["--metrics", "wer"], "wer needs a recogniser; give --recogniser"),
        (["--jobs", "0"], "jobs: is 0; expected 1 or more"),
        (["--save_waves", "-1"], "save_waves: is -1"),
        (["--device", "quantum"], "device: quantum"),
        (["--precision", "fp64"], "precision: is 'fp64'"),
        (["--recogniser", "/no/such/folder"], "transcripts: "),
        (["--recogniser", "x", "--transcripts", "/no/words.csv"], "/no/words.csv"),
    ],
)
def test_a_wrong_option_is_one_clear_message_before_any_work(
    command, monkeypatch, capsys, options, words
):
    monkeypatch.setattr(evaluate_model, "evaluate", None)  # is never called
    assert command(*options) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("error:") == 1 and "Traceback" not in error


def test_a_missing_extra_is_one_clear_message_before_any_work(command, monkeypatch, capsys):

    monkeypatch.setattr(evaluate_model, "evaluate", None)
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    assert command("--metrics", "pesq,stoi") == 2
    assert "unified_se_ss[metrics]" in capsys.readouterr().err


def other_rate(row):
    return {**row, "sample_rate": "16000", "duration": str(float(row["duration"]) / 2)}


def missing(row):
    return {**row, "s1": row["s1"].replace("test-1", "test-9")}


def longer(row):
    return {**row, "duration": "1.0"}


@pytest.mark.parametrize(
    "change, words",
    [
        (other_rate, "is of 16000 Hz, but the model works at 8000 Hz"),
        (missing, "test-9.wav: does not exist"),
        (longer, "has 4000 samples at 8000 Hz, but"),
        (lambda row: {k: v for k, v in row.items() if k != "s2"}, "no column s2"),
    ],
)
def test_bad_data_is_found_before_any_work(
    given, command, monkeypatch, capsys, tmp_path, change, words
):
    monkeypatch.setattr(evaluate_model, "evaluate", None)
    assert command(manifest=copied(given[1], tmp_path / "m.csv", change)) == 2
    assert words in capsys.readouterr().err
    assert not command.out.exists()


def test_the_missing_data_folder_is_named(given, tmp_path, capsys):
    model, manifest, _ = map(str, given)
    assert main(["evaluate", model, manifest, "-o", str(tmp_path / "out")]) == 2
    assert "--data_folder" in capsys.readouterr().err


RECOGNISER = """
sample_rate: 16000
features: !new:speechbrain.lobes.features.Fbank
    n_mels: 8
linear: !new:speechbrain.nnet.linear.Linear
    input_size: 8
    n_neurons: 5
encoder: !new:speechbrain.nnet.containers.LengthsCapableSequential
    features: !ref <features>
    linear: !ref <linear>
tokenizer: !new:speechbrain.dataio.encoder.CTCTextEncoder
decoding_function: !name:speechbrain.decoders.ctc_greedy_decode
    blank_id: 0
modules:
    encoder: !ref <encoder>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        linear: !ref <linear>
        tokenizer: !ref <tokenizer>
"""


@pytest.fixture
def recogniser(tmp_path):
    """The folder of a tiny recogniser of SpeechBrain, which knows three letters."""
    from speechbrain.dataio.encoder import CTCTextEncoder
    from speechbrain.nnet.linear import Linear

    folder = tmp_path / "recogniser"
    folder.mkdir()
    (folder / "hyperparams.yaml").write_text(RECOGNISER)
    tokenizer = CTCTextEncoder()
    tokenizer.insert_blank(index=0)
    tokenizer.update_from_iterable(list("ab c"), sequence_input=False)
    tokenizer.save(folder / "tokenizer.ckpt")
    torch.manual_seed(0)
    torch.save(Linear(input_size=8, n_neurons=5).state_dict(), folder / "linear.ckpt")
    return folder


def test_words_of_a_speechbrain_recogniser(given, command, recogniser, tmp_path):
    from speechbrain.inference.ASR import EncoderASR
    from speechbrain.utils.edit_distance import accumulatable_wer_stats

    from unified_se_ss.data import audio

    words = tmp_path / "words.csv"
    ids = [item.id for item in read_manifest(given[1], given[2]).items]
    lines = [f'{name},"A b, c!",c b' for name in ids]
    words.write_text("\n".join(["ID,transcript_1,transcript_2", *lines]))
    options = ("--recogniser", str(recogniser), "--transcripts", str(words))
    assert command(*options, "--save_waves", "3") == 0
    rows = read_results(command.out / "results.csv")
    page = (command.out / "report.html").read_text(encoding="utf-8")
    assert "WER of the references" in page and "Unicode NFKC" in page
    # The same words by SpeechBrain's own hands, of the references.
    model = EncoderASR.from_hparams(source=str(recogniser), savedir=str(tmp_path / "sb"))
    for row in rows:
        assert row["words_1"] == 3 and row["words_2"] == 2
        for j, said in ((1, "a b c"), (2, "c b")):
            file = command.out / "wavs" / row["ID"] / f"s{j}_reference.wav"
            signal = audio.resample(audio.read(file)[0], 8000, 16000)
            heard, _ = model.transcribe_batch(torch.from_numpy(signal)[None], torch.ones(1))
            stats = accumulatable_wer_stats([said.split()], [heard[0].split()])
            errors = stats["insertions"] + stats["deletions"] + stats["substitutions"]
            assert row[f"word_errors_reference_{j}"] == errors
            assert row[f"wer_reference_{j}"] == pytest.approx(
                100 * errors / len(said.split())
            )


@pytest.mark.parametrize("broken", [None, "model: !new:no.such.Module", "modules: {}"])
def test_what_is_no_recogniser_is_named(given, command, tmp_path, capsys, broken):
    folder = tmp_path / "asr"
    folder.mkdir()
    if broken is not None:
        (folder / "hyperparams.yaml").write_text(broken)
    words = tmp_path / "words.csv"
    words.write_text(
        "ID,transcript_1,transcript_2\n" + "".join(f"test-{i},a,b\n" for i in range(3))
    )
    assert command("--recogniser", str(folder), "--transcripts", str(words)) == 2
    assert str(folder) in capsys.readouterr().err


# ------------------------------------------------------------------ every kind of model


def binaural(folder):
    """A binaural model, a manifest of two mixtures, and the row of an item."""
    made, rows = small_binaural(), []
    write_native(made, folder)
    for number, samples in enumerate((4000, 4500)):
        sources = [noise(2, samples, 10 * number + j) for j in range(2)]
        stems = {"mixture": sum(sources), "s1": sources[0], "s2": sources[1]}
        rows.append(written(folder, f"item{number}", stems, 8000))
        rows[-1] |= {"azimuth_1": -30, "elevation_1": 0, "azimuth_2": 40, "elevation_2": 0}

    def row_of(item):
        mixture, s1, s2 = (soundfile.read(item.paths[s])[0].T for s in stems)
        with torch.no_grad():
            estimates = made.network(torch.from_numpy(mixture).float()[None])[0].numpy()
        signals = {
            "mixture": mixture,
            "estimates": estimates,
            "targets": np.stack([s1, s2]),
        }
        signals["directions"] = np.array([[-30, 0], [40, 0]])
        return score_binaural(item.id, signals, (), 8000)

    return rows, row_of


def guided(folder):
    """The same of GSENet: recordings of a microphone and a beamformer."""
    made = small_gsenet()
    write_native(made, folder)
    raw, beamformed = noise(2, 8000)
    stems = {"raw": raw, "beamformed": beamformed, "target": 0.5 * (raw + beamformed)}
    rows = [written(folder, "a", stems, 16000)]
    rows[0] |= {"delay": 0, "target_delay": 0, "level": 0, "target_level": 0}

    def row_of(item):
        signals = {s: soundfile.read(item.paths[s], dtype="float32")[0] for s in stems}
        inputs = torch.from_numpy(np.stack([signals["raw"], signals["beamformed"]]))[None]
        with torch.no_grad():
            signals["enhanced"] = made.network(inputs)[0].numpy()
        return score_guided("a", signals, (), 16000)

    return rows, row_of


def recognised(folder):
    """The same of a recogniser; of the second utterance there is no clean recording."""
    from test_recogniser_inference import make_run, talk

    export(make_run(folder / "run"), folder / "shared")
    for path in (folder / "shared").iterdir():
        path.rename(folder / path.name)
    rows = [
        written(folder, n, {"noisy": talk(s), "clean": 0.9 * talk(s)}, 8000)
        for n, s in (("a", 1.0), ("b", 1.2))
    ]
    rows[0] |= {"transcript": "a dog sings", "has_clean": "yes"}
    rows[1] |= {"transcript": "the river", "has_clean": "no"}
    recognizer = Recognizer.from_folder(folder, "cpu")

    def row_of(item):
        noisy, clean = (
            soundfile.read(item.paths[s], dtype="float32")[0] for s in ("noisy", "clean")
        )
        ((text, enhanced),) = recognizer.recognise_batch(torch.from_numpy(noisy)[None])
        signals = {"transcript": item.attributes["transcript"], "recognised": {"": text}}
        if item.id == "a":
            signals |= {
                "mixture": noisy,
                "estimates": enhanced[None].numpy(),
                "targets": clean[None],
            }
        return score_recognition(item.id, signals, (), 8000)

    return rows, row_of


def written(folder, name, stems, rate):
    """Wavs of stems, and their row of a manifest."""
    row = {"ID": name, "duration": 0.0, "sample_rate": rate}
    for stem, signal in stems.items():
        path = folder / f"{name}_{stem}.wav"
        soundfile.write(path, signal.T, rate, subtype="FLOAT")
        row |= {stem: str(path), "duration": signal.shape[-1] / rate}
    return row


@pytest.mark.parametrize("kind", [binaural, guided, recognised])
def test_every_kind_of_model_is_scored_by_its_recipes_rows(kind, tmp_path, capsys):
    rows, row_of = kind(tmp_path)
    write_manifest(tmp_path / "items.csv", rows, {})
    command = ["evaluate", str(tmp_path), str(tmp_path / "items.csv"), "--device", "cpu"]
    command += ["-o", str(tmp_path / "out"), "--jobs", "1", "--save_waves", "1"]
    assert main(command) == 0, capsys.readouterr().err
    found = read_results(tmp_path / "out" / "results.csv")
    stems = [key for key, value in rows[0].items() if str(value).endswith(".wav")]
    items = read_manifest(tmp_path / "items.csv", stems=stems).items
    assert [row["ID"] for row in found] == [item.id for item in items]
    for row, item in zip(found, items):
        for key, value in row_of(item).items():
            value = None if value == "" else value  # no words
            expected = (
                value if not isinstance(value, float) else pytest.approx(value, abs=1e-2)
            )
            assert row[key] == expected, key
    assert (tmp_path / "out" / "report.html").is_file()
    assert len(list((tmp_path / "out" / "wavs").iterdir())) == 1
    assert main([*command, "--force", "--metrics", "wer", "--recogniser", "x"]) == 2
    assert "metrics: 'wer'; expected some of: si_snr" in capsys.readouterr().err
