"""The run's folder: opened, locked, described, and never another experiment's."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import re
import socket
import subprocess
import sys
import time
from datetime import date
from importlib import metadata
from pathlib import Path

import filelock
import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.run_opts import RunOptions

from unified_se_ss.errors import UserError, keep_crash_reports_in, shortened
from unified_se_ss.files import atomic_write
from unified_se_ss.plain_yaml import plain_yaml
from unified_se_ss.training import distributed
from unified_se_ss.training.checkpoints import AtomicCheckpointer
from unified_se_ss.training.hparams import DESCRIPTION, resolved_yaml
from unified_se_ss.training.log import check_tensorboard
from unified_se_ss.training.options import AUTO, HparamsFile, Options

logger = logging.getLogger(__name__)

ANOTHER = "choose another with --output_folder"
_locks = {}  # by file; held as long as they are referred to
# Names of an unfinished `files.atomic_path`, and of the probe of `check_folder`.
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}|\.writable\.\d+")

# A run may be continued with other values of these keys; all others make another
# experiment.
CHANGEABLE = set(
    "number_of_epochs epoch_counter budget_minutes num_workers log_interval "
    "max_skipped_share rank_timeout_minutes activation_checkpointing tensorboard save_waves "
    "valid_batch_size data_folder output_folder save_folder checkpointer "
    "ckpt_interval_minutes ckpt_interval_steps".split()
)


def begin(options: Options, hparams: dict) -> None:
    """Join the other ranks, open the run's folder, and log device and precision.

    The folder explains itself: ``hyperparams.yaml`` (effective), ``env.log``,
    ``log.txt``, and a copy of the script. A plain ``checkpointer`` in `hparams` is
    replaced by a :class:`~unified_se_ss.training.checkpoints.AtomicCheckpointer`.

    Raises
    ------
    UserError
        The folder holds another experiment, is in use by another run, or cannot be
        written to; or a package that the run needs is missing.
    """
    run_opts, folder = options.run_opts, Path(hparams["output_folder"])
    _resolve_precision(options, hparams)
    device = _describe_device(run_opts, hparams)
    if hparams.get("tensorboard"):
        check_tensorboard()
    keep_freed_memory()
    minutes = hparams.get("rank_timeout_minutes", distributed.TIMEOUT_MINUTES)
    distributed.join(run_opts.distributed_backend, minutes)
    if if_main_process():
        _open_folder(options, folder)
    sb.create_experiment_directory(
        experiment_directory=folder,
        save_env_desc=False,  # it asks whichever pip is on the path
    )
    keep_crash_reports_in(folder)
    for chatty in ("matplotlib", "PIL"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if if_main_process():
        # SpeechBrain has copied the file that called it, this one, in place of the script.
        (folder / Path(__file__).name).unlink(missing_ok=True)
        script = Path(sys.argv[0])
        if script.is_file() and script.suffix == ".py":
            atomic_write(folder / script.name, script.read_bytes())
        atomic_write(folder / "env.log", _environment())
        sys.excepthook = sys.__excepthook__
    logger.info(device)
    if hparams.get("checkpointer") is not None:
        hparams["checkpointer"] = AtomicCheckpointer.of(hparams["checkpointer"])
        hparams["checkpointer"].tidy()


def _open_folder(options: Options, folder: Path) -> None:
    """Make the folder this run's: checked, locked, free of what a kill left, described."""
    check_folder(options, folder)
    lock_folder(folder)
    for path in folder.rglob(".*"):
        if TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
    source = options.hparams_file.resolve()
    header = f"# Generated {date.today()} from:\n# {source}\n# yamllint disable\n"
    atomic_write(folder / DESCRIPTION, header + resolved_yaml(options))


def lock_folder(folder) -> None:
    """Have this process be the only one that runs in a folder, until it ends.

    The lock is the operating system's: however the process ends, it is gone. The
    processes that read its data do not hold it.

    Raises
    ------
    UserError
        Another process runs there; says which.

    Example
    -------
    >>> lock_folder(getfixture("tmpdir"))
    """
    file = Path(folder).resolve() / ".lock"
    lock = _locks.setdefault(file, filelock.FileLock(file))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        holder = file.read_text(encoding="utf-8").strip() or "another process"
        raise UserError(
            f"output_folder: {folder} is in use by {holder}; wait for its end, or {ANOTHER}"
        ) from error
    started, command = time.strftime("%Y-%m-%d %H:%M:%S"), " ".join(sys.argv)
    host = socket.gethostname()
    file.write_text(f"process {os.getpid()} on {host} ({started}: {command})\n", "utf-8")


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


