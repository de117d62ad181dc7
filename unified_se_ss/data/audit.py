"""Checks every recording of some manifests, from its first sample to its last."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unified_se_ss.data import audio
from unified_se_ss.data.cache import threaded_map
from unified_se_ss.data.corpora import BadItem
from unified_se_ss.data.manifest import Item
from unified_se_ss.errors import UserError

FAILED, WARNING = "failed", "warning"
ADVICE = {
    "missing": "get these files again, or take their items out of the data",
    # No audio, cut off, or values that are not finite.
    "unreadable": "get these files again, or take their items out of the data",
    # Another rate, length or number of channels than the item's others.
    "mismatched": "make these files again from the same recording",
    # Noise: a warning.
    "silent": "take these items out of the data: nothing can be learned from them",
    # The same signal or utterance in two subsets (noise, or twice in one: a warning).
    "duplicated": "take them out of one of the subsets, or what is tested was learned",
    "clipped": "make them again at a lower level, if they are not so in the original",
    "too short": "take these items out: PESQ and STOI need longer ones",
    "not the sum": "look whether the files belong to each other",
    # So by design in WSJ0-2mix's dev set.
    "same speaker": "fine if the data set is made so; else divide by speakers",
}
_MINOR = ("clipped", "too short", "not the sum", "same speaker")
KINDS = {kind: WARNING if kind in _MINOR else FAILED for kind in ADVICE}

SHOWN = 10  #: Findings of a kind that are listed.
SHORT_SECONDS = 0.25  # what PESQ needs
FULL_SCALE = 0.999
UNEXPLAINED = 0.05  # rms of what no stem explains, to that of the mixture
FOREIGN = {"builtins", "numpy", "torch", "functools"}  #: Hold no items.
LIBRISPEECH = re.compile(r"(\d+)-\d+-\d{4}")


class Finding(NamedTuple):
    """One fault of one file: its kind (of `KINDS`), severity, place, and details in words."""

    kind: str
    severity: str
    subset: str
    item: str
    file: str
    detail: str


@dataclass
class Audit:
    """Result of an audit.

    Arguments
    ---------
    items, files : Counter
        Numbers by subset of what was checked.
    seconds : Counter
        Of audio, by subset.
    findings : list of Finding
        In the order of the subsets.
    """

    items: Counter = field(default_factory=Counter)
    files: Counter = field(default_factory=Counter)
    seconds: Counter = field(default_factory=Counter)
    findings: list = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """True if anything was found that must be mended."""
        return any(finding.severity == FAILED for finding in self.findings)

    def of_kind(self, kind: str) -> list[Finding]:
        """The findings of one kind, the worst first."""
        found = [finding for finding in self.findings if finding.kind == kind]
        return sorted(found, key=lambda finding: finding.severity)

    def listed(self, kind: str) -> list[str]:
        """A line for each of the first findings of a kind."""
        findings = self.of_kind(kind)
        lines = [
            f"{kind}: {f.file} ({f.subset} {f.item}): {f.detail}" for f in findings[:SHOWN]
        ]
        more = len(findings) - SHOWN
        return [*lines, f"{kind}: and {more} more"] if more > 0 else lines

    def summary(self, kind: str) -> str:
        """The findings of a kind in one line."""
        findings = self.of_kind(kind)
        subsets = ", ".join(dict.fromkeys(finding.subset for finding in findings))
        return f"{len(findings)} in {subsets}, such as {Path(findings[0].file).name}"


class _Scan(NamedTuple):
    """One item's findings, and properties of its signals by stem."""

    findings: list[Finding]
    channels: dict
    digests: dict
    seconds: float


def audit(
    subsets: Iterable[tuple[str, Iterable[Item]]], bad: Iterable[BadItem] = ()
) -> Audit:
    """Checks all recordings of some items.

    Arguments
    ---------
    subsets : iterable of (str, iterable of Item)
        Names of subsets with their items, as a manifest or :func:`items_of` a data set
        give them.
    bad : iterable of BadItem
        Items that stand in no manifest because something is wrong with them; they are
        checked, too.

    Returns
    -------
    Audit

    Example
    -------
    >>> folder = getfixture("tmpdir")
    >>> audio.write(folder / "a.wav", np.zeros(8000), 8000)
    >>> item = Item("a", 1.0, 8000, {"speech": str(folder / "a.wav")})
    >>> found = audit([("train", [item])])
    >>> [(finding.kind, finding.item) for finding in found.findings]
    [('silent', 'a')]
    """
    found = Audit()
    entries = [(subset, item) for subset, items in subsets for item in items]
    entries += [(b.subset, Item(b.id, 0.0, b.sample_rate, b.paths)) for b in bad]
    scans = threaded_map(lambda entry: _scan(*entry), entries, "checking recordings")
    usual = _usual_channels(entries, scans)
    digests = defaultdict(list)
    for (subset, item), scan in zip(entries, scans):
        found.items[subset] += 1
        found.files[subset] += len(item.paths)
        found.seconds[subset] += scan.seconds
        found.findings += scan.findings
        for stem, channels in scan.channels.items():
            if channels != usual[subset, stem]:
                detail = f"has {channels} channel(s), most such files {usual[subset, stem]}"
                fault = _finding("mismatched", subset, item, item.paths[stem], detail)
                found.findings.append(fault)
        for stem, digest in scan.digests.items():
            digests[digest].append((subset, item, stem))
    found.findings += [*_same_signals(digests), *_same_names(entries)]
    return found


def _finding(kind, subset, item, path, detail, severity=None) -> Finding:
    """A finding of its kind's severity unless it has its own."""
    return Finding(kind, severity or KINDS[kind], subset, item.id, path, detail)


