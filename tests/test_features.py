"""Derived columns: joined by row number, resumable, and damage costs what is damaged and nothing else."""

import contextlib
import itertools
import pathlib
import shutil

import numpy as np
import pytest

from tests.test_prepare import phantom
from vgjax import build, checkpoint, parallel
from vgjax.config import ConfigError
from vgjax.context import VARIABLES, Producer, Run
from vgjax.data import records, stream
from vgjax.data.prepare import builder
from vgjax.data.prepare.pictures import PICTURES
from vgjax.features import base, factors
from vgjax.features.latents import LATENTS
from vgjax.features.text import TEXT, TOKENS, VOCABULARY, WORDINGS, encoder_of, tokens
from vgjax.models.text_encoder import Hashing, padded
from vgjax.stages.disentangler import paired
from vgjax.store import Store, StoreError
from vgjax.types import CHANNELS, SPLITS


def grey_of(row):
    return records.from_png(row["image"]).mean()


def column(name, fields, source="pictures", make=base.write_column):
    """A producer whose records are what `fields` makes of a row."""

    def filled(context, folder):
        sources = {split: context.rows([source], split) for split in SPLITS}
        return make(folder, name, sources, lambda rows: map(fields, rows), 3)

    return Producer(name, filled, keys=(), needs=(source,))


GREY = column("grey", lambda row: {"grey": np.float64(grey_of(row))[None]})
FACTORS = column("factors", lambda row: {name: np.float64(grey_of(row))[None] for name in ("anatomy", "modality")})
COUNT = column("count", lambda row: {"words": np.abs(row["embedding"]).sum(keepdims=True)}, source="text")
PRODUCERS = {one.name: one for one in (PICTURES, VOCABULARY, TEXT, WORDINGS, TOKENS, GREY, FACTORS, COUNT, LATENTS)}


def opened(store: pathlib.Path, producers=PRODUCERS, **changes) -> Run:
    """As a new process would open it."""
    config = phantom(**changes)
    return Run(config, store.parent / "run", parallel.make_mesh(config.mesh), Store(store), producers)


def flip(path: pathlib.Path, row: int) -> None:
    """Changes one bit of a shard that damages this record and no other."""
    whole = path.read_bytes()
    for place in range(0, len(whole), 29):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with contextlib.suppress(ConfigError):
            if records.unreadable([path]) == [row]:
                return
    raise AssertionError(f"no bit of {path} damages record {row} alone")


def shard(store: pathlib.Path, name: str, split: str = "train") -> pathlib.Path:
    """The last shard of a split."""
    pattern = builder.shards("phantom", split) if name == "pictures" else f"{split}-*"
    return max(store.glob(f"{name}-*[0-9a-f]/{pattern}"))


