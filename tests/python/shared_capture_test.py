"""Tests one client over several servers: rows, order, budgets and provenance are those of one, whatever servers do."""

import pickle
import threading
import time

import grpc
import numpy as np
import pytest
import torch
from fake_server import FakeServer, expected
from held_port import HeldPort

import hookline
from hookline.many import Sharing

pytestmark = pytest.mark.usefixtures("receiver")

A, B = "blocks.0.hook_resid_post", "blocks.1.mlp.hook_post"
SEQUENCES = [[(7 * i + k) % 900 for k in range(5 + i % 9)] for i in range(120)]
EQUAL = [[(7 * i + k) % 900 for k in range(8)] for i in range(120)]
RETRY = hookline.Retry(attempts=3, initial_seconds=0.02, max_seconds=0.05)


@pytest.fixture
def pair(fake):
    return [fake(datasets={"text": EQUAL}), fake(datasets={"text": EQUAL})]


def connect(servers, **sharing):
    settled = Sharing(**{"block_tokens": 40, "answer_seconds": 60, **sharing})
    addresses = [server if isinstance(server, str) else server.address for server in servers]
    return hookline.connect(addresses, sharing=settled)


def capture(servers, source, hook_points=(A, B), sharing=None, **options):
    """Returns all batches, with NumPy rows, and the summary."""
    with connect(servers, **(sharing or {})) as client:
        running = client.capture(list(hook_points), source, **{"output": "numpy", "retry": RETRY, **options})
        batches = list(running)
        return batches, running.summary


def rows_of(batches, name):
    return np.concatenate([batch[name] for batch in batches if name in batch])


def check_rows(batches, sequences, budgets, start=0):
    for name, budget in budgets.items():
        np.testing.assert_array_equal(rows_of(batches, name), expected(name, sequences)[start:budget])


def check_provenance(batches, sequences, budget):
    where = [(i, p, token) for i, ids in enumerate(sequences) for p, token in enumerate(ids)][:budget]
    found = [row for b in batches for row in zip(b.sequence, b.position, b.token_id)]
    assert [tuple(map(int, row)) for row in found] == where


