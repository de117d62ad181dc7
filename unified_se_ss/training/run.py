"""The frame around a recipe's main function."""

from __future__ import annotations

import sys

import torch
from speechbrain.utils.distributed import if_main_process

from unified_se_ss import crash
from unified_se_ss.training.batch_size import load_batch_seconds
from unified_se_ss.training.distributed import report_lost_rank
from unified_se_ss.training.loaders import end_readers
from unified_se_ss.training.preflight import preflight
from unified_se_ss.training.replay import replay
from unified_se_ss.training.results import Stopwatch, report
from unified_se_ss.training.sanity_check import first_look
from unified_se_ss.training.scratch_dir import gathering_for_check
from unified_se_ss.training.signals import INTERRUPTED, Stopped, stop_signals


def run(main) -> None:
    """Run a recipe's main function; an error that the user can mend is one message.

    Leaves with exit code 2 after a :class:`~unified_se_ss.errors.UserError` or what the
    machine lacks, with 1 after a bug, whose traceback is then in ``crash.txt``. With
    ``--debug`` it is shown. After SIGTERM and SIGUSR1 what was trained is
    saved and the exit code is 75; after SIGINT (Ctrl-C) likewise, and it is 130.

    Arguments
    ---------
    main : callable
        Takes no argument.
    """
    try:
        with report_lost_rank(), stop_signals.heard(), gathering_for_check():
            main()
            if torch.distributed.is_initialized():
                # Left to the end of the process, its threads can abort it.
                torch.distributed.barrier()
                torch.distributed.destroy_process_group()
    except Stopped as stopped:
        print(f"\n{stopped}", file=sys.stderr)
        sys.exit(stopped.code)
    except KeyboardInterrupt:
        print(
            "\ninterrupted; the same command goes on from the last checkpoint",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)
    except Exception as error:
        sys.exit(crash.tell(error, debug="--debug" in sys.argv))


def train_and_test(brain, loaders: dict, signals_of_id, **sections) -> None:
    """Train, evaluate the best checkpoint, and report; the end of every main function.

    First a sample of all that this needs is looked at, in seconds. With ``--check`` or
    ``--replay`` that, or one batch, is all that is done.

    Arguments
    ---------
    brain : RecipeBrain
        Its ``hparams`` hold the ``epoch_counter`` and say where results go.
    loaders : dict
        As :func:`~unified_se_ss.training.make_loaders` makes them: train, dev, test.
    signals_of_id : callable
        Returns the signals of a test utterance by its ID; see
        :func:`~unified_se_ss.training.report`.
    sections : dict
        More for the report; passed on to ``evaluation.publish``.
    """
    watch = Stopwatch()
    options = brain.option("options", None)
    brain.loaders = loaders
    brain.train_sampler = loaders["train"].batch_sampler
    brain.checkpointer.add_recoverable("dataloader-TRAIN", loaders["train"])
    try:
        load_batch_seconds(brain)
        if options and options.check:
            sys.exit(preflight(brain, loaders, signals_of_id))
        if options and options.replay:
            sys.exit(replay(brain, loaders, options.replay))
        first_look(brain, loaders)
        brain.fit(brain.hparams.epoch_counter, loaders["train"], loaders["dev"])
        brain.evaluate(loaders["test"], max_key=brain.best)
        if if_main_process():
            report(brain, brain.rows, signals_of_id, watch.hours, **sections)
    finally:
        end_readers(loaders)
