#!/usr/bin/env python3
"""Train a grid of settings with several seeds each, and say what can be told apart.

  python ablate.py hparams/demo.yaml --grid rule=sum,project,pcgrad --seeds 1,2,3
  python ablate.py HPARAMS.yaml --grid rule=sum,project --grid granularity=parameter,global
  python ablate.py HPARAMS.yaml --cells hparams/comparisons/paper.yaml --data_folder .../Libri2Mix

Every point of the grid is a cell, and so is every entry of the file of --cells: a name
and the keys that it replaces. Given both, every cell of the file is run at every point
of the grid. Values are YAML: rule_options="{strict: True}". Any other --key value goes
to every run, as to train.py; python train.py HPARAMS.yaml --help lists the keys.

Any recipe's YAML can be named; its train.py lies beside it or above. Each cell is trained
with each seed by

  python train.py HPARAMS.yaml --seed S --output_folder FOLDER/CELL/S --key value ...

first all cells with the first seed, so that an early stop has every cell once. The same
command goes on where it was stopped: a run that has its report is finished, others
go on from their last checkpoint. What a run prints is kept in FOLDER/CELL/S.log. One run
at a time, or one on each GPU.

At the end: comparison.md, comparison.csv and comparison.png in FOLDER, with means,
intervals, and paired differences to the baseline. --table_only makes them from the runs
that are finished by now; without --grid and --cells, of all cells in the folder.

A seed draws the initial weights and the order, crops and speeds of the training data.
"""

from __future__ import annotations

import unified_se_ss.installation  # noqa: F401  (first: does torchaudio fit torch?)

# isort: split
import argparse
import contextlib
import difflib
import io
import itertools
import json
import math
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from unified_se_ss.errors import UserError, report_error
from unified_se_ss.evaluation.comparison import METRICS, compare, write_comparison
from unified_se_ss.evaluation.results import KNOWN, read_results, summarise
from unified_se_ss.plain_yaml import plain_yaml

# How long a run may take to leave after Ctrl-C before it is ended, in seconds.
PATIENCE = 30.0
# With this argument alone, the script checks options that it reads from stdin.
DESCRIBE_EACH = "--describe_each"
OWN_KEYS = ("seed", "output_folder")


@dataclass(frozen=True)
class Cell:
    """One point of the comparison.

    Arguments
    ---------
    name : str
        As in the table.
    overrides : dict
        Values by key of the YAML file.
    """

    name: str
    overrides: dict = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The name with what a shell or a file system may stumble over replaced."""
        return re.sub(r"[^\w.,=+-]+", "_", self.name).strip("_")


@dataclass(frozen=True, eq=False)
class Run:
    """One training: a cell with a seed.

    Arguments
    ---------
    cell : Cell
        Which settings.
    seed : int
        Which seed.
    folder : Path
        The run's own folder.
    command : tuple of str
        What is started.
    """

    cell: Cell
    seed: int
    folder: Path
    command: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the run is called in messages."""
        return f"{self.cell.name}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """Where its output is kept."""
        return self.folder.with_name(f"{self.seed}.log")

    @property
    def finished(self) -> bool:
        """Whether it has been evaluated, down to its report, which is written last."""
        return all(
            (self.folder / name).is_file() for name in ("results.csv", "report.html")
        )

    @property
    def state(self) -> str:
        """What starting it would do."""
        if self.finished:
            return "finished"
        return "to go on" if self.folder.is_dir() else "new"

    @property
    def has_its_data(self) -> bool:
        """Whether it is past preparation: its manifests, or a later CSV, are there."""
        return any(self.folder.rglob("*.csv"))


# ------------------------------------------------------------------ options


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Read the command line.

    Arguments
    ---------
    arguments : list of str
        Without the name of the program.

    Returns
    -------
    argparse.Namespace
        The options, with ``hparams`` (Path or None) and ``others``, the arguments that
        every run gets.

    Raises
    ------
    UserError
        No YAML file, or an option of each run that is set here.
    """
    options, others = parser().parse_known_args(arguments)
    files = [a for a in others if re.search(r"\.ya?ml$", a) and not a.startswith("--")]
    options.hparams = Path(files[0]) if files else None
    options.others = [a for a in others if a not in files[:1]]
    if options.hparams and not options.hparams.is_file():
        raise UserError(f"{options.hparams}: there is no such file")
    if not options.hparams and not (options.table_only and options.output_folder):
        raise UserError(
            "no YAML file was named; expected: ablate.py HPARAMS.yaml --grid key=value,...; "
            f"there are: {', '.join(sorted(map(str, Path('hparams').glob('*.yaml'))))}"
        )
    if "seed" in keys_of(options.others):
        raise UserError("--seed: every run gets its own; give --seeds 1,2,3")
    if options.devices and "device" in keys_of(options.others):
        raise UserError("give --devices or --device, not both")
    if options.jobs is not None and options.jobs < 1:
        raise UserError(f"--jobs: is {options.jobs}; expected 1 or more")
    options.train = options.train or find_train(options.hparams)
    if not options.train.is_file():
        raise UserError(f"--train: {options.train} is no file; expected a train.py")
    if options.output_folder is None:
        name = experiment_name(options.hparams, options.others)
        options.output_folder = Path("results") / f"{name}_ablation"
    return options


