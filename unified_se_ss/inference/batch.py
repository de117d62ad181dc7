"""Many files through one model: the commands ``separate``, ``enhance``, ``recognise``.

A bad file is named and the others are done. Nothing is written beside an input, and
nothing that exists is replaced unless asked for.
"""

from __future__ import annotations

import glob
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from unified_se_ss.data import audio
from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_write, csv_text
from unified_se_ss.inference.pipeline import Pipeline, open_pipeline
from unified_se_ss.progress import progress_bar

STANDARD_INPUT = "-"
TRANSCRIPTS = "transcripts.csv"
# What a folder is searched for. A file that is named is tried whatever it is called.
SUFFIXES = set(
    ".aif .aiff .au .caf .flac .mp3 .oga .ogg .opus .rf64 .w64 .wav .wave".split()
)


# ------------------------------------------------------------------ inputs


@dataclass(frozen=True)
class Input:
    """A sound to work on: its file, its name for messages, and where its outputs go.

    The target is relative to the output folder and has no ending.
    """

    path: Path
    name: str
    target: Path


def find_inputs(arguments: list[str], output: Path) -> list[Input]:
    """The files that arguments of the command line name, in the order given, each once.

    Folders are searched through, for sound files by their endings; the output folder is
    left out. A folder's files keep their subfolders, named files have none, unless two
    of one name would meet: they get theirs, and where that does not help, their ending.

    Raises
    ------
    UserError
        Nothing was found.

    Example
    -------
    >>> folder = Path(getfixture("tmpdir"))
    >>> for place in "one", "two":
    ...     (folder / place).mkdir()
    ...     _ = (folder / place / "a.wav").write_bytes(b"...")
    >>> [found.target.as_posix() for found in find_inputs([str(folder / "*/a.wav")], folder)]
    ['one/a', 'two/a']
    """
    found: dict[Path, Input] = {}
    for argument in arguments:
        inputs = _named_by(argument, output.resolve())
        if not inputs:
            raise UserError(
                f"{argument}: no sound file there; expected files, folders or patterns "
                f"(in folders, files that end in {', '.join(sorted(SUFFIXES))})"
            )
        for one in inputs:
            key = one.path if argument == STANDARD_INPUT else one.path.resolve()
            found.setdefault(key, one)
    return _without_collisions(list(found.values()))


def _named_by(argument: str, output: Path) -> list[Input]:
    path = Path(argument)
    if argument == STANDARD_INPUT:
        return [Input(path, "standard input", Path("stdin"))]
    if path.is_dir():
        return [
            Input(file, str(file), file.relative_to(path).with_suffix(""))
            for file in _sounds_in(path, output)
        ]
    if not path.exists() and glob.has_magic(argument):
        matches = sorted(glob.glob(argument, recursive=True))
        return [one for match in matches for one in _named_by(match, output)]
    return [Input(path, str(path), Path(path.stem))]


def _sounds_in(folder: Path, output: Path) -> list[Path]:
    """Sound files in a folder and below, hidden ones and the output folder left out."""
    sounds = []
    for path in folder.rglob("*"):
        above = path.parent.resolve()
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if (
            path.suffix.lower() in SUFFIXES
            and path.is_file()
            and not is_hidden
            and output not in (above, *above.parents)
        ):
            sounds.append(path)
    return sorted(sounds, key=lambda path: (path.parent.parts, path.name))


def _without_collisions(inputs: list[Input]) -> list[Input]:
    """Tell apart what would be written to the same place."""
    for new_target in (_with_folder, _with_ending):
        for group in _collisions(inputs):
            root = os.path.commonpath([one.path.resolve().parent for one in group])
            for one in group:
                renamed = replace(one, target=new_target(one, root))
                inputs[inputs.index(one)] = renamed
    for group in _collisions(inputs):
        raise UserError(
            f"{' and '.join(one.name for one in group)} would be written to the same "
            "place; give them to two commands"
        )
    return inputs


