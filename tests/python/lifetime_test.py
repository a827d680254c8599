"""Tests the life around captures: closed clients, the end of the program, forks, pickles and Ctrl-C."""

import os
import pickle
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from fake_server import expected

import hookline

pytestmark = pytest.mark.usefixtures("receiver")

RESID = "blocks.0.hook_resid_post"
POST = "blocks.1.mlp.hook_post"
SEQUENCES = [list(range(i, i + 10)) for i in range(20)]
# Programs end within seconds, but later on a machine with other work.
PATIENCE = 300


def run(program, *, expect=0):
    """Runs a program, which must end with the status `expect`. Returns what it prints."""
    package = os.path.dirname(os.path.dirname(hookline.__file__))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == expect, done.stderr
    return done.stdout


# ---- Closed clients.


def test_after_close_every_call_says_that_the_client_is_closed(fake):
    with hookline.connect(fake().address) as client:
        model = client.model()
    client.close()
    for call in (
        client.model,
        client.models,
        client.datasets,
        lambda: client.recording("r"),
        lambda: client.estimate(RESID, [1]),
        lambda: client.capture(RESID, SEQUENCES),
        lambda: client.persist("r", RESID, SEQUENCES),
        lambda: model.capture(RESID, [[1]]),
        lambda: hookline.ActivationCollector(model, [RESID]).__enter__(),
    ):
        with pytest.raises(hookline.FailedPreconditionError, match="the client is closed"):
            call()


@pytest.mark.parametrize("streamed", [False, True])
def test_close_ends_running_captures_with_an_error(fake, streamed):
    server = fake(datasets={"d": SEQUENCES * 1000}, chunk_rows=64)
    client = hookline.connect(server.address)
    source = iter(SEQUENCES * 1000) if streamed else hookline.Dataset("d")
    capture = client.capture(POST, source, batch_rows=64)
    next(capture)
    client.close()
    with pytest.raises(hookline.CancelledError):
        list(capture)
    assert server.cancelled.wait(PATIENCE)


def test_close_wakes_whoever_waits_for_rows(fake):
    server = fake()
    server.release.clear()
    client = hookline.connect(server.address)
    capture = client.capture(RESID, SEQUENCES)
    capture.started
    closer = threading.Thread(target=client.close)
    with pytest.raises(hookline.CancelledError):
        closer.start()
        list(capture)
    closer.join()


# ---- The end of the program.

OPEN = """
import hookline, itertools, threading
client = hookline.connect({address!r})
capture = client.capture({post!r}, hookline.Dataset("d"), batch_rows=64, output="numpy")
endless = client.capture({post!r}, ([[1, 2, 3]] for _ in iter(int, 1)), batch_rows=64, output="numpy")
def blocking():
    yield [[1, 2, 3]] * 100
    threading.Event().wait()
blocked = client.capture({post!r}, blocking(), batch_rows=64, output="numpy")
watched = client.capture({post!r}, hookline.Dataset("d"), batch_rows=64, output="numpy")
threading.Thread(target=lambda: list(watched), daemon=True).start()
next(capture), next(endless), next(blocked)
{end}
"""


@pytest.mark.parametrize("end", ["", "raise SystemExit(0)", "del capture, endless, blocked", "client.close()"])
def test_a_program_may_end_with_everything_open(fake, end):
    server = fake(datasets={"d": [list(range(64))] * 50_000})
    run(OPEN.format(address=server.address, post=POST, end=end))
    assert server.cancelled.wait(PATIENCE)


def test_a_program_may_end_inside_an_asyncio_capture_whose_source_blocks(fake):
    server = fake()
    run(
        f"""
import asyncio, hookline, threading
def blocking():
    yield [[1, 2, 3]] * 100
    threading.Event().wait()
async def main():
    capture = hookline.aio.connect({server.address!r}).capture({POST!r}, blocking(), batch_rows=64, output="numpy")
    await capture.__anext__()
asyncio.run(main())
"""
    )


# ---- Forks.

FORK = """
import os, sys, hookline
client = hookline.connect({address!r})
{before}
child = os.fork()
if child == 0:
    code = 1
    try:
        rows = sum(b.rows for b in {inside}.capture({resid!r}, [[1, 2, 3]] * 5, output="numpy"))
        code = 0 if rows == 15 else 1
    except hookline.FailedPreconditionError as error:
        code = 2 if "fork" in str(error) else 1
    sys.exit(code)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(sum(b.rows for b in client.capture({resid!r}, [[1, 2, 3]] * 5, output="numpy")))
{after}
"""


