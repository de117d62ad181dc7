"""The grid and its runs, with a small script in place of train.py, and once with it."""

import csv
import doctest
import json
import math
import os
import re
import signal
import sys
import time

import pytest
from forked_ranks import start_ranks
from hypothesis import example, given, settings
from hypothesis import strategies as st
from librimix import make_tree
from running import ROOT, run_python

import ablate
from unified_se_ss import training
from unified_se_ss.errors import UserError
from unified_se_ss.gradients import RULES
from unified_se_ss.plain_yaml import plain_value

DEMO = str(ROOT / "hparams" / "demo.yaml")
PAPER = ROOT / "hparams" / "comparisons" / "paper.yaml"

# Reads its options as train.py does, leaves what a run leaves, and notes in events.txt
# what happens when. What it does depends on --rule.
FAKE = """
import os, pathlib, random, sys, time
import yaml

words = sys.argv[2:]
values = {a[2:]: yaml.safe_load(b) for a, b in zip(words, words[1:]) if a[:2] == "--"}
rule, seed = values.get("rule", "sum"), values["seed"]
if "--describe" in words:
    sys.exit("error: rule is 'unknown'" if rule == "unknown" else 0)

here = pathlib.Path(__file__).parent
def note(what):
    with open(here / "events.txt", "a") as file:
        file.write(f"{what} {rule} {seed}\\\\n")
def events(what):
    return (here / "events.txt").read_text().count(what)
def wait_until(condition):
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)

note("start")
print("hello from", rule, seed, os.environ.get("OMP_NUM_THREADS"), flush=True)
folder = pathlib.Path(values["output_folder"])
folder.mkdir(parents=True, exist_ok=True)
if rule == "fail" and not (here / "mended").exists():
    sys.exit("the disk is on fire")
if rule == "endless":
    (here / "pid.new").write_text(str(os.getpid()))
    (here / "pid.new").rename(here / "pid")
    time.sleep(600)
time.sleep(0.2)  # the corpus is made
note("data")
(folder / "manifest.csv").write_text("ID\\\\n")
if rule in ("pair", "couple"):
    wait_until(lambda: events("start") >= 2)  # another run goes on at the same time
    note("together" if events("start") - events("end") >= 2 else "alone")
(folder / "hyperparams.yaml").write_text(yaml.safe_dump({**values, "lr": 0.1}))
rng = random.Random(f"{rule} {seed}")
gain = {"project": 2, "sum": 0}.get(rule, 1)
lines = [f"test-{i},{i + gain + 0.1 * rng.random():.6f}" for i in range(10)]
note("end")
(folder / "results.csv").write_text("\\\\n".join(["ID,si_snr_i", *lines]) + "\\\\n")
(folder / "report.html").touch()
""".replace("\\\\n", "\\n")


@pytest.fixture
def fake(tmp_path):
    """A folder with the script, and the arguments that have it used."""
    (tmp_path / "fake.py").write_text(FAKE)
    (tmp_path / "some.yaml").write_text("seed: 1\nexperiment_name: some\nrule: sum\n")
    given = ["--train", str(tmp_path / "fake.py"), "--output_folder", str(tmp_path / "out")]
    return tmp_path, [str(tmp_path / "some.yaml"), *given]


def events(folder, what="start"):
    lines = (folder / "events.txt").read_text().splitlines()
    return [line.partition(" ")[2] for line in lines if line.startswith(what)]


def table(folder):
    with open(folder / "comparison.csv", newline="", encoding="utf-8") as file:
        return {row["cell"]: row for row in csv.DictReader(file)}


def test_examples():
    found = doctest.testmod(ablate)  # scripts are not among the doctests that pytest finds
    assert found.attempted >= 5 and not found.failed


# ------------------------------------------------------------------ the grid

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(-1e6, 1e6)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Co"]), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner)
    ),
    max_leaves=4,
)


@settings(deadline=None, max_examples=25)
@given(plain)
@example(["next\x85line"])
@example("--über\n=: #")
def test_a_value_survives_the_command_line(value):
    """To a key of which no more is known, as train.py reads it."""
    arguments = [DEMO, "--aux_scale", ablate.as_argument(value)]
    assert training.parse_options(arguments, "").overrides == {"aux_scale": value}


