"""Separation, wording and composition: which texts they ask with, and what they make of pictures that obey or leak."""

import numpy as np
import pytest

from tests.test_wordings import of_channel, said
from vgjax.data.caption.words import BREAST
from vgjax.data.sources import SOURCES, phantom, phantom_text
from vgjax.evaluation.metrics import METRICS, base, composition, separation
from vgjax.evaluation.metrics.base import Options, Seen
from vgjax.types import CHANNELS

PICTURE, MASK = np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8)
OPTIONS = Options(phantom.SOURCE.reader({}), seed=3, draws=1, resamples=100)


def made_cases(count=12):
    cases = []
    for item in phantom.items("test", count, seed=0):
        requested = {name: item.factors[name] for name in item.named}
        cases.append(base.TestCase(item.caption, item.label, item.factors, requested, PICTURE, MASK))
    return cases


CASES = made_cases()


def asked(metric, cases=CASES, options=OPTIONS):
    return {name: requests(cases, options) for name, requests in METRICS[metric].sets.items()}


def shown(metric, draw, cases=CASES, options=OPTIONS):
    """What a drawer makes of each request of each set: `draw` takes a text and the place of its case."""
    return {
        name: Seen(np.stack([PICTURE] * len(requests)), [draw(one.prompt, i) for i, one in enumerate(requests)])
        for name, requests in asked(metric, cases, options).items()
    }


def measured(metric, draw, cases=CASES, options=OPTIONS):
    drawn = shown(metric, draw, cases, options)
    return dict(METRICS[metric].run(cases, drawn, drawn[next(iter(drawn))], options))


def obedient(text, place):
    """A picture of what the text says; what it leaves unsaid stays with the noise, which a case's pictures share."""
    rng = np.random.default_rng(place)
    return {name: str(rng.choice(levels)) for name, levels in phantom.FACTORS.items()} | said(text)


def of(text, *salt):
    """A number that follows from a text."""
    return int(np.random.default_rng([len(text), *map(ord, text), *salt]).integers(1000))


# ---------------------------------------------------------------- leakage


def test_the_pictures_of_a_case_share_their_noise_and_those_of_others_do_not():
    for metric in ("leakage", "wording", "composition"):
        seeds = [[one.seed for one in requests] for requests in asked(metric).values()]
        assert all(one == seeds[0] for one in seeds) and None not in seeds[0]
        assert len(set(seeds[0])) == len(CASES)


def test_a_rewording_says_the_same_in_other_words():
    sets = asked("leakage")
    pairs = list(zip(sets["plain"], sets["reworded"], CASES, strict=True))
    for plain, reworded, case in pairs:
        assert said(plain.prompt) == said(reworded.prompt) == case.requested
    assert all(plain.prompt != reworded.prompt for plain, reworded, _ in pairs)


@pytest.mark.parametrize("channel", CHANNELS)
def test_the_other_channels_text_changes_alone(channel):
    sets = asked("leakage")
    changed = 0
    for plain, other, case in zip(sets["plain"], sets[f"other_{channel}"], CASES, strict=True):
        one, two = said(plain.prompt), said(other.prompt)
        assert one.keys() == two.keys() == case.requested.keys()
        kept = next(c for c in CHANNELS if c != channel)
        assert of_channel(one, kept) == of_channel(two, kept)
        changed += of_channel(one, channel) != of_channel(two, channel)
    assert changed > len(CASES) * 0.7


def test_pictures_that_follow_each_channels_own_words_leak_nothing():
    found = measured("leakage", obedient)
    for channel in CHANNELS:
        for name in ("leakage", "leakage_other", "leakage_reworded"):
            assert found[f"{name}/{channel}"].value == 0.0
        assert found[f"leakage/{channel}"].n == len(CASES)


def test_pictures_that_change_as_much_under_a_rewording_leak_nothing():
    """Every change of the text changes every reading: that is noise, not the other channel's doing."""
    found = measured("leakage", lambda text, place: {name: str(of(text)) for name in phantom.FACTORS})
    for channel in CHANNELS:
        assert found[f"leakage_other/{channel}"].value == found[f"leakage_reworded/{channel}"].value > 0.9
        assert found[f"leakage/{channel}"].value == 0.0


@pytest.mark.parametrize("leaky", CHANNELS)
def test_a_channel_that_follows_the_others_words_is_told(leaky):
    def draw(text, place):
        other = str(sorted((n, lv) for n, lv in said(text).items() if phantom.CHANNEL[n] != leaky))
        return {n: other if phantom.CHANNEL[n] == leaky else lv for n, lv in obedient(text, place).items()}

    found = measured("leakage", draw)
    for channel in CHANNELS:
        value = found[f"leakage/{channel}"]
        assert (value.value > 0.7 and value.interval[0] > 0) if channel == leaky else value.value == 0.0
    assert found[f"leakage_reworded/{leaky}"].value == 0.0


def test_the_share_is_of_the_factors_of_the_channel():
    before, after = (Seen(PICTURE[None], [levels]) for levels in ({"size": "small", "blur": "sharp"}, {"size": "big"}))
    assert separation.changed(before, after, ["size", "blur", "count", "shape"]).tolist() == [0.5]


