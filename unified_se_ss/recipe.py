"""What every train.py shares: options, the run's folder, loaders, describe, the log."""

from __future__ import annotations

import csv
import ctypes
import difflib
import io
import logging
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import speechbrain as sb
import torch
import yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references
from speechbrain.dataio.dataloader import SaveableDataLoader
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.run_opts import RunOptions

from unified_se_ss.errors import UserError
from unified_se_ss.evaluation import GradientLog, plot_conflicts, publish
from unified_se_ss.events import check_tensorboard, write_events
from unified_se_ss.files import write_whole
from unified_se_ss.gradients import RULES, find_rule
from unified_se_ss.plain_yaml import plain_yaml

logger = logging.getLogger(__name__)

# A run may be continued with other values of these keys; all others make another
# experiment.
CHANGEABLE = {
    "number_of_epochs",
    "epoch_counter",
    "num_workers",
    "log_interval",
    "tensorboard",
    "save_waves",
    "valid_batch_size",
    "data_folder",
    "output_folder",
    "save_folder",
    "checkpointer",
}


# Stands for = in values on their way through SpeechBrain's parser.
EQUALS = "\ue000"


@dataclass
class Options:
    """What the command line asked for.

    Arguments
    ---------
    hparams_file : Path
        The YAML file.
    run_opts : speechbrain.utils.run_opts.RunOptions
        SpeechBrain's run options.
    overrides : dict
        Keys of the YAML file with the values that replace them.
    describe : bool
        Whether to print the modules and leave.
    """

    hparams_file: Path
    run_opts: RunOptions
    overrides: dict
    describe: bool


def run(main) -> None:
    """Run a recipe's main function; an error that the user can mend is one message.

    Leaves with exit code 2 after a :class:`~unified_se_ss.errors.UserError`. With
    ``--debug`` its traceback is shown too.

    Arguments
    ---------
    main : callable
        Takes no argument.
    """
    try:
        main()
        if torch.distributed.is_initialized():
            # Left to the end of the process, its threads can abort it.
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
    except UserError as error:
        if "--debug" in sys.argv:
            raise
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            "\ninterrupted; the same command goes on from the last checkpoint",
            file=sys.stderr,
        )
        sys.exit(130)


# ------------------------------------------------------------------ options


def parse_options(arguments: list[str], manual: str) -> Options:
    """Read ``HPARAMS.yaml [--key value ...] [run options]``.

    Arguments
    ---------
    arguments : list of str
        Without the name of the program.
    manual : str
        What ``--help`` prints before SpeechBrain's run options.

    Returns
    -------
    Options

    Raises
    ------
    UserError
        No such YAML file, or a key that it does not have.
    """
    files = [a for a in arguments if re.search(r"\.ya?ml$", a) and not a.startswith("--")]
    if not arguments or {"-h", "--help"} & set(arguments):
        _print_help(manual, files)
    if not files:
        raise UserError(
            "no YAML file was named; expected: train.py HPARAMS.yaml [--key value ...]; "
            f"there are: {', '.join(sorted(map(str, Path('hparams').glob('*.yaml'))))}"
        )
    hparams_file = Path(files[0])
    if not hparams_file.is_file():
        raise UserError(_no_such_file(hparams_file))
    describe = "--describe" in arguments
    others = [a for a in arguments if a not in (files[0], "--describe")]
    if "RANK" in os.environ and not torch.cuda.is_available():
        others += ["--distributed_backend", "gloo"]  # SpeechBrain's default needs GPUs
    _, run_opts, overrides = sb.parse_arguments([files[0], *_keep_equals(others)])
    overrides = _parse_overrides(overrides.replace(EQUALS, "="))
    _check_overrides(hparams_file, overrides)
    return Options(hparams_file, run_opts, overrides, describe)


def _keep_equals(arguments: list[str]) -> list[str]:
    """Hide what = means nothing in, since SpeechBrain splits values at every one of them."""
    kept = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not argument.startswith("--"):
            kept.append(argument.replace("=", EQUALS))
        elif equals:
            kept.append(f"{key}={value.replace('=', EQUALS)}")
        else:
            kept.append(argument)
    return kept