@settings(deadline=None, max_examples=25)
@given(st.lists(plain.map(json.dumps), min_size=1, max_size=5, unique=True))
def test_a_grid_is_split_between_its_values(texts):
    points = ablate.parse_axis("key=" + ",".join(texts))
    assert [cell.name for cell in points] == [f"key={text}" for text in texts]
    values = [{"key": plain_value(text)} for text in texts]
    assert [cell.overrides for cell in points] == values


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_the_grid_is_the_product_of_its_options(sizes):
    grid = [f"key{i}=" + ",".join(map(str, range(n))) for i, n in enumerate(sizes)]
    cells = ablate.make_cells(grid)
    settings = [tuple(cell.overrides.values()) for cell in cells]
    assert settings == sorted(set(settings))  # the last key changes fastest
    assert len(cells) == len({cell.folder for cell in cells}) == math.prod(sizes)


def test_cells_of_a_file_meet_the_grid(tmp_path):
    file = tmp_path / "cells.yaml"
    file.write_text(
        "alone: {rule: main_only}\nboth: {rule: remedy, lr: 1.0e-3}\nplain: {}\n"
    )
    names = [cell.name for cell in ablate.make_cells([], file)]
    assert names == ["alone", "both", "plain"]
    cells = ablate.make_cells(["granularity=parameter,global"], file)
    assert [cell.folder for cell in cells][:2] == [
        "alone,granularity=parameter",
        "alone,granularity=global",
    ]
    assert cells[2].overrides == {"rule": "remedy", "lr": 0.001, "granularity": "parameter"}


@pytest.mark.parametrize(
    ("grid", "file", "message"),
    [
        (["rule"], None, "expected KEY=VALUE"),
        (["=sum"], None, "expected KEY=VALUE"),
        (["rule=sum,,project"], None, "no list of YAML values"),
        (["rule_options={strict: True"], None, "no list of YAML values"),
        (["rule=sum],[project"], None, "no list of YAML values"),
        (["rule="], None, "names no value"),
        (["rule=sum,sum"], None, "rule=sum is there twice"),
        (["rule=sum", "rule=project"], None, "rule: is set twice"),
        (["rule=project"], "a: {rule: sum}", "rule: is set twice"),
        (["name=a b,a_b"], None, "share the folder 'name=a_b'"),
        ([], "a: sum", "expected lines such as"),
        ([], "- rule: sum", "expected keys and values, not list"),
        ([], "a: {rule: sum", "not valid YAML"),
    ],
)
def test_what_is_no_grid_is_said(tmp_path, grid, file, message):
    path = tmp_path / "cells.yaml"
    path.write_text(file or "")
    with pytest.raises(UserError, match=re.escape(message)):
        ablate.make_cells(grid, path if file else None)


