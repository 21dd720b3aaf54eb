import collections
import json

import numpy as np
import pytest

from vgjax.data.caption import measure as captions
from vgjax.data.caption import words as vocabulary
from vgjax.data.caption.mask_reading import mask_reader

THRESHOLDS = {
    "centre_x": (0.4, 0.6),
    "centre_y": (0.4, 0.6),
    "area_fraction": (0.02, 0.1),
    "solidity": (0.9,),
    "axis_ratio": (0.75,),
    "warmth": (0.3, 0.6),
    "brightness": (0.3, 0.6),
}


def levels_of(mask, thresholds=THRESHOLDS, words=vocabulary.POLYP):
    return captions.attribute_levels(position_and_size(mask, words), thresholds, words)


def position_and_size(mask: np.ndarray, words=vocabulary.POLYP) -> dict[str, float]:
    """What is measured on the mask alone."""
    measured = captions.measure_attributes(plain((9, 9, 9), *mask.shape), mask, words)
    return {name: measured[name] for name in ("centre_x", "centre_y", "area_fraction")}


def ellipse(x: float, y: float, rx: float, ry: float, height: int = 200, width: int = 200) -> np.ndarray:
    """A filled ellipse; centre and radii in fractions of the picture's width and height."""
    rows, columns = np.mgrid[:height, :width]
    u, v = (columns + 0.5) / width, (rows + 0.5) / height
    return (((u - x) / rx) ** 2 + ((v - y) / ry) ** 2 <= 1).astype(np.uint8)


def plain(colour: tuple[int, int, int], height: int = 200, width: int = 200) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, 3))


@pytest.mark.parametrize(("height", "width"), [(200, 200), (200, 320), (320, 200), (64, 64), (100, 130)])
def test_geometry_is_relative_to_the_picture_whatever_its_size(height, width):
    measured = position_and_size(ellipse(0.3, 0.7, 0.15, 0.1, height, width))
    assert measured["centre_x"] == pytest.approx(0.3, abs=0.01)
    assert measured["centre_y"] == pytest.approx(0.7, abs=0.01)
    assert measured["area_fraction"] == pytest.approx(np.pi * 0.15 * 0.1, rel=0.04)


def test_the_largest_lesion_counts_and_specks_do_not():
    alone = ellipse(0.7, 0.3, 0.1, 0.1)
    with_speck = np.maximum(alone, ellipse(0.1, 0.9, 0.03, 0.03))
    assert position_and_size(with_speck) == position_and_size(alone)
    for too_little in (ellipse(0.5, 0.5, 0.01, 0.01), np.zeros((50, 50), np.uint8)):
        with pytest.raises(ValueError, match="covers less than"):
            position_and_size(too_little)


def test_every_position_is_named():
    found = [[levels_of(ellipse(x, y, 0.1, 0.1))["position"] for x in (0.2, 0.5, 0.8)] for y in (0.2, 0.5, 0.8)]
    assert found == [
        ["upper left", "upper centre", "upper right"],
        ["middle left", "centre", "middle right"],
        ["lower left", "lower centre", "lower right"],
    ]


def test_a_mask_alone_gives_position_and_size():
    sizes = [levels_of(ellipse(0.5, 0.5, r, r)) for r in (0.05, 0.12, 0.3)]
    assert sizes == [{"position": "centre", "size": size} for size in ("small", "medium", "large")]


