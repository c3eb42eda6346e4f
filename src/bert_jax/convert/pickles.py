"""PyTorch's ``.bin`` and ``.pt`` files, read without PyTorch and without running anything that they hold.

A pickle is a program. Here it gets the names of PyTorch's storages and of the four functions that a state dict is made
with; all but ``OrderedDict`` stand for objects of this file that do nothing but describe an array, and that a pickle
cannot change. One that asks for any other name is refused before it gets it.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath

from bert_jax.errors import UserError

# Of the format before PyTorch 1.6, torch/serialization.py.
_LARGEST_PICKLE = 1 << 24
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

_STORAGES: dict[str, Any] = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class _Storage(NamedTuple):
    """A run of numbers in the file."""

    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides count numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Refused(pickle.UnpicklingError):
    """A name that no state dict has use for."""


class _Kind(NamedTuple):
    """A class of storages."""

    name: str


class _RebuildTensor:
    __slots__ = ()

    def __call__(self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object) -> _Tensor:
        return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, tensor: _Tensor, *_: object) -> _Tensor:
        return tensor


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _Kind(name)
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
            ("torch._utils", "_rebuild_tensor"): _RebuildTensor(),
            ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
        }
        if (module, name) not in known:
            raise _Refused(f"it asks for {module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        what, kind, key, _, size = pid[:5]
        if what != "storage" or not isinstance(kind, _Kind):
            raise pickle.UnpicklingError("it refers to something that is no storage")
        return self.storages.setdefault(str(key), _Storage(str(key), np.dtype(_STORAGES[kind.name]), int(size)))


def read(path: epath.Path) -> dict[str, np.ndarray]:
    """Tensors of a state dict.

    Raises:
      UserError: the file is damaged, is no state dict, or would run code.
    """
    data = path.read_bytes()
    try:
        found, storages = _zipped(data) if data.startswith(b"PK") else _old(data)
        if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
            found = found["state_dict"]
        if not isinstance(found, dict) or not all(isinstance(value, _Tensor) for value in found.values()):
            raise ValueError("it holds something else than named tensors")
        return {str(name): _array(value, storages) for name, value in found.items()}
    except _Refused as error:
        raise UserError(
            f"{path} is a pickle that may run code: {error}. Nothing of it was run; save the state dict alone, as safetensors."
        ) from None
    except Exception as error:  # A damaged pickle is a damaged program: it may raise anything.
        raise UserError(f"{path} is not a whole PyTorch state dict: {error or type(error).__name__}.") from None


def _zipped(data: bytes) -> tuple[Any, dict[str, bytes]]:
    """The format since PyTorch 1.6: ``data.pkl``, and a member for each storage."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        root = next(name for name in archive.namelist() if name.endswith("data.pkl")).removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("its numbers are big-endian")
        if archive.getinfo(f"{root}data.pkl").file_size > _LARGEST_PICKLE:
            raise ValueError("its description is larger than any state dict's")
        found, sizes = _run(io.BytesIO(archive.read(f"{root}data.pkl")))
        storages = {}
        for storage in sizes.values():
            member = f"{root}data/{storage.key}"
            if archive.getinfo(member).file_size != storage.size * storage.dtype.itemsize:
                raise ValueError(f"{member} has another size than its description says")
            storages[storage.key] = archive.read(member)
        return found, storages


def _old(data: bytes) -> tuple[Any, dict[str, bytes]]:
    """The format before: five pickles, then each storage with its size before it."""
    file, storages = io.BytesIO(data), {}
    if _run(file)[0] != _MAGIC or _run(file)[0] != _PROTOCOL:
        raise ValueError("it is something else")
    _run(file)
    found, sizes = _run(file)
    for key in _run(file)[0]:
        count = int.from_bytes(file.read(8), "little")
        storages[str(key)] = file.read(count * sizes[str(key)].dtype.itemsize)
    return found, storages


def _run(file: io.BytesIO) -> tuple[Any, dict[str, _Storage]]:
    """What the pickle at this place of the file makes, and the storages that it names."""
    start = file.tell()
    for code, argument, _ in pickletools.genops(file):
        # An unpickler would make room for as many memos as a number in the file says.
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > _LARGEST_PICKLE:
            raise ValueError("it asks for more memory than a state dict needs")
    file.seek(start)
    unpickler = _Unpickler(file)
    return unpickler.load(), unpickler.storages


def _array(tensor: _Tensor, storages: dict[str, bytes]) -> np.ndarray:
    values = np.frombuffer(storages[tensor.storage.key], tensor.storage.dtype)
    reach = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)) + 1
    outside = min((tensor.offset, *tensor.shape, *tensor.strides)) < 0 or max(reach, math.prod(tensor.shape)) > len(values)
    if len(values) != tensor.storage.size or outside:
        raise ValueError("a tensor reaches beyond its numbers")
    strides = [stride * values.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides, writeable=False)
