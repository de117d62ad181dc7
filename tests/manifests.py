"""Manifests of signals that a test makes, and what is read of them."""

from unified_se_ss.data import audio
from unified_se_ss.data.manifest import Item, Manifest


def manifest_of(folder, signals, rate=8000, **attributes):
    """Write the signals of each item, by its name and by stem; their manifest."""
    items = []
    for name, stems in signals.items():
        paths = {stem: str(folder / f"{name}-{stem}.wav") for stem in stems}
        for stem, signal in stems.items():
            audio.write(paths[stem], signal, rate)
        duration = len(next(iter(stems.values()))) / rate
        items.append(Item(name, duration, rate, paths, attributes))
    stems = tuple(items[0].paths)
    return Manifest(f"{stems[0]}.csv", tuple(items), stems, rate)


def lengths_read(monkeypatch):
    """A list that gets the number of samples of each reading from now on."""
    asked, read = [], audio.read

    def watched(path, start=0, stop=None, *which):
        asked.append(stop - start)
        return read(path, start, stop, *which)

    monkeypatch.setattr(audio, "read", watched)
    return asked
