"""The audit finds every fault, names it once, and finds nothing where there is none."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from broken_data import broken_tree
from librimix import make_tree
from manifests import manifest_of

from unified_se_ss.data.audit import KINDS, audit
from unified_se_ss.data.corpora import collect_errors
from unified_se_ss.data.corpora.mixtures import prepare_librimix
from unified_se_ss.data.manifest import read_manifest
from unified_se_ss.errors import UserError


def manifests_of(tree, folder):
    paths = prepare_librimix(tree, folder)
    return [(subset, read_manifest(path, tree).items) for subset, path in paths.items()]


def test_nothing_is_found_where_nothing_is_wrong(tmp_path):
    found = audit(manifests_of(make_tree(tmp_path), tmp_path / "manifests"))
    assert found.findings == [] and not found.failed
    assert found.items == {"train": 6, "dev": 3, "test": 3}
    assert found.files["train"] == 24
    assert found.seconds["dev"] == pytest.approx((3 * 4000 + 3 * 160) / 8000)


def test_every_fault_is_found(tmp_path):
    tree, wanted = broken_tree(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        manifests_of(tree, tmp_path / "strict")
    assert not (tmp_path / "strict").exists()
    with collect_errors() as bad:
        manifests = manifests_of(tree, tmp_path / "manifests")
    found = audit(manifests, bad)
    assert {(f.kind, f.subset, f.item) for f in found.findings} == wanted
    assert len(found.findings) == len(wanted) and found.failed
    assert {f.severity for f in found.findings} == {"failed", "warning"}
    for finding in found.findings:
        assert finding.item in finding.file and finding.severity == KINDS[finding.kind]
    # What could be used stands in the manifests, and nothing else does.
    train = dict(manifests)["train"]
    assert [item.id for item in train] == [f"train-360-{n}" for n in (4, 5, 6, 7)]


def test_names_tell_of_utterances_and_speakers_in_two_subsets(tmp_path):
    ids = {
        "train": ["61-70968-0000_8455-210777-0012", "61-70968-0001_121-123859-0002"],
        "test": ["8455-210777-0012_672-122797-0003", "61-1-0009_999-1-0009"],
    }
    rng, subsets = np.random.default_rng(0), []
    for subset, names in ids.items():
        signals = {name: {"mixture": 0.1 * rng.uniform(-1, 1, 8000)} for name in names}
        subsets.append((subset, manifest_of(tmp_path, signals).items))
    found = audit(subsets)
    told = {(f.kind, f.detail.split(" is in ")[0]) for f in found.findings}
    assert told == {
        ("duplicated", "the utterance 8455-210777-0012"),
        ("same speaker", "the speaker 8455"),
        ("same speaker", "the speaker 61"),
    }


def test_faults_of_single_files(tmp_path):
    signals = dict(zip("abcdefg", 0.1 * np.random.default_rng(0).uniform(-1, 1, (7, 8000))))
    manifest = manifest_of(tmp_path, {name: {"speech": s} for name, s in signals.items()})
    place = {item.id: item.paths["speech"] for item in manifest.items}
    soundfile.write(place["d"], signals["d"], 16000)
    soundfile.write(place["e"], np.stack([signals["e"]] * 2, 1), 8000)
    signals["f"][77] = np.nan
    soundfile.write(place["f"], signals["f"], 8000, "FLOAT")
    Path(place["g"]).write_text("no sound")
    found = {f.item: f for f in audit([("train", manifest.items)]).findings}
    wanted = {
        "d": ("mismatched", "16000 Hz"),
        "e": ("mismatched", "2 channel"),
        "f": ("unreadable", "NaN"),
        "g": ("unreadable", "corrupt"),
    }
    assert found.keys() == wanted.keys()
    for name, (kind, words) in wanted.items():
        assert found[name].kind == kind and words in found[name].detail
