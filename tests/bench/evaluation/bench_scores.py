"""Compares 16 variants that intervene in the last quarter of the layers, in one request, with 16 separate passes.

    /usr/bin/python3 tests/bench/evaluation/bench_scores.py build/release/bin/hookline-server [ROUNDS]

A random GPT-2 of 12 blocks, 768 wide, 8192 ids, float32; 2 sequences of 48 tokens, so that all of it is one batch. A
separate pass is a request without variants, with logits and losses as the variants have. Both take turns within a
round; the figure is the median of the rounds' ratios. Needs numpy, grpcio and protobuf.
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

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "client/python"))
import hookline  # noqa: E402

LAYERS, WIDTH, VOCABULARY = 12, 768, 8192
VARIANTS = 16


def write_checkpoint(folder):
    random = np.random.default_rng(1)
    tensors = {}

    def add(name, *shape, size=0.02, mean=0.0):
        tensors[name] = (random.standard_normal(shape, dtype=np.float32) * size + mean).astype("<f4")

    add("wte.weight", VOCABULARY, WIDTH)
    add("wpe.weight", 64, WIDTH)
    for layer in range(LAYERS):
        for norm in ("ln_1", "ln_2"):
            add(f"h.{layer}.{norm}.weight", WIDTH, mean=1.0)
            add(f"h.{layer}.{norm}.bias", WIDTH)
        for name, width, out in (
            ("attn.c_attn", WIDTH, 3 * WIDTH),
            ("attn.c_proj", WIDTH, WIDTH),
            ("mlp.c_fc", WIDTH, 4 * WIDTH),
            ("mlp.c_proj", 4 * WIDTH, WIDTH),
        ):
            add(f"h.{layer}.{name}.weight", width, out)
            add(f"h.{layer}.{name}.bias", out)
    add("ln_f.weight", WIDTH, mean=1.0)
    add("ln_f.bias", WIDTH)
    header, offset = {}, 0
    for name, values in tensors.items():
        end = offset + values.nbytes
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in tensors.values():
            file.write(values.tobytes())
    config = dict(model_type="gpt2", n_layer=LAYERS, n_head=12, n_embd=WIDTH, vocab_size=VOCABULARY, n_positions=64)
    (folder / "config.json").write_text(json.dumps(config))


def seconds(action):
    start = time.monotonic()
    action()
    return time.monotonic() - start


def measure(address, rounds):
    ids = np.random.default_rng(2).integers(0, VOCABULARY, (2, 48)).tolist()
    last = range(3 * LAYERS // 4, LAYERS)
    points = [f"blocks.{layer}.{name}" for name in ("hook_attn_out", "hook_mlp_out", "attn.hook_z") for layer in last]
    variants = {str(i): [hookline.Intervention.scale(points[i % len(points)], 0.5 + i / 100)] for i in range(VARIANTS)}
    with hookline.connect(address) as client:

        def together():
            client.score(ids, variants).wait()

        def apart():
            for _ in range(VARIANTS):
                client.score(ids).wait()

        together()
        ratios = []
        for _ in range(rounds):
            alone = seconds(apart)
            ratios.append(alone / seconds(together))
        print(f"{VARIANTS} forward passes by themselves / as variants of one request: {statistics.median(ratios):.2f}")


def main():
    program, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(pathlib.Path(folder))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        flags = ["--model", f"bench={folder}", "--listen", address, "--device", "cpu"]
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