def parser() -> argparse.ArgumentParser:
    """The options of this script; all others are those of train.py."""
    made = argparse.ArgumentParser(
        "ablate.py",
        usage="python ablate.py HPARAMS.yaml [--grid KEY=VALUE,...] [--cells FILE] [--seeds "
        "1,2,3] [options] [--key value ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add(
        "--grid", action="append", default=[], metavar="KEY=VALUE,...", help="values to try"
    )
    add("--cells", type=Path, metavar="FILE", help="YAML file of named cells")
    add("--seeds", default="1,2,3", help="default: %(default)s")
    add("--baseline", metavar="CELL", help="what to compare with; default: the first cell")
    add(
        "--output_folder",
        type=Path,
        metavar="FOLDER",
        help="default: results/<experiment_name>_ablation",
    )
    add(
        "--metrics",
        default=",".join(METRICS),
        help="columns of results.csv; default: those that there are of %(default)s",
    )
    add("--devices", help="such as cuda:0,cuda:1 or cpu; default: every GPU there is")
    add("--jobs", type=int, help="runs at a time; default: the number of devices, or 1")
    add(
        "--train",
        type=Path,
        metavar="SCRIPT",
        help="default: the train.py beside the YAML file or nearest above it",
    )
    add("--table_only", action="store_true", help="make the table from what is there")
    add("--dry_run", action="store_true", help="list the runs and leave")
    return made


def find_train(hparams: Path | None) -> Path:
    """The train.py of the recipe that a YAML file belongs to.

    It lies beside the file or in the nearest folder above it; for a file of no recipe it
    is the one beside this script.

    Example
    -------
    >>> find_train(Path("nowhere/hparams/a.yaml")) == Path(__file__).with_name("train.py")
    True
    """
    own = Path(__file__).with_name("train.py")
    folders = hparams.resolve().parents if hparams else ()
    found = (folder / own.name for folder in folders)
    return next((path for path in found if path.is_file()), own)


def keys_of(arguments: list[str]) -> list[str]:
    """The keys of ``--key value`` and ``--key=value``.

    Example
    -------
    >>> keys_of(["--lr", "0.1", "--rule=sum"])
    ['lr', 'rule']
    """
    return [a[2:].partition("=")[0] for a in arguments if a.startswith("--")]


def experiment_name(hparams: Path, others: list[str]) -> str:
    """What the experiment is called on the command line, or else in the YAML file."""
    given = re.search(r"--experiment_name[ =](\S+)", " ".join(others))
    text = hparams.read_text(encoding="utf-8")
    given = given or re.search(r"^experiment_name: *['\"]?([\w.+-]+)", text, re.MULTILINE)
    return given[1] if given else hparams.stem


