"""What every benchmark is made of: options, timings taken in turn, memory, tables.

A benchmark is a module of this folder whose docstring says in its first line what is
measured against what, and which has

    def run(options: Options) -> Iterable[Table]

that sets the project against a named baseline in one process (see :func:`alternate`).
With ``options.quick`` it runs in seconds, on small sizes: that is what the tests do.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import math
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's search for a GPU

import torch

from unified_se_ss.errors import UserError
from unified_se_ss.training.run_folder import commit

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "speechbrain", "numpy", "scipy", "mir_eval", "torchjd", "soundfile")
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Arguments
    ---------
    device : torch.device
        Where networks run.
    quick : bool
        Small sizes and one repeat, to see that it runs; the figures mean nothing.
    repeats : int
        Rounds of a timing, beside the warm-up.
    threads : int
        Threads of torch on the CPU.
    output : pathlib.Path, optional
        Existing folder for figures; None where nothing shall be drawn.
    profile : bool
        Whether to list the top operations, where a benchmark can.
    """

    device: torch.device = torch.device("cpu")
    quick: bool = False
    repeats: int = 5
    threads: int = 1
    output: Path | None = None
    profile: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under a title; what is printed, written as JSON and recorded.

    Arguments
    ---------
    title : str
        What is measured, in one line; unique within a benchmark.
    columns : sequence of str
        Columns to print, units in their names. Rows may have more: these are in the
        JSON alone.
    rows : list of dict
        Values by column: strings, numbers, booleans, or None where there is none.
    note : str
        What the figures mean, what was left out and why.
    """

    title: str
    columns: Sequence[str]
    rows: list[dict] = field(default_factory=list)
    note: str = ""

    def as_markdown(self) -> str:
        """The table as Markdown whose columns line up."""
        lines = [[shown(row.get(column)) for column in self.columns] for row in self.rows]
        widths = [
            max(3, *(len(cell) for cell in cells)) for cells in zip(self.columns, *lines)
        ]
        right = [
            any(isinstance(row.get(column), (int, float)) for row in self.rows)
            for column in self.columns
        ]

        def line(cells):
            padded = [
                cell.rjust(width) if numeric else cell.ljust(width)
                for cell, width, numeric in zip(cells, widths, right)
            ]
            return f"| {' | '.join(padded)} |"

        rule = [
            "-" * (width - numeric) + ":" * numeric for width, numeric in zip(widths, right)
        ]
        body = "\n".join(map(line, [list(self.columns), rule, *lines]))
        return "\n\n".join(part for part in (f"**{self.title}**", body, self.note) if part)


def shown(value) -> str:
    """A value for people: three digits of a float, a dash for nothing.

    Example
    -------
    >>> [shown(value) for value in (0.12345, 1234.5, 2.0e-9, 7, None, True)]
    ['0.123', '1234', '2.0e-09', '7', '-', 'yes']
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value).replace("|", "\\|")
    if not (size := abs(value)):
        return "0"
    if not 1e-3 <= size < 1e6:
        return f"{value:.1e}"
    return f"{value:.3f}" if size < 1 else f"{value:.{max(0, 3 - len(str(int(size))))}f}"


# ------------------------------------------------------------------ time


