"""What is printed of an error that ends a program: one message, a bug's traceback in a file."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from fuzzing import check_message

from unified_se_ss import __main__ as command_line
from unified_se_ss import errors, training
from unified_se_ss.errors import UserError

DEMO = str(Path(__file__).parent.parent / "hparams/demo.yaml")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of crash reports."""
    monkeypatch.setattr(errors, "_crash_folder", tmp_path)
    return tmp_path


def leave(monkeypatch, capsys, error, *arguments):
    """Raise an error in a recipe: the exit code and what was said."""
    monkeypatch.setattr(sys, "argv", ["train.py", DEMO, *arguments])

    def main(options):
        raise error

    with pytest.raises(SystemExit) as stop:
        training.run(main, "")
    return stop.value.code, capsys.readouterr().err


KILLED = "DataLoader worker (pid 7) is killed by signal: Killed."
NO_BUGS = {
    "lr: is -1": UserError("lr: is -1"),
    "a.wav: the disk is full; make room": OSError(errno.ENOSPC, "No space", "a.wav"),
    "a: the disk is full": OSError(errno.EDQUOT, "Quota", "a"),
    "/x: Denied": PermissionError(errno.EACCES, "Denied", "/x"),
    "a: No such file": FileNotFoundError(errno.ENOENT, "No such file", "a"),
    "the memory is full .*batch_size": MemoryError("Unable to allocate 9 GiB"),
    "memory is full": RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    "memory is full .*batch_size": torch.OutOfMemoryError("CUDA out of memory"),
    "reads": RuntimeError(KILLED),
    "pip install pesq": ModuleNotFoundError("No module named 'pesq'", name="pesq"),
}


@pytest.mark.parametrize("words", NO_BUGS)
def test_what_the_machine_lacks_is_one_message(folder, monkeypatch, capsys, words):
    error = NO_BUGS[words]
    code, said = leave(monkeypatch, capsys, error)
    assert code == 2 and said.startswith("\nerror: ") and said.count("\n") == 2
    check_message(said)
    with pytest.raises(AssertionError):
        check_message(leave(monkeypatch, capsys, error, "--debug")[1])
    assert re.search(words, said)
    assert not (folder / "crash.txt").exists()


def test_a_bug_is_one_message_and_a_file(folder, monkeypatch, capsys):
    error = ZeroDivisionError("division by zero")
    code, said = leave(monkeypatch, capsys, error, "--lr", "1")
    assert code == 1
    assert said == (
        "\nerror: this is a bug of ours: ZeroDivisionError: division by zero\n"
        f"The traceback is in {folder / 'crash.txt'}; please report it, or run again with "
        "--debug to see it here\n"
    )
    report = (folder / "crash.txt").read_text()
    assert report.startswith(f"command: train.py {DEMO} --lr 1\n")
    assert "Traceback (most recent call last)" in report and "in main" in report


def test_a_bug_shows_its_traceback_with_debug(folder, monkeypatch, capsys):
    code, said = leave(monkeypatch, capsys, ZeroDivisionError("by zero"), "--debug")
    assert code == 1 and "Traceback (most recent call last)" in said
    assert "this is a bug of ours" in said and not (folder / "crash.txt").exists()


def test_each_rank_has_a_report_of_its_own(folder, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    code, said = leave(monkeypatch, capsys, ZeroDivisionError())
    assert code == 1 and (folder / "crash.rank1.txt").is_file()


def test_a_report_that_cannot_be_written_is_no_second_error(folder, monkeypatch, capsys):
    monkeypatch.setattr(errors, "_crash_folder", folder / "none")
    code, said = leave(monkeypatch, capsys, ZeroDivisionError("by zero"))
    assert code == 1 and "The traceback is in no file, for none could be written" in said


class Broken(torch.utils.data.Dataset):
    """Its items are errors."""

    def __len__(self):
        return 1

    def __getitem__(self, place):
        raise UserError("a.wav: is corrupt")


def test_what_a_reading_process_says_comes_without_its_traceback(
    folder, monkeypatch, capsys
):
    with pytest.raises(UserError) as error:
        next(iter(torch.utils.data.DataLoader(Broken(), num_workers=1)))
    assert "Traceback" in str(error.value)
    code, said = leave(monkeypatch, capsys, error.value)
    assert (code, said) == (2, "\nerror: a.wav: is corrupt\n")


def test_a_closed_pipe_is_nobodys_fault(folder, monkeypatch, capsys):
    monkeypatch.setattr(errors, "_discard_output", lambda: None)
    code, said = leave(monkeypatch, capsys, BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert (code, said) == (141, "")


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    "error, code", [(UserError("x: is y"), 2), (ZeroDivisionError(), 1)]
)
def test_the_command_line_does_likewise(folder, monkeypatch, capsys, error, code, debug):

    def broken(options):
        raise error

    monkeypatch.setattr(command_line, "check_data", broken)
    arguments = ["check", str(folder)] + ["--debug"] * debug
    assert command_line.main(arguments) == code
    said = capsys.readouterr().err
    assert ("Traceback (most recent" in said) == debug
    assert (folder / "crash.txt").exists() == (code == 1 and not debug)


def test_an_interrupt_of_the_command_line_is_quiet(folder, monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "check_data", interrupted)
    assert command_line.main(["check", str(folder)]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")
def test_a_full_disk_is_named():
    with pytest.raises(OSError) as error, open("/dev/full", "w") as file:
        file.write("x")
        file.flush()
    assert "the disk is full; make room" in errors.user_message(error.value)
