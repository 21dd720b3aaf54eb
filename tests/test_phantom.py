import collections
import itertools
import re

import numpy as np
import pytest
from scipy import ndimage
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import RidgeClassifier

from vgjax.data.sources import phantom, phantom_text
from vgjax.types import SPLITS

PLAIN = {
    "position": "centre",
    "size": "medium",
    "shape": "round",
    "count": "none",
    "colour": "grey",
    "brightness": "normal",
    "contrast": "high",
    "texture": "smooth",
    "blur": "sharp",
}


def _mentions(text: str, phrase: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(phrase)}(?![\w-])", text, re.IGNORECASE) is not None


def _draws(count: int, seed: int = 0) -> list[dict[str, str]]:
    rng = np.random.default_rng(seed)
    return [phantom.sample_factors(rng) for _ in range(count)]


def test_channels_partition_the_factors():
    assert tuple(phantom.FACTORS) == (*phantom.ANATOMY, *phantom.MODALITY)
    assert len(phantom.FACTORS["position"]) == 9


def test_levels_are_balanced_and_independent():
    draws = _draws(6000)
    for name, levels in phantom.FACTORS.items():
        counts = collections.Counter(draw[name] for draw in draws)
        expected = len(draws) / len(levels)
        assert set(counts) == set(levels)
        assert all(abs(count - expected) < 5 * np.sqrt(expected) for count in counts.values()), name
    for first, second in itertools.combinations(phantom.FACTORS, 2):
        pairs = collections.Counter((draw[first], draw[second]) for draw in draws)
        cells = len(phantom.FACTORS[first]) * len(phantom.FACTORS[second])
        expected = len(draws) / cells
        chi_square = sum((pairs[pair] - expected) ** 2 / expected for pair in pairs)
        assert len(pairs) == cells
        assert chi_square < cells + 6 * np.sqrt(2 * cells), (first, second)


def test_held_out_pairs_join_and_stay_within_the_channels_and_take_a_fifth():
    for pair in phantom.HELD_OUT:
        (first, _), (second, _) = pair
        assert first != second and all(level in phantom.FACTORS[factor] for factor, level in pair)
    kinds = {tuple(phantom.CHANNEL[factor] for factor, _ in pair) for pair in phantom.HELD_OUT}
    assert kinds == {("anatomy", "modality"), ("anatomy", "anatomy")}
    share = np.mean([phantom.is_held_out(draw) for draw in _draws(6000)])
    assert share == pytest.approx(0.207, abs=0.02)  # as the source says
    rng = np.random.default_rng(1)
    assert all(phantom.is_held_out(phantom.sample_factors(rng, held_out=True)) for _ in range(20))


def test_training_and_validation_hold_no_held_out_combination_and_test_holds_both_kinds():
    for split in ("train", "validation"):
        items = list(phantom.items(split, 200, seed=0))
        assert not any(phantom.is_held_out(item.factors) for item in items)
        for name, levels in phantom.FACTORS.items():
            assert {item.factors[name] for item in items} == set(levels)
    kinds = [phantom.is_held_out(item.factors) for item in phantom.items("test", 200, seed=0)]
    assert 25 < sum(kinds) < 60


def test_an_item_depends_on_seed_split_and_index_alone():
    long, short = list(phantom.items("train", 12, seed=3)), list(phantom.items("train", 5, seed=3))
    for one, other in zip(long[:5], short, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.mask, other.mask)
        assert (one.id, one.caption, one.factors, one.named) == (other.id, other.caption, other.factors, other.named)
    images = [item.image.tobytes() for item in long]
    for split, seed in (("train", 4), ("validation", 3), ("test", 3)):
        images += [item.image.tobytes() for item in phantom.items(split, 12, seed=seed)]
    assert len(set(images)) == 48


