"""Traces of JAX's profiler, read from their protocol buffers.

``jax.profiler.ProfileData`` reads them too, but ends the interpreter on Python 3.13 with JAX 0.12 when statistics are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FIELD = descriptor_pb2.FieldDescriptorProto
# The fields of ``tsl/profiler/protobuf/xplane.proto`` that are read, with their numbers; a map is a list of entries.
_SCHEMA: dict[str, dict[str, tuple[int, Any]]] = {
    "XStat": {"metadata_id": (1, _FIELD.TYPE_INT64), "str_value": (5, _FIELD.TYPE_BYTES), "ref_value": (7, _FIELD.TYPE_UINT64)},
    "XEvent": {
        "metadata_id": (1, _FIELD.TYPE_INT64),
        "offset_ps": (2, _FIELD.TYPE_INT64),
        "duration_ps": (3, _FIELD.TYPE_INT64),
        "stats": (4, "XStat"),
    },
    "XLine": {"timestamp_ns": (3, _FIELD.TYPE_INT64), "events": (4, "XEvent")},
    "XMetadata": {"name": (2, _FIELD.TYPE_BYTES)},
    "XMetadataEntry": {"key": (1, _FIELD.TYPE_INT64), "value": (2, "XMetadata")},
    "XPlane": {"lines": (3, "XLine"), "event_metadata": (4, "XMetadataEntry"), "stat_metadata": (5, "XMetadataEntry")},
    "XSpace": {"planes": (1, "XPlane")},
}
# The statistic of an event that names its operation.
_OPERATION = "hlo_op"


class Event(NamedTuple):
    """An operation in a trace."""

    start: float
    """Nanoseconds."""
    end: float
    """Nanoseconds."""
    name: str


def read_trace(path: Path) -> list[list[Event]]:
    """Read the events of each thread or stream from a file ``*.xplane.pb``.

    An event is named after its operation in the compiled program, or by its own name where it is none.
    """
    space = _Space.FromString(path.read_bytes())
    return [events for plane in space.planes for events in _read_plane(plane)]


def _read_plane(plane: Any) -> list[list[Event]]:
    events, stats = (
        {entry.key: entry.value.name.decode(errors="replace") for entry in entries}
        for entries in (plane.event_metadata, plane.stat_metadata)
    )

    def name_of(event: Any) -> str:
        for stat in event.stats:
            if stats.get(stat.metadata_id) == _OPERATION:
                return stat.str_value.decode(errors="replace") or stats.get(stat.ref_value, "")
        return events.get(event.metadata_id, "")

    lines = []
    for line in plane.lines:
        starts = [line.timestamp_ns + event.offset_ps / 1000 for event in line.events]
        lines.append(
            [
                Event(start, start + event.duration_ps / 1000, name_of(event))
                for start, event in zip(starts, line.events, strict=True)
            ]
        )
    return lines


def _message(schema: dict[str, dict[str, tuple[int, Any]]], name: str) -> Any:
    """Return a message class of a schema; fields that are messages are repeated, except the value of a map's entry."""
    file = descriptor_pb2.FileDescriptorProto(name="bert_jax/xplane.proto", package="bert_jax", syntax="proto3")
    for message, fields in schema.items():
        descriptor = file.message_type.add(name=message)
        for field, (number, kind) in fields.items():
            if isinstance(kind, str):
                label = _FIELD.LABEL_OPTIONAL if field == "value" else _FIELD.LABEL_REPEATED
                descriptor.field.add(
                    name=field, number=number, label=label, type=_FIELD.TYPE_MESSAGE, type_name=f".bert_jax.{kind}"
                )
            else:
                descriptor.field.add(name=field, number=number, label=_FIELD.LABEL_OPTIONAL, type=kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"bert_jax.{name}"))


_Space = _message(_SCHEMA, "XSpace")
