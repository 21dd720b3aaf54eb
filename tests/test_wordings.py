"""Further captions of training pictures: true of the picture in their own channel, of other pictures in the other."""

import re

import numpy as np
import pytest

from tests.test_prepare import make_root, own, report, rows
from tests.test_prepare import phantom as prepared
from vgjax.config import ConfigError
from vgjax.data.caption import wordings
from vgjax.data.caption.wordings import BOTH
from vgjax.data.prepare import pictures as prepare
from vgjax.data.sources import phantom, phantom_text
from vgjax.types import CHANNELS, SPLITS

OTHER = {"anatomy": "modality", "modality": "anatomy"}


def said(text):
    """The levels that a phantom's caption names."""
    held = lambda words: any(re.search(rf"(?<![\w-]){re.escape(w)}(?![\w-])", text, re.IGNORECASE) for w in words)
    return {
        name: level for name, levels in phantom_text.WORDINGS.items() for level, words in levels.items() if held(words)
    }


def of_channel(levels, channel):
    return {name: level for name, level in levels.items() if phantom.CHANNEL[name] == channel}


@pytest.fixture(scope="module")
def training():
    """Levels of training pictures, and many further captions of each."""
    levels = [item.factors for item in phantom.items("train", 60, seed=0)]
    rng = np.random.default_rng(0)
    allowed = lambda both: not phantom.is_held_out(both)
    made = [wordings.swapped(one, levels, phantom.CHANNEL, phantom.describe, 12, rng, allowed) for one in levels]
    return levels, made


def test_each_channel_has_as_many_captions_as_asked_for(training):
    _, made = training
    assert all(set(one) == {*CHANNELS, BOTH} and all(len(texts) == 12 for texts in one.values()) for one in made)
    # Which facts are said, and how, is drawn anew.
    assert np.mean([len(set(texts)) for one in made for texts in one.values()]) > 11.5


def test_what_is_said_of_the_own_channel_is_true_of_the_picture(training):
    for levels, one in zip(*training, strict=True):
        for channel, texts in one.items():
            for text in texts:
                own_part = said(text) if channel == BOTH else of_channel(said(text), channel)
                assert own_part and own_part.items() <= levels.items(), (channel, text, levels)
        names = {name for text in one[BOTH] for name in said(text)}
        assert names == set(levels)  # of both channels


def test_what_is_said_of_the_other_channel_tells_nothing_of_the_picture(training):
    """It agrees with the picture no more often than two pictures do."""
    levels, made = training
    told = {channel: [] for channel in CHANNELS}
    for own_levels, one in zip(levels, made, strict=True):
        for channel in CHANNELS:
            for text in one[channel]:
                other = of_channel(said(text), OTHER[channel])
                assert other
                told[channel] += [own_levels[name] == level for name, level in other.items()]
    for channel, agree in told.items():
        names = [name for name, its in phantom.CHANNEL.items() if its == OTHER[channel]]
        chance = np.mean([1 / len(phantom.FACTORS[name]) for name in names])
        assert np.mean(agree) == pytest.approx(chance, abs=0.05)


def test_no_caption_joins_a_held_out_pair(training):
    _, made = training
    texts = [text for one in made for captions in one.values() for text in captions]
    assert len(texts) == 60 * 36 and not any(phantom.is_held_out(said(text)) for text in texts)


def test_without_the_rule_pairs_would_be_joined(training):
    """So that the test above says something."""
    levels, _ = training
    rng = np.random.default_rng(0)
    made = [wordings.swapped(one, levels, phantom.CHANNEL, phantom.describe, 12, rng) for one in levels]
    assert any(phantom.is_held_out(said(text)) for one in made for texts in one.values() for text in texts)


def test_where_no_other_picture_may_stand_beside_it_a_picture_keeps_its_own_levels():
    levels, own = {"size": "large", "colour": "grey"}, ["large; grey"] * 2
    channels = {"size": "anatomy", "colour": "modality"}
    tell = lambda found, rng: "; ".join(found.values())
    others = [{"size": "small", "colour": "amber"}]
    never = wordings.swapped(levels, others, channels, tell, 2, np.random.default_rng(0), lambda both: False)
    assert never == {"anatomy": own, "modality": own, BOTH: own}
    always = wordings.swapped(levels, others, channels, tell, 2, np.random.default_rng(0))
    assert always == {"anatomy": ["large; amber"] * 2, "modality": ["small; grey"] * 2, BOTH: own}


def test_the_same_draw_says_the_same():
    levels = [item.factors for item in phantom.items("train", 9, seed=0)]
    draw = lambda seed: wordings.swapped(
        levels[0], levels, phantom.CHANNEL, phantom.describe, 3, np.random.default_rng(seed)
    )
    assert draw(1) == draw(1) != draw(2)


TEXT = "First finding. Second one? Third; fourth! Fifth"


