"""The examples of docs/examples run, do what docs/your_recipe.md says, and are in it."""

import difflib
import importlib.util
import re
import sys
import textwrap

import pytest
import torch
import yaml
from forked_ranks import of_ranks
from hyperpyyaml import load_hyperpyyaml
from running import ROOT, run_python
from speechbrain.dataio.batch import PaddedBatch
from torch.utils.data import DataLoader

from unified_se_ss.gradients import RULES

EXAMPLES = ROOT / "docs" / "examples"
PAGE = (ROOT / "docs" / "your_recipe.md").read_text(encoding="utf-8")
# Frames of each item, by step and rank. Two plain means are the mean of the joined batch
# where batches and lengths are equal; sums with their numbers of items always are.
EQUAL = [[[30, 30], [30, 30]], [[25, 25, 25], [25, 25, 25]]]
UNEVEN = [[[30, 21, 26], [40]], [[22], [35, 20]]]
LENGTHS = {"after": EQUAL, "by_items": UNEVEN}
MANY = UNEVEN * 3


def load(name):
    """A file of docs/examples as a module, without its name among the modules."""
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), EXAMPLES / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(name, folder, precision=torch.float64, **options):
    """The Brain of an example, without its epochs' ends."""
    hparams_of = "before" if name == "before" else "after"
    with open(EXAMPLES / hparams_of / "hparams.yaml", encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, {"output_folder": str(folder)})
    example = load(f"{name}/train.py")
    run_opts = {"device": "cpu", "noprogressbar": True, "distributed_backend": "gloo"}
    for key in ("max_grad_norm", "grad_accumulation_factor"):
        if key in options:
            run_opts[key] = options.pop(key)
    brain = example.Recipe(
        modules={n: module.to(precision) for n, module in hparams["modules"].items()},
        opt_class=hparams["opt_class"],
        hparams={**hparams, **options},
        run_opts=run_opts,
    )
    brain.on_stage_end = lambda *_: None
    return brain


def batches(lengths, ranks=(0, 1), dtype=torch.float64):
    """The items of some ranks, one batch for each step."""
    for step, of_rank in enumerate(lengths):
        items = []
        for rank in ranks:
            generator = torch.Generator().manual_seed(100 * step + rank)
            for frames in of_rank[rank]:
                noisy, clean = torch.randn(2, frames, 20, generator=generator).to(dtype)
                phones = torch.randint(10, (frames,), generator=generator)
                items.append({"noisy": noisy, "clean": clean, "phones": phones})
        yield PaddedBatch(items)


def fit(brain, data):
    """Train for an epoch; the weights at its end."""
    brain.fit([1], DataLoader(list(data), batch_size=None))
    return {
        name: value.detach().clone() for name, value in brain.raw_modules.named_parameters()
    }


def blocks(language):
    """The page's blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def difference(before, after):
    """What the page must show of two files."""
    texts = ((EXAMPLES / name).read_text(encoding="utf-8") for name in (before, after))
    lines = map(str.splitlines, texts)
    return "\n".join(difflib.unified_diff(*lines, before, after, n=1, lineterm="")) + "\n"


def largest_difference(one, other):
    """Largest |x - y| over the largest |x|, by tensor."""
    return max(float((one[n] - other[n]).abs().max() / one[n].abs().max()) for n in one)


# The page


def test_the_page_shows_the_real_differences():
    assert blocks("diff") == [
        difference("before/train.py", "after/train.py"),
        difference("before/hparams.yaml", "after/hparams.yaml"),
        difference("after/train.py", "by_items/train.py"),
    ]


def test_it_is_a_matter_of_three_lines_and_two_keys():
    """But for the import and empty lines."""
    changed = [line for line in blocks("diff")[0].splitlines()[2:] if line[:1] == "+"]
    code = [line for line in changed if line[1:].strip() and "import" not in line]
    assert len(code) == 2
    keys = [line for line in blocks("diff")[1].splitlines()[2:] if line[:1] == "+"]
    assert sum(bool(line[1:].strip()) for line in keys) == 2


def test_the_code_on_the_page_is_that_of_the_examples():
    files = [path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")]
    assert len(blocks("python")) == 3
    for block in blocks("python"):
        indented = (textwrap.indent(block, indent) for indent in ("", " " * 4, " " * 8))
        assert any(text in file for text in indented for file in files), block


@pytest.fixture
def own_rule():
    """The example of a rule of one's own; forgotten afterwards."""
    try:
        yield load("own_rule.py")
    finally:
        RULES.pop("soften")


@pytest.mark.parametrize("number", range(len(blocks("yaml"))))
def test_every_setting_on_the_page_trains(number, tmp_path, own_rule):
    settings = yaml.safe_load(blocks("yaml")[number])
    if str(settings["rule"]).startswith("torchjd"):
        pytest.importorskip("torchjd")
    brain = make("after", tmp_path, **settings)
    before = {n: p.detach().clone() for n, p in brain.modules.named_parameters()}
    weights = fit(brain, batches(UNEVEN))
    assert all(weights[name].isfinite().all() for name in weights)
    assert all(not torch.equal(weights[name], before[name]) for name in weights)
    assert brain.monitor.read()["steps"] == len(UNEVEN)


def test_the_defaults_on_the_page_are_the_defaults(tmp_path):
    stated = yaml.safe_load(blocks("yaml")[0])
    one, other = (fit(make("after", tmp_path, **s), batches(UNEVEN)) for s in (stated, {}))
    assert all(torch.equal(one[name], other[name]) for name in one)


