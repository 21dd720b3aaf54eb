"""Artefacts on disk: found by their recipe, whole or not there, made by one process at a time."""

import errno
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.conftest import REPO
from vgjax import store as stores
from vgjax.config import ConfigError
from vgjax.store import ABSENT, Artefact, Recipe, Store, StoreError, stamps

PICTURES = Recipe("pictures", 1, {"data.image_size": 16}, raw="stamps")


@pytest.fixture(autouse=True)
def fresh_process():
    """What is told once a process is told again."""
    stores._warn_once.cache_clear()


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def prior(version: int = 1, steps: int = 600, pictures: Recipe = PICTURES, trained: bool = True) -> Recipe:
    return Recipe("prior", version, {"prior.train.steps": steps}, {"pictures": pictures}, trained=trained)


def fill(text: str = "content"):
    """A producer of one file."""

    def make(folder: pathlib.Path) -> dict[str, Any]:
        (folder / "file").write_text(text)
        return {"seconds": 3}

    return make


def never(folder: pathlib.Path) -> None:
    raise AssertionError("made again")


def broken(folder: pathlib.Path) -> None:
    (folder / "begun").write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_made_once_and_found_by_its_recipe(store):
    assert store.find(prior()) is None and not store.root.exists()
    made = store.get(prior(), fill())
    assert made.folder == store.root / f"prior-{prior().digest}"
    found = Store(store.root).get(prior(), never)
    assert (found.folder, found.files, found.path("file").read_text()) == (made.folder, ("file",), "content")
    manifest = json.loads((made.folder / "manifest.json").read_text())
    assert manifest["inputs"]["pictures"]["digest"] == PICTURES.digest
    assert manifest["inputs"]["pictures"]["folder"] == f"pictures-{PICTURES.digest}"
    assert manifest["files"]["file"]["bytes"] == 7 and manifest["info"] == {"seconds": 3}
    assert (manifest["name"], manifest["version"], manifest["identity"]) == ("prior", 1, prior().identity)
    assert sorted(path.name for path in made.folder.iterdir()) == ["file", "manifest.json"]
    assert store.get(prior(steps=700), fill()).folder != made.folder


def test_a_trained_artefact_of_an_older_version_is_used_and_told(store, caplog):
    old = store.get(prior(), fill())
    assert [store.get(prior(version=2), never).folder for _ in range(3)] == [old.folder] * 3
    assert len(caplog.messages) == 1  # once a process
    assert str(old.folder) in caplog.text and "version 1 -> 2; delete the folder" in caplog.text
    newer = Recipe.read(prior(version=3).describe())
    made = Store(store.root).get(newer, fill())  # not trained, so made
    assert store.find(prior(version=4)).folder == made.folder  # the newest


def test_an_untrained_artefact_of_an_older_version_is_made_again(store, caplog):
    old = store.get(prior(trained=False), fill())
    new = store.get(prior(version=2, trained=False), fill("new"))
    assert new.folder != old.folder and new.path("file").read_text() == "new"
    assert caplog.messages == []


def test_a_newer_version_of_an_input_trains_nothing_again(store, caplog):
    newer = Recipe("pictures", 2, PICTURES.keys, raw="stamps")
    old = store.get(prior(), fill())
    assert store.get(prior(pictures=newer), never).folder == old.folder
    assert "made from other pictures (version 1 -> 2)" in caplog.text
    assert store.find(prior(pictures=Recipe("pictures", 1, {"data.image_size": 32}, raw="stamps"))) is None


def test_an_artefact_is_kept_under_the_inputs_that_were_used(store):
    """Features of a prior of version 1, which stands in for version 2, are not those of version 2."""

    def features(version: int) -> Recipe:
        return Recipe("features", 1, {}, {"prior": prior(version=version)})

    old = store.get(prior(), fill())
    made = store.get(features(2), fill("of version 1"))
    assert made.digest == features(1).digest and made.manifest["inputs"]["prior"]["folder"] == old.folder.name
    assert store.get(features(2), never).folder == made.folder
    store.get(Recipe.read(prior(version=2).describe()), fill())
    assert store.find(features(2)) is None