def test_measured_captions_of_a_dataset_are_reworded_and_mixed_too():
    """A picture without lesion, of which no position is known, lends none; the case keeps its own."""
    reader = SOURCES["busi"].reader({})
    whole = {"position": "centre", "size": "small", "contrast": "low", "brightness": "dark"}
    other = {"position": "upper left", "size": "large", "contrast": "high", "brightness": "bright"}
    bare = {"contrast": "high", "brightness": "bright"}
    cases = [base.TestCase("", "", levels, levels, PICTURE, MASK) for levels in (whole, whole, bare, other)]
    sets = asked("leakage", cases, OPTIONS._replace(reader=reader))
    assert all(len(requests) == 4 and all(one.prompt for one in requests) for requests in sets.values())
    words = lambda factor, level: reader_words(sets["other_anatomy"][1].prompt, factor, level)
    assert words("size", "large") and words("contrast", "low")  # the other's anatomy, the case's own modality
    assert reader_words(sets["other_anatomy"][0].prompt, "size", "small")


def reader_words(text, factor, level):
    """Whether a text on an ultrasound names a level."""
    return any(words in text.lower() for words in BREAST.words[factor][level])


def test_captions_of_which_nothing_is_known_measure_no_leakage():
    cases = [case._replace(requested={}) for case in CASES]
    assert [one.prompt for one in asked("leakage", cases)["plain"]] == [case.caption for case in cases]
    assert measured("leakage", obedient, cases) == {}


# ---------------------------------------------------------------- wording


def test_new_patterns_and_wordings_say_the_same_as_the_caption():
    sets = asked("wording")
    assert set(sets) == {"plain", "new_patterns", "new_wordings"}
    for requests in sets.values():
        assert [said(one.prompt) for one in requests] == [case.requested for case in CASES]
    new = {word for levels in phantom_text.WORDINGS.values() for words in levels.values() for word in words[-1:]}
    holds_new = lambda one: any(word in one.prompt.lower() for word in new)
    assert all(map(holds_new, sets["new_wordings"])) and not any(map(holds_new, sets["plain"] + sets["new_patterns"]))


def test_who_understands_every_wording_loses_nothing():
    found = measured("wording", obedient)
    assert {name: one.value for name, one in found.items()} == dict.fromkeys(
        ["plain/accuracy", "new_patterns/accuracy", "new_patterns/same", "new_wordings/accuracy", "new_wordings/same"],
        1.0,
    )


def test_who_knows_no_new_words_loses_by_them_alone():
    new = [word for levels in phantom_text.WORDINGS.values() for words in levels.values() for word in words[-1:]]

    def deaf(text, place):
        for word in new:
            text = text.replace(word, "").replace(word.capitalize(), "")
        return dict.fromkeys(phantom.FACTORS) | said(text)

    found = measured("wording", deaf)
    assert found["plain/accuracy"].value == found["new_patterns/accuracy"].value == 1.0
    assert found["new_wordings/accuracy"].value < 0.5 and found["new_wordings/same"].value < 0.6
    assert found["new_patterns/same"].value == 1.0


# ---------------------------------------------------------------- composition


def held(levels):
    return [pair for pair in phantom.HELD_OUT if all(levels[factor] == level for factor, level in pair)]


def test_each_request_holds_one_held_out_pair_and_its_match_none():
    found = composition.pair_levels(40, OPTIONS)
    for place, (factors, unseen, seen) in enumerate(found):
        (pair,) = held(unseen)
        assert pair == phantom.HELD_OUT[place % len(phantom.HELD_OUT)]  # each as often as the others
        assert factors == tuple(factor for factor, _ in pair) and not held(seen)
        assert [name for name in unseen if unseen[name] != seen[name]] == [factors[1]]
        assert unseen.keys() == seen.keys() == phantom.FACTORS.keys()
    assert len({tuple(unseen.values()) for _, unseen, _ in found}) > 35
    assert composition.pair_levels(40, OPTIONS) == found


def test_the_texts_name_every_level():
    sets = asked("composition")
    levels = composition.pair_levels(len(CASES), OPTIONS)
    assert [said(one.prompt) for one in sets["unseen_pairs"]] == [unseen for _, unseen, _ in levels]
    assert [said(one.prompt) for one in sets["seen_pairs"]] == [seen for _, _, seen in levels]


def test_who_composes_has_no_gap():
    found = measured("composition", obedient)
    assert {name: one.value for name, one in found.items()} == {
        "composition/unseen": 1.0,
        "composition/seen": 1.0,
        "composition/gap": 0.0,
        "composition/pair_gap": 0.0,
    }


def test_who_draws_what_training_held_fails_by_the_pair():
    """The second factor of a held-out pair comes out wrong: one of nine factors, one of two of the pair."""

    def draw(text, place):
        levels = said(text)
        return levels | {pair[1][0]: None for pair in held(levels)}

    found = measured("composition", draw)
    assert found["composition/seen"].value == 1.0
    assert found["composition/gap"].value == pytest.approx(1 / 9)
    assert found["composition/pair_gap"].value == pytest.approx(1 / 2)
    assert found["composition/gap"].n == len(CASES)


def test_metrics_ask_for_what_they_need():
    assert set(METRICS["leakage"].needs) == set(METRICS["composition"].needs) - {"held_out"} == {"words"}
    assert {"new_patterns", "new_wordings"} <= set(METRICS["wording"].needs)
