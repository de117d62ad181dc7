"""Manifests: written and read, refused by file, line and column, made again when they must be."""

from __future__ import annotations

import csv
import io
import os

import pytest
from fuzzing import Tally, check_message, noise
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from unified_se_ss.data import audio
from unified_se_ss.data.cache import fingerprint_of
from unified_se_ss.data.corpora.speech_folder import prepare_speech_folder
from unified_se_ss.data.manifest import is_current, read_manifest, write_manifest
from unified_se_ss.errors import UserError

COLUMNS = ["ID", "duration", "sample_rate", "mixture", "s1"]
HEADER = ",".join(COLUMNS) + "\n"
LINE = "a,1.5,8000,/data/m.wav,s.wav\n"
BOTH = HEADER + LINE
QUIET = settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)


def write(folder, text):
    path = folder / "train.csv"
    path.write_bytes(
        text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    )
    return path


def row(name, **other):
    return {"ID": name, "duration": 1 / 3, "sample_rate": 8000, "s1": "/x/s.wav", **other}


# ------------------------------------------------------------------ reading


HANDLED = {
    "as written": BOTH,
    "byte order mark": "\ufeff" + BOTH,
    "lines end as on Windows": BOTH.replace("\n", "\r\n"),
    "lines end as on old Macs": BOTH.replace("\n", "\r"),
    "no end of the last line": HEADER + LINE.rstrip(),
    "empty lines": "\n" + HEADER + "\n\n" + LINE + "\n\n",
    "everything quoted": '"ID","duration","sample_rate","mixture","s1"\n'
    '"a","1.5","8000","/data/m.wav","s.wav"',
    "spaces around numbers": HEADER + LINE.replace("1.5,8000", " 1.5 , 8000"),
    "other order": "s1,mixture,sample_rate,ID,duration\ns.wav,/data/m.wav,8000,a,1.5\n",
    "more columns": "speaker," + HEADER + "Zoë," + LINE,
}


@pytest.mark.parametrize("make", HANDLED)
def test_what_is_handled(tmp_path, make):
    item = read_manifest(write(tmp_path, HANDLED[make])).items[0]
    assert (item.id, item.duration, item.sample_rate) == ("a", 1.5, 8000)
    assert item.paths == {"mixture": "/data/m.wav", "s1": "s.wav"}


def test_stems_can_be_named_and_rates_differ_where_that_is_allowed(tmp_path):
    path = write(tmp_path, "ID,duration,sample_rate,left\na,1,8000,l\nb,1,16000,l\n")
    manifest = read_manifest(path, stems=["left"], one_rate=False)
    assert manifest.stems == ("left",) and manifest.sample_rate is None


def changed(old, new):
    return HEADER + LINE.replace(old, new)


REFUSED = {
    "empty": ("", "is empty"),
    "no item": (HEADER, "no item"),
    "columns": ("ID,mixture\na,m.wav\n", "line 1: .*duration, sample_rate are missing"),
    "no stem": ("ID,duration,sample_rate,foo\na,1,8000,m\n", "line 1: no column"),
    "column twice": (HEADER.replace("mixture", "s1") + LINE, "line 1: .*'s1'.* twice"),
    "semicolons": (BOTH.replace(",", ";"), "line 1: .*semicolons, commas were"),
    "tabs": (BOTH.replace(",", "\t"), "line 1: .*tabs, commas were expected"),
    "bars": (BOTH.replace(",", "|"), "line 1: .*bars, commas were expected"),
    "spaces in the header": (
        BOTH.replace(",", ", "),
        "line 1: the column.s. duration, sample_rate are missing.*no spaces were expected",
    ),
    "small letters": (BOTH.lower(), "line 1: the column.s. ID .*capital letters"),
    "no header": (LINE, "line 1: .*is its first line a header"),
    "UTF-16": (BOTH.encode("utf-16"), "is not a CSV file in UTF-8"),
    "Latin 1": ((HEADER + "é" + LINE).encode("latin1"), "is not a CSV file in UTF-8"),
    "binary": (bytes(range(256)) * 9, "is not a CSV file in UTF-8"),
    # Python 3.10's csv knows no NUL, and says so.
    "NUL bytes": (b"\0" * 100, "line 1: .*missing|line contains NUL"),
    "NUL in a path": (changed("m.", "m\0."), "line 2: .*mixture.*NUL|line contains NUL"),
    "quotation mark": (HEADER + '"' + LINE + LINE, "line 3: .*quotation mark not closed"),
    "huge field": (changed("m.wav", "m" * 200_000), "field larger than"),
    "many long columns": ("x" * 9999 + "," + BOTH, "line 2: has 5 value"),
    "short line": (HEADER + "a,1.5,8000\n", r"line 2: has 3 value\(s\), 5 were expected"),
    "no path": (changed("s.wav", ""), "line 2: the column s1 is empty"),
    "no ID": (HEADER + LINE[1:], "line 2: the column ID is empty"),
    "data_root": (changed("/data", "{data_root}"), "line 2: .*no data_root was given"),
    "words": (changed("1.5", "long"), "line 2: the duration is 'long'"),
    "nan": (changed("1.5", "nan"), "line 2: the duration is 'nan'"),
    "negative": (changed("1.5", "-1"), "line 2: the duration is '-1'"),
    "_ in a number": (changed("1.5", "1_5"), "line 2: the duration is '1_5'"),
    "other digits": (changed("1.5", "１.５"), "line 2: the duration is"),
    "no time at all": (changed("1.5", "1e-9"), "line 2: .*less than one"),
    "longer than a season": (changed("1.5", "1e300"), "line 2: the duration"),
    "5000 digits": (changed("8000", "9" * 5000), "line 2: the sample_rate is"),
    "kHz": (changed("8000", "8"), "line 2: the sample_rate is '8'.*1000 to"),
    "two rates": (BOTH + "b,1,16000,m,s\n", r"\[8000, 16000\]"),
    "duplicate": (BOTH + LINE, "line 3: the ID 'a' is already on line 2"),
}


