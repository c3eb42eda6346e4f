"""TensorFlow checkpoint files (the tensor bundle of ``tensor_bundle.h``), read and written without TensorFlow.

``PREFIX.index`` is a sorted string table, the format of LevelDB. Its keys are tensor names; its values give the place of a tensor's
little-endian bytes in ``PREFIX.data-00000-of-0000N``. Blocks and tensors have masked CRC-32C checksums.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import google_crc32c
import ml_dtypes
import numpy as np
from etils import epath
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from bert_jax.convert import contents
from bert_jax.errors import UserError

_MAGIC = 0xDB4775248B80FB57
# Bytes of a table's footer.
_FOOTER = 48
# Name under which an object graph of TensorFlow 2 stores its description.
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
# Data types by their numbers in tensorflow/core/framework/types.proto.
_DTYPES: dict[int, Any] = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 14: ml_dtypes.bfloat16, 19: "<f2"}
_FLOAT32 = 1


def _messages() -> tuple[Any, Any]:
    """Return the messages BundleHeaderProto and BundleEntryProto of ``tensor_bundle.proto``."""
    scalar = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="bert_jax/bundle.proto", package="bert_jax", syntax="proto3")

    def message(name: str, **fields: tuple[int, Any]) -> None:
        descriptor = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            label = scalar.LABEL_REPEATED if field in ("dim", "slices") else scalar.LABEL_OPTIONAL
            if isinstance(kind, str):
                descriptor.field.add(
                    name=field, number=number, label=label, type=scalar.TYPE_MESSAGE, type_name=f".bert_jax.{kind}"
                )
            else:
                descriptor.field.add(name=field, number=number, label=label, type=kind)

    message("Version", producer=(1, scalar.TYPE_INT32))
    message("Header", num_shards=(1, scalar.TYPE_INT32), endianness=(2, scalar.TYPE_INT32), version=(3, "Version"))
    message("Dim", size=(1, scalar.TYPE_INT64))
    message("Shape", dim=(2, "Dim"))
    message("Slice")
    message(
        "Entry",
        dtype=(1, scalar.TYPE_INT32),
        shape=(2, "Shape"),
        shard_id=(3, scalar.TYPE_INT32),
        offset=(4, scalar.TYPE_INT64),
        size=(5, scalar.TYPE_INT64),
        crc32c=(6, scalar.TYPE_FIXED32),
        slices=(7, "Slice"),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    header, entry = (message_factory.GetMessageClass(pool.FindMessageTypeByName(f"bert_jax.{n}")) for n in ("Header", "Entry"))
    return header, entry


_Header, _Entry = _messages()


def read(index: epath.Path, select: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """Read the selected tensors of a checkpoint; the bytes of other tensors are not read.

    Args:
      index: the file ``PREFIX.index``; its data files lie beside it.
      select: returns whether to read the tensor of a name.

    Raises:
      UserError: a file is missing or damaged, or the checkpoint has a feature that BERT checkpoints do not use (object graphs,
        big-endian numbers, sliced tensors, other data types).
    """
    contents.check(index, weights=True)
    try:
        table = dict(_table(index.read_bytes()))
        header = _Header.FromString(table.pop(b""))
        entries = {name.decode(): _Entry.FromString(value) for name, value in table.items()}
    except (ValueError, IndexError, KeyError, struct.error, DecodeError) as error:
        raise UserError(f"{index} is not a whole TensorFlow checkpoint index: {error}.") from None
    if _OBJECT_GRAPH in entries:
        raise UserError(
            f"{index} is a TensorFlow 2 object graph; convert it with TensorFlow to a checkpoint with the original's names."
        )
    if header.endianness:
        raise UserError(
            f"{index} describes big-endian numbers, which are not supported; write the checkpoint on a little-endian machine."
        )
    prefix, tensors = index.name.removesuffix(".index"), {}
    for shard in sorted({entry.shard_id for name, entry in entries.items() if select(name)}):
        selected = {name: entry for name, entry in entries.items() if entry.shard_id == shard and select(name)}
        path = index.parent / f"{prefix}.data-{shard:05d}-of-{header.num_shards:05d}"
        if not path.is_file():
            raise UserError(f"There is no file {path}, which {index.name} lists.")
        contents.check(path)
        with path.open("rb") as file:
            for name, entry in sorted(selected.items(), key=lambda item: item[1].offset):
                tensors[name] = _tensor(file, path, name, entry)
    return tensors


def write(index: epath.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write float32 tensors as a checkpoint with one data file."""
    prefix, offset = index.name.removesuffix(".index"), 0
    entries = {b"": _Header(num_shards=1, version={"producer": 1}).SerializeToString()}
    with (index.parent / f"{prefix}.data-00000-of-00001").open("wb") as file:
        for name in sorted(tensors, key=str.encode):
            data = np.ascontiguousarray(tensors[name], "<f4").tobytes()
            entries[name.encode()] = _Entry(
                dtype=_FLOAT32,
                shape={"dim": [{"size": size} for size in tensors[name].shape]},
                offset=offset,
                size=len(data),
                crc32c=_masked(google_crc32c.value(data)),
            ).SerializeToString()
            file.write(data)
            offset += len(data)
    content, handles = b"", []
    for block in (_block(entries), _block({})):
        handles.append(_varint(len(content)) + _varint(len(block)))
        content += _sealed(block)
    last = _block({max(entries): handles[0]})
    footer = (handles[1] + _varint(len(content)) + _varint(len(last))).ljust(_FOOTER - 8, b"\0") + struct.pack("<Q", _MAGIC)
    index.write_bytes(content + _sealed(last) + footer)