@pytest.mark.parametrize("size", [32, 64])
def test_items_keep_the_contract(size):
    for index, item in enumerate(phantom.items("test", 6, seed=0, size=size)):
        assert item.id == f"test-{index:06d}" and item.split in SPLITS
        assert item.image.shape == (size, size, 3) and item.image.dtype == np.uint8
        assert item.mask.shape == (size, size) and item.mask.dtype == np.uint8
        assert set(np.unique(item.mask)) == {0, 1}
        assert item.label == phantom.class_label(item.factors)
        assert item.caption and set(item.named) <= set(phantom.FACTORS)


def test_class_label_is_a_function_of_shape_and_size_alone():
    labels = collections.defaultdict(set)
    for draw in _draws(800):
        labels[draw["shape"], draw["size"]].add(phantom.class_label(draw))
    assert all(len(found) == 1 for found in labels.values())
    assert collections.Counter(found.copy().pop() for found in labels.values()) == {
        "benign": 3,
        "suspicious": 3,
        "malignant": 3,
    }
    assert labels["round", "small"] == {"benign"} and labels["lobed", "large"] == {"malignant"}


def test_the_mask_is_the_visible_lesion():
    rng = np.random.default_rng(0)
    for size, count in itertools.product(phantom.FACTORS["size"], phantom.FACTORS["count"]):
        image, mask = phantom.render(PLAIN | {"size": size, "count": count, "shape": "lobed"}, rng)
        luminance = image.mean(axis=-1)
        middle = (luminance.min() + luminance.max()) / 2
        seen = luminance < middle
        assert (seen & (mask == 1)).sum() / (seen | (mask == 1)).sum() > 0.85


@pytest.mark.parametrize("size", [32, 64])
def test_satellites_are_as_many_as_said_and_stand_apart(size):
    rng = np.random.default_rng(0)
    anatomy = [phantom.FACTORS[name] for name in phantom.ANATOMY]
    for levels in itertools.product(*anatomy):
        draw = PLAIN | dict(zip(phantom.ANATOMY, levels, strict=True))
        _, mask = phantom.render(draw, rng, size)
        labels, found = ndimage.label(mask)
        assert found == 1 + phantom.FACTORS["count"].index(draw["count"])
        for blob in range(1, found + 1):
            rest = ndimage.distance_transform_edt(~((labels > 0) & (labels != blob)))
            if found > 1:
                assert rest[labels == blob].min() > 2.5 * size / 32


@pytest.mark.parametrize(
    ("position", "shape", "half"),
    [("middle left", "round", np.s_[:, 16:]), ("upper centre", "oval", np.s_[16:]), ("centre", "lobed", np.s_[:16])],
)
def test_satellites_take_the_corners_farthest_from_the_lesion(position, shape, half):
    rng = np.random.default_rng(0)
    for _ in range(5):
        factors = PLAIN | {"position": position, "shape": shape}
        alone, both = (phantom.render(factors | {"count": count}, rng)[1] for count in ("none", "two"))
        satellites = both & ~ndimage.binary_dilation(alone, iterations=3)
        assert satellites.sum() > 50 and satellites[half].sum() == satellites.sum()


def test_an_oval_is_wide_and_a_lobe_points_up():
    rng = np.random.default_rng(0)
    for size in phantom.FACTORS["size"]:
        _, mask = phantom.render(PLAIN | {"size": size, "shape": "oval"}, rng, 128)
        height, width = (np.ptp(indices) + 1 for indices in np.nonzero(mask))
        assert 1.65 < width / height < 2.05
        _, mask = phantom.render(PLAIN | {"size": size, "shape": "lobed"}, rng, 128)
        rows, columns = np.nonzero(mask)
        y, x = rows.mean(), columns.mean()
        above, below = (np.sum(mask[part, int(x)]) for part in (np.s_[: int(y)], np.s_[int(y) :]))
        assert above > 1.7 * below
        assert ndimage.binary_fill_holes(mask).sum() == mask.sum()


