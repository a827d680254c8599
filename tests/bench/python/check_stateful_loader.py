#!/usr/bin/env python3
"""Kills and continues passes of torchdata's StatefulDataLoader over a hookline.torch.ActivationDataset.

    hookline-server --model tests/fixtures/nanochat/demo --dataset text=tests/fixtures/nanochat/demo/tokens.npy &
    tests/bench/python/check_stateful_loader.py --server 127.0.0.1:7471      # needs torchdata 0.11

For 0 and 2 workers, with and without a shuffle buffer, one process takes the whole pass. Other processes take it up to
a random batch, save the loader's state and are killed there; for each, a third process loads the state and takes the
rest. Rows of `hook_embed` do not depend on the batch that computes them, so all batches must be equal in every bit.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[3] / "client" / "python"))

import hookline  # noqa: E402
from hookline.torch import ActivationDataset  # noqa: E402

LENGTH = 32
SEQUENCES = 130  # 65 for each of two workers, which is not a multiple of a group of sequences
BATCH_ROWS = 100


def take(server: str, workers: int, shuffle_buffer: int, state: Path | None, count: int, out: Path) -> None:
    """Takes `count` batches (0: the rest) from `state` on, and writes them and the state after them. If that is only a
    part of the pass, the process kills itself with SIGKILL."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    source = hookline.Dataset("text", LENGTH, sequence_count=SEQUENCES, shuffle_seed=3, epochs=2)
    dataset = ActivationDataset(
        server,
        "hook_embed",
        source,
        batch_rows=BATCH_ROWS,
        shuffle_buffer=shuffle_buffer,
        seed=5,
        provenance=True,
    )
    logging.getLogger("hookline").setLevel(logging.ERROR)  # the texts have no BOS, which does not matter here
    loader = StatefulDataLoader(dataset, batch_size=None, num_workers=workers)
    if state is not None:
        loader.load_state_dict(torch.load(state, weights_only=False))
    batches = []
    for batch in loader:
        batches.append((batch["hook_embed"], batch.sequence, batch.position))
        if len(batches) == count:
            torch.save((batches, loader.state_dict()), out)
            os.kill(os.getpid(), signal.SIGKILL)
    torch.save((batches, None), out)


def run(arguments: list[str], killed: bool) -> None:
    process = subprocess.run([sys.executable, "-W", "ignore", __file__, *arguments], timeout=300)
    expected = -signal.SIGKILL if killed else 0
    if process.returncode != expected:
        sys.exit(f"{arguments} ended with {process.returncode} instead of {expected}")


def check(server: str, workers: int, shuffle_buffer: int, cuts: int, folder: Path) -> int:
    """Returns the number of continued passes that differ from the whole one."""

    def part(name: str, state: Path | None, count: int) -> tuple[list[tuple[torch.Tensor, ...]], Path]:
        out = folder / name
        options = [] if state is None else ["--state", str(state)]
        child = ["--server", server, "--workers", str(workers), "--shuffle-buffer", str(shuffle_buffer)]
        run([*child, "--take", str(count), "--out", str(out), *options], killed=count > 0)
        batches, after = torch.load(out, weights_only=False)
        torch.save(after, out.with_suffix(".state"))
        return batches, out.with_suffix(".state")

    whole, _ = part("whole", None, 0)
    failures = 0
    for cut in random.sample(range(1, len(whole)), cuts):
        first, state = part("first", None, cut)
        second, _ = part("second", state, 0)
        both = first + second
        same = len(both) == len(whole) and all(
            torch.equal(a, b) for found, expected in zip(both, whole) for a, b in zip(found, expected)
        )
        failures += not same
        print(
            f"{workers} workers, buffer of {shuffle_buffer:4} rows, killed after batch {cut:2} of {len(whole)}: "
            f"{'every batch equal' if same else 'DIFFERENT'}",
            flush=True,
        )
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server", default="localhost:7471", help="host:port (default: %(default)s)")
    parser.add_argument("--cuts", type=int, default=4, help="cut passes for each kind of loader (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="chooses where passes are cut (default: %(default)s)")
    for name, kind in (("workers", int), ("shuffle-buffer", int), ("take", int), ("state", Path), ("out", Path)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)  # for the processes that take parts
    arguments = parser.parse_args()
    if arguments.out is not None:
        kind = arguments.workers, arguments.shuffle_buffer
        take(arguments.server, *kind, arguments.state, arguments.take, arguments.out)
        return 0
    random.seed(arguments.seed)
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for workers in (0, 2):
            for shuffle_buffer in (0, 700):
                failures += check(arguments.server, workers, shuffle_buffer, arguments.cuts, Path(folder))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
