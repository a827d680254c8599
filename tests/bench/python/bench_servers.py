"""Compares the tokens per second of one capture over 1, 2 and 4 one-thread servers with those of an ordinary client.

The ordinary client captures from one server. All take turns within a round, so that a busy machine slows all alike;
ratios are of the same round, and their median is printed. Needs an idle core for each server and one for the client: on
fewer cores, more servers only share what there is. With a larger model (`--model`) the client's share becomes smaller.

    python3 bench_servers.py --program build/release/bin/hookline-server --servers 1 2 4
"""

import argparse
import os
import statistics
import sys
import time

from server_processes import DEMO, ROOT, ServerProcess

sys.path.insert(0, os.path.join(ROOT, "client", "python"))

import hookline  # noqa: E402

HOOK_POINT = "blocks.3.hook_resid_post"


def tokens_per_second(client, sequences, length):
    source = hookline.Dataset("text", length, sequence_count=sequences)
    begun = time.monotonic()
    rows = sum(batch.rows for batch in client.capture(HOOK_POINT, source, output="numpy"))
    assert rows == sequences * length, rows
    return rows / (time.monotonic() - begun)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--model", default=DEMO, help="a checkpoint of at least four blocks (default: the demo's)")
    parser.add_argument("--servers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--sequences", type=int, default=700)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    servers = [ServerProcess(arguments.program, model=arguments.model) for _ in range(max(arguments.servers))]
    try:
        for server in servers:
            server.wait()
        addresses = [server.address for server in servers]
        clients = {"one, ordinary client": hookline.connect(addresses[0])}
        clients.update({f"{count}, shared": hookline.connect(addresses[:count]) for count in arguments.servers})
        found = {name: [] for name in clients}
        for _ in range(arguments.rounds):
            for name, client in clients.items():
                found[name].append(tokens_per_second(client, arguments.sequences, arguments.length))
        first = found["one, ordinary client"]
        for name, speeds in found.items():
            ratio = statistics.median(speed / other for speed, other in zip(speeds, first))
            print(f"{name}: {statistics.median(speeds):.0f} tokens/s, {ratio:.2f} of one server")
        for client in clients.values():
            client.close()
    finally:
        for server in servers:
            server.end()


if __name__ == "__main__":
    main()