def _resolve_precision(options: Options, hparams: dict) -> None:
    """Leave ``precision: auto`` to the Brain, unless the command line names a precision."""
    in_yaml = hparams.get("precision") == AUTO
    if in_yaml:
        del hparams["precision"]
    named = "precision" in options.run_opts.overridden_args
    hparams["auto_precision"] = options.auto_precision or (in_yaml and not named)


def check_folder(options: Options, folder: Path) -> None:
    """Stop if the output folder is not writable or holds another experiment."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror
        raise UserError(
            f"output_folder: cannot write to {folder} ({reason}); {ANOTHER}"
        ) from error
    there = folder / DESCRIPTION
    if not there.is_file():
        # The checkpointer has made its own, empty folder by now; a run that was killed at
        # its very start has left files that are hidden.
        if any(p.is_file() and not p.name.startswith(".") for p in folder.rglob("*")):
            raise UserError(
                f"output_folder: {folder} is not empty and holds no run of this project; "
                f"{ANOTHER}"
            )
        return
    now = plain_yaml(resolved_yaml(options), options.hparams_file)
    before = plain_yaml(HparamsFile(there).text, there)
    for key in {**before, **now}:
        if key not in CHANGEABLE and before.get(key) != now.get(key):
            theirs, ours = shortened(before.get(key)), shortened(now.get(key))
            raise UserError(
                f"output_folder: {folder} holds another experiment: {key} is {theirs} there "
                f"and {ours} here; {ANOTHER}, or go on with the same settings"
            )


def _describe_device(run_opts: RunOptions, hparams: dict) -> str:
    """Name device and precision, and the reasons; an error for fp16 without a GPU."""
    asked = run_opts.device or hparams.get("device")
    device = asked or sb.utils.distributed.infer_device()
    reason = "no CUDA device was found" if device == "cpu" else "the best there is"
    named = run_opts.overridden_args  # on the command line
    for key in ("precision", "eval_precision"):
        given = getattr(run_opts, key) if key in named else hparams.get(key)
        if given == "fp16" and "cuda" not in device:
            raise UserError(
                f"--{key} fp16 needs a CUDA device; on {device} use bf16 or fp32"
            )
    precision = "fp32 (default)"
    if "precision" in named:
        precision = f"{run_opts.precision} (from the command line)"
    elif "precision" in hparams:
        precision = f"{hparams['precision']} (from the YAML)"
    elif hparams.get("auto_precision"):
        precision = "measured before the first step (auto)"
    precision += f", {_tf32()}" if "cuda" in device else ""
    ranks, reason = os.environ.get("WORLD_SIZE", 1), "as asked for" if asked else reason
    return f"Device: {device} ({reason}), precision: {precision}, processes: {ranks}"


def _tf32() -> str:
    # SpeechBrain allows all, unless SB_DISABLE_QUIRKS holds allow_tf32.
    products = ["matrix products"] * torch.backends.cuda.matmul.allow_tf32
    layers = ["convolutions and LSTMs"] * torch.backends.cudnn.allow_tf32
    return f"TF32 in {' and '.join(products + layers)}" if products + layers else "no TF32"


def _environment() -> str:
    """Command, commit, machine and versions of all packages, for ``env.log``."""
    packages = {f"{p.metadata['Name']}=={p.version}" for p in metadata.distributions()}
    lines = [
        f"command: {' '.join(sys.argv)}",
        f"commit: {commit() or 'unknown'}",
        f"python: {platform.python_version()} on {platform.platform()}",
        f"cpu threads: {torch.get_num_threads()}",
    ]
    if torch.cuda.is_available():
        lines.append(f"cuda: {torch.version.cuda}, {torch.cuda.get_device_name()}")
    return "\n".join([*lines, "", *sorted(packages, key=str.lower)]) + "\n"


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
