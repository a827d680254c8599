"""Tests the promises of a capture, against a server that sends arithmetic rows."""

import os
import subprocess
import sys
import threading

import grpc
import numpy as np
import pytest
import torch
from fake_server import expected

import hookline

pytestmark = pytest.mark.usefixtures("receiver")

RESID = "blocks.0.hook_resid_post"
POST = "blocks.1.mlp.hook_post"
SEQUENCES = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11], list(range(12, 40))]


def rows_in_order(capture, hook_point):
    return np.concatenate([np.asarray(batch[hook_point].float()) for batch in capture if hook_point in batch])


def test_rows_arrive_in_order_and_batches_have_the_exact_size(fake):
    client = hookline.connect(fake().address)
    with client.capture([RESID, POST], SEQUENCES, batch_rows=4) as capture:
        batches = list(capture)
    assert [batch.rows for batch in batches] == [4] * 9 + [3]
    assert [batch.first_row for batch in batches] == list(range(0, 40, 4))
    for name in (RESID, POST):
        rows = torch.cat([batch[name] for batch in batches])
        assert rows.dtype == torch.float32
        np.testing.assert_array_equal(rows.numpy(), expected(name, SEQUENCES))


@pytest.mark.parametrize("chunk_rows, batch_rows, prefetch", [(1, 5, 1), (3, 2, 1), (7, 3, 4), (64, 1, 1), (20, 33, 2)])
def test_chunks_and_batches_may_be_cut_differently(fake, chunk_rows, batch_rows, prefetch):
    names = [RESID, POST, "blocks.1.hook_resid_post"]
    sequences = [list(range(i, i + 1 + i % 9)) for i in range(60)]
    client = hookline.connect(fake(chunk_rows=chunk_rows).address)
    capture = client.capture(names, sequences, batch_rows=batch_rows, prefetch=prefetch, max_activations=271)
    batches = list(capture)
    assert [batch.rows for batch in batches[:-1]] == [batch_rows] * ((271 - 1) // batch_rows)
    for name in names:
        rows = torch.cat([batch[name] for batch in batches])
        np.testing.assert_array_equal(rows.numpy(), expected(name, sequences)[:271])


def test_summary_tells_why_the_capture_ended_and_what_was_granted(fake):
    client = hookline.connect(fake(cap=20).address)
    capture = client.capture(RESID, SEQUENCES, max_activations=30)
    assert capture.summary is None
    assert capture.started.hook_points[0].clipped
    assert capture.started.hook_points[0].max_activations == 20
    assert sum(batch.rows for batch in capture) == 20
    assert capture.summary.stop_reason == "budget"
    assert capture.summary.hook_points[RESID].rows == 20
    assert capture.summary.reconnects == 0


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 38, 39, 40])
def test_budgets_are_exact(fake, budget):
    client = hookline.connect(fake().address)
    capture = client.capture(RESID, SEQUENCES, max_activations=budget, batch_rows=4)
    rows = rows_in_order(capture, RESID)
    np.testing.assert_array_equal(rows, expected(RESID, SEQUENCES)[:budget])


def test_budgets_may_differ_by_hook_point(fake):
    client = hookline.connect(fake().address)
    capture = client.capture([RESID, POST], SEQUENCES, max_activations_by_hook_point={RESID: 6}, batch_rows=4)
    batches = list(capture)
    assert [len(batch[RESID]) if RESID in batch else 0 for batch in batches] == [4, 2] + [0] * 8
    assert [len(batch[POST]) for batch in batches] == [4] * 9 + [3]


@pytest.mark.parametrize("dtype", ["float32", torch.bfloat16, np.float16])
def test_values_arrive_in_the_dtype_asked_for(fake, dtype):
    client = hookline.connect(fake().address)
    rows = torch.cat([batch[RESID] for batch in client.capture(RESID, SEQUENCES, dtype=dtype, batch_rows=16)])
    assert str(rows.dtype) == {"float32": "torch.float32", np.float16: "torch.float16"}.get(dtype, "torch.bfloat16")
    np.testing.assert_array_equal(rows.float().numpy(), expected(RESID, SEQUENCES))


def test_numpy_users_get_arrays(fake):
    client = hookline.connect(fake().address)
    batch = next(client.capture(RESID, SEQUENCES, output="numpy", dtype="float16"))
    assert isinstance(batch[RESID], np.ndarray) and batch[RESID].dtype == np.float16


