import jax
import msgpack
import numpy as np
import pytest

from tests.test_hostile_artefacts import damage
from vgjax.config import ConfigError
from vgjax.data import records, stream
from vgjax.data.read.decode import to_png


def rows(count: int):
    return ({"n": np.array([i, i + 1], np.int32), "text": f"row {i}"} for i in range(count))


def opened(folder):
    return {name: records.Records([folder / f"{name}.array_record"]) for name in "ab"}


def test_encode_round_trip():
    fields = {
        "a": np.arange(6, dtype=np.float16).reshape(2, 3),
        "b": b"\x00x",
        "c": "é",
        "d": [1, "z"],
        "e": {"k": "v"},
    }
    back = records.decode(records.encode(fields))
    assert back["a"].dtype == np.float16
    np.testing.assert_array_equal(back.pop("a"), fields.pop("a"))
    assert back == fields


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\xc1",
        msgpack.packb([1, 2]),
        msgpack.packb({1: 2}),
        msgpack.packb({"x": {"dtype": "|O", "shape": [1], "bytes": b"12345678"}}),
        msgpack.packb({"x": {"dtype": "<f4", "shape": [3], "bytes": b"12345678"}}),
        msgpack.packb({"x": {"dtype": 5, "shape": "a", "bytes": None}}),
        b"\x81\xa1x" + b"\x91" * 100_000,
    ],
)
def test_a_record_of_something_else_is_refused(record):
    with pytest.raises(ConfigError, match="a record is damaged"):
        records.decode(record)


def test_png_round_trip():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(records.from_png(to_png(pixels)), pixels)


def test_zipped_files_join_by_row(tmp_path):
    records.write(tmp_path / "a.array_record", rows(5))
    records.write(tmp_path / "b.array_record", ({"other": i * 10} for i in range(5)))
    zipped = records.ZippedRecords(opened(tmp_path))
    assert (zipped[3]["other"], zipped[3]["text"]) == (30, "row 3")
    assert [zipped[row]["other"] for row in range(len(zipped))] == [0, 10, 20, 30, 40]


def test_files_of_other_length_are_refused(tmp_path):
    records.write(tmp_path / "a.array_record", rows(5))
    records.write(tmp_path / "b.array_record", rows(4))
    with pytest.raises(ConfigError, match=r"differ in length.*run again"):
        records.ZippedRecords(opened(tmp_path))


def test_several_files_follow_one_another(tmp_path):
    paths = [tmp_path / f"{name}.array_record" for name in "ab"]
    records.write(paths[0], rows(3))
    records.write(paths[1], ({"text": f"later {i}"} for i in range(2)))
    assert [row["text"] for row in map(records.Records(paths).__getitem__, range(5))] == [
        *("row 0", "row 1", "row 2"),
        *("later 0", "later 1"),
    ]


def test_skipped_rows_keep_their_numbers(tmp_path):
    records.write(tmp_path / "a.array_record", rows(6))
    kept = records.SkippedRows(records.Records([tmp_path / "a.array_record"]), {0, 4})
    assert (len(kept), kept.total, kept.numbers) == (4, 6, [1, 2, 3, 5])
    assert [kept[i]["text"] for i in range(4)] == ["row 1", "row 2", "row 3", "row 5"]


@pytest.mark.parametrize("kind", ["cut", "empty", "flipped", "missing", "pipe", "folder"])
def test_damage_is_seen_and_no_pipe_waited_for(tmp_path, at_once, kind):
    path = tmp_path / "a.array_record"
    records.write(path, rows(3))
    assert records.whole(path)
    damage(path, kind, 0.002)
    assert not records.whole(path)


class Counted:
    """Rows of two fields, and how often each was read."""

    def __init__(self, count: int):
        self.rows = [{"n": np.full(4, i, np.int32), "kept": i} for i in range(count)]
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict:
        self.read.append(row)
        return self.rows[row]


def test_permuted_fields_come_from_rows_that_are_left():
    """A row that is left out must not come back as another one's field."""
    left = records.SkippedRows(Counted(12), {2, 5})
    mixed = records.PermutedFields(left, ["n"], seed=1)
    found = [mixed[i] for i in range(len(mixed))]
    assert [row["kept"] for row in found] == left.numbers
    told = [int(row["n"][0]) for row in found]
    assert sorted(told) == left.numbers != told
    again = records.PermutedFields(left, ["n"], seed=1)
    assert [int(again[i]["n"][0]) for i in range(10)] == told
    other = records.PermutedFields(left, ["n"], seed=2)
    assert [int(other[i]["n"][0]) for i in range(10)] != told