def test_without_a_grid_there_is_one_cell():
    assert ablate.make_cells([]) == [ablate.Cell("as_is")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no YAML file was named"),
        (["nothing.yaml"], "nothing.yaml: there is no such file"),
        ([DEMO, "--seed", "3"], "give --seeds"),
        ([DEMO, "--train", "nothing.py"], "nothing.py is no file"),
        ([DEMO, "--jobs", "0"], "--jobs: is 0"),
        ([DEMO, "--devices", "cpu", "--device", "cpu"], "not both"),
        ([DEMO, "--grid", "rule=sum", "--rule", "sum"], "the cell 'rule=sum' sets it too"),
        ([DEMO, "--grid", "rule=sum", "--baseline", "rule=sun"], "did you mean 'rule=sum'"),
        ([DEMO, "--grid", "seed=3"], "--seed: is set for every run, but the cell 'seed=3'"),
        *(
            ([DEMO, "--seeds", text], "--seeds: is")
            for text in ("", "1,1", "-1", "a", "1;2")
        ),
    ],
)
def test_options_that_make_no_sense_are_said(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        ablate.main(arguments)


def test_the_shipped_comparison_differs_in_the_rule_alone():
    cells = ablate.read_cells(PAPER)
    assert len(cells) >= 5 and cells[0].name == "ss_alone"
    for cell in cells:
        assert set(cell.overrides) == {"rule"} and cell.overrides["rule"] in RULES
    for path in (ROOT / "hparams").glob("*.yaml"):
        arguments = [str(path), "--rule", cells[0].overrides["rule"]]
        assert training.parse_options(arguments, "").overrides == cells[0].overrides


def test_a_dry_run_lists_the_runs_seed_by_seed(capsys, fake):
    folder, given = fake
    assert ablate.main([*given, "--grid", "rule=sum,project", "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::2] == [
        f"# rule={rule}, seed {seed}: new"
        for seed in (1, 2, 3)
        for rule in ("sum", "project")
    ]
    assert lines[1].endswith(f"--seed 1 --output_folder {folder}/out/rule=sum/1 --rule sum")
    assert not (folder / "out").exists()


# ------------------------------------------------------------------ runs


def test_runs_are_made_once_and_compared(capsys, fake):
    folder, given = fake
    arguments = [*given, "--grid", "rule=sum,project", "--seeds", "1,2", "--lr", "0.1"]
    assert ablate.main(arguments) == 0
    printed = capsys.readouterr().out
    assert events(folder) == ["sum 1", "project 1", "sum 2", "project 2"]
    assert "rule=project, seed 2: SI-SNRi 6.5" in printed
    assert re.search(r"better by (1.9|2.0)\d dB", printed) and "comparison.png" in printed
    log = (folder / "out" / "rule=sum" / "1.log").read_text()
    assert log.startswith("$ ") and "--lr 0.1" in log and "hello from sum 1" in log
    found = table(folder / "out")
    assert found["rule=project"]["seeds"] == "1 2"
    assert float(found["rule=project"]["si_snr_i_difference"]) == pytest.approx(2, abs=0.1)
    assert (folder / "out" / "comparison.md").is_file()

    # The same again: nothing is run. One seed more: that one only.
    assert ablate.main(arguments) == 0
    assert len(events(folder)) == 4
    assert ablate.main([*given, "--grid", "rule=sum,project", "--seeds", "3"]) == 0
    assert events(folder)[4:] == ["sum 3", "project 3"]
    assert table(folder / "out")["rule=sum"]["seeds"] == "1 2 3"

    # From the folder alone, compared the other way round.
    alone = ["--table_only", "--output_folder", str(folder / "out")]
    assert ablate.main([*alone, "--baseline", "rule=project"]) == 0
    assert list(table(folder / "out")) == ["rule=project", "rule=sum"]  # baseline first
    assert table(folder / "out")["rule=sum"]["si_snr_i_verdict"].startswith("worse by")
    assert len(events(folder)) == 6

    # A finished run is not taken for one with other settings.
    with pytest.raises(
        UserError, match="rule=sum/1: holds a finished run with lr 0.1, but 0.2"
    ):
        ablate.main([*arguments[:-1], "0.2"])
    assert ablate.main([*arguments[:-1], "1e-1"]) == 0


def test_the_train_py_is_that_of_the_recipe(tmp_path):
    """Beside the YAML file, or nearest above it; else that of the front door."""
    for folder in ("recipe/hparams", "recipe/flat", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    for script in ("recipe/train.py", "recipe/flat/train.py"):
        (tmp_path / script).touch()
    for yaml_file, script in {
        "recipe/hparams/a.yaml": tmp_path / "recipe/train.py",
        "recipe/flat/a.yaml": tmp_path / "recipe/flat/train.py",
        "elsewhere/a.yaml": ROOT / "train.py",
    }.items():
        (tmp_path / yaml_file).touch()
        assert ablate.parse_arguments([str(tmp_path / yaml_file)]).train == script
    assert ablate.parse_arguments([DEMO]).train == ROOT / "train.py"


def test_a_run_that_fails_is_named_and_started_again(capsys, fake):
    folder, given = fake
    arguments = [*given, "--grid", "rule=sum,fail", "--seeds", "1,2"]
    assert ablate.main(arguments) == 1
    out, err = capsys.readouterr()
    assert events(folder) == ["sum 1", "fail 1", "sum 2", "fail 2"]
    log = folder / "out" / "rule=fail" / "1.log"
    assert f"rule=fail, seed 1: FAILED (exit code 1); see {log}: the disk is on fire" in out
    assert f"failed: rule=fail, seed 2; see {log.with_name('2.log')}" in err
    assert table(folder / "out")["rule=fail"]["si_snr_i_verdict"] == "no finished run"

    (folder / "mended").touch()
    assert ablate.main(arguments) == 0
    assert events(folder)[4:] == ["fail 1", "fail 2"]
    assert table(folder / "out")["rule=fail"]["si_snr_i_verdict"].startswith("better")
    commands = [line for line in log.read_text().splitlines() if line.startswith("$ ")]
    assert len(commands) == 2 and commands[0] == commands[1]


def test_options_are_checked_before_the_first_run(fake):
    folder, given = fake
    with pytest.raises(UserError, match="cell 'rule=unknown': rule is 'unknown'"):
        ablate.main([*given, "--grid", "rule=sum,unknown"])
    assert not (folder / "events.txt").exists() and not (folder / "out").exists()


def test_jobs_go_on_together_once_the_first_has_its_data(fake):
    folder, given = fake
    arguments = [*given, "--grid", "rule=pair,couple", "--seeds", "1", "--jobs", "2"]
    assert ablate.main(arguments) == 0
    happened = (folder / "events.txt").read_text().splitlines()
    assert happened[:3] == ["start pair 1", "data pair 1", "start couple 1"]
    assert "together pair 1" in happened


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_takes_the_runs_along(fake, how):
    folder, given = fake

    def guarded():
        # Whoever starts the tests in the background has SIGINT ignored in all below.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.exit(ablate.guarded([*given, "--grid", "rule=endless"]))

    process, end = start_ranks(guarded, 1), time.monotonic() + 60
    while not list(folder.glob("pid")) and time.monotonic() < end:
        time.sleep(0.05)
    process.kill(0, how)
    assert process.codes(seconds=120) == [130]
    assert "the same command goes on" in process.said(0)
    assert "Traceback" not in process.said(0)
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)
    assert events(folder) == ["endless 1"]


# ------------------------------------------------------------------ devices


def test_slots_follow_devices_and_jobs():
    def slots(*arguments, gpus=0):
        return ablate.find_slots(ablate.parse_arguments([DEMO, *arguments]), gpus)

    assert slots() == [""] and slots("--jobs", "2") == ["", ""]
    assert slots(gpus=2) == ["cuda:0", "cuda:1"]
    assert slots("--jobs", "3", gpus=2) == ["cuda:0", "cuda:1", "cuda:0"]
    assert slots("--devices", "cuda:1", gpus=2) == ["cuda:1"]
    assert slots("--device", "cpu", gpus=2) == [""]


def test_a_run_sees_its_own_gpu_and_its_share_of_the_cores():
    assert ablate.environment_of("", 1, {"A": "1"}) == {"A": "1"}
    found = ablate.environment_of("cuda:1", 2, {})
    assert found["CUDA_VISIBLE_DEVICES"] == "1"
    assert int(found["OMP_NUM_THREADS"]) == max(1, os.cpu_count() // 2)
    with pytest.raises(UserError, match="no cuda:1; 1 are visible"):
        ablate.environment_of("cuda:1", 1, {"CUDA_VISIBLE_DEVICES": "3"})


# ------------------------------------------------------------------ with train.py

SMALL = "n_basis=64 n_features=8 hidden=4 ss_blocks=1 se_blocks=1 chunk_length=10"
SMALL += " save_waves=0 num_workers=0 number_of_epochs=1"


def test_the_check_is_that_of_train_py(tmp_path):
    with pytest.raises(
        UserError, match="cell 'rule=prject': rule is 'prject'; expected one"
    ):
        ablate.main([DEMO, "--grid", "rule=prject", "--output_folder", f"{tmp_path}/out"])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_from_the_grid_to_the_table(tmp_path):
    """Two cells with two seeds on a tiny tree; one of the networks has no SE module."""
    cells = tmp_path / "cells.yaml"
    cells.write_text("both: {rule: remedy}\nalone: {use_se: False}\n")
    out = tmp_path / "a=b, c" / "out"
    command = [ROOT / "hparams/libri2mix_noisy_dprnn.yaml", "--cells", cells]
    command += ["--seeds", "1,2", "--data_folder", make_tree(tmp_path)]
    command += ["--output_folder", out, *(f"--{pair}" for pair in SMALL.split())]
    done = run_python(ROOT / "ablate.py", *command, "--device", "cpu")
    assert "both, seed 2: SI-SNRi" in done.stdout and "4/4" in done.stderr
    found = table(out)
    assert found["both"]["seeds"] == found["alone"]["seeds"] == "1 2"
    assert found["alone"]["se_si_snr_i_mean"] == "" != found["both"]["se_si_snr_i_mean"]
    assert "rule: remedy" in (out / "both" / "2" / "hyperparams.yaml").read_text()
    again = run_python(ROOT / "ablate.py", *command, "--device", "cpu")
    assert "seed 2: SI-SNRi" not in again.stdout
    other = [*command[:-2], "--output_folder", out, "--weight_se", "0.3"]
    longer = run_python(ROOT / "ablate.py", *other, expected=2)
    assert "choose another --output_folder" in longer.stderr
