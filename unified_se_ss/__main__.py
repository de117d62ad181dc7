"""``python -m unified_se_ss``: what is wanted before a training run, and after it."""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from unified_se_ss import __version__
from unified_se_ss.errors import UserError, report_error


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Arguments
    ---------
    arguments : list of str, optional
        By default those of the command line.

    Returns
    -------
    int
        0; 1 if some of the files could not be done, or after a bug, whose traceback is
        then in ``crash.txt``; 2 after an error that the user can mend; 130 after Ctrl-C.

    Example
    -------
    >>> main(["check", "/no/such/folder"])
    2
    """
    options = parser().parse_args(arguments)
    import unified_se_ss.installation  # noqa: F401  (ends here if torchaudio does not fit)

    with suppress(AttributeError):  # a name that is no text can be printed too
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return options.command(options) or 0
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except Exception as error:
        return report_error(error, options.debug)


EPILOG = """\
  unified_se_ss check data/Libri2Mix                    before a training run
  python train.py hparams/demo.yaml                     the run; RUN is results/demo/1234
  unified_se_ss separate RUN talk.mp3 -o separated/     each speaker of a recording
  unified_se_ss evaluate RUN RUN/manifests/*test*.csv   its metrics on a manifest
  unified_se_ss export   RUN -o my-model/               a folder to share; use it like RUN
  unified_se_ss recognise RUN talk.mp3 -o words/        the words, of recipes/GradientRemedy

COMMAND --help says more. docs/inference.md, docs/evaluation.md.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        "unified_se_ss",
        description="Check data, make the demo corpus, use trained models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    add_check(commands)
    add_demo_corpus(commands)
    add_binaural_corpus(commands)
    add_separation(commands, "separate")
    add_separation(commands, "enhance")
    add_separation(commands, "recognise", aliases=["recognize"])
    add_evaluation(commands)
    add_export(commands)
    return top


def add_command(commands, name: str, summary: str, description: str, function, **how):
    """One command; its help begins with the summary and goes on with the description."""
    command = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n\n{description}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **how,
    )
    add_options(command, debug=(False, "show the traceback of an error"))
    command.set_defaults(command=function, debug=False)
    return command


def add_options(command, **options) -> None:
    """Options by name, each with its default, or its type if there is none, and what it is."""
    for name, (default, words) in options.items():
        if default is False:
            how = {"action": "store_true"}
        elif isinstance(default, type):
            how = {"type": default}
        else:
            how = {"type": type(default), "default": default}
            words = f"{words}; default %(default)s".removeprefix("; ")
        command.add_argument(f"--{name}", help=words, **how)


def add_model(command) -> None:
    command.add_argument("model", help="a run's folder (results/demo/1234), or an export")


DEVICE = {
    "device": (str, "cpu, cuda …; by default a GPU if there is one"),
    "precision": (str, "fp32 (default), bf16 or fp16 (GPU only)"),
}
SIZES = {
    "n_speakers": (2, ""),
    "sample_rate": (8000, "Hz"),
    "mode": ("min", "min or max"),
}


def add_check(commands) -> None:
    """``check``."""
    command = add_command(
        commands,
        "check",
        "look at every recording of a LibriMix folder before training on it",
        "Files that are missing, unreadable, silent, mismatched, clipped, too short, or in\n"
        "two subsets are named at once, not after an hour of training; the exit code is\n"
        "then 1. Writes the manifests that a training run would write, if it could.",
        check_data,
    )
    command.add_argument("data_folder", help="the folder Libri2Mix or Libri3Mix")
    add_options(
        command,
        **SIZES,
        train_subset=("train-360", ""),
        mixture=("mix_both", ""),
        manifests=("manifests", "folder for them"),
    )


def add_demo_corpus(commands) -> None:
    """``demo-corpus``."""
    command = add_command(
        commands,
        "demo-corpus",
        "make the demo corpus, of synthetic voices or your recordings",
        "A LibriMix folder of noisy mixtures. train.py hparams/demo.yaml makes it by itself.",
        make_demo_corpus,
    )
    command.add_argument("folder", help="where it goes")
    add_options(
        command,
        n_speakers=(2, ""),
        n_train=(2000, ""),
        demo_speech=(str, "your recordings, in folders by speaker"),
        demo_noise=(str, "your noise recordings"),
    )


def add_binaural_corpus(commands) -> None:
    """``binaural-corpus``."""
    command = add_command(
        commands,
        "binaural-corpus",
        "make binaural mixtures of mono ones",
        "Of a LibriMix, WSJ0-2mix or WHAM! folder, in the shape of Binaural-WSJ0Mix: talkers\n"
        "around one head each, no head in two of train, dev and test, floating point.",
        make_binaural_corpus,
    )
    command.add_argument("folder", help="where it goes")
    command.add_argument("--mono_folder", required=True, help="the mono mixtures")
    heads = "SOFA files, CIPIC's wav_database or folders of azimuth wavs; default spheres"
    add_options(
        command,
        **SIZES,
        heads=(str, heads),
        rooms=(False, "put the heads into simulated rooms"),
        noise=(False, "surround them with each mixture's noise"),
        least_angle=(0.0, "degrees between two talkers"),
        seed=(1234, ""),
    )


SEPARATION = {
    "separate": "write each speaker of recordings to a file",
    "enhance": "write recordings without their noise",
    "recognise": "write what is said in recordings, and these without their noise",
}


def add_separation(commands, task: str, **how) -> None:
    """``separate``, ``enhance`` and ``recognise``."""
    command = add_command(
        commands,
        task,
        SEPARATION[task],
        f"  unified_se_ss {task} results/demo/1234 talk.mp3 interviews/ -o {task}d/\n\n"
        "Any format that libsndfile reads, any sampling rate, any length; what is written is\n"
        "as long as the input and at its rate and level. Nothing is overwritten without\n"
        "--force, and nothing is ever written beside an input. A bad file is named and the\n"
        "rest is done: the exit code is then 1.",
        separate_files,
        # What is not given is left to the class that works with the model.
        argument_default=argparse.SUPPRESS,
        **how,
    )
    command.set_defaults(task=task)
    add_model(command)
    words = "sound files, folders, patterns, or - for standard input"
    command.add_argument("inputs", nargs="+", metavar="IN", help=words)
    command.add_argument("-o", "--output", required=True, help="folder for the results")
    add_options(command, **DEVICE, **OPTIONS_OF_TASKS[task], **OPTIONS_OF_ALL_TASKS)
    command.add_argument(
        "--subtype",
        default="float",
        choices=("float", "pcm16"),
        help="32 bit float, which never changes a level, or 16 bit, where all of a file's "
        "outputs are turned down alike if one would clip; default %(default)s",
    )


# By task, what its command has more than the others. Except those of all tasks and
# text_only, arguments of the classes of inference/pipeline.py.
OPTIONS_OF_TASKS: dict[str, dict] = {
    "separate": {
        "mixture_consistency": (
            False,
            "share out what the sources lack to the mixture, noise included",
        ),
    },
    "enhance": {
        "guide": (
            str,
            "for GSENet: files hold all microphones, the reference first, and "
            "multichannel_wiener, souden_mvdr or rtf_mvdr makes the guide; by default "
            "they hold two channels, the microphone and a beamformer's output",
        ),
        "context_seconds": (
            float,
            "files begin with noise alone for so long, which the guide learns; default 0.5",
        ),
    },
    "recognise": {
        "segment_seconds": (
            float,
            "longer recordings are recognised in pieces, cut where it is quiet; default 20",
        ),
        "beam_size": (
            int,
            "hypotheses that the search follows; default that of the model's test",
        ),
        "keep_level": (
            False,
            "give the model recordings at their own level, as in its test, not at the one "
            "it was trained at",
        ),
        "text_only": (False, "leave out the enhanced recordings"),
    },
}
OPTIONS_OF_ALL_TASKS: dict[str, tuple] = {
    "chunk_seconds": (
        float,
        "long files are done in chunks, which bound the memory; default 20",
    ),
    "overlap_seconds": (float, "of chunks; default 4"),
    "channel": (int, "the channel to take of files with several, from 0"),
    "downmix": (False, "take the mean of the channels"),
    "force": (False, "replace what exists"),
    "json": (False, "write one JSON object, for machines"),
}


def add_evaluation(commands) -> None:
    """``evaluate``."""
    command = add_command(
        commands,
        "evaluate",
        "score a model on the mixtures of a manifest",
        "  unified_se_ss evaluate RUN RUN/manifests/*test*.csv --data_folder data/Libri2Mix\n\n"
        "Writes one row per utterance, a summary with confidence intervals, and a report.",
        evaluate_model,
    )
    add_model(command)
    command.add_argument("manifest", help="CSV, such as those in RUN/manifests/")
    command.add_argument("-o", "--output", help="default evaluation/NAME_OF_THE_MANIFEST")
    metrics = "of si_snr, sdr (always there), pesq, stoi, estoi, wer, joined by commas"
    add_options(
        command,
        **DEVICE,
        data_folder=(str, "what {data_root} in the manifest means"),
        metrics=("si_snr,sdr", metrics),
        jobs=(int, "processes that score; default all cores"),
        recogniser=(str, "a SpeechBrain recogniser, for the WER"),
        transcripts=(str, "a CSV file with ID, transcript_1, ...; for the WER"),
        save_waves=(0, "keep wavs of the first so many"),
        force=(False, "replace an earlier evaluation"),
    )


def add_export(commands) -> None:
    """``export``."""
    command = add_command(
        commands,
        "export",
        "write a trained model into a folder that others can use",
        "  native        weights, plain configuration, model card; loading it runs no code\n"
        "  speechbrain   what SpeechBrain's SepformerSeparation.from_hparams loads\n"
        "  onnx          a graph that was checked against the network",
        export_model,
    )
    add_model(command)
    command.add_argument("-o", "--output", required=True, help="where it goes")
    add_options(
        command,
        format=("native", "native, speechbrain or onnx"),
        force=(False, "replace what an earlier export left there"),
    )


def check_data(options) -> int:
    """Look at a LibriMix folder; write its manifests and say what is in them."""
    from unified_se_ss.data.audit import ADVICE, KINDS, audit
    from unified_se_ss.data.corpora import collect_errors
    from unified_se_ss.data.corpora.mixtures import prepare_librimix
    from unified_se_ss.data.manifest import read_manifest

    source, bad = options.data_folder, []
    how = {key: getattr(options, key) for key in (*SIZES, "train_subset", "mixture")}
    with tempfile.TemporaryDirectory() as folder:
        try:
            paths = prepare_librimix(source, Path(options.manifests), **how)
        except UserError:
            # Once more without what is wrong, so that all of it is seen at once.
            with collect_errors() as bad:
                paths = prepare_librimix(source, Path(folder), **how)
        manifests = {subset: read_manifest(p, source) for subset, p in paths.items()}
    for subset, manifest in manifests.items() if not bad else ():
        seconds = [item.duration for item in manifest.items]
        print(
            f"{subset:<6} {len(seconds):>7,} mixtures, {sum(seconds) / 3600:8.2f} hours, "
            f"{min(seconds):.1f} to {max(seconds):.1f} s, {manifest.path}"
        )
    found = audit([(subset, m.items) for subset, m in manifests.items()], bad)
    for kind in KINDS:
        if findings := found.of_kind(kind):
            print("\n".join(found.listed(kind)))
            print(f"-> {findings[0].severity}: {found.summary(kind)}; {ADVICE[kind]}")
    if not found.findings:
        print(f"faults none ({', '.join(KINDS)})")
    return 1 if found.failed else 0


def make_demo_corpus(options) -> None:
    """Build the demo corpus and say where it is."""
    from unified_se_ss.data.demo.corpus import prepare_demo_corpus

    folder = prepare_demo_corpus(
        options.folder,
        n_speakers=options.n_speakers,
        n_train=options.n_train,
        speech_folder=options.demo_speech,
        noise_folder=options.demo_noise,
    )
    print(f"train on it with: python train.py HPARAMS.yaml --data_folder {folder}")


def make_binaural_corpus(options) -> None:
    """Make a binaural corpus and say where it is."""
    from unified_se_ss.data import write
    from unified_se_ss.data.hrtf_bank import binaural_heads
    from unified_se_ss.data.rooms import binaural_rooms

    listeners = binaural_rooms if options.rooms else binaural_heads
    with tempfile.TemporaryDirectory() as manifests:
        sizes = [getattr(options, key) for key in SIZES]
        mono = write.mono_manifests(options.mono_folder, manifests, *sizes, options.noise)
    folder = write.make_binaural_corpus(
        options.folder,
        mono,
        listeners(options.heads, options.sample_rate),
        noise=options.noise,
        mode=options.mode,
        seed=options.seed,
        least_angle=options.least_angle,
    )
    print(f"train on it with: python train.py HPARAMS.yaml --data_folder {folder}")


def separate_files(options) -> int:
    """Separate or enhance files, or recognise what is said in them."""
    from unified_se_ss.inference import batch

    given = {k: v for k, v in vars(options).items() if k not in ("command", "debug")}
    if given.pop("keep_level", False):
        given["match_level"] = False
    return batch.run(as_json=given.pop("json", False), **given)


def export_model(options) -> None:
    """Export a model and say where it is."""
    from unified_se_ss.inference.export import CARD, export

    folder = export(options.model, options.output, options.format, options.force)
    for path in sorted(folder.iterdir()):
        print(f"{path}  ({path.stat().st_size:,} bytes)")
    print(
        f"\n{folder / CARD} says what the model is; look it over before you hand it on, "
        "it quotes the command that trained it"
    )


def evaluate_model(options) -> None:
    """Score a model."""
    from unified_se_ss import evaluate_model

    evaluate_model.run(options)


if __name__ == "__main__":
    sys.exit(main())