@dataclass(frozen=True)
class Timing:
    """Seconds of each round of one function.

    Arguments
    ---------
    wall : tuple of float
        On the clock, the device's work included.
    processor : tuple of float
        Of this process on the CPU, which others on the machine do not lengthen.
    system : tuple of float
        Those of the processor that went to the operating system: handing out memory, page
        by page, most of all.
    peak_bytes : int, optional
        Most bytes at once beyond what was there before; see :func:`peak_bytes`.
    """

    wall: tuple[float, ...]
    processor: tuple[float, ...]
    system: tuple[float, ...] = ()
    peak_bytes: int | None = None

    @property
    def median(self) -> float:
        """Median seconds on the clock."""
        return statistics.median(self.wall)

    @property
    def low(self) -> float:
        """Fewest seconds on the clock."""
        return min(self.wall)

    @property
    def high(self) -> float:
        """Most seconds on the clock."""
        return max(self.wall)

    @property
    def processor_median(self) -> float:
        """Median seconds of the processor."""
        return statistics.median(self.processor)

    @property
    def system_median(self) -> float:
        """Median seconds of the operating system."""
        return statistics.median(self.system)

    @property
    def own_median(self) -> float:
        """Median seconds of the processor without the operating system's."""
        return statistics.median(p - s for p, s in zip(self.processor, self.system))

    def times(self, other: Timing, clock: str = "wall") -> float:
        """How many times as long this takes as another: median of the rounds' ratios."""
        pairs = zip(getattr(self, clock), getattr(other, clock))
        return statistics.median(mine / max(theirs, 1e-9) for mine, theirs in pairs)


def alternate(
    functions: dict[str, Callable],
    repeats: int,
    device: torch.device,
    memory: bool = False,
    between: Callable = lambda: None,
) -> dict[str, Timing]:
    """Time functions in turn in this process, after one call of each to warm up.

    What changes with time (heat, other programs) meets all alike: every round calls each
    once, every other round in reverse order.

    Arguments
    ---------
    functions : dict of callable
        By name, without arguments; what they return is dropped.
    repeats : int
        Rounds that count.
    device : torch.device
        Where they work; on CUDA each is waited for.
    memory : bool
        Measure the peak memory, too. On CUDA that costs nothing and is always done; on
        the CPU it takes one more call of each under the profiler.
    between : callable
        Called before each call, outside its time: to clear gradients, say.

    Returns
    -------
    dict of Timing

    Example
    -------
    >>> x = torch.randn(50, 50)
    >>> timings = alternate({"product": lambda: x @ x}, 3, torch.device("cpu"), memory=True)
    >>> len(timings["product"].wall), timings["product"].peak_bytes
    (3, 10000)
    """
    on_cuda = device.type == "cuda"
    release_memory()
    taken = {name: [] for name in functions}
    peaks: dict[str, int | None] = dict.fromkeys(functions)
    for number in range(repeats + 1):
        names = list(functions)
        for name in reversed(names) if number % 2 else names:
            between()
            seconds, peak = _one_call(functions[name], device)
            if number:  # the first of each is warm-up
                taken[name].append(seconds)
                peaks[name] = max(peak, peaks[name] or 0) if on_cuda else None
    if memory and not on_cuda:
        for name, function in functions.items():
            between()
            peaks[name] = peak_bytes(function, device)
    between()
    return {
        name: Timing(*map(tuple, zip(*seconds)), peaks[name])
        for name, seconds in taken.items()
    }


def _one_call(function, device) -> tuple[tuple[float, float, float], int]:
    """Wall, processor and system seconds of one call; on CUDA also its peak of memory."""
    on_cuda = device.type == "cuda"
    before = 0
    if on_cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    before_it = _clocks()
    function()
    if on_cuda:
        torch.cuda.synchronize(device)
    seconds = tuple(after - start for after, start in zip(_clocks(), before_it))
    peak = torch.cuda.max_memory_allocated(device) - before if on_cuda else 0
    return seconds, peak


def _clocks() -> tuple[float, float, float]:
    """Seconds on the clock, of this process, and of the operating system for it."""
    system = resource.getrusage(resource.RUSAGE_SELF).ru_stime
    return time.perf_counter(), time.process_time(), system


#: Columns that :func:`compared` fills.
COMPARED = ("seconds", "low", "high", "processor s", "speed", "processor speed")


