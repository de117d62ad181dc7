"""Many files through one model: the commands ``separate``, ``enhance``, ``recognise``.

A bad file is named and the others are done. Nothing is written beside an input, and
nothing that exists is replaced unless told so.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_write, csv_text
from unified_se_ss.inference.binaural import BinauralSeparator
from unified_se_ss.inference.guided import GuidedEnhancer
from unified_se_ss.inference.interface import Interface
from unified_se_ss.inference.models import load_model
from unified_se_ss.inference.separator import Separator
from unified_se_ss.inference.sound_files import SUBTYPES, SUFFIXES, opened
from unified_se_ss.progress import progress_bar

STANDARD_INPUT = "-"
TRANSCRIPTS = "transcripts.csv"


# ------------------------------------------------------------------ inputs


@dataclass(frozen=True)
class Input:
    """A sound to work on.

    Arguments
    ---------
    path : Path
        The file to read.
    name : str
        What messages call it.
    target : Path
        Where its outputs go, relative to the output folder and without an ending.
    """

    path: Path
    name: str
    target: Path


def find_inputs(arguments: list[str], output: Path) -> list[Input]:
    """The files that a command names: files, folders, patterns, ``-``.

    Folders are searched through, for sound files by their endings; the output folder is
    left out. A folder's files keep their subfolders, named files have none, unless two
    of one name would meet: they get theirs, and where that does not help, their ending.

    Arguments
    ---------
    arguments : list of str
        As on the command line.
    output : Path
        The output folder.

    Returns
    -------
    list of Input
        In the order given, each file once.

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
    """The files that one argument names."""
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
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and (Path(place) / name).resolve() != output
        )
        sounds += [
            Path(place) / name
            for name in sorted(files)
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        ]
    return sounds


def _without_collisions(inputs: list[Input]) -> list[Input]:
    """Tell apart what would be written to the same place."""
    for new_targets in (_by_folder, _by_ending):
        targets = {}
        for group in _collisions(inputs):
            targets.update(zip(group, new_targets(group), strict=True))
        inputs = [Input(one.path, one.name, targets.get(one, one.target)) for one in inputs]
    for group in _collisions(inputs):
        raise UserError(
            f"{' and '.join(one.name for one in group)} would be written to the same "
            "place; give them to two commands"
        )
    return inputs


def _collisions(inputs: list[Input]) -> list[list[Input]]:
    """Groups of inputs with the same target, on file systems that ignore case too."""
    groups = defaultdict(list)
    for one in inputs:
        groups[one.target.as_posix().casefold()].append(one)
    return [group for group in groups.values() if len(group) > 1]


def _by_folder(group: list[Input]) -> list[Path]:
    """Targets below the folder that all come from."""
    folders = [one.path.resolve().parent for one in group]
    if len(set(folders)) == 1:
        return [one.target for one in group]
    root = os.path.commonpath(folders)
    return [
        folder.relative_to(root) / one.target.name
        for folder, one in zip(folders, group, strict=True)
    ]


def _by_ending(group: list[Input]) -> list[Path]:
    """Targets that say what the files end in."""
    endings = [one.path.suffix.replace(".", "_") for one in group]
    return [
        one.target.with_name(one.target.name + ending)
        for one, ending in zip(group, endings, strict=True)
    ]


# ------------------------------------------------------------------ outputs


def outputs_of(one: Input, output: Path, task: str, n_signals: int) -> list[Path]:
    """The files that come of an input.

    Example
    -------
    >>> one = Input(Path("in/a.mp3"), "in/a.mp3", Path("a"))
    >>> [path.as_posix() for path in outputs_of(one, Path("out"), "separate", 2)]
    ['out/a_source1.wav', 'out/a_source2.wav']
    >>> [path.as_posix() for path in outputs_of(one, Path("out"), "recognise", 1)]
    ['out/a.txt', 'out/a_enhanced.wav']
    """
    ends = [f"_source{j + 1}.wav" for j in range(n_signals)]
    if task != "separate":
        ends = ["_enhanced.wav"] * n_signals
    if task == "recognise":
        ends.insert(0, ".txt")
    stem = output / one.target
    return [stem.with_name(f"{stem.name}{end}") for end in ends]


