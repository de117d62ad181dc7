"""What users read of a wrong option or YAML file: key, file and line, what was expected."""

from __future__ import annotations

import pydoc
import textwrap
from pathlib import Path

import pytest
from fuzzing import check_message

from unified_se_ss import training
from unified_se_ss.aliases import ALIASES
from unified_se_ss.data.demo.corpus import prepare_demo_corpus
from unified_se_ss.errors import UserError
from unified_se_ss.training.options import HparamsFile, kind_like

ROOT = Path(__file__).parent.parent
HPARAMS = sorted(ROOT.glob("**/hparams/*.yaml"))
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


def message(*arguments, text=None) -> str:
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
    "arguments, expected, line",
    [
        ("--use_bais 1", "a.yaml has no such key; did you mean --use_bias?", 6),
        ("--use-bias True", "a.yaml has no such key; did you mean --use_bias?", 6),
        ("--devize cpu", "a.yaml has no such key; did you mean --device?", None),
        ("--xyz 1", "a.yaml has no such key; see --help for the keys it has", None),
        (
            "--in_features 4",
            "a.yaml has no such key; did you mean --layer.in_features?",
            12,
        ),
        (
            "--lr",
            "no value was given; expected --lr VALUE (null for none; a.yaml, line 3)",
            None,
        ),
        ("--lr fast", "is 'fast'; expected a number, 0 or more", 3),
        ("--lr -1", "is -1; expected a number, 0 or more", 3),
        ("--lr .nan", "is nan; expected a number, 0 or more", 3),
        ("--lr null", "is null; expected a number, 0 or more", 3),
        ("--lr a\x00", "is 'a\\x00'; expected a number, 0 or more", 3),
        ("--seed 1.5", "is 1.5; expected a whole number, 0 or more, 4294967295 or less", 1),
        ("--use_bias yes", "is 'yes'; expected True or False", 6),
        ("--weight 2.5", "is 2.5; expected a whole number, 0 or more", 4),
        ("--gains [1, two]", "is [1, 'two']; expected a list, each element a number", 5),
        ("--gains []", "is []; expected a list, each element a number", 5),
        ("--gains [1", "is '[1'; expected a list, each element a number", 5),
        ("--data_folder null", "is null; expected a text", 7),
        (
            "--optimizer 3",
            "is 3; expected keys with values, such as --optimizer.lr VALUE",
            16,
        ),
        ("--options 3", "is 3; expected keys with values", 9),
        ("--options {1: 2}", "1 is no key; expected a name", None),
        ("--lr.x 3", "lr has no keys in it; give --lr VALUE", 3),
        ("--optimizer.lr -3", "is -3; expected a number, 0 or more", 17),
        ("--layer.bias 3", "is 3; expected True or False", 14),
        ("--modules.layer 3", "is 3; expected keys with values", 20),
        ("--precision fp64", "is 'fp64'; expected one of: fp32, fp16, bf16, auto", None),
        ("--debug_batches few", "is 'few'; expected a whole number, 1 or more", None),
        (
            "--device gpu",
            "is 'gpu'; expected cpu, cuda, or such as cuda:0, that torch sees",
            None,
        ),
        (
            "--device meta",
            "is 'meta'; expected cpu, cuda, or such as cuda:0, that torch sees",
            None,
        ),
        ("--grad_accumulation_factor 0", "is 0; expected a whole number, 1 or more", None),
        ("--max_grad_norm nan", "is nan; expected a number", None),
        ("--debug=True", "is a switch; it takes no value", None),
    ],
)
def test_a_wrong_option_names_what_was_expected(folder, arguments, expected, line):
    key = arguments.split(" ")[0].partition("=")[0]
    where = f" (a.yaml, line {line})" if line else ""
    assert message(*arguments.split(" ")) == f"{key}: {expected}{where}"


@pytest.mark.parametrize("word", ["words", "b.yaml"])
def test_one_yaml_file_is_named(folder, word):
    assert message(word) == (
        "expected: train.py HPARAMS.yaml [--key value ...]; not a.yaml "
        f"{word}; there are: none here"
    )


def test_an_open_placeholder_says_what_belongs_there(folder):
    assert message() == (
        "data_folder: not set in a.yaml, line 7; give --data_folder VALUE (recordings)"
    )
    nested = replaced("in_features: 3", "in_features: !OPEN # inputs")
    nested = nested.replace("!OPEN", "!PLACEHOLDER")
    assert message(text=nested) == (
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
    ["(a, b)", "(a: [)", "1e5", "yes", "2024-01-01", "a: b", "#1", "C:\\x", "ü b", "*"],
)
def test_text_stays_as_it_was_typed(folder, text):
    """Nothing in it is taken for YAML, a tuple, a number or a date."""
    assert load("--data_folder", text)["data_folder"] == text
    assert load("--data_folder", "d", "--output_folder", text)["output_folder"] == text