# What the recipe does


@pytest.mark.parametrize(
    "options",
    [{"max_grad_norm": 0.05}, {"max_grad_norm": 5.0}, {"grad_accumulation_factor": 2}],
)
def test_with_sum_the_weights_are_those_before(tmp_path, options):
    """Adam, clipping that does something or nothing, accumulation; float64.

    Two scalars count one each, so their mean over two micro-batches is theirs as well.
    """
    before = fit(make("before", tmp_path, **options), batches(MANY))
    after = fit(make("after", tmp_path, rule="sum", **options), batches(MANY))
    assert largest_difference(before, after) < 1e-10


def test_with_project_they_are_not(tmp_path):
    before = fit(make("before", tmp_path), batches(MANY))
    after = make("after", tmp_path)
    weights = fit(after, batches(MANY))
    assert 0 < after.monitor.read()["conflict_rate"] < 1
    assert largest_difference(before, weights) > 1e-3


@pytest.mark.parametrize("name", LENGTHS)
def test_two_ranks_are_one_process_with_the_joined_batch(name, tmp_path):
    one, other = of_ranks(
        lambda rank: fit(make(name, tmp_path), batches(LENGTHS[name], [rank]))
    )
    assert all(torch.equal(one[parameter], other[parameter]) for parameter in one)
    alone = fit(make(name, tmp_path), batches(LENGTHS[name]))
    assert largest_difference(alone, one) < 1e-10


# The examples as scripts


@pytest.mark.parametrize("name", ["before", "after", "by_items"])
def test_an_example_trains_as_a_script(name, tmp_path, monkeypatch, capsys):
    hparams = EXAMPLES / ("before" if name == "before" else "after") / "hparams.yaml"
    options = ["--device", "cpu", "--noprogressbar", "--output_folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["train.py", str(hparams), *options])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # SpeechBrain puts its own there
    load(f"{name}/train.py").main()
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[-1]) for line in lines if "VALID" in line]
    assert len(losses) == 3 and losses[-1] < losses[0] - 0.3
    assert list(tmp_path.glob("save/CKPT*/encoder.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["before", "after"])
def test_an_example_trains_on_two_ranks_as_a_script(name, tmp_path):
    done = run_python(
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *(EXAMPLES / name / "train.py", EXAMPLES / name / "hparams.yaml"),
        *("--device", "cpu", "--noprogressbar", "--distributed_backend", "gloo"),
        *("--output_folder", tmp_path),
    )
    assert done.stdout.count("VALID") == 3
    assert len(list(tmp_path.glob("save/CKPT*"))) == 1


def test_the_plain_loop_trains_both_tasks():
    report = load("plain_loop.py").train(steps=100)
    first, last = report[:20].mean(0), report[-20:].mean(0)
    assert last[0] < 0.5 * first[0] and last[1] < 0.7 * first[1]
    assert 0 < report[:, 2].mean() < 1


def test_a_rule_of_ones_own_is_a_rule(own_rule, tmp_path):
    """Between `sum` and `project`, and these at its ends."""

    def weights(rule, **options):
        return fit(make("after", tmp_path, rule=rule, rule_options=options), batches(MANY))

    between = weights("soften")
    for strength, rule in ((1.0, "project"), (0.0, "sum")):
        end = weights(rule)
        assert largest_difference(weights("soften", strength=strength), end) < 1e-12
        assert largest_difference(between, end) > 1e-4


# What goes wrong


def returning(change):
    """Let a Brain return other losses than those that it computed."""

    def apply(brain):
        losses = brain.compute_objectives
        brain.compute_objectives = lambda *arguments: change(*losses(*arguments))

    return apply


FAULTS = [
    ("no trainable parameter", {"shared_modules": ["encodr"]}, None),
    ("both shared and auxiliary", {"auxiliary_modules": ["enhancer", "encoder"]}, None),
    ("the main task uses", {"auxiliary_modules": ["enhancer", "recognizer"]}, None),
    ("returned a list", {}, returning(lambda *losses: list(losses))),
    ("names no module", {"shared_modules": [], "auxiliary_modules": []}, None),
    ("of shape", {}, returning(lambda *_: (torch.ones(2), None))),
    ("is a float", {}, returning(lambda main, _: (main, 0.5))),
    ("has no option", {"rule": "remedy", "rule_options": {"K": 3}}, None),
]


def rows():
    """Messages in the page's table."""
    table = PAGE[PAGE.index("| message | why |") :]
    return [line.split("|")[1].strip() for line in table.splitlines()[2:] if "|" in line]


@pytest.mark.parametrize("words, options, change", FAULTS)
def test_messages_are_those_on_the_page(words, options, change, tmp_path):
    (expected,) = (row for row in rows() if words in row)
    brain = make("after", tmp_path, **options)
    if change:
        change(brain)
    with pytest.raises(Exception, match=re.escape(expected)):
        fit(brain, batches(UNEVEN))


def test_a_head_that_is_in_neither_list_is_told(tmp_path, caplog):
    (expected,) = (row for row in rows() if "Only the auxiliary task" in row)
    fit(make("after", tmp_path, auxiliary_modules=[]), batches(UNEVEN))
    assert expected in [record.getMessage() for record in caplog.records]


def test_every_message_on_the_page_is_tested():
    words = [fault[0] for fault in FAULTS] + ["Only the auxiliary task"]
    assert all(any(part in row for part in words) for row in rows())
    assert len(rows()) == len(words)
