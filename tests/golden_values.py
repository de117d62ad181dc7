"""Golden values: what the recipes, commands and old models gave at a commit in the past.

  python tests/golden_values.py                 the names
  python tests/golden_values.py --write [NAME]  record anew all values, or those of some names

Everything goes through train.py, YAML files and commands. The few names of the package's
inside that are needed stand in ``INSIDE`` and ``main_and_auxiliary``, and nowhere else.
"""

import contextlib
import csv
import hashlib
import importlib
import importlib.util
import io
import json
import os
import re
import runpy
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch
from running import as_arguments, draw_nothing

# ------------------------------------------------ names of the inside; change them here

INSIDE = {
    "brain": "unified_se_ss.training.brain:TwoTaskBrain",
    "main": "unified_se_ss.__main__:main",
    "make_demo_corpus": "unified_se_ss.data.demo.corpus:prepare_demo_corpus",
    # Of the tests: small trees of the corpora with transcripts.
    "make_rats": "transcribed_trees:make_rats",
    "make_chime4": "transcribed_trees:make_chime4",
    "make_voicebank": "transcribed_trees:make_voicebank",
    "make_librispeech": "transcribed_trees:make_librispeech",
}


def inside(name):
    """What INSIDE says by this name."""
    module, _, attribute = INSIDE[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def main_and_auxiliary(losses):
    """Means of what compute_objectives returned: one number for each task."""
    if isinstance(losses, torch.Tensor):
        return [float(losses.detach().mean())]
    if hasattr(losses, "total"):  # a sum over items, and their number
        return [float(losses.total.detach() / losses.items)]
    return [x for loss in losses if loss is not None for x in main_and_auxiliary(loss)]


# ------------------------------------------------ values and their comparison

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "golden"
OLD = FOLDER / "old"  # packed: the folder NAME of a run or of an exported model
BITS = bool(int(os.environ.get("GOLDEN_BITS") or 0))
TIGHT, LOOSE = 1e-6, 1e-3
#: Parts that follow from training, which drifts from one processor to another.
DRIFTING = {"loss", "weights", "results"}
#: Parts of networks' outputs: products of matrices, summed in another order elsewhere.
COMPUTED = {"outputs"}
#: Columns that depend on the clock.
CLOCK = {"minutes", "data_wait"}
STEPS = 8


def numbers(x):
    """Digest, shape, mean, rms and four samples of an array or tensor."""
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu().numpy()
    x = np.ascontiguousarray(x)
    found = {"sha": hashlib.sha256(x.tobytes()).hexdigest()[:16]}
    found["shape"] = list(x.shape)
    if x.size:
        wide = x.astype(np.float64).ravel()
        places = (np.arange(1, 5) * wide.size) // 5
        found["mean"] = short(wide.mean())
        found["rms"] = short(np.sqrt(np.square(wide).mean()))
        found["samples"] = [short(v) for v in wide[places]]
    return found


def digest_of(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def short(value):
    return float(f"{value:.9g}")


def tensors_of(thing, seen=None):
    """All tensors within an object, whatever its fields are called."""
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, np.ndarray):
        yield torch.from_numpy(thing)
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from tensors_of(value)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            yield from tensors_of(value)
    elif hasattr(thing, "__dict__"):
        yield from tensors_of(vars(thing))


def batch_numbers(batch):
    """Numbers of the tensors of a batch, each once, in an order that no name decides."""
    found = {n["sha"]: n for n in map(numbers, tensors_of(batch))}
    return sorted(found.values(), key=lambda n: (n["shape"], n.get("mean"), n.get("rms")))


def as_one(parts):
    """The numbers of many arrays in short, in whatever order they come."""
    parts = sorted(parts, key=lambda part: part["sha"])
    digest = digest_of("".join(part["sha"] for part in parts))
    sums = [sum(part.get(name, 0) for part in parts) for name in ("mean", "rms")]
    return {"sha": digest, "sums": [short(value) for value in sums]}


def table(path, folder=None):
    """A CSV file in short: of each column the numbers' mean, or a digest of its texts."""
    text = path.read_text(encoding="utf-8")
    if folder is not None:
        text = relative(text, folder)
    header, *rows = csv.reader(io.StringIO(text))
    columns = {name: [row[n] for row in rows] for n, name in enumerate(header)}
    timeless = {name: cells for name, cells in columns.items() if name not in CLOCK}
    return {
        "sha": digest_of(json.dumps(timeless)),
        "rows": len(rows),
        "clock": [name for name in header if name in CLOCK],
        "columns": [[name, in_short(cells)] for name, cells in timeless.items()],
    }


def in_short(cells):
    values = [as_number(cell) for cell in cells if cell]
    if values and None not in values:
        return short(np.mean(values))
    return digest_of("\n".join(cells))[:8] if values else ""


def relative(text, folder):
    for path in (Path(folder).resolve(), Path(folder), ROOT):
        text = text.replace(str(path), "ROOT" if path == ROOT else "HERE")
    return text


def as_number(value):
    if isinstance(value, (int, float)):
        return float(value)
    with contextlib.suppress(TypeError, ValueError):
        return float(value)
    return None


def differences(found, golden, tolerance=TIGHT, place="", bits=None):
    """Where two values differ, in words."""
    bits = BITS if bits is None else bits
    if isinstance(golden, dict) and isinstance(found, dict):
        keys = [key for key in golden if bits or key != "sha"]
        if set(found) != set(golden):
            return [f"{place}: has {sorted(set(found) ^ set(golden))} in one of both only"]
    elif isinstance(golden, list) and isinstance(found, list):
        keys = range(len(golden))
        if len(found) != len(golden):
            return [f"{place}: {len(found)} values, not {len(golden)}"]
    else:
        one, other = as_number(found), as_number(golden)
        near = None not in (one, other) and np.isclose(
            one, other, tolerance, tolerance, equal_nan=True
        )
        same = found == golden or (near and (not bits or one != one))
        return [] if same else [f"{place}: {found!r}, not {golden!r}"]
    lines = []
    for key in keys:
        how = tolerance_of(key, tolerance), f"{place}/{key}", bits
        lines += differences(found[key], golden[key], *how)
    return lines


def tolerance_of(key, tolerance):
    if key in DRIFTING:
        return LOOSE
    return max(tolerance, 1e-5) if key in COMPUTED else tolerance


# ------------------------------------------------ sounds, the same everywhere


def sound(seed, seconds, rate, pole=0.5):
    """Noise of a colour that comes and goes; in steps of 16 bit."""
    rng, samples = np.random.default_rng(seed), round(seconds * rate)
    noise = rng.standard_normal(samples + 1)
    coloured = noise[1:] + pole * noise[:-1]
    swell = 1.1 + np.sin(2 * np.pi * 3 * np.arange(samples) / rate + np.sum(seed))
    return np.round(0.03 * swell * coloured * 32768) / 32768


def write(path, signal, rate):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, signal, rate, "PCM_16")


