"""The clients of soak.py. Each is a process that does one kind of thing until it is killed or told to leave."""

from __future__ import annotations

import mmap
import os
import pathlib
import random
import select
import socket
import ssl
import sys
import threading
import traceback
from dataclasses import dataclass

import grpc
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "client/python"))
os.environ.setdefault("HOOKLINE_CLIENT_LIBRARY", str(ROOT / "build/release/lib/libhookline_client.so"))

import hookline  # noqa: E402
from hookline import _protocol  # noqa: E402

# All tokens come from this pool of sequences, so that every row has a reference: a prefix of a sequence has its rows.
POOL, LENGTH, VOCABULARY = 512, 64, 256
POINTS = ("blocks.0.hook_resid_post", "blocks.1.hook_mlp_out", "blocks.3.hook_resid_post")
CLIENTS = ("alice", "bob", "carol", "limited")
# Shares of the largest value of the row: rows in other batches may differ in the last bits.
TOLERANCE = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 2e-2}
LOSS_TOLERANCE = 1e-3
# The server may end calls with these when others want what the client holds: quotas, laggards of feeds, silent clients.
EXPECTED = (hookline.ResourceExhaustedError, hookline.UnavailableError, hookline.FailedPreconditionError)
ABLATION = {"ablated": [hookline.Intervention.zero("blocks.1.hook_mlp_out")]}
# A client pauses between two actions: the soak must last, and does not measure speed.
PAUSE_SECONDS = 0.1
SLOW_SECONDS = 0.5
STALL_SECONDS = 8.0  # longer than the server's --stall-timeout

COUNTED = ("captures", "rows", "feeds", "recordings", "scores", "refusals", "stalls", "misdeeds")


def token_of(client):
    return f"token-of-{client}"


def make_pool():
    return np.random.default_rng(1).integers(0, VOCABULARY, (POOL, LENGTH)).astype(np.uint16)


class Leave:
    """Tells client processes to leave by closing a pipe, so that a process which is killed cannot block
    those that wait."""

    def __init__(self):
        self._reader, self._writer = os.pipe()

    def tell(self):
        """Tells all clients, from the process that forked them."""
        os.close(self._writer)

    def listen(self):
        """Makes this object the one of a client process. Called once after the fork."""
        os.close(self._writer)

    def wait(self, seconds):
        """Waits at most `seconds` until all are told to leave. Returns whether they are."""
        return bool(select.select([self._reader], [], [], seconds)[0])

    def close(self):
        os.close(self._reader)


class Counts:
    """Counts to which client processes add. Each role has a row in shared memory."""

    def __init__(self):
        self._memory = mmap.mmap(-1, 8 * len(ROLES) * len(COUNTED))
        self._by_role = np.frombuffer(self._memory, dtype=np.int64).reshape(len(ROLES), len(COUNTED))
        self._role = 0

    def use(self, role):
        self._role = ROLES.index(role)

    def add(self, name, count=1):
        # Each role has only one process at a time, so no other process writes here.
        self._by_role[self._role, COUNTED.index(name)] += count

    def text(self):
        return ", ".join(f"{count:,} {name}" for name, count in zip(COUNTED, self._by_role.sum(axis=0)))


@dataclass
class Place:
    """How clients reach the server."""

    address: str
    ca: str
    metrics: str
    folder: str

    def client(self, name, receiver="grpc"):
        return hookline.connect(self.address, tls=self.ca, token=token_of(name), receiver=receiver)

    def channel(self):
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.secure_channel(self.address, hookline.Tls(self.ca).credentials(), options)


