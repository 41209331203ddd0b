"""Pages: where they link, what headless Chromium complains about, what they fetch, who cannot use them."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
LOADED = {"link": "href", "object": "data"} | dict.fromkeys(("script", "img", "iframe", "video"), "src")
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


class Links(HTMLParser):
    """What a page links to, loads at once, and can be linked at."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors = {""}
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif found.get(LOADED.get(tag, "")):
            self.loads.append(found[LOADED[tag]])


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


@contextmanager
def browser(**options: object) -> Iterator[Page]:
    """A tab of a fresh Chromium, which can resolve no name, so that nothing leaves the machine.

    ``options`` are those of ``playwright.sync_api.Browser.new_page``, such as ``viewport``.
    """
    rules = ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=rules)
        yield chromium.new_page(**options)
        chromium.close()


def visit(tab: Page, address: str, *, settle: int = 300) -> list[str]:
    """Open a page, let it settle (milliseconds), and return the complaints about it."""
    found: list[str] = []
    own = ("/".join(address.split("/")[:3]), "data:", "blob:")

    def add(what: str, wrong: bool = True) -> None:
        found.extend([what] * wrong)

    listeners = {
        "request": lambda one: add(f"request to {one.url}", not one.url.startswith(own)),
        "requestfailed": lambda one: add(f"failed to load: {one.url} {one.failure}"),
        "response": lambda one: add(f"{one.status} for {one.url}", one.status >= 400),
        "console": lambda one: add(f"console: {one.text}", one.type in ("error", "assert")),
        "pageerror": lambda one: add(f"exception: {one}"),
    }
    for event, listener in listeners.items():
        tab.on(event, listener)  # type: ignore[call-overload]
    tab.goto(address)
    tab.wait_for_timeout(settle)
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    return found


def barriers(tab: Page, theme: Literal["light", "dark"]) -> list[str]:
    """What of WCAG A and AA the page that is open breaks: a rule, an element and the reason each.

    In the dark only what depends on colours.
    """
    tab.emulate_media(color_scheme=theme, reduced_motion="reduce")  # colours that fade are measured at once
    which = (
        {"type": "tag", "values": WCAG}
        if theme == "light"
        else {"type": "rule", "values": ["color-contrast"]}
    )
    found = Axe().run(tab, options={"runOnly": which, "resultTypes": ["violations"]}).response["violations"]
    return [
        f"{theme}: {one['id']}: {node['html'][:200]}: {node['failureSummary']}"
        for one in found
        for node in one["nodes"]
    ]