def test_a_trained_artefact_never_meets_another_trained_input_than_its_own(store):
    """The user deleted version 1 of the prior and trained version 2: what was trained on version 1 does not fit it."""
    denoiser = lambda version: Recipe("denoiser", 1, {}, {"prior": prior(version=version)}, trained=True)
    old = store.get(prior(), fill())
    made = store.get(denoiser(1), fill())
    assert store.find(denoiser(2)).folder == made.folder  # version 1 of the prior stands in as well
    shutil.rmtree(old.folder)
    store.get(prior(version=2), fill())
    assert store.find(denoiser(2)) is None
    assert store.get(denoiser(2), fill()).folder != made.folder


def test_nor_one_that_is_reached_through_an_untrained_input(store):
    factors = lambda version: Recipe("factors", 1, {}, {"prior": prior(version=version)})
    denoiser = lambda version: Recipe("denoiser", 1, {}, {"factors": factors(version)}, trained=True)
    old = store.get(prior(), fill())
    made = store.get(denoiser(1), fill())
    assert store.find(denoiser(2)).folder == made.folder
    shutil.rmtree(old.folder)
    store.get(prior(version=2), fill())
    assert store.find(denoiser(2)) is None


def test_what_was_made_is_used_where_raw_data_is_absent(store, caplog):
    absent = Recipe("pictures", 1, PICTURES.keys, raw=ABSENT)
    assert store.find(absent) is None
    pictures, trained = store.get(PICTURES, fill()), store.get(prior(), fill())
    assert store.get(absent, never).folder == pictures.folder
    assert store.get(prior(pictures=absent), never).folder == trained.folder
    assert len(caplog.messages) == 1 and "raw data is absent" in caplog.text
    assert store.find(Recipe("pictures", 1, PICTURES.keys, raw="others")) is None
    assert store.find(Recipe("pictures", 2, PICTURES.keys, raw=ABSENT)) is None
    assert store.find(Recipe("pictures", 1, {"data.image_size": 32}, raw=ABSENT)) is None


def weights(bits: str):
    """A producer of what has a fingerprint, as trained stages and drawn pictures have."""
    return lambda folder: fill(bits)(folder) | {"fingerprint": bits}


FACTORS = Recipe("factors", 1, {}, {"prior": prior()})
DENOISER = Recipe("denoiser", 1, {}, {"factors": FACTORS}, trained=True)
DRAWN = Recipe("drawn", 1, {}, {"denoiser": DENOISER})


@pytest.fixture
def trained_anew(store):
    """Makes all, then the prior again after its folder was deleted, to the given bits."""

    def again(bits: str) -> None:
        for recipe, make in ((prior(), weights("a")), (FACTORS, fill()), (DENOISER, weights("d")), (DRAWN, fill())):
            store.get(recipe, make)
        shutil.rmtree(store.root / prior().label)
        store.get(prior(), weights(bits))

    return again


def test_training_again_to_the_same_bits_makes_nothing_else_again(store, trained_anew, caplog):
    trained_anew("a")
    for recipe in (FACTORS, DENOISER, DRAWN):
        store.get(recipe, never)
    assert caplog.messages == []


def test_what_was_made_from_other_bits_than_are_there_is_never_used(store, trained_anew, caplog):
    trained_anew("b")
    why = "was made from what has been trained or drawn anew since, otherwise"
    for recipe in (FACTORS, DENOISER, DRAWN):
        ((name, state, told),) = store.status([recipe])
        assert store.find(recipe) is None
        assert (name, state, told) == (recipe.label, "missing", f"{store.root / recipe.label} {why}: delete it")
    with pytest.raises(StoreError, match=rf"{DENOISER.label} {why}: delete it and run again"):  # too dear to do unasked
        store.get(DENOISER, never)
    shutil.rmtree(store.root / DENOISER.label)
    for recipe, make in ((FACTORS, fill("new")), (DENOISER, weights("new")), (DRAWN, fill("new"))):
        assert store.get(recipe, make).path("file").read_text() == "new"
        assert recipe is DENOISER or caplog.messages[-1] == f"{store.root / recipe.label} {why}: it is made again"
        store.get(recipe, never)