def test_fields_that_are_permuted_together_stay_together():
    rows = [{"a": i, "b": -i, "c": i} for i in range(9)]
    mixed = records.PermutedFields(rows, ["a", "b"], seed=0)
    found = [mixed[i] for i in range(9)]
    assert all(row["a"] == -row["b"] for row in found) and [row["c"] for row in found] == list(range(9))


def test_rows_in_memory_are_read_once():
    source = Counted(5)
    kept = records.InMemory(source)
    for _ in range(3):
        assert [kept[i]["kept"] for i in range(len(kept))] == list(range(5))
    assert sorted(source.read[1:]) == list(range(5))  # the first read tells the size of a row


def test_rows_that_do_not_fit_into_memory_are_read_each_time():
    """Five rows of four numbers of 32 bits: 80 bytes."""
    for limit, reads in ((80, 5), (79, 15)):
        source = Counted(5)
        kept = records.InMemory(source, limit)
        for _ in range(3):
            assert [kept[i]["kept"] for i in range(5)] == list(range(5))
        assert len(source.read[1:]) == reads
    assert len(records.InMemory([])) == 0


def test_an_interrupted_write_leaves_no_file(tmp_path):
    def broken():
        yield {"n": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write(tmp_path / "a.array_record", broken())
    assert not (tmp_path / "a.array_record").exists()


def example(row):
    return {"n": row["n"]}


def test_training_batches_shuffle_repeat_and_resume(tmp_path):
    records.write(tmp_path / "a.array_record", rows(10))
    source = records.Records([tmp_path / "a.array_record"])
    data = stream.training_batches(source, example, 5, seed=3)
    epochs = np.concatenate([next(data)["n"][:, 0] for _ in range(4)])
    assert sorted(epochs[:10]) == list(range(10))
    assert list(epochs[:10]) != list(epochs[10:])
    state = data.get_state()
    wanted = next(data)["n"]
    again = stream.training_batches(source, example, 5, seed=3)
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["n"], wanted)
    kept = stream.training_batches(records.InMemory(source), example, 5, seed=3, in_memory=True)
    np.testing.assert_array_equal(np.concatenate([next(kept)["n"][:, 0] for _ in range(4)]), epochs)
    assert kept.get_state() == state
    other = stream.training_batches(source, example, 5, seed=4)
    assert list(np.concatenate([next(other)["n"][:, 0] for _ in range(2)])) != list(epochs[:10])


def test_any_number_of_processes_sees_the_same_batches_and_goes_on_from_one_state(tmp_path, monkeypatch):
    records.write(tmp_path / "a.array_record", rows(10))
    source = records.Records([tmp_path / "a.array_record"])
    whole = stream.training_batches(source, example, 4, seed=3)
    wanted = [set(next(whole)["n"][:, 0].tolist()) for _ in range(5)]
    monkeypatch.setattr(jax, "process_count", lambda *_: 2)
    shards = []
    for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda *_, process=process: process)
        shards.append(stream.training_batches(source, example, 4, seed=3))
    parts = [[next(shard)["n"][:, 0].tolist() for _ in range(3)] for shard in shards]
    assert [len(rows) for rows in parts[0] + parts[1]] == [2] * 6
    assert [{*a, *b} for a, b in zip(*parts, strict=True)] == wanted[:3]
    monkeypatch.undo()
    again = stream.training_batches(source, example, 4, seed=3)
    again.set_state(shards[0].get_state())
    assert shards[0].get_state() == shards[1].get_state()
    assert [set(next(again)["n"][:, 0].tolist()) for _ in range(2)] == wanted[3:]


def test_ordered_batches_see_every_row_once(tmp_path):
    records.write(tmp_path / "a.array_record", rows(7))
    batches = list(stream.ordered_batches(records.Records([tmp_path / "a.array_record"]), example, 4))
    assert [valid for _, valid in batches] == [4, 3]
    assert np.concatenate([b["n"][:v, 0] for b, v in batches]).tolist() == list(range(7))
    assert batches[1][0]["n"].shape == (4, 2)
