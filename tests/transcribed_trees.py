"""Small trees in the shapes of the corpora that Gradient Remedy's recipe prepares."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import soundfile

RECIPE = Path(__file__).parent.parent / "recipes" / "GradientRemedy"
TEXTS = ("the old man", "a dog sings", "my cat is small", "the river is cold")


def load(name):
    """A module of the recipe, which is no package."""
    spec = importlib.util.spec_from_file_location(name, RECIPE / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sound(seed, seconds, rate):
    """Noise that comes and goes, within ±1; the same for the same seed."""
    times = np.arange(round(seconds * rate)) / rate
    loud = 0.05 * (1.1 + np.sin(2 * np.pi * 3 * times))
    return loud * np.random.default_rng(seed).standard_normal(len(times)).clip(-3, 3)


def write(path, signal, rate):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, signal, rate)


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def make_voicebank(folder, rate=16000, seconds=1.2):
    """Two speakers of training, one of validation, one of the test."""
    ending = "_16k" if rate == 16000 else ""
    sets = {"trainset_28spk": ("p226", "p227", "p228"), "testset": ("p232",)}
    for stem, speakers in sets.items():
        for number, name in enumerate(f"{s}_00{n}" for s in speakers for n in (1, 2)):
            clean = sound(number, seconds, rate)
            write(folder / f"clean_{stem}_wav{ending}" / f"{name}.wav", clean, rate)
            noisy = clean + sound(100 + number, seconds, rate)
            write(folder / f"noisy_{stem}_wav{ending}" / f"{name}.wav", noisy, rate)
            text = TEXTS[number % 4].capitalize() + ".\n"
            write_text(folder / f"{stem}_txt" / f"{name}.txt", text)
    return folder


def make_librispeech(folder, rate=16000, seconds=1.2):
    """Two readers of training, one of validation, one of the test; noise beside them."""
    corpus, noise = folder / "LibriSpeech", folder / "noise"
    readers = {"train-clean-100": (19, 26), "dev-clean": (84,), "test-clean": (61,)}
    for subset, of in readers.items():
        for reader in of:
            place, lines = corpus / subset / str(reader) / "7", []
            for number in range(2):
                name = f"{reader}-7-000{number}"
                write(place / f"{name}.flac", sound(reader + number, seconds, rate), rate)
                lines.append(f"{name} {TEXTS[(reader + number) % 4].upper()}\n")
            write_text(place / f"{reader}-7.trans.txt", "".join(lines))
    for number in range(4):
        write(noise / "street" / f"{number}.wav", sound(500 + number, 0.7, rate), rate)
    return corpus, noise


# ------------------------------------------------------------------ RATS

RATS_RATE, LAG = 16000, 0.25


def make_rats(folder):
    """Two calls of training, one of validation, one of the test, with Fisher's words.

    The link halves the source and delays it by a quarter of a second.
    """
    corpus, fisher = folder / "RATS_SAD", folder / "fisher"
    calls = {"train": (1, 2), "dev-1": (3,), "dev-2": (4,)}
    table = ["SRC_ID\tCORPUS\tLNG\tSRC_FILE\tMINUTES\tPART"]
    for part, numbers in calls.items():
        for number in numbers:
            side = "AB"[number % 2]
            table.append(
                f"{number:05d}\tfisher\teng\tfe_03_0416{number}_{side}.sph\t0.1\t{part}"
            )
            make_call(corpus, part, number)
            make_words(fisher, number, side)
    table.append("00009\trats\talv\tx.sph\t0.1\ttrain")
    write_text(corpus / "docs" / "source_file_info.tab", "\n".join(table) + "\n")
    return corpus, fisher


def make_call(corpus, part, number):
    """One source and what channel A made of it, with their speech segments."""
    source = sound(number, 6, RATS_RATE)
    lag = round(LAG * RATS_RATE)
    language = ("eng",) if part == "train" else ()
    names = {"src": f"{number:05d}_eng_src", "A": f"{number:05d}_07777_eng_A"}
    signals = {"src": source, "A": np.pad(source / 2, (lag, 0))}
    segments = {"src": [("S", 0.4, 5.8)], "A": [("S", 0.4, 4.6), ("RX", 4.6, 5.8)]}
    for channel, name in names.items():
        write(
            corpus.joinpath("data", part, "audio", *language, channel, f"{name}.flac"),
            signals[channel],
            RATS_RATE,
        )
        shift = LAG if channel == "A" else 0.0
        lines = [
            f"{part}\t{name}\t{start + shift:.2f}\t{end + shift:.2f}\t{label}"
            "\tmanual\t\t\teng\toriginal\t\t"
            for label, start, end in segments[channel]
        ]
        place = corpus.joinpath("data", part, "sad", *language, channel, f"{name}.tab")
        write_text(place, "\n".join(lines) + "\n")


def make_words(fisher, number, side):
    """Fisher's transcript of a call: two utterances of use, and four that are of none."""
    other = "BA"["AB".index(side)]
    lines = [
        f"# fe_03_0416{number}.sph",
        "# Transcribed at the LDC",
        "",
        f"0.50 1.90 {side}: [laughter] {TEXTS[number % 4]}",
        f"1.00 2.00 {other}: what the other side says",
        f"2.00 3.00 {side}: i ((think so))",
        f"3.00 4.40 {side}: {TEXTS[(number + 1) % 4]}",
        f"4.50 5.50 {side}: when the link was shut",
        f"5.50 5.60 {side}: [noise]",
    ]
    name = f"fe_03_0416{number}"
    write_text(fisher / "fe_03_p1_tran" / "data" / "041" / f"{name}.txt", "\n".join(lines))


