"""Compares the latents of a dictionary 16 times as wide as its hook point, through `top_k`, with raw rows.

    /usr/bin/python3 tests/bench/evaluation/bench_latents.py build/release/bin/hookline-server [ROUNDS]

A random GPT-2 of 12 blocks, 768 wide, float32, and a random top-k dictionary (k = 32) of 12288 latents at block 8; 64
sequences of 48 tokens. It compares the rows themselves; the latents as rows; the latents with top_k = 32, as index and
value; and 11 latents by top_activations, whose answer does not grow with the rows. These take turns within a round, and
figures are medians over the rounds. Needs numpy, grpcio and protobuf.
"""

import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import grpc
import numpy as np
from bench_scores import VOCABULARY, WIDTH, write_checkpoint

import hookline

LATENTS, K, SEQUENCES, LENGTH = 16 * WIDTH, 32, 64, 48
HOOK_POINT = "blocks.8.hook_resid_post"
ACTS = f"{HOOK_POINT}.sae.hook_sae_acts_post"


def write_dictionary(folder):
    random = np.random.default_rng(3)
    decoder = random.standard_normal((LATENTS, WIDTH), dtype=np.float32) / np.float32(WIDTH**0.5)
    tensors = {
        "W_enc": np.ascontiguousarray(decoder.T),
        "W_dec": decoder,
        "b_enc": np.zeros(LATENTS, np.float32),
        "b_dec": np.zeros(WIDTH, np.float32),
    }
    header, offset = {}, 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [offset, offset + values.nbytes]}
        offset += values.nbytes
    text = json.dumps(header).encode()
    with open(folder / "sae_weights.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in tensors.values():
            file.write(values.tobytes())
    config = {"architecture": "topk", "d_in": WIDTH, "d_sae": LATENTS, "k": K, "metadata": {"hook_name": HOOK_POINT}}
    (folder / "cfg.json").write_text(json.dumps(config))


def capture(client, hook_point, **options):
    """Receives all rows. Returns their number, and the bytes of their values and indices."""
    source, rows, size = hookline.Dataset("ids", sequence_length=LENGTH), 0, 0
    for batch in client.capture(hook_point, source, output="numpy", **options):
        part = batch[hook_point]
        arrays = (part.indices, part.values) if isinstance(part, hookline.TopK) else (part,)
        rows += len(arrays[0])
        size += sum(array.size * 4 for array in arrays)
    return rows, size


def measure(address, rounds):
    with hookline.connect(address) as client:
        kinds = {
            "rows": lambda: capture(client, HOOK_POINT),
            "latents as rows": lambda: capture(client, ACTS),
            f"latents, top_k={K}": lambda: capture(client, ACTS, top_k=K),
        }
        source = hookline.Dataset("ids", sequence_length=LENGTH)
        seconds = {name: [] for name in [*kinds, "11 latents, top_activations"]}
        sizes = {}
        for _ in range(rounds + 1):  # the first round is not counted
            for name, run in kinds.items():
                start = time.monotonic()
                rows, size = run()
                seconds[name].append(time.monotonic() - start)
                sizes[name] = size / rows
            start = time.monotonic()
            client.top_activations("sae", source, range(10, 21))
            seconds["11 latents, top_activations"].append(time.monotonic() - start)
    rows = SEQUENCES * LENGTH
    for name, all_seconds in seconds.items():
        size = f"{sizes[name]:.0f} bytes/row" if name in sizes else "no rows sent"
        print(f"{name:28}  {rows / statistics.median(all_seconds[1:]):8.0f} rows/s  {size}")


def main():
    program, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for part in ("model", "sae"):
            (folder / part).mkdir()
        write_checkpoint(folder / "model")
        write_dictionary(folder / "sae")
        np.save(folder / "ids.npy", np.random.default_rng(4).integers(0, VOCABULARY, SEQUENCES * LENGTH, np.uint16))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        flags = ["--model", f"bench={folder / 'model'}", "--listen", address, "--device", "cpu", "--no-evaluation"]
        flags += ["--dictionary", f"sae={folder / 'sae'}", "--dataset", f"ids={folder / 'ids.npy'}"]
        server = subprocess.Popen(
            [program, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
        )
        try:
            with grpc.insecure_channel(address) as channel:
                grpc.channel_ready_future(channel).result(timeout=300)
            measure(address, rounds)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
