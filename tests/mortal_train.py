"""train.py under torchrun, of which one process dies in its first life.

torchrun ... mortal_train.py STEP train.py HPARAMS.yaml ...    rank 1 is killed at that step
"""

import os
import runpy
import sys
from pathlib import Path

from faults import install, kill

if __name__ == "__main__":
    step, script = int(sys.argv[1]), sys.argv[2]
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        install("unified_se_ss.training.brain:TwoTaskBrain.optimizers_step", kill, step)
    sys.argv = sys.argv[2:]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")
