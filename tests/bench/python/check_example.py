#!/usr/bin/env python3
"""Kills client/python/examples/train_sae_lens.py, continues it, and compares the result with an undisturbed run.

    hookline-server --model tests/fixtures/nanochat/demo --dataset text=tests/fixtures/nanochat/demo/tokens.npy &
    tests/bench/python/check_example.py --server 127.0.0.1:7471      # needs sae-lens 6.54

Weights, training state and the state of the data provider at every later checkpoint (which holds the rows that wait,
so that equal states mean equal batches from there on) must be equal in every bit.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from safetensors.torch import load_file

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "client" / "python" / "examples" / "train_sae_lens.py"
STATES = ("hookline_provider.pt", "trainer_state.pt")
WEIGHTS = "sae_weights.safetensors"


def start(server: str, out: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'client' / 'python'}:{os.environ.get('PYTHONPATH', '')}"}
    size = ["--rows", "65536", "--checkpoints", "6", "--features", "256"]
    command = [sys.executable, "-W", "ignore", str(EXAMPLE), "--server", server, "--dataset", "text", *size]
    return subprocess.Popen([*command, "--out", str(out)], env=environment, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=600)
    if process.returncode != 0:
        sys.exit(f"the example ended with {process.returncode}")
    print(output, end="", flush=True)


def kill_after(process: subprocess.Popen[str], checkpoints: Path, count: int) -> None:
    """Kills the example a moment after it has written `count` checkpoints, between two of them or within one."""
    while len(list(checkpoints.glob(f"*/{STATES[0]}"))) < count:
        if process.poll() is not None:
            sys.exit("the example ended before it could be killed")
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    print(f"killed after {', '.join(sorted(path.name for path in checkpoints.iterdir()))} rows", flush=True)


def leaves(state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(state, dict):
        for key, value in state.items():
            yield from leaves(value, f"{name}/{key}")
    elif isinstance(state, (list, tuple)):
        for index, value in enumerate(state):
            yield from leaves(value, f"{name}/{index}")
    else:
        yield name, state


def differences(whole: Any, killed: Any) -> list[str]:
    """Returns the parts that are not equal in every bit."""
    pairs = zip(leaves(whole), leaves(killed), strict=True)
    return [
        name
        for (name, one), (_, other) in pairs
        if not (torch.equal(one, other) if torch.is_tensor(one) else one == other)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server", default="localhost:7471", help="host:port (default: %(default)s)")
    parser.add_argument("--kill-after", type=int, default=3, help="number of checkpoints (default: %(default)s)")
    arguments = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        finish(start(arguments.server, whole))
        kill_after(start(arguments.server, killed), killed / "checkpoints", arguments.kill_after)
        finish(start(arguments.server, killed))
        compared: list[tuple[str, Any, Any]] = [(WEIGHTS, *(load_file(run / WEIGHTS) for run in (whole, killed)))]
        for checkpoint in sorted((whole / "checkpoints").iterdir(), key=lambda path: int(re.sub(r"\D", "", path.name))):
            for name in STATES:
                paths = (run / "checkpoints" / checkpoint.name / name for run in (whole, killed))
                compared.append((f"{checkpoint.name}/{name}", *(torch.load(path) for path in paths)))
        for name, one, other in compared:
            different = differences(one, other)
            failures += len(different)
            print(f"{name:32} {'equal in every bit' if not different else 'DIFFERENT: ' + ', '.join(different)}")
        print(SAE.load_from_disk(killed).cfg.metadata)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
