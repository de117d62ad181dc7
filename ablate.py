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
import itertools
import math
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import ruamel.yaml
import torch
import yaml

from unified_se_ss.errors import UserError, did_you_mean, report_error
from unified_se_ss.evaluation.comparison import METRICS, compare, write_comparison
from unified_se_ss.evaluation.results import read_results, summarise
from unified_se_ss.plain_yaml import plain_value, plain_yaml
from unified_se_ss.progress import progress_bar

#: Seconds that a run may take to leave after Ctrl-C before it is killed.
PATIENCE = 30.0


@dataclass(frozen=True)
class Cell:
    """One point of the comparison: its name in the table, and the keys that it replaces."""

    name: str
    overrides: dict = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The name, with what a shell or a file system may stumble over replaced."""
        return re.sub(r"[^\w.,=+-]+", "_", self.name).strip("_")


@dataclass(frozen=True, eq=False)
class Run:
    """One training: a cell with a seed, its own folder, and what is started."""

    cell: Cell
    seed: int
    folder: Path
    command: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.cell.name}, seed {self.seed}"

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.seed}.log")

    @property
    def finished(self) -> bool:
        """True once it has its report, which is written last."""
        return all((self.folder / n).is_file() for n in ("results.csv", "report.html"))


# ------------------------------------------------------------------ options


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Read the command line: this script's options, ``hparams``, and ``others`` of every run."""
    options, others = _parser().parse_known_args(arguments)
    files = [a for a in others if a.endswith((".yaml", ".yml")) and not a.startswith("--")]
    options.hparams = Path(files[0]) if files else None
    options.others = [a for a in others if a not in files[:1]]
    given = given_values(options.others)
    if options.hparams and not options.hparams.is_file():
        raise UserError(f"{options.hparams}: there is no such file")
    if not options.hparams and not (options.table_only and options.output_folder):
        raise UserError(
            "no YAML file was named; expected: ablate.py HPARAMS.yaml --grid key=value,...; "
            f"there are: {', '.join(sorted(map(str, Path('hparams').glob('*.yaml'))))}"
        )
    if "seed" in given:
        raise UserError("--seed: every run gets its own; give --seeds 1,2,3")
    if options.devices and "device" in given:
        raise UserError("give --devices or --device, not both")
    if options.jobs is not None and options.jobs < 1:
        raise UserError(f"--jobs: is {options.jobs}; expected 1 or more")
    options.train = options.train or _find_train(options.hparams)
    if not options.train.is_file():
        raise UserError(f"--train: {options.train} is no file; expected a train.py")
    if options.output_folder is None:
        text = options.hparams.read_text(encoding="utf-8")
        keys = {**plain_yaml(text, options.hparams), **given}
        name = keys.get("experiment_name") or options.hparams.stem
        options.output_folder = Path("results") / f"{name}_ablation"
    return options


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "ablate.py",
        usage="python ablate.py HPARAMS.yaml [--grid KEY=VALUE,...] [options] [--key value ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--grid", action="append", default=[], metavar="KEY=VALUE,...", help="to try")
    add("--cells", type=Path, metavar="FILE", help="YAML file of named cells")
    add("--seeds", default="1,2,3", help="default: %(default)s")
    add("--baseline", metavar="CELL", help="what to compare with; default: the first cell")
    add("--output_folder", type=Path, help="default: results/<experiment_name>_ablation")
    add("--metrics", default=",".join(METRICS), help="columns; default: %(default)s")
    add("--devices", help="such as cuda:0,cuda:1 or cpu; default: every GPU there is")
    add("--jobs", type=int, help="runs at a time; default: the number of devices, or 1")
    add("--train", type=Path, help="default: train.py beside or above the YAML file")
    add("--table_only", action="store_true", help="make the table from what is there")
    add("--dry_run", action="store_true", help="list the runs and leave")
    return made


def _find_train(hparams: Path | None) -> Path:
    own = Path(__file__).with_name("train.py")
    folders = hparams.resolve().parents if hparams else ()
    found = (folder / own.name for folder in folders)
    return next((path for path in found if path.is_file()), own)


