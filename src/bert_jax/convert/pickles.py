"""PyTorch's ``.bin`` and ``.pt`` files, read without PyTorch and without executing code from the file.

A pickle is a program. The unpickler here resolves only the names of PyTorch's storages and of the four functions that build a state
dict. Except for ``OrderedDict`` they resolve to objects of this file that only describe arrays and that a pickle cannot modify.
Any other name raises an error before it is looked up.
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

# Maximum bytes of a state dict's description, and maximum number of its memo entries.
_MAX_PICKLE = 1 << 24
# Magic number and protocol version of the format before PyTorch 1.6 (torch/serialization.py).
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

# Keys under which training programs keep a state dict beside their own state: Lightning, PyTorch's tutorials, DeepSpeed.
_STATE_DICTS = ("state_dict", "model_state_dict", "model", "module")

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
    """A contiguous array in the file."""

    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _ForbiddenName(pickle.UnpicklingError):
    """A pickle refers to a name that no state dict uses."""


class _StorageType(NamedTuple):
    """Name of a storage class."""

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
            return _StorageType(name)
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
            ("torch._utils", "_rebuild_tensor"): _RebuildTensor(),
            ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
        }
        if (module, name) not in allowed:
            raise _ForbiddenName(f"it refers to {module}.{name}")
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _, size = pid[:5]
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise pickle.UnpicklingError("it refers to an object that is not a storage")
        return self.storages.setdefault(str(key), _Storage(str(key), np.dtype(_STORAGES[storage_type.name]), int(size)))


def read(path: epath.Path) -> dict[str, np.ndarray]:
    """Read the tensors of a state dict, also of one inside of a training program's checkpoint.

    Raises:
      UserError: the file is damaged, is not a state dict, or would run code.
    """
    data = path.read_bytes()
    try:
        state, storages = _read_zip(data) if data.startswith(b"PK") else _read_legacy(data)
        if isinstance(state, dict):
            state = next((state[key] for key in _STATE_DICTS if isinstance(state.get(key), dict)), state)
        if not isinstance(state, dict) or not all(isinstance(value, _Tensor) for value in state.values()):
            raise ValueError("it contains objects other than named tensors")
        return {str(name): _array(value, storages) for name, value in state.items()}
    except _ForbiddenName as error:
        raise UserError(
            f"{path} is a pickle that could run code ({error}), and it was not executed; save only the model's state dict, as "
            "safetensors."
        ) from None
    except Exception as error:  # A damaged pickle is a damaged program, which can raise any exception.
        raise UserError(f"{path} is not a whole PyTorch state dict: {error or type(error).__name__}.") from None


def _read_zip(data: bytes) -> tuple[Any, dict[str, bytes]]:
    """Read the format since PyTorch 1.6: an archive of ``data.pkl`` and one member for each storage."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        root = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
        if root is None:
            raise ValueError("it is an archive of other files; unpack it and name the directory")
        root = root.removesuffix("data.pkl")
        if any(name.startswith(f"{root}code/") for name in archive.namelist()):
            raise ValueError("it is a TorchScript program; save the state dict of its model")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("its tensors are big-endian")
        if archive.getinfo(f"{root}data.pkl").file_size > _MAX_PICKLE:
            raise ValueError("its description is larger than that of a state dict")
        state, declared = _unpickle(io.BytesIO(archive.read(f"{root}data.pkl")))
        storages = {}
        for storage in declared.values():
            member = f"{root}data/{storage.key}"
            if archive.getinfo(member).file_size != storage.size * storage.dtype.itemsize:
                raise ValueError(f"the size of {member} differs from its description")
            storages[storage.key] = archive.read(member)
        return state, storages


def _read_legacy(data: bytes) -> tuple[Any, dict[str, bytes]]:
    """Read the format before PyTorch 1.6: five pickles, then each storage after its size."""
    file, storages = io.BytesIO(data), {}
    if _unpickle(file)[0] != _MAGIC or _unpickle(file)[0] != _PROTOCOL:
        raise ValueError("it has another format")
    _unpickle(file)
    state, declared = _unpickle(file)
    for key in _unpickle(file)[0]:
        count = int.from_bytes(file.read(8), "little")
        storages[str(key)] = file.read(count * declared[str(key)].dtype.itemsize)
    return state, storages


def _unpickle(file: io.BytesIO) -> tuple[Any, dict[str, _Storage]]:
    """Return the object of the pickle at the current position of a file, and the storages it refers to."""
    start = file.tell()
    for code, argument, _ in pickletools.genops(file):
        # The unpickler allocates memo entries up to the index that is stored in the file.
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > _MAX_PICKLE:
            raise ValueError("it allocates more memory than a state dict needs")
    file.seek(start)
    unpickler = _Unpickler(file)
    return unpickler.load(), unpickler.storages


def _array(tensor: _Tensor, storages: dict[str, bytes]) -> np.ndarray:
    """Return a tensor as an array, after a check that it lies within its storage."""
    values = np.frombuffer(storages[tensor.storage.key], tensor.storage.dtype)
    end = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)) + 1
    is_outside = min((tensor.offset, *tensor.shape, *tensor.strides)) < 0 or max(end, math.prod(tensor.shape)) > len(values)
    if len(values) != tensor.storage.size or is_outside:
        raise ValueError("a tensor extends beyond its storage")
    strides = [stride * values.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides, writeable=False)
