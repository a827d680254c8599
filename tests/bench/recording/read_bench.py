"""Compares the speed of ReadRecording with that of the live capture of the same rows from the same server.

    python3 tests/bench/recording/read_bench.py [ROUNDS]

Responses are counted and not parsed, so that the client costs little. Both alternate, and the figure is the median of
the ratios.
"""

import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "recording_service"))
import conftest  # noqa: E402


def rate(method, request):
    """Returns the MB/s of a streaming call."""
    begin, received = time.monotonic(), 0
    for message in method(request, timeout=300):
        received += len(message)
    return received / (time.monotonic() - begin) / 1e6


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        proto = next(conftest.compile_proto(directory))
        ids = np.random.default_rng(1).integers(32, 127, 600 * conftest.LENGTH).astype(np.uint16)
        np.save(directory / "text.npy", ids)
        server = conftest.Server(
            proto, directory, dataset=directory / "text.npy", flags=["--recordings-shard-bytes", "256MiB"]
        )
        try:
            raw = {"request_serializer": lambda m: m.SerializeToString()}
            live = server.channel.unary_stream("/hookline.v1.CaptureService/Capture", **raw)
            read = server.channel.unary_stream("/hookline.v1.RecordingService/ReadRecording", **raw)
            # With two hook points the live rate is that of the forward pass; with all of them it comes nearer to
            # the wire's.
            for name, hook_points, sequences in ("two", conftest.POINTS, 600), ("all", ["*"], 100):
                capture = conftest.dataset_request(proto, sequences=sequences)
                capture.hook_points[:] = hook_points
                list(server.persist(name, capture))
                again = proto.recording.ReadRecordingRequest(name=name)
                mixed = proto.recording.ReadRecordingRequest(name=name, shuffle_seed=1)
                ratios = []
                for _ in range(rounds):
                    rates = rate(live, capture), rate(read, again), rate(read, mixed)
                    ratios.append(rates[1] / rates[0])
                    print("{}: live {:.0f} MB/s, recording {:.0f} MB/s, shuffled {:.0f} MB/s".format(name, *rates))
                print(f"{name}: median ratio {statistics.median(ratios):.2f} (wanted: 0.9)")
        finally:
            server.kill()


if __name__ == "__main__":
    main()