def test_the_mask_is_read_where_it_is_likely_and_the_style_from_the_pixels():
    reader = mask_reader(vocabulary.POLYP, THRESHOLDS)
    masks = np.stack([ellipse(0.5, 0.5, 0.12, 0.12), ellipse(0.2, 0.2, 0.3, 0.3), np.zeros_like(ellipse(0, 0, 1, 1))])
    pictures = np.stack([plain((200, 100, 20)), plain((90, 80, 80)), plain((90, 80, 80))])
    styles = [captions.attribute_levels(captions.picture_style(picture), THRESHOLDS) for picture in pictures]
    assert styles[0] != styles[1] == styles[2] and styles[0].keys() == {"colour", "brightness"}
    read = reader.read(pictures, np.where(masks > 0, 0.51, 0.49))
    geometry = [{"position": "centre", "size": "medium"}, {"position": "upper left", "size": "large"}, {}]
    assert read == [one | style for one, style in zip(geometry, styles, strict=True)]
    # The segmentor may look at less than the whole resolution.
    assert reader.read(pictures, np.where(masks > 0, 0.51, 0.49)[:, ::4, ::4]) == read
    modality = {"colour": "modality", "brightness": "modality"}
    assert dict(reader.channels) == {"position": "anatomy", "size": "anatomy", **modality} and reader.from_mask
    lungs = {"size": "anatomy", "contrast": "modality", "brightness": "modality"}
    assert dict(mask_reader(vocabulary.LUNGS, THRESHOLDS).channels) == lungs
    assert "polyp" in reader.describe({"size": "small"}, np.random.default_rng(0), ("size",)).lower()


def test_chance_of_a_mask_reading_is_the_commonest_level():
    chance = mask_reader(vocabulary.POLYP, THRESHOLDS).chance
    requested = [{"size": "small"}, {"size": "large", "position": "centre"}, {"position": "centre"}, {"size": "small"}]
    assert chance(requested, "size") == pytest.approx(2 / 3)
    assert chance(requested, "shape") == 0.0


def test_outlines_are_told_apart():
    crescent = np.clip(ellipse(0.5, 0.5, 0.3, 0.3) - ellipse(0.6, 0.5, 0.25, 0.25).astype(int), 0, 1)
    masks = {"round": ellipse(0.5, 0.5, 0.2, 0.2), "oval": ellipse(0.5, 0.5, 0.1, 0.3), "irregular": crescent}
    for shape, mask in masks.items():
        measured = captions.measure_attributes(plain((200, 120, 90)), mask)
        assert captions.attribute_levels(measured, THRESHOLDS)["shape"] == shape
    flat = captions.measure_attributes(plain((200, 120, 90)), masks["oval"])
    assert flat["axis_ratio"] == pytest.approx(1 / 3, abs=0.02)
    assert flat["eccentricity"] == pytest.approx(np.sqrt(1 - 1 / 9), abs=0.02)


def test_the_outline_is_that_of_the_stretched_picture():
    disc_of_the_square = ellipse(0.5, 0.5, 0.2, 0.2, height=100, width=160)
    measured = captions.measure_attributes(plain((200, 120, 90), 100, 160), disc_of_the_square)
    assert measured["axis_ratio"] > 0.95


def test_a_line_of_pixels_is_measured_without_complaint():
    line = np.zeros((64, 64), np.uint8)
    line[30, 5:60] = 1
    assert captions.measure_attributes(plain((9, 9, 9), 64, 64), line)["axis_ratio"] < 0.05


def test_colour_and_light_leave_out_the_black_frame():
    picture = np.zeros((200, 200, 3), np.uint8)
    picture[50:150, 50:150] = (200, 120, 100)
    style = captions.picture_style(picture)
    assert style["warmth"] == pytest.approx(0.5, abs=0.02)
    assert style["brightness"] == pytest.approx(140 / 255, abs=0.02)
    assert style["contrast"] < 0.06
    stripes = picture.copy()
    stripes[50:150, 50:100] = (80, 48, 40)
    assert captions.picture_style(stripes)["contrast"] > 0.15
    assert captions.picture_style(np.zeros_like(picture)) == {"warmth": 1.0, "brightness": 0.0, "contrast": 0.0}


def test_pinks_and_lights_are_ordered():
    levels = [
        captions.attribute_levels(captions.picture_style(plain(colour)), THRESHOLDS)
        for colour in [(80, 70, 65), (160, 110, 80), (255, 200, 60)]
    ]
    assert [level["colour"] for level in levels] == ["pink", "salmon", "orange"]
    assert [level["brightness"] for level in levels] == ["dark", "normal", "bright"]


