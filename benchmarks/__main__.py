"""Measure the project against named baselines, side by side in one process.

Prints tables, and writes them as JSON with machine, versions and commit. Without names
every benchmark is run, which takes about an hour on a CPU; --quick only sees that each
works.
"""

from __future__ import annotations

import unified_se_ss.installation  # noqa: F401  (first: does torchaudio fit torch?)

# isort: split
import argparse
import ast
import difflib
import gc
import importlib
import sys
import traceback
from datetime import datetime
from pathlib import Path

import torch

from benchmarks.frame import ROOT, Options, machine
from benchmarks.results import record, write_json
from unified_se_ss.errors import UserError
from unified_se_ss.training.run_folder import keep_freed_memory

FOLDER = Path(__file__).resolve().parent


def known_benchmarks() -> dict[str, str]:
    """First line of the docstring of every module here that has a `run(options)`."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), path.name)
        names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        if "run" in names:
            found[path.stem] = (ast.get_docstring(tree) or "").split("\n")[0]
    return found


def select(names: list[str], known: dict[str, str]) -> list[str]:
    """The benchmarks to run, all by default.

    Raises
    ------
    UserError
        There is none of that name.
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise UserError(
                f"there is no benchmark '{name}'; {hint}There are: {', '.join(known)}"
            )
    return names or list(known)


def device_of(name: str | None) -> torch.device:
    """The device asked for, or a GPU where there is one.

    Raises
    ------
    UserError
        There is no such device here.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: expected cpu, cuda, or cuda:NUMBER")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not count:
            raise UserError(
                f"--device {name}: torch {torch.__version__} sees no CUDA device on this "
                "machine; run with --device cpu, or install torch with CUDA"
            )
        if (device.index or 0) >= count:
            raise UserError(f"--device {name}: there are {count} CUDA devices, from 0 on")
    return device


def parser(known: dict[str, str]) -> argparse.ArgumentParser:
    """The command line."""
    width = max(map(len, known))
    lines = [f"  {name:<{width}}  {words}" for name, words in known.items()]
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="benchmarks:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("names", nargs="*", metavar="name", help="what to measure (default: everything)")
    add("--device", help="cpu, cuda or cuda:NUMBER (default: a GPU where there is one)")
    add("--quick", action="store_true", help="small sizes, one repeat: does it run?")
    add("--repeats", type=_positive, help="rounds that count, after a warm-up (default: 5)")
    add("--threads", type=_positive, default=1, help="of torch on the CPU (default: 1)")
    add("--profile", action="store_true", help="list the top operations, where it applies")
    add(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="for results.json and figures (default: results/benchmarks/DATE-TIME)",
    )
    add(
        "--record",
        action="store_true",
        help="write the tables into benchmarks/RESULTS.md, in place of those of this kind "
        "of machine",
    )
    return made


def _positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 on")
    return int(text)


def output_folder(asked: Path | None) -> Path:
    """Make the folder for what is written; nothing in it is overwritten.

    Raises
    ------
    UserError
        It holds results already, or cannot be made.
    """
    stamp = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    folder = asked or ROOT / "results" / "benchmarks" / stamp
    if (folder / "results.json").exists():
        raise UserError(f"--output {folder} holds a results.json already; name another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be made: {error.strerror}") from error
    return folder


def measure(name: str, options: Options) -> list:
    """Run one benchmark and print its tables as they come."""
    print(f"\n## {name}\n", flush=True)
    tables = []
    for table in importlib.import_module(f"benchmarks.{name}").run(options):
        print(table.as_markdown() + "\n", flush=True)
        tables.append(table)
    gc.collect()
    return tables


def run_all(names: list[str], options: Options, facts: dict) -> tuple[dict, bool]:
    """Tables by benchmark, written after each, and whether all came through."""
    results, well = {}, True
    for name in names:
        try:
            results[name] = measure(name, options)
        except UserError as error:
            print(f"{name}: {error}", file=sys.stderr)
            well = False
        except Exception:  # the others are still worth their time
            traceback.print_exc()
            print(f"{name} failed; see above", file=sys.stderr)
            well = False
        write_json(options.output / "results.json", facts, results)
    return results, well


def main(arguments: list[str] | None = None) -> int:
    """From the command line to the tables; the exit code."""
    known = known_benchmarks()
    given = parser(known).parse_args(arguments)
    names = select(given.names, known)
    options = Options(
        device=device_of(given.device),
        quick=given.quick,
        repeats=given.repeats or (1 if given.quick else 5),
        threads=given.threads,
        output=output_folder(given.output),
        profile=given.profile,
    )
    if given.quick and given.record:
        raise UserError("--record: the figures of --quick mean nothing; leave one away")
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as training does; what is compared with has it, too
    facts = machine(options.device, options.threads)
    print(f"{facts['kind']}, {facts['date']}, commit {facts['commit']}")
    print(f"{options.device}, threads: {options.threads}, repeats: {options.repeats}")
    results, well = run_all(names, options, facts)
    print(f"written: {options.output / 'results.json'}")
    if given.record and results:
        record(FOLDER / "RESULTS.md", facts, results)
        print(f"recorded: {FOLDER / 'RESULTS.md'}")
    return 0 if well else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