def mixtures(folder, subsets, stems, n_speakers, rate=8000, seconds=0.5):
    """Folders of the shape of LibriMix or WSJ0-2mix; `subsets` are the items of each."""
    for number, (subset, count) in enumerate(subsets.items()):
        for index in range(count):
            seed, length = [number, index], seconds + 0.02 * index
            signals = {
                f"s{j + 1}": sound([*seed, j], length, rate, 0.9 - 0.9 * j)
                for j in range(n_speakers)
            }
            signals["noise"] = sound([*seed, 9], length, rate, 0.0) / 8
            clean = sum(signals[f"s{j + 1}"] for j in range(n_speakers))
            signals |= {
                "mix_clean": clean,
                "mix": clean,
                "mix_both": clean + signals["noise"],
            }
            for stem in stems:
                place = folder / f"wav{rate // 1000}k" / "min" / subset / stem
                write(place / f"{subset}-{index}.wav", signals[stem], rate)
    return folder


def librimix(folder, n_speakers=2):
    stems = [*(f"s{j + 1}" for j in range(n_speakers)), "noise", "mix_clean", "mix_both"]
    subsets = {"train-360": 6, "dev": 2, "test": 3}
    return mixtures(folder / f"Libri{n_speakers}Mix", subsets, stems, n_speakers)