def given_values(arguments: list[str]) -> dict[str, str]:
    """Read ``--key value`` and ``--key=value``.

    Example
    -------
    >>> given_values(["--lr", "0.1", "--rule=sum", "--debug"])
    {'lr': '0.1', 'rule': 'sum', 'debug': ''}
    """
    found: dict[str, str] = {}
    key = None
    for word in arguments:
        if word.startswith("--"):
            key, _, found[key] = word[2:].partition("=")
        elif key:
            found[key] = f"{found[key]} {word}".strip()
    return found


def parse_seeds(text: str) -> list[int]:
    """Read the seeds of the command line, such as ``1,2,3``."""
    parts = [part.strip() for part in text.split(",")]
    if not all(map(str.isdecimal, parts)) or len(set(parts)) < len(parts):
        raise UserError(f"--seeds: is '{text}'; expected different numbers, such as 1,2,3")
    return [int(part) for part in parts]


# ------------------------------------------------------------------ cells


def make_cells(grid: list[str], file: Path | None = None) -> list[Cell]:
    """Make all cells: those of the file, each at every point of the grid.

    The last key of the grid changes fastest.

    Example
    -------
    >>> [cell.name for cell in make_cells(["rule=sum,project", "lr=0.1"])]
    ['rule=sum,lr=0.1', 'rule=project,lr=0.1']
    """
    axes = [read_cells(file)] if file else []
    axes += [parse_axis(text) for text in grid]
    cells = []
    for parts in itertools.product(*axes):
        name = ",".join(part.name for part in parts) or "as_is"
        pairs = [pair for part in parts for pair in part.overrides.items()]
        if twice := _first_twice([key for key, _ in pairs]):
            raise UserError(f"{twice}: is set twice in the cell '{name}'; expected it once")
        cells.append(Cell(name, dict(pairs)))
    if twice := _first_twice([cell.folder for cell in cells]):
        raise UserError(f"two cells would share the folder '{twice}'; rename one")
    return cells


def parse_axis(text: str) -> list[Cell]:
    """Make a cell of each value in ``key=value,value``, a YAML list without its brackets.

    Example
    -------
    >>> parse_axis("rule_options={strict: True},{}")[0].overrides
    {'rule_options': {'strict': True}}
    """
    key, equals, values = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z]\w*", key):
        raise UserError(f"--grid: is '{text}'; expected KEY=VALUE,VALUE,...")
    values = f"[{values}]"
    try:
        read = plain_value(values)
    except ValueError as error:
        raise UserError(f"--grid {text}: after = is no list of YAML values") from error
    nodes = ruamel.yaml.YAML(typ="safe", pure=True).compose(values).value
    parts = [values[node.start_mark.index : node.end_mark.index].strip() for node in nodes]
    if not parts:
        raise UserError(f"--grid {text}: names no value; expected KEY=VALUE,VALUE,...")
    if twice := _first_twice(parts):
        raise UserError(f"--grid {text}: {key}={twice} is there twice")
    return [Cell(f"{key}={part}", {key: value}) for part, value in zip(parts, read)]


