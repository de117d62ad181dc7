"""Rooms, speech and noise of known samples, without any simulation."""

import json
from dataclasses import asdict

import numpy as np

from unified_se_ss.data import audio
from unified_se_ss.data.manifest import Item, Manifest
from unified_se_ss.data.rooms import RoomBank, RoomSettings

RATE = 16000
DIRECT = 30  # samples; reflections come later


def write_bank(folder, C=3, n_rooms=4, R=400, noises=2, seed=0, reflections=0.2):
    """A bank of random responses: a direct sound, then decaying noise."""
    rng = np.random.default_rng(seed)
    settings = RoomSettings(
        [[0.0, 0.03 * c, 0.0] for c in range(C)],
        seconds=R / RATE,
        target_distance=(0.5, 0.6),
        noises=noises,
    )
    rooms = np.zeros(n_rooms, dtype=settings.record())
    for room in rooms:
        direct = rng.normal(size=(C, DIRECT)) * np.exp(-np.arange(DIRECT) / 3)
        direct /= np.linalg.norm(direct[0])
        tail = rng.normal(size=room["responses"].shape) * np.exp(-np.arange(R) / 80)
        room["responses"] = 0.2 * tail
        room["responses"][0] = reflections * tail[0]
        room["responses"][0, :, :DIRECT] = direct
        room["direct"][:, :DIRECT] = direct
        room["positions"] = rng.normal(size=room["positions"].shape) + [2, 0, 0]
        room["reverberation"] = 0.2
    path = folder / "rooms-test.npy"
    np.save(path, rooms)
    path.with_suffix(".json").write_text(json.dumps({"settings": asdict(settings)}))
    return RoomBank(path)


def write_sounds(folder, speakers=4, seconds=1.5, noise_seconds=0.7, rate=RATE):
    """Manifests of speech (noise that swells) and of noise."""
    manifests = []
    for kind, count, length in (
        ("speech", speakers, seconds),
        ("noise", 3, noise_seconds),
    ):
        items = []
        for number in range(count):
            rng = np.random.default_rng([number, len(kind)])
            T = round(length * rate)
            swell = 1 + np.sin(np.arange(T) / 900 + number)
            path = str(folder / f"{kind}{number}.wav")
            audio.write(path, 0.08 * swell * rng.normal(size=T).clip(-4, 4), rate)
            told = {"speaker": f"v{number}", "loudness": "-20.0"}
            items.append(Item(f"v{number}/{kind}.wav", length, rate, {kind: path}, told))
        manifests.append(Manifest(f"{kind}.csv", tuple(items), (kind,), rate))
    return manifests
