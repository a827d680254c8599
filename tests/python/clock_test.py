"""Tests that nothing depends on the wall clock, which is set by an hour while everything runs."""

import os
import struct
import subprocess
import sys

import pytest
from server_process import RESID, Server

import hookline

pytestmark = pytest.mark.usefixtures("receiver")

CLOCK = os.environ.get("HOOKLINE_STEPPED_CLOCK_LIBRARY", "")

assert os.path.exists(CLOCK), "HOOKLINE_STEPPED_CLOCK_LIBRARY must name libhookline_stepped_clock.so; ctest sets it"

# The rows come while the clock is set, the connection breaks, and a call waits for its time-out.
PROGRAM = """
import hookline, socket, struct, sys, time
address, clock, shift = sys.argv[1], sys.argv[2], int(sys.argv[3])
def set_clock(seconds):
    with open(clock, "r+b") as file:
        file.write(struct.pack("=q", seconds))
capture = hookline.connect(address).capture("{hook_point}", hookline.Dataset("text", 128), batch_rows=256,
                                            max_activations=100_000, output="numpy")
rows = 0
begin, wall = time.monotonic(), time.time()
for index, batch in enumerate(capture):
    rows += batch.rows
    if index % 10 == 1:
        set_clock(shift * (index // 10 % 2 == 0))
set_clock(shift)
assert abs(abs(time.time() - wall) - 3600) < 600, "the clock was not set"
summary = capture.summary
assert rows == 100_000 and summary.reconnects == 0, (rows, summary)
for told in ("total", "queue", "forward", "copy", "wire"):
    assert 0 <= getattr(summary, told + "_seconds") < 600, summary
with socket.socket() as silent:
    silent.bind(("127.0.0.1", 0))
    silent.listen()
    begin = time.monotonic()
    try:
        hookline.connect("127.0.0.1:%d" % silent.getsockname()[1]).models(timeout=1)
        sys.exit("answered")
    except (hookline.DeadlineExceededError, hookline.UnavailableError):
        assert 0.5 < time.monotonic() - begin < 60
print("right")
"""


@pytest.mark.parametrize("shift", [3600, -3600], ids=["forward", "back"])
def test_a_clock_that_is_set_by_an_hour_changes_nothing(tmp_path, monkeypatch, shift):
    clock = tmp_path / "clock"
    clock.write_bytes(struct.pack("=q", 0))
    package = os.path.dirname(os.path.dirname(hookline.__file__))
    monkeypatch.setenv("LD_PRELOAD", CLOCK)
    monkeypatch.setenv("HOOKLINE_STEPPED_CLOCK", str(clock))
    server = Server(arguments=["--keepalive", "5s"])
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(hook_point=RESID), server.address, str(clock), str(shift)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])},
            capture_output=True,
            text=True,
            timeout=300,
        )
    finally:
        server.kill()
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr
