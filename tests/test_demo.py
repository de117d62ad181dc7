"""What the README promises of the demo, by running it (ten minutes)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_brain import assert_same, batches, loader, make, weights

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_demo_separates_and_denoises_held_out_voices(tmp_path):
    command = [
        sys.executable,
        "train.py",
        "hparams/demo.yaml",
        "--output_folder",
        str(tmp_path),
        "--budget_minutes",
        "null",  # all epochs, however busy the machine is
    ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=3600)
    metrics = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    assert metrics["si_snr_i"]["count"] == 60
    assert metrics["si_snr_i"]["mean"] >= 3.0
    assert metrics["se_si_snr_i"]["low"] > 0.0


@pytest.mark.slow
def test_compiled_modules_take_the_same_steps():
    data = batches(4, dtype=torch.float32)
    plain = make(torch.float32)
    compiled = make(torch.float32, compile=True)
    plain.fit([1], loader(data))
    compiled.fit([1], loader(data))
    other = {name.replace("_orig_mod.", ""): v for name, v in weights(compiled).items()}
    assert_same(weights(plain), other, rtol=1e-4, atol=1e-6)
