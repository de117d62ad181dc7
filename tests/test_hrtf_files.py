"""Heads from SOFA files, CIPIC's wavs and azimuth wavs, written here by h5py and soundfile."""

import os
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile
from cues import ild, itd
from hypothesis import given
from hypothesis import strategies as st

from unified_se_ss.data.hrtf_bank import split_hrirs
from unified_se_ss.data.hrtf_files import (
    load_hrirs,
    read_sofa,
    resample_hrirs,
)
from unified_se_ss.errors import UserError
from unified_se_ss.spatial import (
    HRIRSet,
    head_shadow,
    spherical_head,
    to_vector,
    woodworth_itd,
)
from unified_se_ss.spatial.geometry import from_interaural_polar
from unified_se_ss.spatial.hrtf import RADIUS, _ear_delays

AZIMUTH = np.array([0.0, 30.0, 90.0, 200.0, 330.0])
ELEVATION = np.array([0.0, 0.0, 20.0, -10.0, 0.0])
KEMAR = Path("/usr/share/libmysofa/MIT_KEMAR_normal_pinna.sofa")


def write_sofa(path, rate=16000, **changes):
    """A small SimpleFreeFieldHRIR of a sphere; a change of None leaves a variable out."""
    head = spherical_head(rate, AZIMUTH, ELEVATION)
    radius = np.full(len(AZIMUTH), 1.4)
    spherical = {"Type": "spherical", "Units": "degree, degree, metre"}
    cartesian = {"Type": "cartesian", "Units": "metre"}
    variables = {
        "Data.IR": (head.filters.astype(np.float64), {}),
        "Data.SamplingRate": ([float(rate)], {"Units": "hertz"}),
        "Data.Delay": (np.zeros((1, 2)), {}),
        "SourcePosition": (np.stack([AZIMUTH, ELEVATION, radius], 1), spherical),
        "ListenerPosition": (np.zeros((1, 3)), cartesian),
        "ListenerView": ([[1.0, 0, 0]], cartesian),
        "ListenerUp": ([[0.0, 0, 1]], {}),
        "ReceiverPosition": (np.array([[0, 0.09, 0], [0, -0.09, 0]])[..., None], cartesian),
        **changes,
    }
    convention = variables.pop("convention", "SimpleFreeFieldHRIR")
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = "SOFA"
        file.attrs["SOFAConventions"] = np.bytes_(convention)
        file.attrs["DataType"] = variables.pop("data_type", "FIR")
        for name, variable in variables.items():
            if variable is not None:
                file[name] = np.asarray(variable[0])
                file[name].attrs.update(variable[1])
    return path


def load_one(folder, rate=16000, **options):
    """The only head of a folder."""
    (head,) = load_hrirs(folder, rate, folder.parent / "cache", **options)
    return head


def check_is_the_sphere(head, rate=16000, tolerance=1e-6):
    """Directions and filters are those that `write_sofa` wrote."""
    expected = spherical_head(rate, AZIMUTH, ELEVATION)
    vectors = to_vector(head.azimuth, head.elevation)
    assert np.allclose(vectors, to_vector(AZIMUTH, ELEVATION), atol=1e-7)
    assert head.sample_rate == rate
    assert np.allclose(head.filters, expected.filters, atol=tolerance)


def test_a_sofa_file_becomes_a_head(tmp_path):
    head = read_sofa(write_sofa(tmp_path / "sphere.sofa"))
    check_is_the_sphere(head)
    assert head.name == "sphere" and head.latency == 0
    rendered = head.render(np.random.default_rng(0).standard_normal(16000), 1)
    assert itd(rendered, 16000) == pytest.approx(1e6 * woodworth_itd(30), abs=1)
    assert ild(rendered) > 5  # the left ear, for azimuth + 30


def rotation(azimuth):
    """Turns the world's vectors [..., 3] to the left."""
    c, s = np.cos(np.radians(azimuth)), np.sin(np.radians(azimuth))
    return np.array([[c, s, 0], [-s, c, 0], [0, 0, 1.0]])


