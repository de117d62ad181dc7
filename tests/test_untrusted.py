"""Files that were made to run something: none of them does, and each is named."""

import ast
import contextlib
import json
import pickle
import shutil
import zipfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from bomb import Bomb
from hypothesis import given, settings
from hypothesis import strategies as st
from speechbrain.dataio.dataloader import SaveableDataLoader
from speechbrain.nnet import schedulers
from speechbrain.utils.checkpoints import METAFNAME
from speechbrain.utils.epoch_loop import EpochCounter
from test_brain import batches, make

from unified_se_ss.data.cache import cached_arrays
from unified_se_ss.data.rooms import RoomBank, RoomSettings
from unified_se_ss.errors import UserError
from unified_se_ss.inference.folders import read_checkpoint, read_safetensors
from unified_se_ss.plain_yaml import plain_yaml
from unified_se_ss.training.checkpoints import FILES, AtomicCheckpointer

ROOT = Path(__file__).parent.parent


def write_yaml(bomb, path):
    path.write_text(f"step: !!python/object/apply:os.mkdir [{bomb.marker}]\n")


def write_torch(bomb, path, **options):
    """What torch.save writes; a tensor first, so that it looks like weights."""
    torch.save({"weight": torch.ones(3), "a": bomb}, path, **options)


def write_subclass(bomb, path):
    """A tensor subclass in whose state the bomb lies."""
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.payload = bomb
    torch.save({"weight": parameter}, path)


WAYS = {
    "pickle": lambda bomb, path: path.write_bytes(pickle.dumps({"a": bomb})),
    "torch": write_torch,
    "torch before 1.6": partial(write_torch, _use_new_zipfile_serialization=False),
    "an attribute of a parameter": write_subclass,
    "yaml": write_yaml,
}


@pytest.fixture
def bomb(tmp_path):
    return Bomb(tmp_path / "executed")


def unexploded(bomb):
    return not Path(bomb.marker).exists()


@pytest.mark.parametrize("way", WAYS)
def test_the_bombs_do_go_off(bomb, tmp_path, way):
    path = tmp_path / "file"
    WAYS[way](bomb, path)
    if way == "pickle":
        pickle.loads(path.read_bytes())
    elif way == "yaml":
        yaml.unsafe_load(path.read_text())
    else:
        torch.load(path, weights_only=False)
    assert not unexploded(bomb)


# ------------------------------------------------------------------ checkpoints


SCHEDULERS = {
    "plateau": partial(schedulers.ReduceLROnPlateau, lr_min=1e-8),
    "newbob": partial(schedulers.NewBobScheduler, 0.01),
    "warm-up": partial(schedulers.NoamScheduler, 0.01, 10),
    "linear": partial(schedulers.LinearWarmupScheduler, 0.01, 10, 100),
}


def trained(folder, scheduler="plateau"):
    """A Brain with all that a recipe's checkpoints hold."""
    checkpointer = AtomicCheckpointer(folder)
    brain = make(checkpointer=checkpointer, aux_scale="ema")
    train = SaveableDataLoader(batches(2), batch_size=None)
    recoverables = {
        "network": torch.nn.ModuleDict(dict(brain.modules)),
        "front": torch.nn.Linear(1, 1),
        "recogniser": torch.nn.Linear(1, 1),
        "counter": EpochCounter(3),
        "lr_scheduler": SCHEDULERS[scheduler](),
        "dataloader-TRAIN": train,
    }
    checkpointer.add_recoverables(recoverables)
    for name in recoverables:
        checkpointer.optional_recoverables[name] = False
    brain.fit([1], train)
    return brain


def saved(folder, scheduler="plateau"):
    """A checkpoint, as files by name."""
    checkpointer = trained(folder, scheduler).checkpointer
    path = checkpointer.save_checkpoint({"epoch": 1}, end_of_epoch=False).path
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("save"))


def test_the_checkpoint_is_that_of_the_recipes(checkpoint):
    wanted = set("brain gradients means monitor optimizer random dataloader-TRAIN".split())
    for path in (*ROOT.glob("hparams/*.yaml"), *ROOT.glob("recipes/*/hparams/*.yaml")):
        _, content = plain_yaml(path.read_text(encoding="utf-8"), path)["checkpointer"]
        wanted |= set(content["recoverables"])
    assert wanted <= {name.removesuffix(".ckpt") for name in checkpoint}


