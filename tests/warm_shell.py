"""The shell in processes that start at once and can be killed at any call that changes a file.

`WarmShell` starts this file as a server that has imported what `kconn run` imports. For every command it forks a child
in a session of its own, so that a test pays for the command and not for the imports.
"""

import importlib
import io
import json
import mmap
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_WRITING = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended: its exit code, or minus the signal; what it wrote; how many calls changed a file."""

    code: int
    out: str
    err: str
    n_calls: int
    seconds: float

    @property
    def n_kept(self):
        return count_kept(self.out)


def count_kept(out):
    """Return how many results `kconn run` says it found already there."""
    if "nothing to do: all " in out:
        return int(out.split("nothing to do: all ")[1].split()[0])
    return sum(map(int, re.findall(r"\((\d+) already there", out)))


class WarmShell:
    """Runs `kconn` commands in forks of one process that is already warm."""

    def __enter__(self):
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        return self

    def __exit__(self, *_):
        self._server.communicate(timeout=60)

    def __call__(
        self,
        *arguments,
        function="kconn.cli:main",
        kill_at_call=None,
        signal_after=None,
        signal_number=signal.SIGKILL,
        patches=None,
    ):
        """Run a command; kill it at its n-th call that changes a file, or send a signal after some seconds."""
        request = {
            "arguments": [str(argument) for argument in arguments],
            "function": function,
            "kill_at_call": kill_at_call,
            "signal_after": signal_after,
            "signal_number": int(signal_number),
            "patches": patches or {},
        }
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return Ended(**json.loads(self._server.stdout.readline()))


def _serve():
    for module in ("cli", "study.workbench", "execution", "progress", "report.study"):
        importlib.import_module(f"kconn.{module}")
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_run(json.loads(line))) + "\n")
        sys.stdout.flush()


def _run(request):
    counter = mmap.mmap(-1, 8)
    out, err = os.memfd_create("out"), os.memfd_create("err")
    module, function = request["function"].split(":")
    call = getattr(importlib.import_module(module), function)
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(out, 1)
        os.dup2(err, 2)
        os._exit(_child(call, request, counter))
    if request["signal_after"] is not None:
        time.sleep(request["signal_after"])
        os.kill(child, request["signal_number"])
    status = os.waitpid(child, 0)[1]
    return {
        "code": os.waitstatus_to_exitcode(status),
        "out": _content(out),
        "err": _content(err),
        "n_calls": int.from_bytes(counter[:8], "little"),
        "seconds": time.monotonic() - start,
    }


def _child(call, request, counter):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal, also where the tests run without one
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
    try:
        for name, value in request["patches"].items():
            module, attribute = name.rsplit(".", 1)
            setattr(sys.modules[module], attribute, value)
        sys.addaudithook(_hook(counter, request["kill_at_call"]))
        return int(call(request["arguments"]) or 0)
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:  # noqa: BLE001 - what the product let through is what the tests look for
        traceback.print_exc()
        return 99


def _hook(counter, kill_at_call):
    n_calls = 0

    def hook(event, arguments):
        nonlocal n_calls
        if event in _WRITING or (event == "open" and _writes(*arguments)):
            n_calls += 1
            counter[:8] = n_calls.to_bytes(8, "little")
            if n_calls == kill_at_call:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def _writes(path, _mode, flags):
    return isinstance(path, str | bytes) and isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def _content(descriptor):
    with io.FileIO(descriptor) as file:
        file.seek(0)
        return file.read().decode()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    _serve()