@pytest.mark.parametrize("turn", [0, 90, -37])
def test_a_listener_that_is_turned_and_displaced_sees_the_same(tmp_path, turn):
    place = np.array([[1.0, -2.0, 0.5]])
    sources = 1.4 * to_vector(AZIMUTH, ELEVATION) @ rotation(turn) + place
    metres = {"Type": "cartesian", "Units": "metre"}
    view = np.array([[2.0, 0, 0]]) @ rotation(turn)
    path = write_sofa(
        tmp_path / "turned.sofa",
        SourcePosition=(sources, metres),
        ListenerPosition=(np.repeat(place, len(AZIMUTH), 0), metres),
        ListenerView=(view, metres),
    )
    check_is_the_sphere(read_sofa(path))
    degrees = {"Type": "spherical", "Units": "degree, degree, meter"}
    path = write_sofa(
        tmp_path / "degrees.sofa",
        SourcePosition=(sources, metres),
        ListenerPosition=(place, metres),
        ListenerView=([[float(turn), 0, 1]], degrees),
        ListenerUp=([[0.0, 90, 1]], {}),  # its attributes are those of ListenerView
    )
    check_is_the_sphere(read_sofa(path))


def test_ears_are_told_by_their_places(tmp_path):
    head = spherical_head(16000, AZIMUTH, ELEVATION)
    swapped = head.filters[:, ::-1].astype(np.float64)
    ears = np.array([[0, -0.09, 0], [0, 0.09, 0]])[..., None]
    path = tmp_path / "swapped.sofa"
    write_sofa(path, **{"Data.IR": (swapped, {}), "ReceiverPosition": (ears, {})})
    check_is_the_sphere(read_sofa(path))


def test_what_a_file_may_leave_out(tmp_path):
    optional = ["Data.Delay", "ListenerPosition", "ListenerView", "ListenerUp"]
    left_out = dict.fromkeys([*optional, "ReceiverPosition"])
    path = write_sofa(tmp_path / "bare.sofa", data_type=h5py.Empty("S1"), **left_out)
    check_is_the_sphere(read_sofa(path))


@pytest.mark.parametrize("delays", [[[3.0, 0.0]], [[1.5, 4.25]], "each"])
def test_delays_are_applied_to_a_fraction_of_a_sample(tmp_path, delays):
    rng = np.random.default_rng(1)
    delays = rng.uniform(0, 9, (len(AZIMUTH), 2)) if delays == "each" else delays
    path = write_sofa(tmp_path / "late.sofa", **{"Data.Delay": (delays, {})})
    head, plain = read_sofa(path), spherical_head(16000, AZIMUTH, ELEVATION)
    frequency = np.linspace(0, 0.43 * 16000, 100)

    def response(filters, latency):
        time = (np.arange(filters.shape[-1]) - latency) / 16000
        return filters.astype(np.float64) @ np.exp(-2j * np.pi * np.outer(time, frequency))

    late = np.exp(-2j * np.pi * frequency * np.array(delays)[..., None] / 16000)
    expected = response(plain.filters, 0) * late
    assert np.allclose(response(head.filters, head.latency), expected, atol=1e-3)


BAD_SOFA = {
    "SingleRoomSRIR": {"convention": "SingleRoomSRIR"},
    "data of type TF": {"data_type": "TF"},
    r"convention \(none\)": {"convention": ""},
    "has no SourcePosition": {"SourcePosition": None},
    "has no Data.IR": {"Data.IR": None},
    "Data.IR has the shape": {"Data.IR": (np.ones((5, 3, 8)), {})},
    r"\(1, 3\) or \(4, 3\) was expected": {"Data.IR": (np.ones((4, 2, 8)), {})},
    "nan or infinite": {"Data.IR": (np.full((5, 2, 8), np.nan), {})},
    "does not hold numbers": {"Data.SamplingRate": (np.bytes_("fast"), {})},
    "one whole number": {"Data.SamplingRate": ([8000.0, 16000.0], {"Units": "hertz"})},
    "SamplingRate is .* kilohertz": {"Data.SamplingRate": ([44.0], {"Units": "kilohertz"})},
    r"Data.Delay has the shape \(3, 2\)": {"Data.Delay": (np.zeros((3, 2)), {})},
    "from -1 to -1": {"Data.Delay": (np.full((1, 2), -1.0), {})},
    "from 1e.09 to 1e.09": {"Data.Delay": (np.full((1, 2), 1e9), {})},
    "is 'spherical' in 'radian": {
        "SourcePosition": (
            np.ones((5, 3)),
            {"Type": "spherical", "Units": "radian, radian, m"},
        )
    },
    r"SourcePosition has the shape \(5, 2\)": {
        "SourcePosition": (np.ones((5, 2)), {"Type": "cartesian"})
    },
    "middle of the head": {"SourcePosition": (np.zeros((5, 3)), {"Type": "cartesian"})},
    "point the same way": {"ListenerUp": ([[1.0, 0, 0]], {})},
    r"ReceiverPosition has the shape \(1, 3, 1\)": {
        "ReceiverPosition": (np.zeros((1, 3, 1)), {"Type": "cartesian"})
    },
}