def test_an_empty_mask_cannot_be_measured():
    with pytest.raises(ValueError, match=r"less than 0\.1% of the picture"):
        captions.measure_attributes(plain((1, 2, 3)), np.zeros((200, 200), np.uint8))


def test_fitted_thresholds_cut_the_training_pictures_at_the_quantiles():
    rng = np.random.default_rng(0)
    names = [name for quantiles in captions.ATTRIBUTES.values() for name in quantiles]
    attributes = [{name: float(rng.normal()) for name in names} for _ in range(900)]
    fitted = captions.fit_thresholds(attributes)
    levels = [captions.attribute_levels(one, fitted) for one in attributes]
    shares = {
        factor: collections.Counter(level[factor] for level in levels) for factor in ("size", "colour", "brightness")
    }
    assert all(count == 300 for share in shares.values() for count in share.values())
    columns = collections.Counter(level["position"].split()[-1] for level in levels)
    assert columns["left"] == columns["right"] == 225
    assert collections.Counter(level["shape"] for level in levels)["irregular"] == 225
    assert captions.attribute_levels(attributes[0], json.loads(json.dumps(fitted))) == levels[0]
    with pytest.raises(ValueError, match="no training picture"):
        captions.fit_thresholds([])


def all_levels() -> dict[str, tuple[str, ...]]:
    return {name: tuple(words) for name, words in vocabulary.WORDS.items()}


def test_every_level_has_words_and_no_two_levels_share_one():
    named = {
        "position": {position for row in vocabulary.POSITIONS for position in row},
        "size": {"small", "medium", "large"},
        "shape": set(vocabulary.SHAPES),
        "colour": {"pink", "salmon", "orange"},
        "brightness": {"dark", "normal", "bright"},
    }
    assert {name: set(levels) for name, levels in all_levels().items()} == named
    assert set(named) == {*vocabulary.MEASURED_ANATOMY, *vocabulary.MEASURED_MODALITY}
    phrases = [phrase for levels in vocabulary.WORDS.values() for words in levels.values() for phrase in words]
    assert len(phrases) == len(set(phrases))
    sided = {phrase for phrase in phrases if {"left", "right"} & set(phrase.split())}
    assert sided <= {p for words in vocabulary.WORDS["position"].values() for p in words}


def mentions(caption: str, factor: str, level: str) -> bool:
    return any(phrase in caption.lower() for phrase in vocabulary.WORDS[factor][level])


def test_a_caption_says_what_is_said_and_nothing_else():
    rng = np.random.default_rng(0)
    said_counts: collections.Counter[str] = collections.Counter()
    for _ in range(400):
        levels = {name: str(rng.choice(names)) for name, names in all_levels().items()}
        named = captions.choose_named(levels, rng)
        caption = captions.describe(levels, rng, named)
        said_counts.update(named)
        assert all(mentions(caption, name, levels[name]) for name in named), caption
        assert not any(mentions(caption, name, levels[name]) for name in set(levels) - set(named)), caption
        assert caption.endswith(".") and caption[0].isupper() and "  " not in caption and "{" not in caption
        assert " a irr" not in caption.lower() and " a o" not in caption.lower()
    assert said_counts["position"] == said_counts["size"] == 400
    assert all(300 < said_counts[name] < 375 for name in ("shape", "colour", "brightness"))


def test_captions_vary_in_wording_and_order_and_repeat_with_the_seed():
    levels = {"position": "upper left", "size": "small", "shape": "oval", "colour": "pink", "brightness": "dark"}
    drawn = [captions.describe(levels, np.random.default_rng(seed)) for seed in range(200)]
    assert len(set(drawn)) > 100
    anatomy_first = sum(caption.split(".")[0].lower().count("polyp") for caption in drawn)
    assert 70 < anatomy_first < 130
    assert drawn == [captions.describe(levels, np.random.default_rng(seed)) for seed in range(200)]


