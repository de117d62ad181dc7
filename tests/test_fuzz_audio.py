"""Sound files cut off, with wrong headers or no sound: handled or refused by name."""

from __future__ import annotations

import io
import os
import struct

import numpy as np
import pytest
import soundfile
from fuzzing import Tally, noise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unified_se_ss.data import audio
from unified_se_ss.data.corpora.mixtures import _check_recording
from unified_se_ss.data.corpora.speech_folder import _measure
from unified_se_ss.errors import UserError
from unified_se_ss.inference.sound_files import Recording

RATE = 8000


def encoded(signal, kind, subtype, rate=RATE) -> bytes:
    """A sound file."""
    file = io.BytesIO()
    soundfile.write(file, signal, rate, subtype, format=kind)
    return file.getvalue()


def read_in_blocks(path):
    """The samples as ``separate`` and ``enhance`` read them."""
    recording = Recording.of_file(path, lambda channels, name: 0)
    return np.concatenate([*recording.read(), [0]])[:-1]


def measured(path):
    """Length, rate and loudness as the preparation of dynamic mixing finds them."""
    found = _measure(path.parent, RATE, True, None, path.name)
    if isinstance(found, str):  # it gathers what is wrong
        raise UserError(found)
    return found


#: Everything of the project that opens a sound file.
READERS = {
    "info": audio.info,
    "read": lambda path: audio.read(path)[0],
    "in blocks": read_in_blocks,
    "librimix": lambda path: _check_recording(str(path), RATE, 1),
    "measure": measured,
}


def read_everywhere(tally, path, kind):
    """What each reader makes of a file; None where it refuses it."""
    return {
        name: tally.tried(f"{kind}: {name}", path, reader, path)
        for name, reader in READERS.items()
    }


FORMATS = "WAV:PCM_16 WAV:FLOAT AIFF:PCM_16 AU:PCM_16 W64:PCM_16 RF64:PCM_16".split()


@pytest.mark.parametrize("encoding", FORMATS)
def test_a_file_cut_off_anywhere_never_passes_for_a_shorter_one(tmp_path, encoding):
    """Every length from 0 to all but one byte; libsndfile itself takes most of them."""
    kind, subtype = encoding.split(":")
    whole = encoded(noise(60), kind, subtype)
    path, tally = tmp_path / f"a.{kind.lower()}", Tally()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        for found in read_everywhere(tally, path, "cut off").values():
            assert found is None or np.size(found) == 0
    path.write_bytes(whole)
    assert all(found is not None for found in read_everywhere(tally, path, "").values())


