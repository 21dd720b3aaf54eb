"""The command that draws: what is asked for comes from words or files, and what was not heard is told."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from configs import phantom
from tests.in_process import PHANTOM, refused
from vgjax import config as configs
from vgjax import main, parallel, sample, seeds
from vgjax import run as runs
from vgjax.config import ConfigError
from vgjax.context import Producer, Run
from vgjax.data.records import from_png
from vgjax.evaluation import copies
from vgjax.evaluation.neighbours import Nearest
from vgjax.models.text_encoder import VocabularyEncoder
from vgjax.store import Store
from vgjax.types import Request

KNOWN = ["a small round lesion in the upper left", "dark and grainy"]


def smoke(**changes):
    c = phantom.get_config("smoke")
    c.update_from_flattened_dict(changes)
    return configs.from_config_dict(c)


def read(**asked):
    return sample.read_request(smoke(), asked)


@pytest.fixture
def files(tmp_path):
    """A picture, red on its left half; a mask, inside on its left half; a text."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :32] = (200, 10, 10)
    paths = {"picture": tmp_path / "picture.png", "mask": tmp_path / "mask.png", "text": tmp_path / "broken.png"}
    Image.fromarray(pixels).save(paths["picture"])
    Image.fromarray((pixels[..., 0] > 0).astype(np.uint8) * 255).save(paths["mask"])
    paths["text"].write_text("no picture")
    return {name: str(path) for name, path in paths.items()}


def test_words_stay_words():
    assert read(prompt="a lesion", anatomy="large", modality="dark.") == Request("a lesion", "large", "dark.")
    assert read(prompt="a lesion") == Request("a lesion")


@pytest.mark.parametrize("text", ["a large lesion; " * 40, "upper/left", "3.5 cm", "as in fig. 2", "~", "."])
def test_no_text_is_taken_for_a_file(text):
    """However long, and whatever stands in it."""
    assert read(anatomy=text).anatomy == text


@pytest.mark.parametrize("channel", ["anatomy", "modality"])
def test_a_pictures_file_is_read_as_training_reads_pictures(files, channel):
    found = read(prompt="a lesion", **{channel: files["picture"]})
    shown = from_png(getattr(found, f"{channel}_image"))
    assert shown.shape == (32, 32, 3)
    assert shown[16, 2, 0] > 180 and shown[16, 2, 1] < 30 and not shown[16, 30].any()
    assert found == Request("a lesion", **{f"{channel}_image": getattr(found, f"{channel}_image")})


def test_a_masks_file_is_read_as_training_reads_masks(files):
    found = read(anatomy="large", mask=files["mask"])
    mask = from_png(found.mask)
    assert mask.shape == (32, 32) and set(np.unique(mask)) == {0, 1}
    assert mask[:, :15].all() and not mask[:, 17:].any()
    assert found == Request(anatomy="large", mask=found.mask)


def test_a_picture_to_be_edited_is_read_as_training_reads_pictures(files):
    found = read(modality="dark", edit=files["picture"])
    assert found == Request(modality="dark", source=read(anatomy=files["picture"]).anatomy_image)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        (
            "anatomy",
            "nowhere/scan.png",
            r"^--anatomy: 'nowhere/scan\.png' cannot be used \(.*\): name the file of",
        ),
        ("modality", "Scan.JPG", r"^--modality: 'Scan\.JPG' cannot be used \("),
        ("mask", "nowhere.png", r"^--mask: 'nowhere\.png' cannot be used \("),
        ("mask", "a large lesion", r"^--mask: 'a large lesion' cannot be used \("),
        ("edit", "a large lesion", r"^--edit: 'a large lesion' cannot be used \("),
        ("anatomy", "text", r"^--anatomy: '.*broken\.png' cannot be used \("),
        ("mask", "text", r"^--mask: '.*broken\.png' cannot be used \("),
    ],
)
def test_a_file_that_is_none_is_refused_in_one_sentence(files, name, value, match):
    with pytest.raises(ConfigError, match=match) as caught:
        read(**{name: files.get(value, value)})
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- the command, without a trained run


class PaintingSampler:
    """A picture of one colour for each seed; it knows the words of `KNOWN`."""

    channels = ("anatomy", "modality")
    encoder = VocabularyEncoder.fit(KNOWN, 64)

    def __init__(self, context):
        """Takes what the sampler takes."""

    def inputs(self, requests, picture_seeds):
        assert len(requests) == len(picture_seeds) and len(set(requests)) == 1
        return requests

    def __call__(self, inputs, picture_seeds):
        return np.stack([np.full((32, 32, 3), seed % 251, np.uint8) for seed in picture_seeds])


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "Sampler", PaintingSampler)
    monkeypatch.setattr(runs, "_need_trained", lambda run: None)
    config = smoke(seed=5)
    return Run(config, tmp_path / "run", parallel.make_mesh(config.mesh), Store(tmp_path / "store"), {})


def drawn(run, n=0, seed=None, **asked):
    """Seeds of the written pictures by name, and the settings beside them."""
    runs.MODES["sample"](run, n=n, seed=seed, **{**dict.fromkeys(main.ASKED, ""), **asked})
    (settings,) = [json.loads(path.read_text()) for path in (run.workdir / "samples").glob("*.json")]
    return settings