@pytest.mark.parametrize("message", BAD_SOFA)
def test_a_bad_sofa_file_is_one_error_that_names_it(tmp_path, message):
    path = write_sofa(tmp_path / "bad.sofa", **BAD_SOFA[message])
    with pytest.raises(UserError, match=message) as error:
        read_sofa(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not HDF5", None])
def test_what_is_no_sofa_file_is_refused(tmp_path, content):
    path = write_sofa(tmp_path / "bad.sofa")
    path.write_bytes(path.read_bytes()[:3000] if content is None else content)
    with pytest.raises(UserError, match="bad.sofa"):
        read_sofa(path)


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    path = write_sofa(tmp_path / "good.sofa")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"unified_se_ss\[sofa\]"):
        read_sofa(path)


@pytest.mark.skipif(not KEMAR.exists(), reason="Debian's libmysofa1 is not installed")
def test_kemar_hears_the_left_first_and_louder(tmp_path):
    (head,) = load_hrirs(KEMAR, 8000, tmp_path)
    signal = np.random.default_rng(0).standard_normal(16000)
    for azimuth, expected in ((30, 273), (60, 512), (90, 702)):
        rendered = head.render(signal, head.nearest(azimuth))
        assert itd(rendered, 8000) == pytest.approx(expected, abs=5)
        assert 5 < ild(rendered) < 15


def cipic_subject(folder, angles=(-80, 0, 45), rate=44100, taps=200):
    """A folder of CIPIC's wavs of a sphere: frames are elevations, channels are taps."""
    folder.mkdir(parents=True)
    polar = -45 + 5.625 * np.arange(50)
    for angle in angles:
        head = spherical_head(rate, *from_interaural_polar(-angle, polar))
        filters = head.filters[..., 100 : 100 + taps]
        for ear, name in enumerate(("left", "right")):
            text = str(angle).replace("-", "neg")
            path = folder / f"{text}az{name}.wav"
            soundfile.write(path, filters[:, ear], rate, "FLOAT")
    return folder


def test_cipics_wavs_become_a_head(tmp_path):
    head = load_one(cipic_subject(tmp_path / "subject_003"), 44100)
    assert head.name == "subject_003" and head.filters.shape == (150, 2, 200)
    left = head.nearest(80.0)  # CIPIC's azimuth -80, elevation 0
    assert head.azimuth[left] == pytest.approx(80) and abs(head.elevation[left]) < 1e-9
    behind = head.nearest(-135.0)  # CIPIC's azimuth 45, elevation 180
    assert head.azimuth[behind] == pytest.approx(-135)
    signal = np.random.default_rng(0).standard_normal(44100)
    for index in (left, behind, head.nearest(0, 90)):
        rendered = head.render(signal, index)
        expected = 1e6 * woodworth_itd(head.azimuth[index], head.elevation[index])
        assert itd(rendered, 44100) == pytest.approx(expected, abs=1)


def test_a_bad_subject_of_cipic_is_refused(tmp_path):
    folder = cipic_subject(tmp_path / "subject_008", angles=(0, 5))
    for message, shape, rate in (
        (r"\(49, 200\)", (49, 200), 44100),
        ("channels .taps.", (50, 100), 44100),
        ("48000 Hz", (50, 200), 48000),
    ):
        soundfile.write(folder / "5azleft.wav", np.zeros(shape), rate)
        with pytest.raises(UserError, match=message):
            load_one(folder, 44100)
    (folder / "5azright.wav").unlink()
    with pytest.raises(UserError, match="azimuth 5 has no file of the right ear"):
        load_one(folder, 44100)


