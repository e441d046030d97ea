"""A headless Chromium that opens a page and tells what is on it."""

import json
import re
import shutil
import subprocess
import tempfile
import urllib.request

import pytest
import websocket

from tests.prefect_server import kill_tree


class Browser:
    """Chromium, spoken to over its own protocol (DevTools)."""

    def __enter__(self):
        program = shutil.which("chromium") or shutil.which("chromium-browser")
        if program is None:
            pytest.skip("Chromium is not installed (apt-get install chromium)")
        self._profile = tempfile.TemporaryDirectory(prefix="kconn-chromium-", ignore_cleanup_errors=True)
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        place = ["--remote-debugging-port=0", f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen(
            [program, *options, *place], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for line in self._process.stderr:
            found = re.search(r"DevTools listening on ws://([^/]+)/", line)
            if found:
                self._address = found[1]
                return self
        raise AssertionError("Chromium did not start")

    def __exit__(self, *_):
        kill_tree(self._process)
        self._process.stderr.close()
        self._profile.cleanup()

    def open(self, url):
        """Open a page of its own and return it."""
        request = urllib.request.Request(f"http://{self._address}/json/new?{url}", method="PUT")
        with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310 - loopback
            return Page(json.load(reply)["webSocketDebuggerUrl"])


class Page:
    """A page that is open."""

    def __init__(self, address):
        self._socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self._n_asked = 0

    def evaluate(self, expression):
        """Return the value of a JavaScript expression; None while the page cannot tell."""
        self._n_asked += 1
        parameters = {"expression": expression, "returnByValue": True}
        self._socket.send(json.dumps({"id": self._n_asked, "method": "Runtime.evaluate", "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._n_asked:
                return answer.get("result", {}).get("result", {}).get("value")

    def text(self):
        """Return what a person reads."""
        return self.evaluate("document.body.innerText") or ""

    def close(self):
        """Close the connection to the page."""
        self._socket.close()