@pytest.mark.parametrize(
    ("n", "seed", "wanted"),
    [(0, None, [5, 6]), (3, None, [5, 6, 7]), (1, 1 << 40, [1 << 40]), (0, 0, [0, 1])],
)
def test_how_many_and_from_which_seed(run, n, seed, wanted):
    """By default as many as the config says, from its own seed on."""
    settings = drawn(run, n, seed, prompt="a small lesion")
    assert settings["seeds"] == wanted and len(settings["files"]) == len(wanted)
    for name, one in zip(settings["files"], wanted, strict=True):
        assert (np.asarray(Image.open(run.workdir / "samples" / name)) == one % 251).all()
    assert {path.name for path in (run.workdir / "samples").glob("*.png")} == set(settings["files"])


def test_unknown_words_are_warned_of_and_written_down(run, caplog):
    with caplog.at_level(logging.WARNING):
        settings = drawn(run, prompt="A SMALL zebra", anatomy="violet lesion", modality="dark zebra")
    assert settings["unknown_words"] == ["zebra", "violet"]
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "not in the training captions, and so not followed as they are: zebra, violet"
    ]


def test_known_words_are_not_warned_of(run, caplog):
    with caplog.at_level(logging.WARNING):
        assert drawn(run, prompt=KNOWN[0])["unknown_words"] == []
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


def test_the_settings_tell_what_was_asked_for(run, files):
    settings = drawn(run, anatomy=files["picture"], modality="dark", mask=files["mask"])
    assert (settings["anatomy"], settings["modality"], settings["mask"]) == (files["picture"], "dark", files["mask"])
    assert "prompt" not in settings and settings["unknown_words"] == []
    assert settings["config"] == json.loads(json.dumps(run.config.flat()))


def test_other_wishes_have_other_files(run):
    drawn(run, prompt="a small lesion")
    runs.MODES["sample"](run, n=0, seed=None, **{**dict.fromkeys(main.ASKED, ""), "anatomy": "a small lesion"})
    assert len(list((run.workdir / "samples").glob("*.json"))) == 2
    assert len(list((run.workdir / "samples").glob("*.png"))) == 4


def test_a_bad_file_leaves_nothing_behind(run):
    with pytest.raises(ConfigError, match="--mask"):
        drawn(run, prompt="x", mask="nowhere.png")
    assert not (run.workdir / "samples").exists()


class KnowsColours:
    """Stands in for the training pictures: those of one colour, from a list of it."""

    def __init__(self, *colours):
        self.colours = colours

    def nearest(self, pictures):
        apart = [0.25 if picture[0, 0, 0] in self.colours else 1.0 for picture in pictures]
        return Nearest(np.zeros(len(pictures)), np.array(apart))


@pytest.fixture
def training(run, monkeypatch):
    """Makes pictures of these seeds copies."""
    monkeypatch.setattr(copies, "COPIES", Producer("copies", lambda context, folder: None, keys=("seed",)))

    def holds(*picture_seeds):
        known = KnowsColours(*(seed % 251 for seed in picture_seeds))
        monkeypatch.setattr(copies, "load", lambda artefact: (known, 0.5))

    return holds


def test_a_copy_is_refused_and_drawn_again_from_the_next_derived_seed(run, training, caplog):
    once, twice = (seeds.derive(6, "refused", attempt) for attempt in range(2))
    training(6, once)
    with caplog.at_level(logging.WARNING):
        settings = drawn(run, 3, prompt=KNOWN[0], refuse_copies=True)
    assert settings["seeds"] == [5, twice, 7]
    assert settings["refused"] == [{"seed": 6, "distance": 0.25}, {"seed": once, "distance": 0.25}]
    for name, one in zip(settings["files"], settings["seeds"], strict=True):
        assert (np.asarray(Image.open(run.workdir / "samples" / name)) == one % 251).all()
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert told == ["2 copies of training pictures were refused and drawn again from other seeds"]


def test_without_the_flag_nothing_is_refused(run, training):
    training(5, 6)
    settings = drawn(run, prompt=KNOWN[0])
    assert settings["seeds"] == [5, 6] and "refused" not in settings


def test_what_only_copies_ends_in_one_sentence_and_leaves_nothing(run, training):
    training(*range(251))
    match = rf"^--refuse-copies: seed 5 led to {sample.TRIES + 1} copies of training pictures: ask for something else"
    with pytest.raises(ConfigError, match=match):
        drawn(run, prompt=KNOWN[0], refuse_copies=True)
    assert not (run.workdir / "samples").exists()


@pytest.mark.parametrize("flag", ["--edit=x.png", "--anatomy_to=dark", "--modality_to=dark"])
def test_what_has_no_other_seed_cannot_be_drawn_again(tmp_path, flag):
    asked = ("--mode=sample", "--prompt=x", "--refuse-copies", flag, f"--workdir={tmp_path / 'run'}")
    refused(tmp_path, "--refuse-copies draws again from another seed: leave out", PHANTOM, *asked)


def test_every_wish_is_a_flag_of_the_mode():
    further = {"anatomy_to", "modality_to", "strength", "n", "seed", "refuse-copies"}
    assert set(main.TAKES["sample"]) == {*main.ASKED, *further}
    assert main.ASKED == ("prompt", "anatomy", "modality", "mask", "edit")