def parse_seeds(text: str) -> list[int]:
    """Seeds from the command line.

    Example
    -------
    >>> parse_seeds("1,2,3")
    [1, 2, 3]
    """
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(
            f"--seeds: is '{text}'; expected different whole numbers, such as 1,2,3"
        )
    return seeds


# ------------------------------------------------------------------ cells


def make_cells(grid: list[str], file: Path | None = None) -> list[Cell]:
    """All cells: those of the file, each at every point of the grid.

    Arguments
    ---------
    grid : list of str
        As given to ``--grid``, each a key with its values.
    file : Path, optional
        As given to ``--cells``.

    Returns
    -------
    list of Cell
        The last key of the grid changes fastest.

    Raises
    ------
    UserError
        Something cannot be read, or is there twice.

    Example
    -------
    >>> [cell.name for cell in make_cells(["rule=sum,project", "lr=0.1"])]
    ['rule=sum,lr=0.1', 'rule=project,lr=0.1']
    """
    axes = [parse_axis(text) for text in grid]
    named = read_cells(file) if file else [Cell("")]
    cells = []
    for start, *points in itertools.product(named, *axes):
        name = ",".join([start.name] * bool(start.name) + [text for text, _, _ in points])
        keys = [*start.overrides, *(key for _, key, _ in points)]
        if twice := _first_twice(keys):
            raise UserError(f"{twice}: is set twice in the cell '{name}'; expected it once")
        values = {key: value for _, key, value in points}
        cells.append(Cell(name or "as_is", {**start.overrides, **values}))
    if twice := _first_twice([cell.folder for cell in cells]):
        raise UserError(
            f"two cells would share the folder '{twice}'; name them differently"
        )
    return cells


def parse_axis(text: str) -> list[tuple[str, str, object]]:
    """The points of ``key=value,value``: what they are called, key and value.

    Commas within brackets and quotes part no values.

    Example
    -------
    >>> parse_axis("rule_options={strict: True, k: 5},{}")[0]
    ('rule_options={strict: True, k: 5}', 'rule_options', {'strict': True, 'k': 5})
    """
    key, equals, values = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z]\w*", key):
        raise UserError(f"--grid: is '{text}'; expected KEY=VALUE,VALUE,...")
    try:
        points = [(f"{key}={part}", key, value) for part, value in parse_list(values)]
    except yaml.YAMLError as error:
        raise UserError(
            f"--grid {text}: what follows = is no list of YAML values"
        ) from error
    if not points:
        raise UserError(f"--grid {text}: names no value; expected KEY=VALUE,VALUE,...")
    if twice := _first_twice([name for name, _, _ in points]):
        raise UserError(f"--grid {text}: {twice} is there twice")
    return points


def parse_list(text: str) -> list[tuple[str, object]]:
    """The parts of a YAML list without its brackets: each as it was written, and its value.

    Example
    -------
    >>> parse_list("1e3, {b: 1, c: 2}, 'a,b'")
    [('1e3', '1e3'), ('{b: 1, c: 2}', {'b': 1, 'c': 2}), ("'a,b'", 'a,b')]
    """
    text = f"[{text}]"
    nodes = yaml.compose(text, yaml.SafeLoader).value
    parts = [text[node.start_mark.index : node.end_mark.index].strip() for node in nodes]
    return list(zip(parts, yaml.safe_load(text)))


