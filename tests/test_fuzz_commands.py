"""Every command of ``unified_se_ss`` with arguments that make no sense: one message each."""

from __future__ import annotations

import itertools

import pytest
from fuzzing import noise
from librimix import make_tree

from unified_se_ss import __main__ as command_line
from unified_se_ss import errors
from unified_se_ss.data import audio

ODD = [
    *". nothing text.wav a.csv run export /dev/null empty empty/x -1 0 ü * [ ~ -".split(),
    *("", "x" * 300, "a\nb", "\udcff"),
]
#: {}: what is odd.
COMMANDS = [
    "check {}",
    "check Libri2Mix --manifests {}",
    "check Libri2Mix --mode {}",
    "check Libri2Mix --n_speakers {}",
    "check Libri2Mix --sample_rate {}",
    "separate {} good.wav -o out",
    "separate export {} -o out",
    "enhance run good.wav -o {} --device cpu",
    "enhance export good.wav -o out --device {}",
    "export {} -o out",
    "export run -o out --format {}",
    "evaluate {} a.csv",
    "evaluate run {}",
    "evaluate export a.csv --metrics {}",
    "demo-corpus out --demo_speech {}",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with things that are not what their names say."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(errors, "_crash_folder", tmp_path)
    make_tree(tmp_path, counts=(1, 1, 1))
    audio.write("good.wav", noise(8000), 8000)
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "a.csv").write_text("ID\n1\n")
    (tmp_path / "empty").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/hyperparams.yaml").write_text("lr: 1\n")
    (tmp_path / "export").mkdir()
    (tmp_path / "export/config.json").write_text('{"kind"')
    (tmp_path / "export/model.safetensors").write_bytes(bytes(50))
    return tmp_path


def test_no_arguments_end_in_a_traceback(folder, capsys):
    tried, refused = 0, 0
    for command, odd in itertools.product(COMMANDS, ODD):
        arguments = [odd if word == "{}" else word for word in command.split()]
        try:
            code = command_line.main(arguments)
        except SystemExit as stop:  # argparse
            code = stop.code
        said = capsys.readouterr().err
        assert code in (0, 1, 2), (arguments, said)  # 1: the tree has faults
        assert "bug of ours" not in said, (arguments, (folder / "crash.txt").read_text())
        assert "Traceback" not in said and len(said) < 2000
        assert code < 2 or "error: " in said
        tried, refused = tried + 1, refused + (code == 2)
    assert tried == len(COMMANDS) * len(ODD) and refused > 0.8 * tried
    assert not (folder / "crash.txt").exists() and not (folder / "out").exists()
