"""Runs of train.py that can be killed, cheaply: a process that has imported all forks them.

As a script it serves: each line of stdin is a request, and each gets a line of answer.
"""

import contextlib
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

from running import draw_nothing

ROOT = Path(__file__).parent.parent


class Server:
    """Starts runs in a process of its own, one after the other.

    Used as a context manager.
    """

    @staticmethod
    def environment():
        places = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": places}

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment(),
        )
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    @staticmethod
    def run_once(request, launcher):
        """Run a request by a launcher (``-m torch.distributed.run …``); its exit code."""
        done = subprocess.run(
            [sys.executable, *launcher, __file__, json.dumps(request, default=str)],
            env=Server.environment(),
            capture_output=True,
            timeout=300,
            check=False,
        )
        return done.returncode

    def run(self, arguments, log, faults=(), signals=()):
        """Run a script to its end, and give the code that it left with.

        Arguments
        ---------
        arguments : list
            The script and its arguments.
        log : Path
            Gets what is printed; appended to.
        faults : list of dict
            `where` ("module:attribute") is replaced by a function that does `what`, with
            `options`, at its call number `call`; see FAULTS.
        signals : list of (float, int)
            Seconds of CPU time, which do not depend on what else the machine does, and
            the signal that is sent then.

        Returns
        -------
        int
            Negative if a signal ended it. What it took of the CPU is in ``seconds``.
        """
        request = {
            "arguments": [str(argument) for argument in arguments],
            "log": str(log),
            "faults": list(faults),
            "signals": list(signals),
        }
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.seconds = answer["seconds"]
        return answer["code"]


def kill(_function, *_, **__):
    """What the machine does when the power fails."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after(function, *arguments, **options):
    """Just after it was done."""
    function(*arguments, **options)
    kill(function)


def truncate_and_kill(function, *arguments, **options):
    """In the middle of a file: of `torch.save(what, path)`."""
    function(*arguments, **options)
    path = Path(arguments[1])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    kill(function)


def interrupt(function, *arguments, **options):
    """What Ctrl-C sends."""
    os.kill(os.getpid(), signal.SIGINT)
    return function(*arguments, **options)


def terminate(function, *arguments, **options):
    """What a scheduler sends."""
    os.kill(os.getpid(), signal.SIGTERM)
    return function(*arguments, **options)


def fill_the_disk(function, *arguments, **options):
    """What a write gets when there is no room."""
    raise OSError(28, "No space left on device")


FAULTS = {
    function.__name__: function
    for function in (
        kill,
        kill_after,
        truncate_and_kill,
        interrupt,
        terminate,
        fill_the_disk,
    )
}


def install(where, what, call, rank=None):
    """Have the call number `call` of a function do something else, on one rank or on all."""
    if rank not in (None, int(os.environ.get("RANK", 0))):
        return
    module, _, attribute = where.partition(":")
    owner = importlib.import_module(module)
    *path, name = attribute.split(".")
    for part in path:
        owner = getattr(owner, part)
    function, calls = getattr(owner, name), 0

    def counted(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == call:
            return FAULTS[what](function, *arguments, **options)
        return function(*arguments, **options)

    setattr(owner, name, counted)


def child(request):
    """The run itself; does not return."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        draw_nothing()
        for fault in request["faults"]:
            install(**fault)
        sys.argv = request["arguments"]
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def serve():
    """Answer requests until there are no more."""
    import torch  # noqa: F401

    import unified_se_ss.training  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(request)
        seconds, signals = 0.0, sorted(request["signals"])
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            seconds = _cpu_seconds(pid)
            while signals and signals[0][0] <= seconds:
                os.kill(pid, signals.pop(0)[1])
            time.sleep(0.005)
        _, status = os.waitpid(pid, 0)
        answer = {"code": os.waitstatus_to_exitcode(status), "seconds": seconds}
        print(json.dumps(answer), flush=True)


def _cpu_seconds(pid):
    """CPU time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(json.loads(sys.argv[1]))
    serve()