def test_own_texts_lose_sentences_and_keep_their_order():
    parts = ["First finding.", "Second one?", "Third;", "fourth!", "Fifth"]
    found = wordings.shortened(TEXT, 400, np.random.default_rng(0))
    assert found["anatomy"] == found["modality"] == found[BOTH] and len(found["anatomy"]) == 400
    kept = np.array([[part in text for part in parts] for text in found["anatomy"]])
    for text, row in zip(found["anatomy"], kept, strict=True):
        assert text == " ".join(part for part, keep in zip(parts, row, strict=True) if keep)
    assert kept.any(axis=1).all()
    assert kept.mean() == pytest.approx(wordings.KEPT + (1 - wordings.KEPT) / 5, abs=0.04)  # one of five always stays


@pytest.mark.parametrize("text", ["One sentence without an end", "a", "3.5 cm in size"])
def test_a_text_of_one_sentence_stays(text):
    assert wordings.shortened(text, 3, np.random.default_rng(0))["anatomy"] == [text] * 3


# ---------------------------------------------------------------- in prepared records


def test_training_rows_alone_have_further_captions(tmp_path):
    prepare.prepare(prepared(**{"data.wordings": 3}), tmp_path)
    found = {split: [row["wordings"] for row in rows(tmp_path, split)] for split in SPLITS}
    assert all(
        {name: len(texts) for name, texts in one.items()} == dict.fromkeys((*CHANNELS, BOTH), 3)
        for one in found["train"]
    )
    assert not any(found["validation"] + found["test"])
    for row in rows(tmp_path, "train"):
        for channel, texts in row["wordings"].items():
            for text in texts:
                told = said(text) if channel == BOTH else of_channel(said(text), channel)
                assert told.items() <= row["factors"].items()
                assert not phantom.is_held_out(said(text))


def test_another_seed_says_it_in_other_words_and_the_same_one_in_the_same(tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        prepare.prepare(prepared(seed=seed), tmp_path / name)
    one, again, other = ([row["wordings"] for row in rows(tmp_path / n, "train")] for n in ("one", "again", "other"))
    assert one == again != other


def test_shuffled_captions_take_their_further_captions_with_them(tmp_path):
    """Else a picture would be told the truth by them, and the control experiment would say nothing."""
    for name, on in (("plain", False), ("shuffled", True)):
        prepare.prepare(prepared(**{"data.shuffle_captions": on}), tmp_path / name)
    plain, shuffled = (list(rows(tmp_path / name, "train")) for name in ("plain", "shuffled"))
    told = {row["caption"]: row["wordings"] for row in plain}
    assert len(told) == len(plain)
    assert all(row["wordings"] == told[row["caption"]] for row in shuffled)
    assert [row["wordings"] for row in plain] != [row["wordings"] for row in shuffled]
    assert [row["image"] for row in plain] == [row["image"] for row in shuffled]


def test_noise_in_the_ground_truth_leaves_them_alone(tmp_path):
    for name, on in (("plain", False), ("noise", True)):
        prepare.prepare(prepared(**{"data.noise_factors": on}), tmp_path / name)
    plain, noise = ([row["wordings"] for row in rows(tmp_path / name, "train")] for name in ("plain", "noise"))
    assert plain == noise


@pytest.mark.parametrize("mode", ["own", "measured", "both"])
def test_further_captions_come_from_where_captions_do(tmp_path, mode):
    root = make_root(tmp_path / "data")
    prepare.prepare(own(root, **{"data.captions": mode, "data.wordings": 4}), tmp_path / "records")
    made = list(rows(tmp_path / "records", "train", "folder"))
    assert made and report(tmp_path / "records")["counts"]["train"] == len(made)
    for row in made:
        for texts in row["wordings"].values():
            assert len(texts) == 4
            assert all(("disc" in text) == (mode != "measured") for text in texts)
            assert all(("lesion" in text.lower()) == (mode != "own") for text in texts)
            assert not any(row["label"] and text.endswith(f"Class: {row['label']}.") for text in texts)
    # What is measured is said anew for each channel; a text of unknown clauses is the same for both.
    apart = any(row["wordings"]["anatomy"] != row["wordings"]["modality"] for row in made)
    assert apart == (mode != "own")


def test_the_class_is_told_where_captions_tell_it(tmp_path):
    root = make_root(tmp_path / "data")
    prepare.prepare(own(root, **{"data.label_in_caption": True}), tmp_path / "records")
    for row in rows(tmp_path / "records", "train", "folder"):
        assert row["label"]
        for text in (text for texts in row["wordings"].values() for text in texts):
            assert text.endswith(f" Class: {row['label']}.")


def test_phantoms_need_no_wordings_of_zero():
    with pytest.raises(ConfigError, match=r"data\.wordings' is 0: give a number in"):
        prepared(**{"data.wordings": 0})
