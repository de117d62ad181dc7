"""RecipeBrain: a recipe of one task, from its rows to the log and the best checkpoint."""

from speechbrain.nnet.schedulers import LinearScheduler
from toy_recipe import fit, toy

from unified_se_ss.training import TrainLog


def test_a_recipe_of_one_task_learns_logs_and_keeps_its_best(tmp_path, capsys):
    schedule = LinearScheduler(1e-3, 1e-4, 2)
    brain, _ = toy(tmp_path, granularity="parameter", lr_scheduler=schedule)
    fit(brain)
    rows = TrainLog(tmp_path).rows
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[-1]["valid_loss"] < rows[0]["valid_loss"]
    assert rows[-1]["valid_score"] == -rows[-1]["valid_loss"]
    assert rows[0]["lr"] > rows[1]["lr"]
    assert "conflict_rate" not in rows[0]
    best = brain.checkpointer.find_checkpoint(max_key="score")
    assert best.meta["score"] == max(row["valid_score"] for row in rows)
    assert "Epoch 2: validation score" in capsys.readouterr().out
    assert (tmp_path / "curves.png").stat().st_size
