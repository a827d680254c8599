#!/usr/bin/env python3
"""Compares the remote collector's tokens per second with those of hooks on a PyTorch model in this process.

    tests/bench/python/bench_collectors.py build/release/bin/hookline-server

Both run the same random checkpoint (nanochat's first architecture, 12 layers, 768 wide) on the same CPU with the same
number of threads, one after the other in rounds; speeds are medians of the rounds, and so are the ratios, each of which
compares two runs of the same round. The local model computes all layers and the logits, as a model with hooks does; the
server ends at the deepest hook point. Their rows are compared as well. `--original` names a Python file with another
`ActivationCollector` to run on the local model in place of the hook of this file.
"""

import argparse
import importlib.util
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "client", "python"))

from local_model import Model  # noqa: E402

import hookline  # noqa: E402

VOCABULARY = 32768


def collect_locally(model, batches, layer):
    """Collects as a collector with hooks does: appends the rows of each batch to a list, and concatenates them
    at the end."""
    rows = []
    handle = model.transformer.h[layer].register_forward_hook(
        lambda module, inputs, output: rows.append(output.reshape(-1, output.shape[-1]).detach())
    )
    with torch.no_grad():
        for batch in batches:
            model(batch)
    handle.remove()
    return torch.cat(rows)


def local_collector(path):
    """Returns `collect_locally`, or the same with the ActivationCollector of a file."""
    if path is None:
        return collect_locally
    spec = importlib.util.spec_from_file_location("original_collector", path)
    original = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(original)

    def collect(model, batches, layer):
        name = f"blocks.{layer}.hook_resid_post"
        with original.ActivationCollector(model, [name]) as collector, torch.no_grad():
            for batch in batches:
                model(batch)
        return collector.get_activations()[name]

    return collect


def collect_remotely(model, batches, layer):
    name = f"blocks.{layer}.hook_resid_post"
    return hookline.collect_activations_from_dataloader(model, batches, [name], verbose=False)[name]


def write_checkpoint(model, folder, layers, width, heads, length):
    torch.save(model.state_dict(), os.path.join(folder, "model_000001.pt"))
    config = dict(
        sequence_len=length, vocab_size=VOCABULARY, n_layer=layers, n_head=heads, n_kv_head=heads, n_embd=width
    )
    with open(os.path.join(folder, "meta_000001.json"), "w") as file:
        json.dump({"step": 1, "model_config": config}, file)


def start_server(program, folder, port):
    process = subprocess.Popen(
        [program, "--model", folder, "--listen", f"127.0.0.1:{port}", "--device", "cpu", "--log-level", "warn"],
        stdout=subprocess.DEVNULL,
    )
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_reconnect_backoff_ms", 200)]) as channel:
        grpc.channel_ready_future(channel).result(timeout=120)
    return process


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("program", help="hookline-server")
    parser.add_argument("--layers", type=int, default=12, help="(default: %(default)s)")
    parser.add_argument("--width", type=int, default=768, help="(default: %(default)s)")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence (default: %(default)s)")
    parser.add_argument("--sequences", type=int, default=8, help="sequences of a batch (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--original", metavar="FILE", help="file of the collector to compare with")
    parser.add_argument("--layer", type=int, action="append", help="layer to collect (default: first, middle and last)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count())  # as the server does
    heads = max(1, arguments.width // 64)
    local = Model(arguments.layers, arguments.width, heads, VOCABULARY).eval()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(local, folder, arguments.layers, arguments.width, heads, arguments.length)
        server = start_server(arguments.program, folder, port)
        try:
            remote = hookline.connect(f"127.0.0.1:{port}").model()
            measure(arguments, local, remote)
        finally:
            server.terminate()
            server.wait()
    return 0


def measure(arguments, local, remote):
    batches = torch.randint(VOCABULARY, (arguments.batches, arguments.sequences, arguments.length))
    tokens = batches.numel()
    print(
        f"{platform.node()}, {os.cpu_count()} cores, torch {torch.__version__} here, "
        f"{torch.get_num_threads()} threads; "
        f"{arguments.layers} layers, width {arguments.width}, {tokens} tokens, medians of {arguments.rounds} "
        f"rounds; "
        f"{remote.client.receiver} receiver"
    )
    collect_here = local_collector(arguments.original)
    collect_here(local, batches[:1], 0)
    collect_remotely(remote, batches[:1], arguments.layers - 1)
    for layer in arguments.layer or (0, arguments.layers // 2, arguments.layers - 1):
        speeds, rows = {"local": [], "remote": []}, {}
        for _ in range(arguments.rounds):
            for name, collect, model in (("local", collect_here, local), ("remote", collect_remotely, remote)):
                start = time.perf_counter()
                rows[name] = collect(model, batches, layer)
                speeds[name].append(tokens / (time.perf_counter() - start))
        error = ((rows["remote"] - rows["local"]).norm() / rows["local"].norm()).item()
        ratios = [remote_speed / local_speed for local_speed, remote_speed in zip(speeds["local"], speeds["remote"])]
        wanted = 1.0 if layer == arguments.layers - 1 else 0.9 * arguments.layers / (layer + 1)
        print(
            f"layer {layer:2}: local {statistics.median(speeds['local']):8.0f} tokens/s, "
            f"remote {statistics.median(speeds['remote']):8.0f} tokens/s, ratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}; wanted {wanted:.2f}), rows differ by {error:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
