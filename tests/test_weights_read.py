"""Readers of weight files: formats, and files made to break or to run something."""

import collections
import io
import json
import os
import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from vgjax import weights
from vgjax.weights import WeightsError
from vgjax.weights.pth import load_pth

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


def write_pth(path: pathlib.Path, tree: object, storages: dict[str, np.ndarray]) -> pathlib.Path:
    """A checkpoint as torch lays it out."""
    buffer = io.BytesIO()
    Writer(buffer, protocol=2).dump(tree)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
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
