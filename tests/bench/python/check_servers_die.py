"""Captures over several servers while they are killed, stopped, drained and restarted at random moments, in rounds.

The rows of every round must be those of one undisturbed server: provenance, order and counts exactly, values within
rounding (batches differ). Prints a line for each round and a summary; exits with 1 at the first difference.

    python3 check_servers_die.py --program build/release/bin/hookline-server --servers 3 --rounds 100 --seed 1

With `--cli build/release/bin/hookline` the captures are those of the command line, whose files are read.
"""

import argparse
import collections
import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
from server_processes import DEMO, ROOT, ServerProcess

sys.path.insert(0, os.path.join(ROOT, "client", "python"))

import hookline  # noqa: E402
from hookline.many import Sharing  # noqa: E402

HOOK_POINTS = ["blocks.0.mlp.hook_post", "blocks.3.hook_resid_post"]
EVENTS = ("kill", "stop", "drain")


def disturb(server, event, longest_stop, log):
    """Makes one event happen. Afterwards the server runs again."""
    log[event] += 1
    if event == "stop":
        server.send(signal.SIGSTOP)
        time.sleep(random.uniform(0.2, longest_stop))
        server.send(signal.SIGCONT)
        return
    server.end(signal.SIGKILL if event == "kill" else signal.SIGTERM)
    time.sleep(random.uniform(0, 1))
    server.start()


def sources(tokens):
    """Yields a round's sources: the client's own tokens, or a dataset in some of the ways in which it can be read."""
    table = tokens[: 160 * 48].reshape(160, 48)
    yield "tokens", table, {}
    yield "budgets", table, dict(max_activations=5000, max_activations_by_hook_point={HOOK_POINTS[0]: 1717})
    yield "sampled", table, dict(selection=hookline.Selection(skip_first=1, sample_rows=20, seed=3))
    yield "dataset", hookline.Dataset("text", 48, sequence_count=160), {}
    yield "shuffled", hookline.Dataset("text", 48, sequence_count=80, shuffle_seed=4, epochs=2), {}


def columns_of(read):
    return [read(column) for column in ("sequence", "position", "token_id")]


class PythonClient:
    """Captures by the Python client. A capture gives the rows by hook point, the provenance columns, the numbers of
    rows in the summary by hook point, and the number of blocks that ran again."""

    longest_stop = 6.0  # seconds; the client gives up a server in some stops, but not in most

    def __init__(self, addresses):
        sharing = Sharing(block_tokens=384, silence_seconds=1, answer_seconds=1.5)
        self._client = hookline.connect(addresses, sharing=sharing) if addresses[1:] else hookline.connect(addresses[0])

    def kinds(self, tokens):
        return [(kind, (source, options)) for kind, source, options in sources(tokens)]

    def captured(self, kind):
        source, options = kind
        with self._client.capture(
            HOOK_POINTS,
            source,
            provenance=True,
            output="numpy",
            batch_rows=500,
            retry=hookline.Retry(attempts=600, max_seconds=1),  # a busy machine may need minutes to start a server
            **options,
        ) as running:
            batches = list(running)
        rows = {name: np.concatenate([batch[name] for batch in batches if name in batch]) for name in HOOK_POINTS}
        columns = columns_of(lambda column: np.concatenate([getattr(batch, column) for batch in batches]))
        told = {name: running.summary.hook_points[name].rows for name in HOOK_POINTS}
        return rows, columns, told, running.summary.reconnects