def read_cells(path: Path) -> list[Cell]:
    """The cells of a YAML file: a mapping of names to mappings of keys to values."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise UserError(f"--cells: {path} cannot be read ({problem})") from error
    right = isinstance(content, dict) and content
    for name, overrides in content.items() if right else ():
        right = (
            right
            and isinstance(overrides, dict)
            and all(isinstance(key, str) for key in overrides)
        )
        for key in OWN_KEYS:
            if right and key in overrides:
                raise UserError(
                    f"{path}: {name} sets {key}, which every run gets of its own"
                )
    if not right:
        raise UserError(
            f"--cells: {path} was not understood; expected lines such as "
            "'name: {rule: sum, granularity: global}'"
        )
    return [Cell(str(name), overrides) for name, overrides in content.items()]


def _first_twice(names: list[str]) -> str | None:
    """The first name that is there twice."""
    return next((name for i, name in enumerate(names) if name in names[:i]), None)


# ------------------------------------------------------------------ runs


def plan(options: argparse.Namespace, cells: list[Cell], seeds: list[int]) -> list[Run]:
    """All runs, in the order in which they are started.

    Raises
    ------
    UserError
        A key is set for every run and in a cell too.
    """
    given = keys_of(options.others)
    for cell in cells:
        for key in cell.overrides:
            if key in given:
                raise UserError(
                    f"--{key}: is set for every run, but the cell '{cell.name}' sets it too"
                )
    runs = []
    for seed, cell in itertools.product(seeds, cells):
        folder = options.output_folder / cell.folder / str(seed)
        command = [sys.executable, str(options.train), str(options.hparams)]
        command += ["--seed", str(seed), "--output_folder", as_argument(str(folder))]
        for key, value in cell.overrides.items():
            command += [f"--{key}", as_argument(value)]
        runs.append(Run(cell, seed, folder, (*command, *options.others)))
    return runs


def as_argument(value) -> str:
    """A value as train.py's command line takes it, which reads it as YAML.

    Example
    -------
    >>> as_argument("sum"), as_argument("True"), as_argument({"strict": True})
    ('sum', "'True'", '{strict: true}')
    """
    quoted = isinstance(value, str) and (value.startswith("-") or "\n" in value)
    text = yaml.safe_dump(
        value,
        default_style='"' if quoted else None,
        default_flow_style=True,
        width=math.inf,
        sort_keys=False,
    )
    return text.removesuffix("...\n").strip()


def check_settings(runs: list[Run]) -> None:
    """Stop at a finished run that was made with other settings than asked for now.

    Raises
    ------
    UserError
        Names the run, the key, and both values.
    """
    for run in runs:
        there = run.folder / "hyperparams.yaml"
        if not (run.finished and there.is_file()):
            continue
        before = plain_yaml(there.read_text(encoding="utf-8"), there)
        for key, value in _settings(run.command).items():
            if key in before and not _alike(before[key], value):
                raise UserError(
                    f"{run.folder}: holds a finished run with {key} {before[key]}, but "
                    f"{value} is asked for now; choose another --output_folder, or remove "
                    "its results.csv to let it go on"
                )


def _settings(command: tuple[str, ...]) -> dict:
    """The ``--key value`` pairs of a command, but for the folder."""
    words = [part for word in command for part in _parted(word)]
    pairs = zip(words, words[1:])
    given = {a[2:]: b for a, b in pairs if a.startswith("--") and not b.startswith("--")}
    values = {}
    for key, text in given.items():
        with contextlib.suppress(yaml.YAMLError):
            values[key] = yaml.safe_load(text)
    return {key: value for key, value in values.items() if key != "output_folder"}


def _parted(word: str) -> list[str]:
    """``--key=value`` as two words."""
    key, equals, value = word.partition("=")
    return [key, value] if word.startswith("--") and equals else [word]


def _alike(a, b) -> bool:
    """Whether two values are equal, also where YAML takes 1e-3 for a word."""
    with contextlib.suppress(TypeError, ValueError):
        return float(a) == float(b)
    return a == b


# ------------------------------------------------------------------ check


def check_options(runs: list[Run]) -> int:
    """Have train.py look at the options of each cell, by --describe, before any run.

    All in one process, which has to import everything once only. Returns how many GPUs
    are seen there.

    Raises
    ------
    UserError
        What train.py said of the first cell whose options it refuses.
    """
    cells = {run.cell.name: run.command[2:] for run in runs}
    if not cells:
        return 0
    script = runs[0].command[1]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), DESCRIBE_EACH],
        input=json.dumps([script, list(cells.items())]),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        name = done.stdout.strip().splitlines()[-1:] or ["?"]
        message = done.stderr.strip()
        # A traceback ends with what is wrong, argparse's usage too.
        lines = message.partition("error: ")[2].strip() or "\n".join(
            message.splitlines()[-1:]
        )
        raise UserError(f"cell '{name[0]}': {lines}")
    return int(done.stdout.split()[-1])


def describe_each() -> int:
    """The other side of :func:`check_options`: reads stdin, prints what is found.

    That is the name of a cell that train.py refuses, or else the number of GPUs.
    """
    script, cells = json.load(sys.stdin)
    sys.path[0] = str(Path(script).resolve().parent)
    for name, arguments in cells:
        sys.argv = [script, *arguments, "--describe"]
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                runpy.run_path(script, run_name="__main__")
        except SystemExit as leaving:
            if leaving.code:
                print(name)
                print(
                    "" if isinstance(leaving.code, int) else leaving.code, file=sys.stderr
                )
                return 1
        except BaseException:
            print(name)
            raise
    torch = sys.modules.get("torch")
    print(torch.cuda.device_count() if torch else 0)
    return 0


# ------------------------------------------------------------------ launch


def find_slots(options: argparse.Namespace, gpus: int) -> list[str]:
    """The device of each run that goes on at the same time; "" leaves it to train.py.

    Example
    -------
    >>> options = argparse.Namespace(devices="cuda:0,cuda:1", jobs=3, others=[])
    >>> find_slots(options, gpus=0)
    ['cuda:0', 'cuda:1', 'cuda:0']
    """
    if options.devices:
        names = [name.strip() for name in options.devices.split(",") if name.strip()]
    elif "device" in keys_of(options.others):
        names = []
    else:
        names = [f"cuda:{number}" for number in range(gpus)]
    names = names or [""]
    return [names[i % len(names)] for i in range(options.jobs or len(names))]


def environment_of(device: str, jobs: int, base: dict) -> dict:
    """Environment of a run: only its own GPU, and its share of the cores.

    Example
    -------
    >>> environment_of("cuda:1", 2, {"CUDA_VISIBLE_DEVICES": "4,6", "OMP_NUM_THREADS": "1"})
    {'CUDA_VISIBLE_DEVICES': '6', 'OMP_NUM_THREADS': '1'}
    """
    made = dict(base)
    if device.startswith("cuda:"):
        number = int(device.partition(":")[2])
        visible = [name for name in base.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        if visible and number >= len(visible):
            raise UserError(f"--devices: there is no {device}; {len(visible)} are visible")
        made["CUDA_VISIBLE_DEVICES"] = visible[number] if visible else str(number)
    if jobs > 1:
        made.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    return made


class Launcher:
    """Runs what is waiting, as many at a time as there are slots.

    Arguments
    ---------
    runs : list of Run
        Those that are not finished, in order.
    slots : list of str
        As :func:`find_slots` returns them.
    report : callable
        Gets a sentence for each run that ends.
    """

    def __init__(self, runs: list[Run], slots: list[str], report):
        self.waiting = deque(runs)
        self.free = deque(slots)
        self.jobs = len(slots)
        self.report = report
        self.running: dict[Run, tuple[subprocess.Popen, str, float]] = {}
        self.failed: list[Run] = []
        # Two runs at once would both make a corpus that is made on first use.
        self.pioneer: Run | None = None

    def step(self) -> list[Run]:
        """Start what can be started; give the runs that have ended."""
        while self.waiting and self.free and not self._must_wait():
            self._start(self.waiting.popleft())
        ended = [run for run, (process, *_) in self.running.items() if _ended(process)]
        for run in ended:
            self._end(run)
        return ended

    @property
    def done(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self.waiting and not self.running

    def stop(self) -> None:
        """Ask all that run to leave, as Ctrl-C would, and wait until they have."""
        for process, *_ in self.running.values():
            _signal(process, signal.SIGINT)
        deadline = time.monotonic() + PATIENCE
        for process, *_ in self.running.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                _signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))
                process.wait()

    def _must_wait(self) -> bool:
        """Whether a first run is still preparing the data that all will use."""
        return self.pioneer in self.running and not self.pioneer.has_its_data

    def _start(self, run: Run) -> None:
        """Start a run in the next slot."""
        slot = self.free.popleft()
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        device = ["--device", slot] if slot and not slot.startswith("cuda:") else []
        command = [*run.command, *device]
        with open(run.log, "a", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(command)}\n")
            log.flush()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment_of(slot, self.jobs, dict(os.environ)),
                start_new_session=True,  # Ctrl-C reaches it once, through `stop`
            )
        self.running[run] = (process, slot, time.monotonic())
        if not any(r.has_its_data for r in self.running):
            self.pioneer = run

    def _end(self, run: Run) -> None:
        """Note how a run ended, and free its slot."""
        process, slot, start = self.running.pop(run)
        self.free.append(slot)
        minutes = (time.monotonic() - start) / 60
        if process.returncode == 0 and run.finished:
            self.report(f"{run.name}: {headline(run)} ({minutes:.1f} min)")
            return
        self.failed.append(run)
        why = f"exit code {process.returncode}" if process.returncode else "no report"
        self.report(f"{run.name}: FAILED ({why}); see {run.log}: {last_line(run.log)}")


def _ended(process: subprocess.Popen) -> bool:
    """Whether a process has ended."""
    return process.poll() is not None


def _signal(process: subprocess.Popen, number: int) -> None:
    """Send a signal to a process and its children; nothing if it has ended."""
    if _ended(process):
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)


def headline(run: Run) -> str:
    """What a finished run got, in a few words."""
    metrics = summarise(read_results(run.folder / "results.csv")).metrics
    found = [
        f"{column.heading} {metrics[key].mean:.2f} {column.unit}"
        for key, column in KNOWN.items()
        if key in METRICS and key in metrics and metrics[key].mean is not None
    ]
    return ", ".join(found) or "finished"


def last_line(log: Path) -> str:
    """The last line that a run has printed."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
    return lines[-1] if lines else ""


