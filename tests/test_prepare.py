"""Preparation from source files to records: accounted for, resumable, and the same each time."""

import csv
import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from configs import folder as folder_config
from configs import phantom as phantom_config
from tests import hostile
from vgjax import config as configs
from vgjax.config import ConfigError
from vgjax.data import records
from vgjax.data.caption import words
from vgjax.data.entries import Entry, Skip
from vgjax.data.prepare import builder, parts, plan, splits
from vgjax.data.prepare import pictures as prepare
from vgjax.data.read import decode
from vgjax.store import Store


def phantom(**changes):
    c = phantom_config.get_config("smoke")
    c.update_from_flattened_dict({"data.train_items": 12, "data.validation_items": 6, "data.test_items": 5, **changes})
    return configs.from_config_dict(c)


def own(root, **changes):
    c = folder_config.get_config("smoke")
    fixed = {"data.root": str(root), "data.workers": 1, "data.validation_fraction": 0.2}
    c.update_from_flattened_dict({**fixed, **changes})
    return configs.from_config_dict(c)


def make_root(root: pathlib.Path, count: int = 24, repeated: int = 0, groups: int = 0) -> pathlib.Path:
    """Drawn discs with captions; the last `repeated` pictures nearly repeat the first."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    table = [["file_name", "text", "label", "mask", *(["group"] * bool(groups))]]
    for number in range(count):
        noise = np.random.default_rng(number)
        look = np.random.default_rng(number if number < count - repeated else number - (count - repeated))
        y, x = np.mgrid[:48, :60]
        disc = np.hypot(x - look.uniform(15, 45), y - look.uniform(15, 33)) < look.uniform(6, 14)
        field = np.asarray(Image.fromarray(look.uniform(40, 200, (4, 5)).astype(np.uint8)).resize((60, 48)))
        picture = np.where(disc, 255 - field, field)[..., None] + noise.normal(0, 1, (48, 60, 3))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(root / "images" / f"p{number:02d}.png")
        Image.fromarray((disc * 255).astype(np.uint8)).save(root / "masks" / f"p{number:02d}.png")
        row = [f"p{number:02d}.png", f"A disc, number {number}.", "ab"[number % 2], f"p{number:02d}.png"]
        table.append([*row, *([f"g{number % groups}"] if groups else [])])
    with (root / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(table)
    rng.shuffle(table)
    return root


def rows(folder, split, name="phantom"):
    pictures = builder.Pictures(folder, name, split)
    return [pictures[number] for number in range(len(pictures))]


def all_rows(folder, name="folder"):
    return {split: rows(folder, split, name) for split in ("train", "validation", "test")}


def report(folder):
    return json.loads((folder / "prepare_report.json").read_text())


def contents(folder):
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def get(store, config):
    """The artefact of prepared pictures, made where it is not there."""
    return store.get(prepare.PICTURES.recipe(config, {}), lambda folder: prepare.prepare(config, folder))


# ---------------------------------------------------------------- phantom


def test_records_hold_pictures_and_captions(tmp_path):
    info = prepare.prepare(phantom(), tmp_path)
    assert info["counts"] == {"train": 12, "validation": 6, "test": 5}
    assert (info["source"], info["skipped"]) == ("phantom", 0)
    made = all_rows(tmp_path, "phantom")
    assert {split: len(source) for split, source in made.items()} == info["counts"]
    row = made["train"][0]
    assert records.from_png(row["image"]).shape == (32, 32, 3)
    assert set(np.unique(records.from_png(row["mask"]))) == {0, 1}
    assert set(row["named"]) <= set(row["factors"])
    captions = [row["caption"] for split in ("train", "validation") for row in made[split]]
    assert info["sided"] == sum(bool({"left", "right"} & set(re.findall("[a-z]+", text))) for text in captions) > 0
    assert {"numpy", "array-record"} <= set(info["versions"])
    assert json.loads(json.dumps(info)) == info  # as the artefact's manifest keeps it


def test_prepared_records_are_left_alone_and_equal_when_made_again(tmp_path):
    made = get(Store(tmp_path / "a"), phantom())
    before = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}
    found = get(Store(tmp_path / "a"), phantom())
    assert found.folder == made.folder
    assert {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")} == before
    again = get(Store(tmp_path / "b"), phantom())
    assert again.manifest["files"] == made.manifest["files"] and len(made.files) > 3
    assert again.manifest["info"] == made.manifest["info"]


def test_shuffled_captions_leave_test_alone(tmp_path):
    for name, on in (("plain", False), ("shuffled", True)):
        prepare.prepare(phantom(**{"data.shuffle_captions": on}), tmp_path / name)
    captions = {
        n: {s: [r["caption"] for r in rows(tmp_path / n, s)] for s in ("train", "test")} for n in ("plain", "shuffled")
    }
    assert captions["plain"]["test"] == captions["shuffled"]["test"]
    assert captions["plain"]["train"] != captions["shuffled"]["train"]
    assert sorted(captions["plain"]["train"]) == sorted(captions["shuffled"]["train"])


def test_noise_factors_change_nothing_but_factors_and_label(tmp_path):
    for name, on in (("plain", False), ("noise", True)):
        prepare.prepare(phantom(**{"data.noise_factors": on}), tmp_path / name)
    for a, b in zip(*(rows(tmp_path / n, "train") for n in ("plain", "noise")), strict=True):
        assert a["factors"] != b["factors"]
        assert a["label"] != b["label"]
        assert (a["image"], a["mask"], a["caption"]) == (b["image"], b["mask"], b["caption"])


def test_phantoms_too_small_to_draw_name_their_key(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.image_size' is 16: phantoms need at least 32 pixels"):
        prepare.prepare(phantom(**{"data.image_size": 16}), tmp_path)


# ---------------------------------------------------------------- geometry


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (64, 64)])
@pytest.mark.parametrize("aspect", ["crop", "pad", "stretch"])
def test_image_and_mask_share_their_geometry(shape, aspect):
    image, mask = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8)
    centre = tuple(slice(n // 2 - 10, n // 2 + 10) for n in shape)
    image[centre], mask[centre] = 255, 1
    small, small_mask = decode.square(image, mask, 32, aspect)
    assert small.shape == (32, 32, 3) and small_mask.shape == (32, 32)
    np.testing.assert_array_equal(small[..., 0] > 127, small_mask > 0)
    found = [np.ptp(axis) + 1 for axis in np.nonzero(small_mask)]
    side = {"crop": (min(shape),) * 2, "pad": (max(shape),) * 2, "stretch": shape}[aspect]
    np.testing.assert_allclose(found, [20 * 32 / n for n in side], atol=1)


# ---------------------------------------------------------------- a folder of files


def test_a_folder_becomes_records_with_its_own_text(tmp_path):
    root = make_root(tmp_path / "data")
    info = prepare.prepare(own(root), tmp_path / "records")
    assert sum(info["counts"].values()) == 24
    made = [row for split in all_rows(tmp_path / "records").values() for row in split]
    for row in made:
        number = int("".join(c for c in pathlib.Path(row["id"]).stem if c.isdigit()))
        assert row["caption"] == f"A disc, number {number}."
        assert row["label"] == "ab"[number % 2]
        assert 0 < records.from_png(row["mask"]).mean() < 0.5
    assert report(tmp_path / "records")["used"] == report(tmp_path / "records")["present"] == 24
    assert not (tmp_path / "records" / "parts").exists()


def test_worker_processes_change_nothing(tmp_path, monkeypatch):
    root = make_root(tmp_path / "data")
    monkeypatch.setattr(parts, "CHUNK", 8)
    for workers in (1, 2):
        monkeypatch.setattr(parts, "FEW", 0)
        prepare.prepare(own(root, **{"data.workers": workers}), tmp_path / str(workers))
    one, two = (contents(tmp_path / n) for n in "12")
    assert one == two and len(one) > 3


def test_a_stopped_preparation_goes_on(tmp_path, monkeypatch):
    root = make_root(tmp_path / "data")
    monkeypatch.setattr(parts, "CHUNK", 6)
    decoded: list[str] = []
    real = decode.decode

    def counting(entry: Entry, settings):
        if len(decoded) == 15:
            raise KeyboardInterrupt
        decoded.append(entry.id)
        return real(entry, settings)

    store, recipe = Store(tmp_path / "store"), prepare.PICTURES.recipe(own(root), {})
    monkeypatch.setattr(decode, "decode", counting)
    with pytest.raises(KeyboardInterrupt):
        get(store, own(root))
    assert store.find(recipe) is None
    monkeypatch.setattr(decode, "decode", lambda entry, settings: decoded.append(entry.id) or real(entry, settings))
    made = get(store, own(root))
    assert len(decoded) == 15 + 24 - 12  # two whole chunks of six were kept
    monkeypatch.setattr(decode, "decode", real)
    assert get(Store(tmp_path / "again"), own(root)).manifest["files"] == made.manifest["files"]


def test_a_replaced_picture_is_decoded_again(tmp_path, monkeypatch):
    root = make_root(tmp_path / "data")
    settings = decode.Settings(str(root), 32, "crop", 10**6, words.ANY)
    entries = [Entry("p00", root / "images" / "p00.png", (root / "masks" / "p00.png",))]
    first = parts.Parts(tmp_path / "parts", entries, settings)
    first.decode(1)
    before = next(iter(first))["sha256"]
    Image.new("RGB", (60, 48), "red").save(root / "images" / "p00.png")
    second = parts.Parts(tmp_path / "parts", entries, settings)
    second.decode(1)
    assert next(iter(second))["sha256"] != before
    assert len(list((tmp_path / "parts").iterdir())) == 1


def test_near_duplicates_never_cross_splits(tmp_path):
    root = make_root(tmp_path / "data", count=60, repeated=20)
    prepare.prepare(own(root, **{"data.test_fraction": 0.4}), tmp_path / "records")
    place = {r["id"]: (s, r["group"]) for s, made in all_rows(tmp_path / "records").items() for r in made}
    names = sorted(place)
    for number in range(20):
        assert place[names[number]] == place[names[40 + number]]
    assert report(tmp_path / "records")["groups"] == 40
    assert {split for split, _ in place.values()} == {"train", "validation", "test"}


def test_groups_of_the_table_never_cross_splits(tmp_path):
    root = make_root(tmp_path / "data", count=60, groups=20)
    prepare.prepare(own(root, **{"data.test_fraction": 0.4}), tmp_path / "records")
    found = {(r["group"], s) for s, made in all_rows(tmp_path / "records").items() for r in made}
    assert len(found) == 20 and len({split for _, split in found}) == 3
    assert report(tmp_path / "records")["leaks"] == []


def test_equal_pictures_of_two_patients_stay_together():
    entries = [Entry(name, pathlib.Path(name), group=name[0]) for name in ("a1", "a2", "b1", "c1")]
    measured = [{"sha256": digest} for digest in ("x", "y", "y", "z")]
    assert plan.group(entries, measured) == ["a", "a", "a", "c"]


def test_split_lists_are_written_and_read_back(tmp_path):
    root = make_root(tmp_path / "data")
    prepare.prepare(own(root), tmp_path / "one")
    lists = splits.read(tmp_path / "one" / "splits")
    other = {"train": "test", "test": "train", "validation": "validation"}
    swapped = {item: other[split] for item, split in lists.items()}
    splits.write(tmp_path / "lists", swapped)
    prepare.prepare(own(root, **{"data.splits": str(tmp_path / "lists")}), tmp_path / "two")
    place = {r["id"]: s for s, made in all_rows(tmp_path / "two").items() for r in made}
    assert {i for i, s in place.items() if s == "test"} == {i for i, s in swapped.items() if s == "test"}
    del swapped[min(swapped)]
    splits.write(tmp_path / "short", swapped)
    with pytest.raises(ConfigError, match=r"data\.splits.*lack 1 of 24"):
        prepare.prepare(own(root, **{"data.splits": str(tmp_path / "short")}), tmp_path / "three")


@pytest.mark.parametrize("size", [(256, 273), (273, 256), (257, 300)])
def test_a_jpeg_decoded_at_a_reduced_scale_keeps_its_mask(tmp_path, size):
    inside = np.zeros(size[::-1], np.uint8)
    inside[100:160, 90:150] = 255
    Image.fromarray(inside).save(tmp_path / "a.jpg")
    Image.fromarray(inside).save(tmp_path / "a.png")
    settings = decode.Settings(str(tmp_path), 32, "crop", 10**6, words.ANY)
    row = decode.decode(Entry("a", tmp_path / "a.jpg", (tmp_path / "a.png",)), settings)
    assert isinstance(row, dict), row
    pixels, mask = (records.from_png(row[name]) for name in ("image", "mask"))
    assert ((pixels[..., 0] > 127) != (mask > 0)).mean() < 0.02
    Image.fromarray(inside[:, :-9]).save(tmp_path / "a.png")  # 3.5 % narrower than the picture
    refused = decode.decode(Entry("a", tmp_path / "a.jpg", (tmp_path / "a.png",)), settings)
    assert isinstance(refused, Skip) and refused.reason == "mask of another size"
    assert refused.detail == f"{size[0] - 9}x{size[1]} for a picture of {size[0]}x{size[1]}"


@pytest.mark.parametrize("mode", ["own", "measured", "both"])
def test_captions_come_from_where_the_config_says(tmp_path, mode):
    root = make_root(tmp_path / "data")
    prepare.prepare(own(root, **{"data.captions": mode}), tmp_path / "records")
    made = [row for split in all_rows(tmp_path / "records").values() for row in split]
    assert all(("A disc" in row["caption"]) == (mode != "measured") for row in made)
    assert all(("lesion" in row["caption"].lower()) == (mode != "own") for row in made)
    assert all(bool(row["named"]) == (mode != "own") for row in made)
    assert not any(row["caption"].endswith(("a.", "b.")) for row in made)  # the class is not told


def test_captions_of_a_file_and_the_class_where_asked_for(tmp_path):
    root = make_root(tmp_path / "data")
    prepare.prepare(own(root), tmp_path / "one")
    ids = sorted(splits.read(tmp_path / "one" / "splits"))
    lines = [json.dumps({"id": name, "caption": f"seen {name}"}) for name in ids[1:]]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines) + "\n")
    changes = {"data.captions_file": str(tmp_path / "captions.jsonl"), "data.label_in_caption": True}
    prepare.prepare(own(root, **changes), tmp_path / "two")
    made = {r["id"]: r for split in all_rows(tmp_path / "two").values() for r in split}
    assert made[ids[3]]["caption"] == f"seen {ids[3]}. Class: {made[ids[3]]['label']}."
    assert made[ids[0]]["caption"].startswith("A disc")


def test_thresholds_are_fitted_to_the_training_split_alone(tmp_path):
    root = make_root(tmp_path / "data")
    one = prepare.prepare(own(root), tmp_path / "one")["thresholds"]
    held_out = {i for i, s in splits.read(tmp_path / "one" / "splits").items() if s != "train"}
    for name in held_out:
        path = next((root / "images").glob(f"{pathlib.Path(name).stem}.*"))
        Image.new("RGB", (60, 48), "white").save(path)
    lists = str(tmp_path / "one" / "splits")
    two = prepare.prepare(own(root, **{"data.splits": lists}), tmp_path / "two")["thresholds"]
    assert one == two and one


def test_hostile_files_are_counted_and_nothing_else_is_lost(tmp_path):
    root = make_root(tmp_path / "data")
    made = hostile.make(root / "images")
    names = [path.name for path in made.values() if path.parent.name == "images" and path.name.isprintable()]
    with (root / "metadata.csv").open("a", newline="") as file:
        csv.writer(file).writerows([name, "hostile", "a", ""] for name in names)
    with pytest.raises(ConfigError, match=r"max_bad_fraction' is 0\.05, but \d+ of \d+ pictures cannot be used"):
        prepare.prepare(own(root), tmp_path / "refused")
    prepare.prepare(own(root, **{"data.max_bad_fraction": 0.95}), tmp_path / "records")
    found = report(tmp_path / "records")
    assert found["present"] == found["used"] + found["skipped_pictures"]
    assert found["used"] >= 24 and found["skipped_pictures"] >= 50
    assert all(skip["reason"] for skip in found["skipped"])


def test_an_empty_split_is_refused(tmp_path):
    root = make_root(tmp_path / "data", count=4)
    with pytest.raises(
        ConfigError, match=r"4 usable pictures in 4 group.* 0 .* validation, which needs 1.*data\.splits"
    ):
        prepare.prepare(own(root, **{"data.validation_fraction": 0.0}), tmp_path / "records")