def check_outputs(outputs: dict[Input, list[Path]], force: bool, others=()) -> None:
    """Stop before any work where an output would land beside an input or on a file.

    Raises
    ------
    UserError
        Says which, and what to do.
    """
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


def load_for_files(
    folder, device=None, precision=None, guide=None, recognition=None, **options
):
    """What works on files with the model of a folder, whichever kind it is.

    Arguments
    ---------
    folder : str
        An exported folder or a run's folder.
    device, precision : str, optional
        As for :func:`~unified_se_ss.inference.models.load_model`.
    guide : callable, optional
        As for :class:`~unified_se_ss.inference.guided.GuidedEnhancer`.
    recognition : dict, optional
        Where words are wanted, options of
        :class:`~unified_se_ss.inference.recognizer.Recognizer`.
    **options
        Those of :class:`~unified_se_ss.inference.separator.Separator`.

    Returns
    -------
    Separator, BinauralSeparator, GuidedEnhancer or Recognizer
    """
    model = load_model(folder, device, precision)
    if recognition is not None and model.kind != "recogniser":
        raise UserError(f"a model of kind {model.kind} recognises no words; see --help")
    if model.kind == "gsenet":
        return GuidedEnhancer(model, guide)
    if guide is not None:
        raise UserError(f"--guide: a model of kind {model.kind} is guided by nothing")
    if model.kind == "recogniser":
        from unified_se_ss.inference.recognizer import Recognizer

        options.pop("mixture_consistency", None)  # there are no sources
        return Recognizer(model, **options, **(recognition or {}))
    if model.kind == "binaural":
        return BinauralSeparator(model, **options)
    return Separator(model, **options)