@pytest.mark.parametrize("stride", [29, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_a_flac_cut_off_anywhere_is_refused_when_it_is_read(tmp_path, subtype, stride):
    """All of the header, then every so many bytes; the header alone still says a length."""
    whole = encoded(noise(), "FLAC", subtype)
    path = tmp_path / "a.flac"
    for length in [*range(100), *range(100, len(whole), stride)]:
        path.write_bytes(whole[:length])
        found = read_everywhere(Tally(), path, "cut off")
        assert {found.pop("info")} <= {None, (400, RATE, 1)}
        assert set(found.values()) == {None}


@pytest.mark.parametrize("stride", [97, pytest.param(5, marks=pytest.mark.slow)])
def test_an_ogg_cut_off_gives_what_could_be_decoded_or_is_refused(tmp_path, stride):
    """An ogg file has no length in its header: it ends where its last whole page does."""
    whole = encoded(noise(4000), "OGG", "VORBIS")
    path, tally = tmp_path / "a.ogg", Tally()
    path.write_bytes(whole)
    expected = read_in_blocks(path)
    for length in [*range(60), *range(60, len(whole), stride)]:
        path.write_bytes(whole[:length])
        found = read_everywhere(tally, path, "cut off")["in blocks"]
        if found is not None:
            np.testing.assert_array_equal(found, expected[: len(found)])
    assert len(expected) == 4000


HEADERS = [
    ("WAV", "PCM_U8", 44),
    ("WAV", "PCM_16", 44),
    ("WAV", "FLOAT", 80),
    ("WAV", "ULAW", 58),
    ("FLAC", "PCM_16", 86),
]


@pytest.mark.parametrize("kind, subtype, header", HEADERS)
def test_one_wrong_bit_in_a_header_is_handled_or_refused(tmp_path, kind, subtype, header):
    whole = encoded(noise(60), kind, subtype)
    path, tally = tmp_path / f"a.{kind.lower()}", Tally()
    for bit in range(8 * header):
        wrong = bytearray(whole)
        wrong[bit // 8] ^= 1 << bit % 8
        path.write_bytes(wrong)
        read_everywhere(tally, path, "wrong bit")
    assert tally["wrong bit: read", "refused"] > header  # most bits matter


@settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data(), within=st.booleans())
def test_any_bytes_are_handled_or_refused(tmp_path, data, within):
    """After any beginning, or within a file's header."""
    if within:
        kind, subtype, header = data.draw(st.sampled_from(HEADERS))
        content = bytearray(encoded(noise(60), kind, subtype))
        place = data.draw(st.integers(0, header))
        new = data.draw(st.binary(min_size=1, max_size=8))
        content[place : place + len(new)] = new
    else:
        begin = b"", b"RIFF", b"fLaC", b"OggS", b"FORM", b"RF64"
        kind = data.draw(st.sampled_from("wav flac ogg au aiff vox gsm".split()))
        content = data.draw(st.sampled_from(begin)) + data.draw(st.binary(max_size=200))
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(content)
    read_everywhere(Tally(), path, "bytes")


# ------------------------------------------------------------------ what files may be


SUBTYPES = ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"]


@pytest.mark.parametrize("subtype", SUBTYPES)
def test_every_depth_is_read(tmp_path, subtype):
    path, signal = tmp_path / "a.wav", noise()
    soundfile.write(path, signal, RATE, subtype)
    found = read_everywhere(Tally(), path, "depth")
    step = {"PCM_U8": 1 / 128, "ULAW": 0.02, "ALAW": 0.02}.get(subtype, 1 / 32768)
    for name in ("read", "in blocks"):
        np.testing.assert_allclose(found[name], signal, atol=step)
    assert found["info"] == (400, RATE, 1) and found["librimix"] == (400, False)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_a_sample_that_is_not_finite_is_refused_by_whoever_uses_it(tmp_path, subtype):
    path = tmp_path / "a.wav"
    for value in (np.nan, np.inf, -np.inf):
        signal = np.where(np.arange(400) == 300, value, noise())
        soundfile.write(path, signal, RATE, subtype)
        for name in ("in blocks", "librimix", "measure"):
            with pytest.raises(UserError, match="finite") as error:
                READERS[name](path)
            assert str(path) in str(error.value)


def wav_header(channels=1, rate=RATE, bits=16, promised=800, there=800) -> bytes:
    """A wav file as its header might be written by hand."""
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * block, block, bits)
    begin = b"RIFF" + struct.pack("<I", 36 + promised) + b"WAVEfmt " + struct.pack("<I", 16)
    sound = bytes(range(1, 201)) * (there // 200)
    return begin + form + b"data" + struct.pack("<I", promised) + sound


def header(**choices):
    return lambda path: path.write_bytes(wav_header(**choices))


FAULTS = {
    "missing": (lambda path: None, "does not exist"),
    "a folder": (lambda path: path.mkdir(), "is a folder, not a file"),
    "0 bytes": (lambda path: path.touch(), "is empty (0 bytes)"),
    "no samples": (lambda path: soundfile.write(path, [], RATE), "is empty (0 samples)"),
    "a broken link": (lambda path: path.symlink_to("gone.wav"), "gone.wav, which does not"),
    "a pipe": (os.mkfifo, "is not a regular file"),
    "text": (lambda path: path.write_text("hello\n" * 50), "not a sound file"),
    "0 channels": (header(channels=0), "not a sound file"),
    "0 Hz": (header(rate=0), "not a sound file"),
    "1 Hz": (header(rate=1), "header says 1 Hz"),
    "4 GHz": (header(rate=2**31 - 1), "2147483647 Hz"),
    "0 bits": (header(bits=0), "not a sound file"),
    "half": (header(there=400), "is cut off"),
    "no sound": (lambda path: path.write_bytes(b"\0" * 5000), "not a sound file"),
    "html": (lambda path: path.write_text("<!DOCTYPE html><title>404"), "not a sound file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_sound_is_refused_in_words(tmp_path, fault):
    break_it, words = FAULTS[fault]
    path = tmp_path / "a b ü.wav"
    break_it(path)
    for name, reader in READERS.items():
        with pytest.raises(UserError) as error:
            reader(path)
        assert str(path) in str(error.value) and words in str(error.value), name


def test_text_of_any_name_is_no_sound(tmp_path):
    """libsndfile takes any bytes of a name ending in .au or .vox for sound."""
    for suffix in "au snd vox gsm raw wav flac txt".split():
        path = tmp_path / f"a.{suffix}"
        path.write_text("this is no sound\n" * 50)
        assert set(read_everywhere(Tally(), path, "text").values()) == {None}


@pytest.mark.parametrize("promised", [0xFFFFFFFF, 0x7FFFF000, 0x7FFFFFFF])
def test_a_wav_that_was_written_into_a_pipe_is_read_to_its_end(tmp_path, promised):
    """ffmpeg and SoX cannot know the length, and write the largest."""
    path = tmp_path / "a.wav"
    known, largest = struct.pack("<I", 800), struct.pack("<I", promised)
    path.write_bytes(wav_header().replace(known, largest))
    assert audio.info(path).frames == len(read_in_blocks(path)) == 400


def test_a_file_without_permission_is_refused(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(noise(), "WAV", "PCM_16"))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root may read anything")
    for reader in READERS.values():
        with pytest.raises(UserError, match="a.wav: cannot be read; give yourself"):
            reader(path)


def test_a_length_that_no_memory_holds_is_refused(tmp_path, monkeypatch):
    """A flac's header can promise 2 ** 36 samples."""
    path = tmp_path / "a.flac"
    wrong = bytearray(encoded(noise(), "FLAC", "PCM_16"))
    wrong[21] |= 0x0F  # the highest bits of the number of samples
    path.write_bytes(wrong)
    assert audio.info(path).frames > 2**35
    with pytest.raises(UserError, match="a.flac: is corrupt"):
        audio.read(path)

    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(soundfile.SoundFile, "read", full)
    with pytest.raises(UserError, match="more than the memory holds"):
        audio.read(path)
