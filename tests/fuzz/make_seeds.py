#!/usr/bin/env python3
"""Makes the inputs in seeds/ that the fuzzers begin with, from the output of real programs.

    tests/fuzz/make_seeds.py build/release/bin/hookline-server

Needs the Python packages that the tests need. The seeds of the configs and of torch.save's files are fixtures.
"""

import json
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import time

import grpc
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
SEEDS = pathlib.Path(__file__).resolve().parent / "seeds"
sys.path.insert(0, str(ROOT / "client" / "python"))

from google.protobuf import json_format  # noqa: E402

from hookline import _protocol  # noqa: E402

CAPTURE = {
    "hookPoints": ["blocks.{0,1}.hook_resid_post", "hook_embed"],
    "tokens": {"sequences": [{"ids": [1, 2, 3, 4, 5]}, {"ids": [44, 7]}]},
    "maxActivations": 6,
    "provenance": True,
}
DATASET = {
    "hookPoints": ["blocks.0.*"],
    "dataset": {"name": "d", "sequenceLength": 8, "shuffleSeed": 3, "epochs": 2},
    "selection": {"skipFirst": 1, "positionStride": 2, "seed": 9},
    "dtype": "DTYPE_BFLOAT16",
    "maxActivationsByHookPoint": {"blocks.0.hook_resid_post": 10},
    "deterministic": True,
}


def write(target: str, name: str, content: bytes) -> None:
    folder = SEEDS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def message(name: str, fields: dict) -> bytes:
    return json_format.ParseDict(fields, _protocol.message_class(f"hookline.v1.{name}")()).SerializeToString()


def files() -> None:
    tensors = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    }
    header = json.dumps(tensors, separators=(",", ":")).encode()
    file = struct.pack("<Q", len(header)) + header + bytes(32)
    write("safetensors", "as_it_is", b"\0" + file)
    write("safetensors", "header_length_set", b"\1" + file)
    for dtype in ("u1", "<u2", "<i4", "<i8"):
        with tempfile.TemporaryFile() as out:
            np.save(out, np.arange(12, dtype=dtype).reshape(3, 4) if dtype == "<u2" else np.arange(12, dtype=dtype))
            out.seek(0)
            write("npy", dtype.strip("<"), out.read())
    clients = [
        {
            "name": "alice",
            "token_sha256": "ab" * 32,
            "roles": ["read", "capture"],
            "weight": 1,
            "quotas": {"captures": 4},
        },
        {"name": "ci", "san": "spiffe://lab/ci", "roles": ["read"]},
        {"name": "local", "uid": 1000, "roles": ["admin"]},
    ]
    write("auth_file", "three", json.dumps({"clients": clients}).encode())
    write("wildcard", "some", b"blocks.{0,1,40..47}.hook_resid_post\n*.attn.*\nembed\nblocks.*hook_*")
    offer = b"HKLNSHM1" + bytes(16)
    write("shared_memory", "offer", bytes([1 << 6 | len(offer)]) + offer + bytes([8]) + bytes(8))
    write(
        "shared_memory",
        "in_pieces",
        bytes([1 << 6 | 1]) + offer[:1] + bytes([23]) + offer[1:] + bytes([3 << 6 | 1]) + b"x",
    )


def requests() -> None:
    for number, name in enumerate(
        ["CaptureRequest", "PersistRequest", "EstimateCaptureRequest", "CaptureStreamRequest"]
    ):
        for which, capture in (("tokens", CAPTURE), ("dataset", DATASET)):
            fields = {
                "CaptureRequest": capture,
                "PersistRequest": {"name": "r", "capture": capture},
                "EstimateCaptureRequest": {"capture": capture},
                "CaptureStreamRequest": {"request": capture} if which == "dataset" else {"tokens": capture["tokens"]},
            }[name]
            write("request", f"{name}_{which}", bytes([number]) + message(name, fields))


def served(server: str) -> None:
    """Writes a real server's answers and a recording."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        np.save(path / "d.npy", np.arange(96, dtype=np.uint16))
        process = subprocess.Popen(
            [
                server,
                "--listen",
                "127.0.0.1:0",
                "--port-file",
                str(path / "port"),
                "--recordings-dir",
                str(path),
                "--model",
                str(ROOT / "tests/fixtures/nanochat/demo"),
                "--dataset",
                f"d={path / 'd.npy'}",
            ]
        )
        try:
            while not (path / "port").exists():
                time.sleep(0.1)
            channel = grpc.insecure_channel("127.0.0.1:" + (path / "port").read_text().strip())
            capture = channel.unary_stream("/hookline.v1.CaptureService/Capture")
            for number, answer in enumerate(capture(message("CaptureRequest", CAPTURE))):
                write("response", f"{number}", b"\x08" + answer[:2048])
                parsed = _protocol.CaptureResponse.FromString(answer)
                if parsed.WhichOneof("kind") == "chunk" and number < 3:
                    write("resume_token", f"{number}", parsed.chunk.resume_token)
                    write("resume_token", f"{number}_without_checksum", parsed.chunk.resume_token[:-4])
            persist = channel.unary_stream("/hookline.v1.RecordingService/Persist")
            for name, request in (("tokens", CAPTURE), ("dataset", DATASET)):
                list(persist(message("PersistRequest", {"name": name, "capture": request})))
                manifest = (path / name / "manifest.json").read_bytes()
                write("manifest", name, manifest)
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    shutil.rmtree(SEEDS, ignore_errors=True)
    files()
    requests()
    served(sys.argv[1])


if __name__ == "__main__":
    main()