def wsj0mix(folder, n_speakers=2, noise=False):
    stems = [*(f"s{j + 1}" for j in range(n_speakers)), *(["noise", "mix_both"] * noise)]
    place = folder / ("noisy" if noise else "clean") / f"wsj0-{n_speakers}mix"
    subsets = {"tr": 4, "cv": 2, "tt": 2}
    return mixtures(place, subsets, stems + ["mix"] * (not noise), n_speakers)


def voices(folder, rate=8000):
    """Single utterances by speaker, and noises beside them."""
    for speaker in range(4):
        for number in range(2):
            seed = [5, speaker, number]
            path = folder / "speech" / f"speaker{speaker}" / f"{number}.wav"
            write(path, sound(seed, 1.1 + 0.1 * number, rate, 0.9 - 0.5 * speaker), rate)
    for number in range(2):
        write(folder / "noise" / f"{number}.wav", sound([6, number], 0.9, rate, 0), rate)
    return {
        "dynamic_speech_folder": folder / "speech",
        "dynamic_noise_folder": folder / "noise",
    }


def speech_and_noise(folder):
    """What GSENet's scenes are made of."""
    for number, subset in enumerate(("train", "dev", "test")):
        for speaker in "ab":
            path = folder / "speech" / subset / f"{subset}-{speaker}" / "1.wav"
            write(path, sound([7, number, ord(speaker)], 2, 16000), 16000)
        write(folder / "noise" / subset / "1.wav", sound([8, number], 2, 16000, 0), 16000)
    return folder


def recordings(folder):
    """GSENet's recordings: folders named like files."""
    for place, subset in enumerate(("train", "val", "test")):
        for number in range(2):
            of = folder / subset / f"recording_{number:09d}.WAV"
            target = sound([9, place, number], 1.5, 16000)
            write(of / "ground_truth.wav", target, 16000)
            for channel, share in enumerate((0.3, 1, 1), 1):
                noise = sound([10, place, number, channel], 1.5, 16000, 0)
                write(of / f"channel_{channel}.wav", target + share * noise, 16000)
    return folder


# ------------------------------------------------ runs of train.py

ALWAYS = dict(num_workers=0, save_waves=1, device="cpu", precision="fp32")
ALONE = {"budget_minutes": "null"}  # or the learning rate would follow the clock
UNIFIED = dict(n_basis=64, n_features=8, chunk_length=10, ss_blocks=1, se_blocks=1)
SEPFORMER = dict(UNIFIED, heads=2, feed_forward=8, ss_layers=1)
DPRNN = dict(UNIFIED, hidden=4)
TASNET = dict(n_basis=8, n_features=4, hidden=6, blocks=2, repeats=1)
GSENET = dict(blocks="[[4, 8, 2, 3, False]]", bottleneck=4, kernel_size=3, batch_size=2)
GSENET |= dict(metrics="[]", scoring_processes=1, save_waves=0)
SCENES = dict(segment_seconds=1.2, test_seconds=1.5, n_train=8, n_valid=2, n_test=2)
SCENES |= dict(n_rooms="[2, 1, 1]", rooms_folder="rooms")
QUIET = dict(segment_seconds=1.0, quiet_seconds=0.2)
TRANSFORMER = dict(nhead=2, num_encoder_layers=1, d_ffn=8, kernel_size=5)
REMEDY = {"front.hidden": 6, "n_mels": 20, "subsampling.channels": 2, "d_model": 8}
REMEDY |= {f"transformer.{key}": value for key, value in TRANSFORMER.items()}
REMEDY |= dict(token_type="char", n_tokens=24, batch_size=2, valid_batch_size=2)
REMEDY |= dict(warmup_steps=2, normalise_by=4, beam_size=2)
REMEDY_FULL = {"front.layers": 1, "front.dropout": 0, "transformer.num_decoder_layers": 1}
REMEDY_FULL |= dict(average_checkpoints=1, grad_accumulation_factor=1)
SHORT = dict(segment_seconds=0.5, batch_size=2)
PAIRS = dict(n_train=2, n_dev=2, n_test=2)
DEMO = dict(n_train=8, n_dev=2, n_test=3, seconds=2.0, workers=1)
ROOMS_AROUND = """\
    settings: !new:unified_se_ss.data.rooms.BinauralRoomConfig
        rooms: 1
        directions: 4
        seconds: 0.1
    shares: [2, 1, 1]
    cache: head_rooms
"""