def launch(runs: list[Run], slots: list[str]) -> list[Run]:
    """Run all that are not finished, with a progress bar; give those that failed.

    An interrupt stops the runs that go on, and is passed on.
    """
    from unified_se_ss.progress import progress_bar

    waiting = [run for run in runs if not run.finished]
    bar = progress_bar(total=len(runs), unit="run", initial=len(runs) - len(waiting))
    launcher = Launcher(waiting, slots, lambda words: bar.write(words, file=sys.stdout))
    epochs = {run: len(epochs_told(run)) for run in waiting}  # of an earlier start
    try:
        while not launcher.done:
            ended = launcher.step()
            for run in [*launcher.running, *ended]:
                for line in epochs_told(run)[epochs[run] :]:
                    bar.write(f"{run.name}: {line}", file=sys.stdout)
                    epochs[run] += 1
            bar.set_postfix_str("; ".join(run.name for run in launcher.running), False)
            if ended:
                bar.update(len(ended))
            if sys.stderr.isatty():
                bar.refresh()
            sys.stdout.flush()
            time.sleep(0.5)
    finally:
        launcher.stop()
        bar.close()
    return launcher.failed


def epochs_told(run: Run) -> list[str]:
    """What a run has printed of the epochs that it has been through."""
    try:
        text = run.log.read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has only just been started
        return []
    return re.findall(r"^Epoch \d+: .*valid.*$", text, re.MULTILINE)


