"""Tests the promises of the RecordingService on a real server with a real model."""

import subprocess
import sys
import time

import grpc
import numpy as np
import pytest
from conftest import DEMO, LENGTH, POINTS, PROGRAM, collect, dataset_request, rows_on_disk, shards


def tokens_request(proto, sequences=40, **fields):
    request = proto.capture.CaptureRequest(hook_points=POINTS, **fields)
    ids = np.random.default_rng(2).integers(32, 127, (sequences, LENGTH))
    for sequence in ids:
        request.tokens.sequences.add(ids=sequence.tolist())
    return request


def code(call):
    """Returns the code of the status that a call ends with."""
    with pytest.raises(grpc.RpcError) as error:
        list(call) if hasattr(call, "__iter__") else call.result()
    return error.value.code()


class unary:
    """Makes a unary call that `code` can run."""

    def __init__(self, method, name):
        self.result = lambda: method(name)


def state(server, name):
    return server.proto.recording.RecordingState.Name(server.get(name).state).removeprefix("RECORDING_STATE_")


def disposition(message, server):
    return server.proto.recording.PersistDisposition.Name(message.disposition).removeprefix("PERSIST_DISPOSITION_")


def test_persist_writes_what_a_capture_streams(serve, proto):
    server = serve()
    request = tokens_request(proto, deterministic=True)
    messages = list(server.persist("a", request))
    assert disposition(messages[0], server) == "STARTED"
    last = messages[-1]
    assert last.recording.state == proto.recording.RECORDING_STATE_COMPLETE
    assert last.rows == last.max_rows == last.new_rows == last.recording.rows == 40 * LENGTH
    assert last.summary.stop_reason == proto.capture.STOP_REASON_SOURCE_ENDED
    assert last.recording.token_sequences == 40
    assert [p.hook_point for p in last.recording.hook_points] == POINTS
    live, provenance, _ = collect(
        server.capture(tokens_request(proto, deterministic=True, provenance=True)), columns=True
    )
    disk = rows_on_disk(server.recordings / "a")
    assert {name: disk[name] for name in POINTS} == live
    columns = [
        np.frombuffer(disk[f"provenance/{name}"], dtype).tolist()
        for name, dtype in [("sequence", "<i8"), ("position", "<i4"), ("token_id", "<i8")]
    ]
    assert list(zip(*columns)) == provenance
    assert last.recording.shard_count > 2
    verified = server.verify("a")
    assert verified.done and not verified.damaged and verified.bytes == last.recording.bytes


def test_the_same_request_joins_continues_or_is_answered_at_once(serve, proto, text):
    server = serve(dataset=text)
    request = dataset_request(proto)
    first = server.persist("a", request)
    assert disposition(next(first), server) == "STARTED"
    second = server.persist("a", request)
    assert disposition(next(second), server) == "JOINED"
    other = dataset_request(proto, sequences=3)
    assert code(server.persist("a", other)) == grpc.StatusCode.ALREADY_EXISTS
    assert code(unary(server.delete, "a")) == grpc.StatusCode.FAILED_PRECONDITION
    # The clients leave; the recording goes on until it is stopped.
    first.cancel()
    second.cancel()
    assert state(server, "a") == "RUNNING"
    stopped = server.stop("a")
    assert stopped.state == proto.recording.RECORDING_STATE_STOPPED
    assert server.stop("a").rows == stopped.rows
    messages = list(server.persist("a", request))
    assert disposition(messages[0], server) == "CONTINUED"
    assert messages[-1].new_rows == 600 * LENGTH - stopped.rows
    assert state(server, "a") == "COMPLETE"
    again = list(server.persist("a", request))
    assert len(again) == 1 and disposition(again[0], server) == "ALREADY_COMPLETE"
    assert again[0].recording.rows == 600 * LENGTH
    assert code(server.persist("a", other)) == grpc.StatusCode.ALREADY_EXISTS
    list(server.persist("b", request))
    assert shards(server.recordings / "a") == shards(server.recordings / "b")
    assert [r.name for r in server.list(page_size=1).recordings] == ["a"]
    assert server.list(page_size=1).next_page_token == "a"
    assert [r.name for r in server.list(page_token="a").recordings] == ["b"]
    assert server.delete("a").bytes == again[0].recording.bytes
    assert not (server.recordings / "a").exists()


