"""Reads torch's zip checkpoints (.pth, .pt, .bin) without torch, and without running what is pickled in them.

A pickle is a program. This reader knows a handful of harmless names (ordered dictionaries, tensors, their storages) and
refuses every other one before anything of it runs.
"""

import argparse
import collections
import math
import pathlib
import pickle
import zipfile
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from vgjax.weights.convert import WeightsError

_DTYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _StorageType:
    """Stands for one of torch's storage classes."""

    def __init__(self, name: str):
        self.dtype = np.dtype(_DTYPES[name])


def _rebuild_tensor(
    storage: np.ndarray, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any
) -> np.ndarray:
    """A tensor as a copied view of its storage, checked to lie within it."""
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else offset
    if min((offset, *size, *stride)) < 0 or last >= max(storage.size, 1):
        raise pickle.UnpicklingError("a tensor reaches outside its storage")
    if count > storage.size:  # an expanded view could name more elements than there is memory
        raise pickle.UnpicklingError("a tensor has more elements than its storage")
    strides = [step * storage.itemsize for step in stride]
    view = np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)
    return np.array(view)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch", "Size"): tuple,
    ("argparse", "Namespace"): argparse.Namespace,
    **{("torch", name): _StorageType(name) for name in _DTYPES},
}


class _Unpickler(pickle.Unpickler):
    """Resolves allow-listed names only; storages come from the archive's own entries."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str):
        super().__init__(file)
        self._archive, self._root = archive, root
        self._storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a file of tensors has no use for")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage, key, _, count = pid
        if kind != "storage" or not isinstance(storage, _StorageType):
            raise pickle.UnpicklingError(f"it refers to {kind!r}, which is no tensor storage")
        if key not in self._storages:
            data = np.frombuffer(self._archive.read(f"{self._root}data/{key}"), storage.dtype)
            if data.size < count:
                raise pickle.UnpicklingError(f"storage {key} holds {data.size} of {count} elements")
            self._storages[key] = data[:count]
        return self._storages[key]


def load_pth(path: pathlib.Path) -> Any:
    """The pickled tree (dicts, lists, numbers, texts) with numpy arrays in the place of tensors.

    Raises:
      WeightsError: no zip checkpoint, damaged, or it names anything that is not on the allow-list; nothing has run.
    """
    if not zipfile.is_zipfile(path):
        raise WeightsError(f"'{path}' is not a zip checkpoint of torch 1.6 or later: save it again with a newer torch")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise pickle.UnpicklingError(f"it holds {len(pickles)} entries 'data.pkl' instead of one")
            root = pickles[0].removesuffix("data.pkl")
            if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
                raise pickle.UnpicklingError("it is big-endian")
            with archive.open(pickles[0]) as file:
                return _Unpickler(file, archive, root).load()
    # Whatever a damaged or hostile pickle raises while its opcodes are read (KeyError, TypeError, EOFError ...).
    except Exception as error:
        raise WeightsError(f"'{path}' was refused ({error}): save its state_dict as safetensors") from None
