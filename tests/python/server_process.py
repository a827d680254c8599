"""Runs the server itself, on the trained demo model. HOOKLINE_SERVER_PROGRAM names the program."""

import os
import subprocess

import grpc
from held_port import HeldPort

PROGRAM = os.environ.get("HOOKLINE_SERVER_PROGRAM", "")
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
DEMO = os.path.join(ROOT, "tests", "fixtures", "nanochat", "demo")

assert os.path.exists(PROGRAM), "HOOKLINE_SERVER_PROGRAM must name hookline-server; ctest sets it"

RESID = "blocks.1.hook_resid_post"
POST = "blocks.0.mlp.hook_post"


class Server:
    """A server process. `port`: the HeldPort of one that has ended, or none for a port of its own. `log`: the path of
    a file for what it prints."""

    def __init__(self, port=None, model=DEMO, arguments=(), log=os.devnull):
        self.port = port or HeldPort()
        self.address = self.port.address
        with open(log, "wb") as printed:
            self._process = subprocess.Popen(
                [
                    PROGRAM,
                    "--model",
                    model,
                    "--listen",
                    self.address,
                    "--device",
                    "cpu",
                    "--threads",
                    "1",  # several servers with a thread for every core would compete for the cores
                    "--slab-count",
                    "64",  # zeroing the default's memory would take half of the start
                    "--dataset",
                    "text=" + os.path.join(DEMO, "tokens.npy"),
                    *arguments,
                ],
                stdout=printed,
                stderr=printed,
            )
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
        with grpc.insecure_channel(self.address, options=options) as channel:
            grpc.channel_ready_future(channel).result(timeout=120)

    def kill(self):
        self._process.kill()
        self._process.wait()