def azimuth_wavs(folder, name="az{}.wav", angles=(-30, 0, 90), sign=1, rate=16000):
    """A folder of stereo wavs of a sphere with their angles in their names."""
    folder.mkdir(parents=True)
    for angle in angles:
        filters = spherical_head(rate, [sign * angle]).filters[0]
        soundfile.write(folder / name.format(angle), filters.T, rate, "FLOAT")
    return folder


def test_azimuth_wavs_become_a_head(tmp_path):
    head = load_one(azimuth_wavs(tmp_path / "dummy"))
    assert head.azimuth.tolist() == [-30, 0, 90] and head.elevation.tolist() == [0, 0, 0]
    assert np.array_equal(head.filters, spherical_head(16000, [-30.0, 0.0, 90.0]).filters)


def test_names_of_ones_own_and_clockwise_angles(tmp_path):
    folder = azimuth_wavs(tmp_path / "rooms", "CATT_0_5s_{}.wav", sign=-1)
    head = load_one(folder, pattern=r"CATT_.*_(?P<azimuth>-?\d+)$", positive="right")
    assert head.azimuth.tolist() == [-90, 0, 30]
    assert np.array_equal(head.filters, spherical_head(16000, [-90.0, 0.0, 30.0]).filters)


def test_elevations_and_angles_beyond_the_half_circle(tmp_path):
    folder = tmp_path / "dummy"
    folder.mkdir()
    for name in ("k_az330_el-10", "k_azneg180", "k_az15.5_el40", "unrelated"):
        soundfile.write(folder / f"{name}.wav", np.ones((4, 2)) / 2, 8000, "FLOAT")
    head = load_one(folder, 8000)
    assert head.azimuth.tolist() == [-30, 15.5, 180]
    assert head.elevation.tolist() == [-10, 40, 0]


def test_bad_azimuth_wavs_are_refused(tmp_path):
    folder = azimuth_wavs(tmp_path / "dummy")
    cases = {
        "direction of az-30": ("az330.wav", np.ones((4, 2)) / 2, 16000),
        "has 1 channel": ("az5.wav", np.ones(4) / 2, 16000),
        "48000 Hz": ("az5.wav", np.ones((4, 2)) / 2, 48000),
        "not finite": ("az5.wav", np.full((4, 2), np.nan), 16000),
    }
    for message, (name, samples, rate) in cases.items():
        soundfile.write(folder / name, samples, rate, "FLOAT")
        with pytest.raises(UserError, match=message):
            load_one(folder)
        (folder / name).unlink()
    for message, options in {
        "no regular expression": {"pattern": "az("},
        "no group": {"pattern": "az"},
        "an angle was expected": {"pattern": "(?P<azimuth>az)"},
        "'left' or 'right'": {"positive": "front"},
    }.items():
        with pytest.raises(UserError, match=message):
            load_one(folder, **options)


@pytest.mark.parametrize(
    "rates", [(44100, 8000), (48000, 16000), (16000, 44100), (8000, 8000)]
)
def test_resampling_keeps_delays_and_levels(rates):
    source, target = rates
    head = resample_hrirs(spherical_head(source, AZIMUTH, ELEVATION), target)
    assert head.sample_rate == target and len(head) == len(AZIMUTH)
    frequency = np.linspace(0, 0.42 * min(rates), 100)[1:]
    time = (np.arange(head.filters.shape[-1]) - head.latency) / target
    response = head.filters.astype(np.float64) @ np.exp(
        -2j * np.pi * np.outer(time, frequency)
    )
    delays = _ear_delays(AZIMUTH, ELEVATION, RADIUS)[..., None]
    response = response * np.exp(2j * np.pi * frequency * delays)
    # The common delay of the latency may be a fraction of a sample off, the same for all.
    between = response / response[:1, :1] / np.abs(response[:1, :1])
    late = 1e6 * np.angle(between) / (2 * np.pi * frequency)
    assert np.abs(late).max() < 0.5  # µs
    level = np.abs(response) / head_shadow(frequency, AZIMUTH, ELEVATION)
    assert np.abs(20 * np.log10(level)).max() < 0.2


