#!/usr/bin/env python3
"""Trains a sparse autoencoder on activations that a Ray cluster's servers compute and its tasks read.

    pip install "ray[data]"
    client/python/examples/train_ray.py --model tests/fixtures/nanochat/demo --replicas 2 \\
        --tokens tests/fixtures/nanochat/demo/tokens.npy --program build/release/bin/hookline-server

It starts Ray on this machine, or joins the cluster that RAY_ADDRESS names, and starts one server for each replica: on a
GPU each with --gpus 1, else on CPUs. The autoencoder is that of train_sae.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import ray
import torch
from train_sae import TopKAutoencoder

import hookline
import hookline.ray


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True, help="a model for hookline-server --model, on every node")
    parser.add_argument("--tokens", required=True, help="a dataset for hookline-server --dataset, on every node")
    parser.add_argument("--program", default="hookline-server", help="(default: %(default)s)")
    parser.add_argument("--replicas", type=int, default=2, help="servers (default: %(default)s)")
    parser.add_argument("--gpus", type=float, default=0, help="of each server (default: %(default)s)")
    parser.add_argument("--cpus", type=float, default=0.5, help="of each server, and each task (default: %(default)s)")
    parser.add_argument("--hook-point", default="blocks.2.hook_resid_post", help="(default: %(default)s)")
    parser.add_argument("--sequence-length", type=int, default=256, help="tokens (default: %(default)s)")
    parser.add_argument("--sequences", type=int, default=0, help="0: all (default: %(default)s)")
    parser.add_argument("--features", type=int, default=1024, help="of the autoencoder (default: %(default)s)")
    parser.add_argument("--k", type=int, default=32, help="features used for a row (default: %(default)s)")
    parser.add_argument("--batch-rows", type=int, default=1024, help="(default: %(default)s)")
    parser.add_argument("--shuffle-rows", type=int, default=1 << 15, help="rows that are mixed (default: %(default)s)")
    arguments = parser.parse_args()
    ray.init()
    with hookline.ray.serve(
        str(Path(arguments.model).resolve()),
        replicas=arguments.replicas,
        num_gpus=arguments.gpus,
        num_cpus=arguments.cpus,
        program=str(Path(arguments.program).resolve()) if "/" in arguments.program else arguments.program,
        # Anyone on the cluster's network can use the servers; --auth-file would restrict that.
        arguments=["--insecure", "--dataset", f"tokens={Path(arguments.tokens).resolve()}"],
        drain_seconds=5,
    ) as servers:
        print("servers:", ", ".join(servers.endpoints))
        source = hookline.Dataset("tokens", arguments.sequence_length, sequence_count=arguments.sequences)
        # Servers hold their CPUs for as long as they run, so some must be left for the tasks.
        dataset = hookline.ray.read_activations(
            servers, arguments.hook_point, source, ray_remote_args={"num_cpus": arguments.cpus}
        )
        print(dataset.count(), "rows")
        train(dataset, arguments)
    return 0


def train(dataset: ray.data.Dataset, arguments: argparse.Namespace) -> None:
    autoencoder: TopKAutoencoder | None = None
    # `iter_torch_batches` would also need Ray Train's packages.
    batches = dataset.iter_batches(
        batch_size=arguments.batch_rows, local_shuffle_buffer_size=arguments.shuffle_rows, drop_last=True
    )
    scale = 1.0
    for step, batch in enumerate(batches):
        rows = torch.tensor(batch[arguments.hook_point])
        if autoencoder is None:
            autoencoder = TopKAutoencoder(rows.shape[1], arguments.features, arguments.k)
            optimizer = torch.optim.Adam(autoencoder.parameters(), lr=1e-3)
            scale = float(rows.square().mean().sqrt())
        rows = rows / scale
        loss = (autoencoder(rows) - rows).square().sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        autoencoder.normalize_decoder()
        if step % 20 == 0:
            print(f"step {step}: loss {float(loss):.3f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