def in_child(function, *arguments):
    """Runs `function` in a child process, because a process that has opened a connection of gRPC must not fork."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function(*arguments)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    if os.waitpid(pid, 0)[1] != 0:
        sys.exit(f"{function.__name__} failed")


def take_references(address, ca, folder):
    """Saves rows of every hook point and losses of every sequence of the pool, for References."""
    with Place(address, ca, "", folder).client("alice") as client:
        rows = {point: [] for point in POINTS}
        for batch in client.capture(list(POINTS), hookline.Dataset("pool"), output="numpy"):
            for point in POINTS:
                rows[point].append(batch[point].copy())
        for point in POINTS:
            np.save(pathlib.Path(folder) / f"{point}.npy", np.concatenate(rows[point]).reshape(POOL, LENGTH, -1))
        losses = np.full((POOL, 2), np.nan)
        for score in client.score(hookline.Dataset("pool"), ABLATION):
            losses[score.sequence, 0 if score.variant == "" else 1] = score.mean_loss
        assert not np.isnan(losses).any()
        np.save(pathlib.Path(folder) / "losses.npy", losses)


class References:
    """Compares rows and losses with those that were taken at the start."""

    def __init__(self, folder):
        folder = pathlib.Path(folder)
        self._rows = {point: np.load(folder / f"{point}.npy", mmap_mode="r") for point in POINTS}
        self.losses = np.load(folder / "losses.npy")

    def check(self, batch, points, dtype, sequences):
        """Checks that each row is that of its token. `sequences`: pool index of each sequence of the source;
        None: the same."""
        index = batch.sequence if sequences is None else np.asarray(sequences)[batch.sequence]
        for point in points:
            rows = np.asarray(batch[point], dtype=np.float32)
            wanted = self._rows[point][index[: len(rows)], batch.position[: len(rows)]]
            error = np.abs(rows - wanted).max(axis=1) / np.abs(wanted).max(axis=1)
            if not (error <= TOLERANCE[dtype]).all():
                worst = int(np.argmax(np.where(np.isnan(error), np.inf, error)))
                raise AssertionError(
                    f"WRONG ROW: {point}, {dtype}, sequence {index[worst]}, position {batch.position[worst]}: off by "
                    f"{error[worst]} of its largest value"
                )


class Worker:
    """Holds what all kinds of clients share."""

    def __init__(self, place, counts, leave, seed):
        self.place, self.counts, self.leave = place, counts, leave
        self.random = random.Random(seed)
        self.references = References(place.folder)

    def prefixes(self):
        """Returns sequences of random lengths, and their pool indexes."""
        pool = make_pool()
        chosen = [self.random.randrange(POOL) for _ in range(self.random.randint(1, 48))]
        return [pool[i, : self.random.randint(1, LENGTH)].tolist() for i in chosen], chosen

    def capture(self, client, source, sequences=None, wanted=None, **options):
        """Runs a capture and checks it. `wanted`: (sequence, position) of every row, if the order is promised."""
        points = self.random.sample(POINTS, self.random.randint(1, len(POINTS)))
        dtype = options.pop("dtype", None) or self.random.choice(list(TOLERANCE)[:2])
        capture = client.capture(
            points, source, dtype=dtype, output="numpy", provenance=True, batch_rows=1024, **options
        )
        places, leave = [], self.random.random() < 0.1
        try:
            for batch in capture:
                self.references.check(batch, points, dtype, sequences)
                self.counts.add("rows", len(batch.sequence) * len(points))
                places.append(np.stack([batch.sequence, batch.position], axis=1))
                if self.random.random() < 0.02:
                    self.leave.wait(SLOW_SECONDS)  # a slow reader
                if leave:
                    return
        finally:
            capture.close()
        if wanted is not None:
            assert np.array_equal(np.concatenate(places), wanted), "WRONG ORDER, or rows are missing"

    def run_captures(self, client):
        budget = self.random.choice([None, None, 1, 100, 5000])
        if self.random.random() < 0.4:
            first = self.random.randrange(POOL - 200)
            count = self.random.randint(1, 200)
            source, sequences = hookline.Dataset("pool", first_sequence=first, sequence_count=count), None
            wanted = [(s, p) for s in range(first, first + count) for p in range(LENGTH)]
        else:
            lists, sequences = self.prefixes()
            streams = self.random.random() < 0.5
            source = ([one] for one in lists) if streams else lists
            wanted = [(s, p) for s, ids in enumerate(lists) for p in range(len(ids))]
        self.capture(client, source, sequences, np.array(wanted[:budget]), max_activations=budget)
        self.counts.add("captures")

    def persist(self, client):
        name = f"soak-{os.getpid()}-{self.random.randrange(1 << 30)}"
        first, count = self.random.randrange(POOL - 50), self.random.randint(1, 50)
        source = hookline.Dataset("pool", first_sequence=first, sequence_count=count)
        if self.random.random() < 0.5:
            assert client.persist(name, list(POINTS), source).wait().rows == count * LENGTH
        else:
            for _ in client.capture(list(POINTS), source, output="numpy", record_as=name):
                pass
        wanted = np.array([(s, p) for s in range(first, first + count) for p in range(LENGTH)])
        places = []
        for batch in client.capture(list(POINTS), hookline.Recording(name), output="numpy", provenance=True):
            self.references.check(batch, POINTS, "float32", None)
            places.append(np.stack([batch.sequence, batch.position], axis=1))
        assert np.array_equal(np.concatenate(places), wanted), "WRONG ORDER of a recording"
        client.delete_recording(name)
        self.counts.add("recordings")

    def score(self, client):
        first, count = self.random.randrange(POOL - 20), self.random.randint(1, 20)
        source = hookline.Dataset("pool", first_sequence=first, sequence_count=count)
        seen = 0
        for score in client.score(source, ABLATION, kl=True, top_logits=3):
            wanted = self.references.losses[score.sequence, 0 if score.variant == "" else 1]
            assert abs(score.mean_loss - wanted) <= LOSS_TOLERANCE * wanted, (
                f"WRONG LOSS: {score.mean_loss}, not {wanted}"
            )
            seen += 1
        assert seen == 2 * count
        self.counts.add("scores", seen)


def repeat(worker, name, action, receiver="grpc"):
    """Repeats the action on one connection for some time, and then on another one."""
    while not worker.leave.wait(0):
        with worker.place.client(name, receiver) as client:
            for _ in range(worker.random.randint(1, 20)):
                try:
                    action(client)
                except EXPECTED:
                    worker.counts.add("refusals")
                if worker.leave.wait(PAUSE_SECONDS):
                    return


def captures_of_alice(worker):
    repeat(worker, "alice", worker.run_captures)


def captures_of_bob(worker):
    repeat(worker, "bob", worker.run_captures)


def captures_by_the_library(worker):
    repeat(worker, "carol", worker.run_captures, receiver="native")


def captures_over_quota(worker):
    def act(client):
        lists, sequences = worker.prefixes()
        worker.capture(client, lists, sequences, retry=None)

    repeat(worker, "limited", act)


def _feeds(worker, name):
    def act(client):
        feed = hookline.Feed(
            f"feed-{worker.random.randrange(2)}", hookline.Dataset("pool", sequence_count=200), on_lag="detach"
        )
        worker.capture(client, feed, retry=None)
        worker.counts.add("feeds")

    repeat(worker, name, act)


def feeds_of_alice(worker):
    _feeds(worker, "alice")


def feeds_of_bob(worker):
    _feeds(worker, "bob")


def recordings(worker):
    with worker.place.client("bob") as client:
        for left in client.recordings():  # by the process before, which was killed
            if left.state == "running":
                client.stop_recording(left.name)
            client.delete_recording(left.name)
    repeat(worker, "bob", worker.persist)


def scores(worker):
    repeat(worker, "carol", worker.score)


def stalls(worker):
    """Opens captures and never reads them: some have a window full of rows, others get no token."""
    metadata = [("authorization", f"Bearer {token_of('carol')}")]
    while not worker.leave.wait(0):
        with worker.place.channel() as channel:
            request = _protocol.CaptureRequest(hook_points=["blocks.*"])
            request.dataset.name = "pool"
            first = _protocol.CaptureStreamRequest()
            first.request.hook_points.append(POINTS[0])
            # The number is always the same; otherwise the largest use of memory might come late by chance.
            full = channel.unary_stream(_protocol.CAPTURE)
            idle = channel.stream_stream(_protocol.CAPTURE_STREAM)
            calls = [full(request.SerializeToString(), metadata=metadata) for _ in range(6)]
            cancelled = threading.Event()
            calls += [idle(_silent(first, cancelled), metadata=metadata) for _ in range(4)]
            worker.leave.wait(STALL_SECONDS)
            worker.counts.add("stalls", len(calls))
            for call in calls:
                call.cancel()
            cancelled.set()


def _silent(first, cancelled):
    """Makes a stream of requests that says nothing after its first one."""
    yield first.SerializeToString()
    cancelled.wait()


def _call_wrongly(worker, channel):
    methods = [name for name in vars(_protocol).values() if isinstance(name, str) and name.startswith("/hookline")]
    token = worker.random.choice(["wrong", "spare-0", token_of("alice"), "x" * 2000])
    message = worker.random.randbytes(worker.random.choice([0, 3, 1000, 100_000]))
    call = channel.unary_stream(worker.random.choice([*methods, "/no.such.Service/Method"]))
    try:
        for _ in call(message, metadata=[("authorization", f"Bearer {token}")], timeout=10):
            break
    except grpc.RpcError as error:
        assert error.code() not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN), error


def _send_garbage(worker, address, kept):
    host, port = address.rsplit(":", 1)
    connection = socket.create_connection((host, int(port)), timeout=10)
    kind = worker.random.randrange(4)
    try:
        if kind == 0:
            connection.sendall(worker.random.randbytes(2000))
        elif kind == 1:
            connection.sendall(b"GET /metrics HTTP/1.1\r\n" + b"A" * worker.random.randrange(20_000))
        elif kind == 2:
            context = ssl.create_default_context(cafile=worker.place.ca)
            context.set_alpn_protocols(["h2"])
            connection = context.wrap_socket(connection, server_hostname="localhost")
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + worker.random.randbytes(500))
    except OSError:
        pass  # the server has closed the connection
    kept.append(connection)  # some stay open and silent for a while
    while len(kept) > 20:
        kept.pop(0).close()


def misdeeds(worker):
    kept = []
    while not worker.leave.wait(0):
        with worker.place.channel() as channel:
            for _ in range(20):
                _call_wrongly(worker, channel)
                _send_garbage(worker, worker.random.choice([worker.place.address, worker.place.metrics]), kept)
                worker.counts.add("misdeeds", 2)
                if worker.leave.wait(PAUSE_SECONDS):
                    break


GOOD = (
    captures_of_alice,
    captures_of_bob,
    captures_by_the_library,
    feeds_of_alice,
    feeds_of_bob,
    recordings,
    scores,
)
ROLES = (*GOOD, captures_over_quota, stalls, misdeeds)


def run(role, place, counts, leave, seed):
    """Acts as the role says until it is told to leave. Prints and raises what goes wrong."""
    counts.use(role)
    try:
        role(Worker(place, counts, leave, seed))
    except BaseException:
        traceback.print_exc()
        raise
