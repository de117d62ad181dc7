"""Speech of the demo: espeak-ng, driven in-process through ctypes.

The library and its voices come inside the wheel `espeakng-loader`; nothing of it is
part of this project (its licence is GPL-3.0).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unified_se_ss.errors import UserError

SAMPLE_RATE = 22050
REINSTALL = "install it again: `pip install --force-reinstall espeakng-loader`"

# The English accents of espeak-ng, as this project names them, and its names for them.
ACCENTS = {
    "en-us": "en-us",
    "en-us-nyc": "en-us-nyc",
    "en-gb": "en",
    "en-gb-rp": "en-gb-x-rp",
    "en-gb-scotland": "en-gb-scotland",
    "en-gb-lancaster": "en-gb-x-gbclan",
    "en-gb-west-midlands": "en-gb-x-gbcwmd",
    "en-caribbean": "en-029",
}

# Numbers of espeak-ng's public header, speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_POSITION_CHARACTER = 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
# At espeak-ng's own volume (100) loud voices reach full scale.
_QUIET_VOLUME = 60
# espeak-ng's own random numbers (breath, flutter) start here at every utterance.
_RANDOM_SEED = 1

_WaveCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)
# The library is one set of global variables: one utterance at a time per process.
_lock = threading.Lock()


@dataclass(frozen=True)
class Voice:
    """One voice of espeak-ng.

    Arguments
    ---------
    accent : str
        A key of `ACCENTS`.
    variant : str
        Timbre: a file of espeak-ng's `voices/!v`, such as `f3`, `m1` or `Andrea`.
        Empty for the accent's own voice.
    pitch : int
        Base pitch, 0 to 99 (default 50), relative to the variant's own.
    pitch_range : int
        Liveliness of the intonation, 0 to 99 (default 50).
    rate : int
        Speed in words per minute, 80 to 450 (default 170).

    Example
    -------
    >>> Voice("en-us", "f3", pitch=60, rate=180).name
    'en-us+f3-pitch60-range50-rate180'
    """

    accent: str
    variant: str = ""
    pitch: int = 50
    pitch_range: int = 50
    rate: int = 170

    @property
    def name(self) -> str:
        """Everything that makes this voice, in one word without spaces."""
        timbre = f"+{self.variant}" if self.variant else ""
        manner = f"pitch{self.pitch}-range{self.pitch_range}-rate{self.rate}"
        return f"{self.accent}{timbre}-{manner}"


def speak(text: str, voice: Voice) -> tuple[np.ndarray, int]:
    """Speak a text.

    The same text and voice give the same samples, whatever was spoken before and in
    whichever process: espeak-ng keeps phases, filter states and random numbers from
    utterance to utterance in global variables, so the library is loaded afresh for each
    (0.2 ms) and its random numbers are seeded. Where a system never unloads a library
    (musl's dlclose), repetitions differ inaudibly.

    Returns
    -------
    speech : np.ndarray
        Samples [T], float32, in -1...1.
    sample_rate : int
        22050 Hz.

    Example
    -------
    >>> speech, sample_rate = speak("the old boat is here", Voice("en-gb", "f3"))
    >>> speech.dtype, sample_rate, 1 < len(speech) / sample_rate < 3
    (dtype('float32'), 22050, True)
    """
    chunks: list[bytes] = []

    def receive(samples, n_samples, _events) -> int:
        if samples and n_samples > 0:
            chunks.append(ctypes.string_at(samples, 2 * n_samples))
        return 0

    callback = _WaveCallback(receive)
    encoded = text.encode("utf-8") + b"\0"
    with _lock, _library() as library:
        library.espeak_SetSynthCallback(callback)
        library.espeak_ng_SetRandSeed(_RANDOM_SEED)
        # Its Klatt synthesizer, which the variant Reed has, draws from the C library.
        ctypes.CDLL(None if os.name == "posix" else "msvcrt").srand(_RANDOM_SEED)
        _choose_voice(library, voice)
        status = library.espeak_Synth(
            encoded, len(encoded), 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None
        )
        library.espeak_Synchronize()
    if status != 0:
        raise UserError(f"espeak-ng could not speak {text!r} with {voice.name}")
    speech = np.frombuffer(b"".join(chunks), dtype=np.int16)
    return speech.astype(np.float32) / 32768.0, SAMPLE_RATE


def version() -> str:
    """Version of the installed espeak-ng, for fingerprints."""
    with _lock, _library() as library:
        return library.espeak_Info(None).decode()


@functools.cache
def _paths() -> tuple[Path, Path]:
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError(
            "the demo speech needs espeak-ng: `pip install unified_se_ss[demo]`, or give "
            "--demo_speech FOLDER with recordings of your own (one folder per speaker)"
        ) from error
    return Path(espeakng_loader.get_library_path()), Path(espeakng_loader.get_data_path())


@contextlib.contextmanager
def _library() -> Iterator[ctypes.CDLL]:
    """A freshly loaded and initialised library, unloaded at the end."""
    library_path, data_path = _paths()
    try:
        library = ctypes.CDLL(str(library_path))
    except OSError as error:
        what = f"espeak-ng could not be loaded from {library_path} ({error})"
        raise UserError(f"{what}: {REINSTALL}, or give --demo_speech FOLDER") from error
    _declare(library)
    try:
        sample_rate = library.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS, 0, str(data_path).encode(), _INITIALIZE_DONT_EXIT
        )
        if sample_rate != SAMPLE_RATE:
            answer = f"it answered {sample_rate}, not {SAMPLE_RATE} Hz"
            what = f"espeak-ng did not start with the voices in {data_path} ({answer})"
            raise UserError(f"{what}: {REINSTALL}")
        yield library
        library.espeak_Terminate()
    finally:
        _unload(library)


def _declare(library: ctypes.CDLL) -> None:
    library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
    library.espeak_Info.argtypes = [ctypes.c_void_p]
    library.espeak_Info.restype = ctypes.c_char_p
    text, numbers, pointers = ctypes.c_char_p, [ctypes.c_uint] * 4, [ctypes.c_void_p] * 2
    library.espeak_Synth.argtypes = [text, ctypes.c_size_t, *numbers, *pointers]


def _unload(library: ctypes.CDLL) -> None:
    import _ctypes

    close = getattr(_ctypes, "dlclose", None) or _ctypes.FreeLibrary
    close(library._handle)


def _choose_voice(library: ctypes.CDLL, voice: Voice) -> None:
    """Set everything that makes a voice."""
    # espeak-ng falls back silently to the plain voice for a variant it does not know.
    if voice.variant and not (_paths()[1] / "voices" / "!v" / voice.variant).is_file():
        raise UserError(f"espeak-ng has no voice variant {voice.variant!r}: {REINSTALL}")
    name = ACCENTS[voice.accent] + f"+{voice.variant}" * bool(voice.variant)
    if library.espeak_SetVoiceByName(name.encode()) != 0:
        raise UserError(f"espeak-ng has no voice {name!r}")
    library.espeak_SetParameter(_RATE, voice.rate, 0)
    library.espeak_SetParameter(_VOLUME, _QUIET_VOLUME, 0)
    library.espeak_SetParameter(_PITCH, voice.pitch, 0)
    library.espeak_SetParameter(_RANGE, voice.pitch_range, 0)
