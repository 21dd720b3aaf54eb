import logging
from pathlib import Path
from typing import Any

import pytest

from vgjax.config import ConfigError
from vgjax.data.prepare import splits

CUT: dict[str, Any] = {"seed": 0, "test_fraction": 0.2, "validation_fraction": 0.1}


def assign(ids, groups=None, labels=None, official=None, **cut) -> splits.Assigned:
    blank = [""] * len(ids)
    return splits.assign(ids, groups or blank, labels or blank, official or blank, **(CUT | cut))


def test_alone_a_picture_falls_where_its_id_says():
    # A pin: a dataset prepared today and one prepared by a later version must agree on what is held out.
    ids = [f"cju{n}" for n in range(8)]
    expected = ["train", "train", "test", "train", "train", "train", "validation", "train"]
    assert [splits.split_of(name, 0, 0.2, 0.05) for name in ids] == expected
    assert list(assign(ids, validation_fraction=0.05).splits.values()) == expected
    assert splits.split_of("\udcff", 0, 0.2, 0.05) in splits.SPLITS  # a file name that is not UTF-8


def test_shares_are_met_on_average_and_the_seed_matters():
    ids = [f"x{n}" for n in range(5000)]
    found = assign(ids).splits
    shares = [list(found.values()).count(split) / 5000 for split in ("train", "validation", "test")]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.02)
    assert found != assign(ids, seed=1).splits


def test_groups_stay_whole_and_nobody_moves_when_pictures_come_and_go():
    ids = [f"x{n}" for n in range(600)]
    groups = [f"patient {n // 3}" if n < 300 else "" for n in range(600)]
    all_of_them = assign(ids, groups).splits
    for n in range(0, 300, 3):
        assert len({all_of_them[f"x{n + k}"] for k in range(3)}) == 1
    assert len(set(all_of_them.values())) == 3
    kept = [n for n in range(600) if n % 4]
    fewer = assign([ids[n] for n in kept], [groups[n] for n in kept]).splits
    assert fewer == {name: all_of_them[name] for name in fewer}


def test_official_splits_win_and_what_they_lack_is_cut_from_training_by_group():
    ids = [f"x{n}" for n in range(400)]
    groups = [f"p{n // 2}" for n in range(400)]
    official = ["test" if n < 100 else "train" for n in range(400)]
    found = assign(ids, groups, official=official).splits
    assert [name for name, split in found.items() if split == "test"] == ids[:100]
    validation = [name for name, split in found.items() if split == "validation"]
    assert 10 < len(validation) < 60
    assert all(found[f"x{n}"] == found[f"x{n + 1}"] for n in range(0, 400, 2))
    whole = ["test" if n < 100 else "validation" if n < 150 else "train" for n in range(400)]
    assert list(assign(ids, groups, official=whole).splits.values()) == whole
    without_test = ["validation" if n < 50 else "train" for n in range(400)]
    cut = assign(ids, groups, official=without_test).splits
    assert [cut[name] for name in ids[:50]] == ["validation"] * 50
    assert 30 < list(cut.values()).count("test") < 110 and list(cut.values()).count("validation") == 50


def test_a_group_torn_by_official_splits_is_named_and_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        found = assign(["a", "b", "c"], ["p", "p", "q"], official=["train", "test", "train"], validation_fraction=0)
    assert found.torn == ("p",)
    assert found.splits == {"a": "train", "b": "test", "c": "train"}
    assert "tear 1 groups apart, the first: p" in caplog.text


def test_a_class_without_pictures_in_a_split_is_named():
    found = assign(["a", "b", "c"], labels=["m", "n", ""], official=["train", "test", "train"], validation_fraction=0)
    assert found.absent == (("m", "test"), ("n", "train"))


@pytest.mark.parametrize(
    ("official", "complaint"),
    [
        (["train", "", "test"], "1 of 3 pictures have no official split, the first: 'b'"),
        (["train", "dev", "test"], "names a split 'dev'"),
    ],
)
def test_splits_that_cannot_be_are_refused(official, complaint):
    with pytest.raises(ConfigError, match=complaint) as caught:
        assign(["a", "b", "c"], official=official)
    assert "\n" not in str(caught.value)


ODD = ["a b", "c,d", "e\nf", "\r", ' "q"', '"', " padded ", "", "\u2028", "\udcff", "ü", "back\\slash", "\ufeffx", "#"]


def test_lists_are_read_back_as_written_whatever_the_ids(tmp_path):
    given = {name: ("train", "validation", "test")[n % 3] for n, name in enumerate(ODD)}
    splits.write(tmp_path / "splits", given)
    assert splits.read(tmp_path / "splits") == given
    assert {path.name for path in (tmp_path / "splits").iterdir()} == {"train.txt", "validation.txt", "test.txt"}
    splits.write(tmp_path / "plain", {"b c": "train", "a,d": "train", "x": "test"})
    assert (tmp_path / "plain" / "train.txt").read_text() == "a,d\nb c\n"
    assert (tmp_path / "plain" / "validation.txt").read_text() == ""


def write_lists(folder: Path, train: bytes = b"a\n", validation: bytes = b"", test: bytes = b"b\n") -> Path:
    folder.mkdir()
    for name, data in (("train", train), ("validation", validation), ("test", test)):
        (folder / f"{name}.txt").write_bytes(data)
    return folder


def test_lists_made_by_others_are_read(tmp_path):
    folder = write_lists(tmp_path / "x", b"\xef\xbb\xbfa\r\n\r\nb  \r\n", test="ü z".encode())
    assert splits.read(folder) == {"a": "train", "b": "train", "ü z": "test"}


@pytest.mark.parametrize(
    ("lists", "complaint"),
    [
        ({"test": b"a\n"}, r"test\.txt' line 1: the id 'a' stands in train\.txt too"),
        ({"train": b"a\na\n"}, r"train\.txt' line 2: the id 'a'"),
        ({"train": b"\n"}, r"train\.txt' lists no id"),
        ({"train": b"\xff\xfe"}, "is not UTF-8"),
        ({"train": b'a\n"b\n'}, r"train\.txt' line 2 is not a JSON string"),
    ],
)
def test_wrong_lists_are_refused(tmp_path, lists, complaint):
    with pytest.raises(ConfigError, match=complaint):
        splits.read(write_lists(tmp_path / "x", **lists))


def test_a_missing_list_is_named(tmp_path):
    (write_lists(tmp_path / "x") / "validation.txt").unlink()
    with pytest.raises(ConfigError, match=r"cannot read '.*validation\.txt'"):
        splits.read(tmp_path / "x")


def test_leaks_are_groups_and_pictures_on_both_sides():
    found = {"a": "train", "b": "test", "c": "train", "d": "validation", "e": "train"}
    hashes = {"a": "1", "b": "2", "c": "3", "d": "3", "e": "3"}
    assert splits.leaks(found, {"a": "p", "b": "p", "c": "q", "e": "q", "d": ""}, hashes) == [
        "the group 'p' is in train ('a') and test ('b')",
        "the same picture is in train ('c') and validation ('d')",
    ]
    assert splits.leaks(found, {}, {name: name for name in found}) == []