# ------------------------------------------------------------------ CHiME-4

CHIME_RATE, LEVEL, DELAY = 16000, 0.3, 7


def make_chime4(folder):
    """In each environment and subset one real and one simulated utterance."""
    audio = folder / "data" / "audio" / "16kHz"
    texts = folder / "data" / "transcriptions"
    seed = 0
    for subset in ("tr05", "dt05", "et05"):
        track = "isolated" if subset == "tr05" else "isolated_1ch_track"
        ending = ".CH5.wav" if subset == "tr05" else ".wav"
        lines = {"real": [], "simu": []}
        for environment in ("bus", "caf", "ped", "str"):
            for kind in ("real", "simu"):
                seed += 1
                name = f"F01_{seed:03d}C0101"
                original, noise = (sound(s, 1.2, CHIME_RATE) for s in (seed, 1000 + seed))
                if kind == "simu":
                    where = f"{subset}_bth/{name}_BTH.CH0.wav"
                    if subset == "tr05":
                        where = f"tr05_org/{name}_ORG.wav"
                    write(audio / "isolated" / where, original, CHIME_RATE)
                noisy = speech_in_noise(original) + 0.2 * noise
                place = audio / track / f"{subset}_{environment}_{kind}"
                key = f"{name}_{environment.upper()}"
                write(place / f"{key}{ending}", noisy, CHIME_RATE)
                lines[kind].append((key, TEXTS[seed % 4].capitalize()))
        for kind, of in lines.items():
            if (subset, kind) == ("tr05", "simu"):
                dots = "".join(
                    f"{t} [loud_breath] ({k.split('_')[1].lower()})\n" for k, t in of
                )
                write_text(folder / "data" / "WSJ0" / "wsj0" / "si_tr_s" / "F01.dot", dots)
            else:
                dots = "".join(f"{text} ({key})\n" for key, text in of)
                write_text(texts / f"{subset}_{kind}.dot_all", dots)
    return folder


def speech_in_noise(original):
    """What the simulation makes of an original before noise is added to it."""
    return LEVEL * np.pad(original, (DELAY, 0))[: len(original)]