def _print_help(manual: str, files: list[str]) -> None:
    """Print the manual, the keys of the YAML file if one was named, and the run options."""
    print(manual.strip(), end="\n\n")
    for name in files[:1]:
        if Path(name).is_file():
            print(f"Keys of {name}, each of which --KEY VALUE replaces:\n")
            for line in Path(name).read_text(encoding="utf-8").splitlines():
                if re.match(r"[A-Za-z]\w*:", line):
                    print(f"  --{line}")
            print()
    print("SpeechBrain's run options:\n")
    sb.parse_arguments(["--help"])


def _no_such_file(hparams_file: Path) -> str:
    """Say that a YAML file is missing, and which there are."""
    there = sorted(str(path) for path in hparams_file.parent.glob("*.yaml"))
    near = difflib.get_close_matches(str(hparams_file), there, 1, 0.5)
    hint = (
        f"; did you mean {near[0]}?"
        if near
        else f"; there are: {', '.join(there) or 'none'}"
    )
    return f"{hparams_file}: there is no such file{hint}"


def _parse_overrides(text: str) -> dict:
    """SpeechBrain's override string as a dictionary."""
    try:
        overrides = yaml.safe_load(text) or {}
    except yaml.YAMLError:
        overrides = None
    if not isinstance(overrides, dict):
        raise UserError(
            f"the command line was not understood near: {text.splitlines()[0]!r}; "
            "expected: --key value, with quotes around values that hold a colon"
        )
    return overrides


def _check_overrides(hparams_file: Path, overrides: dict) -> None:
    """Stop at a key that the YAML file does not have, or a value of another kind."""
    known = plain_yaml(hparams_file.read_text(encoding="utf-8"), hparams_file)
    run_options = list(RunOptions().as_dict()) + ["describe", "help"]
    for key, value in overrides.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known) + run_options, 1)
            hint = (
                f"did you mean --{near[0]}?" if near else "see --help for the keys it has"
            )
            raise UserError(f"--{key}: {hparams_file} has no such key; {hint}")
        wanted = _kind(known[key])
        if wanted == "a number" and isinstance(value, str):
            with suppress(ValueError):  # YAML does not read 1e-3 as a number
                overrides[key] = float(value)
        if wanted and overrides[key] is not None and _kind(overrides[key]) != wanted:
            raise UserError(
                f"--{key}: is {value!r}; expected {wanted}, such as {known[key]!r}"
            )


def _kind(value) -> str | None:
    """What sort of plain value it is, in words; None for what is constructed or null."""
    if isinstance(value, bool):
        return "True or False"
    if isinstance(value, (int, float)):
        return "a number"
    return "a list" if isinstance(value, list) else None


