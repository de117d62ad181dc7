"""Manifests of every make: read as documented, or refused by file, line and column."""

from __future__ import annotations

import csv
import io
import os
import sys

import pytest
from fuzzing import Tally, check_message, noise
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from librimix import make_tree

from unified_se_ss.data import audio
from unified_se_ss.data.corpora.mixtures import prepare_librimix
from unified_se_ss.data.corpora.speech_folder import prepare_speech_folder
from unified_se_ss.data.manifest import read_manifest, write_manifest
from unified_se_ss.errors import UserError

COLUMNS = ["ID", "duration", "sample_rate", "mixture", "s1"]
HEADER = ",".join(COLUMNS) + "\n"
LINE = "a,1.5,8000,/data/m.wav,s.wav\n"
QUIET = settings(max_examples=200, suppress_health_check=list(HealthCheck), deadline=None)


def write(folder, text, encoding="utf-8"):
    """A manifest."""
    path = folder / "train.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


HANDLED = {
    "as written": HEADER + LINE,
    "byte order mark": "\ufeff" + HEADER + LINE,
    "lines end as on Windows": (HEADER + LINE).replace("\n", "\r\n"),
    "lines end as on old Macs": (HEADER + LINE).replace("\n", "\r"),
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


REFUSED = {
    "semicolons": ((HEADER + LINE).replace(",", ";"), "line 1: .*semicolons, commas were"),
    "tabs": ((HEADER + LINE).replace(",", "\t"), "line 1: .*tabs, commas were expected"),
    "bars": ((HEADER + LINE).replace(",", "|"), "line 1: .*bars, commas were expected"),
    "spaces in the header": (
        (HEADER + LINE).replace(",", ", "),
        "line 1: the column.s. duration, sample_rate are missing.*no spaces were expected",
    ),
    "small letters": (HEADER.lower() + LINE, "line 1: the column.s. ID .*capital letters"),
    "no header": (LINE, "line 1: .*is its first line a header"),
    "UTF-16": ((HEADER + LINE).encode("utf-16"), "is not a CSV file in UTF-8"),
    "Latin 1": ((HEADER + "é" + LINE).encode("latin1"), "is not a CSV file in UTF-8"),
    # Python 3.10's csv knows no NUL, and says so.
    "NUL bytes": (b"\0" * 100, "line 1: .*missing|line contains NUL"),
    "NUL in a path": (
        HEADER + LINE.replace("m.", "m\0."),
        "line 2: .*mixture.*NUL|line contains NUL",
    ),
    "quotation mark": (HEADER + '"' + LINE + LINE, "line 3: .*quotation mark not closed"),
    "huge field": (HEADER + LINE.replace("m.wav", "m" * 200_000), "field larger than"),
    "many long columns": ("x" * 9999 + "," + HEADER + LINE, "line 2: has 5 value"),
    "_ in a number": (HEADER + LINE.replace("1.5", "1_5"), "line 2: the duration is '1_5'"),
    "other digits": (HEADER + LINE.replace("1.5", "１.５"), "line 2: the duration is"),
    "no time at all": (HEADER + LINE.replace("1.5", "1e-9"), "line 2: .*less than one"),
    "longer than a season": (HEADER + LINE.replace("1.5", "1e300"), "line 2: the duration"),
    "5000 digits": (
        HEADER + LINE.replace("8000", "9" * 5000),
        "line 2: the sample_rate is",
    ),
    "kHz": (HEADER + LINE.replace("8000", "8"), "line 2: the sample_rate is '8'.*1000 to"),
    "duplicate": (HEADER + LINE + LINE, "line 3: the ID 'a' is already on line 2"),
    "binary": (bytes(range(256)) * 9, "train.csv"),
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


@pytest.mark.parametrize("missing", COLUMNS[:3])
def test_every_column_that_must_be_there_is_named(tmp_path, missing):
    kept = [name for name in COLUMNS if name != missing]
    with pytest.raises(UserError, match=rf"line 1: the column\(s\) {missing} are missing"):
        read_manifest(write(tmp_path, ",".join(kept) + "\n" + "1," * 3 + "1\n"))


# ------------------------------------------------------------------ any text


@QUIET
@given(text=st.text(max_size=300))
@example(text=HEADER + LINE.replace("a", "\ud800"))
def test_any_text_is_read_or_refused(tmp_path, text):
    path = write(tmp_path, text.encode("utf-8", "surrogatepass"))
    Tally().tried("text", path, read_manifest, path)


@QUIET
@given(content=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(tmp_path, content):
    path = write(tmp_path, content)
    Tally().tried("bytes", path, read_manifest, path)


CELL = st.one_of(
    st.sampled_from(
        ["", "a", "1", "-1", "8000", "1e3", "nan", "inf", "0x10", "{data_root}"]
    ),
    st.sampled_from(["{data_root}/a.wav", " ", '"', "\n", "/x y/ü.wav", "\\\\x\\y.wav"]),
    st.text(max_size=20).filter(lambda t: "\0" not in t or sys.version_info >= (3, 11)),
)


@QUIET
@given(rows=st.lists(st.lists(CELL, min_size=5, max_size=5), max_size=4))
def test_any_cells_under_the_right_header_are_read_or_refused(tmp_path, rows):
    text = io.StringIO()
    csv.writer(text).writerows([COLUMNS, *rows])
    path = write(tmp_path, text.getvalue().encode("utf-8", "surrogatepass"))
    manifest = Tally().tried("cells", path, read_manifest, path, "/data")
    if manifest is not None:
        for item in manifest.items:
            assert (
                item.id.strip()
                and item.frames >= 1
                and set(item.paths) == {"mixture", "s1"}
            )
            assert not any(p.startswith("{data_root}") for p in item.paths.values())


@QUIET
@given(
    separator=st.sampled_from([",", ";", "\t", "|", ", "]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    mark=st.sampled_from(["", "\ufeff", "\ufeff\ufeff", "# a comment\n"]),
    dropped=st.sets(st.sampled_from(COLUMNS), max_size=2),
    again=st.sampled_from([[], ["ID"], ["mixture"]]),
    name=st.text(min_size=1, max_size=8),
)
def test_any_dialect_is_read_or_refused(
    tmp_path, separator, end, mark, dropped, again, name
):
    names = [column for column in [*COLUMNS, *again] if column not in dropped]
    cells = dict(zip(COLUMNS, [name, "1.5", "8000", f"/{name}.wav", f"{name}/s.wav"]))
    lines = [separator.join(names), separator.join(cells[n] for n in names)]
    path = write(tmp_path, (mark + end.join(lines)).encode("utf-8", "surrogatepass"))
    Tally().tried("dialect", path, read_manifest, path)


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
    rows = [
        {"ID": i, "duration": 1, "sample_rate": 8000, "mixture": p, "speaker": speaker}
        for i, p in paths.items()
    ]
    write_manifest(path, rows, {})
    items = read_manifest(path, "").items
    assert {item.attributes["speaker"] for item in items} == {speaker}
    found = {item.id: item.paths["mixture"] for item in items}
    assert found == {i: p.removeprefix("{data_root}") for i, p in paths.items()}


# ------------------------------------------------------------------ folders


FOLDER_FAULTS = {
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "broken link": lambda path: (path.unlink(), path.symlink_to(path.with_name("gone"))),
    "text": lambda path: path.write_text("no sound\n" * 50),
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:999]),
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_a_broken_recording_of_librimix_is_named(tmp_path, fault):
    tree = make_tree(tmp_path, counts=(1, 1, 1))
    path = tree / "wav8k/min/dev/s1/dev-0.wav"
    FOLDER_FAULTS[fault](path)
    with pytest.raises(UserError) as error:
        prepare_librimix(tree, tmp_path / "manifests")
    check_message(str(error.value), path)
    assert not list((tmp_path / "manifests").glob("*dev*"))


@pytest.mark.parametrize("fault", sorted(FOLDER_FAULTS.keys() - {"folder"}))
def test_a_broken_recording_of_a_speech_folder_is_named(tmp_path, fault):
    for name in "ab":
        audio.write(tmp_path / "in" / "Ann" / f"{name}.wav", noise(4000), 8000)
    FOLDER_FAULTS[fault](tmp_path / "in/Ann/a.wav")
    with pytest.raises(UserError) as error:
        prepare_speech_folder(tmp_path / "in", tmp_path / "speech.csv", 8000)
    check_message(str(error.value), tmp_path / "in/Ann/a.wav")
    assert not (tmp_path / "speech.csv").exists()


NAMES = ["a b", "ü", "名前", "a,b", 'a"b', "a\nb", "{data_root}", "a;b", "-x", "%s", "'"]


@pytest.mark.parametrize("name", NAMES)
def test_folders_and_files_may_have_any_name(tmp_path, name):
    folder = tmp_path / name
    audio.write(folder / name / f"{name}.wav", noise(4000), 8000)
    path = prepare_speech_folder(folder, tmp_path / "speech.csv", 8000)
    item = read_manifest(path, folder).items[0]
    assert item.attributes["speaker"] == name and len(audio.read(item.paths["speech"])[0])


def test_a_name_that_is_no_text_is_refused(tmp_path):
    audio.write(tmp_path / "in" / "Ann" / "a.wav", noise(4000), 8000)
    bad = os.fsencode(tmp_path) + b"/in/Ann/\xff.wav"
    os.rename(tmp_path / "in/Ann/a.wav", bad)
    with pytest.raises(UserError, match="is not text in UTF-8; rename it") as error:
        prepare_speech_folder(tmp_path / "in", tmp_path / "speech.csv", 8000)
    assert r"\udcff.wav" in str(error.value)


def test_a_link_to_the_folder_itself_is_not_followed(tmp_path):
    """Each recording would be there forty times."""
    audio.write(tmp_path / "in" / "Ann" / "a.wav", noise(4000), 8000)
    (tmp_path / "in" / "Ann" / "again").symlink_to(tmp_path / "in")
    audio.write(tmp_path / "elsewhere" / "b.wav", noise(4000, 1), 8000)
    (tmp_path / "in" / "Bob").symlink_to(tmp_path / "elsewhere")
    path = prepare_speech_folder(tmp_path / "in", tmp_path / "speech.csv", 8000)
    ids = [item.id for item in read_manifest(path, tmp_path / "in").items]
    assert ids == ["Ann/a.wav", "Bob/b.wav"]


def test_a_folder_that_may_not_be_looked_into_is_named(tmp_path):
    audio.write(tmp_path / "in" / "Ann" / "a.wav", noise(4000), 8000)
    audio.write(tmp_path / "in" / "Bob" / "b.wav", noise(4000), 8000)
    (tmp_path / "in" / "Bob").chmod(0)
    if os.access(tmp_path / "in" / "Bob", os.R_OK):
        pytest.skip("root may look anywhere")
    with pytest.raises(UserError, match="Bob: cannot be looked into"):
        prepare_speech_folder(tmp_path / "in", tmp_path / "speech.csv", 8000)
