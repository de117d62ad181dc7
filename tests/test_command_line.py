"""``python -m unified_se_ss``."""

import pytest
from broken_data import broken_tree
from librimix import make_tree

from unified_se_ss.__main__ import main


def test_check_says_what_is_in_a_folder(tmp_path, capsys):
    tree = make_tree(tmp_path, counts=(4, 2, 1))
    assert main(["check", str(tree), "--manifests", str(tmp_path / "manifests")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.pop().startswith("faults none")
    assert [line.split()[:3] for line in lines] == [
        ["train", "4", "mixtures,"],
        ["dev", "2", "mixtures,"],
        ["test", "1", "mixtures,"],
    ]
    assert len(list((tmp_path / "manifests").glob("*.csv"))) == 3


def test_check_names_the_fault(tmp_path, capsys):
    tree, wanted = broken_tree(tmp_path)
    assert main(["check", str(tree), "--manifests", str(tmp_path / "manifests")]) == 1
    printed = capsys.readouterr().out
    for kind, subset, item in wanted:
        assert f"({subset} {item})" in printed and f"{kind}: " in printed
    assert not (tmp_path / "manifests").exists()
    assert main(["check", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err


def test_a_demo_corpus_never_replaces_what_is_there(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("my only copy")
    assert main(["demo-corpus", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "my only copy"


def test_help_helps(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "demo-corpus" in capsys.readouterr().out
