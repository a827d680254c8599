#!/usr/bin/env python3
"""GB/s (10^9 bytes of values) of every receiver on the same stream, and GB for each second of its CPU time.

Best of several rounds; on a machine with other work the second number says more.

    tests/bench/python/bench_receivers.py build/release/bin

The server sends prepared rows of 768 floats in messages of about 1 MiB, so that nothing but the transport is measured.
Each measurement is a process of its own. Beside each stands what its malloc was told: "kept" keeps freed memory mapped.
Arrow Flight's DoGet, which sends record batches of the same size, is measured where pyarrow is installed.
"""

import argparse
import os
import platform
import subprocess
import sys
import time

WIDTH, ROWS_PER_MESSAGE = 768, 340
HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGE = os.path.join(HERE, "..", "..", "..", "client", "python")


def receive(receiver, address, rows):
    import torch  # noqa: F401  loading it is not what is measured

    import hookline

    client = hookline.connect(address, receiver=receiver)
    start, cpu_start = time.perf_counter(), time.process_time()
    received = 0
    for batch in client.capture("blocks.0.hook_resid_post", hookline.Dataset("d"), max_activations=rows):
        for tensor in batch.values():
            received += len(tensor)
    gigabytes = rows * WIDTH * 4 / 1e9
    speed = gigabytes / (time.perf_counter() - start)
    assert received == rows, received
    return f"{speed} {gigabytes / (time.process_time() - cpu_start)}"


def receive_flight(address, rows):
    import pyarrow.flight

    client = pyarrow.flight.connect(f"grpc://{address}")
    start, cpu_start = time.perf_counter(), time.process_time()
    reader = client.do_get(pyarrow.flight.Ticket(str(rows).encode()))
    received = 0
    for chunk in reader:
        view = chunk.data.column(0).flatten().to_numpy(zero_copy_only=True).reshape(-1, WIDTH)
        received += len(view)
    gigabytes = rows * WIDTH * 4 / 1e9
    speed = gigabytes / (time.perf_counter() - start)
    assert received == rows, received
    return f"{speed} {gigabytes / (time.process_time() - cpu_start)}"


def serve_flight():
    import numpy as np
    import pyarrow as pa
    import pyarrow.flight

    values = pa.array(np.arange(WIDTH * ROWS_PER_MESSAGE, dtype=np.float32) % 1000)
    batch = pa.record_batch([pa.FixedSizeListArray.from_arrays(values, WIDTH)], names=["rows"])

    class Server(pyarrow.flight.FlightServerBase):
        def do_get(self, context, ticket):
            rows = int(ticket.ticket)
            batches = (batch.slice(0, min(ROWS_PER_MESSAGE, rows - i)) for i in range(0, rows, ROWS_PER_MESSAGE))
            return pyarrow.flight.GeneratorStream(batch.schema, batches)

    server = Server("grpc://127.0.0.1:0")
    print(server.port, flush=True)
    sys.stdin.read()
    os._exit(0)


class Serving:
    """A server process that prints its port and ends with its standard input."""

    def __init__(self, command, environment):
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.address = f"127.0.0.1:{int(self._process.stdout.readline())}"

    def stop(self):
        self._process.stdin.close()
        self._process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("programs", help="folder with stream_server and receive_rows")
    parser.add_argument("--library", default=os.environ.get("HOOKLINE_CLIENT_LIBRARY"), help="libhookline_client.so")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="in each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    arguments = parser.parse_args()
    rows = int(arguments.gigabytes * 1e9 / WIDTH / 4)

    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([PACKAGE, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    environment.pop("HOOKLINE_MALLOC", None)
    if arguments.library:
        environment["HOOKLINE_CLIENT_LIBRARY"] = arguments.library
    # What the hookline client sets by mallopt, for the processes that do not contain it.
    kept = {**environment, "MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}

    server = Serving(
        [os.path.join(arguments.programs, "stream_server"), str(WIDTH), str(ROWS_PER_MESSAGE)], environment
    )
    servers = [server]
    python = [sys.executable, os.path.abspath(__file__), "--receive"]
    subjects = {
        "C++ client (kept)": (
            [os.path.join(arguments.programs, "receive_rows"), server.address, str(rows)],
            environment,
        ),
        "Python, grpcio (kept)": ([*python, "grpc", server.address, str(rows)], environment),
        "Python, grpcio (default)": (
            [*python, "grpc", server.address, str(rows)],
            {**environment, "HOOKLINE_MALLOC": "default"},
        ),
    }
    if arguments.library:
        subjects["Python, native (kept)"] = ([*python, "native", server.address, str(rows)], environment)
    try:
        import pyarrow.flight  # noqa: F401

        flight = Serving([sys.executable, os.path.abspath(__file__), "--serve-flight"], kept)
        servers.append(flight)
        subjects["Arrow Flight DoGet, view (kept)"] = ([*python, "flight", flight.address, str(rows)], kept)
        subjects["Arrow Flight DoGet, view (default)"] = ([*python, "flight", flight.address, str(rows)], environment)
    except ImportError:
        print("pyarrow is not installed: Arrow Flight is left out")

    print(f"{platform.node()}, {os.cpu_count()} cores, {arguments.gigabytes} GB each, best of {arguments.rounds}")
    best = dict.fromkeys(subjects, (0.0, 0.0))
    for _ in range(arguments.rounds):
        for name, (command, surroundings) in subjects.items():
            said = subprocess.check_output(command, env=surroundings, text=True).split()
            best[name] = tuple(max(pair) for pair in zip(best[name], map(float, said)))
    for stopping in servers:
        stopping.stop()
    speed_of_cpp, work_of_cpp = best["C++ client (kept)"]
    for name, (speed, work) in best.items():
        print(
            f"{name:35} {speed:5.2f} GB/s, {speed / speed_of_cpp:4.2f} of the C++ client; "
            f"{work:5.2f} GB for each CPU second, {work / work_of_cpp:4.2f}"
        )
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--receive"]:
        how, where, count = sys.argv[2:5]
        print(receive_flight(where, int(count)) if how == "flight" else receive(how, where, int(count)))
    elif sys.argv[1:2] == ["--serve-flight"]:
        serve_flight()
    else:
        sys.exit(main())
