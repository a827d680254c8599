"""Runs server processes, of the demo model if no other is given, for scripts that need several."""

import os
import signal
import subprocess

import grpc
from held_port import HeldPort

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
DEMO = os.path.join(ROOT, "tests", "fixtures", "nanochat", "demo")
# A busy machine may take long to load a model.
_START_SECONDS = 300


class ServerProcess:
    """A server on a port that it keeps over restarts."""

    def __init__(self, program, arguments=(), model=DEMO):
        self._arguments = [program, "--model", model, "--device", "cpu", "--threads", "1", "--drain-timeout", "1s"]
        self._arguments += ["--dataset", "text=" + os.path.join(DEMO, "tokens.npy"), *arguments]
        self._port = HeldPort()
        self.address = self._port.address
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [*self._arguments, "--listen", self.address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def wait(self):
        """Waits until the server answers."""
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
        with grpc.insecure_channel(self.address, options=options) as channel:
            grpc.channel_ready_future(channel).result(timeout=_START_SECONDS)

    def send(self, number):
        self.process.send_signal(number)

    def end(self, number=signal.SIGKILL):
        self.send(number)
        self.process.wait()