@pytest.mark.parametrize("inside", ["client", "hookline.connect(client.address)"], ids=["inherited", "own"])
@pytest.mark.parametrize(
    "before",
    [
        "",
        "client.model()",
        "list(client.capture({resid!r}, [[1, 2, 3]], output='numpy'))",
        "hookline.connect({address!r}).models(); "
        "done = client.capture({resid!r}, [[1, 2, 3]], output='numpy'); list(done)",
        "left = client.capture({resid!r}, [[1, 2, 3]] * 50, batch_rows=1, output='numpy'); next(left); left.close()",
        "other = hookline.connect({address!r}); other.model(); other.close()",
    ],
    ids=["nothing", "model", "capture", "kept", "left", "closed"],
)
def test_a_forked_child_opens_connections_of_its_own(fake, before, inside):
    address = fake().address
    program = FORK.format(
        address=address, resid=RESID, inside=inside, after="", before=before.format(address=address, resid=RESID)
    )
    assert run(program).split() == ["0", "15"]


@pytest.mark.parametrize("before", ["client.model()", "client.capture(resid, [[1]], output='numpy').close()"])
def test_a_forked_child_shares_no_poller_with_its_parent(fake, before):
    program = f"""
import os, sys, hookline
def polled():
    sockets = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            if "eventpoll" in os.readlink("/proc/self/fd/" + descriptor):
                sockets += [line for line in open("/proc/self/fdinfo/" + descriptor) if line.startswith("tfd:")]
        except OSError:
            pass
    return sockets
resid = {RESID!r}
client = hookline.connect({fake().address!r})
{before}
connected, tell_connected = os.pipe()
seen, tell_seen = os.pipe()
child = os.fork()
if child == 0:
    client.model()
    rows = sum(batch.rows for batch in client.capture(resid, [[1, 2, 3]], output="numpy"))
    os.write(tell_connected, b"1")
    os.read(seen, 1)
    sys.exit(0 if rows == 3 else 1)
before = polled()
os.read(connected, 1)
print(polled() == before)
os.write(tell_seen, b"1")
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), client.model().name)
"""
    assert run(program).split() == ["True", "0", "fake"]


@pytest.mark.parametrize("inside", ["client", "hookline.connect(client.address)"], ids=["inherited", "own"])
def test_beside_an_open_capture_a_forked_child_is_told_and_the_parent_goes_on(fake, inside):
    server = fake(datasets={"d": SEQUENCES})
    program = FORK.format(
        address=server.address,
        resid=RESID,
        inside=inside,
        before=f"running = client.capture({RESID!r}, hookline.Dataset('d'), batch_rows=10, output='numpy');"
        " next(running)",
        after="print(sum(b.rows for b in running))",
    )
    assert run(program).split() == ["2", "15", "190"]


def test_a_capture_of_the_parent_says_so_in_a_forked_child(fake):
    server = fake(datasets={"d": SEQUENCES})
    program = f"""
import os, sys, hookline
capture = hookline.connect({server.address!r}).capture({RESID!r}, hookline.Dataset("d"), batch_rows=10, output="numpy")
next(capture)
child = os.fork()
if child == 0:
    try:
        next(capture)
    except hookline.FailedPreconditionError as error:
        capture.close()
        del capture
        sys.exit(5 if "forked" in str(error) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), sum(b.rows for b in capture))
"""
    assert run(program).split() == ["5", "190"]


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.parametrize("before", ["", "hookline.connect(address).model()"], ids=["nothing", "model"])
def test_loaders_with_workers_bring_every_row(fake, context, before):
    program = f"""
import hookline, hookline.torch, torch
if __name__ == "__main__":
    address = {fake().address!r}
    {before or "pass"}
    dataset = hookline.torch.ActivationDataset(address, {RESID!r}, torch.arange(200).reshape(20, 10), batch_rows=16)
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context={context!r})
    for _ in range(2):
        print(sum(len(batch[{RESID!r}]) for batch in loader))
"""
    assert run(program).split() == ["200", "200"]


def test_a_loader_with_forked_workers_beside_an_open_capture_fails_at_once(fake):
    server = fake(datasets={"d": SEQUENCES})
    program = f"""
import hookline, hookline.torch, torch
running = hookline.connect({server.address!r}).capture({RESID!r}, hookline.Dataset("d"), batch_rows=10, output="numpy")
next(running)
dataset = hookline.torch.ActivationDataset({server.address!r}, {RESID!r}, torch.arange(200).reshape(20, 10))
try:
    list(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork"))
except hookline.FailedPreconditionError as error:
    print("spawn" in str(error), sum(batch.rows for batch in running))
"""
    assert run(program).split() == ["True", "190"]


# ---- Pickles.


