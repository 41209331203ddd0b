"""What the narrative pages of the book say in code and in numbers is true."""

import re
from pathlib import Path

import browser
import numpy as np
import pytest
import torch
from scipy import stats

import rnlib
from rnlib import other_norms

BOOK = Path(__file__).resolve().parents[2] / "book"
WIDGET = (BOOK / "_static" / "popoviciu.html").read_text()
PAGES = [*BOOK.glob("*.md"), *(BOOK.parent / "notebooks").rglob("*.md")]


def test_the_example_of_a_norm_of_ones_own_works_in_both_modes(monkeypatch):
    monkeypatch.setattr(other_norms, "NORMS", dict(other_norms.NORMS))  # the example adds to it
    (code,) = re.findall(
        r"^```python\n(.*?)^```", (BOOK / "run_again.md").read_text(), re.DOTALL | re.MULTILINE
    )
    exec(code, page := {})
    model, x = page["model"], torch.rand(4, 3, 16, 16)
    model.train()(x).sum().backward()
    for statistics in ("tracked", "batch"):
        with torch.no_grad(), rnlib.use_statistics(model.eval(), statistics):
            assert model(x).isfinite().all()


def test_each_equation_of_the_paper_is_there_once_with_its_own_number():
    text = "".join(page.read_text() for page in PAGES)
    labels = [int(number) for number in re.findall(r"^\(eq-(\d+)\)=$", text, re.MULTILINE)]
    assert sorted(labels) == list(range(1, 15))
    for number in labels:
        following = text.split(f"(eq-{number})=\n")[1]
        assert re.search(r"\\tag\{(\d+)\}", following)[1] == str(number)


def shapes(n):
    """The shapes of the interactive figure at width 1, as its script defines them."""
    i = np.arange(n)
    u = (i + 0.5) / n
    return {
        "two points": np.where(i < n / 2, -1, 1),
        "uniform": np.sqrt(3) * (2 * i / (n - 1) - 1),
        "Gaussian": stats.norm.ppf(u),
        "heavy tail": 0.3 * stats.t(2).ppf(u),
        "one outlier": np.append(0.3 * stats.norm.ppf((i[:-1] + 0.5) / (n - 1)), 4),
    }


@pytest.mark.parametrize("n", [2, 24, 128])
def test_popoviciu_holds_for_the_shapes_of_the_figure_and_is_sharp_for_two_points(n):
    for name, x in shapes(n).items():
        ratio = 4 * x.var() / np.ptp(x) ** 2
        assert ratio <= 1 + 1e-12, name
        assert (ratio > 1 - 1e-12) == (name == "two points" or n == 2), name


def test_without_scripts_the_figure_is_a_table_with_the_right_numbers():
    fallback = re.search(r"<noscript>(.*?)</noscript>", WIDGET, re.DOTALL)[1]
    found = dict(re.findall(r"<tr><th>([\w ]+)</th>((?:<td>[\d.]+</td>)+)</tr>", fallback))
    assert set(found) == set(shapes(24))
    for name, x in shapes(24).items():
        sigma, span = x.std(), np.ptp(x)
        expected = [4 * sigma**2, span**2, 4 * sigma**2 / span**2, sigma, span**0.2, sigma / span**0.2]
        shown = [float(cell) for cell in re.findall(r"[\d.]+", found[name])]
        assert shown == pytest.approx(expected, abs=0.0051), name


def test_the_figure_asks_no_site_for_anything():
    assert set(re.findall(r"https?://[^\s\"']+", WIDGET)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(src|href|import|fetch|XMLHttpRequest)\b\s*[=(]", WIDGET)


@pytest.mark.skipif(not browser.CHROMIUM, reason="needs Chromium, which is not on this machine")
def test_the_figure_follows_the_keyboard(tmp_path):
    (tmp_path / "index.html").write_text(f'<!doctype html><link rel="icon" href="data:,">{WIDGET}')

    def text(tab, name):
        return tab.locator(f"#pv-{name}").text_content()

    with browser.served(tmp_path) as address, browser.browser() as tab:
        assert browser.visit(tab, f"{address}/index.html") == []
        tab.locator("[value=two]").click()
        tab.locator("#pv-p").focus()
        assert "Equality" in text(tab, "verdict")
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.getAttribute('aria-valuenow')") == "-1.00"
        tab.keyboard.press("ArrowRight")
        assert tab.evaluate("document.activeElement.getAttribute('aria-valuenow')") == "-0.95"
        x = np.append(shapes(24)["two points"], -0.95)[1:]
        span, names = np.ptp(x), ["left", "right", "eq12", "eq14"]
        shown = [float(text(tab, name)) for name in names]
        assert shown == pytest.approx([4 * x.var(), span**2, x.std() / span, x.std() / span**0.2], abs=0.0051)
