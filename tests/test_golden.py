"""What the recipes, commands and old models gave once they still give.

By numbers; with GOLDEN_BITS=1 in the environment to the bit, which the same machine, torch
and number of threads are needed for. See golden_values.py, which also records them anew.
"""

import importlib.util

import golden_values as golden
import pytest

EXPORTS = [name for name in golden.OTHERS if name.startswith("export")]
SLOW = [name for name in EXPORTS if not name.endswith("native")]
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime")}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Runs of one YAML of each recipe, in one process."""
    names = [name for name in golden.QUICK if not golden.missing(name)]
    return golden.record_runs(names, tmp_path_factory.mktemp("golden"))


def check(found, name):
    differing = golden.differences(found, golden.read(name))
    assert not differing, "\n".join(
        [f"{len(differing)} values of {name} are not what they were", *differing[:20]]
    )


def skip_without(packages):
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


@pytest.mark.parametrize("name", golden.QUICK)
def test_a_run_of_each_recipe(quick, name):
    skip_without(golden.missing(name))
    check(quick[name], name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in golden.RUNS if name not in golden.QUICK])
def test_every_other_run(tmp_path, name):
    skip_without(golden.missing(name))
    check(golden.record(name, tmp_path), name)


def test_every_yaml_is_run():
    shipped = [
        *golden.ROOT.glob("hparams/*.yaml"),
        *golden.ROOT.glob("recipes/*/hparams/*.yaml"),
    ]
    run = {job["yaml"] for job in golden.RUNS.values()}
    assert {path.relative_to(golden.ROOT).as_posix() for path in shipped} == run


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW))
        for name in golden.OTHERS
    ],
)
def test_commands_and_old_models(tmp_path, name):
    skip_without(NEEDED.get(name.split()[-1], ()))
    check(golden.record(name, tmp_path), name)


@pytest.mark.parametrize("name", golden.OLD_RUNS)
def test_a_run_of_the_past_is_used_like_its_export(tmp_path, name):
    found = golden.record_uses(name, tmp_path, "run")
    check(found, f"use {name}")


def test_what_differs_is_found():
    values = golden.read("use unified")
    assert not golden.differences(values, values, bits=True)
    changed = golden.read("use unified")
    outputs = changed["separate short"]["outputs"]["short_source1.wav"]
    outputs["rms"] += 0.001
    outputs["shape"] = outputs["shape"][:-1]
    found = golden.differences(changed, values)
    assert [line.partition(":")[0].rpartition("/")[2] for line in found] == ["shape", "rms"]