def _collisions(inputs: list[Input]) -> list[list[Input]]:
    """Groups of inputs with the same target, also where case does not count."""
    groups = defaultdict(list)
    for one in inputs:
        groups[one.target.as_posix().casefold()].append(one)
    return [group for group in groups.values() if len(group) > 1]


def _with_folder(one: Input, root: str) -> Path:
    """The target below the folder that a group comes from."""
    below = one.path.resolve().parent.relative_to(root)
    return below / one.target.name if below.parts else one.target


def _with_ending(one: Input, root: str) -> Path:
    """The target with what the file ends in."""
    return one.target.with_name(one.target.name + one.path.suffix.replace(".", "_"))


# ------------------------------------------------------------------ outputs


def _outputs_of(one: Input, output: Path, task: str, n_signals: int) -> list[Path]:
    """The files that come of an input, the text first."""
    ends = [f"_source{j + 1}.wav" for j in range(n_signals)]
    if task != "separate":
        ends = [".txt"] * (task == "recognise") + ["_enhanced.wav"] * n_signals
    stem = output / one.target
    return [stem.with_name(f"{stem.name}{end}") for end in ends]


def _check_outputs(outputs: dict[Input, list[Path]], force: bool, others=()) -> None:
    """Stop before any work where an output would land beside an input or on a file."""
    beside = {one.path.resolve().parent for one in outputs if one.name != "standard input"}
    paths = [path for each in outputs.values() for path in each] + list(others)
    for path in paths:
        if path.parent.resolve() in beside:
            raise UserError(
                f"{path}: would be written beside an input; choose another folder (-o)"
            )
        if path.is_dir():
            raise UserError(f"{path}: is a folder; choose another place (-o)")
    existing = [path for path in paths if os.path.lexists(path)]
    if existing and not force:
        raise UserError(
            f"{existing[0]}: exists already ({len(existing)} of {len(paths)} outputs do); "
            "choose another folder (-o) or replace them (--force)"
        )


# ------------------------------------------------------------------ the commands


def run(
    task: str,
    model: str,
    inputs: list[str],
    output: str,
    device: str | None = None,
    precision: str | None = None,
    channel: int | None = None,
    downmix: bool = False,
    subtype: str = "float",
    force: bool = False,
    as_json: bool = False,
    text_only: bool = False,
    **options,
) -> int:
    """Separate or enhance files, or recognise what is said in them.

    Arguments are the command's options: `inputs` files, folders, patterns or ``-``, `output` a
    folder; `force` replaces outputs that exist, `as_json` writes one JSON object to standard
    output and nothing else, `text_only` leaves the enhanced signals out. `options` are those
    of :func:`~unified_se_ss.inference.pipeline.open_pipeline`.

    Returns
    -------
    int
        0, or 1 if a file could not be done.

    Raises
    ------
    UserError
        The command is wrong as a whole: no model, no input, outputs in the way.
    """
    how = {"task": task, "channel": channel, "downmix": downmix, "subtype": subtype}
    try:
        found = find_inputs(inputs, Path(output))
        if downmix and channel is not None:
            raise UserError("--channel and --downmix: give one of the two")
        pipeline = open_pipeline(model, device, precision, **options)
        n_signals = pipeline.n_signals(task) * (not text_only)
        outputs = {one: _outputs_of(one, Path(output), task, n_signals) for one in found}
        table = Path(output) / TRANSCRIPTS if task == "recognise" else None
        _check_outputs(outputs, force, [table] * bool(table))
        say = partial(print, flush=True) if not as_json else lambda text: None
        say(str(pipeline))
        done, failed = _work(pipeline, outputs, Path(output), how, say)
    except (UserError, OSError) as error:
        if as_json:
            print(json.dumps({"error": str(error)}))
        raise
    report = _report(pipeline, done, failed)
    if table and done:
        rows = (
            {"input": of["input"], "seconds": f"{of['seconds']:.3f}", "text": of["text"]}
            for of in done
        )
        atomic_write(table, csv_text(rows))
        report["transcripts"] = str(table)
    if as_json:
        print(json.dumps(report))
    say(_last_line(report))
    return 1 if failed else 0