# ------------------------------------------------------------------ table


def collect(folder: Path, cells: list[Cell]) -> dict:
    """Rows of results.csv by cell and seed, of all runs that are finished.

    Arguments
    ---------
    folder : Path
        Of the ablation.
    cells : list of Cell
        Those to look for; if empty, all in the folder.
    """
    places = {cell.name: folder / cell.folder for cell in cells}
    if not cells:
        found = {path.parent.parent for path in folder.glob("*/*/results.csv")}
        places = {place.name: place for place in sorted(found, key=_natural)}
    return {
        name: {
            path.parent.name: read_results(path)
            for path in sorted(place.glob("*/results.csv"), key=_natural)
        }
        for name, place in places.items()
    }


def _natural(path: Path) -> list:
    """Sorts 2 before 10."""
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in path.parts]


def find_baseline(wanted: str | None, names: list[str]) -> str | None:
    """The cell that was named as baseline, which may be named by its folder too."""
    if wanted is None:
        return None
    for name in names:
        if wanted in (name, Cell(name).folder):
            return name
    near = difflib.get_close_matches(wanted, names, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(names)}"
    raise UserError(f"--baseline: there is no cell '{wanted}'; {hint}")


def make_table(options: argparse.Namespace, cells: list[Cell]) -> None:
    """Write the comparison of what is finished, and print it."""
    folder = options.output_folder
    results = collect(folder, cells)
    if not any(results.values()):
        raise UserError(f"{folder}: holds no finished run of these cells")
    baseline = find_baseline(options.baseline, list(results))
    if baseline and not cells:  # no order was asked for
        results = {baseline: results[baseline], **results}
    comparison = compare(results, baseline, options.metrics.split(","))
    paths = write_comparison(comparison, folder)
    print(f"\n{comparison.table()}\n")
    print("\n".join(textwrap.fill(note, 92) for note in comparison.notes()), end="\n\n")
    for path, name in zip(paths, ("table", "numbers", "picture")):
        print(f"{name:<10}{path}")