def test_names_and_requests_that_cannot_be_recorded_are_refused(serve, proto, text):
    server = serve(dataset=text)
    for name in ["", ".", "..", "../x", "a/b", "/etc/x", "-a", "a b", "x" * 129]:
        assert code(server.persist(name, dataset_request(proto))) == grpc.StatusCode.INVALID_ARGUMENT, name
        assert code(unary(server.get, name)) == grpc.StatusCode.INVALID_ARGUMENT, name
        assert code(unary(server.delete, name)) == grpc.StatusCode.INVALID_ARGUMENT, name
        assert code(server.read(name)) == grpc.StatusCode.INVALID_ARGUMENT, name
        if name:
            request = dataset_request(proto, record_as=name)
            assert code(server.capture(request)) == grpc.StatusCode.INVALID_ARGUMENT, name
    assert list(server.recordings.iterdir()) == []
    feed = proto.capture.CaptureRequest(hook_points=POINTS)
    feed.feed.name = "f"
    feed.feed.dataset.CopyFrom(dataset_request(proto).dataset)
    assert code(server.persist("a", feed)) == grpc.StatusCode.INVALID_ARGUMENT
    feed.record_as = "a"
    assert code(server.capture(feed)) == grpc.StatusCode.INVALID_ARGUMENT
    assert code(server.persist("a", dataset_request(proto, record_as="a"))) == grpc.StatusCode.INVALID_ARGUMENT
    assert code(server.persist("a", dataset_request(proto, resume_token=b"x"))) == grpc.StatusCode.INVALID_ARGUMENT
    assert code(unary(server.get, "a")) == grpc.StatusCode.NOT_FOUND
    assert code(server.read("a")) == grpc.StatusCode.NOT_FOUND


def test_no_link_is_followed(serve, proto, tmp_path):
    server = serve()
    (tmp_path / "elsewhere").mkdir()
    (server.recordings / "a").symlink_to(tmp_path / "elsewhere")
    assert code(server.persist("a", tokens_request(proto))) in (
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
    )
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_server_that_ends_interrupts_and_the_next_one_continues(serve, proto, text):
    server = serve(dataset=text)
    request = dataset_request(proto)
    call = server.persist("a", request)
    next(call)
    server.terminate()
    server = serve(dataset=text)
    interrupted = server.get("a")
    assert interrupted.state == proto.recording.RECORDING_STATE_INTERRUPTED
    assert not server.verify("a").damaged
    messages = list(server.persist("a", request))
    assert disposition(messages[0], server) == "CONTINUED"
    list(server.persist("b", request))
    assert shards(server.recordings / "a") == shards(server.recordings / "b")


def test_tokens_that_were_interrupted_continue_to_the_same_bytes(serve, proto):
    server = serve()
    request = tokens_request(proto, sequences=600, deterministic=True)
    call = server.persist("a", request)
    next(call)
    server.stop("a")
    assert state(server, "a") == "STOPPED"
    list(server.persist("a", request))
    list(server.persist("b", request))
    assert shards(server.recordings / "a") == shards(server.recordings / "b")


def test_a_recording_that_waits_to_be_admitted_is_there_and_can_be_stopped(serve, proto, text):
    server = serve(dataset=text, flags=["--slab-count", "32", "--client-slabs", "32", "--window-slabs", "8"])
    request = dataset_request(proto)
    # Four windows take all slabs, and a client that does not read keeps its window.
    readers = [server.capture(dataset_request(proto)) for _ in range(4)]
    for reader in readers:
        assert next(reader).HasField("started")
    persist = server.persist("a", request)
    assert disposition(next(persist), server) == "STARTED"
    assert state(server, "a") == "RUNNING"
    assert [r.name for r in server.list().recordings] == ["a"]
    stopped = server.stop("a")
    assert stopped.state == proto.recording.RECORDING_STATE_STOPPED and stopped.rows == 0
    assert code(persist) == grpc.StatusCode.CANCELLED
    recorded = server.capture(dataset_request(proto, record_as="b"))
    # A call says nothing before it is admitted, so that only the list shows when it has arrived.
    deadline = time.monotonic() + 60
    while "b" not in [r.name for r in server.list().recordings]:
        assert time.monotonic() < deadline
    assert disposition(next(server.persist("b", request)), server) == "JOINED"
    server.stop("b")
    assert state(server, "b") == "STOPPED"
    assert code(recorded) == grpc.StatusCode.CANCELLED
    for reader in readers:
        reader.cancel()
    for name in ("a", "b"):
        messages = list(server.persist(name, request))
        assert disposition(messages[0], server) == "CONTINUED"
        assert messages[-1].recording.state == proto.recording.RECORDING_STATE_COMPLETE
    assert shards(server.recordings / "a") == shards(server.recordings / "b")


