"""Tests the parts under the receiver against protobuf's own reading of the same bytes."""

import glob
import os
import random
import shutil
import subprocess

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from hookline import _protocol
from hookline._wire import split_chunk

ROOT = os.path.join(os.path.dirname(__file__), "..", "..")


def random_chunk(random_source):
    chunk = _protocol.ActivationChunk()
    for field, value in [
        ("hook_point", f"blocks.{random_source.randrange(10**6)}.hook_resid_post"),
        ("first_row", random_source.randrange(1 << 62)),
        ("rows", random_source.randrange(1 << 30)),
        ("width", random_source.randrange(1 << 30)),
        ("dtype", random_source.randrange(4)),
        ("resume_token", random_source.randbytes(random_source.randrange(300))),
        ("data", random_source.randbytes(random_source.choice([0, 1, 127, 128, 70_000]))),
    ]:
        if random_source.random() < 0.8:
            setattr(chunk, field, value)
    if random_source.random() < 0.5:
        chunk.values.extend(random_source.random() for _ in range(5))
        chunk.token_id.extend(random_source.randrange(1 << 32) for _ in range(50))
    return chunk


def test_splitting_a_message_finds_what_protobuf_finds():
    random_source = random.Random(7)
    for _ in range(500):
        chunk = random_chunk(random_source)
        message = _protocol.CaptureResponse(chunk=chunk).SerializeToString()
        fields, offset, length = split_chunk(message)
        assert message[offset : offset + length] == chunk.data
        chunk.ClearField("data")
        assert fields == chunk


def test_no_malformed_message_does_more_than_raise_a_value_error():
    random_source = random.Random(8)
    for _ in range(2000):
        message = bytearray(_protocol.CaptureResponse(chunk=random_chunk(random_source)).SerializeToString()[:400])
        for _ in range(random_source.randrange(1, 5)):
            message[random_source.randrange(len(message))] = random_source.randrange(256)
        message = bytes(message[: random_source.randrange(len(message) + 1)])
        try:
            found = split_chunk(message)
        except ValueError:
            continue
        except Exception as error:
            assert type(error).__name__ == "DecodeError"
            continue
        assert found is None or 0 <= found[1] <= found[1] + found[2] <= len(message)


CHUNKS = st.builds(
    _protocol.ActivationChunk,
    hook_point=st.text(max_size=20),
    first_row=st.integers(0, 2**63 - 1),
    rows=st.integers(0, 2**31 - 1),
    values=st.lists(st.floats(width=32), max_size=4),
    resume_token=st.binary(max_size=140),
    data=st.binary(max_size=300),
)


def splice(chunk, at, removed, inserted):
    message = _protocol.CaptureResponse(chunk=chunk).SerializeToString()
    at = min(at, len(message))
    return message[:at] + inserted + message[at + removed :]


# HOOKLINE_FUZZ_EXAMPLES sets the number of examples, for a long run.
@pytest.mark.filterwarnings("ignore:Unexpected end-group tag")
@settings(max_examples=int(os.environ.get("HOOKLINE_FUZZ_EXAMPLES", "400")), deadline=None, database=None)
@given(
    st.builds(splice, CHUNKS, st.integers(0, 500), st.integers(0, 8), st.binary(max_size=12)) | st.binary(max_size=60)
)
def test_what_is_found_in_any_bytes_is_what_protobuf_finds(message):
    try:
        found = split_chunk(message)
    except (ValueError, DecodeError):
        return
    if found is None:
        return
    fields, offset, length = found
    assert 0 <= offset <= offset + length <= len(message)
    try:
        whole = _protocol.CaptureResponse.FromString(message).chunk
    except DecodeError:
        return  # malformed bytes after the values are ignored here, but refused by protobuf
    if not fields.data:  # if a field comes twice the last one counts; a server sends it once
        assert message[offset : offset + length] == whole.data
        whole.ClearField("data")
        assert fields.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)


def test_other_messages_are_left_to_protobuf():
    assert split_chunk(_protocol.CaptureResponse(started={"model": "m"}).SerializeToString()) is None
    assert split_chunk(b"") is None


def test_the_packaged_descriptors_are_those_of_proto(tmp_path):
    protoc = shutil.which("protoc")
    assert protoc is not None, "protoc must be on the path; deploy/install-dependencies installs it"
    made = tmp_path / "protocol.binpb"
    folders = [("google", "rpc"), ("hookline", "v1")]
    files = [file for names in folders for file in sorted(glob.glob(os.path.join(ROOT, "proto", *names, "*.proto")))]
    subprocess.run(
        [protoc, "-I", os.path.join(ROOT, "proto"), "--include_imports", f"--descriptor_set_out={made}", *files],
        check=True,
    )
    with open(os.path.join(os.path.dirname(_protocol.__file__), "protocol.binpb"), "rb") as packaged:
        assert descriptor_pb2.FileDescriptorSet.FromString(
            packaged.read()
        ) == descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes()), "run client/python/update-protocol"
