"""Manifests: written, read back, checked, and made again when they must be."""

from __future__ import annotations

import os

import pytest

from unified_se_ss.data import manifest as m
from unified_se_ss.data.cache import fingerprint_of
from unified_se_ss.errors import UserError

HEADER = "ID,duration,sample_rate,mixture,s1,speaker\n"


def _row(name, **other):
    row = {"ID": name, "duration": 1 / 3, "sample_rate": 8000}
    return {**row, "mixture": f"{{data_root}}/m/{name}.wav", "s1": "/x/s.wav", **other}


def test_round_trip(tmp_path):
    path = tmp_path / "sub" / "train.csv"
    rows = [_row("b", speaker="Zoë, B."), _row("a", speaker='"A"')]
    m.write_manifest(path, rows, {"choices": 1})
    read = m.read_manifest(path, "/data/")
    assert [item.id for item in read.items] == ["a", "b"]
    assert read.stems == ("mixture", "s1") and read.sample_rate == 8000
    assert read.items[1].paths == {"mixture": "/data/m/b.wav", "s1": "/x/s.wav"}
    assert read.items[1].attributes == {"speaker": "Zoë, B."}
    assert read.items[0].duration == 1 / 3 and read.items[0].frames == 2667
    names = sorted(p.name for p in path.parent.iterdir())
    assert names == ["train.csv", "train.csv.fingerprint"]


def test_bom_and_other_line_ends_are_tolerated(tmp_path):
    text = "\ufeff" + HEADER + "a,1,8000,m.wav,s.wav,Ann\n\n"
    (tmp_path / "a.csv").write_bytes(text.replace("\n", "\r\n").encode())
    assert m.read_manifest(tmp_path / "a.csv").items[0].attributes == {"speaker": "Ann"}


def test_stem_columns_can_be_named(tmp_path):
    (tmp_path / "a.csv").write_text("ID,duration,sample_rate,left\na,1,8000,l.wav\n")
    assert m.read_manifest(tmp_path / "a.csv", stems=["left"]).stems == ("left",)


LINE = "a,1.5,8000,m.wav,s.wav,Ann\n"
FAULTS = {
    "no file": (None, ["cannot be read"]),
    "empty": ("", ["is empty"]),
    "no item": (HEADER, ["no item"]),
    "columns": ("ID,mixture\na,m.wav\n", ["line 1", "duration, sample_rate"]),
    "no stem": ("ID,duration,sample_rate,foo\na,1,8000,m\n", ["line 1", "no column"]),
    "twice": (HEADER.replace("speaker", "s1") + LINE, ["line 1", "'s1'", "twice"]),
    "duplicate": (HEADER + LINE + LINE, ["line 3", "'a'", "line 2"]),
    "duration": (
        HEADER + LINE.replace("1.5", "long"),
        ["line 2", "duration", "'long'"],
    ),
    "nan": (HEADER + LINE.replace("1.5", "nan"), ["line 2", "duration", "'nan'"]),
    "negative": (HEADER + LINE.replace("1.5", "-1"), ["line 2", "duration", "'-1'"]),
    "rate": (HEADER + LINE.replace("8000", "8k"), ["line 2", "sample_rate", "'8k'"]),
    "no path": (HEADER + LINE.replace("s.wav", ""), ["line 2", "s1", "is empty"]),
    "no ID": (HEADER + LINE[1:], ["line 2", "ID", "is empty"]),
    "short line": (
        HEADER + "a,1.5,8000\n",
        ["line 2", "3 value(s)", "6 were expected"],
    ),
    "rates": (HEADER + LINE + "b,1,16000,m,s,Bo\n", ["[8000, 16000]"]),
    "data_root": (
        HEADER + LINE.replace("m.", "{data_root}/m."),
        ["line 2", "data_root"],
    ),
    "binary": (b"\xff\xfe\x00\x81", ["UTF-8"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_named(tmp_path, fault):
    content, words = FAULTS[fault]
    path = tmp_path / "a.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        m.read_manifest(path)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_different_rates_where_allowed(tmp_path):
    text = HEADER + LINE + "b,1,16000,m,s,Bo\n"
    (tmp_path / "a.csv").write_text(text)
    assert m.read_manifest(tmp_path / "a.csv", one_rate=False).sample_rate is None


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in "ab":
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "a").write_text("longer"),
        lambda folder: os.utime(folder / "a", ns=(1, 1)),
        lambda folder: (folder / "a").rename(folder / "c"),
        lambda folder: (folder / "a").unlink(),
    ],
)
def test_fingerprint_changes_with_the_files(data, change):
    def fingerprint(**choices):
        return fingerprint_of(data, [p.name for p in data.iterdir()], choices)

    before = fingerprint(rate=1)
    assert before == fingerprint(rate=1) != fingerprint(rate=2)
    change(data)
    assert fingerprint(rate=1) != before


def test_fingerprint_does_not_know_where_the_folder_lies(data):
    before = fingerprint_of(data, ["a", "b"], {})
    moved = data.rename(data.parent / "moved")
    assert fingerprint_of(moved, ["b", "a"], {}) == before


def test_current_only_with_the_same_fingerprint(tmp_path):
    path = tmp_path / "a.csv"
    assert not m.is_current(path, {"x": 1})
    m.write_manifest(path, [_row("a")], {"x": 1})
    assert m.is_current(path, {"x": 1}) and not m.is_current(path, {"x": 2})
    m.write_manifest(path, [_row("b")], {"x": 2})
    assert m.is_current(path, {"x": 2})
    path.with_name("a.csv.fingerprint").write_text("[broken")
    with pytest.raises(UserError, match="by hand"):
        m.is_current(path, {"x": 2})


@pytest.mark.parametrize("by", ["hand", "edit"])
def test_a_persons_work_is_not_overwritten(tmp_path, by):
    path = tmp_path / "a.csv"
    if by == "edit":
        m.write_manifest(path, [_row("a")], {"x": 1})
    path.write_text("mine")
    with pytest.raises(UserError, match="by hand"):
        m.write_manifest(path, [_row("a")], {"x": 2})
    assert path.read_text() == "mine"