@pytest.mark.parametrize("source", ["lists", "table", "loader", "dataset"])
def test_rows_come_in_the_order_of_the_source_and_from_all_servers(pair, source):
    sequences = SEQUENCES if source in ("lists", "loader") else EQUAL
    of = {
        "lists": lambda: SEQUENCES,
        "table": lambda: np.array(EQUAL),
        "loader": lambda: iter([SEQUENCES[:50], SEQUENCES[50:51], SEQUENCES[51:]]),
        "dataset": lambda: hookline.Dataset("text"),
    }[source]()
    total = sum(map(len, sequences))
    batches, summary = capture(pair, of, batch_rows=64, provenance=True)
    check_rows(batches, sequences, {A: total, B: total})
    check_provenance(batches, sequences, total)
    assert [batch.rows for batch in batches] == [64] * (total // 64) + [total % 64] * (total % 64 > 0)
    assert summary.stop_reason == "source_ended"
    assert {point.rows for point in summary.hook_points.values()} == {total}
    assert summary.reconnects == 0
    assert all(len(server.requests) > 3 for server in pair)


def test_budgets_are_exact_and_may_differ(pair):
    for source in (SEQUENCES, hookline.Dataset("text")):
        sequences = SEQUENCES if source is SEQUENCES else EQUAL
        batches, summary = capture(
            pair,
            source,
            max_activations=333,
            max_activations_by_hook_point={B: 77},
            batch_rows=50,
            provenance=True,
        )
        check_rows(batches, sequences, {A: 333, B: 77})
        check_provenance(batches, sequences, 333)
        assert [batch.rows for batch in batches] == [50] * 6 + [33]
        assert summary.stop_reason == "budget"
        assert {name: point.rows for name, point in summary.hook_points.items()} == {A: 333, B: 77}


def test_the_servers_cap_is_that_of_one_capture(fake):
    servers = [fake(cap=200), fake(cap=200)]
    with connect(servers) as client, pytest.warns(UserWarning, match="grants 200 rows"):
        running = client.capture([A], SEQUENCES, max_activations=500, output="numpy")
        assert sum(batch.rows for batch in running) == 200
        assert running.started.hook_points[0].clipped


def test_blocks_of_a_server_that_breaks_run_elsewhere_without_loss_or_repeats(fake):
    breaking = fake(datasets={"text": EQUAL}, breaks=[13, 0, 7, 90, 1, 22], chunk_rows=3)
    servers = [breaking, fake(datasets={"text": EQUAL})]
    for source, sequences in ((SEQUENCES, SEQUENCES), (hookline.Dataset("text"), EQUAL)):
        total = sum(map(len, sequences))
        batches, summary = capture(servers, source, batch_rows=37, provenance=True)
        check_rows(batches, sequences, {A: total, B: total})
        check_provenance(batches, sequences, total)
    assert not breaking.breaks


def test_a_server_that_is_away_is_left_out_and_used_once_it_is_back(fake, caplog):
    there = fake()
    port = HeldPort()
    back = []
    released = threading.Event()

    def source():
        yield SEQUENCES[:30]
        back.append(FakeServer(port=port.number))
        end = time.monotonic() + 30
        for i in range(30, len(SEQUENCES) * 100):
            yield [SEQUENCES[i % len(SEQUENCES)]]
            if back[0].requests:
                released.set()
                return
            assert time.monotonic() < end, "the server that came back was not used"
            time.sleep(0.001)

    batches, _ = capture([there, port.address], source(), [A])
    back[0].stop()
    assert released.is_set()
    rows = rows_of(batches, A)
    np.testing.assert_array_equal(rows, expected(A, [SEQUENCES[i % 120] for i in range(120 * 100)])[: len(rows)])
    assert f"{port.address} does not answer" in caplog.text


def test_a_server_that_is_only_slow_is_not_given_up(pair):
    pair[0].release.clear()
    threading.Timer(1.0, pair[0].release.set).start()
    batches, summary = capture(pair, SEQUENCES, sharing={"silence_seconds": 0.2})
    total = sum(map(len, SEQUENCES))
    check_rows(batches, SEQUENCES, {A: total, B: total})
    assert summary.reconnects == 0


def test_with_no_server_left_the_error_comes_after_the_rows(fake):
    never = 1 << 30
    servers = [fake(breaks=[never] * 4 + [0] * 100), fake(breaks=[never] * 4 + [0] * 100)]
    with connect(servers) as client:
        running = client.capture([A], SEQUENCES, output="numpy", retry=RETRY, batch_rows=10)
        batches = []
        with pytest.raises(hookline.UnavailableError):
            for batch in running:
                batches.append(batch)
    rows = sum(batch.rows for batch in batches)
    check_rows(batches, SEQUENCES, {A: rows})
    assert rows > 0


def test_an_address_where_nobody_listens_says_so_at_once():
    ports = [HeldPort(), HeldPort()]
    with hookline.connect([port.address for port in ports]) as client, pytest.raises(hookline.UnavailableError):
        next(client.capture([A], SEQUENCES))


def test_servers_of_different_models_are_refused_by_both_fingerprints(pair):
    pair[1].fingerprint = "e" * 32
    first, second = (f"{one.address} holds (the fingerprint )?{one.fingerprint}" for one in pair)
    told = f"{first}.*{second}|{second}.*{first}"
    with connect(pair) as client:
        with pytest.raises(hookline.FailedPreconditionError, match=told):
            client.model()
        with pytest.raises(hookline.FailedPreconditionError, match=told):
            list(client.capture([A], SEQUENCES))


def test_servers_of_different_datasets_are_refused(pair):
    pair[1].dataset_fingerprint = "e" * 32
    with connect(pair) as client:
        with pytest.raises(hookline.FailedPreconditionError, match="dataset 'text'.*fingerprint"):
            client.dataset("text")
        with pytest.raises(hookline.FailedPreconditionError, match="dataset 'text'.*fingerprint"):
            list(client.capture([A], hookline.Dataset("text")))


def test_a_server_that_comes_back_with_another_model_is_refused(fake):
    servers = [fake(breaks=[1 << 30, 20], chunk_rows=3), fake()]
    plain = servers[0].alter

    def alter(response):
        if len(servers[0].requests) > 3:
            servers[0].fingerprint = "e" * 32
        return plain(response)

    servers[0].alter = alter
    with pytest.raises(hookline.FailedPreconditionError, match="e{32}"):
        capture(servers, SEQUENCES * 20, [A])


def test_what_needs_one_server_is_refused(pair):
    with connect(pair) as client:
        feed = hookline.Feed("shared", hookline.Dataset("text"))
        for arguments, why in (
            (dict(source=feed), "a feed is shared by captures on one server"),
            (dict(source=SEQUENCES, record_as="run1"), "record_as: a recording is on one server"),
        ):
            with pytest.raises(ValueError, match=f"{why}.*{pair[0].address}"):
                client.capture([A], **arguments)
        for call in (client.recordings, lambda: client.recording("run1"), lambda: client.delete_recording("run1")):
            with pytest.raises(ValueError, match="one of `clients`"):
                call()


def test_a_resume_token_goes_on_with_other_servers(pair, fake):
    for source, sequences in ((SEQUENCES, SEQUENCES), (hookline.Dataset("text"), EQUAL)):
        arguments = dict(max_activations=700, max_activations_by_hook_point={B: 301}, output="numpy", provenance=True)
        with connect(pair) as client:
            running = client.capture([A, B], source, batch_rows=50, **arguments)
            begun = [next(running) for _ in range(5)]
            token = running.resume_token
            running.close()
        others = [fake(datasets={"text": EQUAL}) for _ in range(3)]
        with connect(others, block_tokens=70) as client:
            going_on = client.capture([A, B], source, batch_rows=100, resume_token=token, **arguments)
            assert going_on.resume_token == token
            rest = list(going_on)
            assert [batch.first_row for batch in rest] == [250, 350, 450, 550, 650]
            check_rows(begun + rest, sequences, {A: 700, B: 301})
            check_provenance(begun + rest, sequences, 700)
            assert {name: p.rows for name, p in going_on.summary.hook_points.items()} == {A: 700, B: 301}
            end = client.capture([A, B], source, resume_token=going_on.resume_token, **arguments)
            assert list(end) == [] and end.summary.stop_reason == "budget"


def test_a_resume_token_is_checked(pair):
    with connect(pair) as client:
        running = client.capture([A], SEQUENCES, output="numpy")
        next(running)
        token = running.resume_token
        for wrong, why in (
            (b"\x01\x02", "is not from a capture over several servers"),
            (token.replace(b'_shared":1', b'_shared":2'), "has version 2; this client reads version 1"),
            (token.replace(b'"place_row":', b'"place_row":1'), "is damaged"),
        ):
            with pytest.raises(hookline.InvalidArgumentError, match=f"resume_token: {why}"):
                client.capture([A], SEQUENCES, resume_token=wrong)
        with pytest.raises(hookline.InvalidArgumentError, match="belongs to another capture"):
            list(client.capture([B], SEQUENCES, resume_token=token))
        with pytest.raises(ValueError, match="shuffle_buffer"):
            client.capture([A], SEQUENCES, resume_token=token, shuffle_buffer=10)


def test_what_the_source_raises_comes_after_the_rows_before_it(pair):
    def source():
        yield SEQUENCES[:20]
        raise OSError("the disk is gone")

    with connect(pair) as client:
        running = client.capture([A], source(), output="numpy", batch_rows=16)
        batches = []
        with pytest.raises(OSError, match="the disk is gone"):
            for batch in running:
                batches.append(batch)
    check_rows(batches, SEQUENCES[:20], {A: 10**9})


def test_an_error_about_a_sequence_names_its_place_in_the_source(pair):
    for server in pair:
        server.refused_id = 888
    with pytest.raises(hookline.InvalidArgumentError, match="row 70 of the source, position 2.*server 127.0.0.1"):
        capture(pair, SEQUENCES[:70] + [[1, 2, 888]] + SEQUENCES[70:], [A])


def test_a_source_is_not_read_ahead_of_a_slow_reader_without_bounds(pair):
    read = []

    def source():
        for i in range(10_000):
            read.append(i)
            yield [list(range(40))]

    with connect(pair) as client:
        running = client.capture([A], source(), output="numpy", batch_rows=40, prefetch=1)
        next(running)
        time.sleep(0.5)
        settled = len(read)
        time.sleep(0.3)
        assert len(read) == settled < 30
        running.close()


def test_closing_ends_the_threads(pair):
    client = connect(pair)
    running = client.capture([A], iter(lambda: SEQUENCES, None), output="numpy")
    next(running)
    client.close()
    with pytest.raises(hookline.CancelledError):
        while True:
            next(running)
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name in ("hookline-shared", "hookline-block", "hookline-watch")]


