"""A folder aside, so that a check leaves the run's own as it was."""

from __future__ import annotations

import atexit
import io
import os
import shutil
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

from hyperpyyaml import resolve_references

from unified_se_ss.data.problems import collect_errors
from unified_se_ss.errors import UserError
from unified_se_ss.plain_yaml import plain_yaml

DESCRIPTION = "hyperparams.yaml"
BATCH_SECONDS = "batch_seconds.json"  #: What --batch_seconds auto has found.


def is_dry_run(options) -> bool:
    """Whether the command line asks for a look instead of a run."""
    return options.check


def dry_run_overrides(options, keys) -> dict:
    """The overrides with which everything is written to a folder that goes away.

    The manifests of the run's own folder are copied there, so that they need not be made
    again, what it found for ``batch_seconds``, and its description, so that another
    experiment's folder is noticed.

    Arguments
    ---------
    options : Options
        As ``parse_options`` returns them.
    keys : container of str
        That the YAML file has.

    Returns
    -------
    dict
        Overrides.

    Raises
    ------
    UserError
        There are several processes.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("--check runs in one process; start without torchrun")
    folder = Path(tempfile.mkdtemp(prefix="unified_se_ss_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    own = own_folder(options)
    if (own / DESCRIPTION).is_file():
        for name in (DESCRIPTION, BATCH_SECONDS):
            if (own / name).is_file():
                shutil.copy(own / name, folder)
        if (own / "manifests").is_dir():
            shutil.copytree(own / "manifests", folder / "manifests")
    aside = {"output_folder": str(folder), "save_folder": str(folder / "save")}
    return {**options.overrides, **{key: aside[key] for key in aside if key in keys}}


def own_folder(options) -> Path:
    """Where the run itself writes to."""
    text = options.hparams_file.read_text(encoding="utf-8")
    resolved = resolve_references(io.StringIO(text), options.overrides).read()
    return Path(plain_yaml(resolved, options.hparams_file)["output_folder"])


def gathering_for_check():
    """For ``--check``, which shall see all faults of the data: they are gathered."""
    return collect_errors() if "--check" in sys.argv else nullcontext([])
