from __future__ import annotations

import json

import numpy as np
import pytest

from configs import phantom as phantom_config
from vgjax import config as configs
from vgjax.data import prepare, records


def config(**changes):
    c = phantom_config.get_config("smoke")
    c.update_from_flattened_dict({"data.train_items": 12, "data.validation_items": 6, "data.test_items": 5, **changes})
    return configs.from_config_dict(c)


def rows(folder, split, *kinds):
    return list(records.ZippedRecords([folder / f"{kind}-{split}.array_record" for kind in kinds]))


def test_records_hold_pictures_captions_and_embeddings(tmp_path):
    assert prepare.prepare(config(), tmp_path) == {"train": 12, "validation": 6, "test": 5}
    row = rows(tmp_path, "train", "images", "text")[0]
    assert records.from_png(row["image"]).shape == (32, 32, 3)
    assert set(np.unique(records.from_png(row["mask"]))) == {0, 1}
    assert row["embedding"].shape == (1024,)
    assert set(row["said"]) <= set(row["factors"])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["skipped"] == []
    assert len(manifest["sha256"]) == 6


def test_prepared_records_are_left_alone_and_equal_when_made_again(tmp_path):
    prepare.prepare(config(), tmp_path / "a")
    before = (tmp_path / "a" / "images-train.array_record").stat().st_mtime_ns
    prepare.prepare(config(), tmp_path / "a")
    assert (tmp_path / "a" / "images-train.array_record").stat().st_mtime_ns == before
    prepare.prepare(config(), tmp_path / "b")
    hashes = [json.loads((tmp_path / n / "manifest.json").read_text())["sha256"] for n in "ab"]
    assert hashes[0] == hashes[1]


def test_shuffled_captions_leave_test_alone(tmp_path):
    for name, on in (("plain", False), ("shuffled", True)):
        prepare.prepare(config(**{"data.shuffle_captions": on}), tmp_path / name)
    captions = {
        n: {s: [r["caption"] for r in rows(tmp_path / n, s, "images")] for s in ("train", "test")}
        for n in ("plain", "shuffled")
    }
    assert captions["plain"]["test"] == captions["shuffled"]["test"]
    assert captions["plain"]["train"] != captions["shuffled"]["train"]
    assert sorted(captions["plain"]["train"]) == sorted(captions["shuffled"]["train"])


def test_noise_factors_change_nothing_but_factors_and_label(tmp_path):
    for name, on in (("plain", False), ("noise", True)):
        prepare.prepare(config(**{"data.noise_factors": on}), tmp_path / name)
    for a, b in zip(*(rows(tmp_path / n, "train", "images", "text") for n in ("plain", "noise")), strict=True):
        assert a["factors"] != b["factors"]
        assert a["label"] != b["label"]
        assert (a["image"], a["mask"], a["caption"]) == (b["image"], b["mask"], b["caption"])
        np.testing.assert_array_equal(a["embedding"], b["embedding"])


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (64, 64)])
def test_resize_takes_the_centre_square(shape):
    image, mask = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8)
    centre = tuple(slice(n // 2 - 10, n // 2 + 10) for n in shape)
    image[centre], mask[centre] = 255, 1
    small, small_mask = prepare.resize(image, mask, 32)
    assert small.shape == (32, 32, 3)
    rows_found, columns_found = np.nonzero(small_mask)
    side = 20 * 32 / min(shape)
    np.testing.assert_allclose([np.ptp(rows_found) + 1, np.ptp(columns_found) + 1], side, atol=1)
    np.testing.assert_allclose([rows_found.mean(), columns_found.mean()], 15.5, atol=0.6)
    assert small[16, 16].tolist() == [255, 255, 255]
