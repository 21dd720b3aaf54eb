"""Further views of training pictures: symmetries and crops, measured again, and nothing of held-out pictures."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from configs import kvasir_seg, phantom
from tests.test_prepare import all_rows, make_root, own
from vgjax import config as configs
from vgjax.data import inspect, records, sources
from vgjax.data.caption import captioner
from vgjax.data.caption.measure import DIRECTED, attribute_levels, measure_attributes
from vgjax.data.caption.words import POLYP
from vgjax.data.prepare import pictures as prepare
from vgjax.data.read import decode
from vgjax.store import Store


def polyps(root, **changes):
    c = kvasir_seg.get_config("smoke")
    fixed = {"data.root": str(root), "data.workers": 1, "data.validation_fraction": 0.2}
    c.update_from_flattened_dict({**fixed, **changes})
    return configs.from_config_dict(c)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("views") / "data")


@pytest.fixture(scope="module")
def prepared(root, tmp_path_factory):
    """What is told and the rows of one view a picture, and of ten."""
    found = {}
    for views in (1, 10):
        folder = tmp_path_factory.mktemp(f"views{views}")
        info = prepare.prepare(polyps(root, **{"data.views": views}), folder)
        found[views] = info, all_rows(folder, "kvasir_seg"), json.loads((folder / prepare.REPORT).read_text())
    return found


def image(row):
    return records.from_png(row["image"])


def originals(rows):
    return {row["id"]: row for row in rows if "//" not in row["id"]}


def test_every_training_picture_is_there_in_its_eight_symmetries_and_as_crops(prepared):
    _, made, _ = prepared[10]
    mine, count, cut = originals(made["train"]), 0, []
    for row in made["train"]:
        name, _, view = row["id"].partition("//")
        if view and int(view) < 8:
            assert (image(row) == decode.symmetric(image(mine[name]), int(view))).all()
            mask = records.from_png(mine[name]["mask"])
            assert (records.from_png(row["mask"]) == decode.symmetric(mask, int(view))).all()
            count += 1
        elif view:
            known = (decode.symmetric(image(mine[name]), element) for element in range(8))
            cut.append(not any((image(row) == one).all() for one in known))
    assert count == 7 * len(mine) and np.mean(cut) > 0.9  # a crop may be the whole but for a row
    eight = [decode.symmetric(np.arange(9).reshape(3, 3), element) for element in range(8)]
    assert not any((a == b).all() for a, b in itertools.combinations(eight, 2))
    assert (eight[0] == np.arange(9).reshape(3, 3)).all() and (eight[1] == eight[0][:, ::-1]).all()


def test_captions_of_views_are_measured_on_them(prepared):
    info, made, _ = prepared[10]
    for row in made["train"]:
        attributes = measure_attributes(image(row), records.from_png(row["mask"]), POLYP)
        assert row["factors"] == attribute_levels(attributes, info["thresholds"], POLYP)
    positions = {r["factors"]["position"] for r in made["train"] if r["id"].startswith(made["train"][0]["id"])}
    assert len(positions) > 1 or positions == {"centre"}


def test_views_leave_splits_groups_and_thresholds_alone(prepared):
    (info, made, told), (more_info, more, more_told) = prepared[1], prepared[10]
    assert more_info["thresholds"] == info["thresholds"]
    assert all(more[split] == made[split] for split in ("validation", "test"))
    plain = lambda rows: [{key: value for key, value in row.items() if key != "wordings"} for row in rows]
    assert plain(originals(more["train"]).values()) == plain(made["train"])
    groups = {row["id"]: row["group"] for row in made["train"]}
    assert all(row["group"] == groups[row["id"].partition("//")[0]] for row in more["train"])
    assert info["views"] == told["views"] == 0
    assert more_info["views"] == more_told["views"] == len(more["train"]) - len(made["train"]) > 0
    assert more_told["used"] == told["used"] == 24 and more_told["leaks"] == []


def test_a_crop_is_the_same_each_time_and_cut_before_the_picture_shrinks():
    a = np.arange(200 * 300).reshape(200, 300)
    (one, mask), (again, _), (other, _) = (decode.cropped(name, a, a) for name in ("p//8", "p//8", "p//9"))
    assert one.shape == again.shape and (one == again).all() and (one == mask).all()
    assert one.shape != other.shape or (one != other).any()
    for name in map(str, range(40)):
        (cut,) = decode.cropped(name, a)
        assert 160 <= cut.shape[0] <= 200 and 240 <= cut.shape[1] <= 300


@pytest.mark.parametrize(("text", "directed"), [("Seen at the Left.", True), ("RLL opacity", True), ("A mass", False)])
def test_words_that_name_a_side(text, directed):
    assert bool(DIRECTED.search(text)) == directed


def test_own_texts_that_name_sides_are_never_mirrored(root, tmp_path, monkeypatch):
    two = dataclasses.replace(sources.SOURCES["folder"], symmetries=2)
    monkeypatch.setitem(sources.SOURCES, "folder", two)
    entries = {entry.id for entry in two.index(str(root)).entries}
    lines = [{"id": name, "caption": "on the left" if i % 2 else "plain"} for i, name in enumerate(sorted(entries))]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    changes = {"data.captions_file": str(tmp_path / "captions.jsonl"), "data.views": 4}
    for mode in ("own", "measured"):
        prepare.prepare(own(root, **changes, **{"data.captions": mode}), tmp_path / mode)
        views = {}
        for row in all_rows(tmp_path / mode)["train"]:
            name, _, view = row["id"].partition("//")
            views.setdefault(name, set()).add(int(view or 0))
        for line in lines:
            sided = mode == "own" and line["caption"] != "plain"
            assert views.get(line["id"], {0}) in ({0}, {0, 2} if sided else {0, 1, 2, 3})
        assert max(map(len, views.values())) == 4


def test_a_view_without_lesion_is_left_out_and_told(tmp_path):
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "masks").mkdir()
    corner = np.zeros((64, 64), np.uint8)
    corner[:3, :3] = 255
    for n in range(30):
        noise = np.random.default_rng(n).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "data" / "images" / f"p{n}.png")
        Image.fromarray(corner).save(tmp_path / "data" / "masks" / f"p{n}.png")
    config = polyps(tmp_path / "data", **{"data.views": 12})
    lines = inspect.inspect(config, tmp_path / "run", Store(tmp_path / "store"))
    assert "present 30 = used 30 + skipped 0: every picture accounted for" in lines
    assert any(line.startswith("  skipped, empty mask: ") for line in lines)
    assert any(line.endswith("further views of pictures: mirrored, turned or cropped") for line in lines)


def test_one_view_is_the_artefact_that_there_was(root):
    recipe = lambda **changes: prepare.PICTURES.recipe(polyps(root, **changes), {})
    assert "data.views" not in recipe().keys and recipe(**{"data.views": 2}).keys["data.views"] == 2
    assert recipe().digest != recipe(**{"data.views": 2}).digest


def test_views_of_phantoms_are_refused():
    c = phantom.get_config()
    c.data.views = 2
    with pytest.raises(configs.ConfigError, match=r"'data\.views' is 2 with data\.source 'phantom'"):
        configs.from_config_dict(c)


def test_the_captioner_asks_for_pictures_and_not_for_their_views(root, tmp_path):
    prepare.prepare(polyps(root, **{"data.views": 2}), tmp_path)
    assert len(list(captioner.of_records("kvasir_seg", str(tmp_path)))) == 24