def compared(timings: dict[str, Timing], baseline: str, name: str = "way") -> list[dict]:
    """One row for each timing, with its speed as a multiple of the baseline's.

    Arguments
    ---------
    timings : dict of Timing
        As :func:`alternate` gives them.
    baseline : str
        Name of one of them; its speed is 1.
    name : str
        Name of the column that holds the names.
    """
    theirs = timings[baseline]
    return [
        {
            name: way,
            "seconds": timing.median,
            "low": timing.low,
            "high": timing.high,
            "processor s": timing.processor_median,
            "speed": theirs.times(timing),
            "processor speed": theirs.times(timing, "processor"),
            "peak MiB": in_mebibytes(timing.peak_bytes),
        }
        for way, timing in timings.items()
    ]


def in_mebibytes(number: int | None) -> float | None:
    """Bytes as MiB; None stays None."""
    return None if number is None else number / MEBIBYTE


# ------------------------------------------------------------------ memory


def release_memory() -> None:
    """Give back what nothing uses any more but the heap keeps for later (glibc)."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def free_bytes(device: torch.device) -> float:
    """Memory that is free, where it can be known; else infinity."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    release_memory()
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:
            facts = dict(line.split(":") for line in file)
        return 1024.0 * int(facts["MemAvailable"].split()[0])
    except (OSError, KeyError):  # not Linux
        return math.inf


def peak_bytes(run: Callable, device: torch.device) -> int:
    """Most bytes of tensors that `run()` allocates and holds at once.

    On the CPU summed up from the profiler's record of every tensor that comes and goes
    (what oneDNN allocates for itself is not in it), on CUDA the allocator's peak.

    Arguments
    ---------
    run : callable
        Without arguments.
    device : torch.device
        Whose memory is counted.
    """
    if device.type == "cuda":
        return _one_call(run, device)[1]
    return _peak_of_record(_allocations(run))


def _allocations(run) -> list[dict]:
    """The profiler's record of what was allocated (and freed) on the CPU, in order."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one cycle of recording
        with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
            run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]"]
    memory.sort(key=lambda event: event["args"]["Ev Idx"])
    return [event["args"] for event in memory]


def _peak_of_record(record: list[dict]) -> int:
    """Highest sum of what is held; what was allocated before the record is left out."""
    held, now, peak = {}, 0, 0
    for event in record:
        address, size = event["Addr"], event["Bytes"]
        if size > 0:
            held[address] = size
            now += size
            peak = max(peak, now)
        else:
            now -= held.pop(address, 0)
    return peak


# ------------------------------------------------------------------ machine


def machine(device: torch.device | None = None, threads: int | None = None) -> dict:
    """What a figure depends on beside the code: machine, versions, commit, date.

    Arguments
    ---------
    device : torch.device, optional
        Where networks run; by default the CPU.
    threads : int, optional
        Of torch; by default as set.
    """
    device = device or torch.device("cpu")
    cores = os.cpu_count()
    facts = {
        "kind": f"{_processor()}, {cores} cores",
        "device": str(device),
        "processor": _processor(),
        "cores": cores,
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "memory GiB": _memory_gibibytes(),
        "threads": threads or torch.get_num_threads(),
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "system": platform.platform(terse=True),
        "versions": {"python": platform.python_version(), **_versions()},
    }
    if device.type == "cuda":
        facts["kind"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = torch.backends.cudnn.version()
    return facts


def _processor() -> str:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _memory_gibibytes() -> float | None:
    """The machine's memory, where the system says it."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _versions() -> dict[str, str]:
    """Versions of what is installed of the packages that matter."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def needs(package: str, extra: str):
    """A package that a baseline needs; what to install, where it is missing.

    Raises
    ------
    UserError
        It is not installed.
    """
    try:
        return __import__(package)
    except ImportError as error:
        raise UserError(
            f"{package} is not installed, which is what is compared with; "
            f"pip install '.[{extra}]'"
        ) from error


def from_tests(name: str):
    """A module of the tests: an oracle, or a counter that both use."""
    if (folder := str(ROOT / "tests")) not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)