@pytest.mark.parametrize("make", REFUSED)
def test_what_is_refused_and_what_is_said(tmp_path, make):
    text, words = REFUSED[make]
    with pytest.raises(UserError, match=words) as error:
        read_manifest(write(tmp_path, text))
    check_message(str(error.value), tmp_path / "train.csv")


def test_a_folder_or_nothing_is_no_manifest(tmp_path):
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(UserError, match="cannot be read"):
            read_manifest(path)


@QUIET
@given(content=st.binary(max_size=300) | st.text(max_size=300))
@example(content=changed("a", "\ud800"))
def test_any_content_is_read_or_refused(tmp_path, content):
    path = write(tmp_path, content)
    Tally().tried("content", path, read_manifest, path)


CELL = st.text(max_size=20).filter(lambda text: "\0" not in text) | st.sampled_from(
    ["", "a", "1", "-1", "8000", "1e3", "nan", "inf", "0x10", " ", '"', "\n", "/x y/ü.wav"]
    + ["{data_root}", "{data_root}/a.wav", "\\\\x\\y.wav"]
)


@QUIET
@given(rows=st.lists(st.lists(CELL, min_size=5, max_size=5), max_size=4))
def test_any_cells_under_the_right_header_are_read_or_refused(tmp_path, rows):
    text = io.StringIO()
    csv.writer(text).writerows([COLUMNS, *rows])
    path = write(tmp_path, text.getvalue())
    manifest = Tally().tried("cells", path, read_manifest, path, "/data")
    for item in manifest.items if manifest else ():
        assert item.id.strip() and item.frames >= 1
        assert set(item.paths) == {"mixture", "s1"}
        assert not any(p.startswith("{data_root}") for p in item.paths.values())


# ------------------------------------------------------------------ writing


def test_round_trip(tmp_path):
    path = tmp_path / "sub" / "train.csv"
    rows = [row("b", speaker="Zoë, B."), row("a", speaker='"A"')]
    rows = [{**r, "mixture": f"{{data_root}}/m/{r['ID']}.wav"} for r in rows]
    write_manifest(path, rows, {"choices": 1})
    read = read_manifest(path, "/data/")
    assert [item.id for item in read.items] == ["a", "b"]
    assert read.stems == ("s1", "mixture") and read.sample_rate == 8000
    assert read.items[1].paths == {"mixture": "/data/m/b.wav", "s1": "/x/s.wav"}
    assert read.items[1].attributes == {"speaker": "Zoë, B."}
    assert read.items[0].duration == 1 / 3 and read.items[0].frames == 2667
    names = sorted(p.name for p in path.parent.iterdir())
    assert names == ["train.csv", "train.csv.fingerprint"]


TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1
)
NAME = TEXT.filter(str.strip)


@QUIET
@given(paths=st.dictionaries(NAME, NAME, min_size=1), speaker=TEXT)
@example(paths={"a": "Icon\r.wav"}, speaker="Zoë, B.")
def test_names_survive_writing_and_reading(tmp_path, paths, speaker):
    """Spaces, quotes, commas, line ends, any alphabet."""
    path = tmp_path / "train.csv"
    write_manifest(path, [row(i, mixture=p, speaker=speaker) for i, p in paths.items()], {})
    items = read_manifest(path, "").items
    assert {item.attributes["speaker"] for item in items} == {speaker}
    found = {item.id: item.paths["mixture"] for item in items}
    assert found == {i: p.removeprefix("{data_root}") for i, p in paths.items()}