def planted(checkpoint, folder, name, write):
    """The checkpoint with one file in another's place, and the checksums to match."""
    place = folder / "CKPT+planted"
    place.mkdir(parents=True)
    for file, content in checkpoint.items():
        (place / file).write_bytes(content)
    write(place / name)
    if name != METAFNAME:
        meta = yaml.safe_load((place / METAFNAME).read_text())
        meta[FILES][name] = {"bytes": (place / name).stat().st_size}
        (place / METAFNAME).write_text(yaml.safe_dump(meta))


def test_no_file_of_a_checkpoint_runs_anything(checkpoint, tmp_path, bomb, monkeypatch):
    """Even where the environment asks torch to run what pickles say."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    files = [name for name in checkpoint if name.endswith(".ckpt")]
    for name, way in [(n, "torch") for n in files] + [("network.ckpt", w) for w in WAYS]:
        folder = tmp_path / name / way
        planted(checkpoint, folder, name, partial(WAYS[way], bomb))
        with pytest.raises(UserError, match="CKPT.planted") as told:
            trained(folder)
        assert unexploded(bomb), way
        assert "\n" not in str(told.value).strip() and len(str(told.value)) < 600
        shutil.rmtree(folder)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_no_scheduler_of_speechbrain_runs_anything(tmp_path, bomb, scheduler):
    files = saved(tmp_path / "first", scheduler)
    planted(files, tmp_path / "second", "lr_scheduler.ckpt", partial(write_torch, bomb))
    with pytest.raises(UserError, match="CKPT.planted"):
        trained(tmp_path / "second", scheduler)
    assert unexploded(bomb)


def test_a_list_of_files_that_runs_something(checkpoint, tmp_path, bomb):
    """CKPT.yaml itself: such a checkpoint is none."""
    planted(checkpoint, tmp_path, METAFNAME, partial(write_yaml, bomb))
    checkpointer = AtomicCheckpointer(tmp_path)
    checkpointer.tidy()
    assert checkpointer.list_checkpoints() == [] and unexploded(bomb)


def test_a_checkpoint_that_is_as_it_was_is_loaded(checkpoint, tmp_path):
    """What is refused above is refused for the bomb."""
    planted(checkpoint, tmp_path, "README", lambda path: path.write_text("nothing"))
    assert len(trained(tmp_path).checkpointer.list_checkpoints()) == 1


# ------------------------------------------------------------------ other files


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("read", [read_checkpoint, read_safetensors])
def test_no_file_of_weights_runs_anything(tmp_path, bomb, way, read):
    path = tmp_path / "weights"
    WAYS[way](bomb, path)
    with pytest.raises(UserError, match="weights"):
        read(path)
    assert unexploded(bomb)


@settings(max_examples=20, deadline=None)
@given(data=st.data(), new=st.booleans(), kind=st.sampled_from(["cut", "change", "other"]))
def test_a_damaged_file_of_weights_is_named(tmp_path_factory, data, new, kind):
    """Cut off anywhere, bytes changed anywhere, in both of torch's formats, or no such file."""
    path = tmp_path_factory.getbasetemp() / "damaged"
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=new)
    content = bytearray(path.read_bytes())
    places = st.integers(0, len(content) - 1)
    if kind == "cut":
        content = content[: data.draw(places)]
    elif kind == "change":
        for place in data.draw(st.lists(places, min_size=1, max_size=4)):
            content[place] = data.draw(st.integers(0, 255))
    else:
        content = data.draw(st.binary(max_size=200))
    path.write_bytes(bytes(content))
    with contextlib.suppress(UserError):
        state = read_checkpoint(path)
        assert all(isinstance(value, torch.Tensor) for value in state.values())


def test_no_array_runs_anything(tmp_path, bomb):
    array = np.empty(1, dtype=object)
    array[0] = bomb
    np.save(tmp_path / "rooms.npy", array, allow_pickle=True)
    kept = asdict(RoomSettings(microphones=((0.0, 0.0, 0.0),)))
    (tmp_path / "rooms.json").write_text(json.dumps({"settings": kept}))
    with pytest.raises(UserError, match="rooms.npy"):
        RoomBank(tmp_path / "rooms.npy")
    np.savez(
        tmp_path / "head.npz", azimuth=array, elevation=array, filters=array, latency=0
    )
    assert zipfile.is_zipfile(tmp_path / "head.npz")
    assert cached_arrays(tmp_path / "head.npz", lambda: {"latency": 1}) == {"latency": 1}
    assert unexploded(bomb)


