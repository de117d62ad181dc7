"""What users are told: file, line, key, what was expected, and what to do."""

from __future__ import annotations

import errno
import os
import pydoc
import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from fuzzing import check_message

from unified_se_ss import __main__ as command_line
from unified_se_ss import crash, training
from unified_se_ss.data.demo.corpus import prepare_demo_corpus
from unified_se_ss.errors import UserError
from unified_se_ss.training.aliases import ALIASES
from unified_se_ss.training.overrides import KnownKeys
from unified_se_ss.training.values import (
    COMMON,
    Keys,
    ListOf,
    Number,
    Switch,
    Text,
    kind_of,
)

ROOT = Path(__file__).parent.parent
YAML = """\
seed: 1
output_folder: !ref results/<seed>
lr: 0.1 # of the optimizer
weight: 2
gains: [1, 2]
use_bias: True
data_folder: !PLACEHOLDER # recordings
anything: null
options: {}

layer: !new:torch.nn.Linear
    in_features: 3
    out_features: !ref <weight>
    bias: !ref <use_bias>

optimizer: !name:torch.optim.Adam
    lr: !ref <lr>

modules:
    layer: !ref <layer>
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the YAML file a.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(YAML)
    return tmp_path


def load(*arguments, text=None):
    """Options and YAML file, as a recipe loads them."""
    if text is not None:
        Path("a.yaml").write_text(text)
    return training.load_hparams(training.parse_options(["a.yaml", *arguments], ""))


def told(*arguments, text=None) -> str:
    """What is said instead."""
    with pytest.raises(UserError) as error:
        load(*arguments, text=text)
    check_message(str(error.value))
    return str(error.value)


def replaced(old, new) -> str:
    """The YAML file with something else in it."""
    assert old in YAML
    return YAML.replace(old, new).replace("!PLACEHOLDER", "data")


# ------------------------------------------------------------------ keys and values


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--use_bais", "1"],
            "--use_bais: a.yaml has no such key; did you mean --use_bias? (a.yaml, line 6)",
        ),
        (
            ["--use-bias", "True"],
            "--use-bias: a.yaml has no such key; did you mean --use_bias? (a.yaml, line 6)",
        ),
        (
            ["--devize", "cpu"],
            "--devize: a.yaml has no such key; did you mean --device?",
        ),
        (
            ["--xyzzy", "1"],
            "--xyzzy: a.yaml has no such key; see --help for the keys it has",
        ),
        (
            ["--in_features", "4"],
            "--in_features: a.yaml has no such key; did you mean --layer.in_features? "
            "(a.yaml, line 12)",
        ),
        (
            ["--lr"],
            "--lr: no value was given; expected --lr VALUE (null for none; a.yaml, line 3)",
        ),
        (
            ["--lr", "fast"],
            "--lr: is 'fast'; expected a number, 0 or more (a.yaml, line 3: 0.1)",
        ),
        (["--lr", "-1"], "--lr: is -1; expected 0 or more (a.yaml, line 3: 0.1)"),
        (["--lr", ".nan"], "--lr: is nan; expected a finite number (a.yaml, line 3: 0.1)"),
        (
            ["--lr", "null"],
            "--lr: is null; expected a number, 0 or more (a.yaml, line 3: 0.1)",
        ),
        (
            ["--seed", "1.5"],
            "--seed: is 1.5; expected a whole number, 0 or more and 4294967295 or less "
            "(a.yaml, line 1: 1)",
        ),
        (
            ["--use_bias", "yes"],
            "--use_bias: is 'yes'; expected True or False (a.yaml, line 6: True)",
        ),
        (["--weight", "[2]"], "--weight: is [2]; expected a number (a.yaml, line 4: 2)"),
        (
            ["--gains", "[1,", "two]"],
            "--gains: is [1, 'two']; expected a list, each element a number, but its element "
            "2 is 'two' (a.yaml, line 5: [1, 2])",
        ),
        (
            ["--gains", "[]"],
            "--gains: is []; expected a list of one element or more (a.yaml, line 5: [1, 2])",
        ),
        (
            ["--gains", "[1"],
            "--gains: '[1' is not valid YAML (expected ',' or ']', but got '<stream end>'); "
            "expected such as [1, 2] or {key: value}, in quotes for the shell",
        ),
        (
            ["--output_folder="],
            "--output_folder: is ''; expected a text (a.yaml, line 2: !ref results/<seed>)",
        ),
        (
            ["--data_folder", "null"],
            "--data_folder: is null; expected a text (a.yaml, line 7: !PLACEHOLDER )",
        ),
        (
            ["--optimizer", "3"],
            "--optimizer: is 3; expected keys with values, such as --optimizer.lr VALUE or "
            "--optimizer '{lr: VALUE}' (a.yaml, line 16: !name:torch.optim.Adam)",
        ),
        (
            ["--options", "3"],
            "--options: is 3; expected keys with values, such as {key: value} (a.yaml, line 9: {})",
        ),
        (["--lr.x", "3"], "--lr.x: lr has no keys in it; give --lr VALUE (a.yaml, line 3)"),
        (
            ["--optimizer.lr", "-3"],
            "--optimizer.lr: is -3; expected 0 or more (a.yaml, line 17)",
        ),
        (
            ["--layer.bias", "3"],
            "--layer.bias: is 3; expected True or False (a.yaml, line 14)",
        ),
        (
            ["--modules.layer", "3"],
            "--modules.layer: is 3; expected keys with values (a.yaml, line 20)",
        ),
        (
            ["--precision", "fp64"],
            "--precision: is 'fp64'; expected one of: fp32, fp16, bf16 or auto",
        ),
        (["--debug_batches", "few"], "--debug_batches: is 'few'; expected a whole number"),
        (["--device", "gpu"], "--device: is 'gpu'; expected cpu, cuda, or such as cuda:0"),
        (
            ["--device", "meta"],
            "--device: is 'meta'; expected cpu, cuda, or such as cuda:0",
        ),
        (
            ["--grad_accumulation_factor", "0"],
            "--grad_accumulation_factor: is 0; expected 1 or more",
        ),
        (["--max_grad_norm", "nan"], "--max_grad_norm: is nan; expected a finite number"),
        (["--debug=True"], "--debug: is a switch; it takes no value"),
        (
            ["words"],
            "'words': was not understood; expected: train.py HPARAMS.yaml [--key value ...]; "
            "a switch such as --debug takes no value",
        ),
        (
            ["b.yaml"],
            "b.yaml: a second YAML file, after a.yaml; expected: train.py HPARAMS.yaml "
            "[--key value ...]",
        ),
        (["--lr", "a\x00"], r"--lr: 'a\x00' holds characters that are not text"),
        (
            ["--anything", "\udcff"],
            r"--anything: '\udcff' holds characters that are not text",
        ),
    ],
)
def test_a_wrong_option_is_told_with_what_was_expected(folder, arguments, message):
    assert told(*arguments) == message


def test_an_open_placeholder_is_told_with_what_belongs_there(folder):
    assert told() == (
        "data_folder: not set in a.yaml, line 7; give --data_folder VALUE (recordings)"
    )
    nested = replaced("in_features: 3", "in_features: !OPEN # inputs")
    nested = nested.replace("!OPEN", "!PLACEHOLDER")
    assert told(text=nested) == (
        "layer.in_features: not set in a.yaml, line 12; give --layer.in_features VALUE "
        "(inputs)"
    )
    assert load("--layer.in_features", "7", text=nested)["layer"].in_features == 7


def test_values_within_objects_are_replaced(folder):
    data = ["--data_folder", "data"]
    hparams = load(*data, "--optimizer.lr", "1e-3", "--optimizer.amsgrad", "True")
    assert hparams["optimizer"].keywords == {"lr": 0.001, "amsgrad": True}
    hparams = load(*data, "--optimizer", "{lr: 1e-3, betas: [0.5, 0.9]}", "--lr", "7")
    assert hparams["optimizer"].keywords == {"lr": 0.001, "betas": [0.5, 0.9]}
    assert hparams["lr"] == 7
    hparams = load(*data, "--options", "{new: {deep: 1}}", "--layer.out_features=5")
    assert hparams["options"] is not None and hparams["layer"].out_features == 5


@pytest.mark.parametrize(
    "text",
    [
        "(a, b)",
        "(a: [)",
        "1e5",
        "yes",
        "2024-01-01",
        "a: b",
        "#1",
        "C:\\x",
        "ü b",
        "*",
        "7",
    ],
)
def test_text_stays_as_it_was_typed(folder, text):
    """Nothing in it is taken for YAML, a tuple, a number or a date."""
    assert load("--data_folder", text)["data_folder"] == text
    assert load("--data_folder", "d", "--output_folder", text)["output_folder"] == text


def test_what_the_file_itself_holds_is_checked(folder):
    assert told(text=replaced("lr: 0.1", "lr: fast")) == (
        "a.yaml, line 3: lr: is 'fast'; expected a number, 0 or more"
    )
    assert told(text=replaced("seed: 1", "seed: -1")) == (
        "a.yaml, line 1: seed: is -1; expected 0 or more"
    )
    # HyperPyYAML reads these as numbers, and no as a text, which would be true.
    assert load(text=replaced("lr: 0.1", "lr: 1e-3"))["lr"] == 0.001
    assert told(text=replaced("weight: 2", "tensorboard: no")) == (
        "a.yaml, line 4: tensorboard: is 'no'; expected True or False"
    )


@pytest.mark.parametrize("name", sorted(ROOT.glob("**/hparams/*.yaml")))
def test_every_key_of_every_recipe_that_is_a_number_has_a_range_or_a_reason(name):
    """A new number gets a line in the table of values, or is named here."""
    without = {"blocks", "heads"}  # numbers in one recipe, something else in another
    known = KnownKeys(name)
    bare = [
        key
        for key, value in known.values.items()
        if isinstance(value, (int, float)) and kind_of(key, value) == Number()
    ]
    assert set(bare) <= without


@pytest.mark.parametrize(
    "kind, right, wrong",
    [
        (Number(least=1, whole=True), [1, 7], [0, 1.5, True, None, "1", [1], float("nan")]),
        (Number(more_than=0, null=True), [0.1, None], [0, -1, "", float("inf")]),
        (Switch(), [True, False], [0, 1, None, "yes"]),
        (Text(), ["a"], ["", "  ", None, 1, ["a"]]),
        (ListOf(Text(), null=True), [["a"], None], ["a", [], [1], {}]),
        (Keys(), [{}, {"a": 1}], [[], None, "a"]),
    ],
)
def test_kinds_know_right_from_wrong(kind, right, wrong):
    assert [kind.error_for(value) for value in right] == [None] * len(right)
    assert all(kind.error_for(value) for value in wrong)


def test_null_is_offered_only_where_it_makes_sense():
    for key, kind in COMMON.items():
        expected = kind.error_for(object())
        assert (kind.error_for(None) is None) == expected.endswith(", or null"), key


# ------------------------------------------------------------------ the YAML file


@pytest.mark.parametrize(
    "text, message",
    [
        (
            replaced("gains: [1, 2]", "gains: [1, 2"),
            "a.yaml, line 6, column 9: not valid YAML: expected ',' or ']', but got ':'",
        ),
        (
            replaced("lr: 0.1 #", "lr: @x #"),
            "a.yaml, line 3, column 5: not valid YAML: found character '@' that cannot "
            "start any token",
        ),
        (
            replaced("weight: 2", "lr: 2"),
            "a.yaml, line 4: the key lr stands there twice, first on line 3; remove one of "
            "the two",
        ),
        ("- a\n- b\n", "a.yaml: expected keys and values, not list"),
        (
            replaced("torch.nn.Linear", "torch.nn.Linaer"),
            "a.yaml, line 11: layer: there is no torch.nn.Linaer; did you mean "
            "torch.nn.Linear?",
        ),
        (
            replaced("torch.nn.Linear", "tourch.nn.Linear"),
            "a.yaml, line 11: layer: there is no tourch.nn.Linear; no module tourch is "
            "installed",
        ),
        (
            replaced("in_features: 3", "in_fetures: 3"),
            "a.yaml, line 11: layer: torch.nn.Linear got an unexpected keyword argument "
            "'in_fetures'; it takes: in_features, out_features, bias, device, dtype",
        ),
        (
            replaced("    in_features: 3\n", ""),
            "a.yaml, line 11: layer: torch.nn.Linear missing 1 required positional argument: "
            "'in_features'; it takes: in_features, out_features, bias, device, dtype",
        ),
        (
            replaced("    lr: !ref <lr>", "    rl: !ref <lr>"),
            "a.yaml, line 16: optimizer: torch.optim.Adam got an unexpected keyword argument "
            "'rl'; it takes: params, lr, betas, eps, weight_decay, amsgrad, foreach, "
            "maximize, capturable, differentiable, fused, decoupled_weight_decay",
        ),
        (
            replaced("!ref <use_bias>", "!ref <use_bais>"),
            "a.yaml, line 14: <use_bais> names no key of the file; did you mean <use_bias>?",
        ),
        (
            replaced("weight: 2", "weight: !ref <weight>"),
            "a.yaml, line 4: weight: <weight> leads back to itself",
        ),
        (
            replaced("anything: null", "anything: !reff <lr>"),
            "a.yaml, line 8: anything: !reff is no tag of HyperPyYAML; there are !new:, "
            "!name:, !apply:, !module:, !ref, !copy, !include:, !applyref:, !PLACEHOLDER",
        ),
        (
            replaced("lr: !ref <lr>", "betas: [2, 3]"),
            "a.yaml, line 16: optimizer: Invalid beta parameter at index 0: 2",
        ),
        (
            replaced("layer: !ref <layer>", "layer: !ref <gains>"),
            "a.yaml, line 20: modules.layer: is [1, 2]; expected a torch.nn.Module, made "
            "with !new: or a reference to one",
        ),
        (
            replaced("!new:torch.nn.Linear", "!new:torch.nn"),
            "a.yaml, line 11: layer: !new:torch.nn should be a class, but is <module "
            f"'torch.nn' from '{torch.nn.__file__}'>",
        ),
    ],
)
def test_a_wrong_file_is_told_with_its_line(folder, text, message):
    assert told(text=text) == message


def test_a_file_that_is_no_text_is_told(folder):
    (folder / "a.yaml").write_bytes("seed: 1\nname: ü\n".encode("latin1"))
    assert told() == "a.yaml, line 2: not text in UTF-8; save it in that encoding"


def test_a_module_that_cannot_be_imported_is_told(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    (folder / "needy.py").write_text("import no_such_package\n")
    assert told(text=replaced("torch.nn.Linear", "needy.Linear")) == (
        "a.yaml, line 11: layer: needy.Linear could not be imported: ModuleNotFoundError: "
        "No module named 'no_such_package'"
    )


def test_what_a_constructor_says_is_told_with_key_and_line(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    (folder / "picky.py").write_text(
        textwrap.dedent(
            """
            class Picky:
                def __init__(self, kind):
                    raise {"value": ValueError("kind is odd"), "key": KeyError("kind"),
                           "memory": MemoryError(), "zero": ZeroDivisionError("by 0")}[kind]
            """
        )
    )
    text = "\nobject: !new:picky.Picky\n    kind: value\n"
    assert told(text=text) == "a.yaml, line 2: object: kind is odd"
    assert (
        told("--object.kind", "zero") == "a.yaml, line 2: object: ZeroDivisionError: by 0"
    )
    assert told("--object.kind", "key") == "a.yaml, line 2: object: KeyError: no kind"
    assert "line 2: object: the memory is full" in told("--object.kind", "memory")


def test_a_key_that_the_recipe_needs_and_the_file_lacks_is_named(folder):
    hparams = load("--data_folder", "data")
    assert hparams.get("batch_size") is None
    with pytest.raises(UserError, match="a.yaml: has no key batch_size, which this recipe"):
        hparams["batch_size"]


# ------------------------------------------------------------------ crashes


def leave(monkeypatch, capsys, error, *arguments):
    """Raise an error in a recipe: the exit code and what was said."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])

    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        training.run(main)
    return stop.value.code, capsys.readouterr().err


