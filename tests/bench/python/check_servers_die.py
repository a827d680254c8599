"""Rounds of one capture over several servers, any of which is killed, stopped, drained and restarted at random moments.

Rows of every round must be those of one undisturbed server: provenance, order and counts exactly, values up to floating
point (batches differ). Prints a line for each round and a summary; exits with 1 at the first difference.

    python3 check_servers_die.py --program build/release/bin/hookline-server --servers 3 --rounds 100 --seed 1
"""

import argparse
import collections
import os
import random
import signal
import sys
import threading
import time

import numpy as np
from server_processes import DEMO, ROOT, ServerProcess

sys.path.insert(0, os.path.join(ROOT, "client", "python"))

import hookline  # noqa: E402
from hookline.many import Sharing  # noqa: E402

HOOK_POINTS = ["blocks.0.mlp.hook_post", "blocks.3.hook_resid_post"]
EVENTS = ("kill", "stop", "drain")


def disturb(server, event, log):
    """One event; afterwards the server runs again."""
    log[event] += 1
    if event == "stop":
        server.send(signal.SIGSTOP)
        time.sleep(random.uniform(0.2, 6))
        server.send(signal.SIGCONT)
        return
    server.end(signal.SIGKILL if event == "kill" else signal.SIGTERM)
    time.sleep(random.uniform(0, 1))
    server.start()


def sources(tokens):
    """The source of a round: the client's own tokens, or a dataset, in some of the ways in which it can be read."""
    table = tokens[: 160 * 48].reshape(160, 48)
    yield "tokens", table, {}
    yield "budgets", table, dict(max_activations=5000, max_activations_by_hook_point={HOOK_POINTS[0]: 1717})
    yield "sampled", table, dict(selection=hookline.Selection(skip_first=1, sample_rows=20, seed=3))
    yield "dataset", hookline.Dataset("text", 48, sequence_count=160), {}
    yield "shuffled", hookline.Dataset("text", 48, sequence_count=80, shuffle_seed=4, epochs=2), {}


def captured(client, source, options):
    with client.capture(
        HOOK_POINTS,
        source,
        provenance=True,
        output="numpy",
        batch_rows=500,
        retry=hookline.Retry(attempts=600, max_seconds=1),  # a busy machine starts a server in minutes
        **options,
    ) as running:
        batches = list(running)
    rows = {name: np.concatenate([batch[name] for batch in batches if name in batch]) for name in HOOK_POINTS}
    columns = [
        np.concatenate([getattr(batch, column) for batch in batches]) for column in ("sequence", "position", "token_id")
    ]
    return rows, columns, running.summary


def check(found, reference):
    for name in HOOK_POINTS:
        assert found[0][name].shape == reference[0][name].shape, (name, found[0][name].shape, reference[0][name].shape)
        np.testing.assert_allclose(found[0][name], reference[0][name], rtol=1e-3, atol=1e-4)
        assert found[2].hook_points[name].rows == len(found[0][name])
    for mine, theirs in zip(found[1], reference[1]):
        np.testing.assert_array_equal(mine, theirs)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    tokens = np.load(os.path.join(DEMO, "tokens.npy")).astype(np.int64)
    servers = [ServerProcess(arguments.program) for _ in range(arguments.servers)]
    log, reruns, began = collections.Counter(), 0, time.monotonic()
    try:
        for server in servers:
            server.wait()
        kinds = list(sources(tokens))
        with hookline.connect(servers[0].address) as one:
            begun = time.monotonic()
            references = {kind: captured(one, source, options) for kind, source, options in kinds}
            round_seconds = (time.monotonic() - begun) / len(kinds)
        sharing = Sharing(block_tokens=384, silence_seconds=1, answer_seconds=1.5)
        with hookline.connect([server.address for server in servers], sharing=sharing) as client:
            for number in range(arguments.rounds):
                for server in servers:
                    server.wait()
                kind, source, options = random.choice(kinds)
                victims = [random.choice(servers) for _ in range(random.choice((1, 1, 2, 3)))]
                plan = {server: random.choice(EVENTS) for server in victims}
                threads = [
                    threading.Timer(random.uniform(0, round_seconds), disturb, (server, event, log))
                    for server, event in plan.items()
                ]
                for thread in threads:
                    thread.start()
                begun = time.monotonic()
                try:
                    found = captured(client, source, options)
                except Exception:
                    print(f"round {number}: {kind}, {', '.join(sorted(plan.values()))}: failed", flush=True)
                    raise
                seconds = time.monotonic() - begun
                for thread in threads:
                    thread.join()
                check(found, references[kind])
                reruns += found[2].reconnects
                print(
                    f"round {number}: {kind}, {len(found[1][0])} rows, {', '.join(sorted(plan.values()))}, "
                    f"{found[2].reconnects} blocks run again, {seconds:.1f} s",
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
