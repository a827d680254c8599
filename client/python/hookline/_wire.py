"""Finds the values of a chunk inside a received message without parsing or copying them.

protobuf copies a `bytes` field whenever it is read, and has no views in Python. `data` is the last field on the wire,
so the fields before it are parsed as a message of their own and `data` stays where it is.
"""

from __future__ import annotations

from typing import Any

from hookline import _protocol

_CHUNK_TAG = (2 << 3) | 2  # CaptureResponse.chunk, length-delimited
_DATA_TAG = (100 << 3) | 2  # ActivationChunk.data, length-delimited


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"varint at byte {at} is longer than 10 bytes")


def split_chunk(message: bytes) -> tuple[Any, int, int] | None:
    """Returns `(ActivationChunk without data, offset, length)`; the offset and length are those of `data` in `message`.

    None if the message is not exactly one chunk. ValueError, which says where, if it is malformed.
    """
    try:
        if not message or message[0] != _CHUNK_TAG:
            return None
        length, at = _varint(message, 1)
        if at + length != len(message):
            if at + length > len(message):
                raise ValueError(f"chunk of {length} bytes in a message of {len(message)}")
            return None  # fields after the chunk: left to protobuf
        start, end = at, len(message)
        while at < end:
            field_start = at
            tag, at = _varint(message, at)
            kind = tag & 7
            if kind == 0:
                _, at = _varint(message, at)
            elif kind == 1:
                at += 8
            elif kind == 5:
                at += 4
            elif kind == 2:
                length, at = _varint(message, at)
                if at + length > end:
                    raise ValueError(f"field {tag >> 3} of {length} bytes ends after its chunk")
                if tag == _DATA_TAG:
                    fields = message[start:field_start] + message[at + length : end]
                    return _protocol.ActivationChunk.FromString(fields), at, length
                at += length
            else:
                raise ValueError(f"wire type {kind} at byte {field_start}")
        return _protocol.ActivationChunk.FromString(message[start:end]), end, 0
    except IndexError:
        raise ValueError(f"message of {len(message)} bytes ends inside a field") from None
