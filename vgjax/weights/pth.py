"""Reads torch's zip checkpoints (.pth, .pt, .bin) without torch, and without running what is pickled in them.

A pickle is a program. This reader knows the few opcodes that trees of tensors take and a handful of harmless names
(ordered dictionaries, tensors, their storages), and refuses every other one before anything of it runs. Nothing that a
pickle can reach can be changed by it, but the dictionaries and lists that it makes.
"""

import collections
import io
import math
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from vgjax.atomic import open_regular
from vgjax.weights.convert import WeightsError

MAX_PICKLE = 1 << 22  # bytes; 25,000 tensors, and the most that 4 MiB of opcodes can make is some 0.4 GB
MAX_DIMENSIONS = 64  # of a numpy array
MAX_ARGUMENTS = 8  # torch's longest call has seven
OPCODES = (
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"),
    *("BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1"),
    *("TUPLE2", "TUPLE3", "APPEND", "APPENDS", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL"),
    *("STACK_GLOBAL", "BINPERSID"),
)
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


def _rebuild_tensor(
    storage: np.ndarray, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any
) -> np.ndarray:
    """A tensor as a read-only view of its storage, beyond which numpy refuses to reach."""
    if len(size) > MAX_DIMENSIONS or len(stride) != len(size) or min((offset, *size, *stride)) < 0:
        raise pickle.UnpicklingError("a tensor has an impossible shape")
    if math.prod(size) > storage.size:  # an expanded view could name more elements than there is memory
        raise pickle.UnpicklingError("a tensor has more elements than its storage")
    strides = [step * storage.itemsize for step in stride]
    return np.ndarray(size, storage.dtype, storage, offset * storage.itemsize, strides)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): lambda: collections.OrderedDict(),
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch", "Size"): lambda size: size,
    ("argparse", "Namespace"): lambda: collections.OrderedDict(),  # what it holds is no tensor and is left out
    **{("torch", name): np.dtype(dtype) for name, dtype in _DTYPES.items()},
}


def _refuse(unpickler: "_Unpickler") -> None:
    raise pickle.UnpicklingError("it does what a file of tensors has no use for")


class _Unpickler(pickle._Unpickler):  # the one in Python: its opcodes can be chosen, and its memo takes no room ahead
    """Knows `OPCODES` and allow-listed names only; storages come from the archive's own entries."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self._archive, self._root = archive, root
        self._read: dict[str, bytes] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a file of tensors has no use for")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str) or count < 0:
            raise pickle.UnpicklingError("it refers to what is no tensor storage")
        if key not in self._read:
            self._read[key] = self._archive.read(f"{self._root}data/{key}")
        return np.frombuffer(self._read[key], dtype, count) if count else np.empty(0, dtype)

    def load_call(self) -> None:
        """REDUCE, NEWOBJ: functions come from `find_class` alone."""
        arguments = self.stack.pop()
        if type(arguments) is not tuple or len(arguments) > MAX_ARGUMENTS:
            raise pickle.UnpicklingError("it calls a function with impossible arguments")
        self.stack[-1] = self.stack[-1](*arguments)

    def set_items(self, items: list[Any]) -> None:
        """SETITEM, SETITEMS. Keys are names or numbers: other ones can be made to take for ever."""
        if not all(isinstance(key, str) or (isinstance(key, int) and abs(key) < 1 << 31) for key in items[::2]):
            raise pickle.UnpicklingError("a key is neither a name nor a small number")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def load_state(self) -> None:
        """BUILD: a state dictionary's attributes are no tensors; nothing else has any."""
        self.stack.pop()
        if type(self.stack[-1]) is not collections.OrderedDict:
            raise pickle.UnpicklingError("it sets attributes of what has none")

    dispatch: ClassVar[dict[int, Any]] = {
        **dict.fromkeys(range(256), _refuse),
        **{code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, name)[0] for name in OPCODES)},
        pickle.REDUCE[0]: load_call,
        pickle.NEWOBJ[0]: load_call,
        pickle.SETITEM[0]: lambda self: self.set_items([self.stack.pop(-2), self.stack.pop()]),
        pickle.SETITEMS[0]: lambda self: self.set_items(self.pop_mark()),
        pickle.BUILD[0]: load_state,
    }


def load_pth(path: pathlib.Path) -> Any:
    """The pickled tree (dicts, lists, numbers, texts) with read-only numpy arrays in the place of tensors.

    Raises:
      OSError: it cannot be opened.
      WeightsError: no zip checkpoint, damaged, or it names anything that is not on the allow-list; nothing has run.
    """
    with open_regular(path) as file:
        if not zipfile.is_zipfile(file):
            raise WeightsError(
                f"'{path}' is not a zip checkpoint of torch 1.6 or later: save it again with a newer torch"
            )
        try:
            with zipfile.ZipFile(file) as archive:
                return _Unpickler(archive, _root(archive, os.fstat(file.fileno()).st_size)).load()
        # Whatever a damaged or hostile archive raises while it is read (KeyError, TypeError, EOFError ...).
        except Exception as error:
            reason = (str(error) or type(error).__name__)[:200]
            raise WeightsError(f"'{path}' was refused ({reason}): save its state_dict as safetensors") from None


def _root(archive: zipfile.ZipFile, size: int) -> str:
    """The folder of data.pkl in an archive of `size` bytes, once it is known that what is read fits into memory."""
    entries = archive.infolist()
    # Without compression nothing is read that is not in the file, and an entry that lies within another counts twice.
    if any(entry.compress_type for entry in entries) or sum(entry.file_size for entry in entries) > size:
        raise pickle.UnpicklingError("its entries are compressed, as torch's never are, or larger than the file")
    pickles = [entry for entry in entries if f"/{entry.filename}".endswith("/data.pkl")]
    if len(pickles) != 1:
        raise pickle.UnpicklingError(f"it holds {len(pickles)} entries 'data.pkl' instead of one")
    if pickles[0].file_size > MAX_PICKLE:
        raise pickle.UnpicklingError(f"its data.pkl has {pickles[0].file_size} bytes, at most {MAX_PICKLE} are read")
    root = pickles[0].filename.removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise pickle.UnpicklingError("it is big-endian")
    return root
