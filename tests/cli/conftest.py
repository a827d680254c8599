"""The programs, the demo model, and readers of their files.

HOOKLINE_PROGRAM and HOOKLINE_SERVER_PROGRAM name the programs.
"""

import json
import os
import signal
import struct
import subprocess

import numpy as np
import pytest

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
DEMO = os.path.join(ROOT, "tests", "fixtures", "nanochat", "demo")
RESID = "blocks.2.hook_resid_post"
MLP = "blocks.3.hook_mlp_out"
PATIENCE = 300  # seconds, far longer than anything here takes


def read_safetensors(path):
    """Returns the metadata, and the tensors by name."""
    with open(path, "rb") as file:
        contents = file.read()
    (header_bytes,) = struct.unpack("<Q", contents[:8])
    header = json.loads(contents[8 : 8 + header_bytes])
    metadata = header.pop("__metadata__", {})
    types = {"F32": "<f4", "I64": "<i8", "I32": "<i4", "BF16": "<u2", "F16": "<f2", "U8": "u1"}
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(contents[begin:end], types[entry["dtype"]]).reshape(entry["shape"])
    return metadata, tensors


class Server:
    """A server process, which keeps `port` over restarts. Without `model` it serves recordings only."""

    def __init__(self, port=0, recordings=None, model=True, arguments=()):
        flags = ["--listen", f"127.0.0.1:{port}", *arguments]
        if model:
            flags += ["--model", DEMO, "--device", "cpu", "--slab-count", "32"]
            flags += ["--dataset", "text=" + os.path.join(DEMO, "tokens.npy")]
        if recordings is not None:
            flags += ["--recordings-dir", str(recordings), "--recordings-free-bytes", "0"]
            flags += ["--recordings-shard-bytes", "1MiB"]
        self.process = subprocess.Popen(
            [os.environ["HOOKLINE_SERVER_PROGRAM"], *flags],
            stderr=subprocess.PIPE,
            text=True,
        )
        # The log names the port; the rest of the log is not read and fits into the pipe.
        for line in self.process.stderr:
            if "listening on" in line:
                self.port = int(line.rsplit("(port ", 1)[1].rstrip(")\n"))
                return
        raise RuntimeError("the server did not start")

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def stop(self):
        """Shuts the server down gracefully."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 0
        self.process.stderr.close()

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()


@pytest.fixture(scope="module")
def server():
    running = Server()
    yield running
    running.kill()


def start(server, *arguments, **options):
    """Starts the program; `server` is None for commands that need none."""
    if server is not None:
        arguments = (*arguments, "--server", server.address)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([os.environ["HOOKLINE_PROGRAM"], *arguments], text=True, **{**pipes, **options})


def run(server, *arguments, input=""):
    process = start(server, *arguments)
    output, errors = process.communicate(input, timeout=PATIENCE)
    return process.returncode, output, errors


def capture(server, *arguments, input="", command="capture"):
    code, output, errors = run(server, command, "--json", "--quiet", *arguments, input=input)
    assert code == 0, errors
    return json.loads(output)