def test_heads_are_resampled_once_and_kept(tmp_path, monkeypatch):
    cache, path = tmp_path / "cache", write_sofa(tmp_path / "one.sofa")
    (first,) = load_hrirs(path, 8000, cache)
    with monkeypatch.context() as patched:
        patched.setattr("unified_se_ss.data.hrtf_files.resample_hrirs", None)
        (again,) = load_hrirs(path, 8000, cache)
    assert np.array_equal(first.filters, again.filters)
    assert np.array_equal(first.azimuth, again.azimuth)
    assert (first.name, first.latency) == (again.name, again.latency)
    # What is spoilt is made again, and what comes from another file is another file.
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    for spoilt in (b"", whole[:500], b"PK\x03\x04" + bytes(50)):
        kept.write_bytes(spoilt)
        (mended,) = load_hrirs(path, 8000, cache)
        assert np.array_equal(first.filters, mended.filters)
        assert len(kept.read_bytes()) == len(whole)
    status = os.stat(path)
    quieter = spherical_head(16000, AZIMUTH, ELEVATION).filters.astype(np.float64) / 2
    write_sofa(path, **{"Data.IR": (quieter, {})})
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    (changed,) = load_hrirs(path, 8000, cache)
    assert np.allclose(changed.filters, first.filters / 2, atol=1e-6)


def test_the_users_cache_is_used_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_hrirs(write_sofa(tmp_path / "one.sofa"), 16000)
    assert len(list((tmp_path / "xdg" / "unified_se_ss" / "heads").iterdir())) == 1


def test_every_kind_of_folder_is_recognised(tmp_path):
    cache = tmp_path / "cache"
    (tmp_path / "sofa").mkdir()
    for name in ("b", "a"):
        write_sofa(tmp_path / "sofa" / f"{name}.sofa")
    (tmp_path / "sofa" / "README.txt").write_text("not a head")
    for name in ("subject_003", "subject_008"):
        cipic_subject(tmp_path / "cipic" / name, angles=(0, 80))
    azimuth_wavs(tmp_path / "wavs" / "hats")
    azimuth_wavs(tmp_path / "wavs" / "kemar", angles=(0, 10, 20))
    expected = {"sofa": ["a", "b"], "cipic": ["subject_003", "subject_008"]}
    expected["wavs"] = ["hats", "kemar"]
    for folder, names in expected.items():
        heads = load_hrirs(tmp_path / folder, 8000, cache)
        assert [head.name for head in heads] == names
        assert all(head.sample_rate == 8000 for head in heads)
    assert [h.name for h in load_hrirs(tmp_path / "wavs" / "hats", 8000, cache)] == ["hats"]


def test_a_source_without_heads_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("no head")
    for source, message in {
        "empty": "holds no heads",
        "note.txt": "not a SOFA file",
        "nowhere": "does not exist",
    }.items():
        with pytest.raises(UserError, match=message):
            load_hrirs(tmp_path / source, 8000, tmp_path / "cache")


def named_heads(count):
    """Heads that have names and nothing else of interest."""
    one = (np.zeros(1), np.zeros(1), np.ones((1, 2, 1)))
    return [HRIRSet(f"head-{number:02d}", 8000, *one) for number in range(count)]


@given(
    st.integers(3, 60),
    st.tuples(*[st.integers(0, 30)] * 3),
    st.integers(0, 5),
    st.randoms(),
)
def test_splits_are_disjoint_whole_and_repeatable(count, shares, seed, random):
    if not sum(shares):
        return
    heads = named_heads(count)
    parts = split_hrirs(heads, shares, seed)
    assert sorted(h.name for part in parts.values() for h in part) == [
        h.name for h in heads
    ]
    for part, share in zip(parts.values(), shares):
        assert bool(part) == (share > 0)
        smaller = [len(parts[n]) for n, other in zip(parts, shares) if other < share]
        assert len(part) >= max(smaller, default=0)
    random.shuffle(heads)
    assert split_hrirs(heads, shares, seed) == parts


def test_splits_have_the_sizes_of_cipic_and_follow_the_seed():
    heads = named_heads(45)
    parts, other = split_hrirs(heads), split_hrirs(heads, seed=1)
    assert [len(part) for part in parts.values()] == [27, 9, 9]
    assert {h.name for h in parts["test"]} != {h.name for h in other["test"]}
    with pytest.raises(UserError, match="disjoint"):
        split_hrirs(heads[:2])
