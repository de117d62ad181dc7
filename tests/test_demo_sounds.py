"""Voices and noises of the demo: subsets apart, made once, the same each time."""

import numpy as np
import pytest

from unified_se_ss.data import audio
from unified_se_ss.data.demo import array_sounds
from unified_se_ss.data.demo.array_sounds import SUBSETS, prepare_demo_sounds
from unified_se_ss.data.demo.speakers import cast_voices
from unified_se_ss.errors import UserError

pytest.importorskip("espeakng_loader")


@pytest.fixture(autouse=True)
def few_voices(monkeypatch):
    """One timbre in each subset, and babble of a sentence of each voice."""

    def few(seed):
        casts = cast_voices(seed)
        return {s: cast._replace(talkers=cast.talkers[:1]) for s, cast in casts.items()}

    monkeypatch.setattr(array_sounds, "cast_voices", few)
    monkeypatch.setattr(array_sounds, "_BABBLE_SENTENCES", 1)


FIRST = (("train", 1), ("dev", 0))  # sorted by name, babble comes before
SMALL = {"n_noises": (4, 1, 1), "sentences": 1, "workers": 1}


def test_subsets_share_nothing_and_are_made_once(tmp_path):
    sounds = prepare_demo_sounds(tmp_path / "a", **SMALL)
    speakers = {s: _attribute(sounds[s].speech, "speaker") for s in SUBSETS}
    for one in SUBSETS:
        for other in set(SUBSETS) - {one}:
            assert not speakers[one] & speakers[other]
    assert [len(sounds[subset].noise) for subset in SUBSETS] == [4, 1, 1]
    kinds = [item.id.split("-")[0] for item in sounds["train"].noise.items]
    assert sorted(kinds) == ["babble", "coloured", "hum", "modulated"]
    again = prepare_demo_sounds(tmp_path / "a", **SMALL)
    assert again["dev"] == sounds["dev"]
    other = prepare_demo_sounds(tmp_path / "b", **{**SMALL, "workers": 2})
    for one, two in zip(sounds["test"].speech.items, other["test"].speech.items):
        ours, theirs = (audio.read(item.paths["speech"])[0] for item in (one, two))
        np.testing.assert_array_equal(ours, theirs)
        assert one.sample_rate == 16000 and not audio.is_silent(ours)
    # The first noise of each is of one kind, but another noise.
    first = [audio.read(sounds[s].noise.items[n].paths["noise"])[0] for s, n in FIRST]
    assert not np.array_equal(*first)
    with pytest.raises(UserError, match="is no demo's sounds"):
        prepare_demo_sounds(tmp_path, **SMALL)


def test_wrong_values_are_refused(tmp_path):
    for options, message in (
        ({"n_noises": (1, 2)}, "n_noises: is .1, 2., but numbers from 1"),
        ({"sentences": 0}, "sentences: is 0"),
    ):
        with pytest.raises(UserError, match=message):
            prepare_demo_sounds(tmp_path, **options)
    assert not any(tmp_path.iterdir())


def _attribute(manifest, name):
    return {item.attributes[name] for item in manifest.items}
