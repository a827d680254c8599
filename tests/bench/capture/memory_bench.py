"""Measures whether the server's memory grows: its resident size during minutes of mixed load, with clients that vanish.

    python3 tests/bench/capture/memory_bench.py [--minutes 10] [--clients 6] \
        [--program build/release/bin/hookline-server]

Each client is a process that makes one random capture after another (token lists, streams, the dataset, feeds; random
hook points, selections, budgets and types; some read slowly, some leave in the middle). Every second or so one of them
is killed with SIGKILL and replaced. There are few slabs, so that growth elsewhere would show. The server keeps what it
once needed, so the first clients begin with the largest requests, all at once, and read nothing for a while: growth
after that is a leak.
"""

import argparse
import os
import pathlib
import platform
import random
import re
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[3]
DEMO = ROOT / "tests/fixtures/nanochat/demo"
HOOK_POINTS = ["blocks.*.hook_resid_post", "blocks.0.hook_mlp_out", "blocks.1.hook_attn_out", "blocks.*"]
VOCABULARY = 256


def captures(address, seed, first):
    """Makes random captures until this process is killed. `first`: makes the largest one first."""
    sys.path.insert(0, str(ROOT / "client/python"))
    import hookline

    rng = random.Random(seed)

    def sequences():
        return [[rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 128))] for _ in range(rng.randint(1, 64))]

    def source():
        dataset = hookline.Dataset(
            "text", sequence_length=rng.choice([16, 64, 128]), sequence_count=rng.randint(1, 200)
        )
        kind = rng.randrange(4)
        if kind == 0:
            return sequences()
        if kind == 1:
            return (sequences() for _ in range(rng.randint(1, 5)))
        if kind == 2:
            return dataset
        dataset = hookline.Dataset("text", sequence_length=64, sequence_count=100)
        return hookline.Feed(f"feed-{rng.randrange(3)}", dataset, on_lag=rng.choice(["detach", "wait"]))

    with hookline.connect(address, receiver="grpc") as client:
        if first:
            with client.capture(
                "blocks.*", [[1] * 128] * 64, output="numpy", batch_rows=64, provenance=True
            ) as capture:
                capture.started
                time.sleep(15)
                for _ in capture:
                    pass
        while True:
            capture = client.capture(
                rng.choice(HOOK_POINTS),
                source(),
                dtype=rng.choice(["float32", "float16"]),
                output="numpy",
                max_activations=rng.choice([None, 1, 1000, 20000]),
                provenance=rng.random() < 0.3,
                retry=None,
                batch_rows=rng.choice([64, 4096]),
                selection=hookline.Selection(skip_first=rng.randrange(3), sample_rows=rng.choice([0, 5])),
            )
            leave_after = rng.choice([None, 1, 5])
            slow = rng.random() < 0.1
            try:
                for number, _ in enumerate(capture, 1):
                    if slow:
                        time.sleep(0.2)
                    if number == leave_after:
                        break
            except hookline.HooklineError as error:
                # Feeds detach laggards, and a full server refuses captures: both are part of the load.
                if not isinstance(
                    error,
                    (hookline.UnavailableError, hookline.ResourceExhaustedError, hookline.FailedPreconditionError),
                ):
                    raise
            finally:
                capture.close()


def resident_bytes(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1))


def start_server(program, directory):
    np.save(directory / "text.npy", np.random.default_rng(1).integers(0, VOCABULARY, 200_000).astype(np.uint16))
    server = subprocess.Popen(
        [
            program,
            "--model",
            str(DEMO),
            "--device",
            "cpu",
            "--dataset",
            f"text={directory / 'text.npy'}",
            "--listen",
            "127.0.0.1:0",
            "--port-file",
            str(directory / "port"),
            "--slab-bytes",
            "262144",
            "--slab-count",
            "256",
            "--feed-stall-timeout",
            "2s",
            "--log-level",
            "error",
        ],
        stderr=subprocess.PIPE,
    )
    while not (directory / "port").exists():
        if server.poll() is not None:
            sys.exit(f"the server ended at its start:\n{server.stderr.read().decode()}")
        time.sleep(0.05)
    return server, f"127.0.0.1:{(directory / 'port').read_text().strip()}"


def measure(arguments, directory):
    server, address = start_server(arguments.program, directory)
    rng = random.Random(7)
    clients, killed = [], 0

    def start_client(kind="later"):
        command = [sys.executable, __file__, "--client", address, str(rng.randrange(1 << 30)), kind]
        return subprocess.Popen(command, env=dict(os.environ, OMP_NUM_THREADS="1"))

    samples = {}  # by minute: the mean of its last ten seconds
    try:
        begin = time.monotonic()
        clients = [start_client("first") for _ in range(arguments.clients)]
        time.sleep(25)
        for minute in range(1, arguments.minutes + 1):
            late = []
            while (now := time.monotonic()) < begin + 60 * minute:
                if now > begin + 60 * minute - 10:
                    late.append(resident_bytes(server.pid))
                time.sleep(rng.uniform(0.5, 1.5))
                for client in clients:
                    if client.poll() is not None:
                        sys.exit(f"a client ended by itself with {client.returncode}; its output is above")
                victim = rng.randrange(len(clients))
                clients[victim].kill()
                clients[victim].wait()
                killed += 1
                clients[victim] = start_client()
            samples[minute] = sum(late) / len(late)
            print(
                f"minute {minute}: {samples[minute] / 2**20:.1f} MiB resident, {killed} clients killed so far",
                flush=True,
            )
        if server.poll() is not None:
            sys.exit(f"the server ended with {server.returncode}")
    finally:
        for process in [*clients, server]:
            process.kill()
            process.wait()
    print(
        f"{platform.node()}: resident after {arguments.minutes} minutes / after 1: "
        f"{samples[arguments.minutes] / samples[1]:.3f} (wanted: at most 1.02)"
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--program", default=str(ROOT / "build/release/bin/hookline-server"))
    parser.add_argument("--client", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        captures(arguments.client[0], int(arguments.client[1]), first=arguments.client[2] == "first")
    with tempfile.TemporaryDirectory() as directory:
        measure(arguments, pathlib.Path(directory))


if __name__ == "__main__":
    main()
