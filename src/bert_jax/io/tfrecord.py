"""TFRecord files and ``tf.train.Example``, read and written without TensorFlow.

A record is its length (uint64), the masked CRC32C of the length, the data, and the masked CRC32C of the data, little-endian
(``tensorflow/core/lib/io/record_writer.h``).
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import mmap
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from etils import epath
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from bert_jax.errors import UserError
from bert_jax.io import cache, remote
from bert_jax.io.lines import open_bytes

_LENGTH = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_GZIP_MAGIC = b"\x1f\x8b"


class RecordFile:
    """Random access to the records of one file; gzip, found by its first bytes, is decompressed into memory.

    Args:
      path: the file, which is mapped into memory; a remote one is [copied][bert_jax.io.cache.local_copy] first.

    Raises:
      UserError: the file is missing, truncated, or its framing is damaged; the message gives the offset.
    """

    def __init__(self, path: epath.PathLike) -> None:
        self.path = remote.open_path(path)
        self._content = _content(self.path)
        self._starts, self._lengths = self._scan()

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> bytes:
        start, length = int(self._starts[index]), int(self._lengths[index])
        data = bytes(self._content[start : start + length])
        if _CHECKSUM.unpack_from(self._content, start + length)[0] != _masked_checksum(data):
            raise _damaged(self.path, start - _LENGTH.size)
        return data

    def _scan(self) -> tuple[np.ndarray, np.ndarray]:
        """Find the records: first byte of the data and length of each."""
        content, size = self._content, len(self._content)
        starts, lengths, place = [], [], 0
        while place < size:
            if place + _LENGTH.size > size:
                raise _truncated(self.path, place)
            length, checksum = _LENGTH.unpack_from(content, place)
            if checksum != _masked_checksum(content[place : place + 8]):
                raise _wrong_length(self.path, place)
            start = place + _LENGTH.size
            place = start + length + _CHECKSUM.size
            if place > size:
                raise _truncated(self.path, start - _LENGTH.size)
            starts.append(start)
            lengths.append(length)
        return np.array(starts, np.int64), np.array(lengths, np.int64)


def write_record(file: BinaryIO, data: bytes) -> None:
    """Append a record to an open file."""
    header = struct.pack("<Q", len(data))
    file.write(header + _CHECKSUM.pack(_masked_checksum(header)) + data + _CHECKSUM.pack(_masked_checksum(data)))


def encode_example(features: Mapping[str, Iterable[int] | Iterable[float]]) -> bytes:
    """Serialize a ``tf.train.Example``, its features in the order of their names.

    Args:
      features: values of each feature; those whose first value is a float become a list of floats, others of int64.

    Examples:
      >>> from bert_jax.io import tfrecord
      >>> tfrecord.decode_example(tfrecord.encode_example({"input_ids": [101, 102]}))
      {'input_ids': array([101, 102])}
    """
    example = tf_example_pb2.Example()
    for name, values in features.items():
        feature, row = example.features.feature[name], list(values)
        if row and isinstance(row[0], float):
            feature.float_list.value.extend(row)
        else:
            feature.int64_list.value.extend(row)
    return example.SerializeToString(deterministic=True)


def decode_example(data: bytes) -> dict[str, np.ndarray]:
    """Parse a ``tf.train.Example`` into int64 and float32 arrays; features of bytes are left out.

    Raises:
      ValueError: the data is not an example.
    """
    try:
        example = tf_example_pb2.Example.FromString(data)
    except DecodeError as error:
        raise ValueError(f"not a tf.train.Example ({error})") from None
    decoded = {}
    for name, feature in example.features.feature.items():
        match feature.WhichOneof("kind"):
            case "int64_list":
                decoded[name] = np.array(feature.int64_list.value, np.int64)
            case "float_list":
                decoded[name] = np.array(feature.float_list.value, np.float32)
    return decoded


def stream(path: epath.PathLike) -> Iterator[bytes]:
    """Yield the records of a file in order, in the memory of one record; gzip is decompressed where the name ends with ``.gz``.

    Raises:
      UserError: the file is missing, truncated or damaged; the message gives the offset.
    """
    with open_bytes(path) as file:
        yield from _records(file, path)


def first_records(path: epath.PathLike, count: int) -> list[bytes]:
    """The first records of a file, of which no more is read; gzip is found by its first bytes.

    Raises:
      UserError: the file is missing or empty, or is truncated or damaged in this part; the message gives the offset.
    """
    path = remote.open_path(path)
    if path.is_dir() or not path.exists():
        raise UserError(f"There is no file {path}.")
    with _readable(path), path.open("rb") as raw:
        magic = raw.read(len(_GZIP_MAGIC))
        raw.seek(0)
        if not magic:
            raise UserError(f"{path} is empty.")
        return [*itertools.islice(_records(gzip.open(raw) if magic == _GZIP_MAGIC else raw, path), count)]


def _records(file: Any, path: epath.PathLike) -> Iterator[bytes]:
    place = 0
    while header := file.read(_LENGTH.size):
        length, checksum = _LENGTH.unpack(header) if len(header) == _LENGTH.size else (0, 0)
        if len(header) == _LENGTH.size and checksum != _masked_checksum(header[:8]):
            raise _wrong_length(path, place)
        data, footer = file.read(length), file.read(_CHECKSUM.size)
        if len(footer) < _CHECKSUM.size:
            raise _truncated(path, place)
        if _CHECKSUM.unpack(footer)[0] != _masked_checksum(data):
            raise _damaged(path, place)
        yield data
        place += _LENGTH.size + length + _CHECKSUM.size


def _truncated(path: epath.PathLike, place: int) -> UserError:
    return UserError(f"{path} is truncated: the record at byte {place:,} is incomplete.")


def _wrong_length(path: epath.PathLike, place: int) -> UserError:
    if not place:
        return UserError(f"{path} is not a TFRecord file; text and JSON lines become a corpus by `bert-jax prepare`.")
    return UserError(f"{path} is damaged at byte {place:,}: the checksum of a record's length differs.")


def _damaged(path: epath.PathLike, place: int) -> UserError:
    return UserError(f"{path}: the record at byte {place:,} is damaged; its checksum differs.")


def _content(path: epath.Path) -> bytes | mmap.mmap:
    if path.is_dir() or not path.exists():
        raise UserError(f"There is no file {path}.")
    with _readable(path), cache.local_copy(path).open("rb") as file:
        magic = file.read(2)
        if magic == _GZIP_MAGIC:
            file.seek(0)
            return gzip.decompress(file.read())
        if not magic:
            raise UserError(f"{path} is empty.")
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, AttributeError, ValueError):
            return magic + file.read()


@contextlib.contextmanager
def _readable(path: epath.Path) -> Iterator[None]:
    """Turn errors of reading into sentences."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file: {error}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None


def _masked_checksum(data: bytes) -> int:
    checksum = google_crc32c.value(data)
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF
