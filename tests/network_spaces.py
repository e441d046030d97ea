"""Machines of a small cluster, each a network namespace of its own with one link to a common bridge."""

import os
import shutil
import subprocess
from contextlib import ExitStack, contextmanager

_IP, _TC = shutil.which("ip") or "", shutil.which("tc") or ""
_NETWORK = "10.77.0"


class Machines:
    """Namespaces with addresses 10.77.0.1, 10.77.0.2, ... in the order of their names."""

    def __init__(self, names):
        self._prefix = f"kc{os.getpid()}"
        self.addresses = {name: f"{_NETWORK}.{i + 1}" for i, name in enumerate(names)}

    def __enter__(self):
        with ExitStack() as stack:
            hub = self._add_space(stack, "hub")
            self._in(hub, "link", "add", "name", "bridge", "type", "bridge")
            self._in(hub, "link", "set", "dev", "bridge", "up")
            for name, address in self.addresses.items():
                space = self._add_space(stack, name)
                self._in(hub, "link", "add", "name", name, "type", "veth", "peer", "name", "eth0", "netns", space)
                self._in(hub, "link", "set", "dev", name, "master", "bridge", "up")
                self._in(space, "addr", "add", f"{address}/24", "dev", "eth0")
                for device in ("eth0", "lo"):
                    self._in(space, "link", "set", "dev", device, "up")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._stack.close()

    def command(self, name, arguments):
        """Return a command that runs on a machine."""
        return [_IP, "netns", "exec", self._space(name), *arguments]

    def cut(self, name):
        """Pull the plug: packets vanish, no connection is closed."""
        self._in(self._space("hub"), "link", "set", "dev", name, "down")

    def mend(self, name):
        """Put the plug back."""
        self._in(self._space("hub"), "link", "set", "dev", name, "up")

    @contextmanager
    def slow(self, name, rate):
        """Let no more than ``rate`` through to a machine, such as ``256kbit``."""
        device = [_TC, "qdisc", "{}", "dev", name, "root"]
        shape = ["tbf", "rate", rate, "burst", "16kb", "latency", "400ms"]
        self._run(*self.command("hub", [part.format("add") for part in device]), *shape)
        try:
            yield
        finally:
            self._run(*self.command("hub", [part.format("del") for part in device]))

    def _space(self, name):
        return f"{self._prefix}-{name}"

    def _add_space(self, stack, name):
        self._run(_IP, "netns", "add", self._space(name))
        stack.callback(self._run, _IP, "netns", "del", self._space(name))
        return self._space(name)

    def _in(self, space, *arguments):
        self._run(_IP, "-netns", space, *arguments)

    def _run(self, *command):
        subprocess.run(command, check=True, capture_output=True)


def why_not():
    """Return why there can be no machines here, or an empty string."""
    if os.geteuid() != 0 or not _IP or not _TC:
        return "needs root, ip and tc to make networks"
    try:
        with Machines(["a"]) as machines, machines.slow("a", "1mbit"):
            return ""
    except subprocess.CalledProcessError as error:
        return f"no right to make networks: {error.stderr.decode().strip()}"
