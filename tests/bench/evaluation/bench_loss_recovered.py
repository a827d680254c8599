#!/usr/bin/env python3
"""Compares `Client.loss_recovered` of an autoencoder with SAELens's `run_evals`, which runs the model in its process.

    tests/bench/evaluation/bench_loss_recovered.py --server-program build/release/bin/hookline-server [--layer 6]

Needs sae-lens 6.54, transformer-lens 3 and transformers 5; build the server against that torch
(-DHOOKLINE_TORCH_PYTHON) to compare the ways and not two versions of LibTorch. A random GPT-2 of 12 blocks, 768 wide,
8192 ids, float32; 16 sequences of 128 tokens; SAELens's standard autoencoder with 6144 latents at the residual stream
after block `--layer`.
Both compute the same numbers: losses with the reconstruction, without it and with zeros, KL divergences, L0, L1,
explained variance and cosine similarity.

Both take turns within a round. Figures are medians of the rounds' ratios: of wall time, and of the processor seconds of
all processes, which is the one to use on a machine with other load.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

sys.path.insert(0, str(Path(__file__).parent))

import check_run_evals as checked  # noqa: E402
import make_references  # noqa: E402

LAYERS, WIDTH, VOCABULARY, LATENTS = 12, 768, 8192, 6144
CONTEXT, PROMPTS, BATCHES = 128, 4, 4
TICKS = os.sysconf("SC_CLK_TCK")


def write_model(folder: Path) -> None:
    """Writes the model where `make_references` looks for the fixture gpt2."""
    torch.manual_seed(1)
    config = GPT2Config(n_layer=LAYERS, n_head=12, n_embd=WIDTH, vocab_size=VOCABULARY, n_positions=CONTEXT)
    GPT2LMHeadModel(config).save_pretrained(folder / "gpt2")
    make_references.FAMILIES = folder


def server_seconds(process: Any) -> float:
    """Returns the server's processor time."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def measured(action: Callable[[], Any], server: Any) -> tuple[float, float]:
    """Returns the wall time and the processor seconds that `action` takes."""
    wall, here, there = time.monotonic(), time.process_time(), server_seconds(server)
    action()
    return time.monotonic() - wall, time.process_time() - here + server_seconds(server) - there


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server-program", type=Path, required=True)
    parser.add_argument("--layer", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="threads of each side; 0: one for each core")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    threads = arguments.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    checked.CONTEXT, checked.PROMPTS, checked.BATCHES, checked.LATENTS = CONTEXT, PROMPTS, BATCHES, LATENTS
    hook_point = f"blocks.{arguments.layer}.hook_resid_post"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        model = make_references.hooked("gpt2")
        ids = torch.randint(0, VOCABULARY, (PROMPTS * BATCHES, CONTEXT), generator=torch.Generator().manual_seed(1))
        _, cache = model.run_with_cache(ids[:2], names_filter=[hook_point])
        sae = checked.make("standard", "gpt2", hook_point, cache[hook_point].flatten(0, 1), None, folder / "sae")
        store = checked.store_of(model, ids, hook_point, WIDTH)
        server = checked.Server(arguments.server_program, folder / "gpt2", ["--threads", str(threads)])
        with server as client:

            def here() -> dict[str, float]:
                return checked.numbers_of_run_evals(sae, model, store, [])

            def there() -> dict[str, float]:
                return checked.found_here(client, sae, hook_point, ids, [])

            difference, number = checked.worst(here(), there())
            print(f"largest difference of the numbers: {difference:.1e} ({number})", flush=True)
            ratios = []
            for _ in range(arguments.rounds):
                theirs, ours = measured(here, server.process), measured(there, server.process)
                ratios.append((theirs[0] / ours[0], theirs[1] / ours[1]))
                print(
                    f"run_evals / loss_recovered: wall {ratios[-1][0]:.2f}, processors {ratios[-1][1]:.2f}", flush=True
                )
        wall, processors = (statistics.median(ratio[i] for ratio in ratios) for i in range(2))
        print(
            f"torch {torch.__version__}, {threads} threads, {hook_point}: wall {wall:.2f}, processors {processors:.2f}"
        )


if __name__ == "__main__":
    main()
