"""Runs a real server on the trained demo model, with the protocol's messages compiled from proto/."""

import json
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import threading

import grpc
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("HOOKLINE_SERVER_PROGRAM", str(ROOT / "build/release/bin/hookline-server"))
DEMO = ROOT / "tests/fixtures/nanochat/demo"
POINTS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
LENGTH = 100  # tokens in a sequence


def compile_proto(out):
    """Yields the generated message modules, which can be imported until the generator is closed."""
    files = [str(path.relative_to(ROOT / "proto")) for path in sorted((ROOT / "proto/hookline/v1").glob("*.proto"))]
    subprocess.run(["protoc", "-I", str(ROOT / "proto"), "--python_out", str(out), *files], check=True)
    sys.path.insert(0, str(out))
    from hookline.v1 import capture_service_pb2, recording_service_pb2, types_pb2

    class Messages:
        capture = capture_service_pb2
        recording = recording_service_pb2
        types = types_pb2

    yield Messages
    sys.path.remove(str(out))


@pytest.fixture(scope="session")
def proto(tmp_path_factory):
    """The protocol's messages."""
    yield from compile_proto(tmp_path_factory.mktemp("proto"))


class Server:
    """A server process. With `models=False` it only reads recordings."""

    def __init__(self, proto, tmp_path, models=True, recordings=True, dataset=None, flags=()):
        self.proto = proto
        self.recordings = tmp_path / "recordings"
        self.recordings.mkdir(exist_ok=True)
        command = [PROGRAM, "--listen", "127.0.0.1:0", "--drain-timeout", "0s", "--recordings-free-bytes", "0"]
        if "--recordings-shard-bytes" not in flags:
            command += ["--recordings-shard-bytes", "1MiB"]
        if "--slab-count" not in flags:
            command += ["--slab-count", "64"]  # zeroing the default's memory would take half of the start
        if recordings:
            command += ["--recordings-dir", str(self.recordings)]
        if models:
            command += ["--model", str(DEMO), "--device", "cpu", "--threads", "1"]
        if dataset:
            command += ["--dataset", f"text={dataset}"]
        self.process = subprocess.Popen(
            [*command, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        log = []
        for line in self.process.stderr:
            log.append(line)
            if "listening on" in line:
                break
        else:
            raise RuntimeError("the server ended at its start:\n" + "".join(log))
        port = int(re.search(r"\(port (\d+)\)", line).group(1))
        # Without this thread the server would wait for room in the pipe.
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self.address = f"127.0.0.1:{port}"
        self.channel = grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)])

    def _method(self, service, name, streams, response):
        kind = self.channel.unary_stream if streams else self.channel.unary_unary
        return kind(
            f"/hookline.v1.{service}/{name}",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=response.FromString,
        )

    def capture(self, request):
        return self._method("CaptureService", "Capture", True, self.proto.capture.CaptureResponse)(request)

    def persist(self, name, capture):
        request = self.proto.recording.PersistRequest(name=name, capture=capture)
        return self._method("RecordingService", "Persist", True, self.proto.recording.PersistResponse)(request)

    def get(self, name):
        request = self.proto.recording.GetRecordingRequest(name=name)
        return self._method("RecordingService", "GetRecording", False, self.proto.recording.Recording)(request)

    def list(self, **fields):
        request = self.proto.recording.ListRecordingsRequest(**fields)
        response = self.proto.recording.ListRecordingsResponse
        return self._method("RecordingService", "ListRecordings", False, response)(request)

    def stop(self, name):
        request = self.proto.recording.StopRecordingRequest(name=name)
        return self._method("RecordingService", "StopRecording", False, self.proto.recording.Recording)(request)

    def delete(self, name):
        request = self.proto.recording.DeleteRecordingRequest(name=name)
        response = self.proto.recording.DeleteRecordingResponse
        return self._method("RecordingService", "DeleteRecording", False, response)(request)

    def verify(self, name):
        """Returns the last message."""
        request = self.proto.recording.VerifyRecordingRequest(name=name)
        response = self.proto.recording.VerifyRecordingResponse
        return list(self._method("RecordingService", "VerifyRecording", True, response)(request))[-1]

    def read(self, name, **fields):
        request = self.proto.recording.ReadRecordingRequest(name=name, **fields)
        return self._method("RecordingService", "ReadRecording", True, self.proto.capture.CaptureResponse)(request)

    def kill(self):
        self.channel.close()
        self.process.kill()
        self.process.wait()

    def terminate(self):
        """Shuts the server down gracefully."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=60) == 0
        self.channel.close()


@pytest.fixture
def serve(proto, tmp_path):
    """Starts servers on one directory of recordings, which end with the test."""
    servers = []

    def start(**options):
        servers.append(Server(proto, tmp_path, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def text(tmp_path):
    """Writes a dataset of 600 sequences of LENGTH tokens. Returns its path."""
    path = tmp_path / "text.npy"
    ids = np.random.default_rng(1).integers(32, 127, 600 * LENGTH).astype(np.uint16)
    np.save(path, ids)
    return path


def dataset_request(proto, sequences=600, **fields):
    """Requests rows of a dataset's sequences that do not depend on the server's other clients."""
    request = proto.capture.CaptureRequest(hook_points=POINTS, deterministic=True, **fields)
    request.dataset.name = "text"
    request.dataset.sequence_length = LENGTH
    request.dataset.sequence_count = sequences
    return request


def collect(responses, columns=False):
    """Returns the bytes of a capture's rows by hook point, and the summary."""
    rows, provenance, summary = {}, [], None
    for response in responses:
        kind = response.WhichOneof("kind")
        if kind == "chunk":
            chunk = response.chunk
            rows.setdefault(chunk.hook_point, bytearray()).extend(chunk.data)
            if chunk.hook_point == POINTS[0]:
                provenance += zip(chunk.sequence, chunk.position, chunk.token_id)
        elif kind == "summary":
            summary = response.summary
    rows = {name: bytes(data) for name, data in rows.items()}
    return (rows, provenance, summary) if columns else (rows, summary)


def read_safetensors(path):
    """Parses a file by the published layout of safetensors alone."""
    data = path.read_bytes()
    (header_bytes,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + header_bytes])
    header.pop("__metadata__", None)
    body = data[8 + header_bytes :]
    ends = sorted(tensor["data_offsets"] for tensor in header.values())
    assert ends[0][0] == 0 and ends[-1][1] == len(body)
    assert all(a[1] == b[0] for a, b in zip(ends, ends[1:]))
    return {name: body[slice(*tensor["data_offsets"])] for name, tensor in header.items()}


def shards(directory):
    """Returns the contents of a recording's shards by name."""
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.safetensors"))}


def rows_on_disk(directory):
    """Returns the rows of all shards by hook point, in the order of the shards' names."""
    rows = {}
    for path in sorted(directory.glob("*.safetensors")):
        for name, values in read_safetensors(path).items():
            rows[name] = rows.get(name, b"") + values
    return rows
