"""The book as one PDF, printed by Chromium: ``python -m study.pdf``, after ``python -m study.book``."""

import os
import shutil
import sys

from playwright.sync_api import sync_playwright

from study import book

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def main() -> None:
    """Write ``_build/book.pdf``: all pages as one, by the print rules of ``book.css``."""
    source, single, pdf = (book.BUILD / name for name in ("source", "single", "book.pdf"))
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if not chromium or not source.exists():
        sys.exit(f"needs a book (make book), and one of {', '.join(NAMES)} on the PATH")
    with book.stage("all pages as one") as show:
        options = ("-b", "singlehtml", "-d", book.BUILD / "doctrees")
        book.run("sphinx-build", *options, source, single, log="single.log", show=show)
    with book.stage("printing"), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        page = browser.new_page()
        page.goto((single / "index.html").as_uri(), timeout=0)
        page.wait_for_function("!window.MathJax || MathJax.startup.promise.then(() => true)", timeout=0)
        page.pdf(path=pdf, prefer_css_page_size=True, outline=True, tagged=True)
        browser.close()
    print(f"Open {os.path.relpath(pdf)}.")


if __name__ == "__main__":
    main()