def test_killed_while_an_outdated_one_is_deleted_leaves_nothing_in_the_way(store, trained_anew, monkeypatch):
    trained_anew("b")

    def killed(folder: pathlib.Path, **_: Any) -> None:
        if folder.exists():
            (folder / "manifest.json").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        store.get(FACTORS, never)
    monkeypatch.undo()
    made = store.get(FACTORS, fill("new"))
    assert made.path("file").read_text() == "new" and [path.name for path in made.folder.glob(".*")] == []


def test_what_notes_no_bits_is_used_as_before(store, trained_anew):
    trained_anew("a")
    for recipe in (FACTORS, DENOISER, DRAWN):
        path = store.root / recipe.label / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprints": {}, "sha256": None}))
    shutil.rmtree(store.root / prior().label)
    store.get(prior(), weights("b"))
    for recipe in (FACTORS, DENOISER, DRAWN):
        store.get(recipe, never)


def flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[1] ^= 4
    path.write_bytes(data)


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, cut, pathlib.Path.unlink])
def test_a_damaged_file_is_seen_on_reading(store, damage):
    store.get(prior(), fill())
    damage(store.root / f"prior-{prior().digest}" / "file")
    found = store.find(prior())
    assert not found.intact("file")
    with pytest.raises(ConfigError, match=rf"'file' of {found.folder} .*: delete the folder {found.folder} and run"):
        found.path("file")


def test_a_file_is_read_for_its_digest_once(store, monkeypatch):
    found, read = store.get(prior(), fill()), []
    digest = stores._sha256
    monkeypatch.setattr(stores, "_sha256", lambda path: read.append(path) or digest(path))
    assert found.path("file") == found.path("file") == found.folder / "file"
    assert found.intact("file") and len(read) == 1
    (found.folder / "other").write_text("put there by hand")
    with pytest.raises(StoreError, match="'other'"):
        found.path("other")


def test_loose_files_are_kept_unchecked(store):
    def make(folder: pathlib.Path) -> None:
        for name in ("logs/deep/a.jsonl", "logs.txt", "deep/logs/b"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)

    found = store.get(prior(), make, loose=["logs/*"])
    assert found.files == ("deep/logs/b", "logs.txt")
    assert (found.folder / "logs" / "deep" / "a.jsonl").read_text() == "logs/deep/a.jsonl"


def test_a_failing_producer_leaves_its_part_to_go_on_with(store):
    with pytest.raises(OSError, match="No space"):
        store.get(prior(), broken)
    part = store.root / f"prior-{prior().digest}.part"
    assert json.loads((part / "recipe.json").read_text())["keys"] == {"prior.train.steps": 600}
    assert store.find(prior()) is None
    made = store.get(prior(), lambda folder: (folder / "begun").rename(folder / "whole") and None)
    assert made.path("whole").read_text() == "half" and not part.exists()


def test_a_disk_that_fails_while_publishing_leaves_the_part(store, monkeypatch):
    def full(path, values):
        if path.name == "manifest.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_text(json.dumps(values))

    monkeypatch.setattr(stores, "write_json", full)
    with pytest.raises(StoreError, match=r"cannot be written \(No space left on device\): make room"):
        store.get(prior(), fill())
    monkeypatch.undo()
    assert store.find(prior()) is None
    store.get(prior(), lambda folder: None if (folder / "file").exists() else never(folder))


def test_a_store_that_cannot_be_written_or_locked_says_so(store, monkeypatch):
    made = Store(store.root.parent / "made")
    made.get(prior(), fill())
    store.root.write_text("a file")
    with pytest.raises(StoreError, match="cannot be written"):
        store.get(prior(), fill())
    store.root.unlink()

    def unlockable(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unlockable)
    with pytest.raises(StoreError, match="cannot lock files"):
        store.get(prior(), never)
    assert made.get(prior(), never).files == ("file",)  # to read needs no lock


@pytest.mark.parametrize("manifest", [None, "", "[]", "{}", '{"name": "prior"}', b"\xff\xfe"])
def test_a_folder_without_a_readable_manifest_is_no_artefact(store, manifest):
    folder = store.get(prior(), fill()).folder
    (folder / "manifest.json").unlink()
    if manifest is not None:
        (folder / "manifest.json").write_bytes(manifest if isinstance(manifest, bytes) else manifest.encode())
    assert store.find(prior()) is None
    [(name, state, why)] = store.status([prior()])
    assert (name, state) == (folder.name, "missing") and f"{folder} has no readable manifest.json" in why
    with pytest.raises(StoreError, match=f"{folder} has no readable"):
        store.get(prior(), never)
    assert store.status([prior(steps=700)])[0][2] == "never made"