def test_area_follows_size_whatever_the_outline():
    rng = np.random.default_rng(0)
    areas = {
        (size, shape): phantom.render(PLAIN | {"size": size, "shape": shape}, rng, 64)[1].mean()
        for size in phantom.FACTORS["size"]
        for shape in phantom.FACTORS["shape"]
    }
    for size, radius in phantom.RADIUS.items():
        for shape in phantom.FACTORS["shape"]:
            assert areas[size, shape] == pytest.approx(np.pi * (radius / 32) ** 2, rel=0.08)


def test_a_colour_cast_leaves_brightness_and_contrast_alone():
    for gain in phantom.GAIN.values():
        assert np.mean(gain) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(("brightness", "contrast"), [("dark", "high"), ("bright", "low")])
def test_no_colour_drives_lines_out_of_range(brightness, contrast):
    rng = np.random.default_rng(0)
    style = {"brightness": brightness, "contrast": contrast, "texture": "lined", "size": "large", "count": "two"}
    for colour in phantom.FACTORS["colour"]:
        images = [phantom.render(PLAIN | style | {"colour": colour}, rng)[0] for _ in range(8)]
        assert np.min(images) > 0 and np.max(images) < 255


KNOWN = {name: {lv: ws[:-1] for lv, ws in levels.items()} for name, levels in phantom_text.WORDINGS.items()}
NEW = {name: {lv: ws[-1] for lv, ws in levels.items()} for name, levels in phantom_text.WORDINGS.items()}


def test_no_caption_of_any_split_holds_a_kept_out_wording_or_sentence():
    """Known captions are made of known words; the kept-out ones are for the metric alone."""
    kept_out = [word for levels in NEW.values() for word in levels.values()]
    frames = [re.split(r"\{.\}", pattern) for pattern in phantom_text.NEW_PATTERNS]
    for split in SPLITS:
        for item in phantom.items(split, 150, seed=0):
            assert not any(_mentions(item.caption, word) for word in kept_out), item.caption
            # "A frame with {m}." alone is known, of captions without anatomy.
            said = [frame for frame in frames if all(part in item.caption for part in frame if len(part) > 2)]
            assert not said, item.caption


def test_new_patterns_change_the_sentence_and_new_wordings_the_words():
    assert set(phantom.SOURCE.reader({}).styles) == {"new_patterns", "new_wordings"}
    rng, every = np.random.default_rng(0), tuple(phantom.FACTORS)
    for draw in _draws(40):
        known, patterns, wordings = (phantom.describe(draw, rng, every, style) for style in phantom.STYLES)
        for name, level in draw.items():
            assert any(_mentions(patterns, word) for word in KNOWN[name][level])
            assert _mentions(wordings, NEW[name][level])
            rest = re.sub(re.escape(NEW[name][level]), "", wordings, flags=re.IGNORECASE)  # may hold a known one
            assert not any(_mentions(rest, word) for word in KNOWN[name][level])
        fits = lambda text, frames: any(_fits(text, frame) for frame in frames)
        assert fits(patterns, phantom_text.NEW_PATTERNS) and not fits(patterns, phantom_text.PATTERNS)
        assert fits(wordings, phantom_text.PATTERNS) and not fits(wordings, phantom_text.NEW_PATTERNS)
        assert fits(known, phantom_text.PATTERNS)


def _fits(text: str, pattern: str) -> bool:
    wanted = re.escape(pattern).replace(r"\{a\}", ".*").replace(r"\{m\}", ".*")
    return re.fullmatch(wanted, text, re.IGNORECASE) is not None


def test_a_style_that_is_none_is_a_fault():
    with pytest.raises(KeyError, match="rhyme"):
        phantom.describe(PLAIN, np.random.default_rng(0), None, "rhyme")


