"""Opening sound files: what is wrong with one is said before a sample of it is read.

Whatever libsndfile reads. Beyond what it refuses by itself, a file is refused that is cut
off, that has no header (libsndfile takes any text of a name ending in .au for sound), or
whose header names a sampling rate that nobody records at.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager

import soundfile

from unified_se_ss.errors import UserError

LOWEST_RATE, HIGHEST_RATE = 1000, 1_000_000  # Hz
# libsndfile's account of a header: bytes of sound that it promises, and that there are.
CUT_OFF = re.compile(
    r"^ *(?:data|SSND|Data Size|riff) *: (\d+) \(should be (\d+)\)", re.MULTILINE
)
CUT_OFF_RF64 = "does not match value from 'ds64' chunk"
# Who writes into a pipe cannot know the length: ffmpeg and SoX write these or more.
UNKNOWN_LENGTH = 0x7FFF_0000
EXPECTED = "wav, flac, ogg or mp3 was expected"


@contextmanager
def opened(path, name=None, kind=soundfile.SoundFile):
    """Open a sound file for reading; whatever is wrong with it becomes a UserError.

    Arguments
    ---------
    path : str or Path
        The file.
    name : str, optional
        For messages; the path by default.
    kind : type
        soundfile.SoundFile (default), or a class derived from it.

    Returns
    -------
    contextmanager of soundfile.SoundFile

    Raises
    ------
    UserError
        Names the file: missing, a folder, no permission, not a sound file, cut off, or
        found corrupt while it is read within the block.

    Example
    -------
    >>> with opened("no/such.wav"):
    ...     pass
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: no/such.wav: does not exist; a sound file was expected
    """
    path = os.fspath(path)
    name = path if name is None else name
    _check_file(path, name)
    try:
        file = kind(path)
    except (soundfile.LibsndfileError, TypeError, ValueError) as error:
        raise UserError(_no_sound(name, error)) from error
    with file:
        _check_header(file, name)
        try:
            yield file
        except soundfile.LibsndfileError as error:
            raise UserError(_no_sound(name, error)) from error


def _check_file(path, name):
    """Stop at a path that is no file, or no file that can be read, or one of 0 bytes."""
    if not os.path.isfile(path):
        what = "does not exist"
        if os.path.isdir(path):
            what = "is a folder, not a file"
        elif os.path.islink(path):
            what = f"is a link to {os.readlink(path)}, which does not exist"
        elif os.path.exists(path):
            what = "is not a regular file"
        raise UserError(f"{name}: {what}; a sound file was expected")
    if not os.access(path, os.R_OK):
        raise UserError(f"{name}: cannot be read; give yourself read permission")
    if os.path.getsize(path) == 0:
        raise UserError(f"{name}: is empty (0 bytes); remove it or get it again")


def _check_header(file, name):
    """Stop at a header that cannot be true."""
    if file.format == "RAW":
        raise UserError(f"{name}: is corrupt or not a sound file (no header); {EXPECTED}")
    if not LOWEST_RATE <= file.samplerate <= HIGHEST_RATE:
        raise UserError(
            f"{name}: is corrupt; its header says {file.samplerate} Hz, and {LOWEST_RATE} "
            f"to {HIGHEST_RATE} Hz was expected; get the file again"
        )
    account = file.extra_info
    cut_off = CUT_OFF.search(account)
    if cut_off and int(cut_off[1]) < UNKNOWN_LENGTH or CUT_OFF_RF64 in account:
        promised = f" of the {int(cut_off[1]):,} bytes" if cut_off else ""
        raise UserError(
            f"{name}: is cut off; there are {file.frames:,} samples{promised} that its "
            "header promises; get the file again"
        )


def _no_sound(name, error):
    """What libsndfile says is wrong."""
    reason = getattr(error, "error_string", None) or str(error)
    return (
        f"{name}: is corrupt or not a sound file ({reason.strip().rstrip('.')}); "
        f"{EXPECTED}; get the file again"
    )