def test_a_pickled_client_or_model_reaches_the_same_server(fake):
    client = hookline.connect(fake().address)
    again = pickle.loads(pickle.dumps(client))
    assert (again.address, again.receiver) == (client.address, client.receiver)
    model = pickle.loads(pickle.dumps(client.model()))
    rows = torch.cat([batch[RESID] for batch in model.capture(RESID, SEQUENCES)])
    np.testing.assert_array_equal(rows.numpy(), expected(RESID, SEQUENCES))


def test_what_cannot_be_pickled_says_why(fake):
    import grpc

    address = fake().address
    client = hookline.connect(address)
    secured = hookline.connect(address, credentials=grpc.ssl_channel_credentials())
    capture = client.capture(RESID, SEQUENCES)
    collector = hookline.ActivationCollector(client.model(), [RESID])
    watch = client.persist("r", RESID, SEQUENCES)
    for thing, why in (
        (secured, "credentials"),
        (capture, "running Capture"),
        (watch, "running PersistRun"),
        (collector, "collector"),
    ):
        with pytest.raises(TypeError, match=why):
            pickle.dumps(thing)


# ---- Ctrl-C.


def interrupt():
    """Sends a Ctrl-C to this program's main thread soon, while it waits. It is a signal of the system, because
    `_thread.interrupt_main` does not wake a thread that already waits for a lock."""
    main = threading.main_thread().ident
    threading.Thread(target=lambda: signal.pthread_kill(main, signal.SIGINT), daemon=True).start()


def test_a_capture_goes_on_after_ctrl_c(fake):
    server = fake(datasets={"d": SEQUENCES})
    server.release.clear()
    capture = hookline.connect(server.address).capture(RESID, hookline.Dataset("d"), batch_rows=7)
    capture.started
    with pytest.raises(KeyboardInterrupt):
        interrupt()
        next(capture)
        threading.Event().wait(PATIENCE)
    server.release.set()
    rows = torch.cat([batch[RESID] for batch in capture]).numpy()
    np.testing.assert_array_equal(rows, expected(RESID, SEQUENCES))


def test_ctrl_c_between_a_batch_and_its_return_loses_no_row(fake, monkeypatch):
    """The signal's handler runs when the library's wait has returned, before Python has seen its result."""
    client = hookline.connect(fake().address)
    capture = client.capture(RESID, SEQUENCES, batch_rows=7)
    receiver = capture._receiver
    if client.receiver == "grpc":  # waits in Python, where Ctrl-C interrupts the wait itself
        assert sum(batch.rows for batch in capture) == 200
        return
    library, calls = receiver._library, []

    class Interrupted:
        def __getattr__(self, name):
            return getattr(library, name)

        def _call(self, name, *arguments):
            result = getattr(library, name)(*arguments)
            calls.append(name)
            if len(calls) % 3 == 1:
                raise KeyboardInterrupt
            return result

        def capture_wait(self, *arguments):
            return self._call("capture_wait", *arguments)

        def capture_submit(self, *arguments):
            return self._call("capture_submit", *arguments)

    receiver._library = Interrupted()
    batches = []
    while True:
        try:
            batches.append(next(capture))
        except KeyboardInterrupt:
            continue
        except StopIteration:
            break
    assert [batch.rows for batch in batches] == [7] * 28 + [4]
    rows = torch.cat([batch[RESID] for batch in batches]).numpy()
    np.testing.assert_array_equal(rows, expected(RESID, SEQUENCES))


def test_ctrl_c_before_the_server_has_answered_leaves_the_capture_usable(fake):
    server = fake()
    server.release.clear()
    hold = threading.Event()
    server.alter = lambda response: (hold.wait(), response)[1]
    capture = hookline.connect(server.address).capture(RESID, SEQUENCES)
    with pytest.raises(KeyboardInterrupt):
        interrupt()
        capture.started
        threading.Event().wait(PATIENCE)
    hold.set()
    server.release.set()
    assert capture.started.hook_points[0].width == 8
    assert sum(batch.rows for batch in capture) == 200


# ---- Batches that came before an error.


def test_rows_before_an_error_come_before_it(fake):
    server = fake(chunk_rows=4)

    def alter(response):
        if (
            response.WhichOneof("kind") == "chunk"
            and response.chunk.first_row == 50
            and response.chunk.hook_point == POST
        ):
            response.chunk.first_row += 1
        return response

    server.alter = alter
    capture = hookline.connect(server.address).capture([RESID, POST], SEQUENCES, batch_rows=16)
    batches = []
    with pytest.raises(hookline.InternalError):
        for batch in capture:
            batches.append(batch)
    assert [batch.rows for batch in batches] == [16, 16, 16, 2]
    for name in (RESID, POST):
        rows = torch.cat([batch[name] for batch in batches]).numpy()
        np.testing.assert_array_equal(rows, expected(name, SEQUENCES)[:50])
    with pytest.raises(hookline.InternalError):
        next(capture)
