"""Tests rows beyond the server's cap, and the ends of passes: whatever stops early is reported."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from fake_server import expected
from torch.utils.data import DataLoader

import hookline
from hookline._mixing import MixingBuffer
from hookline.sae_lens import data_provider

pytestmark = pytest.mark.usefixtures("receiver")

RESID = "blocks.0.hook_resid_post"
POST = "blocks.1.mlp.hook_post"
SEQUENCES = [list(range(3 * i, 3 * i + 1 + i % 7)) for i in range(30)]  # 115 rows


def in_order(parts):
    return torch.cat(list(parts)).numpy()


def sources():
    return {
        "list": SEQUENCES,
        "generator": (SEQUENCES[i : i + 4] for i in range(0, 30, 4)),
        "dataset": hookline.Dataset("d"),
    }


@pytest.mark.parametrize("cap", [8, 20, 56, 114, 115])
@pytest.mark.parametrize("source", ["list", "generator", "dataset"])
def test_a_provider_goes_on_behind_the_cap(fake, cap, source):
    server = fake(cap=cap, datasets={"d": SEQUENCES})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        provider = data_provider(
            server.address, RESID, sources()[source], batch_size=10, shuffle_buffer=0, repeat=False, drop_last=False
        )
        batches = list(provider)
    assert [len(batch) for batch in batches] == [10] * 11 + [5]
    np.testing.assert_array_equal(in_order(batches), expected(RESID, SEQUENCES))


def test_a_mixing_provider_brings_every_row_once_behind_the_cap(fake):
    server = fake(cap=40)
    provider = data_provider(
        server.address, RESID, SEQUENCES, batch_size=10, shuffle_buffer=16, repeat=False, drop_last=False
    )
    rows = in_order(provider)
    assert sorted(map(tuple, rows)) == sorted(map(tuple, expected(RESID, SEQUENCES)))


def test_a_budget_larger_than_the_cap_is_kept_to_the_row_in_each_pass(fake):
    server = fake(cap=30, datasets={"d": SEQUENCES})
    for source in (SEQUENCES, hookline.Dataset("d")):
        provider = data_provider(server.address, RESID, source, batch_size=50, shuffle_buffer=0, max_activations=100)
        batches = list(itertools.islice(provider, 4))
        np.testing.assert_array_equal(in_order(batches), np.tile(expected(RESID, SEQUENCES)[:100], (2, 1)))


def test_a_torch_dataset_goes_on_behind_the_cap(fake):
    server = fake(cap=31, datasets={"d": SEQUENCES})
    for source in (SEQUENCES, hookline.Dataset("d")):
        dataset = hookline.torch.ActivationDataset(
            server.address, [RESID, POST], source, batch_rows=8, max_activations_by_hook_point={POST: 70}
        )
        for _ in range(2):
            batches = list(DataLoader(dataset, batch_size=None))
            np.testing.assert_array_equal(in_order(b[RESID] for b in batches), expected(RESID, SEQUENCES))
            np.testing.assert_array_equal(
                in_order(b[POST] for b in batches if POST in b), expected(POST, SEQUENCES)[:70]
            )


def test_provenance_counts_on_behind_the_cap(fake):
    server = fake(cap=31, datasets={"d": SEQUENCES})
    for source in (SEQUENCES, hookline.Dataset("d")):
        dataset = hookline.torch.ActivationDataset(server.address, RESID, source, batch_rows=8, provenance=True)
        batches = list(dataset)
        assert in_order(b.sequence for b in batches).tolist() == [i for i, ids in enumerate(SEQUENCES) for _ in ids]
        assert [b.first_row for b in batches] == [0, *itertools.accumulate(b.rows for b in batches)][:-1]


def test_a_sequence_longer_than_the_cap_is_an_error_not_an_endless_loop(fake):
    provider = data_provider(fake(cap=5).address, RESID, [list(range(20))], batch_size=2, shuffle_buffer=0)
    with pytest.raises(ValueError, match="more rows than the 5"):
        list(itertools.islice(provider, 50))


def test_a_capture_says_that_its_budget_was_clipped(fake):
    client = hookline.connect(fake(cap=20).address)
    with pytest.warns(UserWarning, match="grants 20 rows.*of the 30 asked for") as told:
        assert sum(batch.rows for batch in client.capture(RESID, SEQUENCES, max_activations=30)) == 20
    assert [warning.filename for warning in told] == [__file__]


def test_a_capture_without_a_budget_says_that_the_cap_ended_it(fake):
    client = hookline.connect(fake(cap=20).address)
    with pytest.warns(UserWarning, match="ended at the server's cap of 20 rows") as told:
        assert sum(batch.rows for batch in client.capture(RESID, SEQUENCES)) == 20
    assert [warning.filename for warning in told] == [__file__]


def test_a_capture_that_ends_as_was_asked_says_nothing(fake):
    client = hookline.connect(fake(cap=200).address)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(client.capture(RESID, SEQUENCES))
        list(client.capture(RESID, SEQUENCES, max_activations=20))
        list(client.capture(RESID, SEQUENCES, max_activations=200))


def test_a_recording_that_the_cap_ended_says_so(fake):
    server = fake()
    server.recorded = 7  # the fake server sends 7 rows
    with hookline.connect(server.address) as client:
        for watch in (lambda persist: persist.wait(), list):
            with pytest.warns(UserWarning, match="x: the recording ends at the server's cap of 7 rows.*source") as told:
                watch(client.persist("r", "x", SEQUENCES))
            assert [warning.filename for warning in told] == [__file__]
        with pytest.warns(UserWarning, match="not at the 20 rows asked for"):
            client.persist("r", "x", SEQUENCES, max_activations=20).wait()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            client.persist("r", "x", SEQUENCES, max_activations=7).wait()
            server.recorded = 10  # the source ends before the budget
            client.persist("r", "x", SEQUENCES).wait()


def test_a_source_without_tokens_is_said(fake):
    client = hookline.connect(fake().address)
    for source in ([], iter([]), iter([[]])):
        with pytest.warns(UserWarning, match="the source held no tokens"):
            assert list(client.capture(RESID, source)) == []


def test_values_that_are_not_finite_are_said(fake):
    server = fake()

    def alter(response):
        if response.WhichOneof("kind") == "summary":
            response.summary.hook_points[0].nan_count = 2
            response.summary.hook_points[0].infinity_count = 5
            response.summary.hook_points[0].overflow_count = 4
            response.summary.hook_points[0].statistics_rows = 9
        return response

    server.alter = alter
    client = hookline.connect(server.address)
    told = "2 NaN and 5 infinite values in 9 rows.*made 4 of them infinite.*bfloat16"
    with pytest.warns(UserWarning, match=told):
        list(client.capture(RESID, SEQUENCES, dtype="float16"))
    with pytest.warns(UserWarning, match=told):
        hookline.collect_activations_from_dataloader(
            client.model(), [SEQUENCES], [RESID], dtype="float16", verbose=False
        )


def test_the_short_last_batch_comes_first_in_the_next_pass(fake):
    provider = data_provider(fake().address, RESID, SEQUENCES, batch_size=50, shuffle_buffer=0)
    rows = in_order(itertools.islice(provider, 9))
    whole = expected(RESID, SEQUENCES)
    np.testing.assert_array_equal(rows, np.concatenate([whole] * 4)[:450])


@pytest.mark.parametrize("once", [True, False])
def test_the_last_batch_for_good_is_dropped_as_drop_last_says(fake, once):
    address = fake().address
    for drop_last, lengths in ((True, [50, 50]), (False, [50, 50, 15])):
        source = iter([SEQUENCES]) if once else SEQUENCES
        provider = data_provider(
            address, RESID, source, batch_size=50, shuffle_buffer=0, repeat=once, drop_last=drop_last
        )
        assert [len(batch) for batch in provider] == lengths


def taken(buffer):
    return list(iter(lambda: (buffer.take() or (None,))[0], None))


def test_a_buffer_that_does_not_mix_keeps_every_row_in_order():
    for lengths in ([3, 3, 3], [10], [1] * 7, [4, 9, 1, 0, 2]):
        rows = torch.arange(sum(lengths))
        for size in (1, 2, 3, 4, 100):
            buffer = MixingBuffer(size, size, 0.0, seed=0, devices=["cpu"])
            batches = []
            for part in rows.split(lengths):
                buffer.push([part])
                buffer.serve()
                batches += taken(buffer)
            assert all(len(batch) == size for batch in batches)
            rest = buffer.rest()
            whole = torch.cat([*batches, *([rest[0]] if rest else [])])
            assert whole.tolist() == rows.tolist()


def test_a_mixing_buffer_goes_on_from_its_state_at_any_batch():
    rows = torch.arange(500)
    for cut in range(0, 45, 4):
        whole, batches = MixingBuffer(120, 10, 0.5, seed=3, devices=["cpu"]), []
        for part in rows.split(37):
            whole.push([part])
            whole.serve()
            while (batch := whole.take()) is not None:
                batches.append(batch[0])
                if len(batches) == cut:
                    state = whole.state_dict()
                    whole = MixingBuffer(120, 10, 0.5, seed=99, devices=["cpu"])
                    whole.load_state_dict(state)
        if cut == 0:
            undisturbed = batches
        assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in undisturbed]
    assert len(undisturbed) > 40 // 2


def test_a_feed_that_the_cap_cuts_does_not_begin_again():
    # The fake server has no feeds, so this tests what follows from the grant.
    from hookline import _notes, _passes
    from hookline._request import capture_options

    feed = hookline.Feed("f", hookline.Dataset("d"))
    options = capture_options(RESID, feed)
    assert type(_passes._place_of(options, client=None)) is _passes._Place
    grant = hookline.HookPointGrant(RESID, 8, 20, clipped=False)
    started = hookline.CaptureStarted("m", "f", (grant,), "float32", 0, 0, 0, 0)
    assert _notes.capped(options, started) == [RESID]


def test_the_summary_of_a_pass_is_that_of_all_its_captures(fake):
    server = fake(cap=31, datasets={"d": SEQUENCES})

    def alter(response):
        """Gives the statistics of a real server, for rows that are all alike but for one that is not finite."""
        if response.WhichOneof("kind") == "summary":
            response.summary.batches, response.summary.mean_batch_fill = 2, 0.5
            response.summary.timing.forward_seconds = 0.25
            for point in response.summary.hook_points:
                point.statistics_rows, point.infinity_count = point.rows, 8
                point.mean_row_norm, point.mean, point.rms = 5.0, 2.0, 3.0
        return response

    server.alter = alter
    with pytest.warns(UserWarning, match="infinite"):
        for source in (SEQUENCES, hookline.Dataset("d")):
            dataset = hookline.torch.ActivationDataset(
                server.address, [RESID, POST], source, batch_rows=8, max_activations_by_hook_point={POST: 70}
            )
            captures = len(server.requests)
            list(dataset)
            captures = len(server.requests) - captures
            summary = dataset.summary
            assert {name: point.rows for name, point in summary.hook_points.items()} == {RESID: 115, POST: 70}
            assert summary.stop_reason == "source_ended" and captures > 3
            assert (summary.batches, summary.mean_batch_fill) == (2 * captures, 0.5)
            assert summary.forward_seconds == 0.25 * captures
            resid = summary.hook_points[RESID]
            assert resid.statistics_rows >= 115 and resid.infinity_count == 8 * captures
            assert (resid.mean_row_norm, resid.mean, resid.rms) == (5.0, 2.0, 3.0)


def test_means_of_a_pass_weigh_what_they_are_of():
    from hookline._summaries import sum_of

    def summary(rows, mean, rms, nan_count=0, batches=1, fill=1.0):
        point = hookline.HookPointSummary(rows, rows, abs(mean), mean, rms, nan_count, 0)
        times = dict.fromkeys(("total", "queue", "forward", "copy", "wire"), 1.0)
        return hookline.CaptureSummary(
            "budget", {RESID: point}, 1, 1, batches, fill, **{f"{name}_seconds": value for name, value in times.items()}
        )

    def both(before, then, repeated_rows=0):
        return sum_of(before, then, {RESID: 2}, repeated_rows)

    point = both(summary(3, 1.0, 1.0), summary(1, 5.0, 5.0)).hook_points[RESID]
    assert (point.mean, point.rms, point.mean_row_norm, point.rows) == (2.0, np.sqrt((3 + 25) / 4), 2.0, 4)
    # Four of the first 8 values are NaN, so four values of 1 and two of 4 count.
    assert both(summary(4, 1.0, 1.0, nan_count=4), summary(1, 4.0, 4.0)).hook_points[RESID].mean == 2.0
    nothing = summary(2, float("nan"), float("nan"), nan_count=4)
    assert both(nothing, summary(1, 4.0, 4.0)).hook_points[RESID].mean == 4.0
    assert np.isnan(both(nothing, nothing).hook_points[RESID].rms)
    assert both(summary(4, 1.0, 1.0), summary(3, 1.0, 1.0), repeated_rows=2).hook_points[RESID].rows == 5
    filled = both(summary(1, 1.0, 1.0, batches=3, fill=1.0), summary(1, 1.0, 1.0, batches=1, fill=0.0))
    assert (filled.batches, filled.mean_batch_fill, filled.total_seconds) == (4, 0.75, 2.0)