def test_a_caption_may_say_little():
    rng = np.random.default_rng(0)
    assert captions.describe({"size": "small"}, rng, ()).lower() in {
        "a polyp.",
        "a polyp is seen.",
        "there is a polyp.",
    }
    assert "an irregular polyp" in captions.describe({"shape": "irregular"}, np.random.default_rng(1)).lower()


PINNED = "The mucosa is pink and dimly lit. In the upper left there is a little elongated polyp."
NEW = (vocabulary.SKIN, vocabulary.BREAST, vocabulary.LUNGS, vocabulary.ANY)


def factors(words: vocabulary.Vocabulary) -> tuple[str, ...]:
    return words.anatomy + words.modality


def drawn_levels(words: vocabulary.Vocabulary, rng: np.random.Generator) -> dict[str, str]:
    return {name: str(rng.choice(list(words.words[name]))) for name in factors(words)}


def test_polyps_are_described_as_ever():
    """A pin: captions are part of a prepared dataset."""
    levels = {"position": "upper left", "size": "small", "shape": "oval", "colour": "pink", "brightness": "dark"}
    rng = np.random.default_rng(7)
    named = captions.choose_named(levels, rng)
    assert captions.describe(levels, rng, named) == PINNED
    rng = np.random.default_rng(7)
    named = captions.choose_named(levels, rng)
    assert captions.describe(levels, rng, named, vocabulary.POLYP) == PINNED


@pytest.mark.parametrize("words", NEW, ids=lambda words: words.tissue)
def test_every_vocabulary_says_what_is_said_and_nothing_else(words):
    phrases = [phrase for name in factors(words) for level in words.words[name].values() for phrase in level]
    assert len(phrases) == len(set(phrases))
    rng = np.random.default_rng(0)
    for _ in range(300):
        levels = drawn_levels(words, rng)
        named = captions.choose_named(levels, rng)
        caption = captions.describe(levels, rng, named, words)
        for name in levels:
            mentioned = {v for v, terms in words.words[name].items() if any(term in caption.lower() for term in terms)}
            assert (levels[name] in mentioned) == (name in named), (name, caption)
        assert words.lesion in caption.lower() and caption.endswith(".") and "{" not in caption
        assert "  " not in caption and " a o" not in caption.lower() and " a u" not in caption.lower()


def test_an_empty_mask_leaves_the_style_where_there_are_words_for_it():
    picture, empty = plain((90, 90, 90)), np.zeros((200, 200), np.uint8)
    for words in NEW:
        measured = captions.measure_attributes(picture, empty, words)
        assert measured == captions.picture_style(picture)
        levels = captions.attribute_levels(measured, {"brightness": (0.1, 0.2), "warmth": (0.1, 0.2)}, words)
        assert levels["brightness"] == "bright" and not set(levels) & {"position", "size", "contrast"}
        caption = captions.describe(levels, np.random.default_rng(0), None, words)
        assert any(clause.lower() in caption.lower() for clause in words.empty)
    named = {captions.describe({}, np.random.default_rng(seed), None, vocabulary.BREAST) for seed in range(20)}
    assert named == {"An ultrasound without lesion.", "No lesion is seen."}
    # Only in ultrasound an empty mask is a finding.
    others = [clause for words in NEW if words is not vocabulary.BREAST for clause in words.empty]
    assert not any("lesion" in clause for clause in others)