def read_cells(path: Path) -> list[Cell]:
    """Read the cells of a YAML file: a mapping of names to mappings of keys to values."""
    try:
        content = plain_yaml(path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--cells: {path} cannot be read ({error})") from error
    is_right = all(
        isinstance(keys, dict) and all(isinstance(key, str) for key in keys)
        for keys in content.values()
    )
    if not content or not is_right:
        raise UserError(f"--cells: {path}: expected lines such as 'name: {{rule: sum}}'")
    return [Cell(str(name), overrides) for name, overrides in content.items()]


def _first_twice(names: list[str]) -> str | None:
    return next((name for i, name in enumerate(names) if name in names[:i]), None)


# ------------------------------------------------------------------ runs


def plan(options: argparse.Namespace, cells: list[Cell], seeds: list[int]) -> list[Run]:
    """List all runs, in the order in which they are started."""
    given = {"seed", "output_folder", *given_values(options.others)}
    for cell in cells:
        for key in cell.overrides.keys() & given:
            raise UserError(
                f"--{key}: is set for every run, but the cell '{cell.name}' sets it too"
            )
    runs = []
    for seed, cell in itertools.product(seeds, cells):
        folder = options.output_folder / cell.folder / str(seed)
        command = [sys.executable, str(options.train), str(options.hparams)]
        values = {"seed": seed, "output_folder": str(folder), **cell.overrides}
        for key, value in values.items():
            command += [f"--{key}", as_argument(value)]
        runs.append(Run(cell, seed, folder, (*command, *options.others)))
    return runs


def as_argument(value) -> str:
    """Write a value as train.py's command line takes it, which reads it as YAML.

    Example
    -------
    >>> as_argument("sum"), as_argument("True"), as_argument({"strict": True})
    ('sum', "'True'", '{strict: true}')
    """
    quoted = isinstance(value, str) and (value.startswith("-") or "\n" in value)
    style = {"default_style": '"' if quoted else None, "default_flow_style": True}
    text = yaml.safe_dump(value, width=math.inf, sort_keys=False, **style)
    return text.removesuffix("...\n").strip()


def check_settings(run: Run) -> None:
    """Stop at a finished run that was made with other settings than asked for now."""
    there = run.folder / "hyperparams.yaml"
    if not (run.finished and there.is_file()):
        return
    before = plain_yaml(there.read_text(encoding="utf-8"), there)
    for key, text in given_values(list(run.command)).items():
        values = [text]
        with contextlib.suppress(ValueError):
            values.append(plain_value(text))
        if key != "output_folder" and before.get(key, text) not in values:
            raise UserError(
                f"{run.folder}: holds a finished run with {key} {before[key]}, but {text} is "
                "asked for; choose another --output_folder, or remove its results.csv"
            )


def check_options(runs: list[Run]) -> None:
    """Have train.py look at the options of each cell, by --describe, before any run."""
    for name, command in {run.cell.name: run.command for run in runs}.items():
        done = subprocess.run([*command, "--describe"], capture_output=True, text=True)
        if done.returncode:
            message = done.stderr.rpartition("error: ")[2].strip()
            raise UserError(f"cell '{name}': {message}")


# ------------------------------------------------------------------ launch


def find_slots(options: argparse.Namespace, gpus: int) -> list[str]:
    """List the device of each run that goes on at a time; "" leaves it to train.py."""
    names = [f"cuda:{number}" for number in range(gpus)]
    if options.devices:
        names = [name.strip() for name in options.devices.split(",") if name.strip()]
    elif "device" in given_values(options.others):
        names = []
    names = names or [""]
    return [names[i % len(names)] for i in range(options.jobs or len(names))]


def environment_of(device: str, jobs: int, base: dict) -> dict:
    """Give a run its own GPU alone, and its share of the cores.

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


def launch(runs: list[Run], slots: list[str]) -> list[Run]:
    """Run all that are not finished; returns those that failed. An interrupt stops all."""
    waiting = [run for run in runs if not run.finished]
    free: queue.SimpleQueue = queue.SimpleQueue()
    for slot in slots:
        free.put((slot, environment_of(slot, len(slots), dict(os.environ))))
    stopped = threading.Event()
    bar = progress_bar(total=len(runs), unit="run", initial=len(runs) - len(waiting))

    def start(run: Run) -> None:
        slot, environment = free.get()
        bar.write(train(run, slot, environment, stopped), file=sys.stdout)
        bar.update()
        free.put((slot, environment))

    with contextlib.closing(bar), ThreadPoolExecutor(len(slots)) as pool:
        futures: list = []
        try:
            for run in waiting:
                futures.append(pool.submit(start, run))
                # Two runs at once would both make a corpus that is made on first use: the
                # next begins once the manifests, or later CSV files, of this one are there.
                while not (
                    any(run.folder.rglob("*.csv")) or all(f.done() for f in futures)
                ):
                    time.sleep(0.1)
            for future in futures:
                future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            stopped.set()
    return [run for run in waiting if not run.finished]


def train(run: Run, slot: str, environment: dict, stopped: threading.Event) -> str:
    """Start a run and wait for its end; says how it went."""
    command, began = list(run.command), time.monotonic()
    if slot and not slot.startswith("cuda:"):
        command += ["--device", slot]
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    with open(run.log, "a", encoding="utf-8") as log:
        log.write(f"$ {shlex.join(command)}\n")
        log.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches it once, from `_wait`
        )
        code = _wait(process, stopped)
    if code == 0 and run.finished:
        summary = summarise(read_results(run.folder / "results.csv"))
        means = [
            f"{column.heading} {metric.mean:.2f} {column.unit}"
            for column, metric in summary.headlines()
            if column.key in METRICS and metric.mean is not None
        ]
        minutes = (time.monotonic() - began) / 60
        return f"{run.name}: {', '.join(means) or 'finished'} ({minutes:.1f} min)"
    text = run.log.read_text(encoding="utf-8", errors="replace").strip()
    why, last = f"exit code {code}" if code else "no report", re.split(r"[\r\n]", text)[-1]
    return f"{run.name}: FAILED ({why}); see {run.log}: {last.strip()}"


def _wait(process: subprocess.Popen, stopped: threading.Event) -> int | None:
    """Wait for the end; once all are to stop, ask it to leave as Ctrl-C would, then kill it."""
    while process.poll() is None and not stopped.wait(0.1):
        pass
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)  # and its children
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
    return process.poll()


# ------------------------------------------------------------------ table


def collect(folder: Path, cells: list[Cell]) -> dict:
    """Read results.csv of the finished runs: rows by cell and seed; no cells means all."""
    names = {cell.folder: cell.name for cell in cells}
    results: dict = {cell.name: {} for cell in cells}
    found = (path.parts[-3:] for path in folder.glob("*/*/results.csv"))
    for cell, seed, file in sorted(found, key=lambda p: (p[0], len(p[1]), p[1])):
        if cell in names or not cells:
            results.setdefault(names.get(cell, cell), {})[seed] = read_results(
                folder / cell / seed / file
            )
    return results


def find_baseline(wanted: str | None, names: list[str]) -> str | None:
    """Look up the cell that was named as baseline, by its name or its folder."""
    if wanted is None:
        return None
    for name in names:
        if wanted in (name, Cell(name).folder):
            return name
    hint = did_you_mean(wanted, names) or f"; there are: {', '.join(names)}"
    raise UserError(f"--baseline: there is no cell '{wanted}'{hint}")


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


def main(arguments: list[str]) -> int:
    """Do what the command line asks; returns the exit code."""
    options = parse_arguments(arguments)
    seeds = parse_seeds(options.seeds)
    cells = make_cells(options.grid, options.cells)
    if options.table_only:
        make_table(options, cells if options.grid or options.cells else [])
        return 0
    find_baseline(options.baseline, [cell.name for cell in cells])
    runs = plan(options, cells, seeds)
    for run in runs:
        check_settings(run)
    if options.dry_run:
        for run in runs:
            unfinished = "to go on" if run.folder.is_dir() else "new"
            state = "finished" if run.finished else unfinished
            print(f"# {run.name}: {state}\n{shlex.join(run.command)}")
        return 0
    check_options([run for run in runs if not run.finished])
    print(
        f"{len(cells)} cells, {len(seeds)} seeds, {len(runs)} runs in {options.output_folder}"
    )
    failed = launch(runs, find_slots(options, torch.cuda.device_count()))
    if any(run.finished for run in runs):
        make_table(options, cells)
    for run in failed:
        print(f"failed: {run.name}; see {run.log}", file=sys.stderr)
    return 1 if failed else 0


def _interrupt(*_) -> None:
    raise KeyboardInterrupt


def guarded(arguments: list[str]) -> int:
    """Run :func:`main`, with every error as one message; SIGTERM and SIGHUP as Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, _interrupt)
    try:
        return main(arguments)
    except KeyboardInterrupt:
        hint = "the same command goes on, --table_only shows what there is"
        print(f"\ninterrupted; {hint}", file=sys.stderr)
        return 130
    except Exception as error:
        return report_error(error, debug="--debug" in arguments)


if __name__ == "__main__":
    sys.exit(guarded(sys.argv[1:]))