def run(
    task: str,
    model: str,
    arguments: list[str],
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

    Arguments
    ---------
    task : str
        ``"separate"``, ``"enhance"`` or ``"recognise"``.
    model : str
        An exported folder or a run's folder.
    arguments : list of str
        Files, folders, patterns, ``-``.
    output : str
        The output folder; made if it is missing.
    device, precision : str, optional
        As for :meth:`~unified_se_ss.inference.separator.Separator.from_folder`.
    channel, downmix, subtype : optional
        As for :meth:`~unified_se_ss.inference.separator.Separator.separate_file`.
    force : bool
        Replace outputs that exist.
    as_json : bool
        Write one JSON object to standard output, and nothing else.
    text_only : bool
        Of ``"recognise"``: leave the enhanced signals out.
    **options
        Those of :func:`load_for_files`.

    Returns
    -------
    int
        0, or 1 if a file could not be done.

    Raises
    ------
    UserError
        The command is wrong as a whole: no model, no input, outputs in the way.
    """
    try:
        return _run(
            task,
            model,
            find_inputs(arguments, Path(output)),
            Path(output),
            {"device": device, "precision": precision, **options},
            {"channel": channel, "downmix": downmix, "subtype": subtype},
            force,
            as_json,
            text_only,
        )
    except UserError as error:
        if as_json:
            print(json.dumps({"error": str(error)}))
        raise


def _run(
    task, model, inputs, output, how_to_load, how_to_work, force, as_json, text_only
) -> int:
    if how_to_work["subtype"] not in SUBTYPES:
        raise UserError(f"subtype: expected one of: {', '.join(SUBTYPES)}")
    if how_to_work["downmix"] and how_to_work["channel"] is not None:
        raise UserError("--channel and --downmix: give one of the two")
    separator = load_for_files(model, **how_to_load)
    n_signals = 0 if text_only else separator.n_signals(task)
    outputs = {one: outputs_of(one, output, task, n_signals) for one in inputs}
    transcripts = [output / TRANSCRIPTS] if task == "recognise" else []
    check_outputs(outputs, force, transcripts)
    say = _silent if as_json else _say
    say(str(separator))
    done, failed = [], []
    with ExitStack() as stack:
        inputs = [stack.enter_context(_on_disk(one, output)) for one in inputs]
        bar = stack.enter_context(_progress_bar(task, inputs))
        for one, paths in zip(inputs, outputs.values(), strict=True):
            bar.set_postfix_str(one.name, refresh=False)
            start = time.perf_counter()
            try:
                result = separator.separate_file(
                    one.path, paths, task, progress=bar.update, name=one.name, **how_to_work
                )
            except UserError as error:
                failed.append({"input": one.name, "error": str(error)})
                bar.write(f"failed: {error}", file=sys.stderr)
                continue
            seconds = time.perf_counter() - start
            done.append(_entry(one, paths, result, seconds))
            with bar.external_write_mode():
                say(_line(done[-1]))
    report = _report(separator, done, failed)
    for path in transcripts if done else ():
        write_transcripts(path, done)
        report["transcripts"] = str(path)
    if as_json:
        print(json.dumps(report))
    say(_last_line(report))
    return 1 if failed else 0


@contextmanager
def _on_disk(one: Input, output: Path):
    """The input itself; of standard input a copy that goes away after the block."""
    if one.name != "standard input":
        yield one
        return
    with ExitStack() as stack:
        try:
            output.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(
                tempfile.NamedTemporaryFile(dir=output, prefix=".stdin.")
            )
            shutil.copyfileobj(sys.stdin.buffer, file)
            file.flush()
        except OSError as error:
            raise UserError(
                f"{output}: cannot be written to ({error.strerror or error}); choose a "
                "folder with write permission and room on the disk"
            ) from error
        yield Input(Path(file.name), one.name, one.target)


def _progress_bar(task: str, inputs: list[Input]):
    """A bar over the seconds of sound of all inputs."""
    seconds = 0.0
    for one in inputs:
        # What is wrong with a file is said when it is its turn.
        with suppress(UserError), opened(one.path) as file:
            seconds += file.frames / file.samplerate
    shape = "{desc} {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]"
    shape += "{postfix}"
    return progress_bar(description=task, total=seconds, bar_format=shape, leave=False)


# ------------------------------------------------------------------ what was done


def _entry(one: Input, paths, result, seconds: float) -> dict:
    return {
        "input": one.name,
        "outputs": [str(path) for path in paths],
        **asdict(result),
        "processing_seconds": seconds,
        "real_time_factor": seconds / result.seconds,
    }


def write_transcripts(path: Path, done: list[dict]) -> None:
    """What was said in all files, as one table: input, seconds, text."""
    rows = (
        {"input": of["input"], "seconds": f"{of['seconds']:.3f}", "text": of["text"]}
        for of in done
    )
    atomic_write(path, csv_text(rows, ("input", "seconds", "text")))


def _report(separator: Interface, done: list, failed: list) -> dict:
    """All that was done, as plain data."""
    sound = sum(entry["seconds"] for entry in done)
    processing = sum(entry["processing_seconds"] for entry in done)
    return {
        "model": str(separator),
        "device": str(separator.model.device),
        "precision": separator.model.precision,
        "files": done,
        "failed": failed,
        "seconds": sound,
        "processing_seconds": processing,
        "real_time_factor": processing / sound if sound else None,
        **peak_memory(separator.model.device),
    }


def peak_memory(device) -> dict:
    """The largest memory this process has held so far, and of a GPU's, in bytes.

    Example
    -------
    >>> peak_memory("cpu")["peak_memory_bytes"] > 1e6
    True
    """
    found = {"peak_memory_bytes": _peak_of_process()}
    if str(device).startswith("cuda"):
        import torch

        found["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


def _peak_of_process() -> int | None:
    """The largest size that this process has had, in bytes; None where nobody knows."""
    with suppress(OSError):  # Linux; its ru_maxrss would begin with that of the parent
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        if peak := re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE):
            return 1024 * int(peak[1])
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size


def _line(entry: dict) -> str:
    """One file for people to read."""
    names = ", ".join(entry["outputs"])
    text = f"{entry['input']}: {entry['seconds']:.2f} s -> {names}"
    if entry["full_scale_samples"]:
        text += f" (the input has {entry['full_scale_samples']} samples at full scale: clipped?)"
    if entry["turned_down_db"]:
        text += f" (turned down by {entry['turned_down_db']:.1f} dB to fit into 16 bit)"
    silent = [j for j, gain in enumerate(entry["gains"], 1) if gain == 0]
    if silent:
        text += f" (silent: {', '.join(map(str, silent))})"
    if "text" in entry and entry["segments"]:
        text += f"\n    {entry['text'] or '(no words)'}"
    return text


def _last_line(report: dict) -> str:
    """The whole for people to read."""
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


def _say(text: str) -> None:
    print(text, flush=True)


def _silent(_text: str) -> None:
    """Says nothing: standard output is a machine's."""