def test_provenance_names_each_row(fake):
    client = hookline.connect(fake().address)
    batches = list(client.capture(RESID, SEQUENCES, provenance=True, batch_rows=16))
    assert torch.cat([b.token_id for b in batches]).tolist() == [t for ids in SEQUENCES for t in ids]
    assert torch.cat([b.sequence for b in batches]).tolist() == [i for i, ids in enumerate(SEQUENCES) for _ in ids]
    assert torch.cat([b.position for b in batches]).tolist() == [p for ids in SEQUENCES for p in range(len(ids))]


@pytest.mark.parametrize(
    "source, sequences",
    [
        ([1, 2, 3], [[1, 2, 3]]),
        (torch.tensor([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (torch.tensor([1, 2]), [[1, 2]]),
        (np.array([[1, 2], [3, 4]], np.uint16), [[1, 2], [3, 4]]),
        ([torch.tensor([1, 2, 3]), torch.tensor([4])], [[1, 2, 3], [4]]),
        ({"input_ids": torch.tensor([[1, 2]])}, [[1, 2]]),
        ([{"idx": [[1, 2]]}, {"idx": [[3]]}], [[1, 2], [3]]),
        ([(torch.tensor([[1, 2]]), torch.tensor([[2, 3]]))] * 2, [[1, 2], [1, 2]]),
        (lambda: (torch.tensor([[i, i + 1]]) for i in range(3)), [[0, 1], [1, 2], [2, 3]]),
        (
            torch.utils.data.DataLoader(torch.arange(12).reshape(6, 2), batch_size=4),
            torch.arange(12).reshape(6, 2).tolist(),
        ),
    ],
    ids=["ids", "tensor", "tensor1d", "array", "tensors", "dict", "dicts", "targets", "generator", "loader"],
)
def test_token_ids_may_come_in_every_usual_form(fake, source, sequences):
    client = hookline.connect(fake().address)
    rows = rows_in_order(client.capture(RESID, source() if callable(source) else source), RESID)
    np.testing.assert_array_equal(rows, expected(RESID, sequences))


@pytest.mark.parametrize(
    "source, message",
    [
        ("text", "give text=... for texts"),
        ([1.5], r"source\[0\]: token ids are integers, not float"),
        ([-1], "-1 is not a token id"),
        (torch.ones(2, 2), "integers"),
        (7, "source"),
    ],
)
def test_what_is_no_token_id_is_named(fake, source, message):
    client = hookline.connect(fake().address)
    with pytest.raises((TypeError, ValueError), match=message):
        list(client.capture(RESID, source))


def test_an_error_of_the_source_reaches_the_loop_after_the_rows_before_it(fake):
    def batches():
        yield [[1, 2, 3]]
        raise OSError("the disk is gone")

    client = hookline.connect(fake().address)
    capture = client.capture(RESID, batches(), batch_rows=2)
    assert next(capture).rows == 2
    with pytest.raises(OSError, match="the disk is gone"):
        list(capture)
    assert rows_in_order(client.capture(RESID, batches(), max_activations=3), RESID).shape == (3, 8)


def test_a_slow_reader_holds_back_the_source(fake):
    """Prefetch and the transport's windows bound the number of batches in flight, not the source."""
    server = fake(chunk_rows=64)
    pulled = []

    def endless():
        while True:
            pulled.append(None)
            yield torch.zeros(64, 64, dtype=torch.int64)

    client = hookline.connect(server.address)
    with client.capture(POST, endless(), batch_rows=64, max_activations=5_000) as capture:
        for _ in range(3):
            next(capture)
        assert len(pulled) * 4096 < 2_000_000
    assert server.cancelled.wait(60)


def test_a_dataset_is_named_to_the_server(fake):
    server = fake(datasets={"pile": SEQUENCES})
    client = hookline.connect(server.address)
    source = hookline.Dataset("pile", sequence_length=64, first_sequence=0, prepend_token_id=0)
    rows = rows_in_order(client.capture(RESID, source), RESID)
    np.testing.assert_array_equal(rows, expected(RESID, SEQUENCES))
    assert server.requests[0].dataset.sequence_length == 64
    assert server.requests[0].dataset.prepend_token_id == 0
    assert server.requests[0].dataset.HasField("prepend_token_id")


def test_a_recording_is_read_like_a_capture_in_its_own_dtype(fake):
    server = fake(datasets={"r": SEQUENCES}, breaks=[20])
    client = hookline.connect(server.address)
    source = hookline.Recording("r", first_row=3, row_count=30, shuffle_seed=0)
    capture = client.capture([RESID, POST], source, batch_rows=7, retry=hookline.Retry(3, 0.001))
    batches = list(capture)
    assert [batch.rows for batch in batches] == [7] * 5 + [4]
    for name in (RESID, POST):
        rows = torch.cat([batch[name] for batch in batches])
        assert rows.dtype == torch.bfloat16
        np.testing.assert_array_equal(rows.float().numpy(), expected(name, SEQUENCES))
    read = server.requests[0]
    assert (read.name, read.first_row, read.row_count) == ("r", 3, 30)
    assert read.HasField("shuffle_seed") and read.shuffle_seed == 0
    assert list(read.hook_points) == [RESID, POST]
    assert capture.summary.reconnects == 1


def test_recordings_are_listed_over_all_pages(fake):
    client = hookline.connect(fake(datasets={"a": [], "b": [], "c": []}).address)
    assert [(found.name, found.state) for found in client.recordings()] == [(n, "complete") for n in "abc"]
    assert client.recording("b").hook_points[0].rows == 7


def test_a_recording_takes_no_argument_of_its_making(fake):
    client = hookline.connect(fake().address)
    for options in ({"model": "m"}, {"selection": hookline.Selection(1)}, {"deterministic": True}, {"record_as": "x"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            client.capture(RESID, hookline.Recording("r"), **options)


def test_a_capture_may_be_recorded_on_the_way(fake):
    server = fake()
    list(hookline.connect(server.address).capture(RESID, SEQUENCES, record_as="mine"))
    assert server.requests[0].record_as == "mine"


def test_leaving_the_loop_cancels_on_the_server(fake):
    server = fake(datasets={"d": [list(range(64))] * 50_000}, cap=10_000_000)
    client = hookline.connect(server.address)
    for _ in client.capture(POST, hookline.Dataset("d"), batch_rows=64):
        break
    assert server.cancelled.wait(60)


def test_a_closed_capture_does_not_look_like_one_that_ended(fake):
    server = fake()
    capture = hookline.connect(server.address).capture(RESID, SEQUENCES, batch_rows=20)
    assert next(capture).rows == 20
    capture.close()
    with pytest.raises(hookline.CancelledError):
        next(capture)


def test_a_library_that_cannot_be_loaded_is_an_error_where_it_was_named(fake, tmp_path, monkeypatch):
    broken = tmp_path / "libhookline_client.so"
    broken.write_bytes(b"no library")
    monkeypatch.setenv("HOOKLINE_CLIENT_LIBRARY", str(broken))
    with pytest.raises(OSError):
        hookline.connect("localhost:1")
    assert hookline.connect("localhost:1", receiver="grpc").receiver == "grpc"
    monkeypatch.delenv("HOOKLINE_CLIENT_LIBRARY")
    monkeypatch.setattr("hookline._library.path", lambda: str(broken))
    with pytest.warns(UserWarning, match="grpcio"):
        assert hookline.connect("localhost:1").receiver == "grpc"


def test_close_wakes_a_waiting_loop(fake):
    server = fake()
    server.release.clear()
    client = hookline.connect(server.address)
    capture = client.capture(RESID, SEQUENCES)
    capture.started
    closer = threading.Thread(target=capture.close)
    with pytest.raises(hookline.CancelledError):
        closer.start()
        list(capture)
    closer.join()


def test_errors_carry_code_message_and_field(fake):
    from hookline import _protocol

    server = fake()
    violation = _protocol.BadRequest(field_violations=[{"field": "hook_points[0]", "description": "x"}])
    status = _protocol.Status(code=3, message="m")
    status.details.add(type_url="type.googleapis.com/google.rpc.BadRequest", value=violation.SerializeToString())
    server.failure = (
        grpc.StatusCode.INVALID_ARGUMENT,
        'hook_points[0]: no hook point "x"',
        (("grpc-status-details-bin", status.SerializeToString()),),
    )
    client = hookline.connect(server.address)
    with pytest.raises(hookline.InvalidArgumentError) as caught:
        next(client.capture("x", SEQUENCES))
    assert caught.value.code == "INVALID_ARGUMENT"
    assert caught.value.field == "hook_points[0]"
    assert caught.value.message == 'hook_points[0]: no hook point "x"'
    assert isinstance(caught.value, ValueError)


def test_the_field_is_found_in_the_message_where_details_are_stripped(fake):
    server = fake()
    server.failure = (grpc.StatusCode.INVALID_ARGUMENT, "tokens.sequences[2].ids[7]: 99 is not a token", ())
    with pytest.raises(hookline.InvalidArgumentError) as caught:
        hookline.connect(server.address).capture(RESID, SEQUENCES).started
    assert caught.value.field == "tokens.sequences[2].ids[7]"


def test_an_address_without_server_fails_at_once():
    with pytest.raises(hookline.UnavailableError):
        next(hookline.connect("127.0.0.1:1").capture(RESID, SEQUENCES))
    with pytest.raises(hookline.UnavailableError):
        hookline.connect("127.0.0.1:1").model()
    with pytest.raises(ValueError, match="port"):
        hookline.connect("localhost")


@pytest.mark.parametrize(
    "options, name",
    [
        ({"batch_rows": 0}, "batch_rows"),
        ({"prefetch": 0}, "prefetch"),
        ({"dtype": "int16"}, "dtype"),
        ({"output": "jax"}, "output"),
    ],
)
def test_arguments_that_cannot_be_are_errors_of_the_call(fake, options, name):
    client = hookline.connect(fake().address)
    with pytest.raises(ValueError, match=name):
        client.capture(RESID, SEQUENCES, **options)


def break_chunk(field, value):
    def alter(response):
        if response.WhichOneof("kind") == "chunk":
            setattr(response.chunk, field, value)
        return response

    return alter


@pytest.mark.parametrize(
    "field, value",
    [
        ("first_row", 1),
        ("rows", 2),
        ("rows", -1),
        ("width", 9),
        ("dtype", 2),
        ("hook_point", "other"),
        ("data", b"123"),
    ],
)
def test_a_stream_that_breaks_its_promises_is_an_internal_error(fake, field, value):
    server = fake()
    server.alter = break_chunk(field, value)
    with pytest.raises(hookline.InternalError):
        list(hookline.connect(server.address).capture(RESID, SEQUENCES))


def test_models_are_described(fake):
    client = hookline.connect(fake().address)
    model = client.model()
    assert model.name == "fake"
    assert [(p.name, p.width) for p in model.hook_points][0] == (RESID, 8)
    assert [m.name for m in client.models()] == ["fake"]
    with pytest.raises(hookline.NotFoundError, match="there is"):
        client.model("nope")


def test_a_program_may_end_with_a_capture_open(fake):
    server = fake(datasets={"d": [list(range(64))] * 50_000})
    program = f"""
import hookline
capture = hookline.connect({server.address!r}).capture({POST!r}, hookline.Dataset("d"), batch_rows=64)
endless = ([[1, 2, 3]] for _ in iter(int, 1))
streamed = hookline.connect({server.address!r}).capture({POST!r}, endless, batch_rows=64)
next(capture), next(streamed)
"""
    package = os.path.dirname(os.path.dirname(hookline.__file__))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)
    assert server.cancelled.wait(60)


def test_an_array_mapped_from_a_file_is_read_as_it_is_sent(fake, tmp_path):
    tokens = np.lib.format.open_memmap(tmp_path / "t.npy", "w+", np.int64, (3000, 64))
    tokens[:] = np.arange(3000 * 64).reshape(3000, 64) % 1000
    tokens[2500, 3] = -5  # found when it is reached, not before
    client = hookline.connect(fake(chunk_rows=64).address)
    source = np.load(tmp_path / "t.npy", mmap_mode="r")
    rows = rows_in_order(client.capture(RESID, source, max_activations=640, batch_rows=64), RESID)
    np.testing.assert_array_equal(rows, expected(RESID, tokens[:10]))
    with pytest.raises(ValueError, match="-5 is not a token id"):
        list(client.capture(RESID, source[2400:]))