def of_corpus(keys):
    return {f"corpus.{key}": value for key, value in keys.items()}


def job(recipe, yaml, prepare=None, **keys):
    """A run of train.py; `prepare` makes its data in a folder, and gives their keys."""
    folder = f"recipes/{recipe}/hparams" if recipe else "hparams"
    return {"yaml": f"{folder}/{yaml}.yaml", "keys": keys, "prepare": prepare}


def demo(recipe, prepare=None, yaml="demo", corpus=(), **keys):
    """A run of a demo, whose corpus is made of synthetic voices."""
    keys |= {f"corpus.{key}": value for key, value in dict(corpus).items()}
    return {**job(recipe, yaml, prepare, **keys), "needs": ["espeakng_loader"]}


def unified(yaml, sizes, n_speakers=2, dynamic=False, **keys):
    """A run on a small LibriMix tree; or mixed on the fly."""

    def prepare(folder):
        more = voices(folder / "voices") if dynamic else {}
        return {"data_folder": librimix(folder, n_speakers), **more}

    if dynamic:
        keys |= {"dynamic_mixing": True, "dynamic_items": 8}
    return job("", yaml, prepare, **{**sizes, **keys})


def binaural(yaml, noise=False, n_speakers=2, change=None, mixing=False, **keys):
    """A run on binaural mixtures that it makes of mono ones."""

    def prepare(folder):
        name = "binaural" + "_noisy" * noise + f"_{yaml}" * bool(change)
        made = {"mono_folder": wsj0mix(folder, n_speakers, noise)}
        made["data_folder"] = folder / f"{name}{n_speakers}"
        return {**made, **(voices(folder / "voices") if mixing else {})}

    keys = {**TASNET, "n_speakers": n_speakers, "dynamic_mixing": mixing, **keys}
    return {**job("BinauralWSJ0Mix", yaml, prepare, **keys), "change": change}


def in_small_rooms(text):
    """The YAML with a few small rooms instead of the many that take minutes."""
    head, listeners, tail = text.partition("listeners: !name:")
    line, source, rest = tail.partition("    source: ")
    return head + listeners + line + ROOMS_AROUND + source + rest


def gsenet(make, **keys):
    """A run of GSENet's recipe on sounds or recordings."""

    def prepare(folder):
        return {"data_folder": make(folder / make.__name__)}

    return job("GSENet", "gsenet", prepare, **{**GSENET, **keys})


def gsenet_demo(yaml, **keys):
    corpus = dict(n_noises="[4, 1, 1]", sentences=1, workers=1)
    keys = {**GSENET, **SCENES, **keys, "data_folder": "data/demo_gsenet"}
    return demo("GSENet", yaml=yaml, corpus=corpus, **keys)


def transcribed(yaml, **keys):
    """A run of enhancement and recognition on a small tree of its corpus."""

    def prepare(folder):
        folder = folder / yaml
        if yaml == "rats_chA":
            corpus, fisher = inside("make_rats")(folder)
            more = {"transcript_folder": fisher, "cut_folder": folder / "cut"}
            return {"data_folder": corpus, **more}
        if yaml == "chime4":
            corpus = inside("make_chime4")(folder / "CHiME4")
            return {"data_folder": corpus, "reference_folder": folder / "references"}
        if yaml == "voicebank":
            return {"data_folder": inside("make_voicebank")(folder / "VoiceBank")}
        corpus, noise = inside("make_librispeech")(folder)
        return {"data_folder": corpus, "noise_folder": noise}

    return job("GradientRemedy", yaml, prepare, **{**REMEDY, **REMEDY_FULL, **keys})