def _tensor(file: Any, path: epath.Path, name: str, entry: Any) -> np.ndarray:
    if entry.slices or entry.dtype not in _DTYPES:
        problem = "is divided into slices" if entry.slices else f"has TensorFlow's data type {entry.dtype}"
        raise UserError(f"{path}: {name} {problem}, which is not supported; save it as a whole float32 tensor.")
    shape, dtype = tuple(dim.size for dim in entry.shape.dim), np.dtype(_DTYPES[entry.dtype])
    end = file.seek(0, 2)
    if min((entry.offset, *shape)) < 0 or entry.size != math.prod(shape) * dtype.itemsize or entry.offset + entry.size > end:
        raise UserError(f"{path} is not whole: it has {end:,} bytes, too few for {name} of shape {shape}; copy it again.")
    file.seek(entry.offset)
    data = file.read(entry.size)
    if entry.crc32c != _masked(google_crc32c.value(data)):
        raise UserError(f"{path} is damaged: {name} differs from its checksum; copy the checkpoint again.")
    return np.frombuffer(data, dtype).reshape(shape)


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a sorted string table."""
    if len(data) < _FOOTER or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise ValueError("its end is missing, or it has another format")
    _, position = _read_handle(data, len(data) - _FOOTER)
    (offset, size), _ = _read_handle(data, position)
    for _, handle in _entries(_read_block(data, offset, size)):
        yield from _entries(_read_block(data, *_read_handle(handle, 0)[0]))


def _read_block(data: bytes, offset: int, size: int) -> bytes:
    """Return the content of a block after a check of its checksum."""
    block, compression = data[offset : offset + size], data[offset + size]
    if compression:
        raise ValueError("a block of it is compressed")
    if struct.unpack_from("<I", data, offset + size + 1)[0] != _masked(google_crc32c.value(block + bytes([compression]))):
        raise ValueError("a block of it differs from its checksum")
    return block


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block, in which a key can share a prefix with the key before it."""
    restarts = struct.unpack_from("<I", block, len(block) - 4)[0]
    position, end, key = 0, len(block) - 4 * (restarts + 1), b""
    while position < end:
        shared, position = _read_varint(block, position)
        unshared, position = _read_varint(block, position)
        length, position = _read_varint(block, position)
        key = key[:shared] + block[position : position + unshared]
        yield key, block[position + unshared : position + unshared + length]
        position += unshared + length


def _read_handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    """Return offset and size of a block, and the position after its handle."""
    offset, position = _read_varint(data, position)
    size, position = _read_varint(data, position)
    return (offset, size), position


def _block(entries: Mapping[bytes, bytes]) -> bytes:
    """Return a block in which no key shares a prefix with the key before it."""
    body, restarts = b"", []
    for key, value in sorted(entries.items()):
        restarts.append(len(body))
        body += _varint(0) + _varint(len(key)) + _varint(len(value)) + key + value
    restarts = restarts or [0]
    return body + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def _sealed(block: bytes) -> bytes:
    """Return a block with its trailer: no compression, and its checksum."""
    return block + b"\0" + struct.pack("<I", _masked(google_crc32c.value(block + b"\0")))


def _masked(crc: int) -> int:
    """Return a checksum as LevelDB stores it."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the integer at a position and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        value, shift, position = value | (byte & 0x7F) << shift, shift + 7, position + 1
        if byte < 0x80:
            return value, position
