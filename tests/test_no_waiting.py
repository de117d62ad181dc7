"""Within a training step the host waits for no device, in any recipe.

From the loader's batch to the optimizer's step. What is fetched every ``log_interval``
steps for the progress bar is not part of a step.
"""

import importlib.util
from functools import partial
from pathlib import Path

import pytest
import torch
from host_reads import HostReads
from hyperpyyaml import load_hyperpyyaml
from pretend_device import DEVICE, Waits
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from unified_se_ss.data.binaural import BinauralExample
from unified_se_ss.data.dataset import (
    Example,
    TranscribedExample,
    collate,
    collate_transcribed,
)
from unified_se_ss.data.guided import MicBeamExample
from unified_se_ss.networks import MaskingFront, Recurrent

ROOT = Path(__file__).parent.parent
EQUAL, UNEQUAL = [4000, 4000], [3000, 4000]  # samples of the items of a batch


# ------------------------------------------------------------------ what is noticed


WAITS = {
    "copy": lambda x: torch.ones(3).to(x.device),
    "copy in place": lambda x: x.copy_(torch.ones(3)),
    "made there": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "made there by name": lambda x: torch.as_tensor([1.0], device=str(x.device)),
}
READS = {
    "cpu": lambda x: x.cpu(),
    "copied back": lambda x: torch.ones(3).copy_(x, non_blocking=True),
    "item": lambda x: x.sum().item(),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "repeats": lambda x: torch.repeat_interleave(x, x.long()),
    "clipping": lambda x: torch.nn.utils.clip_grad_norm_(
        [_with_gradient(x)], 1.0, error_if_nonfinite=True
    ),
}


def _with_gradient(x):
    parameter = torch.nn.Parameter(x.clone())
    parameter.grad = x
    return parameter


@pytest.mark.parametrize("way", WAITS)
def test_every_needless_wait_is_noticed(way):
    x = torch.ones(3, device=DEVICE)
    with Waits() as waits:
        WAITS[way](x)
    assert len(waits.places) == 1 and __file__ in waits.places[0]


@pytest.mark.parametrize("way", READS)
def test_every_read_is_an_error_or_noticed(way):
    x = torch.ones(3, device=DEVICE)
    with Waits() as waits, pytest.raises((RuntimeError, NotImplementedError)):
        READS[way](x)
        raise RuntimeError("noticed") if waits.places else AssertionError("not noticed")


def test_what_does_not_wait_is_not_noticed():
    x = torch.ones(3, device=DEVICE, requires_grad=True)
    with Waits() as waits:
        y = torch.where(x > 0, x, 0.0) * torch.ones(3).to(DEVICE, non_blocking=True)
        y.sum().backward()
        torch.nn.utils.clip_grad_norm_([x], 1.0)
        bool(torch.ones(3).sum() > 0)  # of the host's own
    assert waits.places == []


# ------------------------------------------------------------------ the recipes