def test_patterns_name_both_channels_in_either_order():
    assert len(set(phantom_text.PATTERNS)) >= 20
    assert all(pattern.count("{a}") == 1 and pattern.count("{m}") == 1 for pattern in phantom_text.PATTERNS)
    anatomy_first = sum(pattern.index("{a}") < pattern.index("{m}") for pattern in phantom_text.PATTERNS)
    assert 8 <= anatomy_first <= len(phantom_text.PATTERNS) - 8


def test_every_level_has_several_wordings_and_none_is_ambiguous():
    assert {name: set(levels) for name, levels in phantom_text.WORDINGS.items()} == {
        name: set(levels) for name, levels in phantom.FACTORS.items()
    }
    owners = [(n, lv, w) for n, levels in phantom_text.WORDINGS.items() for lv, ws in levels.items() for w in ws]
    for levels in phantom_text.WORDINGS.values():
        assert all(len(set(wordings)) >= 2 for wordings in levels.values())
    for name, level, wording in owners:
        for other_name, other_level, other in owners:
            if (name, level) != (other_name, other_level):
                assert not _mentions(other, wording), (wording, other)
        for frame in phantom_text.PATTERNS + phantom_text.NOTHING_SAID:
            assert not _mentions(frame, wording)


def test_a_caption_names_the_said_levels_and_nothing_else():
    rng = np.random.default_rng(0)
    subsets = [
        tuple(np.array(list(phantom.FACTORS))[rng.random(9) < p]) for p in (0.1, 0.3, 0.5, 0.8) for _ in range(40)
    ]
    for named, draw in zip([(), *subsets], _draws(len(subsets) + 1), strict=True):
        text = phantom.describe(draw, rng, named)
        for name, levels in phantom_text.WORDINGS.items():
            mentioned = {level for level, wordings in levels.items() if any(_mentions(text, w) for w in wordings)}
            assert mentioned == ({draw[name]} if name in named else set()), (name, text)


def test_a_caption_ignores_what_it_leaves_unsaid():
    first, second = PLAIN, {name: levels[-1] for name, levels in phantom.FACTORS.items()}
    for name in phantom.FACTORS:
        other = second | {name: first[name]}
        texts = [phantom.describe(f, np.random.default_rng(7), (name,)) for f in (first, other)]
        assert texts[0] == texts[1]


def test_choose_named_keeps_a_factor_of_each_channel():
    rng = np.random.default_rng(0)
    chosen = [phantom.choose_named(rng) for _ in range(1500)]
    assert all(set(named) & set(phantom.ANATOMY) and set(named) & set(phantom.MODALITY) for named in chosen)
    for name in phantom.FACTORS:
        assert 0.80 < np.mean([name in named for named in chosen]) < 0.90


def test_a_linear_model_on_words_and_pairs_reads_every_level():
    rng = np.random.default_rng(0)
    draws = _draws(2500, seed=5)
    named = [phantom.choose_named(rng) for _ in draws]
    texts = [phantom.describe(draw, rng, names) for draw, names in zip(draws, named, strict=True)]
    words = HashingVectorizer(n_features=1024, ngram_range=(1, 2)).transform(texts)
    for name in phantom.FACTORS:
        rows = np.array([i for i, names in enumerate(named) if name in names])
        truth = np.array([draws[i][name] for i in rows])
        half = len(rows) // 2
        model = RidgeClassifier(alpha=0.01, solver="sparse_cg").fit(words[rows[:half]], truth[:half])
        assert model.score(words[rows[half:]], truth[half:]) > 0.97, name


def test_bad_input_is_refused_with_its_name():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        next(phantom.items("dev", 1, seed=0))
    with pytest.raises(ValueError, match="size is 16"):
        phantom.render(PLAIN, rng, size=16)
    with pytest.raises(ValueError, match="'colour' is 'pink'"):
        phantom.render(PLAIN | {"colour": "pink"}, rng)
    with pytest.raises(ValueError, match="shininess"):
        phantom.describe(PLAIN, rng, ("size", "shininess"))
