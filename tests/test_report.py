"""The report is one safe file that says what was measured and what was not."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from vgjax.config import ConfigError
from vgjax.evaluation import plots
from vgjax.evaluation.metrics import PACKAGE_DIR
from vgjax.evaluation.report import SECTIONS, ControlRow, FactorMaps, Pair, Report, SwapGrid, render, write_report

EVIL = "<script>alert('x')</script> \"quoted\" & <img src=http://example.org/x onerror=y>"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Every element with its attributes, and the text of each section; an unbalanced tag fails."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.elements, self.section, self.texts = [], [], "", {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self.section = dict(attrs)["id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "section":
            self.section = ""

    def handle_data(self, data):
        self.texts[self.section] = self.texts.get(self.section, "") + data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def image(side=8, value=120):
    return np.full((side, side, 3), value, np.uint8)


def full_report(text="a small lesion"):
    anatomy = np.zeros((8, 8, 3), np.float32)
    anatomy[:2, :, 0] = anatomy[2:, :, 2] = 1
    steps = np.arange(1000)
    return Report(
        title=text,
        config={text: text, "rate": 1e-4},
        provenance={"command": text, "commit": "0123456789abcdef-dirty", "seed": 3, "versions": {"jax": text}},
        metrics={"control/accuracy_mean": 0.834, text: 1.0},
        notes=[text, "Perceptual term off."],
        loss_curves={
            text: {"train/loss": (steps, np.exp(-steps / 9.0)), "validation/loss": ([0], [1]), text: ([0], [1])}
        },
        real_vs_generated=[
            Pair(text, image(), image(), {text: (text, text), "blur": ("none", "strong"), "tint": ("", "warm")}),
            Pair("no real one", None, image(), {}),
        ],
        factor_maps=[FactorMaps(image(), None, np.ones((8, 8)), anatomy, image())],
        swap_grid=SwapGrid([text, "b"], [text, "d", "e"], np.zeros((2, 3, 8, 8, 3), np.uint8)),
        control=[
            ControlRow(text, text, 0.92, 0.2, 0.95, 64, (0.8, 0.95)),
            ControlRow("blur", "modality", 0.35, 0.3, None, 40),
        ],
    )


def test_every_section_comes_in_reading_order_with_its_content():
    page = Page(render(full_report()))
    assert [attributes["id"] for attributes in page.all("section")] == list(SECTIONS)
    assert not any("Not measured" in text or "not recorded" in text for text in page.texts.values())
    head = page.texts[""]
    assert "83\u202f%" in head and "40–64" in head and "0123456789ab-dirty" in head and "2 notes" in head
    assert "✗ blur: strong, asked none" in page.texts["pictures"] and "tint: warm, not said" in page.texts["pictures"]
    assert "no real one" in page.texts["pictures"] and "no real one" not in page.texts["pairs"]
    assert "92\u202f%80–95\u202f%20\u202f%95\u202f%0.9064" in page.texts["control"]
    assert "0 · 25\u202f%" in page.texts["stage1"] and "2 · 75\u202f%" in page.texts["stage1"]
    assert "Perceptual term off." in page.texts["notes"] and "0.0001" in page.texts["provenance"]


def test_an_empty_report_says_what_was_not_measured():
    page = Page(render(Report("nothing")))
    for name in ("pictures", "swap", "control", "pairs", "stage1", "losses"):
        assert page.texts[name] == SECTIONS[name] + "Not measured in this run."
    assert "Mean control accuracy: not measured in this run." in page.texts[""] and not page.all("dl")
    assert page.texts["provenance"].count("not recorded") == 3 and not page.all("img")


def test_outside_text_is_escaped_wherever_it_is_shown():
    text = render(full_report(EVIL))
    page = Page(text)
    assert not page.all("script") and "<script" not in text
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert all("http" not in attributes["src"] for attributes in page.all("img"))
    for name in SECTIONS:
        assert "<script>alert('x')</script>" in page.texts[name] or name == "stage1"


def test_nothing_is_fetched_and_every_picture_is_described():
    text = render(full_report())
    page = Page(text)
    assert not re.search(r"https?://|url\(|@import|<link|<script|<iframe", text)
    assert "default-src 'none'" in page.all("meta")[1]["content"]
    images = page.all("img")
    assert images and all(attributes["src"].startswith("data:image/png;base64,") for attributes in images)
    assert all(attributes["alt"].strip() for attributes in images)
    assert all(attributes["aria-label"].strip() for attributes in page.all("svg"))
    assert len(page.all("caption")) == len(page.all("table")) > 0
    links = {attributes["href"].removeprefix("#") for attributes in page.all("a")}
    assert links <= {attributes.get("id") for _, attributes in page.elements}


def test_picture_keeps_pixels_and_enlarges_by_a_whole_factor():
    shown = np.random.default_rng(0).integers(0, 256, (10, 20, 3), np.uint8)
    (attributes,) = Page(plots.picture(shown, "x", "here", shown=128)).all("img")
    read = np.asarray(Image.open(io.BytesIO(base64.b64decode(attributes["src"].split(",")[1]))))
    np.testing.assert_array_equal(read, shown)
    assert (attributes["width"], attributes["height"], attributes["class"]) == ("120", "60", "pixel")
    (large,) = Page(plots.picture(image(1000), "x", "here", shown=128)).all("img")
    assert large["width"] == "128" and "class" not in large
    assert Image.open(io.BytesIO(base64.b64decode(large["src"].split(",")[1]))).size == (plots.MAX_SIDE,) * 2


def test_swap_grid_puts_the_anatomy_of_the_row_beside_the_modality_of_the_column():
    pictures = np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1, 1) * np.ones((1, 1, 4, 4, 3), np.uint8)
    page = Page(render(Report("swap", swap_grid=SwapGrid(["r0", "r1"], ["c0", "c1", "c2"], pictures))))
    for index, attributes in enumerate(page.all("img")):
        assert attributes["alt"] == f"Anatomy from: r{index // 3}. Modality from: c{index % 3}."
        read = np.asarray(Image.open(io.BytesIO(base64.b64decode(attributes["src"].split(",")[1]))))
        assert (read == index).all()


@pytest.mark.parametrize(
    ("accuracy", "on_real", "interval", "verdict"),
    [
        (0.90, 0.95, (0.8, 0.95), "follows"),
        (0.70, 0.95, (0.6, 0.8), "partly"),
        (0.40, None, None, "weakly"),
        (0.27, None, None, "near chance"),
        (0.60, 0.95, (0.2, 0.9), "near chance"),
        (0.05, 0.95, (0.0, 0.1), "below chance"),
        (0.90, 0.40, (0.8, 0.95), "not judged"),
    ],
)
def test_verdict(accuracy, on_real, interval, verdict):
    row = ControlRow("size", "anatomy", accuracy, 0.2, on_real, 64, interval)
    assert row.verdict == verdict
    assert row.score == pytest.approx((accuracy - 0.2) / 0.8)
    assert f">{verdict}</td>" in render(Report("x", control=[row]))


def test_headline_falls_back_on_the_mean_of_the_rows():
    rows = [ControlRow("a", "anatomy", 0.9, 0.5, None, 10), ControlRow("b", "anatomy", 0.6, 0.1, None, 10)]
    head = Page(render(Report("x", control=rows))).texts[""]
    assert "mean control accuracy75\u202f%" in head and "by guessing30\u202f%" in head


def test_curves_keep_spikes_break_at_nan_and_turn_logarithmic():
    values = np.ones(5000)
    values[1234] = 7.0
    chart = plots.curve_chart("loss", [("", np.arange(5000), values)])
    heights = [float(point) for point in re.findall(r"[ML][\d.]+ ([\d.]+)", re.search(r'd="(M[^"]*L[^"]*)"', chart)[1])]
    assert len(heights) <= plots.MAX_POINTS and sum(height < max(heights) for height in heights) == 1
    broken = plots.curve_chart("loss", [("", [0, 1, 2, 3, 4], [1, 2, float("nan"), 2, 1])])
    assert re.search(r'class="curve c0" d="([^"]*)"', broken)[1].count("M") == 2
    assert "log scale" in plots.curve_chart("kl", [("", [0, 1], [1000.0, 0.1])])
    assert "log scale" not in chart and "no finite value" in plots.curve_chart("x", [("", [0], [float("nan")])])
    Page(plots.curve_chart("flat", [("train", [5], [0.0])]))


def test_masks_and_factor_maps_are_drawn_in_the_right_place():
    np.testing.assert_array_equal(plots.gray(np.array([[0, 1]], np.uint8)), [[0, 255]])
    np.testing.assert_array_equal(plots.gray(np.array([[0, 255]], np.uint8)), [[0, 255]])
    np.testing.assert_array_equal(plots.gray(np.array([[0.2, 7.0, np.nan]])), [[51, 255, 0]])
    anatomy = np.eye(12, dtype=np.float32)[None]
    drawn = plots.colour_map(anatomy)[0]
    assert ["#" + bytes(pixel).hex() for pixel in drawn] == plots.factor_colours(12) and len(
        np.unique(drawn, axis=0)
    ) == 12


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (Report("x", real_vs_generated=[Pair("c", None, np.zeros((4, 4, 3)), {})]), r"\[0\].generated"),
        (Report("x", real_vs_generated=[Pair("c", np.zeros((4, 4, 2), np.uint8), image(), {})]), r"\[0\].real"),
        (Report("x", swap_grid=SwapGrid(["a"], ["b", "c"], np.zeros((1, 1, 4, 4, 3), np.uint8))), "swap_grid"),
        (Report("x", loss_curves={"prior": {"loss": ([0, 1], [1.0])}}), "loss_curves loss"),
        (Report("x", control=[ControlRow("size", "anatomy", 1.2, 0.5, None, 4)]), "'size'"),
        (Report("x", control=[ControlRow("size", "anatomy", float("nan"), 0.5, None, 4)]), "'size'"),
        (Report("x", control=[ControlRow("size", "anatomy", 0.5, 1.0, None, 4)]), "'size'"),
        (Report("x", factor_maps=[FactorMaps(image(), None, None, np.ones((4, 4)), image())]), r"\[0\].anatomy"),
    ],
)
def test_bad_data_is_refused_and_the_old_report_stays(tmp_path, report, message):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ConfigError, match=message):
        write_report(path, report)
    assert path.read_text() == "old"


def test_write_report_needs_no_jax(tmp_path):
    program = (
        "import pathlib, sys; from vgjax.evaluation.report import Report, write_report;"
        f"write_report(pathlib.Path({str(tmp_path / 'r.html')!r}), Report('t'));"
        "assert not {'jax', 'flax', 'matplotlib'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=PACKAGE_DIR.parent)
    assert (tmp_path / "r.html").read_text(encoding="utf-8").startswith("<!doctype html>")