def before_binaural_demo(folder):
    """The demo's voices, few of them."""
    inside("make_demo_corpus")(folder / "data" / "demo", **DEMO)
    return {}


LIBRI2, LIBRI3 = "libri2mix_noisy_dprnn", "libri3mix_noisy_dprnn"
TASNETS = ("mimo", "independent", "cross", "causal")
RUNS = {
    # Every YAML file that is shipped ...
    "demo": demo("", corpus=DEMO, **dict(DPRNN, n_basis=128), **ALONE, **SHORT),
    "libri2mix_noisy": unified("libri2mix_noisy", SEPFORMER),
    "libri2mix_noisy_dprnn": unified(LIBRI2, DPRNN),
    "libri3mix_noisy": unified("libri3mix_noisy", SEPFORMER, 3),
    "libri3mix_noisy_dprnn": unified(LIBRI3, DPRNN, 3),
    "binaural_demo": demo(
        "BinauralWSJ0Mix",
        before_binaural_demo,
        corpus=dict(corpus="data/demo", n_speech=6, workers=1, **PAIRS),
        dynamic_items=8,
        **dict(TASNET, n_basis=64),
        **dict(SHORT, segment_seconds=0.3),
        **ALONE,
    ),
    **{f"convtasnet-{name}": binaural(f"convtasnet-{name}") for name in TASNETS},
    "convtasnet-noise": binaural("convtasnet-noise", noise=True),
    "convtasnet-reverb": binaural("convtasnet-reverb", change=in_small_rooms),
    "gsenet_demo": gsenet_demo("demo", **ALONE),
    "gsenet_demo_published": gsenet_demo("demo_published"),
    "gsenet": gsenet(recordings, **QUIET),
    "asr_demo": demo(
        "GradientRemedy",
        corpus=dict(n_dev=2, workers=1),
        n_train=60,
        n_test=2,
        total_steps=20,
        **dict(REMEDY, token_type="word", n_tokens=100, batch_size=6),
        **ALONE,
    ),
    **{y: transcribed(y) for y in ("rats_chA", "chime4", "voicebank", "librispeech_noise")},
    # ... and what other keys choose.
    "dynamic2": unified(LIBRI2, DPRNN, dynamic=True, segment_seconds=0.4),
    "dynamic3": unified(
        LIBRI3,
        DPRNN,
        n_speakers=3,
        dynamic=True,
        segment_seconds=0.3,
        batch_size="null",
        batch_seconds=0.7,
        grad_accumulation_factor=2,
        se_loss="relative",
        rule="remedy",
        granularity="module",
    ),
    "separation_alone": unified(LIBRI2, DPRNN, use_se=False, rule="sum"),
    "balanced": unified(LIBRI2, DPRNN, rule="pcgrad", aux_scale="ema", se_loss="si_snr"),
    "binaural_dynamic": binaural(
        "convtasnet-noise",
        noise=True,
        n_speakers=3,
        mixing=True,
        dynamic_items=5,
        segment_seconds=0.3,
        share_ears=True,
        ild_weight=0.1,
        ipd_weight=1.0,
    ),
    **{
        f"gsenet_{train_on}": gsenet(
            speech_and_noise, **SCENES, train_on=train_on, test_on="arrays", **loss
        )
        for train_on, loss in (
            ("arrays", {"loss": "linear_l1"}),
            ("contrast", {"loss": "l1_spectral_convergence"}),
            ("mixed", {"weight_si_snr": 0.1}),
        )
    },
    "gsenet_beamformed": gsenet(
        recordings, **QUIET, guide_of_recordings="souden_mvdr", match_levels="all"
    ),
    "asr_cascade": transcribed("voicebank", system="cascade"),
    "asr_noisy": transcribed("voicebank", system="noisy"),
}
#: Runs of the normal test suite: one of each recipe.
QUICK = ("demo", "convtasnet-causal", "gsenet", "voicebank")


def missing(name):
    """What of the optional packages that a run needs is not installed."""
    return [
        package
        for package in RUNS[name].get("needs", ())
        if importlib.util.find_spec(package) is None
    ]


