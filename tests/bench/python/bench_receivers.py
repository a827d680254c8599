#!/usr/bin/env python3
"""Measures the GB/s (10^9 bytes of values) of every receiver on the same stream, and the GB per second of CPU time.

    tests/bench/python/bench_receivers.py build/release/bin --library build/release/lib/libhookline_client.so

The server sends prepared rows of 768 floats in messages of about 1 MiB, so that nothing but the transport is measured:
through shared memory, which clients on the server's machine use, and over the wire. Each measurement is a process of
its own, which receives 4 GB first, so that all its memory is mapped. The subjects run one after the other in every
round. Figures are medians of the rounds, and so are the ratios, each of which compares two measurements of the same
round. Beside each subject stands the setting of its malloc: "kept" keeps freed memory mapped; "default" changes
nothing. Arrow Flight's server has the same setting as its client. Hookline's receivers, and "batches", end with rows in
batches of 4096 that own their memory; "view" looks at Arrow's memory. Arrow Flight is left out if pyarrow is not
installed.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time

WIDTH, ROWS_PER_MESSAGE, BATCH_ROWS = 768, 340, 4096
WARM_ROWS = 1_300_000
TRANSPORTS = ("shared memory", "wire")
FLIGHT = [f"Arrow Flight DoGet, {how} ({malloc})" for malloc in ("kept", "default") for how in ("view", "batches")]
HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGE = os.path.join(HERE, "..", "..", "..", "client", "python")


def measured(receive_rows, rows):
    """Returns GB/s and GB per CPU second of a function that receives this many rows and returns their number."""
    receive_rows(WARM_ROWS)
    start, cpu_start = time.perf_counter(), time.process_time()
    received = receive_rows(rows)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    assert received == rows, received
    gigabytes = rows * WIDTH * 4 / 1e9
    return f"{gigabytes / seconds} {gigabytes / cpu_seconds}"


def receive(receiver, transport, address, rows):
    import torch  # noqa: F401  its loading is not measured

    import hookline

    client = hookline.connect(address, receiver=receiver, shared_memory=transport != "wire")

    def receive_rows(count):
        capture = client.capture("a", hookline.Dataset("d"), max_activations=count)
        assert (capture.started.shared_memory_bytes == 0) == (transport == "wire")
        return sum(len(tensor) for batch in capture for tensor in batch.values())

    return measured(receive_rows, rows)


def receive_flight(how, address, rows):
    import pyarrow.flight
    import torch

    client = pyarrow.flight.connect(f"grpc://{address}")

    def views(count):
        for chunk in client.do_get(pyarrow.flight.Ticket(str(count).encode())):
            yield chunk.data.column(0).flatten().to_numpy(zero_copy_only=True).reshape(-1, WIDTH)

    def batches(count):
        batch, filled = torch.empty((BATCH_ROWS, WIDTH)), 0
        for view in views(count):
            done = 0
            while done < len(view):
                part = min(BATCH_ROWS - filled, len(view) - done)
                batch.numpy()[filled : filled + part] = view[done : done + part]
                done, filled = done + part, filled + part
                if filled == BATCH_ROWS:
                    yield batch
                    batch, filled = torch.empty((BATCH_ROWS, WIDTH)), 0
        yield batch[:filled]

    items = views if how == "view" else batches
    return measured(lambda count: sum(map(len, items(count))), rows)


def serve_flight():
    import numpy as np
    import pyarrow as pa
    import pyarrow.flight

    values = pa.array(np.arange(WIDTH * ROWS_PER_MESSAGE, dtype=np.float32) % 1000)
    batch = pa.record_batch([pa.FixedSizeListArray.from_arrays(values, WIDTH)], names=["rows"])

    class Server(pyarrow.flight.FlightServerBase):
        def do_get(self, context, ticket):
            whole, rest = divmod(int(ticket.ticket), ROWS_PER_MESSAGE)
            batches = [batch] * whole + ([batch.slice(0, rest)] if rest else [])
            return pyarrow.flight.RecordBatchStream(pa.Table.from_batches(batches))  # no Python between the batches

    server = Server("grpc://127.0.0.1:0")
    print(server.port, flush=True)
    sys.stdin.read()
    os._exit(0)


class Serving:
    """A server process, which prints its port and ends with its standard input."""

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
    parser.add_argument("--gigabytes", type=float, default=16.0, help="GB in each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    arguments = parser.parse_args()
    rows = int(arguments.gigabytes * 1e9 / WIDTH / 4)

    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([PACKAGE, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    environment.pop("HOOKLINE_MALLOC", None)
    if arguments.library:
        environment["HOOKLINE_CLIENT_LIBRARY"] = arguments.library
    # The hookline client makes these settings by mallopt; these are for the processes that do not contain it.
    kept = {**environment, "MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}

    server = Serving([os.path.join(arguments.programs, "stream_server")], environment)
    servers = [server]
    python = [sys.executable, os.path.abspath(__file__), "--receive"]
    subjects = {}
    for transport in TRANSPORTS:
        subjects[f"C++ client, {transport} (kept)"] = (
            [os.path.join(arguments.programs, "receive_rows"), server.address, str(rows), str(WARM_ROWS)]
            + (["wire"] if transport == "wire" else []),
            environment,
        )
        native = [*python, "native", transport, server.address, str(rows)]
        if arguments.library:
            subjects[f"Python, native, {transport} (kept)"] = (native, environment)
        grpcio = [*python, "grpc", transport, server.address, str(rows)]
        subjects[f"Python, grpcio, {transport} (kept)"] = (grpcio, environment)
        subjects[f"Python, grpcio, {transport} (default)"] = (grpcio, {**environment, "HOOKLINE_MALLOC": "default"})
    try:
        import pyarrow.flight  # noqa: F401

        for malloc, surroundings in (("kept", kept), ("default", environment)):
            flight = Serving([sys.executable, os.path.abspath(__file__), "--serve-flight"], surroundings)
            servers.append(flight)
            for how in ("view", "batches"):
                command = [*python, "flight", how, flight.address, str(rows)]
                subjects[f"Arrow Flight DoGet, {how} ({malloc})"] = (command, surroundings)
    except ImportError:
        print("pyarrow is not installed: Arrow Flight is left out")

    print(
        f"{platform.node()}, {os.cpu_count()} cores, {versions()}; {arguments.gigabytes} GB each, medians of "
        f"{arguments.rounds} rounds"
    )
    figures = {name: [] for name in subjects}
    for _ in range(arguments.rounds):
        for name, (command, surroundings) in subjects.items():
            said = subprocess.check_output(command, env=surroundings, text=True).split()
            figures[name].append(tuple(map(float, said)))
    for stopping in servers:
        stopping.stop()
    for name, pairs in figures.items():
        speed, work = (statistics.median(column) for column in zip(*pairs))
        print(f"{name:40} {speed:5.2f} GB/s, {work:5.2f} GB for each CPU second")
    for above in figures:
        if above.startswith("Arrow"):
            continue
        transport = TRANSPORTS[1] if "wire" in above else TRANSPORTS[0]
        for below in (f"C++ client, {transport} (kept)", *FLIGHT):
            if below in figures and below != above:
                ratios = [a[0] / b[0] for a, b in zip(figures[above], figures[below])]
                print(f"{above} / {below}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return 0


def versions():
    import grpc
    import numpy
    import torch

    modules = ", ".join(f"{module.__name__} {module.__version__}" for module in (numpy, torch))
    return f"Python {platform.python_version()}, grpcio {grpc.__version__}, {modules}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--receive"]:
        receiver, how, where, count = sys.argv[2:6]
        print(
            receive_flight(how, where, int(count))
            if receiver == "flight"
            else receive(receiver, how, where, int(count))
        )
    elif sys.argv[1:2] == ["--serve-flight"]:
        serve_flight()
    else:
        sys.exit(main())
