"""The recipe of enhancement and recognition in small: data, command line, Brain."""

import csv
import importlib.util
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from librimix import voice
from running import ROOT, as_arguments, run_python, run_script
from test_recognition import network

from unified_se_ss.data import audio
from unified_se_ss.data.dataset import TranscribedExample, collate_transcribed
from unified_se_ss.networks import MaskingFront

RECIPE = ROOT / "recipes" / "GradientRemedy"
WORDS = ("one", "two", "three", "four", "five")
# Network, schedule and data of the demo's YAML, small.
SMALL = {
    "front.hidden": 6,
    "n_mels": 20,
    "subsampling.channels": 2,
    "d_model": 8,
    "transformer.nhead": 2,
    "transformer.num_encoder_layers": 1,
    "transformer.d_ffn": 8,
    "transformer.kernel_size": 5,
    "batch_size": 4,
    "valid_batch_size": 4,
    "number_of_epochs": 2,
    "warmup_steps": 2,
    "total_steps": 9,
    "num_workers": 0,
    "normalise_by": 4,
    "beam_size": 2,
    "save_waves": 1,
    "log_interval": 1,
    "device": "cpu",
}


def make_corpus(folder, counts=(8, 3, 3)):
    """A tree of the demo corpus' shape with one speaker, and the demo's YAML for it."""
    rows = []
    for number, name in enumerate(("train-360", "dev", "test")):
        place = folder / "corpus" / "Libri1Mix" / "wav8k" / "min" / name
        for index in range(counts[number]):
            rng = np.random.default_rng([number, index])
            speech = voice(rng, 6400 + 320 * index, 0.9 - 0.1 * (index % 9))
            text = " ".join(rng.choice(WORDS, 3))
            rows.append([name, f"{name}-{index}", f"{name}-speaker", text])
            audio.write(place / "s1" / f"{name}-{index}.wav", speech, 8000)
            noise = 0.1 * rng.standard_normal(len(speech))
            audio.write(place / "noise" / f"{name}-{index}.wav", noise, 8000)
    with open(folder / "corpus" / "transcripts.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["subset", "ID", "speaker_1", "transcript_1"], *rows])
    text = (RECIPE / "hparams" / "demo.yaml").read_text(encoding="utf-8")
    start, end = text.index("corpus: !name"), text.index("prepare: !name")
    path = folder / "demo.yaml"
    path.write_text(text[:start] + text[end:], encoding="utf-8")
    return path


def run(yaml, out, expected=0, launcher=(), **keys):
    """What train.py prints with a small network."""
    yaml = Path(yaml)
    keys = {
        "data_folder": yaml.parent / "corpus" / "Libri1Mix",
        **SMALL,
        **keys,
        "output_folder": out,
    }
    arguments = [str(RECIPE / "train.py"), str(yaml), *as_arguments(keys)]
    if launcher:
        done = run_python(*launcher, *arguments, expected=expected)
    else:
        done = run_script(*arguments, expected=expected)
    return done.stdout + done.stderr


def recipe_module():
    """The recipe's train.py."""
    if "remedy_train" not in sys.modules:
        sys.path.insert(0, str(RECIPE))
        spec = importlib.util.spec_from_file_location("remedy_train", RECIPE / "train.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["remedy_train"] = module
        spec.loader.exec_module(module)
    return sys.modules["remedy_train"]


def batch_of(lengths, seed=0, clean=True, only=None):
    """Noisy utterances of so many samples, or some of them; each says two to four tokens."""
    utterances = []
    for index, length in enumerate(lengths):
        if only is not None and index not in only:
            continue
        rng = torch.Generator().manual_seed(1000 * seed + index)
        speech = 0.1 * torch.randn(length, generator=rng)
        noise = 0.05 * torch.randn(length, generator=rng)
        text = "abcd"[: 2 + index % 3]
        utterances.append(
            TranscribedExample(f"{index}", speech + noise, speech, text, clean)
        )
    return collate_transcribed(
        utterances, lambda text: [4 + "ab".find(c) % 3 for c in text]
    )


def brain(rule="remedy", run_opts=None, **hparams):
    """A Brain with a small front and recogniser, without dropout; takes plain steps."""
    torch.manual_seed(3)
    modules = {"front": MaskingFront(64, 32, 6, 1, 0.0), "recogniser": network()}
    keys = {
        "system": "joint",
        "weight_se": 0.3,
        "weight_ctc": 0.3,
        "label_smoothing": 0.1,
        "shared_modules": ["front"] if hparams.get("weight_se", 0.3) else [],
        "rule": rule,
        "max_grad_norm": 5.0,
        "lr_scheduler": lambda optimizer: None,
        **hparams,
    }
    return recipe_module().RemedyBrain(
        modules=modules,
        opt_class=keys.pop("optimizer", partial(torch.optim.SGD, lr=0.01)),
        hparams=keys,
        run_opts={"device": "cpu", "noprogressbar": True, **(run_opts or {})},
    )


def prepare_to_fit(trained):
    """What fit() does before its first epoch."""
    trained.on_fit_start()
    trained.modules.train()
    return trained
