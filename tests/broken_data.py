"""A tiny LibriMix tree broken in several ways at once."""

import shutil

import numpy as np
import soundfile
from librimix import make_tree

from unified_se_ss.data import audio


def break_tree(tree):
    """Damage some files; returns what an audit must find: (kind, subset, ID)."""
    place = tree / "wav8k" / "min"
    train, dev, test = place / "train-360", place / "dev", place / "test"

    (train / "s2" / "train-360-0.wav").unlink()
    whole = (train / "s1" / "train-360-1.wav").read_bytes()
    (train / "s1" / "train-360-1.wav").write_bytes(whole[: len(whole) // 2])
    signal, rate = soundfile.read(train / "s1" / "train-360-2.wav")
    soundfile.write(train / "s1" / "train-360-2.wav", signal[:-100], rate)
    audio.write(train / "s2" / "train-360-3.wav", 0 * signal, rate)
    loud, rate = soundfile.read(dev / "s1" / "dev-0.wav")
    loud = np.clip(50 * loud, -1, 32767 / 32768)
    soundfile.write(dev / "s1" / "dev-0.wav", loud, rate)
    for stem in ("mix_both", "s1", "s2", "noise"):
        shutil.copy(train / stem / "train-360-5.wav", test / stem / "test-0.wav")
        short, rate = soundfile.read(test / stem / "test-2.wav")
        soundfile.write(test / stem / "test-2.wav", short[:1200], rate)
    return {
        ("missing", "train", "train-360-0"),
        ("unreadable", "train", "train-360-1"),
        ("mismatched", "train", "train-360-2"),
        ("mismatched", "train", "train-360-3"),  # as long as item 2
        ("silent", "train", "train-360-3"),
        ("clipped", "dev", "dev-0"),
        ("not the sum", "dev", "dev-0"),
        ("duplicated", "test", "test-0"),
        ("too short", "test", "test-2"),
    }


def broken_tree(folder):
    """The tree, and what is wrong with it."""
    tree = make_tree(folder, counts=(8, 3, 3))
    return tree, break_tree(tree)
