"""Readers of weight files: formats, and files made to break or to run something."""

import argparse
import collections
import contextlib
import copy
import io
import json
import os
import pathlib
import pickle
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.hostile import SPECIAL
from vgjax import weights
from vgjax.weights import WeightsError
from vgjax.weights.pth import MAX_PICKLE, load_pth

TENSORS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.array([1.5, -2.0], np.float32)}


class Global:
    """Pickles as a reference to module.name, whether it can be imported or not."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name


class Call:
    """Pickles as a call of a global."""

    def __init__(self, function: Global, *arguments: object):
        self.function, self.arguments = function, arguments


class Persistent:
    """Pickles as a persistent id."""

    def __init__(self, pid: object):
        self.pid = pid


class Writer(pickle._Pickler):  # the Python implementation: its opcodes can be written by hand
    """Writes `Global`, `Call` and `Persistent` as what they stand for."""

    def persistent_id(self, value: object) -> object:
        return value.pid if isinstance(value, Persistent) else None

    def save(self, value: object, save_persistent_id: bool = True) -> None:
        if isinstance(value, Global):
            self.write(f"c{value.module}\n{value.name}\n".encode())
        elif isinstance(value, Call):
            self.save(value.function)
            self.save(value.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(value, save_persistent_id)


def tensor(key: str, size: tuple[int, ...], stride: tuple[int, ...], count: int, kind="FloatStorage", offset=0) -> Call:
    storage = Persistent(("storage", Global("torch", kind), key, "cpu", count))
    hooks = Call(Global("collections", "OrderedDict"))
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), storage, offset, size, stride, False, hooks)


def write_pth(
    path: pathlib.Path, tree: object, storages: dict[str, np.ndarray], compression: int = zipfile.ZIP_STORED
) -> pathlib.Path:
    """A checkpoint as torch lays it out; `tree` may be the bytes of a pickle."""
    buffer = io.BytesIO()
    if not isinstance(tree, bytes):
        Writer(buffer, protocol=2).dump(tree)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", tree if isinstance(tree, bytes) else buffer.getvalue())
        archive.writestr("archive/byteorder", "little")
        for key, values in storages.items():
            archive.writestr(f"archive/data/{key}", values.tobytes())
    return path


def test_pth_state_dict_with_views_and_types(tmp_path):
    storages = {
        "0": np.arange(6, dtype=np.float32),
        "1": np.array([3, 4], np.int64),
        "2": np.array([1.5, 2.5], ml_dtypes.bfloat16),
    }
    tree = collections.OrderedDict(
        plain=tensor("0", (2, 3), (3, 1), 6),
        transposed=tensor("0", (3, 2), (1, 3), 6),
        part=tensor("0", (2,), (1,), 6, offset=4),
        scalar=tensor("1", (), (), 2, "LongStorage", offset=1),
        half=tensor("2", (2,), (1,), 2, "BFloat16Storage"),
        empty=tensor("0", (0, 3), (3, 1), 6),
        wrapped=Call(Global("torch._utils", "_rebuild_parameter"), tensor("0", (1,), (1,), 6), True, None),
    )
    found = load_pth(write_pth(tmp_path / "a.pth", tree, storages))
    np.testing.assert_array_equal(found["plain"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(found["transposed"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(found["part"], [4, 5])
    assert found["scalar"] == 4
    assert found["scalar"].dtype == np.int64
    np.testing.assert_array_equal(found["half"].astype(np.float32), [1.5, 2.5])
    assert found["empty"].shape == (0, 3)
    np.testing.assert_array_equal(found["wrapped"], [0])


@pytest.mark.parametrize(
    "tree",
    [
        Call(Global("os", "mkdir"), "ran"),
        Call(Global("posix", "system"), "mkdir ran"),
        Call(Global("builtins", "eval"), "__import__('os').mkdir('ran')"),
        Call(Global("collections", "OrderedDict.fromkeys"), "ab"),
        Global("torch.nn.modules.linear", "Linear"),
        tensor("0", (7,), (1,), 6),  # beyond its storage
        tensor("0", (2, 3), (4, 1), 6),
        tensor("0", (6,), (1,), 6, offset=-1),
        tensor("0", (1 << 40,), (0,), 6),  # one element named a trillion times
        tensor("0", (6,), (1,), 600),  # a storage shorter than it says
        tensor("../../secret", (1,), (1,), 1),
        Persistent(("module", "x", "0", "cpu", 1)),
        Persistent("0"),
    ],
)
def test_hostile_pickles_are_refused_and_nothing_runs(tmp_path, tree, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_pth(tmp_path / "a.pth", {"x": tree}, {"0": np.arange(6, dtype=np.float32)})
    with pytest.raises(WeightsError, match=r"a\.pth' was refused .*: save its state_dict as safetensors"):
        load_pth(path)
    assert os.listdir(tmp_path) == ["a.pth"]


def test_broken_archives_are_refused(tmp_path):
    legacy = tmp_path / "legacy.pth"
    legacy.write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(WeightsError, match="not a zip checkpoint"):
        load_pth(legacy)
    path = write_pth(tmp_path / "big.pth", {}, {})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", b"")
    with pytest.raises(WeightsError, match="2 entries"):
        load_pth(path)


SIX = {"0": np.arange(6, dtype=np.float32)}
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ"
DOUBLED = b")" + b"q\0h\0\x86" * 40  # a tuple of itself twice, 40 times over: 2 ** 40 of them to whoever walks it
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize("name", ["torch\nFloatStorage", "argparse\nNamespace", "torch._utils\n_rebuild_parameter"])
def test_a_pickle_cannot_change_how_later_files_are_read(tmp_path, name):
    state = b"}(X\x05\0\0\0dtypeX\x02\0\0\0i8X\x08\0\0\0__init__NX\x0c\0\0\0__defaults__K\x01\x85u"
    evil = write_pth(tmp_path / "evil.pth", b"\x80\x02c" + name.encode() + b"\n" + state + b"b.", {})
    good = write_pth(
        tmp_path / "good.pth", {"x": tensor("0", (2, 3), (3, 1), 6), "args": argparse.Namespace(lr=1)}, SIX
    )
    for _ in range(2):
        with pytest.raises(WeightsError, match="it sets attributes of what has none"):
            load_pth(evil)
        found = load_pth(good)
        assert found["x"].dtype == np.float32 and found["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert found["args"] == {} and argparse.Namespace(lr=1).lr == 1


def test_the_attributes_of_a_state_dictionary_are_left_out_and_tensors_cannot_be_written(tmp_path):
    tree = collections.OrderedDict(a=tensor("0", (6,), (1,), 6))
    tree._metadata = collections.OrderedDict(version=1)
    found = load_pth(write_pth(tmp_path / "a.pth", tree, SIX))
    assert list(found) == ["a"] and not vars(found)
    with pytest.raises(ValueError, match="read-only"):
        found["a"][0] = 1


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"}" + DOUBLED + b"Ns", "a key is neither"),
        (b"}(" + DOUBLED + b"Nu", "a key is neither"),
        (b"}\x8a\x08" + (2**61 - 1).to_bytes(8, "little") + b"Ns", "a key is neither"),  # such keys share one hash
        (STORAGE.replace(b"X\x01\0\0\x000", DOUBLED), "no tensor storage"),
        (STORAGE.replace(b"X\x07\0\0\0storage", DOUBLED), "no tensor storage"),
        (REBUILD + b"(" + STORAGE + b"K\0(" + b"K\x01" * 65 + b"t(" + b"K\x01" * 65 + b"ttR", "impossible shape"),
        (REBUILD + b"(" + STORAGE + b"K\0" * 9 + b"tR", "impossible arguments"),
        (REBUILD + STORAGE + b"R", "impossible arguments"),  # a number apiece would be forty times its size
        (b"(ios\nmkdir\n", "no use for"),
        (b"Pid\n", "no use for"),
        (b"\x82\x01", "no use for"),
        (b"\x96" + (2**33).to_bytes(8, "little") + b"x", "no use for"),  # room for 8 GiB of bytes to come
        (b"N0" * (MAX_PICKLE // 2) + b"N", "at most 4194304 are read"),
        (b"h\x07", "7"),
    ],
)
def test_programs_that_would_take_for_ever_are_refused(tmp_path, program, message):
    with pytest.raises(WeightsError, match=f"was refused .*{message}"):
        load_pth(write_pth(tmp_path / "a.pth", b"\x80\x02" + program + b".", SIX))


def peak(path: pathlib.Path) -> int:
    """Bytes that reading takes at the most."""
    tracemalloc.start()
    try:
        with contextlib.suppress(WeightsError):
            load_pth(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_sizes_are_looked_at_before_memory_is_taken(tmp_path):
    tree, path = {"x": tensor("0", (1,), (1,), 1)}, tmp_path / "a.pth"
    write_pth(path, tree, {"0": np.zeros(25_000_000, np.float32)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 200_000 and peak(path) < 4_000_000
    with pytest.raises(WeightsError, match="compressed"):
        load_pth(path)
    assert peak(write_pth(path, b"\x80\x02Nr" + (1 << 24).to_bytes(4, "little") + b".", {})) < 4_000_000  # its memo
    write_pth(path, tree, {"0": np.zeros(1000, np.float32)})
    with zipfile.ZipFile(path, "a") as archive:  # one entry under two names
        again = copy.copy(archive.getinfo("archive/data/0"))
        again.filename = "archive/data/1"
        archive.filelist.append(again)
        archive.NameToInfo[again.filename] = again
        archive.comment = b"written again"
    with pytest.raises(WeightsError, match="larger than the file"):
        load_pth(path)


def test_names_that_are_no_texts_are_refused(tmp_path):
    path = write_pth(tmp_path / "a.pth", {1: tensor("0", (1,), (1,), 6)}, SIX)
    with pytest.raises(WeightsError, match="something else than tensors by name"):
        weights.load(path)


def safetensors_of(header: object, data: bytes = b"\5") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.safetensors", safetensors_of({"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}})),
        ("a.safetensors", safetensors_of({"a": {"dtype": "F8_E8M0", "shape": [1], "data_offsets": [0, 1]}})),
        ("a.safetensors", safetensors_of({"a": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}, b"")),
        ("a.safetensors", safetensors_of({"a": {"dtype": "U8", "shape": [1] * 100, "data_offsets": [0, 1]}})),
        ("config.json", b"[" * 100_000),
        ("config.json", b"\xff"),
        ("model.safetensors.index.json", b'{"a":' * 100_000),
    ],
)
def test_what_the_libraries_stumble_over_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match="fetch it again"):
        weights.load(tmp_path)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "model.safetensors", "config.json"])
@pytest.mark.parametrize("make", SPECIAL)
def test_weights_that_are_no_files_are_refused_at_once(tmp_path, name, make, at_once):
    SPECIAL[make](tmp_path / name)
    for source in {tmp_path, tmp_path / name}:
        with pytest.raises(WeightsError, match=r"not a file but|holds 0 weight files"):
            weights.load(source)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "config.json"])
def test_weights_that_may_not_be_read_are_refused_with_the_permission(tmp_path, name, unprivileged):
    with unprivileged(tmp_path / name), pytest.raises(WeightsError, match="Permission denied"):
        weights.load(tmp_path / name)


def test_names_that_no_file_can_have_are_refused():
    for name in ("x" * 5000, "a\0b", "a\udc80"):
        with pytest.raises(WeightsError, match=r"cannot be read|neither a file"):
            weights.load(name)


def test_every_layout_gives_the_same_tensors(tmp_path):
    single = tmp_path / "x.safetensors"
    save_file(TENSORS, single)
    folder, sharded, wrapped = tmp_path / "one", tmp_path / "many", tmp_path / "w.pth"
    for path in (folder, sharded, folder / "vae"):
        path.mkdir()
    save_file(TENSORS, folder / "vae" / "diffusion_pytorch_model.safetensors")
    (folder / "vae" / "config.json").write_text('{"groups": 4}')
    names = dict(zip(TENSORS, ("s-1.safetensors", "s-2.safetensors"), strict=True))
    for name, file in names.items():
        save_file({name: TENSORS[name]}, sharded / file)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    storages = {"0": TENSORS["a.weight"], "1": TENSORS["a.bias"]}
    tree = {
        "state_dict": {"a.weight": tensor("0", (2, 3), (3, 1), 6), "a.bias": tensor("1", (2,), (1,), 2)},
        "epoch": 3,
    }
    write_pth(wrapped, tree, storages)
    for source, subfolder, config in (
        (single, "", {}),
        (folder, "vae", {"groups": 4}),
        (sharded, "vae", {}),
        (wrapped, "", {}),
    ):
        tensors, values = weights.load(source, subfolder)
        assert values == config
        assert set(tensors) == set(TENSORS)
        for name, value in TENSORS.items():
            np.testing.assert_array_equal(tensors[name], value)


def test_shards_cannot_name_files_elsewhere(tmp_path):
    save_file(TENSORS, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("../secret.safetensors", str(tmp_path / "secret.safetensors")):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": name}}))
        with pytest.raises(WeightsError, match="not a file beside it"):
            weights.load(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "holds 0 weight files"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "cannot be read as safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not a JSON object"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "b.safetensors"}}'
            ),
            "which is not there",
        ),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{}"), "no usable weight_map"),
    ],
)
def test_unusable_folders_say_why(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(WeightsError, match=message):
        weights.load(tmp_path)


def test_unknown_source_is_refused_without_the_network():
    with pytest.raises(WeightsError, match="neither a file, a folder nor a model"):
        weights.load("nobody/nothing-here")