class CommandLine:
    """Captures by `hookline capture`, which waits longer for a server that hangs, and has larger blocks."""

    longest_stop = 20.0

    def __init__(self, program, folder, addresses):
        self._program = program
        self._folder = folder
        self._servers = ",".join(addresses)

    def kinds(self, tokens):
        path = os.path.join(self._folder, "ids.npy")
        np.save(path, tokens[: 1000 * 48].reshape(1000, 48).astype(np.int32))
        dataset = ["--dataset", "text", "--sequence-length", "48"]
        return [
            ("tokens", ["--tokens", path]),
            (
                "budgets",
                ["--tokens", path, "--max-activations", "40000", f"--max-activations-for={HOOK_POINTS[0]}=1717"],
            ),
            ("excluded", ["--tokens", path, "--exclude-token", "32", "--skip-first", "1"]),
            ("dataset", [*dataset, "--sequence-count", "900"]),
            ("shuffled", [*dataset, "--sequence-count", "400", "--shuffle-seed", "4", "--epochs", "2"]),
            ("sampled", [*dataset, "--sequence-count", "900", "--sample-rows", "20"]),
        ]

    def captured(self, arguments):
        with tempfile.TemporaryDirectory(dir=self._folder) as out:
            command = [self._program, "capture", "--server", self._servers, "--hook-points", ",".join(HOOK_POINTS)]
            command += ["--provenance", "--json", "-q", "--out", out, *arguments]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            summary = json.loads(done.stdout)
            files = {name: load_file(os.path.join(out, name + ".safetensors")) for name in HOOK_POINTS}
        rows = {name: tensors[name] for name, tensors in files.items()}
        most = max(files.values(), key=lambda tensors: len(tensors["provenance/sequence"]))
        columns = columns_of(lambda column: most["provenance/" + column])
        told = {point["hook_point"]: point["rows"] for point in summary["hook_points"]}
        return rows, columns, told, summary["reconnects"]


def load_file(path):
    """Returns the tensors of a safetensors file."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        values = file.read()
    types = {"F32": "<f4", "I64": "<i8", "I32": "<i4", "U32": "<u4"}
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            tensors[name] = np.frombuffer(values[begin:end], types[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def check(found, reference):
    for name in HOOK_POINTS:
        assert found[0][name].shape == reference[0][name].shape, (name, found[0][name].shape, reference[0][name].shape)
        np.testing.assert_allclose(found[0][name], reference[0][name], rtol=1e-3, atol=1e-4)
        assert found[2][name] == len(found[0][name])
    for mine, theirs in zip(found[1], reference[1]):
        np.testing.assert_array_equal(mine, theirs)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cli", help="capture with this command-line client")
    arguments = parser.parse_args()
    scratch = tempfile.TemporaryDirectory()
    make_client = functools.partial(CommandLine, arguments.cli, scratch.name) if arguments.cli else PythonClient
    random.seed(arguments.seed)
    tokens = np.load(os.path.join(DEMO, "tokens.npy")).astype(np.int64)
    servers = [ServerProcess(arguments.program) for _ in range(arguments.servers)]
    log, reruns, began = collections.Counter(), 0, time.monotonic()
    try:
        for server in servers:
            server.wait()
        one = make_client([servers[0].address])
        kinds = one.kinds(tokens)
        begun = time.monotonic()
        references = {name: one.captured(kind) for name, kind in kinds}
        round_seconds = (time.monotonic() - begun) / len(kinds)
        client = make_client([server.address for server in servers])
        for number in range(arguments.rounds):
            for server in servers:
                server.wait()
            name, kind = random.choice(kinds)
            victims = [random.choice(servers) for _ in range(random.choice((1, 1, 2, 3)))]
            plan = {server: random.choice(EVENTS) for server in victims}
            threads = [
                threading.Timer(random.uniform(0, round_seconds), disturb, (server, event, client.longest_stop, log))
                for server, event in plan.items()
            ]
            for thread in threads:
                thread.start()
            begun = time.monotonic()
            try:
                found = client.captured(kind)
            except Exception:
                print(f"round {number}: {name}, {', '.join(sorted(plan.values()))}: failed", flush=True)
                raise
            seconds = time.monotonic() - begun
            for thread in threads:
                thread.join()
            check(found, references[name])
            reruns += found[3]
            print(
                f"round {number}: {name}, {len(found[1][0])} rows, {', '.join(sorted(plan.values()))}, "
                f"{found[3]} blocks run again, {seconds:.1f} s",
                flush=True,
            )
    finally:
        for server in servers:
            server.send(signal.SIGCONT)
            server.end()
    events = ", ".join(f"{log[event]} x {event}" for event in EVENTS)
    print(
        f"{arguments.rounds} rounds over {arguments.servers} servers: all rows those of one server; {events}; "
        f"{reruns} blocks run again; {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
