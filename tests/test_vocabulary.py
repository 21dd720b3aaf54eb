"""The vocabulary of the training captions: a word of its own for each entry, and what it does not know is told."""

import itertools

import numpy as np
import pytest

from vgjax.config import ConfigError, TextEncoder
from vgjax.data.sources import phantom
from vgjax.models.text_encoder import SynonymEncoder, VocabularyEncoder, words_of
from vgjax.text import load_text_encoder, write_vocabulary

TEXTS = ["A small polyp.", "Large polyps in the centre.", "a large polyp in the upper left; grade 3"]


def fitted(width=64, texts=TEXTS):
    return VocabularyEncoder.fit(texts, width)


def test_words_and_pairs_have_entries_of_their_own():
    """No two fall together, as hashed ones may: each by itself is one place, and no two the same."""
    encode = fitted()
    words = {word for text in TEXTS for word in words_of(text)}
    pairs = {f"{one} {two}" for text in TEXTS for one, two in itertools.pairwise(words_of(text))}
    assert set(encode.entries) == words | pairs and len(encode.entries) == len(words) + len(pairs)
    alone = encode(sorted(words))
    assert ((alone != 0).sum(axis=1) == 1).all()
    assert len({int(row.argmax()) for row in alone}) == len(words)
    for pair in pairs:
        (place,) = np.flatnonzero(encode([pair])[0] - encode([pair.split()[0]])[0] - encode([pair.split()[1]])[0] > 0.1)
        assert encode.entries[place] == pair


def test_a_thousand_captions_of_phantoms_lose_no_word():
    captions = [item.caption for item in phantom.items("train", 1000, seed=0)]
    encode = VocabularyEncoder.fit(captions, TextEncoder().width)
    assert encode.unknown(captions) == []
    assert len(set(encode.entries)) == len(encode.entries) <= TextEncoder().width


def test_a_word_is_as_strong_by_itself_as_among_others():
    encode = fitted()
    place = encode.entries.index("large")
    for text in ("large", "Large polyps in the centre", "a LARGE, large polyp in the upper left", "large zebra"):
        assert encode([text])[0, place] == np.float32(encode.scale)
    assert encode(["small"])[0, place] == 0.0


def test_the_training_captions_have_mean_square_one():
    for width in (20, 64, 256):
        assert (fitted(width)(TEXTS) ** 2).mean() == pytest.approx(1.0, rel=1e-5)


def test_a_text_without_a_known_word_is_zero_and_case_and_punctuation_do_not_count():
    encode = fitted()
    assert not encode(["", "zebra crossing", "?!"]).any()
    np.testing.assert_array_equal(encode(["A LARGE polyp, in the centre"]), encode(["a large polyp in the centre"]))
    assert encode([]).shape == (0, 64) and encode(TEXTS).dtype == np.float32
    assert np.abs(encode(["upper left grade"]) - encode(["left grade upper"])).max() > 0  # pairs tell the order


def test_words_come_before_pairs_and_common_pairs_before_rare_ones():
    words = sorted({word for text in TEXTS for word in words_of(text)})
    narrow = fitted(len(words) + 1)
    assert sorted(narrow.entries[:-1]) == words
    assert narrow.entries[-1] == "in the"  # the one pair that two captions hold


def test_unknown_words_are_told_once_in_their_order():
    encode = fitted()
    assert encode.unknown(["A violet polyp, violet as a zebra", "small", "Zebra or violet grade 4"]) == [
        *("violet", "as", "zebra", "or", "4"),
    ]
    assert encode.unknown(TEXTS) == []


def test_known_words_are_told_by_their_entries():
    encode = fitted()
    ids, none = encode.ids(["a violet small polyp", "violet"])
    assert [encode.entries[i] for i in ids] == ["a", "small", "polyp"] and none == []


@pytest.mark.parametrize(
    "texts",
    [["", "?"], []],
)
def test_captions_without_a_word_are_refused_in_one_sentence(texts):
    with pytest.raises(ConfigError, match="no training caption holds a word: give them text") as caught:
        VocabularyEncoder.fit(texts, 5)
    assert "\n" not in str(caught.value)


def test_words_that_find_no_room_are_the_rarest_and_are_counted(caplog):
    narrow = VocabularyEncoder.fit(["a a b c d", "a b c", "a b", "z"], 2)
    assert narrow.entries == ("a", "b") and narrow.unknown(["z b c"]) == ["z", "c"]
    assert "text_encoder.width is 2: 3 of 5 words of the training captions" in caplog.text


def test_the_same_text_has_the_same_embedding_after_the_file(tmp_path):
    """Drawing reads the vocabulary that training wrote."""
    path = tmp_path / "vocabulary.json"
    texts = [*TEXTS, "Ödem über 3 cm"]
    count = write_vocabulary(path, iter(texts), 64)
    read = load_text_encoder(TextEncoder(kind="vocabulary", width=64), path)
    wanted = fitted(texts=texts)
    assert count == len(wanted.entries)
    asked = [*texts, "a zebra in the über centre"]
    np.testing.assert_array_equal(read(asked), wanted(asked))
    assert read.unknown(asked) == ["zebra"]
    write_vocabulary(tmp_path / "again.json", reversed(texts), 64)  # the order of the captions decides nothing
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_the_kind_without_its_file_is_our_fault():
    with pytest.raises(ValueError, match="needs the vocabulary of the training captions"):
        load_text_encoder(TextEncoder(kind="vocabulary"))


# ---------------------------------------------------------------- unknown words, read as known ones

PLANE = {"large": (1.0, 0.0), "huge": (1.0, 0.3), "small": (0.0, 1.0), "polyp": (-1.0, 0.0), "growth": (-1.0, -0.1)}
PLANE |= {"upper": (1.0, 0.2), "polyps": (-1.0, 0.1)}


def reading(known=None):
    """A fake encoder of the words above on a plane; all others, whatever they are, point out of it."""
    embed = lambda texts: np.array([(*PLANE.get(text, (0.0, 0.0)), float(text not in PLANE)) for text in texts])
    return SynonymEncoder(known or fitted(), embed)


def test_an_unknown_word_is_read_as_the_most_alike_that_stood_in_its_place():
    encode, known = reading(), fitted()
    # "upper" is more like "huge" than "large" is, but never stood before "polyp".
    assert encode.unknown(["a huge polyp"]) == ["huge (read as large)"]
    np.testing.assert_array_equal(encode(["A huge polyp."]), known(["a large polyp"]))
    assert encode.ids(["huge polyp"]) == known.ids(["large polyp"])
    assert encode(["a huge polyp"]).shape == (1, encode.width)


def test_the_word_behind_is_read_first():
    """ "growth" stands before "in", as "polyp" and "polyps" do; read as one of them it tells what "huge" may be."""
    encode = reading(fitted(texts=[*TEXTS, "a large polyp in the lower right"]))
    assert encode.unknown(["huge growth in the centre"]) == ["huge (read as large)", "growth (read as polyp)"]


def test_a_word_that_is_like_none_or_stands_nowhere_known_stays_ignored_and_told():
    encode, known = reading(), fitted()
    assert encode.unknown(["a zebra polyp", "huge zebra", "huge"]) == ["zebra", "huge"]
    np.testing.assert_array_equal(encode(["a zebra polyp"]), known(["a polyp"]))


def test_known_texts_are_heard_as_they_are():
    encode, known = reading(), fitted()
    np.testing.assert_array_equal(encode(TEXTS), known(TEXTS))
    assert encode.unknown(TEXTS) == [] and not encode([""]).any()