def check_choices(hparams: dict, choices: dict) -> None:
    """Stop at a key whose value is not one of those there are.

    Arguments
    ---------
    hparams : dict
        As :func:`load_hparams` returns it.
    choices : dict
        Allowed values by key.

    Raises
    ------
    UserError
        Names the key, its value, and what was expected.

    Example
    -------
    >>> check_choices({"rule": "project"}, {"rule": ["sum", "project"]})
    """
    for key, allowed in choices.items():
        if hparams[key] not in allowed:
            near = difflib.get_close_matches(str(hparams[key]), list(allowed), 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(
                f"{key}: is '{hparams[key]}'; expected one of: "
                f"{', '.join(map(str, allowed))}{hint}"
            )


def check_ranges(hparams: dict, least: dict) -> None:
    """Stop at a number that is too small.

    Arguments
    ---------
    hparams : dict
        As :func:`load_hparams` returns it.
    least : dict
        The smallest value that makes sense, by key.

    Raises
    ------
    UserError
        Names the key, its value, and what was expected.

    Example
    -------
    >>> check_ranges({"num_workers": 2}, {"num_workers": 0})
    """
    for key, bound in least.items():
        if not hparams[key] >= bound:
            raise UserError(f"{key}: is {hparams[key]}; expected {bound} or more")


def check_rule(hparams: dict) -> None:
    """Stop at a rule or an option of it that there is not.

    Arguments
    ---------
    hparams : dict
        As :func:`load_hparams` returns it; ``rule`` and ``rule_options`` are looked at.

    Raises
    ------
    UserError
        Names the key, its value, and what was expected.

    Example
    -------
    >>> check_rule({"rule": "remedy", "rule_options": {"strict": True}})
    """
    try:
        find_rule(hparams["rule"], hparams.get("rule_options"))
    except ValueError as error:
        near = difflib.get_close_matches(str(hparams["rule"]), RULES, 1)
        unknown = hparams["rule"] not in RULES and near
        hint = f"; did you mean '{near[0]}'?" if unknown else ""
        raise UserError(f"{error}{hint}") from error


def load_hparams(options: Options) -> dict:
    """Load the YAML file with its overrides.

    Arguments
    ---------
    options : Options
        As :func:`parse_options` returns them. For ``--describe``, keys that are left
        open are filled.

    Returns
    -------
    dict
        What the YAML file describes, constructed.

    Raises
    ------
    UserError
        A key is left open, or what the file describes cannot be made.
    """
    text = options.hparams_file.read_text(encoding="utf-8")
    placeholders = re.findall(r"^(\w+): *!PLACEHOLDER *(?:#(.*))?$", text, re.MULTILINE)
    for key, comment in placeholders:
        if key in options.overrides:
            continue
        if not options.describe:
            raise UserError(
                f"{key}: not set in {options.hparams_file}; give --{key} VALUE"
                + (f" ({comment.strip()})" if comment else "")
            )
        options.overrides[key] = "unset"
    try:
        if options.describe:  # leaves no folder behind
            with tempfile.TemporaryDirectory() as folder:
                overrides = {**options.overrides, "output_folder": folder}
                return load_hyperpyyaml(io.StringIO(text), overrides)
        return load_hyperpyyaml(io.StringIO(text), options.overrides)
    except (
        ValueError,
        TypeError,
        KeyError,
        ImportError,
        AttributeError,
        RuntimeError,
    ) as error:
        raise UserError(f"{options.hparams_file}: {error}") from error


# ------------------------------------------------------------------ the run's folder


def begin(options: Options, hparams: dict) -> None:
    """Join the other ranks, open the run's folder, and say what runs where and why.

    The folder explains itself: ``hyperparams.yaml`` (effective), ``env.log``,
    ``log.txt``, and a copy of the script.

    Raises
    ------
    UserError
        The folder holds another experiment, or cannot be written to; or a package that
        the run needs is missing.
    """
    run_opts = options.run_opts
    _check_precision(run_opts, hparams)
    if hparams.get("tensorboard"):
        check_tensorboard()
    keep_freed_memory()
    sb.utils.distributed.ddp_init_group(run_opts)
    if if_main_process():
        _check_folder(options, Path(hparams["output_folder"]))
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=str(options.hparams_file),
        overrides=options.overrides,
        save_env_desc=False,  # it asks whichever pip is on the path
    )
    for chatty in ("matplotlib", "PIL"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if if_main_process():
        folder = Path(hparams["output_folder"])
        _copy_script(folder)
        write_whole(folder / "env.log", environment())
        sys.excepthook = sys.__excepthook__
    logger.info(_where(run_opts, hparams))


def keep_freed_memory() -> bool:
    """Have glibc keep the memory that small tensors on the CPU leave, for the next step's.

    By default blocks of over 128 KiB may go back to the system at once, and every step
    pays for the page faults of getting them anew: a third of the demo's time. Blocks of
    over 32 MiB still do: kept, they would break up the heap of a large network. Returns
    whether it could be asked for; elsewhere nothing is changed.
    """
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2  # source: malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc
        return False
    options = {mmap_threshold: 1 << 25, trim_threshold: -1, top_pad: 1 << 26}
    return all(mallopt(option, value) for option, value in options.items())


def _check_precision(run_opts: RunOptions, hparams: dict) -> None:
    """Stop at fp16 without a GPU, which SpeechBrain would refuse with a traceback."""
    device = run_opts.device or hparams.get("device") or sb.utils.distributed.infer_device()
    for key in ("precision", "eval_precision"):
        given = run_opts[key] if key in run_opts.overridden_args else hparams.get(key)
        if given == "fp16" and "cuda" not in device:
            raise UserError(
                f"--{key} fp16 needs a CUDA device; on {device} use bf16 or fp32"
            )


def _check_folder(options: Options, folder: Path) -> None:
    """Stop if the output folder is not writable or holds another experiment."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"output_folder: cannot write to {folder} ({error.strerror}); "
            "choose another with --output_folder"
        ) from error
    there = folder / "hyperparams.yaml"
    if not there.is_file():
        # The checkpointer has made its own, empty folder by now.
        if any(path.is_file() for path in folder.rglob("*")):
            raise UserError(
                f"output_folder: {folder} is not empty and holds no run of this project; "
                "choose another with --output_folder"
            )
        return
    text = options.hparams_file.read_text(encoding="utf-8")
    resolved = resolve_references(io.StringIO(text), options.overrides).read()
    now = plain_yaml(resolved, options.hparams_file)
    before = plain_yaml(there.read_text(encoding="utf-8"), there)
    for key in {**before, **now}:
        if key not in CHANGEABLE and before.get(key) != now.get(key):
            raise UserError(
                f"output_folder: {folder} holds another experiment: {key} is "
                f"{_short(before.get(key))} there and {_short(now.get(key))} here; choose "
                "another with --output_folder, or go on with the same settings"
            )


def _short(value) -> str:
    """A value in few words, for messages."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _copy_script(folder: Path) -> None:
    """Put the script that was started into the run's folder.

    SpeechBrain has copied the file that called it, which is this one, in its place.
    """
    (folder / "recipe.py").unlink(missing_ok=True)
    script = Path(sys.argv[0])
    if script.is_file() and script.suffix == ".py":
        write_whole(folder / script.name, script.read_bytes())


def _where(run_opts: RunOptions, hparams: dict) -> str:
    """Device and precision, and why these."""
    device = run_opts.device or hparams.get("device")
    if device:
        reason = "as asked for"
    else:
        device = sb.utils.distributed.infer_device()
        reason = "the best there is" if device != "cpu" else "no CUDA device was found"
    for source, values in (("command line", run_opts.overridden_args), ("YAML", hparams)):
        if "precision" in values:
            value = run_opts.precision if source == "command line" else hparams["precision"]
            precision = f"{value} (from the {source})"
            break
    else:
        precision = "fp32 (default)"
    tf32 = ""
    if "cuda" in str(device):
        allowed = torch.backends.cuda.matmul.allow_tf32
        tf32 = f", TF32 matrix products {'allowed' if allowed else 'not allowed'}"
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    return f"Device: {device} ({reason}), precision: {precision}{tf32}, processes: {ranks}"


def environment() -> str:
    """Command, commit, machine and versions of all packages, for ``env.log``.

    Example
    -------
    >>> "torch==" in environment()
    True
    """
    packages = {
        f"{package.metadata['Name']}=={package.version}"
        for package in metadata.distributions()
    }
    lines = [
        f"command: {' '.join(sys.argv)}",
        f"commit: {commit() or 'unknown'}",
        f"python: {platform.python_version()} on {platform.platform()}",
        f"cpu threads: {torch.get_num_threads()}",
    ]
    if torch.cuda.is_available():
        lines.append(f"cuda: {torch.version.cuda}, {torch.cuda.get_device_name()}")
    return "\n".join([*lines, "", *sorted(packages, key=str.lower)]) + "\n"


def check_testable(run_opts: RunOptions, checkpointer) -> None:
    """Stop at ``--test_only`` where there is nothing to test.

    Raises
    ------
    UserError
        The run has no checkpoint.
    """
    if run_opts.test_only and not checkpointer.list_checkpoints():
        raise UserError(
            f"--test_only: there is no checkpoint in {checkpointer.checkpoints_dir}; "
            "train first, with the same command without --test_only"
        )


def commit() -> str | None:
    """Commit of the checkout that this code runs from, if it is one."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:  # there is no git
        return None
    return found.stdout.strip() or None


# ------------------------------------------------------------------ data and description


def on_main(function, *arguments):
    """Call a function on the main process, then on the others; each gets its result.

    For what makes files once and is quick when they are there.
    """
    results = []
    sb.utils.distributed.run_on_main(
        lambda: results.append(function(*arguments)),
        post_func=lambda: results.append(function(*arguments)),
    )
    return results[0]


def make_loader(dataset, batch_sampler, collate, num_workers: int) -> SaveableDataLoader:
    """A loader whose place within the epoch can be saved.

    Arguments
    ---------
    dataset : torch.utils.data.Dataset
        Taken by the keys that the sampler gives.
    batch_sampler : iterable
        Gives lists of keys.
    collate : callable
        Makes a batch of a list of examples.
    num_workers : int
        Processes that read.
    """
    return SaveableDataLoader(
        dataset,
        batch_sampler=batch_sampler,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
    )


def rank_and_size() -> dict:
    """This process' rank and the number of processes, as samplers take them."""
    return {
        "rank": int(os.environ.get("RANK", 0)),
        "world_size": int(os.environ.get("WORLD_SIZE", 1)),
    }


def gather(items: list) -> list:
    """Join the lists of all ranks; every rank gets the whole."""
    if not torch.distributed.is_initialized():
        return items
    parts = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def describe(modules: dict, facts: dict, depth: int = 2) -> str:
    """Modules with their parameter counts, and facts about the whole.

    Arguments
    ---------
    modules : dict
        ``hparams["modules"]``.
    facts : dict
        What else is worth knowing, such as latency, by name.
    depth : int
        Levels of modules shown.

    Returns
    -------
    str

    Example
    -------
    >>> print(describe({"network": torch.nn.Linear(3, 2)}, {"latency": "none"}))
    module  | type   | parameters
    --------+--------+-----------
    network | Linear |          8
    total   |        |          8
    <BLANKLINE>
    latency: none
    """
    rows = [("module", "type", "parameters")]
    for name, module in modules.items():
        for path, part in module.named_modules():
            level = path.count(".") + 1 if path else 0
            if level < depth:
                label = name + (f".{path}" if path else "")
                rows.append((label, type(part).__name__, f"{count_parameters(part):,}"))
    total = sum(count_parameters(module) for module in modules.values())
    rows.append(("total", "", f"{total:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a:<{widths[0]}} | {b:<{widths[1]}} | {c:>{widths[2]}}" for a, b, c in rows]
    lines.insert(1, "-+-".join("-" * width for width in widths))
    return "\n".join(lines) + "\n\n" + "\n".join(f"{k}: {v}" for k, v in facts.items())


def count_parameters(module: torch.nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


# ------------------------------------------------------------------ the log


class TrainLog:
    """One row per epoch in ``train_log.csv``, one line in ``train_log.txt``.

    A run that is resumed from an earlier epoch replaces the rows from there on. Both
    files are written whole.

    Arguments
    ---------
    folder : str or Path
        The run's folder.

    Example
    -------
    >>> import tempfile
    >>> log = TrainLog(tempfile.mkdtemp())
    >>> log.add({"epoch": 1, "lr": 0.1})
    >>> log.rows
    [{'epoch': 1, 'lr': 0.1}]
    """

    def __init__(self, folder):
        self.csv_path = Path(folder) / "train_log.csv"
        self.text_path = Path(folder) / "train_log.txt"

    @property
    def rows(self) -> list[dict]:
        """What was logged so far; numbers, empty cells left out."""
        if not self.csv_path.is_file():
            return []
        with open(self.csv_path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [{k: yaml.safe_load(v) for k, v in row.items() if v} for row in rows]

    def add(self, row: dict) -> None:
        """Log an epoch; forget what was logged of it and of later ones."""
        rows = [r for r in self.rows if r["epoch"] < row["epoch"]]
        rows.append({key: value for key, value in row.items() if value is not None})
        columns = list(dict.fromkeys(key for r in rows for key in r))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.csv_path, text.getvalue())
        write_whole(self.text_path, "".join(_line(r) + "\n" for r in rows))


def _line(row: dict) -> str:
    """One epoch in one line."""
    return ", ".join(
        f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}"
        for key, value in row.items()
    )


def describe_rule(hparams: dict) -> str:
    """The rule with its options, for pictures and the report.

    Example
    -------
    >>> describe_rule({"rule": "remedy", "rule_options": {"strict": True, "k": 3}})
    'remedy (strict: True, k: 3)'
    """
    options = ", ".join(f"{k}: {v}" for k, v in (hparams.get("rule_options") or {}).items())
    return hparams["rule"] + (f" ({options})" if options else "")


def log_gradients(brain, log_row: dict) -> None:
    """Write and draw what the monitor saw in an epoch; for the main process alone.

    ``gradients.csv`` and ``gradients.png`` in the run's folder, and events for
    TensorBoard where ``hparams`` ask for it (``tensorboard``).

    Arguments
    ---------
    brain : TwoTaskBrain
        Its ``monitor`` has seen the epoch.
    log_row : dict
        The epoch's row in the :class:`TrainLog`.
    """
    hparams = vars(brain.hparams)
    folder, windows = Path(hparams["output_folder"]), brain.monitor.windows()
    log = GradientLog(folder)
    log.add(log_row["epoch"], windows)
    rule, granularity = describe_rule(hparams), hparams["granularity"]
    plot_conflicts(log.rows, folder / "gradients.png", rule, granularity)
    if hparams.get("tensorboard"):
        write_events(folder / "tensorboard", log_row, windows)


# ------------------------------------------------------------------ results


def report(brain, rows: list[dict], signals_of_id, hours: float) -> None:
    """Write results, wavs and report of the evaluated network; print where they are.

    Arguments
    ---------
    brain : speechbrain.Brain
        Its ``hparams`` say where and how much: ``output_folder``, ``save_waves``.
    rows : list of dict
        What each test utterance got, as ``evaluate_item`` gives it, with its ``ID``.
    signals_of_id : callable
        Returns the signals of an utterance by its ID: a dict of mixture [T],
        estimates [J, T], targets [J, T], and, where there is one, enhanced [T].
    hours : float
        What the run took.
    """
    hparams = vars(brain.hparams)
    folder = Path(hparams["output_folder"])
    published = publish(
        folder,
        hparams["experiment_name"],
        rows,
        signals_of_id,
        hparams["sample_rate"],
        log_rows=TrainLog(folder).rows,
        configuration=_configuration(brain, hparams, hours),
        notes=["Measured on the test set with the checkpoint best in validation."],
        keep_waves=hparams["save_waves"],
        gradient_rows=GradientLog(folder).rows,
    )
    picture = folder / "gradients.png"
    drawn = picture if picture.is_file() else "not drawn: no two gradients to compare"
    waves = f"{folder / 'wavs'}{'/' if published.waves else ' (save_waves is 0)'}"
    print(f"\n{published.summary.table()}\n")
    print(f"results       {published.results}")
    print(f"curves        {folder / 'curves.png'}")
    print(f"gradients     {drawn}")
    print(f"separated     {waves}")
    print(f"report        {published.report}")


def _configuration(brain, hparams: dict, hours: float) -> dict:
    """What was run: every plain key of the YAML, and the circumstances."""
    plain = {k: v for k, v in hparams.items() if isinstance(v, (str, int, float, list))}
    if "rule" in plain:
        plain["rule"] = describe_rule(hparams)
    return {
        **plain,
        "recipe": Path(sys.argv[0]).name,
        "parameters": f"{count_parameters(brain.modules):,}",
        "commit": commit() or "unknown",
        "device": str(brain.device),
        "precision": brain.precision,
        "hours": round(hours, 2),
    }


class Stopwatch:
    """Hours since it was made.

    Example
    -------
    >>> 0 <= Stopwatch().hours < 1
    True
    """

    def __init__(self):
        self._start = time.perf_counter()

    @property
    def hours(self) -> float:
        """Hours so far."""
        return (time.perf_counter() - self._start) / 3600