def record_runs(names, folder):
    """Run train.py for each name, in one process; their values by name."""
    done = subprocess.run(
        [sys.executable, __file__, "--record", str(folder), *names],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        },
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in names}


def record_here(folder, names):
    """What the process of `record_runs` does."""
    torch.set_num_threads(1)
    draw_nothing()
    recorder = Recorder()
    os.chdir(folder)
    for name in names:
        job, out = RUNS[name], folder / "runs" / name
        keys = job["prepare"](folder) if job["prepare"] else {}
        yaml = ROOT / job["yaml"]
        script = yaml.parent.parent / "train.py"
        if job.get("change"):
            text = job["change"](yaml.read_text(encoding="utf-8"))
            yaml = folder / yaml.name
            yaml.write_text(text, encoding="utf-8")
        keys = {**ALWAYS, "number_of_epochs": 2, **job["keys"], **keys}
        recorder.begin()
        train(script, [str(yaml), *as_arguments({**keys, "output_folder": out})])
        found = {**recorder.found, **run_folder(out, folder)}
        (folder / f"{name}.json").write_text(json.dumps(found))


def train(script, arguments):
    """Run a train.py in this process, as Python does a script."""
    sys.argv, path = [str(script), *arguments], list(sys.path)
    sys.path.insert(0, str(script.parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as leaving:
        if leaving.code:
            raise
    finally:
        sys.path[:] = path


class Recorder:
    """Sees every batch of every Brain, and what it does to the weights."""

    def __init__(self):
        brain = inside("brain")
        self.fit, self.evaluate = brain.fit_batch, brain.evaluate_batch
        brain.fit_batch = lambda *arguments: self.fit_batch(*arguments)
        brain.evaluate_batch = lambda *arguments: self.evaluate_batch(*arguments)
        self.begin()

    def begin(self):
        self.found = {"first": [], "steps": [], "valid": []}

    def fit_batch(self, brain, batch):
        parts = batch_numbers(batch)
        if not self.found["steps"]:
            self.found["first"] = parts
        self.losses = []
        self.watch(brain)
        result = self.fit(brain, batch)
        if len(self.found["steps"]) < STEPS:
            step = {"batch": as_one(parts), "loss": self.losses}
            step["weights"] = as_one(map(numbers, brain.modules.parameters()))
            self.found["steps"].append(step)
        return result

    def evaluate_batch(self, brain, batch, stage):
        if stage.name == "VALID" and not self.found["valid"]:
            self.found["valid"] = batch_numbers(batch)
        return self.evaluate(brain, batch, stage)

    def watch(self, brain):
        """Have the losses of each batch noted."""
        if "compute_objectives" in vars(brain):
            return
        compute = brain.compute_objectives

        def noted(*arguments, **options):
            losses = compute(*arguments, **options)
            self.losses = [short(value) for value in main_and_auxiliary(losses)]
            return losses

        brain.compute_objectives = noted


def run_folder(out, folder):
    """What a run left: its files by name, tables and manifests."""
    names = [path.relative_to(out).as_posix() for path in sorted(out.glob("*"))]
    saved = [path.name for path in sorted(out.glob("save/CKPT*/*"))]
    tables = {p.name: table(p) for p in sorted(out.glob("*.csv")) if p.name != "timing.csv"}
    manifests = {p.name: table(p, folder) for p in sorted(out.glob("manifests/*.csv"))}
    texts = {
        path.name: relative(path.read_text(encoding="utf-8"), folder)
        for path in sorted([*out.glob("manifests/*_report.txt"), *out.glob("wer.txt")])
    }
    return {
        "files": names,
        "saved": sorted(set(saved)),
        "results": tables,
        "manifests": manifests,
        "texts": {n: digest_of(t) for n, t in texts.items()},
    }


# ------------------------------------------------ commands and old models


def command(*words, expected=0):
    """Run a command of the package in this process; what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        code = inside("main")([str(word) for word in words])
    assert code == expected, (words, code, printed.getvalue())
    return printed.getvalue()


def written(folder):
    """What a command left in a folder: numbers of sounds, texts of the rest."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".wav":
            signal, rate = soundfile.read(path, dtype="float32", always_2d=True)
            found[name] = {"rate": rate, **numbers(signal.T)}
        elif path.suffix in (".txt", ".csv"):
            text = relative(path.read_text(encoding="utf-8"), folder.parent)
            found[name] = text.splitlines()
        else:
            found[name] = "present"
    return found


#: Recordings: channels, seconds, rate.
RECORDED = {
    "short": (1, 0.4, 8000),
    "stereo": (2, 0.6, 44100),
    "long": (1, 3.3, 16000),
    "ears": (2, 0.5, 8000),
    "ears_long": (2, 3.1, 16000),
    "pair": (2, 0.7, 16000),
    "pair48": (2, 0.5, 48000),
    "array": (3, 1.2, 16000),
}
CHUNKS = ("--chunk_seconds", "1", "--overlap_seconds", "0.3")
#: By a model's folder: what is done with it. Task, recording, options.
USES = {
    "unified": [
        ("separate", "short"),
        ("separate", "stereo", "--channel", "1"),
        ("separate", "long", *CHUNKS),
        ("separate", "short", "--mixture_consistency", "--subtype", "pcm16"),
        ("enhance", "stereo", "--downmix"),
        ("enhance", "long", *CHUNKS),
    ],
    "sepformer": [("separate", "short"), ("enhance", "long", *CHUNKS)],
    "binaural": [
        ("separate", "ears"),
        ("separate", "stereo"),
        ("separate", "ears_long", *CHUNKS),
        ("separate", "ears", "--mixture_consistency"),
    ],
    "binaural_causal": [("separate", "ears"), ("separate", "ears_long", *CHUNKS)],
    "gsenet": [
        ("enhance", "pair"),
        ("enhance", "pair48"),
        ("enhance", "array", "--guide", "multichannel_wiener"),
        ("enhance", "array", "--guide", "rtf_mvdr", "--context_seconds", "0.3"),
    ],
    "recogniser": [
        ("recognise", "short"),
        ("recognise", "long", "--segment_seconds", "1"),
        ("recognise", "stereo", "--downmix", "--beam_size", "2", "--keep_level"),
        ("recognise", "long", "--text_only"),
        ("enhance", "stereo", "--channel", "0"),
    ],
}
#: Runs' folders of the past, and the models that were exported of them.
OLD_RUNS = ("unified", "binaural", "gsenet", "recogniser")


def old(name, folder, kind="model"):
    """A model of the past, unpacked: an exported one, or a run's folder."""
    place = folder / kind
    if not (place / name).exists():
        with tarfile.open(OLD / f"{name}-{kind}.tar.xz") as packed:
            packed.extractall(place, filter="data")
    return place / name


def record_uses(name, folder, kind="model"):
    """What the commands make of recordings with a model."""
    model = old(name, folder, kind)
    inputs = folder / "in"
    for number, (stem, (channels, seconds, rate)) in enumerate(RECORDED.items()):
        signal = np.stack(
            [sound([20, number, c], seconds, rate) for c in range(channels)], 1
        )
        if stem == "array":  # begins with noise alone
            speech = np.where(
                np.arange(len(signal)) < 0.5 * rate, 0, sound(21, seconds, rate)
            )
            signal = 0.2 * signal + speech[:, None]
        write(inputs / f"{stem}.wav", signal, rate)
    found = {}
    for number, (task, stem, *options) in enumerate(USES[name]):
        out = folder / f"{number}"
        source = inputs / f"{stem}.wav"
        words = (task, model, source, "-o", out, "--device", "cpu", *options)
        command(*words)
        found[" ".join([task, stem, *options])] = {"outputs": written(out)}
    return found


def record_export(name, format, folder):
    """A model in another format, and what others' software gives with it."""
    out = folder / "exported"
    command("export", old(name, folder), "-o", out, "--format", format)
    names = sorted(path.name for path in out.iterdir())
    mixture = sound(23, 0.4, 8000).astype(np.float32)[None]
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(out / "model.onnx"))
        outputs = dict(
            zip(
                [o.name for o in session.get_outputs()],
                session.run(None, {"mixture": mixture}),
            )
        )
        return {"files": names, "outputs": {n: numbers(x) for n, x in outputs.items()}}
    if format == "speechbrain":
        from speechbrain.inference.separation import SepformerSeparation

        loaded = SepformerSeparation.from_hparams(
            source=str(out), savedir=str(folder / "cache"), run_opts={"device": "cpu"}
        )
        with torch.no_grad():
            sources = loaded.separate_batch(torch.from_numpy(mixture))
        return {"files": names, "outputs": numbers(sources)}
    from safetensors.torch import load_file

    weights = load_file(out / "model.safetensors")
    configuration = json.loads((out / "config.json").read_text())
    return {
        "files": names,
        "configuration": configuration,
        "outputs": {key: numbers(weights[key]) for key in sorted(weights)[:3]},
        "weights": [short(sum(float(w.double().square().sum()) for w in weights.values()))],
    }


def record_evaluation(folder):
    """The command that scores a model."""
    tree, out = librimix(folder), folder / "manifests"
    printed = command("check", tree, "--manifests", out)
    manifest = next(out.glob("*test*.csv"))
    words = ("evaluate", old("unified", folder), manifest, "--data_folder", tree)
    command(*words, "-o", folder / "scores", "--device", "cpu", "--jobs", "1")
    return {
        "checked": relative(printed, folder).splitlines(),
        "manifests": {p.name: table(p, folder) for p in sorted(out.glob("*.csv"))},
        "results": table(folder / "scores" / "results.csv"),
    }


def record_binaural_corpus(folder):
    """The command that makes binaural mixtures."""
    mono = wsj0mix(folder, noise=True)
    words = ("binaural-corpus", folder / "made", "--mono_folder", mono, "--noise")
    command(*words, "--least_angle", "20", "--seed", "3")
    found = written(folder / "made")
    first = [name for name in found if name.endswith("-0.wav")]
    return {"files": sorted(found), "items": {name: found[name] for name in first}}


# ------------------------------------------------ all values by name

OTHERS = {
    **{f"use {name}": (lambda f, n=name: record_uses(n, f)) for name in USES},
    **{
        f"export {name} {format}": (lambda f, n=name, x=format: record_export(n, x, f))
        for name, format in (
            *((name, "native") for name in USES),
            *(
                (name, x)
                for name in ("unified", "sepformer")
                for x in ("speechbrain", "onnx")
            ),
        )
    },
    "evaluate": record_evaluation,
    "binaural-corpus": record_binaural_corpus,
}


def file_of(name):
    """Where the values of a name are kept."""
    return FOLDER / "values" / f"{name.replace(' ', '-')}.json"


def read(name):
    """The values that were recorded."""
    return json.loads(file_of(name).read_text(encoding="utf-8"))


def record(name, folder):
    """The values as they are today."""
    if name in RUNS:
        return record_runs([name], folder)[name]
    return json.loads(json.dumps(OTHERS[name](folder)))


def write_values(names):
    """Record values anew; all runs in one process."""
    names = names or [*RUNS, *OTHERS]
    runs = [name for name in names if name in RUNS]
    with tempfile.TemporaryDirectory() as folder:
        for name, found in (record_runs(runs, Path(folder)) if runs else {}).items():
            write_file(name, found)
    for name in names:
        if name not in RUNS:
            with tempfile.TemporaryDirectory() as folder:
                write_file(name, record(name, Path(folder)))


def write_file(name, found):
    """Values as text, a line for each step."""
    path = file_of(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    lines = r'(,)("(?:batch|first|valid|files|results|manifests)":)'
    path.write_text(re.sub(lines, r",\n\2", text) + "\n", encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes", flush=True)


def main(arguments):
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    torch.set_num_threads(1)
    if arguments[:1] == ["--record"]:
        record_here(Path(arguments[1]).resolve(), arguments[2:])
    elif arguments[:1] == ["--write"]:
        write_values(arguments[1:])
    else:
        print("\n".join([*RUNS, *OTHERS]))


if __name__ == "__main__":
    main(sys.argv[1:])
