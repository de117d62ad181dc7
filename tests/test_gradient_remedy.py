"""Enhancement and recognition together: the recipe from the data to the report."""

import copy
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from forked_ranks import of_ranks
from remedy import batch_of, brain, make_corpus, prepare_to_fit, recipe_module, run
from rule_oracles import published_remedy
from running import rows
from speechbrain import Stage

from unified_se_ss.data.corpora.transcribed import UtteranceLimits, filter_utterances
from unified_se_ss.data.manifest import read_manifest
from unified_se_ss.errors import UserError
from unified_se_ss.gradients import RULES

LENGTHS = [6000, 3210, 4321, 5000]


@pytest.fixture(scope="module")
def yaml(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("remedy"))


@pytest.fixture(scope="module")
def joint(yaml, tmp_path_factory):
    """A run of the joint system: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("joint") / "run"
    return folder, run(yaml, folder)


# ------------------------------------------------------------------ runs


def test_a_run_from_the_data_to_the_report(joint):
    folder, printed = joint
    results = rows(folder / "results.csv")
    assert len(results) == 3
    for row in results:
        assert len(row["transcript"].split()) == int(row["words"]) == 3
        for suffix in ("", "_noisy", "_untrained"):
            share = 100 * int(row[f"word_errors{suffix}"]) / 3
            assert float(row[f"wer{suffix}"]) == pytest.approx(share)
        assert math.isfinite(float(row["si_snr_i"]))
    errors = sum(int(row["word_errors"]) for row in results)
    alignments = (folder / "wer.txt").read_text(encoding="utf-8")
    assert f"%WER {100 * errors / 9:.2f} [ {errors} / 9" in alignments
    for line in ("WER  ", "WER without the front", "WER before training", "alignments  "):
        assert line in printed
    assert "Said and recognised" in (folder / "report.html").read_text(encoding="utf-8")
    assert all((folder / name).stat().st_size for name in ("gradients.png", "curves.png"))
    log = rows(folder / "train_log.csv")
    assert {"valid_wer", "valid_accuracy", "train_se_loss", "conflict_rate"} <= set(log[0])
    # The schedule follows the steps: two of an epoch, two of warm-up, nine in all.
    assert [float(row["lr"]) for row in log] == pytest.approx([0.002, 0.002 * 5 / 7])


@pytest.mark.parametrize("system", ["noisy", "cascade"])
def test_the_systems_that_it_is_compared_with(yaml, tmp_path, system):
    """The unusable utterances are named and left out."""
    out, keys = tmp_path / "run", {"max_duration": 0.9, "number_of_epochs": 1}
    printed = run(yaml, out, system=system, **keys)
    results = rows(out / "results.csv")
    assert ("wer_noisy" in results[0]) == (system == "cascade")
    rate = rows(out / "train_log.csv")[0]
    assert ("conflict_rate" in rate) == (system == "cascade")
    left_out = rows(out / "left_out_train.csv")
    assert [row["ID"] for row in left_out] == [f"train-360-{n}" for n in (3, 4, 5, 6, 7)]
    assert "it lasts 0.9 s, longer than max_duration" in left_out[0]["reason"]
    assert "5 of 8 utterances are left out of training" in printed.replace("\n", " ")
    assert len(results) == 3  # the test has all


def test_a_trained_front_can_be_taken_over_and_frozen(yaml, joint, tmp_path):
    keys = {"number_of_epochs": 1, "pretrained_front": joint[0], "freeze_se": True}
    run(yaml, tmp_path / "run", **keys)
    fronts = [
        [
            torch.load(path, weights_only=True)
            for path in folder.glob("save/CKPT*/front.ckpt")
        ]
        for folder in (joint[0], tmp_path / "run")
    ]
    assert len(fronts[0]) == 2 and len(fronts[1]) == 1
    assert any(equal(trained, fronts[1][0]) for trained in fronts[0])


def equal(one, other):
    """Whether two sets of weights are the same."""
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"freeze_se": True}, "freeze_se: a front that stays as it is must have been"),
        ({"pretrained_front": "nowhere"}, "pretrained_front: nowhere holds no checkpoint"),
        ({"n_tokens": 6}, "n_tokens: is 6; "),
        ({"unusable": "error", "max_duration": 0.9}, "longer than max_duration"),
        ({"snr_range": "[10, -5]"}, "snr_range: is [10, -5]"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_message(yaml, tmp_path, keys, message):
    printed = run(yaml, tmp_path / "run", expected=2, **keys)
    assert message in printed.replace("\n", " ")
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"system": "casade"}, "did you mean 'cascade'"),
        ({"weight_se": 1.0}, "weight_se: is 1.0; expected less than 1"),
        ({"system": "cascade", "weight_se": 0.0}, "a cascade's front learns from SE alone"),
    ],
)
def test_keys_that_do_not_fit_are_said(keys, message):
    known = {"system": "joint", "freeze_se": False, "pretrained_front": None}
    known |= {"rule": "sum", "granularity": "parameter", "aux_scale": None}
    known |= {"unusable": "error", "token_type": "char", **keys}
    with pytest.raises(UserError, match=message):
        recipe_module().check(known)


# ------------------------------------------------------------------ what is left out


def limits(**values):
    """Limits by characters: one token each, a frame each tenth of a second."""
    known = {
        "max_duration": 2.0,
        "encode": lambda text: [ord(c) for c in text],
        "unknown": lambda text: [c for c in text if c == "ß"],
        "count_frames": lambda samples: samples // 800,
        "sample_rate": 8000,
    }
    return UtteranceLimits(**{**known, **values})


@pytest.mark.parametrize(
    "text, reason",
    [
        ("  ", "its transcript is empty"),
        ("groß", "no token stands for 'ß'"),
        ("abcdefghijk", "its 11 tokens need 11 frames, and it has 10"),
        ("aabbccdde", "its 9 tokens need 13 frames, and it has 10"),  # one between equals
        ("abcdefghij", None),
    ],
)
def test_why_an_utterance_cannot_be_trained_on(text, reason):
    item = SimpleNamespace(duration=1.0, attributes={"transcript": text})
    assert limits().violation(item) == reason


def test_left_out_for_each_reason_or_all_for_none(tmp_path):
    lines = ["ID,duration,sample_rate,clean,transcript", "a,1,8000,a.wav,ok"]
    lines += ["b,3,8000,b.wav,ok", "c,1,8000,c.wav,"]
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
    manifest = read_manifest(tmp_path / "m.csv")
    kept = filter_utterances(manifest, limits(), "leave_out", tmp_path / "left_out.csv")
    assert [item.id for item in kept.items] == ["a"]
    assert [row["ID"] for row in rows(tmp_path / "left_out.csv")] == ["b", "c"]
    with pytest.raises(UserError, match="2 of 3 utterances.*b: it lasts 3.0 s.*c: its tr"):
        filter_utterances(manifest, limits(), "error", tmp_path / "left_out.csv")
    with pytest.raises(UserError, match="3 of 3 utterances cannot"):
        filter_utterances(
            manifest, limits(max_duration=0.5), "leave_out", tmp_path / "left_out.csv"
        )
    # A list of an earlier start does not outlive its reasons.
    assert filter_utterances(
        manifest, limits(max_duration=9.0), "leave_out", tmp_path / "left_out.csv"
    )
    assert [row["ID"] for row in rows(tmp_path / "left_out.csv")] == ["c"]


# ------------------------------------------------------------------ numerics


def losses_of(trained, batch):
    """Both losses of each item, without dropout."""
    trained.modules.eval()
    with torch.no_grad():
        _, losses = trained.losses_of(batch, Stage.TRAIN)
    return losses


def test_padding_changes_neither_loss_nor_recognition():
    trained, together = brain(), batch_of(LENGTHS)
    joined = losses_of(trained, together)
    alone = [losses_of(trained, batch_of(LENGTHS, only=[n])) for n in range(len(LENGTHS))]
    for task in ("main", "auxiliary"):
        total = sum(float(getattr(losses, task).total) for losses in alone)
        assert float(getattr(joined, task).total) == pytest.approx(total, rel=1e-5)
    with torch.no_grad():
        batched = trained.compute_forward(together, Stage.TEST)
        for item, length in enumerate(LENGTHS):
            single = trained.compute_forward(batch_of(LENGTHS, only=[item]), Stage.TEST)
            frames = int(single.recognised.frames)
            assert frames == int(batched.recognised.frames[item])
            found = batched.recognised.ctc[item, :frames]
            torch.testing.assert_close(found, single.recognised.ctc[0], atol=1e-5, rtol=0)
            heard = batched.enhanced.signal[item, :length]
            torch.testing.assert_close(heard, single.enhanced.signal[0], atol=1e-6, rtol=0)


def gradients_of(trained, batch):
    """Those that a step would be taken with."""
    prepare_to_fit(trained)
    trained._batches, trained.step = 1, 1
    _, losses = trained.losses_of(batch, Stage.TRAIN)
    trained.gradients.accumulate(losses)
    trained.gradients.combine()
    return {name: p.grad for name, p in trained.modules.named_parameters()}


def test_remedy_in_strict_mode_is_the_published_update():
    """Of the same gradients, against the published formula, tensor by tensor."""
    batch = batch_of(LENGTHS)
    asr, se = task_gradients(batch)
    found = gradients_of(brain(rule="remedy", rule_options={"strict": True}), batch)
    for name, gradient in found.items():
        expected = asr[name]
        if name.startswith("front."):
            pair = se[name].double().flatten(), asr[name].double().flatten()
            expected = published_remedy(*pair).view_as(gradient)
        assert (gradient - expected).norm() <= 1e-6 * expected.norm(), name


def task_gradients(batch):
    """Gradients of ASR and of SE apart, by autograd."""
    found = []
    for task in ("main", "auxiliary"):
        trained = prepare_to_fit(brain())
        _, losses = trained.losses_of(batch, Stage.TRAIN)
        loss = getattr(losses, task)
        (loss.total / loss.items).backward()
        named = trained.modules.named_parameters()
        found.append(
            {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named}
        )
    return found


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"auxiliary_only"}))
def test_every_rule_takes_a_finite_step(rule):
    if rule.startswith("torchjd"):
        pytest.importorskip("torchjd")
    gradients = gradients_of(brain(rule=rule), batch_of(LENGTHS))
    assert all(torch.isfinite(g).all() for g in gradients.values() if g is not None)
    assert any(g.abs().sum() > 0 for n, g in gradients.items() if n.startswith("front."))


def test_speech_without_a_clean_recording_teaches_recognition_alone():
    noisy_only = batch_of(LENGTHS, clean=False)
    with_clean, without = brain(rule="sum"), brain(rule="sum", weight_se=0.3)
    losses = losses_of(without, noisy_only)
    assert float(losses.auxiliary.total) == 0 and float(losses.auxiliary.items) == 0
    expected = losses_of(with_clean, batch_of(LENGTHS)).main.total
    assert float(losses.main.total) == pytest.approx(float(expected), rel=1e-6)
    gradients = gradients_of(without, noisy_only)
    assert all(torch.isfinite(g).all() for g in gradients.values())


@pytest.mark.parametrize("frozen", ["front.linear.weight", "recogniser.ctc.w.weight"])
def test_a_frozen_parameter_stops_nothing(frozen):
    """The published code stops updating where a parameter has no gradient."""
    trained = brain()
    dict(trained.modules.named_parameters())[frozen].requires_grad_(False)
    before = copy.deepcopy(trained.modules.state_dict())
    prepare_to_fit(trained)
    trained._batches = trained.step = 1
    trained.fit_batch(batch_of(LENGTHS))
    after = trained.modules.state_dict()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert frozen not in moved
    assert {"front.rnn.layers.0.weight_ih_l0", "front.linear.bias"} & moved
    assert any(name.startswith("recogniser.transformer") for name in moved)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_trains(precision):
    if precision == "fp16" and not torch.cuda.is_available():
        pytest.skip("fp16 needs a GPU, and there is none")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"precision": precision, "device": device}
    trained = brain(run_opts=options, optimizer=lambda p: torch.optim.Adam(p, lr=0.003))
    prepare_to_fit(trained)
    batch, losses = batch_of(LENGTHS), []
    for _ in range(30):
        trained._batches = trained.step = 1
        trained.fit_batch(batch)
        means = trained.means.read()
        losses.append(means["main"])
        trained.means.reset()
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.8 * losses[0]


# ------------------------------------------------------------------ ranks


def weights_after_a_step(items):
    """Those after one step on some items of the batch."""
    # Not Adam, which divides by the gradient's size: of tiny ones, rounding would show.
    trained = brain(optimizer=partial(torch.optim.SGD, lr=0.1))
    trained.on_stage_end = lambda *_: None
    trained.on_stage_start = lambda *_: None
    batch = batch_of(LENGTHS, only=items)
    trained.fit([1], torch.utils.data.DataLoader([batch], batch_size=None))
    return trained.modules.state_dict()


def test_two_ranks_take_the_step_of_one_process():
    one = weights_after_a_step(range(4))
    first, second = of_ranks(lambda rank: weights_after_a_step([2 * rank, 2 * rank + 1]))
    begun = brain().modules.state_dict()
    assert any(not torch.equal(begun[name], one[name]) for name in one)
    for name, weights in one.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], weights, atol=1e-5, rtol=0)