def test_lungs_are_both_lungs_and_have_no_position():
    both = ellipse(0.3, 0.5, 0.1, 0.3) + ellipse(0.7, 0.5, 0.1, 0.3)
    one = position_and_size(both)
    two = position_and_size(both, vocabulary.LUNGS)
    assert two["area_fraction"] == pytest.approx(2 * one["area_fraction"], rel=0.02)
    bounds = {"centre_x": (0.4, 0.6), "centre_y": (0.4, 0.6), "area_fraction": (0.1, 0.15)}
    assert levels_of(both, bounds, vocabulary.LUNGS) == {"size": "large"}
    fitted = captions.fit_thresholds([captions.measure_attributes(plain((9, 9, 9)), both, vocabulary.LUNGS)])
    assert "centre_x" in fitted
    measured = captions.measure_attributes(plain((9, 9, 9)), both, vocabulary.LUNGS)
    assert set(captions.fit_thresholds([measured], vocabulary.LUNGS)) == {
        "area_fraction",
        "lesion_contrast",
        "brightness",
    }


def test_thresholds_are_fitted_to_the_pictures_that_have_the_attribute():
    attributes = [{"brightness": 0.5}, {"brightness": 0.5, "area_fraction": 0.2}]
    fitted = captions.fit_thresholds(attributes, vocabulary.LUNGS)
    assert fitted == {"area_fraction": (0.2, 0.2), "brightness": (0.5, 0.5)}


def test_a_ragged_border_measures_more_than_a_smooth_one():
    rows, columns = np.mgrid[:200, :200]
    angle, radius = np.arctan2(rows - 100, columns - 100), np.hypot(rows - 100, columns - 100)
    borders = [
        captions.measure_attributes(plain((9, 9, 9)), radius < 50 * (1 + depth * np.sin(9 * angle)), vocabulary.SKIN)
        for depth in (0, 0.15, 0.4)
    ]
    smooth, wavy, ragged = (one["border"] for one in borders)
    assert smooth == pytest.approx(1, abs=0.15) and wavy > 1.2 * smooth and ragged > 2 * wavy


def test_contrast_is_that_of_the_lesion_and_its_surround():
    mask = ellipse(0.5, 0.5, 0.2, 0.2)
    far = ellipse(0.5, 0.5, 0.45, 0.45)
    for inside, around in ((50, 150), (150, 50), (100, 100)):
        grey = np.where(mask > 0, inside, np.where(far > 0, around, 255)).astype(np.uint8)
        measured = captions.measure_attributes(np.repeat(grey[..., None], 3, axis=2), mask)
        expected = abs(inside - around) / (inside + around)
        assert measured["lesion_contrast"] == pytest.approx(expected, abs=0.02)
    whole = captions.measure_attributes(plain((9, 9, 9)), np.ones((200, 200), np.uint8))
    assert whole["lesion_contrast"] == 0


@pytest.mark.parametrize("side", [1, 2, 3, 5])
def test_the_smallest_pictures_are_measured(side):
    measured = captions.measure_attributes(plain((9, 9, 9), side, side), np.ones((side, side)), vocabulary.SKIN)
    assert measured["area_fraction"] == 1 and all(np.isfinite(value) for value in measured.values())


def composed(mode: str, text: str, **options) -> captions.Caption:
    measured = captions.measure_attributes(plain((200, 120, 90)), ellipse(0.2, 0.2, 0.1, 0.1))
    rng = np.random.default_rng(3)
    return captions.caption(text, measured, THRESHOLDS, vocabulary.POLYP, mode, rng, **options)


def test_own_words_and_measured_ones():
    measured = composed("measured", "A  note\nof ours")
    assert "polyp" in measured.text and "note" not in measured.text
    assert measured.levels["position"] == "upper left" and "position" in measured.named
    own = composed("own", " A  note\nof ours")
    assert own == ("A note of ours", measured.levels, ())
    assert composed("own", " \n") == measured
    both = composed("both", "A note of ours")
    assert both == ("A note of ours. " + measured.text, measured.levels, measured.named)
    assert composed("both", "") == measured
    assert composed("both", "Seen!").text.startswith("Seen! ")


def test_the_class_is_told_only_where_it_is_handed_over():
    assert "melanoma" not in composed("both", "A note").text
    assert composed("own", "A note", label="melanoma").text == "A note. Class: melanoma."