def test_a_shard_that_was_damaged_before_it_was_published_is_written_again(tmp_path):
    """What a killed process left; what is whole of it stays."""
    calls = []

    def make() -> None:
        rows = records.SkippedRows([{"x": np.float64([i])} for i in range(4)], ())
        sources = {"train": rows, "validation": rows}
        base.write_column(tmp_path, "x", sources, lambda rows: calls.append(len(rows)) or rows, 9)

    make()
    first, _ = (tmp_path / f"{split}-00000.array_record" for split in ("train", "validation"))
    before = first.read_bytes()
    flip(first, 2)
    make()
    assert first.read_bytes() == before and calls == [4, 4, 4]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store of pictures and two columns of 12 training rows in shards of 5."""
    store = tmp_path_factory.mktemp("features") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "SHARD_ROWS", 5)
        for name in ("pictures", "text", "grey"):
            opened(store).artefact(name)
    return store


@pytest.fixture
def store(made, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "SHARD_ROWS", 5)
    return shutil.copytree(made, tmp_path / "store")


def test_columns_join_by_number(store):
    context = opened(store).context
    for split in SPLITS:
        pictures, joined = (context.rows(kinds, split) for kinds in (["pictures"], ["pictures", "text", "grey"]))
        assert joined.numbers == list(range(joined.total)) == list(range(len(pictures)))
        wanted = encoder_of(context)([pictures[i]["caption"] for i in range(len(pictures))]).astype(np.float16)
        for i, embedding in enumerate(wanted):
            row = joined[i]
            assert (row["id"], row["grey"][0]) == (pictures[i]["id"], grey_of(pictures[i]))
            assert row["embedding"].dtype == np.float16
            np.testing.assert_array_equal(row["embedding"], embedding)
    assert len(list(shard(store, "grey").parent.glob("train-*"))) == 3


def test_a_finished_shard_is_not_made_again_and_an_unfinished_one_is(store, monkeypatch):
    shutil.rmtree(shard(store, "grey").parent)
    seen = []

    def stopping(row):
        if len(seen) == 8:
            raise KeyboardInterrupt
        seen.append(row["id"])
        return {"grey": np.float64(grey_of(row))[None]}

    ids = [row["id"] for row in map(builder.Pictures(*place(store), "train").__getitem__, range(12))]
    with pytest.raises(KeyboardInterrupt):
        opened(store, PRODUCERS | {"grey": column("grey", stopping)}).artefact("grey")
    assert opened(store).find("grey") is None and seen == ids[:8]
    (part,) = store.glob("grey-*.part")
    assert sorted(path.name for path in part.iterdir()) == ["recipe.json", "train-00000.array_record"]
    (part / ".train-00001-0123.part").write_bytes(b"of a process that was killed")
    before = (part / "train-00000.array_record").stat().st_mtime_ns

    seen.clear()
    going_on = column("grey", lambda row: seen.append(row["id"]) or {"grey": np.float64(grey_of(row))[None]})
    found = opened(store, PRODUCERS | {"grey": going_on}).artefact("grey")
    assert seen[:7] == ids[5:] and len(seen) == 7 + 6 + 5
    assert (found.folder / "train-00000.array_record").stat().st_mtime_ns == before
    shards = {"train": 3, "validation": 2, "test": 1}
    assert set(found.files) == {f"{s}-{n:05d}.array_record" for s, count in shards.items() for n in range(count)}
    whole = opened(store.parent / "other").artefact("grey")
    assert found.manifest["files"] == whole.manifest["files"]


def place(store: pathlib.Path) -> tuple[pathlib.Path, str]:
    """Folder and name of the pictures in a store."""
    return opened(store).artefact("pictures").folder, "phantom"


def warnings(caplog) -> list[str]:
    return [message for message in caplog.messages if "damaged records" in message]


def test_a_damaged_picture_costs_itself_in_every_join(store, caplog):
    flip(shard(store, "pictures"), row=4)
    run = opened(store)
    left = [number for number in range(12) if number != 4]
    for kinds in (["pictures"], ["pictures", "text"], ["grey", "pictures", "text"]):
        rows = run.context.rows(kinds, "train")
        assert (rows.numbers, rows.total) == (left, 12)
        assert all(rows[i] for i in range(len(rows)))
    assert run.context.rows(["text"], "train").total == len(run.context.rows(["text"], "train"))
    assert len(run.context.rows(["pictures", "text"], "validation")) == 6
    (told,) = warnings(caplog)
    assert told.startswith("1 damaged records of train") and str(run.artefact("pictures").folder) in told

    info = run.artefact("factors").manifest["info"]  # made afterwards
    assert info["absent"] == {"train": [4], "validation": [], "test": []}
    assert run.context.rows(["factors"], "train").numbers == left
    assert run.context.rows(["factors", "text"], "train").numbers == left
    joined = opened(store).context.rows(["grey", "factors"], "train")
    assert [row["grey"] for row in map(joined.__getitem__, range(11))] == [joined[i]["anatomy"] for i in range(11)]


def test_a_damaged_record_of_a_column_costs_itself(store, caplog):
    flip(shard(store, "text"), row=1)  # of the third shard: number 11
    run = opened(store)
    assert run.context.rows(["pictures", "grey"], "train").numbers == list(range(12))
    for kinds in (["text"], ["pictures", "text"], ["text", "grey"]):
        assert run.context.rows(kinds, "train").numbers == list(range(11))
    (told,) = warnings(caplog)
    assert told.startswith("1 damaged records of train") and str(run.artefact("text").folder) in told
    assert run.artefact("count").manifest["info"]["absent"]["train"] == [11]
    assert run.context.rows(["pictures", "count"], "train").numbers == list(range(11))


@pytest.mark.parametrize("name", ["pictures", "text", "grey"])
def test_a_shard_of_another_seed_is_refused(store, tmp_path, name):
    """It is whole in itself, and of the same size."""
    other = Run(phantom(seed=1), tmp_path, opened(store).mesh, Store(tmp_path / "other"), PRODUCERS)
    other.artefact(name)
    path, foreign = shard(store, name), shard(tmp_path / "other", name)
    assert path.stat().st_size == foreign.stat().st_size and path.read_bytes() != foreign.read_bytes()
    shutil.copy(foreign, path)
    with pytest.raises(StoreError, match=rf"'{path}' is not as it was made, .*: delete the artefact's folder and run"):
        opened(store).context.rows([name], "train")
    assert len(opened(store).context.rows([name], "validation")) == 6


def test_of_two_damaged_kinds_the_union_is_left_out(store, caplog):
    flip(shard(store, "pictures"), row=4)
    flip(shard(store, "text"), row=0)  # number 10
    run = opened(store)
    rows = run.context.rows(["pictures", "text"], "train")
    assert rows.numbers == [n for n in range(12) if n not in (4, 10)]
    assert len(warnings(caplog)) == 2
    assert run.artefact("count").manifest["info"]["absent"]["train"] == [10]
    assert run.artefact("factors").manifest["info"]["absent"]["train"] == [4]
    assert run.context.rows(["count", "factors"], "train").numbers == rows.numbers


@pytest.mark.parametrize("permuted", ["", "anatomy", "modality"])
def test_an_absent_record_never_reaches_an_example(store, permuted):
    """Not by way of a control experiment either, which takes a field of one row for another."""
    flip(shard(store, "pictures"), row=4)
    changes = {f"disentangler.shuffle_{permuted}_targets": True} if permuted else {}
    context = opened(store, **changes).context
    rows = paired(context, ["factors", "grey"], "train")
    greys = [rows[i]["grey"].item() for i in range(len(rows))]
    assert len(greys) == 11
    for name in ("anatomy", "modality"):
        found = [rows[i][name].item() for i in range(len(rows))]
        assert sorted(found) == sorted(greys)
        assert (found == greys) == (name != permuted)
    example = lambda row: {"pair": np.concatenate([row["anatomy"], row["modality"]])}
    for batch in itertools.islice(stream.training_batches(rows, example, 11, seed=0), 3):
        assert sorted(batch["pair"][:, 0]) == sorted(batch["pair"][:, 1]) == sorted(greys)
    assert sum(valid for _, valid in stream.ordered_batches(rows, example, 4)) == 11


def test_further_captions_are_embedded_for_each_channel_of_the_training_pictures(store):
    flip(shard(store, "pictures"), row=4)
    context = opened(store, **{"data.wordings": 3}).context  # pictures anew
    encoder = encoder_of(context)
    rows = context.rows(["pictures", "wordings"], "train")
    assert len(rows) == 12
    for row in map(rows.__getitem__, range(12)):
        for channel in CHANNELS:
            found = row[f"{channel}_text"]
            assert found.dtype == np.float16 and len(row["wordings"][channel]) == 3
            np.testing.assert_array_equal(found, encoder(row["wordings"][channel]).astype(np.float16))
            assert encoder.unknown(row["wordings"][channel]) == []
        assert (row["anatomy_text"] != row["modality_text"]).any()
    rows = context.rows(["wordings", "text"], "validation")
    for row in map(rows.__getitem__, range(6)):  # their own captions alone
        for channel in CHANNELS:
            np.testing.assert_array_equal(row[f"{channel}_text"], row["embedding"][None])


def test_tokens_are_those_of_captions_that_are_true_in_both_channels(store):
    context = opened(store, **{"data.wordings": 3}).context
    encoder = encoder_of(context)
    for split, count in (("train", 3), ("validation", 1)):
        rows = context.rows(["pictures", "tokens"], split)
        for row in map(rows.__getitem__, range(6)):
            captions = row["wordings"]["both"] if count == 3 else [row["caption"]]
            assert row["tokens"].dtype == np.int32 and len(row["tokens"]) == count == len(captions)
            for ids, caption in zip(row["tokens"], captions, strict=True):
                assert ids[ids >= 0].tolist() == encoder.ids([caption])[0]


def test_tokens_are_padded_and_cut():
    assert padded([[5, 6, 7], [8]], 2).tolist() == [[5, 6], [8, -1]] and padded([[]], 1).tolist() == [[-1]]
    (row,) = tokens(Hashing(8), [{"caption": "...", "wordings": {}}])  # of no word
    np.testing.assert_array_equal(records.decode(records.encode(row))["tokens"], [[-1]])


def test_a_damaged_picture_costs_its_further_captions_and_no_others(store):
    flip(shard(store, "pictures"), row=4)
    run = opened(store)
    assert run.artefact("wordings").manifest["info"]["absent"] == {"train": [4], "validation": []}
    assert run.context.rows(["wordings", "text"], "train").numbers == [n for n in range(12) if n != 4]


@pytest.mark.parametrize("kind", ["hashing", "vocabulary"])
def test_only_the_encoder_that_needs_a_vocabulary_has_one(store, kind):
    run = opened(store, **{"text_encoder.kind": kind})
    assert bool(run.artefact("vocabulary").files) == (kind == "vocabulary")
    assert encoder_of(run.context)(["a small lesion"]).any()


def test_a_vocabulary_too_large_for_the_embedding_keeps_the_commonest_words_and_says_so(store, caplog):
    run = opened(store, **{"text_encoder.width": 8})
    assert run.artefact("vocabulary").manifest["info"]["entries"] == 8
    assert "words of the training captions, the rarest, are left out" in caplog.text


def halve(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: pathlib.Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [pathlib.Path.unlink, halve, empty])
@pytest.mark.parametrize("name", ["pictures", "text"])
def test_a_missing_or_cut_shard_is_one_clear_error(store, name, damage):
    path = shard(store, name)
    damage(path)
    run = opened(store)
    with pytest.raises(StoreError, match=r"cannot be opened .*: delete the artefact's folder and run again$") as caught:
        run.context.rows([name], "train")
    assert str(run.artefact(name).folder) in str(caught.value) and "\n" not in str(caught.value)
    assert len(run.context.rows([name], "validation")) == 6


@pytest.mark.parametrize("damage", [pathlib.Path.unlink, halve])
@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_a_damaged_table_of_contents_is_one_clear_error(store, file, damage):
    path = shard(store, "pictures").parent / file
    damage(path)
    with pytest.raises(StoreError, match=rf"{file}.*: delete the folder .* and run again$") as caught:
        opened(store).context.rows(["pictures"], "validation")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flip", [False, True])
def test_latents_are_of_the_picture_and_of_its_mirror_image(store, flip):
    mirrored = {"denoiser.flip": True, "denoiser.learn_from": "text", "disentangler.method": "regression"}
    run = opened(store, **(mirrored if flip else {}))
    assert {name.split("-")[0] for name in run.artefact("latents").files} == {"train", "validation"}
    rows = run.context.rows(["pictures", "latents"], "train")
    assert len(rows) == 12  # three batches
    for row in map(rows.__getitem__, range(12)):
        pixels = 2.0 * (records.from_png(row["image"]) / 127.5 - 1)  # of doubled scale
        wanted = np.stack([pixels, pixels[:, ::-1]] if flip else [pixels])
        assert row["latents"].dtype == np.float16
        np.testing.assert_allclose(row["latents"], wanted, atol=2e-3)


def test_factors_are_standardised_over_the_training_rows_that_are_there(store):
    import jax

    flip(shard(store, "pictures"), row=4)
    changes = {"prior.widths": (8, 8), "prior.grid": 4}

    def untrained(context, folder):
        module, size = build.prior(context.config), build.prior_size(context.config)
        variables = module.init(jax.random.key(0), np.zeros((2, size, size, 3), np.float32))
        checkpoint.save_export(folder / VARIABLES, dict(variables))

    prior = Producer("prior", untrained, keys=("prior.*", "data.image_size", "data.intensity"), needs=("pictures",))
    run = opened(store, PRODUCERS | {"prior": prior, "factors": factors.FACTORS}, **changes)
    info = run.artefact("factors").manifest["info"]
    assert info["absent"] == {"train": [4], "validation": []}
    rows = run.context.rows(["factors"], "train")
    anatomy = np.stack([rows[i]["anatomy"] for i in range(11)])
    assert anatomy.shape == (11, 4, 4, 9)
    pictures = run.context.rows(["pictures"], "train")
    for i in range(11):  # the lesion's coverage, twice as fine as the anatomy
        share = rows[i]["mask"].astype(float)
        assert share.shape == (64,) and 0.0 <= share.min() < 0.01 and 0.3 < share.max() <= 1.0
        assert share.mean() == pytest.approx(records.from_png(pictures[i]["mask"]).mean(), abs=0.01)
    np.testing.assert_allclose(anatomy.mean((0, 1, 2)), 0, atol=1e-4)
    assert {"raw"}.isdisjoint(path.name for path in run.artefact("factors").folder.iterdir())
