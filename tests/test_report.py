"""The report is one safe file that says what was measured and what was not."""

import base64
import configparser
import dataclasses
import io
import pathlib
import re
import subprocess
import sys
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from PIL import Image

from vgjax.evaluation.report import (
    Closest,
    ControlRow,
    FactorMaps,
    Pair,
    Report,
    SwapGrid,
    figures,
    render,
    write_report,
)

EVIL = "<script>alert('x')</script> \"quoted\" & <img src=http://example.org/x onerror=y>"
VOID = {"meta", "img", "br"}
REPO = pathlib.Path(__file__).parents[1]
TEMPLATE = REPO / "vgjax" / "evaluation" / "report" / "template.html"
SECTIONS = {
    "pictures": "Pictures that follow texts",
    "swap": "One channel at a time",
    "control": "Control, factor by factor",
    "pairs": "Real and generated",
    "compared": "Fidelity, usefulness, privacy",
    "closest": "Closest to training pictures",
    "stage1": "What stage 1 sees",
    "losses": "Losses",
    "notes": "What is off or fell short",
    "provenance": "Where this comes from",
}


class Page(HTMLParser):
    """Every element with its attributes, and the text of each section, white space joined; an unbalanced tag fails."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.elements, self.section, self.texts = [], [], "", {}
        self.feed(text)
        self.close()
        assert not self.open
        self.texts = {name: re.sub(r"[ \n]+", " ", text).strip() for name, text in self.texts.items()}

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


def decoded(src):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(src.removeprefix("data:image/png;base64,")))))


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
        compared={
            text: {"value": 0.25, "interval": [0.2, 0.3], "n": 64, "split": "test", "net": "domain"},
            "few": {"value": None, "interval": None, "n": 4, "split": "test", "net": "", "note": text},
        },
        closest=[Closest(text, image(), image(), 0.25, 0.5), Closest("other", image(), image(), 0.75, 0.5)],
    )


def path_of(svg, ink):
    """Points (x, y) of the path that is drawn in a colour, and how often the pen was set down."""
    drawn = re.search(rf'd="([^"]*)" style="[^"]*stroke: var\(--{ink}\)', svg)[1]
    return np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", drawn), float), drawn.count("M")


def test_every_section_comes_in_reading_order_with_its_content():
    page = Page(render([full_report()]))
    assert [attributes["id"] for attributes in page.all("section")] == list(SECTIONS)
    assert [attributes["href"] for attributes in page.all("a")] == ["#notes", *(f"#{name}" for name in SECTIONS)]
    assert not any("Not measured" in text or "not recorded" in text for text in page.texts.values())
    head = page.texts[""]
    assert "83\u202f%" in head and "40–64" in head and "0123456789ab-dirty" in head and "2 notes" in head
    assert "✗ blur: strong, asked none" in page.texts["pictures"] and "tint: warm, not said" in page.texts["pictures"]
    assert "no real one" in page.texts["pictures"] and "no real one" not in page.texts["pairs"]
    assert "92\u202f% 80–95\u202f% 20\u202f% 95\u202f% 0.90 64" in page.texts["control"]
    assert "0.25 0.2 to 0.3 64testdomain few– – 4testa small" in page.texts["compared"]
    assert ": 0.25, threshold 0.5: a copy" in page.texts["closest"]
    assert page.texts["closest"].count("a copy") == 1 and "other: 0.75, threshold 0.5" in page.texts["closest"]
    assert "0 · 25\u202f%" in page.texts["stage1"] and "2 · 75\u202f%" in page.texts["stage1"]
    assert "Perceptual term off." in page.texts["notes"] and "0.0001" in page.texts["provenance"]


def test_an_empty_report_says_what_was_not_measured():
    page = Page(render([Report("nothing")]))
    for name in ("pictures", "swap", "control", "pairs", "compared", "closest", "stage1", "losses"):
        assert page.texts[name] == f"{SECTIONS[name]} Not measured in this run."
    assert "Mean control accuracy: not measured in this run." in page.texts[""] and not page.all("dl")
    assert page.texts["provenance"].count("not recorded") == 3 and not page.all("img")


def test_outside_text_is_escaped_wherever_it_is_shown():
    text = render([full_report(EVIL)])
    page = Page(text)
    assert not page.all("script") and "<script" not in text
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert all("http" not in attributes["src"] for attributes in page.all("img"))
    for name in SECTIONS:
        assert "<script>alert('x')</script>" in page.texts[name] or name == "stage1"


def test_nothing_is_fetched_and_every_picture_is_described():
    text = render([full_report()])
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
    drawn = figures.png(shown, "here", shown=128)
    np.testing.assert_array_equal(decoded(drawn.src), shown)
    assert drawn[1:] == (120, 60, True)
    large = figures.png(image(1000), "here", shown=128)
    assert large[1:] == (128, 128, False) and decoded(large.src).shape[:2] == (figures.MAX_SIDE,) * 2
    page = Page(render([Report("x", real_vs_generated=[Pair("c", None, shown[:10, :10], {})])]))
    assert page.all("img")[0].items() >= {"width": "190", "height": "190", "class": "pixel"}.items()


def test_swap_grid_puts_the_anatomy_of_the_row_beside_the_modality_of_the_column():
    pictures = np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1, 1) * np.ones((1, 1, 4, 4, 3), np.uint8)
    page = Page(render([Report("swap", swap_grid=SwapGrid(["r0", "r1"], ["c0", "c1", "c2"], pictures))]))
    for index, attributes in enumerate(page.all("img")):
        assert attributes["alt"] == f"Anatomy from: r{index // 3}. Modality from: c{index % 3}."
        assert (decoded(attributes["src"]) == index).all()


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
    assert f">{verdict}</td>" in render([Report("x", control=[row])])


def test_headline_falls_back_on_the_mean_of_the_rows():
    rows = [ControlRow("a", "anatomy", 0.9, 0.5, None, 10), ControlRow("b", "anatomy", 0.6, 0.1, None, 10)]
    head = Page(render([Report("x", control=rows)])).texts[""]
    assert "mean control accuracy75\u202f%" in head and "by guessing30\u202f%" in head


def test_curves_keep_spikes_break_at_nan_and_turn_logarithmic():
    values = np.ones(5000)
    values[1234] = 7.0
    spiked = figures.chart("loss", [("", np.arange(5000), values)])
    points, _ = path_of(spiked.svg, "c0")
    assert len(points) < 20 and sum(points[:, 1] < points[:, 1].max()) == 1
    noisy = figures.chart("loss", [("", np.arange(50_000), np.random.default_rng(0).random(50_000))])
    assert len(noisy.svg) < 30_000
    broken = figures.chart("loss", [("", [0, 1, 2, 3, 4], [1, 2, float("nan"), 2, 1])])
    assert path_of(broken.svg, "c0")[1] == 2
    steep = figures.chart("kl", [("", [0, 1, 2], [1000.0, 10.0, 0.1])])
    assert steep.logarithmic and not spiked.logarithmic
    np.testing.assert_allclose(np.diff(path_of(steep.svg, "c0")[0][:, 1]), [60, 60], atol=0.2)
    page = Page(render([Report("x", loss_curves={"prior": {"kl": ([0, 1], [1e3, 0.1]), "x": ([0], [float("nan")])}})]))
    assert "kl 1,000 to 0.1 log scale" in page.texts["losses"] and "x no finite value" in page.texts["losses"]
    dot, _ = path_of(figures.chart("flat", [("train", [5], [0.0])]).svg, "c0")
    assert len(dot) == 2 and (dot[0] == dot[1]).all() and 44 <= dot[0, 0] <= 312 and 10 <= dot[0, 1] <= 142


def test_train_and_validation_share_a_chart_on_the_same_axes():
    drawn = figures.charts({"train/loss": ([0, 10], [4.0, 0.0]), "validation/loss": ([5], [2.0]), "test/": ([], [])})
    assert list(drawn) == ["loss"] and [span[0] for span in drawn["loss"].spans] == ["train", "validation"]
    (start, end), _ = path_of(drawn["loss"].svg, "c0")
    middle = path_of(drawn["loss"].svg, "c1")[0][0]
    np.testing.assert_allclose(middle, (start + end) / 2, atol=0.2)
    assert re.findall(r">([^<> ]+)<", drawn["loss"].svg) == ["0", "10", "0", "1", "2", "3", "4", "step"]
    assert ">0.025<" in figures.chart("small", [("", [0, 1], [0.02, 0.03])]).svg


def test_accuracy_bar_is_drawn_to_scale():
    svg = figures.accuracy_bar(0.5, 0.25, 1.0, (0.4, 0.75))
    ends = {ink: path_of(svg, ink)[0][:, 0] for ink in ("line", "c0", "ink", "c1")}
    assert [list(x) for x in ends.values()] == [[4, 176], [4, 90], [72.8, 133], [47, 47]]
    assert "var(--paper)" in svg and "var(--paper)" not in figures.accuracy_bar(0.5, 0.25, None, None)


def test_drawings_are_the_same_each_time_and_leave_no_trace():
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"xtick.labelsize": 30, "lines.linestyle": "--"}):
        odd = render([full_report()])
    assert odd == render([full_report()]) and dict(matplotlib.rcParams) == before
    assert not re.search(r"#[0-9a-f]{6}|<defs|clip-path| id=|font-family", figures.accuracy_bar(0.5, 0.2, 0.9, (0, 1)))


def test_colours_stand_out_from_the_paper_in_both_themes():
    """WCAG 2.2: text at 4.5 to 1 or more, drawings at 3 to 1."""

    def luminance(colour):
        c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    light, dark = re.findall(r":root\{([^}]*)\}", TEMPLATE.read_text())
    for theme in (light, dark):
        colours = dict(re.findall(r"--(\w+):(#\w{6})", theme))
        for name in ("ink", "soft", "accent", "good", "part", "bad", "c0", "c1", "c2", "c3"):
            low, high = sorted((luminance(colours["paper"]), luminance(colours[name])))
            assert (high + 0.05) / (low + 0.05) >= (3 if name.startswith("c") else 4.5), name


def test_several_runs_are_compared_before_each_is_shown():
    first = full_report("run a")
    second = dataclasses.replace(full_report(EVIL), metrics={"only/here": 12.5}, control=first.control[1:])
    text = render([first, second])
    page = Page(text)
    ids = [attributes.get("id") for attributes in page.all("section")]
    assert ids == ["comparison"] + [f"run-{number}-{name}" for number in (1, 2) for name in SECTIONS]
    compared = page.texts["comparison"]
    assert "1 · run a" in compared and "2 · <script>alert('x')</script>" in compared and "<script" not in text
    assert "run a 92\u202f% follows –" in compared and "blur 35\u202f% near chance 35\u202f% near chance" in compared
    assert "control/accuracy_mean0.834– only/here–12.5" in compared
    links = {attributes["href"].removeprefix("#") for attributes in page.all("a")}
    every = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert links <= set(every) and len(every) == len(set(every)) and len(page.all("h1")) == 1
    with pytest.raises(ValueError, match="no run"):
        render([])


def test_masks_and_factor_maps_are_drawn_in_the_right_place():
    np.testing.assert_array_equal(figures.gray(np.array([[0, 1]], np.uint8)), [[0, 255]])
    np.testing.assert_array_equal(figures.gray(np.array([[0, 255]], np.uint8)), [[0, 255]])
    np.testing.assert_array_equal(figures.gray(np.array([[0.2, 7.0, np.nan]])), [[51, 255, 0]])
    anatomy = np.eye(12, dtype=np.float32)[None]
    drawn = figures.colour_map(anatomy)[0]
    assert ["#" + bytes(pixel).hex() for pixel in drawn] == figures.factor_colours(12) and len(
        np.unique(drawn, axis=0)
    ) == 12


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (Report("x", real_vs_generated=[Pair("c", None, np.zeros((4, 4, 3)), {})]), r"\[0\].generated"),
        (Report("x", real_vs_generated=[Pair("c", np.zeros((4, 4, 2), np.uint8), image(), {})]), r"\[0\].real"),
        (Report("x", loss_curves={"prior": {"loss": ([0, 1], [1.0])}}), "loss_curves loss"),
        (Report("x", loss_curves={"prior": {"loss": ([0, float("inf")], [1.0, 1.0])}}), "loss_curves loss"),
        (Report("x", factor_maps=[FactorMaps(image(), None, None, np.ones((4, 4)), image())]), r"\[0\].anatomy"),
    ],
)
def test_bad_data_is_refused_and_the_old_report_stays(tmp_path, report, message):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ValueError, match=message):
        write_report(path, [report])
    assert path.read_text() == "old"


def test_a_grid_or_a_row_that_contradicts_itself_cannot_be_made():
    with pytest.raises(ValueError, match="swap_grid"):
        SwapGrid(["a"], ["b", "c"], np.zeros((1, 1, 4, 4, 3), np.uint8))
    for accuracy, chance in ((1.2, 0.5), (float("nan"), 0.5), (0.5, 1.0)):
        with pytest.raises(ValueError, match="'size'"):
            ControlRow("size", "anatomy", accuracy, chance, None, 4)


def test_write_report_needs_neither_jax_nor_a_display(tmp_path):
    program = (
        "import pathlib, sys; from vgjax.evaluation.report import Report, write_report\n"
        "write_report(pathlib.Path(sys.argv[1]), [Report('t', loss_curves={'a': {'b': ([0], [1])}})])\n"
        "assert not {'jax', 'flax', 'matplotlib.pyplot'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "r.html"], check=True, cwd=REPO)
    assert (tmp_path / "r.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_template_is_installed_with_the_package():
    setup = configparser.ConfigParser()
    setup.read(REPO / "setup.cfg")
    assert setup["options.package_data"]["vgjax.evaluation.report"].split() == [TEMPLATE.name] and TEMPLATE.is_file()


def test_only_drawings_pass_the_template_unescaped():
    unescaped = re.findall(r"{{-? *([^(|}]*?) *[(|][^}]*\bsafe\b", TEMPLATE.read_text())
    assert unescaped == ["figures.accuracy_bar", "drawn.svg"]
