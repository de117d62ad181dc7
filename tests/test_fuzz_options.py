"""Any command line is understood, or refused by one message that names what is wrong."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import pytest
from fuzzing import Tally, check_message
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from speechbrain.utils.run_opts import RunOptions

from unified_se_ss import training
from unified_se_ss.errors import UserError
from unified_se_ss.training.options import HparamsFile, read_overrides

ROOT = Path(__file__).parent.parent
HPARAMS = sorted(
    path.relative_to(ROOT).as_posix() for path in ROOT.glob("**/hparams/*.yaml")
)
DEMO = ROOT / "hparams/demo.yaml"

#: Values of every kind and of none, one a line of words; None: no value at all.
VALUES = [
    *"0 -1 1 1.5 1e-3 1e999 .nan -.inf 0x10 0o7 1_000 null ~ true no None True".split(),
    *"text _ .. / /dev/null/x [] [1] [null] [[[1]]] {} <lr> < <lr *a - a=b 1/0".split(),
    *"( () \" ' # % @ \\ = 9**9**9 ü 名前 2024-01-01 1:30 1,2 ${HOME}".split(),
    *("", "{a: 1}", "{lr: x}", "{1: 2}", "{null: 1}", "{a: {b: {c: 1}}}", "{[1]: 2}"),
    *("{a: <lr>}", "[1, two]", "{a: 1, a: 2}", "{<<: 1}", "(1, 2)", "(a: [)", "&a [*a]"),
    *("!ref <lr>", "!new:os.system", "a: b", "- a", "a\nb", "\t", "\x00", "\x1b[31m"),
    *("\udcff", "lambda: 0", "{" * 50, "[" * 50, "'" * 3, "9" * 5000, "x" * 3000, None),
]
KEYS = ["nokey", "", ".", "..", "lr.", ".lr", "optimizer..lr", "seed.x", "ü", "lr[0]"]


@pytest.mark.parametrize("name", HPARAMS)
def test_every_key_of_every_recipe_with_values_that_make_no_sense(name):
    """A tenth of the values, others for each file."""
    file, tally = HparamsFile(ROOT / name), Tally()
    values = VALUES[HPARAMS.index(name) % 10 :: 10]
    for key, value in itertools.product([*file.keys, *KEYS], values):
        tally.tried(name, f"--{key}", read_overrides, {key: value}, file)
    assert tally[name, "handled"] and tally[name, "refused"] > len(tally)
    assert tally.inputs() > 500


QUIET = settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)
SMALL = """\
lr: 0.1
name: text
folder: !PLACEHOLDER # of recordings
nothing: null
list: [1, 2]
object: !new:collections.Counter
    a: !ref <lr>
