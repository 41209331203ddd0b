"""Load pages in headless Chromium and report what it complains about and what it fetches from other sites."""

import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
QUIET = (
    "--headless --disable-gpu --no-sandbox --no-first-run --disable-background-networking --disable-sync "
    "--disable-component-update --disable-quic --disable-dev-shm-usage --remote-debugging-port=0 "
    "--remote-allow-origins=*"
).split()


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, *message: object) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Address of a server of the folder, on the loopback interface."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Browser:
    """One tab of a headless Chromium, driven by the DevTools protocol."""

    def __init__(self, port: int):
        self.last = 0
        self.events: list[dict[str, Any]] = []
        self.socket = websocket.create_connection(_tab(port), timeout=60)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """Send a command and wait for its answer; events that come first are kept."""
        self.last += 1
        self.socket.send(json.dumps({"id": self.last, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.last:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def visit(self, address: str, *, settle: float = 0.3) -> list[str]:
        """Open a page, wait until it has loaded and settled, and return the complaints about it."""
        self.events.clear()
        self.call("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self.socket.recv()))
        time.sleep(settle)
        self.call("Runtime.evaluate", expression="1")
        site = "/".join(address.split("/")[:3])
        return [complaint for event in self.events if (complaint := _complaint(event, site))]


def _complaint(event: dict[str, Any], site: str) -> str | None:
    params = event["params"]
    match event["method"]:
        case "Network.requestWillBeSent" if not params["request"]["url"].startswith((site, "data:", "blob:")):
            return f"request to {params['request']['url']}"
        case "Network.loadingFailed" if not params.get("canceled"):
            return f"failed to load: {params['errorText']}"
        case "Network.responseReceived" if params["response"]["status"] >= 400:
            return f"{params['response']['status']} for {params['response']['url']}"
        case "Runtime.exceptionThrown":
            return f"exception: {params['exceptionDetails']}"
        case "Runtime.consoleAPICalled" if params["type"] in ("error", "assert"):
            return f"console: {params['args']}"
        case "Log.entryAdded" if params["entry"]["level"] == "error":
            return f"log: {params['entry']['text']} {params['entry'].get('url', '')}"
    return None


def _tab(port: int) -> str:
    """Address of the first tab's DevTools socket."""
    with urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
        return next(tab["webSocketDebuggerUrl"] for tab in json.load(answer) if tab["type"] == "page")


@contextmanager
def browser() -> Iterator[Browser]:
    """A fresh Chromium with an empty profile; it can resolve no name, so nothing leaves the machine."""
    assert CHROMIUM, "no Chromium on this machine"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = [f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
        command = [CHROMIUM, *QUIET, *options, "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            started = Path(profile, "DevToolsActivePort")
            for _ in range(300):
                if started.exists() and started.read_text().count("\n"):
                    break
                time.sleep(0.1)
            yield Browser(int(started.read_text().split()[0]))
        finally:
            process.terminate()
            process.wait(timeout=30)