def test_a_runs_yaml_is_read_as_data(tmp_path, bomb):
    """Tags of HyperPyYAML are kept as they stand; those of Python are refused."""
    tagged = f"a: !apply:os.mkdir [{bomb.marker}]\nb: !new:os.mkdir\n  path: x"
    assert plain_yaml(tagged, "a.yaml")["a"] == ("!apply:os.mkdir", [bomb.marker])
    write_yaml(bomb, tmp_path / "a.yaml")
    with pytest.raises(UserError, match="a.yaml, line 1, column 7"):
        plain_yaml((tmp_path / "a.yaml").read_text(), "a.yaml")
    assert unexploded(bomb)


# ------------------------------------------------------------------ the tree


# What may execute, and is asked for in these files alone: see docs/security.md.
BY_DESIGN = {
    "load_hyperpyyaml": {
        "unified_se_ss/training/hparams.py",  # the YAML that a user starts
        "benchmarks/growth.py",  # what is shipped, as in the next
        "benchmarks/networks.py",
        "docs/examples/after/train.py",
        "docs/examples/before/train.py",
        "docs/examples/by_items/train.py",
    },
    "from_hparams": {
        "unified_se_ss/evaluation/wer.py",  # a recogniser that a user names
        "benchmarks/inference.py",  # what was just written, as in the next
        "unified_se_ss/inference/speechbrain_format.py",
    },
}
# Calls that have no place in the tree at all.
NEVER = set(
    "pickle.load pickle.loads pickle.Unpickler marshal.loads marshal.load shelve.open "
    "joblib.load dill.load dill.loads pandas.read_pickle eval exec os.system os.popen "
    "torch.hub.load torch.jit.load yaml.load yaml.full_load yaml.load_all yaml.unsafe_load "
    "yaml.unsafe_load_all shutil.unpack_archive torch.serialization.add_safe_globals".split()
)
NEVER_METHODS = {"extractall", "extract", "read_pickle", "add_safe_globals"}
# What a call must say, so that no default of a library decides.
MUST_SAY = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "packed.extractall": ("filter", "'data'"),
}


def calls(path):
    """Every call in a file: its dotted name and its node."""
    tree = ast.parse(path.read_text(encoding="utf-8"), path.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def unsafe(name, node, file):
    """What is wrong with a call; None if nothing is."""
    last = name.rsplit(".", 1)[-1]
    said = {word.arg: ast.unparse(word.value) for word in node.keywords}
    if name in MUST_SAY:
        key, value = MUST_SAY[name]
        return None if said.get(key) == str(value) else f"must say {key}={value}"
    if name in NEVER or last in NEVER_METHODS:
        return "has no place here"
    if last in ("Loader", "RoundTripLoader", "UnsafeLoader", "FullLoader"):
        return "makes more than plain data"
    if "True" in (said.get("shell"), said.get("trust_remote_code")):
        return "runs what it is given"
    if last in BY_DESIGN and file not in BY_DESIGN[last]:
        return "is not known to docs/security.md"
    return None


def faults(path, root=ROOT):
    file = path.relative_to(root).as_posix()
    told = ((name, node, unsafe(name, node, file)) for name, node in calls(path))
    return [f"{file}, line {n.lineno}: {name} {what}" for name, n, what in told if what]


def test_nothing_in_the_tree_runs_what_a_file_says():
    """But by design where it is said to be, and there it still is."""
    folders = ("unified_se_ss", "recipes", "benchmarks", "docs")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = sum(map(faults, [*sources, *ROOT.glob("*.py")]), [])
    assert len(sources) > 100 and not found, "\n".join(found)
    for name, files in BY_DESIGN.items():
        for file in files:
            assert name in {n.rsplit(".", 1)[-1] for n, _ in calls(ROOT / file)}, file
    documented = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    assert "training/hparams.py" in documented and "evaluation/wer.py" in documented


def test_the_inspection_sees_what_it_looks_for(tmp_path):
    path = tmp_path / "a.py"
    for source in (
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, mmap_mode='r')",
        "np.load(path, allow_pickle=True)",
        "pickle.load(file)",
        "yaml.load(text, Loader=yaml.Loader)",
        "ruamel.yaml.Loader(text)",
        "tar.extractall(folder)",
        "packed.extractall(folder)",
        "shutil.unpack_archive(a, b)",
        "subprocess.run(text, shell=True)",
        "eval(text)",
        "load_hyperpyyaml(file)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ):
        path.write_text(f"def f():\n    return [{source} for _ in x]\n")
        assert len(faults(path, tmp_path)) == 1, source