def test_record_as_streams_and_writes_in_one_pass(serve, proto):
    server = serve()
    rows, summary = collect(server.capture(tokens_request(proto, record_as="a")))
    disk = rows_on_disk(server.recordings / "a")
    assert {name: disk[name] for name in POINTS} == rows
    assert summary.stop_reason == proto.capture.STOP_REASON_SOURCE_ENDED
    assert state(server, "a") == "COMPLETE"
    assert code(server.capture(tokens_request(proto, record_as="a"))) == grpc.StatusCode.ALREADY_EXISTS
    # Persist recognises it for the same request.
    assert disposition(list(server.persist("a", tokens_request(proto)))[0], server) == "ALREADY_COMPLETE"


@pytest.mark.parametrize("after", [1, 2, 3, 8, 21])
def test_a_client_that_leaves_stops_the_recording_and_its_token_continues_both(serve, proto, text, after):
    server = serve(dataset=text)
    request = dataset_request(proto, record_as="a")
    call = server.capture(request)
    rows = {name: b"" for name in POINTS}
    token = b""
    for count, response in enumerate(call):
        if response.HasField("started"):
            token = response.started.resume_token
        else:
            rows[response.chunk.hook_point] += response.chunk.data
            token = response.chunk.resume_token
        if count == after:
            break
    call.cancel()
    server.stop("a")  # answers when the recording is closed
    stopped = server.get("a")
    assert stopped.state == proto.recording.RECORDING_STATE_STOPPED
    request.resume_token = token
    for name, values in collect(server.capture(request))[0].items():
        rows[name] += values
    assert state(server, "a") == "COMPLETE"
    request.ClearField("resume_token")
    request.record_as = "b"
    whole, _ = collect(server.capture(request))
    assert rows == whole
    assert shards(server.recordings / "a") == shards(server.recordings / "b")
    server.delete("a")
    request.record_as = "a"
    request.resume_token = token
    assert code(server.capture(request)) == grpc.StatusCode.NOT_FOUND


# Sends the messages in the files that its arguments name, and prints the answers in hexadecimal until it is killed.
STREAMING_CLIENT = """
import sys, grpc
def messages():
    for path in sys.argv[2:]:
        yield open(path, "rb").read()
    sys.stdin.read()
channel = grpc.insecure_channel(sys.argv[1])
for response in channel.stream_stream("/hookline.v1.CaptureService/CaptureStream")(messages()):
    print(response.hex(), flush=True)
"""