# SpeechBrain's recogniser sends three small things to the device at each step, a window,
# a filter bank's scale and a mask's lengths, and waits for them. So does CTC in CUDA.


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def mixtures(lengths, n_speakers=2, shorter=1):
    sources = [randn(n_speakers, n // shorter) for n in lengths]
    return collate([Example(str(s.shape), s.sum(0), s) for s in sources])


def guided(lengths):
    return collate([MicBeamExample(str(n), randn(2, n), randn(n)) for n in lengths])


def ears(lengths):
    unknown = torch.full((2, 2), torch.nan)
    sources = [randn(2, 2, n) for n in lengths]
    return collate([BinauralExample("a", s.sum(0), s, unknown) for s in sources])


def utterances(lengths):
    items = [
        TranscribedExample("a", randn(n), randn(n), "ab" * n, n > 3000) for n in lengths
    ]
    return collate_transcribed(items, lambda text: [3 + len(text) % 7] * 3)


SMALL_SEPFORMER = {"heads": 2, "feed_forward": 8, "ss_layers": 1, "n_features": 8}
SMALL_SEPFORMER |= {"ss_blocks": 2, "n_basis": 16, "chunk_length": 10}
SMALL_DPRNN = {"hidden": 4, "ss_blocks": 2, "n_features": 8, "n_basis": 16}
SMALL_DPRNN |= {"chunk_length": 4, "kernel_size": 64, "stride": 32}
UNIFIED = ["network.encoder", "network.enhancer"]
RECIPES = {
    "SepFormer": (
        "train.py",
        "UnifiedBrain",
        "hparams/libri2mix_noisy.yaml",
        SMALL_SEPFORMER,
        UNIFIED,
        mixtures,
    ),
    "DPRNN, three speakers": (
        "train.py",
        "UnifiedBrain",
        "hparams/libri3mix_noisy_dprnn.yaml",
        SMALL_DPRNN | {"aux_scale": "ema", "rule": "remedy"},
        UNIFIED,
        partial(mixtures, n_speakers=3, shorter=16),  # on "meta", LSTMs go step by step
    ),
    "demo": (
        "train.py",
        "UnifiedBrain",
        "hparams/demo.yaml",
        {"chunk_length": 4, "precision": "fp32"},
        UNIFIED,
        partial(mixtures, shorter=16),
    ),
    "GSENet": (
        "recipes/GSENet/train.py",
        "GSENetBrain",
        "recipes/GSENet/hparams/demo.yaml",
        {"weight_si_snr": 0.1},
        [],
        guided,
    ),
    "binaural": (
        "recipes/BinauralWSJ0Mix/train.py",
        "BinauralBrain",
        "recipes/BinauralWSJ0Mix/hparams/demo.yaml",
        {"ild_weight": 1.0, "ipd_weight": 1.0, "loss_threshold": -30},
        [],
        ears,
    ),
    "Gradient Remedy": (
        "recipes/GradientRemedy/train.py",
        "RemedyBrain",
        "recipes/GradientRemedy/hparams/demo.yaml",
        {},
        ["front"],
        utterances,
    ),
}


def make_brain(name, device, folder, monkeypatch):
    """The Brain of a recipe, about to train, and what makes its batches."""
    script, brain, hparams_file, overrides, shared, batch = RECIPES[name]
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    spec = importlib.util.spec_from_file_location("recipe_script", ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    overrides = {**overrides, "output_folder": str(folder)}
    text = (ROOT / hparams_file).read_text(encoding="utf-8")
    if "data_folder: !PLACEHOLDER" in text:
        overrides["data_folder"] = "unused"
    hparams = load_hyperpyyaml(text, overrides)
    hparams["shared_modules"] = shared
    made = getattr(module, brain)(
        hparams["modules"],
        hparams["optimizer"],
        hparams,
        {"device": str(device), "noprogressbar": True},
    )
    made.on_fit_start()
    made._batches, made.step = 100, 1
    made.modules.train()
    return made, batch


@pytest.mark.parametrize("lengths", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_step_waits_for_nothing(name, lengths, tmp_path, monkeypatch):
    brain, batch = make_brain(name, DEVICE, tmp_path, monkeypatch)
    with Waits() as waits:
        brain.fit_batch(batch(lengths))  # at the first there is more to set up
        waits.places.clear()
        brain.fit_batch(batch(lengths))
    theirs = [place for place in waits.places if "/speechbrain/" in place]
    assert [place for place in waits.places if place not in theirs] == []
    assert len(theirs) == (3 if name == "Gradient Remedy" else 0), theirs


@pytest.mark.parametrize("name", RECIPES)
def test_nor_does_an_operation_within_another(name, tmp_path, monkeypatch):
    """On the CPU, where the pretended device's own ways are not taken."""
    brain, batch = make_brain(name, "cpu", tmp_path, monkeypatch)
    brain.fit_batch(batch(EQUAL))
    following = batch(EQUAL)
    with HostReads() as reads:
        brain.fit_batch(following)
    assert [place for place in reads.places if not is_direct(place)] == []


def is_direct(place):
    """Whether the program itself asked for a number: of the host's, as the others show."""
    return place.startswith("Tensor.") or set(place.split(" < ")) <= {
        "aten::_local_scalar_dense",
        "aten::item",
        "aten::is_nonzero",
    }


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("lengths", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("name", [n for n in RECIPES if n != "Gradient Remedy"])
def test_cuda_says_so_too(name, lengths, tmp_path, monkeypatch):
    brain, batch = make_brain(name, "cuda", tmp_path, monkeypatch)
    first, second = (batch(lengths).pin_memory() for _ in range(2))
    brain.fit_batch(first)
    torch.cuda.set_sync_debug_mode("error")
    try:
        brain.fit_batch(second)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("n_fft, hop", [(64, 32), (64, 8), (512, 256)])
@pytest.mark.parametrize("samples", [1, 100, 1001])
def test_the_inverse_that_looks_at_nothing_is_that_of_torch(n_fft, hop, samples):
    front = MaskingFront(n_fft, hop, hidden=2, layers=1).double()
    spectrum, _ = front.analyse(randn(2, samples).double())
    spectrum = (spectrum * torch.rand(spectrum.shape)).requires_grad_()
    ours = front.synthesise(spectrum, samples)
    theirs = torch.istft(
        spectrum.transpose(1, 2),
        n_fft,
        hop,
        window=front.window,
        length=(spectrum.shape[1] - 1) * hop,
    )[..., :samples]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weights = torch.rand(ours.shape, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((signal * weights).sum(), spectrum)[0]
        for signal in (ours, theirs)
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_an_lstm_that_sorts_on_the_host_is_one_that_packs():
    torch.manual_seed(0)
    model = Recurrent(n_features=5, hidden=4, layers=2).double()
    x, lengths = randn(6, 9, 5).double(), torch.tensor([3, 9, 1, 9, 4, 7])
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(model.rnn(packed)[0], True, total_length=9)
    for way in (model, model._packed):  # a CPU's, and a GPU's
        torch.testing.assert_close(way(x, lengths), expected, rtol=0, atol=1e-12)
