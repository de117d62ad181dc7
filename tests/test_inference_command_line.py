"""``separate`` and ``enhance``: what is read, what is written, what is said."""

import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from small_models import small_model
from test_inference_separator import BandSplit, ratio_db, two_voices

from unified_se_ss.__main__ import main
from unified_se_ss.errors import UserError
from unified_se_ss.inference import pipeline
from unified_se_ss.inference.batch import find_inputs
from unified_se_ss.inference.export import write_native
from unified_se_ss.inference.sound_files import Writer

RATE = 8000


@pytest.fixture
def model(monkeypatch):
    """A stand-in whose two outputs are right; loaded whatever the folder's name."""
    stub = BandSplit()
    monkeypatch.setattr(pipeline, "load_model", lambda *_: stub)
    return stub


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def sound(path, seconds=0.5, sample_rate=RATE, channels=1, **how):
    """A mixture of two voices in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voices = two_voices(seconds, sample_rate=sample_rate).sum(0)
    signal = voices if channels == 1 else np.stack([voices] * channels, 1)
    soundfile.write(path, signal, sample_rate, **how)
    return path


def written(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def report(capsys):
    """Standard output as the one JSON object that it is."""
    return json.loads(capsys.readouterr().out)


# ------------------------------------------------------------------ a file


@pytest.mark.parametrize("sample_rate", [8000, 44100])
def test_one_file_per_source_of_the_same_length_rate_and_level(
    model, tmp_path, out, sample_rate, capsys
):
    path = sound(tmp_path / "in" / "talk.wav", 1.1, sample_rate, subtype="FLOAT")
    assert main(["separate", "MODEL", str(path), "-o", str(out)]) == 0
    assert written(out) == ["talk_source1.wav", "talk_source2.wav"]
    for number, voice in enumerate(two_voices(1.1, sample_rate=sample_rate), 1):
        source, rate = soundfile.read(out / f"talk_source{number}.wav")
        assert rate == sample_rate and len(source) == len(voice)
        assert ratio_db(source - voice, voice) < -20
        assert soundfile.info(out / f"talk_source{number}.wav").subtype == "FLOAT"
    assert "1 file done, 0 failed; 1.1 s of sound" in capsys.readouterr().out
    assert main(["enhance", "MODEL", str(path), "-o", str(out / "e")]) == 0
    assert written(out / "e") == ["talk_enhanced.wav"]


@pytest.mark.parametrize(
    "name, how",
    [
        ("a.wav", {"subtype": "PCM_16"}),
        ("a.wav", {"subtype": "PCM_24"}),
        ("a.wav", {"subtype": "ULAW"}),
        ("a.flac", {}),
        ("a.ogg", {}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
        ("a.mp3", {"format": "MP3"}),
        ("a.aiff", {}),
        ("a.w64", {}),
        ("name_without_ending", {"format": "WAV"}),
    ],
)
def test_formats(model, tmp_path, out, name, how):
    path = sound(tmp_path / "in" / name, 1.0, 48000 if "opus" in name else 16000, **how)
    assert main(["separate", "MODEL", str(path), "-o", str(out)]) == 0
    frames = soundfile.info(path).frames
    for output in out.iterdir():
        assert soundfile.info(output).frames == frames
    assert len(list(out.iterdir())) == 2


@pytest.mark.parametrize("options", [["--downmix"], ["--channel", "1"]])
def test_stereo_needs_a_word(model, tmp_path, out, options, capsys):
    path = sound(tmp_path / "in" / "stereo.wav", channels=2)
    assert main(["separate", "MODEL", str(path), "-o", str(out)]) == 1
    assert "2 channels" in capsys.readouterr().err
    assert written(out) == []
    assert main(["separate", "MODEL", str(path), "-o", str(out), *options]) == 0
    assert len(written(out)) == 2


def test_16_bit_never_clips_and_turns_all_down_alike(model, tmp_path, out, capsys):
    path = tmp_path / "in" / "loud.wav"
    path.parent.mkdir()
    mixture = 9 * two_voices(1).sum(0)
    soundfile.write(path, mixture, RATE, "FLOAT")
    main(["separate", "MODEL", str(path), "-o", str(out), "--json"])
    assert report(capsys)["files"][0]["turned_down_db"] == 0
    plain = [soundfile.read(out / f"loud_source{j}.wav")[0] for j in (1, 2)]
    assert np.abs(plain).max() > 1
    args = ["separate", "MODEL", str(path), "-o", str(out / "16"), "--json"]
    main([*args, "--subtype", "pcm16"])
    entry = report(capsys)["files"][0]
    assert entry["full_scale_samples"] == (np.abs(mixture) >= 1 - 2**-15).sum() > 0
    gain = 10 ** (-entry["turned_down_db"] / 20)
    assert gain == pytest.approx((1 - 2**-15) / np.abs(plain).max(), rel=1e-4)
    for number, source in enumerate(plain, 1):
        turned, _ = soundfile.read(out / "16" / f"loud_source{number}.wav")
        np.testing.assert_allclose(turned, gain * source, atol=2**-15)
    assert written(out / "16") == ["loud_source1.wav", "loud_source2.wav"]


def test_a_wav_beyond_four_gigabytes_is_rf64(tmp_path):
    block = np.zeros((1, 10), np.float32)
    for samples, kind in ((10, "WAV"), (1_000_000_000, "RF64")):
        Writer([tmp_path / "a.wav"], RATE, samples).write([block])
        assert soundfile.info(tmp_path / "a.wav").format == kind


# ------------------------------------------------------------------ standard input


def feed(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_standard_input(model, tmp_path, out, monkeypatch, capsys):
    path = sound(tmp_path / "in" / "a.wav", 0.7)
    whole = path.read_bytes()
    # A program that writes to a pipe does not know the length yet.
    endless = whole[:40] + b"\xff\xff\xff\xff" + whole[44:]
    for data in (whole, endless):
        feed(monkeypatch, data)
        assert main(["separate", "MODEL", "-", "-o", str(out), "--force", "--json"]) == 0
        entry = report(capsys)["files"][0]
        assert entry["input"] == "standard input" and entry["seconds"] == 0.7
        assert written(out) == ["stdin_source1.wav", "stdin_source2.wav"]


@pytest.mark.parametrize("data", [b"", b"no sound at all", b"RIFF\x00"])
def test_standard_input_that_is_no_sound(model, out, monkeypatch, capsys, data):
    feed(monkeypatch, data)
    assert main(["separate", "MODEL", "-", "-o", str(out)]) == 1
    assert "standard input: is" in capsys.readouterr().err
    assert written(out) == []


# ------------------------------------------------------------------ many files


def test_a_bad_file_is_named_and_the_rest_is_done(model, tmp_path, out, capsys):
    folder = tmp_path / "in"
    sound(folder / "good.wav"), sound(folder / "sub" / "also good.flac")
    (folder / "bad.wav").write_bytes(b"RIFF but nothing else")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "notes.txt").write_text("no sound")
    soundfile.write(folder / "none.wav", np.zeros(0), RATE)
    soundfile.write(folder / "nan.wav", np.r_[np.zeros(4000), np.nan], RATE, "FLOAT")
    sound(folder / "cut.flac", 3.0)
    (folder / "cut.flac").write_bytes((folder / "cut.flac").read_bytes()[:9000])
    missing = folder / "gone.wav"
    args = ["separate", "MODEL", str(folder), str(missing), "-o", str(out), "--json"]
    assert main(args) == 1
    found = report(capsys)
    assert [Path(one["input"]).name for one in found["files"]] == [
        "good.wav",
        "also good.flac",
    ]
    errors = {Path(one["input"]).name: one["error"] for one in found["failed"]}
    words = {
        "bad.wav": "is corrupt or not a sound file",
        "empty.wav": "is empty (0 bytes)",
        "none.wav": "is empty (0 samples)",
        "nan.wav": "sample 4000 (at 0.500 s) is nan",
        "cut.flac": "is damaged, it breaks off at",
        "gone.wav": "does not exist",
    }
    assert set(errors) == set(words)
    for name, word in words.items():
        assert word in errors[name] and name in errors[name]
        assert not list(out.rglob(f"{Path(name).stem}_*"))
    assert (out / "sub" / "also good_source2.wav").is_file()
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


def test_json_is_all_there_is_on_standard_output(model, tmp_path, out, capsys):
    path = sound(tmp_path / "in" / "a.wav", 0.7)
    assert main(["separate", "MODEL", str(path), "-o", str(out), "--json"]) == 0
    found = report(capsys)
    assert found["device"] == "cpu" and found["precision"] == "fp32"
    assert found["seconds"] == 0.7 and found["failed"] == []
    assert found["real_time_factor"] > 0 and found["peak_memory_bytes"] > 1e7
    (entry,) = found["files"]
    assert [Path(p).name for p in entry["outputs"]] == ["a_source1.wav", "a_source2.wav"]
    np.testing.assert_allclose(entry["gains"], [1 / 3, -5], rtol=0.05)
    assert main(["separate", "MODEL", str(path), "-o", str(out), "--json"]) == 2
    assert "exists already" in report(capsys)["error"]


def names(folder, *arguments):
    return [
        one.target.as_posix() for one in find_inputs([str(a) for a in arguments], folder)
    ]


def test_where_outputs_go(tmp_path):
    for name in ("x/a.wav", "x/b/a.wav", "y/a.wav", "y/A.flac", "y/c.mp3"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"...")
    x, y, other = tmp_path / "x", tmp_path / "y", tmp_path / "other"
    assert names(other, x / "a.wav", y / "c.mp3") == ["a", "c"]  # flat
    assert names(other, x) == ["a", "b/a"]  # a folder keeps its subfolders
    assert names(other, x / "a.wav", y / "a.wav") == ["x/a", "y/a"]
    assert names(other, y) == ["A_flac", "a_wav", "c"]
    assert names(other, tmp_path / "*" / "c.*") == ["c"]
    assert names(other, f"{tmp_path}/**/a.wav") == ["x/a", "x/b/a", "y/a"]
    assert names(other, x, x / "a.wav", x / "b" / ".." / "a.wav") == ["a", "b/a"]  # once
    assert names(x / "b", tmp_path) == [
        "x/a",
        "y/A_flac",
        "y/a_wav",
        "y/c",
    ]  # not the output
    for nothing in (tmp_path / "*.wav", other):
        other.mkdir(exist_ok=True)
        with pytest.raises(UserError, match="no sound file there"):
            names(other, nothing)
        with pytest.raises(UserError, match="no sound file there"):  # is not passed over
            names(other, x / "a.wav", nothing)


# ------------------------------------------------------------------ nothing is destroyed


def test_never_overwrites_unless_told(model, tmp_path, out, capsys):
    path = sound(tmp_path / "in" / "a.wav")
    out.mkdir()
    (out / "a_source2.wav").write_text("mine")
    assert main(["separate", "MODEL", str(path), "-o", str(out)]) == 2
    assert "a_source2.wav: exists already (1 of 2" in capsys.readouterr().err
    assert written(out) == ["a_source2.wav"]
    assert (out / "a_source2.wav").read_text() == "mine"
    assert main(["separate", "MODEL", str(path), "-o", str(out), "--force"]) == 0
    assert soundfile.info(out / "a_source2.wav").frames == 4000


def test_never_writes_beside_an_input(model, tmp_path, capsys):
    path = sound(tmp_path / "in" / "a.wav")
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(path.parent)
    for output in (path.parent, tmp_path / "link", tmp_path / "in" / ".." / "in"):
        assert main(["separate", "MODEL", str(path), "-o", str(output), "--force"]) == 2
        assert "beside an input" in capsys.readouterr().err
    assert written(tmp_path / "in") == ["a.wav"] and path.read_bytes() == before


def test_inputs_are_left_as_they_are(model, tmp_path, out):
    path = sound(tmp_path / "in" / "a.wav")
    link = tmp_path / "in" / "link.wav"
    link.symlink_to(path)
    os.chmod(path, stat.S_IRUSR)
    before = (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_nlink)
    assert main(["separate", "MODEL", str(link), "-o", str(out)]) == 0
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_nlink) == before
    assert link.is_symlink() and all(not p.is_symlink() for p in out.iterdir())
    assert written(tmp_path / "in") == ["a.wav", "link.wav"]


def test_a_link_in_the_way_is_not_followed(model, tmp_path, out):
    path = sound(tmp_path / "in" / "a.wav")
    out.mkdir()
    (out / "a_source1.wav").symlink_to(tmp_path / "elsewhere.wav")  # dangling
    assert main(["separate", "MODEL", str(path), "-o", str(out)]) == 2
    assert main(["separate", "MODEL", str(path), "-o", str(out), "--force"]) == 0
    assert not (tmp_path / "elsewhere.wav").exists()
    assert not (out / "a_source1.wav").is_symlink()


# ------------------------------------------------------------------ wrong commands


@pytest.mark.parametrize(
    "options, code, word",
    [
        (["--chunk_seconds", "3"], 2, "at most half of chunk_seconds"),
        (["--channel", "0", "--downmix"], 2, "give one of the two"),
        (["--channel", "3"], 1, "there is no channel 3"),
        (["-o", "{folder}/in/a.wav/below"], 1, "cannot be written"),
    ],
)
def test_wrong_options(model, tmp_path, out, options, code, word, capsys):
    path = sound(tmp_path / "in" / "a.wav")
    options = [option.format(folder=tmp_path) for option in options]
    assert main(["separate", "MODEL", str(path), "-o", str(out), *options]) == code
    assert word in capsys.readouterr().err
    assert not list(tmp_path.rglob("*source*"))


# ------------------------------------------------------------------ for real


CODE = """\
import sys
from unified_se_ss.__main__ import main

