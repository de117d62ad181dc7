"""Items that cannot be used while a run goes on: named, counted, never replaced."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from librimix import make_tree
from running import rows
from test_train import command, run

from unified_se_ss.data.batching import EmptyBatch, LeavingOut, SkippedItem, SkippingDataset
from unified_se_ss.data.corpora.mixtures import prepare_librimix
from unified_se_ss.data.dataset import ItemKey, MixtureDataset, collate
from unified_se_ss.data.manifest import read_manifest
from unified_se_ss.errors import UserError
from unified_se_ss.training.log import SkippedItems

NAME = "hparams/libri2mix_noisy_dprnn.yaml"
PLACE = "wav8k/min"


def not_a_number(path):
    """A float file with one NaN."""
    signal, rate = soundfile.read(path)
    signal[len(signal) // 2] = np.nan
    soundfile.write(path, signal, rate, "FLOAT")


FAULTS = [
    (2, lambda path: path.write_bytes(path.read_bytes()[:4000]), "samples"),
    (0, not_a_number, "not finite"),
    (0, Path.unlink, "exist"),
]


@pytest.mark.parametrize("workers, damage, words", FAULTS)
def test_a_bad_item_is_left_out_by_name_and_the_others_are_as_they_were(
    tmp_path, workers, damage, words
):
    tree = make_tree(tmp_path)
    path = prepare_librimix(tree, tmp_path / "manifests")["train"]
    dataset = MixtureDataset(read_manifest(path, tree), 2)
    whole = {dataset[i].id: dataset[i].mixture for i in range(len(dataset))}
    bad = tree / PLACE / "train-360/s1/train-360-2.wav"
    damage(bad)
    loader = torch.utils.data.DataLoader(
        SkippingDataset(dataset),
        batch_sampler=[[ItemKey(1, i) for i in (0, 2, 4)], [ItemKey(1, 2)]],
        collate_fn=LeavingOut(collate),
        num_workers=workers,
    )
    batch, empty = loader
    assert batch.ids == ["train-360-0", "train-360-4"]
    for name, mixture, length in zip(batch.ids, batch.mixture, batch.lengths):
        assert torch.equal(mixture[:length], whole[name])
    ((identity, file, reason),) = batch.skipped
    assert (identity, file) == ("train-360-2", str(bad)) and words in reason
    assert isinstance(empty, EmptyBatch) and len(empty) == 0
    assert empty.skipped == batch.skipped


def test_a_mistake_in_the_program_is_raised():
    with pytest.raises(IndexError):
        SkippingDataset([])[0]


def test_what_is_no_signal_may_hold_nan():
    examples = [
        {"mixture": torch.zeros(2, 5), "directions": torch.full((2, 2), torch.nan)},
        (torch.zeros(3), torch.tensor([0, torch.inf, 0])),
    ]
    good, bad = SkippingDataset(examples)
    assert good is examples[0]
    assert bad.reason.startswith("signal 1 holds values that are not finite")


BAD = SkippedItem('a,"b"', "a.wav", "a.wav: is empty\nquite")


def test_a_resumed_run_forgets_what_came_after_its_place(tmp_path):
    items = SkippedItems(tmp_path, most=0.9)
    for epoch in (1, 2):
        items.begin("train", epoch, n_items=10)
        for batch in (1, 3, 5):
            items.add([BAD], batch)
        assert items.end() == 3
        items.begin("dev", epoch, n_items=2)
        items.add([BAD], 1)
    whole = items.path.read_text()
    assert items.rows[0]["reason"] == BAD.reason and len(items.rows) == 8

    again = SkippedItems(tmp_path, most=0.9)
    again.begin("train", 2, n_items=10, batches=3)  # stopped after the third batch
    assert again.count == 2
    there = [r["epoch"] + r["batch"] for r in again.rows if r["subset"] == "train"]
    assert there == ["11", "13", "15", "21", "23"]
    again.add([BAD], 5)
    assert again.end() == 3
    again.begin("dev", 2, n_items=2)
    again.add([BAD], 1)
    assert items.path.read_text() == whole


def test_a_line_that_was_cut_off_is_not_read(tmp_path):
    items = SkippedItems(tmp_path, most=1)
    items.begin("train", 1, n_items=10)
    items.add([BAD, BAD], 1)
    text = items.path.read_text()
    items.path.write_text(text + "1,train,2,x")
    assert len(items.rows) == 2
    items.begin("dev", 1, n_items=10)
    assert items.path.read_text() == text


def test_too_many_stop_the_run(tmp_path):
    items = SkippedItems(tmp_path, most=0.01)
    items.begin("train", 1, n_items=100)
    items.add([BAD], 1)
    with pytest.raises(UserError, match="(?s)2 of the 100 items.*a.wav.*max_skipped"):
        items.add([BAD], 2)
    with pytest.raises(UserError, match="max_skipped_share: is 2"):
        SkippedItems(tmp_path, most=2)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_over_bad_files(tmp_path, ranks):
    """Faults that appear after the manifests were made: the run ends well and tells."""
    tree = make_tree(tmp_path, counts=(6, 3, 3))
    out = tmp_path / "run"
    keys = {"number_of_epochs": 1, "batch_size": 1, "speed_percents": "null"}
    keys |= {"valid_batch_size": 1, "max_skipped_share": 0.5, "num_workers": 2}
    code = f"""
import sys, runpy, unified_se_ss.data.corpora.mixtures as l
from pathlib import Path
import unified_se_ss.training
run = sys.modules["unified_se_ss.training.run"]
fit = run.train_and_test
place = Path({str(tree / PLACE)!r})
def broken(*a, **k):
    (place / "train-360/s1/train-360-2.wav").unlink(missing_ok=True)
    (place / "dev/s2/dev-1.wav").write_bytes(b"text")
    (place / "test/mix_both/test-1.wav").unlink(missing_ok=True)
    return fit(*a, **k)
run.train_and_test = broken
"""
    train, *arguments = command(NAME, tree, out, **keys)
    script = tmp_path / "train.py"
    start = f"sys.argv[0] = {train!r}\nrunpy.run_path({train!r}, run_name='__main__')\n"
    script.write_text(code + start)
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}")
    printed, progress = run([str(script), *arguments], launcher if ranks > 1 else ())
    skipped = {(r["subset"], r["ID"]): r["file"] for r in rows(out / "skipped.csv")}
    assert set(skipped) == {("train", "train-360-2"), ("dev", "dev-1"), ("test", "test-1")}
    assert skipped["train", "train-360-2"].endswith("train-360/s1/train-360-2.wav")
    (log,) = rows(out / "train_log.csv")
    assert (log["skipped_items"], log["skipped_items_dev"]) == ("1", "1")
    assert [row["ID"] for row in rows(out / "results.csv")] == ["test-0", "test-2"]
    assert "1 of 3 test items" in printed
    assert "skipped=1" in progress
