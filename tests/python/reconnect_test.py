"""Tests that a broken connection is mended without repeating or losing a row, and that rows can be mixed on the way."""

import ctypes
import os

import numpy as np
import pytest
import torch
from fake_server import FakeServer, expected

import hookline

pytestmark = pytest.mark.usefixtures("receiver")

RESID = "blocks.0.hook_resid_post"
POST = "blocks.1.mlp.hook_post"
SEQUENCES = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11], list(range(12, 40))]
QUICK = hookline.Retry(attempts=3, initial_seconds=0.001)


@pytest.mark.parametrize("breaks", [[1], [13], [40], [5, 5, 5, 5], [60, 10]])
@pytest.mark.parametrize("source", ["list", "generator", "dataset"])
def test_rows_are_neither_repeated_nor_lost_over_reconnects(fake, breaks, source):
    server = fake(breaks=breaks, datasets={"d": SEQUENCES})
    tokens = {"list": SEQUENCES, "generator": ([ids] for ids in SEQUENCES), "dataset": hookline.Dataset("d")}[source]
    capture = hookline.connect(server.address).capture(
        [RESID, POST], tokens, batch_rows=7, retry=QUICK, provenance=True
    )
    batches = list(capture)
    for name in (RESID, POST):
        np.testing.assert_array_equal(torch.cat([b[name] for b in batches]).numpy(), expected(name, SEQUENCES))
    assert torch.cat([b.token_id for b in batches]).tolist() == [t for ids in SEQUENCES for t in ids]
    assert capture.summary.reconnects == len(breaks)
    assert len(server.requests) == len(breaks) + 1


def test_sequences_whose_rows_have_arrived_are_not_sent_again(fake):
    sequences = [[i] * 100 for i in range(100)]
    server = fake(breaks=[5000], chunk_rows=100)
    capture = hookline.connect(server.address).capture(RESID, ([ids] for ids in sequences), batch_rows=100, retry=QUICK)
    rows = torch.cat([batch[RESID] for batch in capture])
    np.testing.assert_array_equal(rows.numpy(), expected(RESID, sequences))
    assert server.requests[1].resume_token


def test_without_retry_the_break_is_an_error(fake):
    server = fake(breaks=[10])
    with pytest.raises(hookline.UnavailableError, match="breaks here"):
        list(hookline.connect(server.address).capture(RESID, SEQUENCES, retry=None))


def test_attempts_are_bounded_and_counted_anew_after_progress(fake):
    # Every call brings a row before it breaks, so no two failures follow each other without progress.
    server = fake(breaks=[1] * 20, chunk_rows=1)
    capture = hookline.connect(server.address).capture(RESID, SEQUENCES, retry=hookline.Retry(1, 0.001))
    assert sum(batch.rows for batch in capture) == 39
    # This server does not come back, so the attempts run out.
    server = FakeServer(breaks=[1])
    capture = hookline.connect(server.address).capture(RESID, SEQUENCES, retry=hookline.Retry(2, 0.001))
    capture.started
    server.stop()
    with pytest.raises(hookline.UnavailableError):
        list(capture)


def test_another_model_after_the_reconnect_is_refused(fake):
    server = fake(breaks=[10])

    def alter(response):
        if response.HasField("started") and len(server.requests) == 2:
            response.started.fingerprint = "0" * 32
        return response

    server.alter = alter
    with pytest.raises(hookline.FailedPreconditionError, match="fingerprint"):
        list(hookline.connect(server.address).capture(RESID, SEQUENCES, retry=QUICK))


def test_the_summary_covers_every_call_whose_server_shut_down_in_order(fake, receiver):
    """Statistics, counts and times are those of all rows, wherever the calls cut them."""
    whole = hookline.connect(fake(statistics=True).address)
    capture = whole.capture([RESID, POST], SEQUENCES)
    list(capture)
    expected_summary = capture.summary
    assert expected_summary.hook_points[RESID].mean > 0
    server = fake(breaks=[13, 30, 1], statistics=True)
    cut = hookline.connect(server.address).capture([RESID, POST], SEQUENCES, retry=QUICK)
    list(cut)
    assert cut.summary.reconnects == 3 and cut.summary.stop_reason == "source_ended"
    assert cut.summary.batches == 4 and cut.summary.total_seconds == 4 * expected_summary.total_seconds
    for name, point in expected_summary.hook_points.items():
        told = cut.summary.hook_points[name]
        assert told.rows == told.statistics_rows == point.statistics_rows == 39
        for field in ("mean", "rms", "mean_row_norm"):
            assert getattr(told, field) == pytest.approx(getattr(point, field), rel=1e-12), (name, field)