code = main()
import unified_se_ss.inference.export

assert not {"speechbrain", "sentencepiece"} & set(sys.modules)  # of recognisers alone
sys.exit(code)
"""


def test_an_exported_model_in_a_process_of_its_own(tmp_path, out):
    """Its peak memory is its own, not that of the large process that starts it."""
    ballast = np.ones(15 * 10**7)  # 1.2 GB
    folder = tmp_path / "model"
    folder.mkdir()
    write_native(small_model(), folder)
    path = sound(tmp_path / "in" / "a.wav", 3.0, 16000)
    command = [sys.executable, "-c", CODE, "separate", str(folder), "-", "-o", str(out)]
    command += ["--json", "--chunk_seconds", "1", "--overlap_seconds", "0.4"]
    root = Path(__file__).parent.parent
    with open(path, "rb") as pipe:
        done = subprocess.run(command, stdin=pipe, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["files"][0]["chunks"] > 3
    assert ballast[::4096].all() and 1e8 < found["peak_memory_bytes"] < 1.2e9
    assert [soundfile.info(output).frames for output in out.iterdir()] == [48000, 48000]


@pytest.mark.slow
def test_an_hour_within_two_gigabytes(tmp_path, out):
    """An hour of 44.1 kHz in stereo."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_native(small_model(), folder)
    path = tmp_path / "in" / "hour.flac"
    path.parent.mkdir()
    minute = np.stack([two_voices(60, sample_rate=44100).sum(0)] * 2, 1)
    with soundfile.SoundFile(path, "w", 44100, 2) as file:
        for _ in range(60):
            file.write(minute)
    command = [sys.executable, "-m", "unified_se_ss", "separate", str(folder), str(path)]
    command += ["-o", str(out), "--json", "--downmix"]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    found = json.loads(done.stdout)
    assert found["seconds"] == 3600
    assert found["peak_memory_bytes"] < 2e9
    print(found["peak_memory_bytes"], found["real_time_factor"])