path: !ref results/<name>
"""
WORD = st.one_of(
    st.sampled_from(
        ["a.yaml", "--", "--lr", "--lr=", "--name", "--object.a", "--describe"]
    ),
    st.sampled_from(
        ["--device", "cpu", "--precision", "bf16", "--debug", "--debug_batches"]
    ),
    st.sampled_from(["--jit_module_keys", "--folder", "--nothing", "--list", "b.yaml"]),
    st.sampled_from([value for value in VALUES if value is not None]),
    st.text(max_size=10),
    st.text(max_size=10).map("--{}".format),
    st.tuples(st.sampled_from(["lr", "name", "object", "x"]), st.text(max_size=9)).map(
        lambda pair: "--{}={}".format(*pair)
    ),
)


@QUIET
@given(words=st.lists(WORD, max_size=6))
@example(words=["a.yaml", "--name", "(a: [)", "--folder", "<name>"])
@example(words=["a.yaml", "--folder", "x", "--object.a", "{b: 1}"])
@example(words=["a.yaml", "--folder", "x", "--object", "{1: 2}"])
def test_any_words_are_understood_or_refused(tmp_path_factory, words):
    """From the command line to what the file describes."""
    folder = tmp_path_factory.getbasetemp() / "any_words"
    folder.mkdir(exist_ok=True)
    (folder / "a.yaml").write_text(SMALL)
    words = [str(folder / "a.yaml") if word == "a.yaml" else word for word in words]
    if not words or {"-h", "--help"} & set(words):
        return  # the manual

    def load():
        hparams = training.load_hparams(training.parse_options(words, ""))
        assert {"lr", "name", "list", "object", "path"} <= set(hparams)

    Tally().tried("words", "", load)


@QUIET
@given(text=st.text(max_size=200))
@example(text="a: !ref <b>\nb: !ref <a>\n")
@example(text="a: &x [*x]\n")
@example(text="a: &x {b: *x}\n")
@example(text="a: !include:none.yaml\n")
@example(text="a: !applyref:len 3\n")
@example(text="a: !ref <a.b.c>\n")
@example(text="? [a]\n: 1\n")
@example(text="a: !!python/object/apply:os.getcwd []\n")
@example(text="a: !new:nothing\n")
@example(text="a: !ref <b> / 0\nb: 1\n")
@example(text="a: !ref 1 / <b>\nb: 0\n")
def test_any_file_is_loaded_or_refused(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))

    def load():
        return training.load_hparams(training.parse_options([str(path)], ""))

    Tally().tried("file", path if text.strip() else "", load)


LINES = DEMO.read_text(encoding="utf-8").splitlines()


@settings(max_examples=25, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_a_shipped_file_with_one_wrong_line_is_loaded_or_refused(tmp_path, data):
    """Only read and checked: what would be made is another test's."""
    wrong = list(LINES)
    place = data.draw(st.integers(0, len(LINES) - 1))
    new = data.draw(st.one_of(st.text(max_size=20), st.sampled_from(LINES)))
    how = data.draw(st.sampled_from(["replace", "insert", "indent", "cut"]))
    wrong[place : place + (how != "insert")] = {
        "replace": [new],
        "insert": [new],
        "indent": [f"  {wrong[place]}"],
        "cut": [wrong[place][: len(wrong[place]) // 2]],
    }[how]
    path = tmp_path / "a.yaml"
    path.write_bytes("\n".join(wrong).encode("utf-8", "surrogatepass"))
    Tally().tried(
        "line", path, lambda: training.parse_options([str(path), "--lr", "1"], "")
    )


# ------------------------------------------------------------------ to the end


ODD = """n_basis=1 chunk_length=7 kernel_size=1 stride=999 initial=x n_speakers=1 hidden=1
seed=4294967295 experiment_name=<seed> output_folder=a/b save_folder=/dev/null/x
output_folder=9 optimizer.x=1 optimizer={lr:1,2:3} encoder.x={y:1} separator.n_sources=0
separator.intra={n_features:2} checkpointer.recoverables={network:{}} corpus={x:1}
lr_scheduler.epoch_count=0 se_model.hidden=-1 modules={other:1} experiment_name=(a:[)"""


def test_what_passes_the_first_look_is_made_or_refused(tmp_path, monkeypatch):
    """The demo with one override each: odd ones, and every hundredth of all pairs."""
    folder = tmp_path / "a" / "b"  # some of them go up
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    logging.disable()
    file, tally = HparamsFile(DEMO), Tally()
    pairs = [tuple(pair.replace(":", ": ").split("=", 1)) for pair in ODD.split()]
    pairs.append(("experiment_name", "x" * 300))
    pairs += [
        (key, value)
        for key, value in itertools.islice(
            itertools.product(file.keys, VALUES), 7, None, 100
        )
        # Nothing is written at the root of the file system.
        if value != "/" or not key.endswith(("folder", "checkpoints_dir"))
    ]
    try:
        for key, value in pairs:
            try:
                overrides = read_overrides({key: value}, file)
            except UserError as error:
                check_message(str(error), f"--{key}")
                continue
            options = training.Options(DEMO, RunOptions(), overrides)
            tally.tried("load", "", training.load_hparams, options)
    finally:
        logging.disable(logging.NOTSET)
    assert tally["load", "refused"] >= 8 and tally["load", "handled"] > 20