@pytest.mark.parametrize(("was", "now"), [('"seconds": 3', '"seconds": 7'), ('"created": "2', '"created": "6')])
def test_no_number_of_a_manifest_changes_unseen(store, was, now):
    manifest = store.get(prior(), fill()).folder / "manifest.json"
    assert was in manifest.read_text()
    manifest.write_text(manifest.read_text().replace(was, now))
    assert store.find(prior()) is None and "has no readable" in store.status([prior()])[0][2]


@pytest.mark.parametrize("file", ["manifest.json", "file"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(store, at_once, file):
    path = store.get(prior(), fill("")).folder / file  # as empty as a pipe looks
    path.unlink()
    os.mkfifo(path)
    assert file == "file" or store.find(prior()) is None
    with pytest.raises(StoreError, match=f"{path.parent}"):
        store.get(prior(), never).path("file")


def test_a_pipe_in_the_place_of_a_lock_is_not_waited_for(store, at_once):
    store.root.mkdir()
    os.mkfifo(store.root / f"{prior().label}.lock")
    store.get(prior(), fill())


def test_a_pipe_among_what_was_made_is_not_waited_for(store, at_once):
    with pytest.raises(StoreError, match="cannot be written"):
        store.get(prior(), lambda folder: os.mkfifo(folder / "file"))


def test_a_renamed_folder_is_no_artefact(store):
    folder = store.get(prior(), fill()).folder
    folder.rename(store.root / f"prior-{prior(steps=700).digest}")
    assert store.find(prior(steps=700)) is None


def test_status_says_why(store):
    other = Recipe("pictures", 1, {"data.image_size": 32}, raw="stamps")
    assert store.status([prior()]) == [(prior().label, "missing", "never made")]
    store.get(prior(), fill())
    store.get(prior(steps=5, pictures=other), fill())

    def why(recipe: Recipe) -> str:
        name, state, why = store.status([recipe])[0]
        assert (name, state) == (recipe.label, "missing")
        return why

    assert store.status([prior()]) == [(prior().label, "there", "")]
    assert why(prior(steps=700)) == f"key prior.train.steps was 600, is now 700 (since {prior().label})"
    assert why(prior(steps=6, pictures=other)).startswith("key prior.train.steps was 5, is now 6 (since")
    assert why(prior(steps=600, pictures=Recipe("pictures", 1, {"data.image_size": 64}, raw="stamps"))) == (
        f"made from other pictures (key data.image_size was 16, is now 64) (since {prior().label})"
    )
    changed = Recipe("pictures", 1, PICTURES.keys, raw="x")
    assert "made from other pictures (raw data changed)" in why(prior(pictures=changed))
    assert why(prior(version=2, trained=False)).startswith("version 1 -> 2")
    assert store.status([prior(version=2)]) == [(prior().label, "there", "version 1 -> 2")]
    many = Recipe("prior", 1, dict.fromkeys("abcde", 0), {"pictures": PICTURES})
    assert " and 3 more (since" in why(many)


def test_status_knows_the_unfinished(store):
    with pytest.raises(OSError):
        store.get(prior(), broken)
    assert store.status([prior()]) == [(prior().label, "unfinished", "the next run goes on with it")]
    why = store.status([prior(steps=700)])[0][2]
    assert why == f"key prior.train.steps was 600, is now 700 (since {prior().label}.part)"


def test_unused_are_the_folders_that_no_recipe_needs(store):
    for recipe in (PICTURES, prior(), prior(steps=700)):
        store.get(recipe, fill())
    with pytest.raises(OSError):
        store.get(prior(steps=800), broken)
    with pytest.raises(OSError):
        store.get(prior(steps=900), broken)
    (store.root / "of-the-user").mkdir()
    # The first stands in for version 2, and needs its pictures.
    found = dict(store.unused([prior(version=2), prior(steps=800)]))
    assert set(found) == {store.root / prior(steps=700).label, store.root / f"{prior(steps=900).label}.part"}
    assert found[store.root / prior(steps=700).label] > 7
    assert Store(store.root / "none").unused([]) == []


def test_stamps_follow_the_files(tmp_path):
    root = tmp_path / "raw"
    assert stamps(root) == ABSENT
    (root / "a").mkdir(parents=True)
    seen = [stamps(root)]

    def changed() -> bool:
        seen.append(stamps(root))
        assert stamps(root) == seen[-1]
        return seen[-1] not in seen[:-1]

    (root / "a" / "one").write_text("1")
    os.utime(root / "a" / "one", ns=(0, 10))
    assert changed()
    os.utime(root / "a" / "one", ns=(5, 10))  # having been read is no change
    assert not changed()
    os.utime(root / "a" / "one", ns=(0, 11))
    assert changed()
    (root / "a" / "one").write_text("12")
    os.utime(root / "a" / "one", ns=(0, 11))
    assert changed()
    (root / "a" / "one").rename(root / "a" / "two")
    assert changed()
    (root / "dangling").symlink_to(root / "nothing")
    (root / "around").symlink_to(root)
    assert changed()
    assert stamps(root / "a" / "two") not in seen  # of one file
    moved = root.rename(tmp_path / "elsewhere")
    (moved / "around").unlink()
    (moved / "dangling").unlink()
    assert stamps(moved) == seen[-2]


HEAD = """
import pathlib, sys, time
from vgjax.store import Recipe, Store
root, recipe = pathlib.Path(sys.argv[1]), Recipe("prior", 1, {"steps": 3})
store = Store(root / "store")
"""


@pytest.fixture
def child(tmp_path):
    """Starts Python processes with a store and a recipe; none outlives the test."""
    started: list[subprocess.Popen] = []

    def start(code: str) -> subprocess.Popen:
        command = [sys.executable, "-c", HEAD + code, tmp_path]
        started.append(subprocess.Popen(command, cwd=REPO, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()


def until(there: pathlib.Path) -> None:
    for _ in range(3000):
        if there.exists():
            return
        time.sleep(0.01)
    raise TimeoutError(there)


KILLED = """
def make(folder):
    (folder / 'first').write_text('1')
    (root / 'ready').touch()
    time.sleep(20)
store.get(recipe, make)
"""


def test_killed_while_making_leaves_nothing_half_and_is_gone_on_with(tmp_path, child):
    process = child(KILLED)
    until(tmp_path / "ready")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    store, recipe = Store(tmp_path / "store"), Recipe("prior", 1, {"steps": 3})
    assert store.find(recipe) is None and not (store.root / recipe.label).exists()

    def go_on(folder: pathlib.Path) -> None:
        assert (folder / "first").read_text() == "1"
        (folder / "second").write_text("2")

    assert store.get(recipe, go_on).files == ("first", "second")


ASKED_AT_ONCE = """
def make(folder):
    with (root / 'made').open('a') as file:
        file.write('once\\n')
    (root / 'ready').touch()
    for _ in range(2000):
        if (root / 'go').exists():
            break
        time.sleep(0.01)
    (folder / 'file').write_text('content')
assert store.get(recipe, make).path('file').read_text() == 'content'
"""


def test_two_processes_that_ask_at_once_make_it_once(tmp_path, child):
    first = child(ASKED_AT_ONCE)
    until(tmp_path / "ready")
    second = child(ASKED_AT_ONCE)
    assert "waiting: another process makes" in second.stderr.readline()
    (tmp_path / "go").touch()
    assert [second.communicate()[1], first.communicate()[1]] == ["", ""]  # said once, no warning, no error
    assert (first.returncode, second.returncode) == (0, 0)
    assert (tmp_path / "made").read_text() == "once\n"


def test_waiting_for_one_that_is_killed_makes_it(tmp_path, child):
    process = child(KILLED)
    until(tmp_path / "ready")
    waiting = child(KILLED.replace("ready", "second").replace("20", "0"))
    assert "waiting" in waiting.stderr.readline()
    process.kill()
    process.communicate()
    assert waiting.communicate()[1] == "" and waiting.returncode == 0
    assert isinstance(Store(tmp_path / "store").find(Recipe("prior", 1, {"steps": 3})), Artefact)