MENDABLE = {
    "user": (UserError("lr: is -1"), "lr: is -1"),
    "disk": (
        OSError(errno.ENOSPC, "No space", "a.wav"),
        "a.wav: the disk is full; make room",
    ),
    "quota": (OSError(errno.EDQUOT, "Quota", "a"), "a: the disk quota is used up"),
    "permission": (PermissionError(errno.EACCES, "No", "/x"), "/x: permission denied"),
    "read only": (OSError(errno.EROFS, "No", "/x"), "/x: the disk can only be read"),
    "files": (OSError(errno.EMFILE, "Too many"), "too many open files; raise the limit"),
    "gone": (FileNotFoundError(errno.ENOENT, "No such file", "a"), "a: No such file"),
    "memory": (MemoryError("Unable to allocate 9 GiB"), "the memory is full .*batch_size"),
    "torch": (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory is full"),
    "GPU": (torch.OutOfMemoryError("CUDA out of memory"), "memory is full .*batch_size"),
    "worker": (
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        "reads",
    ),
    "package": (
        ModuleNotFoundError("No module named 'pesq'", name="pesq"),
        "pip install pesq",
    ),
    "key": (
        AttributeError("'types.SimpleNamespace' object has no attribute 'lr'"),
        "the YAML file has no key 'lr', which this recipe needs",
    ),
}


@pytest.mark.parametrize("kind", MENDABLE)
def test_what_the_machine_lacks_is_one_message(folder, monkeypatch, capsys, kind):
    error, words = MENDABLE[kind]
    code, said = leave(monkeypatch, capsys, error)
    assert code == 2 and said.startswith("\nerror: ") and said.count("\n") == 2
    check_message(said)
    with pytest.raises(AssertionError):
        check_message(leave(monkeypatch, capsys, error, "--debug")[1])
    assert re.search(words, said)
    assert not (folder / "crash.txt").exists()


def test_a_bug_is_one_message_and_a_file(folder, monkeypatch, capsys):
    monkeypatch.setattr(crash, "_folder", folder)
    code, said = leave(
        monkeypatch, capsys, ZeroDivisionError("division by zero"), "--lr", "1"
    )
    assert code == 1
    assert said == (
        "\nerror: this is a bug of ours: ZeroDivisionError: division by zero\n"
        f"The traceback is in {folder / 'crash.txt'}; please report it, or run again with "
        "--debug to see it here\n"
    )
    report = (folder / "crash.txt").read_text()
    assert report.startswith("command: train.py --lr 1\n")
    assert "Traceback (most recent call last)" in report and "in main" in report


def test_a_bug_shows_its_traceback_with_debug(folder, monkeypatch, capsys):
    code, said = leave(monkeypatch, capsys, ZeroDivisionError("by zero"), "--debug")
    assert code == 1 and "Traceback (most recent call last)" in said
    assert "this is a bug of ours" in said and not (folder / "crash.txt").exists()


def test_each_rank_has_a_report_of_its_own(folder, monkeypatch, capsys):
    monkeypatch.setattr(crash, "_folder", folder)
    monkeypatch.setenv("RANK", "1")
    code, said = leave(monkeypatch, capsys, ZeroDivisionError())
    assert code == 1 and (folder / "crash.rank1.txt").is_file()


def test_a_report_that_cannot_be_written_is_no_second_error(folder, monkeypatch, capsys):
    monkeypatch.setattr(crash, "_folder", folder / "none")
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
    monkeypatch.setattr(crash, "_forget_output", lambda: None)
    code, said = leave(monkeypatch, capsys, BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert (code, said) == (141, "")


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    "error, code", [(UserError("x: is y"), 2), (ZeroDivisionError(), 1)]
)
def test_the_command_line_tells_likewise(folder, monkeypatch, capsys, error, code, debug):
    monkeypatch.setattr(crash, "_folder", folder)

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
def test_a_full_disk_is_told_by_name():
    with pytest.raises(OSError) as error, open("/dev/full", "w") as file:
        file.write("x")
        file.flush()
    assert "the disk is full; make room" in crash.user_message(error.value)


def test_a_yaml_with_former_names_loads_with_one_warning(tmp_path, caplog):
    file = tmp_path / "a.yaml"
    file.write_text("corpus: !name:unified_se_ss.data.demo_corpus.prepare_demo_corpus\n")
    hparams = training.load_hparams(training.parse_options([str(file)], ""))
    assert hparams["corpus"] is prepare_demo_corpus
    (warning,) = [r for r in caplog.records if "former names" in r.message]
    assert (
        "data.demo_corpus.prepare_demo_corpus is now data.demo.corpus." in warning.message
    )


def test_every_former_name_leads_to_what_is_there():
    for name in ALIASES.values():
        assert pydoc.locate(f"unified_se_ss.{name}") is not None, name
