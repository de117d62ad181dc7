"""The model card: what a model is, how good it is, and how to use it."""

from __future__ import annotations

from pathlib import Path

from unified_se_ss import __version__
from unified_se_ss.inference.max_length import longest_input

# Keys of a run that say what it was trained on, and how.
DATA_KEYS = ("mixture", "mode", "train_subset", "segment_seconds", "dynamic_mixing")
DATA_KEYS += ("snr_range",)
TRAINING_KEYS = ("rule", "granularity", "se_loss", "weight_se", "number_of_epochs")
TRAINING_KEYS += ("system", "weight_ctc", "average_checkpoints")

CARD = """\
---
pipeline_tag: {pipeline}
tags:
- {tag}
- speech-enhancement
---
# {title}

{what}

| | |
|---|---|
{facts}

## Results

{results}

## Training

{training}

## Use

{use}

## Licence

The program is under Apache 2.0. The weights are under no licence until whoever trained
them names one here; what they were trained on may bind that choice (of LibriMix:
LibriSpeech is CC BY 4.0, the WHAM! noises are CC BY-NC 4.0).
"""

RECOGNISER_USE = """\
```bash
python -m unified_se_ss recognise {folder} NOISY.wav -o OUT/
```

```python
from unified_se_ss.inference.recognizer import Recognizer

recognizer = Recognizer.from_folder("{folder}")
text, enhanced = recognizer.recognise("NOISY.wav")
```

`config.json` is plain data, `model.safetensors` holds numbers alone and `tokens.model` is
read by sentencepiece: loading runs no code from this folder."""

USES = {
    "native": """\
```bash
python -m unified_se_ss {task} {folder} NOISY.wav -o OUT/
```

```python
from unified_se_ss.inference import load_model

model = load_model("{folder}")
signal = model.{task}(mixture)  # {takes} at {sample_rate} Hz to {gives}
```

`config.json` is plain data and `model.safetensors` holds numbers alone: loading runs no
code from this folder.""",
    "speechbrain": """\
```python
from speechbrain.inference.separation import SepformerSeparation

model = SepformerSeparation.from_hparams(source="{folder}", savedir="cache")
sources = model.separate_batch(mixture)  # [B, T] at {sample_rate} Hz to [B, T, {n_sources}]
```

Nothing but SpeechBrain is needed. Its loader makes what `hyperparams.yaml` names, as it
does for every model: look into that file if you do not know where it comes from.{limit}""",
    "onnx": """\
```python
import onnxruntime

session = onnxruntime.InferenceSession("{folder}/model.onnx")
# mixture: float32, one of {takes} (B is 1)
signals = session.run(None, {{"mixture": mixture}})  # {outputs}
```

The mixture may have any length from {minimum_samples} samples at {sample_rate} Hz.{limit}""",
}


def model_card(model, contents, source, folder, format: str) -> str:
    """The text of the model card.

    Arguments
    ---------
    model : unified_se_ss.inference.Model
        The model.
    contents : unified_se_ss.inference.folders.Contents
        What it was read from.
    source : Path
        The folder it comes from; of a run, the results and the command are quoted.
    folder : Path
        Where it goes.
    format : str
        A key of :data:`USES`.

    Returns
    -------
    str
        Markdown.
    """
    hparams = contents.hparams or {}
    source = Path(source)
    longest = longest_input(model.network) if format != "native" else None
    seconds = (longest or 0) / model.sample_rate
    outputs = ["sources"] * bool(model.n_sources) + ["enhanced"] * model.can_enhance
    use = RECOGNISER_USE if model.decoding else USES[format]
    use = use.format(
        folder=Path(folder).name,
        task="separate" if model.n_sources else "enhance",
        takes="[B, T]" if model.channels == 1 else f"[B, {model.channels}, T]",
        gives=_shape(model),
        outputs=", ".join(outputs),
        sample_rate=model.sample_rate,
        n_sources=model.n_sources,
        minimum_samples=model.minimum_samples,
        limit=f" The longest input is {seconds:.0f} s." if longest else "",
    )
    recognises = model.decoding is not None
    return CARD.format(
        pipeline="automatic-speech-recognition" if recognises else "audio-to-audio",
        tag="speech-recognition" if recognises else "speech-separation",
        title=hparams.get("experiment_name", Path(folder).name),
        what=what_it_does(model),
        facts="\n".join(f"| {name} | {value} |" for name, value in facts(model).items()),
        results=_results(source, hparams),
        training=_training(hparams, source),
        use=use,
    )


def _shape(model) -> str:
    """The shape of what the model gives, such as [B, 2, T]."""
    sizes = [model.n_sources] * bool(model.n_sources) + [model.ears] * (model.ears > 1)
    return f"[{', '.join(map(str, ['B', *sizes, 'T']))}]"


def what_it_does(model) -> str:
    """One sentence for people who have never heard of it."""
    tasks = []
    if model.n_sources:
        tasks.append(f"separates a mixture of {model.n_sources} talkers")
    if model.can_enhance:
        tasks.append("removes noise from the mixture")
    if model.decoding:
        tasks.append("recognises what is said")
    return (
        f"A network that {' and '.join(tasks)}, at {model.sample_rate} Hz. Made with "
        f"unified_se_ss {__version__}, enhancement and "
        f"{'recognition' if model.decoding else 'separation'} in one network."
    )


def facts(model) -> dict:
    """Sizes and requirements, by name."""
    found = {
        "kind": model.kind,
        "sample rate": f"{model.sample_rate} Hz",
        "channels": model.channels,
        "sources": model.n_sources,
        "shortest input": f"{model.minimum_samples} samples",
        "causal": "yes" if model.causal else "no: it needs the whole signal",
        "parameters": f"{_count(model.network):,}",
    }
    if model.decoding:
        found["search"] = (
            f"beam of {model.decoding.beam_size}, CTC weight {model.decoding.ctc_weight:g}"
        )
    for name, part in model.network.named_children():
        found[f"of them {name}"] = f"{_count(part):,} ({type(part).__name__})"
    return found


def _count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _results(source: Path, hparams: dict) -> str:
    """What the run's evaluation wrote, if there was one."""
    table = _read(source / "summary.md").strip()
    if not table:
        return "None: the folder that this was exported from holds no evaluation."
    count = hparams.get("average_checkpoints", 1)
    what = "checkpoint that was best" if count == 1 else f"mean of the {count} best weights"
    return f"On the run's test set, with the {what} in validation.\n\n{table}"


def _training(hparams: dict, source: Path) -> str:
    """Data, settings and command of the run, as far as they are known."""
    if not hparams:
        return "Not known: exported from a folder that is not a run's."
    data = {"data": Path(str(hparams.get("data_folder", "unknown"))).name}
    data |= {key: hparams[key] for key in DATA_KEYS if key in hparams}
    data |= {key: hparams[key] for key in TRAINING_KEYS if key in hparams}
    lines = [f"- {key}: {value}" for key, value in data.items() if value is not None]
    quoted = ("command: ", "commit: ")
    lines += [
        f"- {key}`{line.removeprefix(key)}`"
        for line in _read(source / "env.log").splitlines()
        for key in quoted
        if line.startswith(key)
    ]
    return "\n".join(lines)


def _read(path: Path) -> str:
    """A small text file of the run; nothing if it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")[: 1 << 16]
    except OSError:
        return ""