# ------------------------------------------------------------------ the whole


def main(arguments: list[str]) -> int:
    """From the command line to the table; returns the exit code."""
    options = parse_arguments(arguments)
    seeds = parse_seeds(options.seeds)
    cells = make_cells(options.grid, options.cells)
    if options.table_only:
        chosen = cells if options.grid or options.cells else []
        make_table(options, chosen)
        return 0
    find_baseline(options.baseline, [cell.name for cell in cells])
    runs = plan(options, cells, seeds)
    check_settings(runs)
    if options.dry_run:
        for run in runs:
            print(f"# {run.name}: {run.state}\n{shlex.join(run.command)}")
        return 0
    gpus = check_options([run for run in runs if not run.finished])
    print(
        f"{len(cells)} cells, {len(seeds)} seeds, {len(runs)} runs in {options.output_folder}"
    )
    failed = launch(runs, find_slots(options, gpus))
    if any(run.finished for run in runs):
        make_table(options, cells)
    for run in failed:
        print(f"failed: {run.name}; see {run.log}", file=sys.stderr)
    return 1 if failed else 0


def interrupt(*_) -> None:
    """Let other ways to end a process end it as Ctrl-C does."""
    raise KeyboardInterrupt


def guarded(arguments: list[str]) -> int:
    """:func:`main`, with every error as one message."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, interrupt)
    try:
        return main(arguments)
    except KeyboardInterrupt:
        print(
            "\ninterrupted; the same command goes on, --table_only shows what there is",
            file=sys.stderr,
        )
        return 130
    except Exception as error:
        return report_error(error, debug="--debug" in arguments)


if __name__ == "__main__":
    if sys.argv[1:] == [DESCRIBE_EACH]:
        sys.exit(describe_each())
    sys.exit(guarded(sys.argv[1:]))