# ------------------------------------------------------------------ fingerprints


CHANGES = [
    lambda folder: (folder / "a").write_text("longer"),
    lambda folder: os.utime(folder / "a", ns=(1, 1)),
    lambda folder: (folder / "a").rename(folder / "c"),
    lambda folder: (folder / "a").unlink(),
]


@pytest.mark.parametrize("change", CHANGES)
def test_fingerprint_changes_with_the_files_and_not_with_their_place(tmp_path, change):
    def fingerprint(folder, **choices):
        return fingerprint_of(folder, [p.name for p in folder.iterdir()], choices)

    (tmp_path / "data").mkdir()
    for name in "ab":
        (tmp_path / "data" / name).write_text(name)
    before = fingerprint(tmp_path / "data", rate=1)
    data = (tmp_path / "data").rename(tmp_path / "moved")
    assert before == fingerprint(data, rate=1) != fingerprint(data, rate=2)
    assert before == fingerprint_of(data, ["b", "a"], {"rate": 1})
    change(data)
    assert fingerprint(data, rate=1) != before


def test_current_only_with_the_same_fingerprint(tmp_path):
    path = tmp_path / "a.csv"
    assert not is_current(path, {"x": 1})
    for x in (1, 2):
        write_manifest(path, [row("a" * x)], {"x": x})
        assert is_current(path, {"x": x}) and not is_current(path, {"x": 3 - x})
    path.with_name("a.csv.fingerprint").write_text("[broken")
    with pytest.raises(UserError, match="by hand"):
        is_current(path, {"x": 2})


@pytest.mark.parametrize("by", ["hand", "edit"])
def test_a_persons_work_is_not_overwritten(tmp_path, by):
    path = tmp_path / "a.csv"
    if by == "edit":
        write_manifest(path, [row("a")], {"x": 1})
    path.write_text("mine")
    with pytest.raises(UserError, match="by hand"):
        write_manifest(path, [row("a")], {"x": 2})
    assert path.read_text() == "mine"


# ------------------------------------------------------------------ folders of any names


NAMES = ["a b", "ü", "名前", "a,b", 'a"b', "a\nb", "{data_root}", "a;b", "-x", "%s", "'"]


def test_folders_and_files_may_have_any_name(tmp_path):
    for number, name in enumerate(NAMES):
        folder = tmp_path / str(number) / name
        audio.write(folder / name / f"{name}.wav", noise(4000), 8000)
        path = prepare_speech_folder(folder, tmp_path / f"{number}.csv", 8000)
        item = read_manifest(path, folder).items[0]
        assert item.attributes["speaker"] == name
        assert len(audio.read(item.paths["speech"])[0])


def test_a_link_to_the_folder_itself_is_not_followed(tmp_path):
    """Each recording would be there forty times."""
    audio.write(tmp_path / "in" / "Ann" / "a.wav", noise(4000), 8000)
    (tmp_path / "in" / "Ann" / "again").symlink_to(tmp_path / "in")
    audio.write(tmp_path / "elsewhere" / "b.wav", noise(4000, 1), 8000)
    (tmp_path / "in" / "Bob").symlink_to(tmp_path / "elsewhere")
    path = prepare_speech_folder(tmp_path / "in", tmp_path / "speech.csv", 8000)
    ids = [item.id for item in read_manifest(path, tmp_path / "in").items]
    assert ids == ["Ann/a.wav", "Bob/b.wav"]


def test_what_cannot_be_named_or_looked_into_is_refused(tmp_path):
    audio.write(tmp_path / "in" / "Ann" / "a.wav", noise(4000), 8000)
    os.rename(tmp_path / "in/Ann/a.wav", os.fsencode(tmp_path) + b"/in/Ann/\xff.wav")
    with pytest.raises(UserError, match="is not text in UTF-8; rename it") as error:
        prepare_speech_folder(tmp_path / "in", tmp_path / "speech.csv", 8000)
    assert r"\udcff.wav" in str(error.value)
    folder = tmp_path / "in" / "Ann"
    folder.chmod(0)
    if not os.access(folder, os.R_OK):  # root may look anywhere
        with pytest.raises(UserError, match="Ann: cannot be looked into"):
            prepare_speech_folder(tmp_path / "in", tmp_path / "speech.csv", 8000)
    folder.chmod(0o700)
