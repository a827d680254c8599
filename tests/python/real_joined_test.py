"""Tests several recordings, of one server or of two, that are read as one."""

import asyncio
import warnings

import numpy as np
import pytest
import torch
from server_process import POST, RESID, Server

import hookline
from hookline._order import shuffled, shuffled_rows

pytestmark = pytest.mark.usefixtures("receiver")

LENGTH = 16
NAMES = [RESID, POST]


def dataset(first, count):
    return hookline.Dataset("text", LENGTH, first_sequence=first, sequence_count=count)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Starts two servers that share a directory. The first records `whole` of sequences 0 to 29, `a` of the first ten
    and `b` of the next ten; the second records `c` of the last ten. Each of them has a recording `both`."""
    shared = str(tmp_path_factory.mktemp("recordings"))
    started = [
        Server(arguments=["--recordings-dir", shared, "--recordings-folder", folder, "--recordings-free-bytes", "0"])
        for folder in ("first", "second")
    ]
    recorded = [
        {"whole": (0, 30), "a": (0, 10), "b": (10, 10), "both": (0, 1)},
        {"c": (20, 10), "both": (0, 1)},
    ]
    for server, recordings in zip(started, recorded):
        with hookline.connect(server.address) as client:
            for name, place in recordings.items():
                client.persist(name, NAMES, dataset(*place)).wait()
    yield started
    for server in started:
        server.kill()


@pytest.fixture
def many(servers):
    with hookline.connect([server.address for server in servers]) as client:
        yield client


@pytest.fixture
def one(servers):
    with hookline.connect(servers[0].address) as client:
        yield client


def columns(batches):
    """Joins all batches: the rows of both hook points, then the provenance."""
    joined = [torch.cat([batch[name] for batch in batches if name in batch]) for name in NAMES]
    for column in ("sequence", "position", "token_id"):
        joined.append(torch.cat([getattr(batch, column) for batch in batches]))
    return joined


def read(client, source, **options):
    return list(client.capture(NAMES, source, provenance=True, **{"batch_rows": 64, **options}))


def check_equal(batches, expected):
    assert [batch.first_row for batch in batches] == [batch.first_row for batch in expected]
    assert [batch.rows for batch in batches] == [batch.rows for batch in expected]
    rows, columns_ = columns(batches), columns(expected)
    for mine, theirs in zip(rows[:2], columns_[:2]):
        torch.testing.assert_close(mine, theirs)  # close, as they ran in different batches
    for mine, theirs in zip(rows[2:], columns_[2:]):
        assert mine.tolist() == theirs.tolist()


def test_several_are_the_one_recording_of_the_whole_source(many, one):
    source = hookline.Recording(["a", "b", "c"])
    with many.capture(NAMES, source, provenance=True, batch_rows=64) as capture:
        batches = list(capture)
        assert [point.max_activations for point in capture.started.hook_points] == [30 * LENGTH] * 2
        summary = capture.summary
    check_equal(batches, read(one, hookline.Recording("whole")))
    assert columns(batches)[2][::LENGTH].tolist() == list(range(30))
    assert summary.stop_reason == "source_ended"
    assert [told.rows for told in summary.hook_points.values()] == [480, 480]


def test_the_servers_merge_what_a_list_reads(servers, one):
    if "merged" not in [recording.name for recording in one.recordings()]:
        merged = one.merge_recordings("merged", ["b", "second/c", "first/a"])
        assert (merged.name, merged.state, merged.rows) == ("merged", "complete", 480)
    check_equal(read(one, hookline.Recording("merged")), read(one, hookline.Recording("whole")))
    shuffled_ones = (read(one, hookline.Recording(name, shuffle_seed=3)) for name in ("merged", "whole"))
    check_equal(*shuffled_ones)

    async def again():
        async with hookline.aio.connect(servers[0].address) as client:
            return await client.merge_recordings("merged", ["a", "b", "second/c"])

    assert asyncio.run(again()).rows == one.merge_recordings("merged", ["a", "b", "second/c"]).rows == 480
    with pytest.raises(hookline.FailedPreconditionError, match="recording second/c begins with sequence 20"):
        one.merge_recordings("other", ["a", "second/c"])


def test_parts_are_recorded_and_merged(servers, one):
    for index, server in enumerate(servers):
        with hookline.connect(server.address) as client:
            source = hookline.Dataset("text", LENGTH, sequence_count=30)
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # the second part ends with its share of the budget, not with a cap
                part = client.persist("part", NAMES, source, part=(index, 2), max_activations=400).wait()
            assert part.rows == (240, 160)[index]
    assert one.merge_recordings("of-parts", "*/part").rows == 400
    expected = read(one, hookline.Recording("whole"), max_activations=400)
    check_equal(read(one, hookline.Recording("of-parts")), expected)
    for part, error, what in (
        ((1,), ValueError, "part: "),
        (("a", 2), TypeError, "part"),
        ((-1, 2), ValueError, "part"),
    ):
        with pytest.raises(error, match=what):
            one.persist("other", NAMES, dataset(0, 30), part=part)
    with pytest.raises(hookline.InvalidArgumentError, match="part.index: 2 is not from 0 to 1"):
        one.persist("other", NAMES, dataset(0, 30), part=(2, 2))
    with pytest.raises(TypeError, match="part: a capture takes"):
        one.capture(NAMES, dataset(0, 30), part=(0, 2))


@pytest.mark.parametrize("first, count", [(0, 170), (150, 200), (160, 160), (159, 2), (470, 0), (480, 0)])
def test_a_range_of_rows_may_lie_anywhere(many, one, first, count):
    expected = read(one, hookline.Recording("whole", first, count))
    assert sum(batch.rows for batch in expected) == min(count or 480, 480 - first)
    check = check_equal if expected else lambda batches, _: batches == [] or pytest.fail("rows came")
    check(read(many, hookline.Recording(["a", "b", "c"], first, count)), expected)


@pytest.mark.parametrize("budgets", [{RESID: 200, POST: 160}, {POST: 330}, {RESID: 5, POST: 480}])
def test_budgets_are_those_of_all_together(many, one, budgets):
    options = dict(max_activations=300, max_activations_by_hook_point=budgets)
    check_equal(
        read(many, hookline.Recording(["a", "b", "c"]), **options), read(one, hookline.Recording("whole"), **options)
    )


def test_shuffled_rows_come_once_each_in_an_order_of_the_seed(many):
    whole = columns(read(many, hookline.Recording(["a", "b", "c"])))

    def order(seed, **options):
        rows = columns(read(many, hookline.Recording(["a", "b", "c"], 5, 470, shuffle_seed=seed), **options))
        places = (rows[2] * LENGTH + rows[3]).tolist()
        for mine, theirs in zip(rows, whole):
            torch.testing.assert_close(mine, theirs[places][: len(mine)])
        return places

    places = order(7)
    assert sorted(places) == list(range(5, 475))
    assert order(7, batch_rows=50) == places != order(8)
    assert order(7, max_activations=100) == places[:100]
    # Neighbouring rows come from all parts, and the rows of one part are not in order.
    assert len({place // 160 for place in places[:20]}) == 3
    first_part = [place for place in places if place < 160]
    assert first_part != sorted(first_part)


def test_the_adapters_read_a_list_like_a_recording(servers, many):
    expected = columns(read(many, hookline.Recording("whole")))
    addresses = [server.address for server in servers]
    source = hookline.Recording(["a", "b", "c"])
    with hookline.connect(addresses) as client:
        mixed = list(client.capture(NAMES, source, shuffle_buffer=200, seed=3, provenance=True))
    rows = columns(mixed)
    places = (rows[2] * LENGTH + rows[3]).tolist()
    assert sorted(places) == list(range(480)) and places != list(range(480))
    torch.testing.assert_close(rows[0], expected[0][places])
    loader = torch.utils.data.DataLoader(
        hookline.torch.ActivationDataset(servers[0].address, NAMES, hookline.Recording(["a", "b"]), batch_rows=64),
        batch_size=None,
    )
    torch.testing.assert_close(torch.cat([batch[POST] for batch in loader]), expected[1][:320])


def test_a_name_stands_for_the_one_server_that_has_it(servers, many, one):
    check_equal(read(many, hookline.Recording("a")), read(one, hookline.Recording("a")))
    second = servers[1].address
    with pytest.raises(hookline.FailedPreconditionError, match=f"2 servers have a recording 'both'.*{second}/both"):
        read(many, hookline.Recording(["a", "both"]))
    check_equal(read(many, hookline.Recording([f"{second}/both"])), read(one, hookline.Recording("both")))
    with pytest.raises(hookline.NotFoundError, match="no recording is called nothing on any of"):
        read(many, hookline.Recording(["a", "nothing"]))
    with pytest.raises(ValueError, match="'elsewhere:1', which is not one of"):
        read(many, hookline.Recording(["elsewhere:1/a"]))
    with pytest.raises(ValueError, match=f"{second}.*but this client is of"):
        read(one, hookline.Recording([f"{second}/c"]))
    with pytest.raises(hookline.NotFoundError):
        read(one, hookline.Recording(["a", "c"]))


@pytest.mark.parametrize(
    "name, options, what",
    [
        ("half", dict(dtype="float16"), "dtype: recording a has float32 and half has float16"),
        ("sparse", dict(top_k=3), "top_k: recording a has 0 and sparse has 3"),
        ("less", dict(selection=hookline.Selection(skip_first=2)), "selection: recording a has none.*skip_first=2"),
        ("narrow", dict(hook_points=RESID), "hook_points: recording a has .*hook_post=.*and narrow has none"),
        ("exact", dict(deterministic=True), "deterministic: recording a has False and exact has True"),
    ],
)
def test_recordings_that_are_not_alike_are_refused_with_both_values(one, name, options, what):
    options = {"hook_points": NAMES, **options}
    one.persist(name, options.pop("hook_points"), dataset(0, 2), **options).wait()
    with pytest.raises(hookline.FailedPreconditionError, match=what):
        read(one, hookline.Recording(["a", name]))


def test_a_hook_point_that_ends_before_the_last_recording_is_refused(one):
    one.persist("short", NAMES, dataset(0, 2), max_activations_by_hook_point={POST: 20}).wait()
    with pytest.raises(
        hookline.FailedPreconditionError, match="short: .*hook_post has only 20 of the 32 rows.*of b would"
    ):
        read(one, hookline.Recording(["short", "b"]))
    assert [batch.rows for batch in one.capture(RESID, hookline.Recording(["short", "b"]))] == [192]
    rows = columns(read(one, hookline.Recording(["b", "short"])))
    assert [len(rows[0]), len(rows[1])] == [192, 180]


def test_bad_lists_and_ranges_are_named(one):
    for names, error, what in (
        ([], ValueError, "empty list"),
        (["a", "a"], ValueError, "'a' is given twice"),
        (["a", 3], TypeError, r"name\[1\]"),
        (3, TypeError, "name: 3"),
    ):
        with pytest.raises(error, match=what):
            hookline.Recording(names)
    with pytest.raises(
        hookline.InvalidArgumentError, match="first_row: 321 is not from 0 to 320, the number of rows of a, b"
    ):
        read(one, hookline.Recording(["a", "b"], first_row=321))
    with pytest.raises(ValueError, match="float32.*not float16"):
        read(one, hookline.Recording(["a", "b"]), dtype="float16")
    with pytest.raises(ValueError, match="selection: leave it out to read a recording"):
        read(one, hookline.Recording(["a", "b"]), selection=hookline.Selection(1))


def test_leaving_early_ends_the_reading(many):
    with many.capture(NAMES, hookline.Recording(["a", "b", "c"], shuffle_seed=1), batch_rows=4) as capture:
        assert next(capture).rows == 4
    with pytest.raises(hookline.CancelledError):
        next(capture)


@pytest.mark.parametrize("size, seed", [(1, 0), (5, 3), (1000, 2**64 - 1)])
def test_many_places_of_a_shuffled_order_are_found_at_once(size, seed):
    expected = [shuffled(size, seed, index) for index in range(size)]
    first = size // 3
    assert shuffled_rows(size, seed, first, size - first).tolist() == expected[first:]
    np.testing.assert_array_equal(np.sort(shuffled_rows(size, seed, 0, size)), np.arange(size))