@pytest.mark.parametrize(
    "value, right, wrong",
    [
        (2, [0, 7], [-1, 1.5, True, None, "1", [1], float("nan")]),
        (-1.5, [-2, 0, 0.1], [None, "", float("inf"), False]),
        (True, [True, False], [0, 1, None, "yes"]),
        ("a", ["b"], ["", "  ", None, 1, ["a"]]),
        (["a"], [["b", "c"]], ["a", [], [1], {}, None]),
        ({}, [{}, {"a": 1}], [[], None, "a"]),
        (("!new:a.B", {"c": 1}), [{"c": 2}], [3, None]),
        (None, [None, 3, "a"], []),
    ],
)
def test_a_value_is_of_the_kind_of_the_files(value, right, wrong):
    kind = kind_like(value)
    assert all(kind.accepts(other) for other in right)
    assert not any(kind.accepts(other) for other in wrong)


@pytest.mark.parametrize(
    "key, right, wrong",
    [
        ("batch_seconds", ["auto", "4.0", "null"], ["much", "0"]),
        ("batch_size", ["3", "null"], ["0", "1.5"]),
        ("segment_seconds", ["3", "1.5", "null"], ["-1", "auto"]),
        ("number_of_epochs", ["3"], ["0", "null"]),
        ("weight_se", ["0", "3"], ["-1", "null"]),
    ],
)
def test_keys_whose_range_the_file_does_not_show(key, right, wrong):
    for value in right:
        parsed = training.parse_options([str(HPARAMS[0]), f"--{key}", value], "")
        assert key in parsed.overrides
    for value in wrong:
        with pytest.raises(UserError, match=f"--{key}: is .*; expected"):
            training.parse_options([str(HPARAMS[0]), f"--{key}", value], "")


def test_what_the_file_itself_holds_is_checked(folder):
    expected = "expected a number, 0 or more"
    for value, shown in (("fast", "'fast'"), ("-1", "-1")):
        text = replaced("lr: 0.1", f"lr: {value}")
        assert message(text=text) == f"a.yaml, line 3: lr: is {shown}; {expected}"
    # HyperPyYAML reads this as a number.
    assert load(text=replaced("lr: 0.1", "lr: 1e-3"))["lr"] == 0.001


@pytest.mark.parametrize("path", HPARAMS)
def test_every_shipped_value_may_be_given_on_the_command_line(path):
    file = HparamsFile(path)
    for key, (_, value, _) in file.keys.items():
        assert isinstance(value, tuple) or file.kind(key).accepts(value), key


# ------------------------------------------------------------------ the YAML file


@pytest.mark.parametrize(
    "text, expected",
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
            'a.yaml, line 4, column 1: not valid YAML: found duplicate key "lr" with value '
            '"2" (original value: "0.1")',
        ),
        ("- a\n- b\n", "a.yaml: expected keys and values, not list"),
        (
            replaced("torch.nn.Linear", "torch.nn.Linaer"),
            "a.yaml, line 11: layer: There is no such class as torch.nn.Linaer",
        ),
        (
            replaced("in_features: 3", "in_fetures: 3"),
            "a.yaml, line 11: layer: Invalid argument to class torch.nn.Linear: "
            "Linear.__init__() got an unexpected keyword argument 'in_fetures'",
        ),
        (
            replaced("    lr: !ref <lr>", "    rl: !ref <lr>"),
            "a.yaml, line 16: optimizer: got an unexpected keyword argument 'rl'",
        ),
        (
            replaced("lr: !ref <lr>", "betas: [2, 3]"),
            "a.yaml, line 16: optimizer: Invalid beta parameter at index 0: 2",
        ),
        (
            replaced("!ref <use_bias>", "!ref <use_bais>"),
            'a.yaml, line 14: The reference "use_bais" is not valid',
        ),
        (
            replaced("anything: null", "anything: !reff <lr>"),
            "a.yaml, line 8: anything: could not determine a constructor for the tag '!reff'",
        ),
        (
            replaced("layer: !ref <layer>", "layer: !ref <gains>"),
            "a.yaml, line 19: modules: list is not a Module subclass",
        ),
        (
            replaced("!new:torch.nn.Linear", "!new:needy.Linear"),
            "a.yaml, line 11: layer: problem in needy - ModuleNotFoundError: No module named "
            "'no_such_package'",
        ),
    ],
)
def test_a_wrong_file_is_named_with_its_line(folder, monkeypatch, text, expected):
    monkeypatch.syspath_prepend(folder)
    (folder / "needy.py").write_text("import no_such_package\n")
    assert message(text=text) == expected


def test_a_file_that_is_no_text_is_named(folder):
    (folder / "a.yaml").write_bytes("seed: 1\nname: ü\n".encode("latin1"))
    assert "a.yaml: cannot be read as text in UTF-8" in message()


def test_what_a_constructor_says_comes_with_key_and_line(folder, monkeypatch):
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
    assert message(text=text) == "a.yaml, line 2: object: kind is odd"
    for kind, expected in {
        "zero": "ZeroDivisionError: by 0",
        "key": "KeyError: 'kind'",
        "memory": "the memory is full",
    }.items():
        assert f"line 2: object: {expected}" in message("--object.kind", kind)


def test_a_key_that_the_recipe_needs_and_the_file_lacks_is_named(folder):
    hparams = load("--data_folder", "data")
    assert hparams.get("batch_size") is None
    with pytest.raises(UserError, match="a.yaml: has no key batch_size, which this recipe"):
        hparams["batch_size"]


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