def _work(pipeline: Pipeline, outputs: dict, folder: Path, how: dict, say) -> tuple:
    """Do all inputs; entries of those that are done, and of those that failed."""
    done, failed = [], []
    with ExitStack() as stack:
        inputs = [stack.enter_context(_on_disk(one, folder)) for one in outputs]
        bar = stack.enter_context(_progress_bar(how["task"], inputs))
        for one, paths in zip(inputs, outputs.values(), strict=True):
            bar.set_postfix_str(one.name, refresh=False)
            start = time.perf_counter()
            try:
                result = pipeline.separate_file(
                    one.path, paths, progress=bar.update, name=one.name, **how
                )
            except UserError as error:
                failed.append({"input": one.name, "error": str(error)})
                bar.write(f"failed: {error}", file=sys.stderr)
                continue
            done.append(_entry(one, paths, result, time.perf_counter() - start))
            with bar.external_write_mode():
                say(_line(done[-1]))
    return done, failed


@contextmanager
def _on_disk(one: Input, output: Path):
    """The input itself; of standard input a copy that goes away after the block."""
    if one.name != "standard input":
        yield one
        return
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=output, prefix=".stdin.") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield replace(one, path=Path(file.name))


def _progress_bar(task: str, inputs: list[Input]):
    seconds = 0.0
    for one in inputs:
        # What is wrong with a file is said when it is its turn.
        with suppress(UserError), audio.opened(one.path) as file:
            seconds += file.frames / file.samplerate
    shape = "{desc} {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]"
    shape += "{postfix}"
    return progress_bar(description=task, total=seconds, bar_format=shape, leave=False)


# ------------------------------------------------------------------ what was done


def _entry(one: Input, paths, result, seconds: float) -> dict:
    return {
        "input": one.name,
        "outputs": [str(path) for path in paths],
        **{key: value for key, value in asdict(result).items() if value is not None},
        "processing_seconds": seconds,
        "real_time_factor": seconds / result.seconds,
    }


def _report(pipeline: Pipeline, done: list, failed: list) -> dict:
    sound = sum(entry["seconds"] for entry in done)
    processing = sum(entry["processing_seconds"] for entry in done)
    device = pipeline.model.device
    report = {
        "model": str(pipeline),
        "device": str(device),
        "precision": pipeline.model.precision,
        "files": done,
        "failed": failed,
        "seconds": sound,
        "processing_seconds": processing,
        "real_time_factor": processing / sound if sound else None,
        "peak_memory_bytes": _peak_of_process(),
    }
    if device.type == "cuda":
        report["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return report


def _peak_of_process() -> int:
    with suppress(OSError):  # Linux; its ru_maxrss would begin with that of the parent
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        if peak := re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE):
            return 1024 * int(peak[1])
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size


def _line(entry: dict) -> str:
    names = ", ".join(entry["outputs"])
    text = f"{entry['input']}: {entry['seconds']:.2f} s -> {names}"
    if entry["full_scale_samples"]:
        text += f" (the input has {entry['full_scale_samples']} samples at full scale: clipped?)"
    if entry["turned_down_db"]:
        text += f" (turned down by {entry['turned_down_db']:.1f} dB to fit into 16 bit)"
    if silent := [str(j) for j, gain in enumerate(entry["gains"], 1) if gain == 0]:
        text += f" (silent: {', '.join(silent)})"
    if "text" in entry and entry["segments"]:
        text += f"\n    {entry['text'] or '(no words)'}"
    return text


def _last_line(report: dict) -> str:
    done, failed = len(report["files"]), len(report["failed"])
    text = f"{done} file{'s' * (done != 1)} done, {failed} failed"
    if report["real_time_factor"] is not None:
        text += (
            f"; {report['seconds']:.1f} s of sound in {report['processing_seconds']:.1f} s "
            f"(real-time factor {report['real_time_factor']:.3f})"
        )
    for key, place in (("peak_memory_bytes", ""), ("peak_gpu_memory_bytes", "GPU ")):
        if report.get(key):
            text += f"; peak {place}memory {report[key] / 1e6:.0f} MB"
    return text