def items_of(dataset) -> list[Item]:
    """The items of manifests that a data set reads, however it keeps them.

    Arguments
    ---------
    dataset : object
        Its attributes, theirs, and what containers hold are looked through.

    Returns
    -------
    list of Item
        Each once, in the order in which they were met; none if it has no manifest.

    Example
    -------
    >>> item = Item("a", 1.0, 8000, {"speech": "a.wav"})
    >>> [found.id for found in items_of({"speech": [[item, item]], "noise": None})]
    ['a']
    """
    found, seen, waiting = {}, set(), [dataset]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, Item):
            found.setdefault((thing.id, *thing.paths.values()), thing)
        elif isinstance(thing, dict):
            waiting += reversed(thing.values())
        elif isinstance(thing, (list, tuple)):
            waiting += reversed(thing)
        elif type(thing).__module__.split(".")[0] not in FOREIGN and hasattr(
            thing, "__dict__"
        ):
            waiting += reversed(vars(thing).values())
    return list(found.values())


def _usual_channels(entries, scans) -> dict:
    counts = defaultdict(Counter)
    for (subset, _), scan in zip(entries, scans):
        for stem, channels in scan.channels.items():
            counts[subset, stem][channels] += 1
    return {place: count.most_common(1)[0][0] for place, count in counts.items()}


# ------------------------------------------------------------------ one item


def _scan(subset: str, item: Item) -> _Scan:
    """Looks at all files of one item."""
    findings, signals = [], {}
    frames = item.frames or None

    def add(kind, path, detail, severity=None):
        findings.append(_finding(kind, subset, item, path, detail, severity))

    for stem, path in item.paths.items():
        if not os.path.exists(path):
            add("missing", path, "does not exist")
            continue
        try:
            signal, rate = audio.read_all(path)
        except (UserError, OSError) as error:
            add("unreadable", path, str(error).removeprefix(f"{path}: "))
            continue
        frames = frames or len(signal)
        if rate != item.sample_rate:
            add("mismatched", path, f"has a rate of {rate} Hz, not {item.sample_rate}")
        elif len(signal) != frames:
            add("mismatched", path, f"has {len(signal)} samples, its others {frames}")
        else:
            signals[stem] = signal
        if audio.is_silent(signal):
            severity = WARNING if stem == "noise" else FAILED
            add("silent", path, "no sample reaches -80 dB of full scale", severity)
        if clipped := _count_clipped(signal):
            add("clipped", path, f"{clipped} samples are at full scale")
    seconds = (frames or 0) / item.sample_rate
    if 0 < seconds < SHORT_SECONDS:
        add("too short", next(iter(item.paths.values())), f"lasts {seconds:.3f} s")
    share = _unexplained_share(signals) if len(signals) == len(item.paths) else 0.0
    if share > UNEXPLAINED:
        detail = f"{share:.0%} of the mixture is neither source nor noise"
        add("not the sum", item.paths["mixture"], detail)
    channels = {stem: signal.shape[1] for stem, signal in signals.items()}
    digests = {s: _digest(x) for s, x in signals.items() if not audio.is_silent(x)}
    return _Scan(findings, channels, digests, seconds)


def _count_clipped(signal) -> int:
    """Samples at full scale, if three of them follow each other, else 0."""
    full = np.abs(signal) >= FULL_SCALE
    runs = full[:-2] & full[1:-1] & full[2:]
    return int(full.sum()) if runs.any() else 0


def _unexplained_share(signals) -> float:
    """Of a mixture with noise, what is neither source nor noise; 0 where one is missing."""
    if "mixture" not in signals or "noise" not in signals or len(signals) < 3:
        return 0.0
    mixture = signals["mixture"]
    parts = [signal for stem, signal in signals.items() if stem != "mixture"]
    if any(part.shape != mixture.shape for part in parts):
        return 0.0
    rest = mixture - np.sum(parts, axis=0)
    return np.linalg.norm(rest) / max(np.linalg.norm(mixture), 1e-12)


def _digest(signal) -> bytes:
    return hashlib.blake2b(signal.tobytes(), digest_size=16).digest()


# ------------------------------------------------------------------ between items


def _same_signals(digests) -> Iterator[Finding]:
    """Signals that stand in two subsets, or twice among the mixtures of one."""
    named = set()
    for places in digests.values():
        subset, item, stem = places[0]
        for other, its_item, its_stem in places[1:]:
            noise = "noise" in (stem, its_stem)
            if other == subset and (its_stem not in ("mixture", "speech") or noise):
                continue
            pair = (subset, item.id, other, its_item.id)
            if pair in named:  # by another of their signals
                continue
            named.add(pair)
            severity = WARNING if noise or other == subset else FAILED
            detail = f"is the same signal as {subset}'s {item.id} ({stem})"
            path = its_item.paths[its_stem]
            yield _finding("duplicated", other, its_item, path, detail, severity)


def _same_names(entries) -> Iterator[Finding]:
    """Utterances and speakers, where they are known, that stand in two subsets."""
    for kind, what, group in (
        ("duplicated", "utterance", 0),
        ("same speaker", "speaker", 1),
    ):
        first, named = {}, set()
        for subset, item in entries:
            path = next(iter(item.paths.values()))
            for name in _names(item, what, group):
                where = first.setdefault(name, (subset, item.id))
                if where[0] != subset and (name, subset) not in named:
                    named.add((name, subset))
                    detail = f"the {what} {name} is in {where[0]}, too ({where[1]})"
                    yield _finding(kind, subset, item, path, detail)


def _names(item: Item, what: str, group: int) -> set[str]:
    """An item's utterances or speakers: by its columns, or its ID as LibriMix' tell."""
    named = {v for k, v in item.attributes.items() if k.startswith(what) and v}
    return named or {match[group] for match in LIBRISPEECH.finditer(item.id)}
