#!/usr/bin/env python3
"""Trains a sparse autoencoder on the rows of one hook point of a running server, and measures it.

    hookline-server --model tests/fixtures/nanochat/demo --listen 127.0.0.1:7471 &
    client/python/examples/train_sae.py --tokens tests/fixtures/nanochat/demo/tokens.npy

The autoencoder keeps the k largest of its features for each row (TopK, Gao et al. 2024, "Scaling and evaluating sparse
autoencoders"): r(x) = W_dec^T topk(W_enc (x - b)) + b, trained on |x - r(x)|^2. The last tenth of the text is not
trained on; explained variance, 1 - sum |x - r(x)|^2 / sum |x - mean x|^2, is measured there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hookline


class TopKAutoencoder(torch.nn.Module):
    def __init__(self, width: int, features: int, k: int) -> None:
        super().__init__()
        self.k = k
        directions = torch.nn.functional.normalize(torch.randn(features, width), dim=1)
        self.decoder = torch.nn.Parameter(directions)
        self.encoder = torch.nn.Parameter(directions.clone())
        self.bias = torch.nn.Parameter(torch.zeros(width))

    def encode(self, rows: torch.Tensor) -> torch.Tensor:
        activations = (rows - self.bias) @ self.encoder.T  # (rows, features)
        values, indices = activations.topk(self.k, dim=1)
        return torch.zeros_like(activations).scatter(1, indices, values.relu())

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.encode(rows) @ self.decoder + self.bias

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        self.decoder.div_(self.decoder.norm(dim=1, keepdim=True))


def sequences(path: Path, length: int) -> np.ndarray[Any, Any]:
    """Reads a file's token ids and cuts them into sequences: an .npy array, or a text's bytes for a
    byte-level model."""
    tokens = np.load(path).reshape(-1) if path.suffix == ".npy" else np.frombuffer(path.read_bytes(), np.uint8)
    return tokens[: len(tokens) // length * length].reshape(-1, length)


@torch.no_grad()
def explained_variance(
    autoencoder: TopKAutoencoder, batches: Iterable[hookline.Batch], hook_point: str, scale: float
) -> tuple[float, int]:
    residual = total = 0.0
    used = torch.zeros(len(autoencoder.decoder), dtype=torch.bool)
    for batch in batches:
        rows = batch[hook_point] / scale
        codes = autoencoder.encode(rows)
        used |= (codes > 0).any(dim=0)
        residual += float((codes @ autoencoder.decoder + autoencoder.bias - rows).square().sum())
        total += float((rows - rows.mean(dim=0)).square().sum())
    return 1 - residual / total, int(used.sum())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server", default="localhost:7471", help="host:port (default: %(default)s)")
    parser.add_argument("--tokens", type=Path, required=True, help="token ids: .npy, or text for a byte-level model")
    parser.add_argument("--hook-point", default="blocks.2.hook_resid_post", help="(default: %(default)s)")
    parser.add_argument("--sequence-length", type=int, default=256, help="tokens (default: %(default)s)")
    parser.add_argument("--features", type=int, default=1024, help="of the autoencoder (default: %(default)s)")
    parser.add_argument("--k", type=int, default=32, help="features used for a row (default: %(default)s)")
    parser.add_argument("--batch-rows", type=int, default=1024, help="(default: %(default)s)")
    parser.add_argument("--passes", type=int, default=2, help="over the text (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    client = hookline.connect(arguments.server)
    model = client.model()
    point = next((point for point in model.hook_points if point.name == arguments.hook_point), None)
    if point is None:
        sys.exit(
            f"--hook-point: {model.name} has no {arguments.hook_point}; it has "
            + ", ".join(point.name for point in model.hook_points)
        )
    text = sequences(arguments.tokens, arguments.sequence_length)
    held_out = max(1, len(text) // 10)
    train, test = text[:-held_out], text[-held_out:]
    print(f"{model}: {point.name}, width {point.width}, {train.size} tokens to train on, {test.size} held out")

    # Rows scaled to a mean square of 1 make the learning rate independent of the model.
    capture = model.capture(point.name, train[:16])
    for _ in capture:
        pass
    assert capture.summary is not None
    scale = capture.summary.hook_points[point.name].rms

    autoencoder = TopKAutoencoder(point.width, arguments.features, arguments.k)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=arguments.learning_rate)
    step, start = 0, time.monotonic()
    for number in range(arguments.passes):
        batches = model.capture(
            point.name, train, batch_rows=arguments.batch_rows, shuffle_buffer=1 << 16, seed=arguments.seed + number
        )
        for batch in batches:
            rows = batch[point.name] / scale
            loss = (autoencoder(rows) - rows).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            autoencoder.normalize_decoder()
            step += 1
            if step % 50 == 1:
                print(f"step {step:5d}  loss {loss.item():.4f}", flush=True)
        print(
            f"pass {number + 1}: {step} steps, {time.monotonic() - start:.1f} s, last loss {loss.item():.4f}",
            flush=True,
        )

    variance, used = explained_variance(
        autoencoder, model.capture(point.name, test, batch_rows=8192), point.name, scale
    )
    print(f"held out: explained variance {variance:.4f}, {used} of {arguments.features} features in use")
    return 0


if __name__ == "__main__":
    sys.exit(main())
