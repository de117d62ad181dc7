"""From the command line to the report: the frame around every recipe."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from speechbrain.utils.distributed import if_main_process

from unified_se_ss.data.corpora import collect_errors
from unified_se_ss.errors import UserError, report_error
from unified_se_ss.evaluation.gradient_report import GradientLog
from unified_se_ss.evaluation.plots import aligned_table
from unified_se_ss.evaluation.report import publish
from unified_se_ss.training.autotune import load_batch_seconds
from unified_se_ss.training.distributed import report_lost_rank
from unified_se_ss.training.hparams import load_hparams
from unified_se_ss.training.loaders import end_readers
from unified_se_ss.training.log import TrainLog, describe_rule
from unified_se_ss.training.options import Options, parse_options
from unified_se_ss.training.run_folder import begin, commit
from unified_se_ss.training.sanity_check import full_check, sanity_check
from unified_se_ss.training.signals import INTERRUPTED, Stopped, stop_signals


def run(main, manual: str) -> None:
    """Run a recipe's main function; an error that the user can mend is one message.

    Leaves with exit code 2 after a :class:`~unified_se_ss.errors.UserError` or what the
    machine lacks, with 1 after a bug, whose traceback is then in ``crash.txt``. With
    ``--debug`` it is shown. After SIGTERM and SIGUSR1 what was trained is
    saved and the exit code is 75; after SIGINT (Ctrl-C) likewise, and it is 130.

    Arguments
    ---------
    main : callable
        Takes the :class:`~unified_se_ss.training.Options` of the command line.
    manual : str
        Shown by ``--help``; the docstring of train.py.
    """
    debug = False
    try:
        options = parse_options(sys.argv[1:], manual)
        debug = options.run_opts.debug
        # With --check all faults of the data shall be seen, not the first alone.
        faults = collect_errors() if options.check else nullcontext()
        with report_lost_rank(), stop_signals.installed(), faults:
            main(options)
            if torch.distributed.is_initialized():
                # Left to the end of the process, its threads can abort it.
                torch.distributed.barrier()
                torch.distributed.destroy_process_group()
    except Stopped as stopped:
        print(f"\n{stopped}", file=sys.stderr)
        sys.exit(stopped.code)
    except KeyboardInterrupt:
        message = "interrupted; the same command goes on from the last checkpoint"
        print(f"\n{message}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        sys.exit(report_error(error, debug))


def train_recipe(options: Options, brain_class, check, make_loaders, facts) -> None:
    """Do what the command line asks of a recipe: describe, check, train, test, report.

    Arguments
    ---------
    options : Options
        Of the command line.
    brain_class : type
        A :class:`~unified_se_ss.training.RecipeBrain`.
    check : callable
        Of hparams: raises a UserError for values that cannot be used; may fill in others.
    make_loaders : callable
        Of hparams: loaders of train, dev and test, as
        :func:`~unified_se_ss.training.make_loaders` makes them.
    facts : callable
        Of hparams: what ``--describe`` says beside the modules, a dict.
    """
    hparams = load_hparams(options)
    check(hparams)
    if options.describe:
        print(_describe(hparams["modules"], facts(hparams)))
        return
    begin(options, hparams)
    checkpointer = hparams["checkpointer"]
    if options.run_opts.test_only and not checkpointer.list_checkpoints():
        raise UserError(
            f"--test_only: there is no checkpoint in {checkpointer.checkpoints_dir}; "
            "train first, with the same command without --test_only"
        )
    loaders = make_loaders(hparams)
    brain = brain_class(
        modules=hparams["modules"],
        opt_class=hparams["optimizer"],
        hparams=hparams,
        run_opts=options.run_opts,
        checkpointer=checkpointer,
    )
    train_and_test(brain, loaders)


def train_and_test(brain, loaders: dict) -> None:
    """Check, train, evaluate the best checkpoint, and report; with ``--check`` check alone.

    Arguments
    ---------
    brain : RecipeBrain
        Its ``hparams`` hold the ``epoch_counter`` and say where results go.
    loaders : dict
        As :func:`~unified_se_ss.training.make_loaders` makes them: train, dev, test.
    """
    began, options = time.perf_counter(), brain.option("options", None)
    brain.loaders = loaders
    brain.train_sampler = loaders["train"].batch_sampler
    brain.checkpointer.add_recoverable("dataloader-TRAIN", loaders["train"])
    try:
        brain.before_training()
        load_batch_seconds(brain)
        if options and options.check:
            sys.exit(full_check(brain, loaders))
        sanity_check(brain, loaders)
        brain.fit(brain.hparams.epoch_counter, loaders["train"], loaders["dev"])
        brain.evaluate(loaders["test"], max_key=brain.best)
        if if_main_process():
            _report(brain, hours=(time.perf_counter() - began) / 3600)
            brain.after_report()
    finally:
        end_readers(loaders)


# ------------------------------------------------------------------ before


def _describe(modules: dict, facts: dict, depth: int = 2) -> str:
    """Modules with their parameter counts, and facts about them, as text.

    Example
    -------
    >>> print(_describe({"network": torch.nn.Linear(3, 2)}, {"latency": "none"}))
    module    type     parameters
    -----------------------------
    network   Linear            8
    total                       8
    <BLANKLINE>
    latency: none
    """
    rows = []
    for name, module in modules.items():
        for path, part in module.named_modules():
            level = path.count(".") + 1 if path else 0
            if level < depth:
                label = name + (f".{path}" if path else "")
                rows.append((label, type(part).__name__, f"{_n_parameters(part):,}"))
    total = sum(_n_parameters(module) for module in modules.values())
    rows.append(("total", "", f"{total:,}"))
    table = aligned_table(("module", "type", "parameters"), rows, words=(0, 1))
    return "\n".join([table, "", *(f"{k}: {v}" for k, v in facts.items())])


def _n_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ------------------------------------------------------------------ after


def _report(brain, hours: float) -> None:
    """Write results, wavs and report of the evaluated network; print where they are."""
    hparams = vars(brain.hparams)
    folder = Path(hparams["output_folder"])
    notes = [f"Measured on the test set with {_tested_weights(brain)}."]
    if brain.n_skipped:
        notes.append(
            f"{brain.n_skipped} of {brain.skipped.n_items} test items could not be used and "
            f"are not in these results; {brain.skipped.path.name} names them."
        )
    published = publish(
        folder,
        hparams["experiment_name"],
        brain.rows,
        brain.signals_of_id,
        hparams["sample_rate"],
        log_rows=TrainLog(folder).rows,
        configuration=_configuration(brain, hparams, hours),
        notes=notes,
        keep_waves=hparams["save_waves"],
        gradient_rows=GradientLog(folder).rows,
        **brain.report_options(),
    )
    picture = folder / "gradients.png"
    drawn = picture if picture.is_file() else "not drawn: no two gradients to compare"
    waves = f"{folder / 'wavs'}{'/' if published.waves else ' (save_waves is 0)'}"
    print(
        f"\n{published.summary.table()}\n", *(f"{note}\n" for note in notes[1:]), sep="\n"
    )
    print(
        f"results       {published.results}\n"
        f"curves        {folder / 'curves.png'}\n"
        f"gradients     {drawn}\n"
        f"separated     {waves}\n"
        f"report        {published.report}"
    )


def _tested_weights(brain) -> str:
    count = brain.option("average_checkpoints", 1)
    best = brain.checkpointer.find_checkpoints(
        max_key=brain.best, max_num_checkpoints=count
    )
    if count == 1 or len(best) < 2:
        return "the checkpoint best in validation"
    return f"the mean weights of the {len(best)} checkpoints best in validation"


def _configuration(brain, hparams: dict, hours: float) -> dict:
    """Every plain key of the YAML, and the circumstances of the run."""
    plain = {k: v for k, v in hparams.items() if isinstance(v, (str, int, float, list))}
    if "rule" in plain:
        plain["rule"] = describe_rule(hparams)
    return {
        **plain,
        "recipe": Path(sys.argv[0]).name,
        "parameters": f"{_n_parameters(brain.modules):,}",
        "commit": commit() or "unknown",
        "device": str(brain.device),
        "precision": brain.precision,
        "hours": round(hours, 2),
    }