def test_rows_of_a_call_that_was_cut_off_are_missing_in_the_statistics_only(fake):
    server = fake(breaks=[13])
    capture = hookline.connect(server.address).capture(RESID, SEQUENCES, retry=QUICK)
    assert sum(batch.rows for batch in capture) == 39
    assert capture.summary.hook_points[RESID].rows == 39


def test_the_policy_of_reconnects_is_that_of_the_c_interface(fake, receiver):
    if receiver == "native":
        delay_ms = ctypes.CDLL(os.environ["HOOKLINE_CLIENT_LIBRARY"]).hookline_reconnect_delay_ms
        delay_ms.restype = ctypes.c_int64
    else:
        delay_ms = {1: 250, 2: 500, 3: 1000, 4: 2000, 5: 4000, 11: -1}.get
    for attempt in range(1, 12):
        delay = hookline.Retry().delay(attempt)
        assert (-1 if delay is None else delay * 1000) == (delay_ms(attempt) or 8000), attempt


def test_errors_other_than_unavailable_are_not_retried(fake):
    import grpc

    server = fake()
    server.failure = (grpc.StatusCode.RESOURCE_EXHAUSTED, "captures: 65 of 64", ())
    with pytest.raises(hookline.ResourceExhaustedError, match="65 of 64"):
        list(hookline.connect(server.address).capture(RESID, SEQUENCES, retry=QUICK))
    assert len(server.requests) == 1


LONG = [list(range(i, i + 50)) for i in range(60)]


def shuffled(address, **options):
    options = {"shuffle_buffer": 500, "seed": 3, "batch_rows": 64, "provenance": True, **options}
    return list(hookline.connect(address).capture([RESID, POST], LONG, **options))


def test_shuffling_keeps_every_row_once_and_hook_points_aligned(fake):
    batches = shuffled(fake().address)
    assert [b.rows for b in batches] == [64] * (3000 // 64) + [3000 % 64]
    where = [tuple(place) for b in batches for place in zip(b.sequence.tolist(), b.position.tolist())]
    assert sorted(where) == [(s, p) for s in range(60) for p in range(50)]
    assert where != sorted(where)
    for name in (RESID, POST):
        rows = torch.cat([b[name] for b in batches]).numpy()
        in_order = expected(name, LONG)
        np.testing.assert_array_equal(rows, in_order[[s * 50 + p for s, p in where]])


def test_shuffling_depends_on_the_seed_alone(fake):
    def ids(batches):
        return torch.cat([b.token_id for b in batches]).tolist()

    server = fake(chunk_rows=7)
    first = ids(shuffled(server.address))
    assert first == ids(shuffled(fake(chunk_rows=3, breaks=[100]).address, retry=QUICK))
    assert first != ids(shuffled(server.address, seed=4))


def test_shuffling_mixes_across_the_buffer(fake):
    """A row moves as far as the buffer is long, not only inside its batch."""
    batches = shuffled(fake().address)
    assert len(set(batches[0].sequence.tolist())) > 5


def test_shuffled_rows_stay_aligned_where_budgets_differ(fake):
    batches = shuffled(fake().address, max_activations_by_hook_point={RESID: 1000})
    assert sum(len(b[RESID]) for b in batches if RESID in b) == 1000
    assert sum(len(b[POST]) for b in batches) == 3000
    for batch in batches:
        where = [s * 50 + p for s, p in zip(batch.sequence.tolist(), batch.position.tolist())]
        for name in batch:
            np.testing.assert_array_equal(batch[name].numpy(), expected(name, LONG)[where[: len(batch[name])]])