def test_a_stream_whose_client_is_killed_makes_no_complete_recording(serve, proto, tmp_path):
    server = serve()
    for i in range(10):
        request = tokens_request(proto, record_as=f"a{i}")
        wanted = LENGTH * len(request.tokens.sequences) * len(POINTS)
        (tmp_path / "tokens").write_bytes(proto.capture.CaptureStreamRequest(tokens=request.tokens).SerializeToString())
        request.ClearField("tokens")
        (tmp_path / "request").write_bytes(proto.capture.CaptureStreamRequest(request=request).SerializeToString())
        client = subprocess.Popen(
            [sys.executable, "-c", STREAMING_CLIENT, server.address, tmp_path / "request", tmp_path / "tokens"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        rows = 0
        while rows < wanted:
            rows += proto.capture.CaptureResponse.FromString(bytes.fromhex(client.stdout.readline())).chunk.rows
        client.kill()
        client.wait()
        server.stop(request.record_as)  # answers when the recording is closed
        assert state(server, request.record_as) == "STOPPED"


def test_a_recording_shorter_than_the_token_is_failed_precondition(serve, proto, text):
    server = serve(dataset=text)
    request = dataset_request(proto, sequences=200, record_as="a")
    tokens = [getattr(r, r.WhichOneof("kind")).resume_token for r in server.capture(request)]
    request.resume_token = tokens[3]
    call = server.capture(request)
    next(call)
    call.cancel()
    server.stop("a")
    assert server.get("a").rows < 200 * LENGTH
    request.resume_token = tokens[-1]
    assert code(server.capture(request)) == grpc.StatusCode.FAILED_PRECONDITION


def test_reading_back_needs_no_model_and_brings_the_recorded_rows(serve, proto, text):
    server = serve(dataset=text)
    request = dataset_request(proto, sequences=50, provenance=True)
    list(server.persist("a", request))
    live, provenance, _ = collect(server.capture(request), columns=True)
    server.terminate()
    server = serve(models=False)
    rows, columns, summary = collect(server.read("a", provenance=True, max_message_bytes=20000), columns=True)
    assert rows == live and columns == provenance
    assert [h.rows for h in summary.hook_points] == [50 * LENGTH] * 2
    width = [p.width for p in server.get("a").hook_points]
    part, columns, summary = collect(
        server.read("a", hook_points=["blocks.0.*"], first_row=777, row_count=1234, provenance=True), columns=True
    )
    assert part == {POINTS[0]: live[POINTS[0]][777 * 4 * width[0] : (777 + 1234) * 4 * width[0]]}
    assert columns == provenance[777 : 777 + 1234]
    budget, summary = collect(server.read("a", max_activations=100, max_activations_by_hook_point={POINTS[1]: 7}))
    assert budget == {POINTS[0]: live[POINTS[0]][: 400 * width[0]], POINTS[1]: live[POINTS[1]][: 28 * width[1]]}
    assert summary.stop_reason == proto.capture.STOP_REASON_BUDGET
    values = [v for r in server.read("a", encoding=2, row_count=3, hook_points=[POINTS[0]]) for v in r.chunk.values]
    assert np.array_equal(np.array(values, "<f4"), np.frombuffer(live[POINTS[0]][: 12 * width[0]], "<f4"))
    # A shuffled read gives each row once, in an order that depends only on the seed, with the hook points aligned.
    shuffled, columns, _ = collect(server.read("a", shuffle_seed=7, provenance=True), columns=True)
    assert sorted(columns) == sorted(provenance) and columns != provenance
    place = {key[:2]: row for row, key in enumerate(provenance)}
    order = [place[key[:2]] for key in columns]
    for name, w in zip(POINTS, width):
        table = np.frombuffer(live[name], "<f4").reshape(-1, w)
        assert np.array_equal(np.frombuffer(shuffled[name], "<f4").reshape(-1, w), table[order])
    assert collect(server.read("a", shuffle_seed=7))[0] == shuffled
    assert collect(server.read("a", shuffle_seed=8))[0] != shuffled
    # A read can be continued after any of its messages.
    for seed in [{}, {"shuffle_seed": 7}]:
        responses = list(server.read("a", max_message_bytes=100000, **seed))
        whole, _ = collect(responses)
        for cut in [1, 2, 5, len(responses) - 1]:
            last = responses[cut - 1]
            token = getattr(last, last.WhichOneof("kind")).resume_token
            first, _ = collect(responses[:cut])
            rest, _ = collect(server.read("a", max_message_bytes=100000, resume_token=token, **seed))
            assert {name: first.get(name, b"") + rest.get(name, b"") for name in POINTS} == whole
    for bad in [
        {"first_row": -1},
        {"first_row": 50 * LENGTH + 1},
        {"row_count": -1},
        {"max_activations": 0},
        {"hook_points": ["nope"]},
        {"max_message_bytes": 100},
        {"resume_token": b"x"},
        {"encoding": 9},
    ]:
        assert code(server.read("a", **bad)) == grpc.StatusCode.INVALID_ARGUMENT, bad
    assert code(server.capture(request)) == grpc.StatusCode.NOT_FOUND


def test_a_full_quota_fails_the_recording_and_nothing_else(serve, proto, text):
    server = serve(dataset=text, flags=["--recordings-quota-bytes", "3MiB"])
    other = server.capture(dataset_request(proto))
    next(other)
    assert code(server.persist("a", dataset_request(proto))) == grpc.StatusCode.RESOURCE_EXHAUSTED
    failed = server.get("a")
    assert failed.state == proto.recording.RECORDING_STATE_FAILED and "quota" in failed.error
    assert failed.rows > 0 and not server.verify("a").damaged
    assert len(collect(other)[0][POINTS[0]]) > 0
    request = dataset_request(proto, record_as="b")
    assert code(server.capture(request)) == grpc.StatusCode.RESOURCE_EXHAUSTED
    server.terminate()
    server = serve(dataset=text)
    list(server.persist("a", dataset_request(proto)))
    assert state(server, "a") == "COMPLETE"


def test_without_a_directory_there_are_no_recordings(serve, proto):
    server = serve(recordings=False)
    assert code(server.persist("a", tokens_request(proto))) == grpc.StatusCode.UNIMPLEMENTED
    assert code(server.capture(tokens_request(proto, record_as="a"))) == grpc.StatusCode.UNIMPLEMENTED


def test_a_directory_that_is_not_there_is_said_before_any_model_is_loaded(tmp_path):
    missing = tmp_path / "missing"
    command = [PROGRAM, "--model", str(DEMO), "--recordings-dir", str(missing)]
    run = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60)
    assert run.returncode != 0
    assert f"--recordings-dir: {missing}: No such file or directory; give an existing directory" in run.stderr
    assert "fingerprint" not in run.stderr