def test_closing_does_not_wait_for_a_source_that_blocks(pair):
    blocks = threading.Event()

    def source():
        yield SEQUENCES
        blocks.wait()

    with connect(pair) as client:
        running = client.capture([A], source(), output="numpy", batch_rows=16)
        next(running)
        running.close()
    blocks.set()


def test_other_calls_are_asked_of_a_server_that_answers(fake):
    there = fake(datasets={"text": EQUAL})
    away = HeldPort()
    with connect([away.address, there]) as client:
        for _ in range(3):
            assert [model.name for model in client.models()] == ["fake"]
        assert client.model().name == "fake"
        assert client.estimate([A], [[1]]).hook_points[A].rows == 1


def test_a_trainers_dataset_takes_several_addresses(pair):
    addresses = [server.address for server in pair]
    dataset = hookline.torch.ActivationDataset(addresses, [A], hookline.Dataset("text"), batch_rows=64)
    rows = torch.cat([batch[A] for batch in torch.utils.data.DataLoader(dataset, batch_size=None)])
    np.testing.assert_array_equal(rows.numpy(), expected(A, EQUAL))


def test_a_pickled_client_reaches_the_same_servers(pair):
    with connect(pair) as client, pickle.loads(pickle.dumps(client)) as other:
        assert other.address == client.address
        assert sum(batch.rows for batch in other.capture([A], SEQUENCES[:9], output="numpy")) == sum(
            map(len, SEQUENCES[:9])
        )


def test_a_server_that_cancels_what_it_runs_as_it_ends_loses_no_row(pair):
    pair[0].failure = (grpc.StatusCode.CANCELLED, "CANCELLED", ())
    batches, summary = capture(pair, SEQUENCES, [A])
    check_rows(batches, SEQUENCES, {A: 10**9})
    pair[1].failure = (grpc.StatusCode.CANCELLED, "stopped by alice (StopCapture)", ())
    with pytest.raises(hookline.CancelledError, match="stopped by alice"):
        capture(pair, SEQUENCES, [A])


def test_a_full_queue_is_asked_again_when_the_server_says(pair):
    from hookline import _protocol

    info = _protocol.RetryInfo()
    info.retry_delay.nanos = 50_000_000
    status = _protocol.Status(code=8)
    status.details.add(type_url="type.googleapis.com/google.rpc.RetryInfo", value=info.SerializeToString())
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    pair[0].failure = (grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", details)
    pair[1].failure = pair[0].failure
    threading.Timer(0.4, lambda: setattr(pair[0], "failure", None)).start()
    batches, _ = capture(pair, SEQUENCES, [A])
    check_rows(batches, SEQUENCES, {A: 10**9})
