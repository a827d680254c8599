"""Tests that the asyncio client keeps the promises of the other client."""

import asyncio
import inspect
import pickle

import grpc
import numpy as np
import pytest
import torch
from error_codes import CODES, calls
from fake_server import expected

import hookline

RESID = "blocks.0.hook_resid_post"
POST = "blocks.1.mlp.hook_post"
SEQUENCES = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11], list(range(12, 40))]
QUICK = hookline.Retry(attempts=3, initial_seconds=0.001)


def collect(address, source, **options):
    async def run():
        async with hookline.aio.connect(address) as client:
            made = source() if callable(source) else source
            async with client.capture([RESID, POST], made, **options) as capture:
                batches = [batch async for batch in capture]
            return batches, capture.summary

    return asyncio.run(asyncio.wait_for(run(), 60))


async def numbers():
    for ids in SEQUENCES:
        await asyncio.sleep(0)
        yield [ids]


@pytest.mark.parametrize("breaks", [[], [1], [13, 5]])
@pytest.mark.parametrize(
    "source",
    [SEQUENCES, hookline.Dataset("d"), numbers, lambda: ([ids] for ids in SEQUENCES)],
    ids=["list", "dataset", "async generator", "generator"],
)
def test_rows_arrive_in_order_once_also_over_reconnects(fake, breaks, source):
    server = fake(breaks=breaks, datasets={"d": SEQUENCES})
    batches, summary = collect(server.address, source, batch_rows=4, retry=QUICK)
    assert [batch.rows for batch in batches] == [4] * 9 + [3]
    for name in (RESID, POST):
        np.testing.assert_array_equal(torch.cat([b[name] for b in batches]).numpy(), expected(name, SEQUENCES))
    assert summary.reconnects == len(breaks)


def test_rows_can_be_mixed(fake):
    batches, _ = collect(fake().address, SEQUENCES, shuffle_buffer=20, seed=1, provenance=True, batch_rows=8)
    ids = torch.cat([batch.token_id for batch in batches]).tolist()
    assert sorted(ids) == list(range(1, 40)) and ids != sorted(ids)


def test_errors_are_raised_by_the_loop(fake):
    server = fake()
    server.failure = (grpc.StatusCode.INVALID_ARGUMENT, "hook_points: none", ())
    with pytest.raises(hookline.InvalidArgumentError) as caught:
        collect(server.address, SEQUENCES)
    assert caught.value.field == "hook_points"

    async def broken():
        yield [[1]]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        collect(fake().address, broken)


def test_leaving_the_loop_cancels_on_the_server(fake):
    server = fake(datasets={"d": [list(range(64))] * 50_000})

    async def run():
        async with hookline.aio.connect(server.address) as client:
            async with client.capture(POST, hookline.Dataset("d"), batch_rows=64) as capture:
                assert (await capture.started()).hook_points[0].width == 32
                async for _ in capture:
                    break
            with pytest.raises(hookline.CancelledError):
                async for _ in capture:
                    pass

    asyncio.run(asyncio.wait_for(run(), 60))
    assert server.cancelled.wait(60)


def test_models_are_described(fake):
    async def run():
        async with hookline.aio.connect(fake().address) as client:
            assert (await client.model()).hook_points[0].name == RESID
            assert [model.name for model in await client.models()] == ["fake"]
            with pytest.raises(hookline.NotFoundError):
                await client.model("nope")

    asyncio.run(run())


def test_padding_caps_and_places_are_those_of_the_other_clients(fake):
    server = fake(cap=6)
    server.refused_id = 999
    padded = {"input_ids": [[1, 2, 0], [3, 4, 5]], "attention_mask": [[1, 1, 0], [1, 1, 1]]}

    async def rows(source, **options):
        async with hookline.aio.connect(server.address) as client, client.capture(RESID, source, **options) as capture:
            return [batch.rows async for batch in capture]

    assert asyncio.run(rows([padded])) == [5]
    with pytest.warns(UserWarning, match="grants 6 rows"):
        assert asyncio.run(rows([padded] * 2, max_activations=7.0)) == [6]
    with pytest.warns(UserWarning, match="ended at the server's cap of 6 rows"):
        assert asyncio.run(rows([padded] * 2)) == [6]
    with pytest.raises(hookline.InvalidArgumentError, match="batch 1 of the source, row 1, position 2: token id 999"):
        asyncio.run(rows([[[1]], [[1], [1, 2, 999]]]))


def test_outside_a_loop_it_says_where_to_call_it(fake):
    with pytest.raises(RuntimeError, match="hookline.aio.connect: no event loop is running.*asyncio.run"):
        hookline.aio.connect(fake().address)


def test_in_another_loop_it_says_that_it_belongs_to_the_first(fake):
    address = fake().address

    async def connect():
        client = hookline.aio.connect(address)
        assert (await client.model()).name == "fake"
        return client

    client = asyncio.run(connect())

    async def use():
        for call in (client.model, client.models, client.close):
            with pytest.raises(RuntimeError, match="another event loop.*in each loop"):
                await call()
        with pytest.raises(RuntimeError, match="another event loop"):
            client.capture(RESID, SEQUENCES)

    asyncio.run(use())


def test_what_was_opened_in_another_loop_says_that_it_ended_with_it(fake):
    server = fake(datasets={"d": SEQUENCES})

    async def begin():
        client = hookline.aio.connect(server.address)
        capture = client.capture(RESID, hookline.Dataset("d"), batch_rows=5)
        await capture.__anext__()
        watch = client.persist("r", RESID, SEQUENCES)
        await watch.__anext__()
        return capture, watch

    async def go_on(running):
        return [item async for item in running]

    for running in asyncio.run(begin()):
        with pytest.raises(RuntimeError, match="opened in another event loop, and ended with it"):
            asyncio.run(go_on(running))


def test_after_close_every_call_says_that_the_client_is_closed(fake):
    async def run():
        async with hookline.aio.connect(fake().address) as client:
            await client.models()
        await client.close()
        for call in (client.model, client.models):
            with pytest.raises(hookline.FailedPreconditionError, match="the client is closed"):
                await call()
        with pytest.raises(hookline.FailedPreconditionError, match="the client is closed"):
            client.capture(RESID, SEQUENCES)

    asyncio.run(run())


def test_close_ends_running_captures_with_an_error(fake):
    server = fake(datasets={"d": [list(range(64))] * 50_000})

    async def run():
        client = hookline.aio.connect(server.address)
        capture = client.capture(POST, hookline.Dataset("d"), batch_rows=64)
        await capture.__anext__()
        await client.close()
        with pytest.raises(hookline.CancelledError):
            async for _ in capture:
                pass

    asyncio.run(asyncio.wait_for(run(), 60))


def test_it_says_why_it_cannot_be_pickled(fake):
    async def run():
        async with hookline.aio.connect(fake().address) as client:
            with pytest.raises(TypeError, match="hookline.aio.connect"):
                pickle.dumps(client)
            for running, kind in (
                (client.capture(RESID, SEQUENCES), "AsyncCapture"),
                (client.persist("r", RESID, SEQUENCES), "AsyncPersistRun"),
            ):
                with pytest.raises(TypeError, match=f"a running {kind} cannot be pickled"):
                    pickle.dumps(running)

    asyncio.run(run())


def test_rows_before_an_error_come_before_it(fake):
    server = fake(chunk_rows=4)

    def alter(response):
        if response.WhichOneof("kind") == "chunk" and response.chunk.first_row == 19:
            response.chunk.first_row += 1
        return response

    server.alter = alter

    async def run():
        rows = 0
        async with hookline.aio.connect(server.address) as client:
            capture = client.capture([RESID, POST], SEQUENCES, batch_rows=16)
            with pytest.raises(hookline.InternalError):
                async for batch in capture:
                    rows += batch.rows
        return rows

    assert asyncio.run(asyncio.wait_for(run(), 60)) == 19


@pytest.mark.parametrize("code", CODES)
def test_every_method_keeps_the_class_of_an_error(fake, code):
    server = fake(datasets={"d": SEQUENCES})
    server.failure = (getattr(grpc.StatusCode, code), "the server objects", ())
    server.fails_everywhere = True

    async def loop(batches):
        return [batch async for batch in batches]

    async def run():
        async with hookline.aio.connect(server.address) as client:
            methods = {
                **calls(client, RESID, SEQUENCES),
                "capture": lambda: loop(client.capture(RESID, SEQUENCES)),
                "capture of a dataset": lambda: loop(client.capture(RESID, hookline.Dataset("d"))),
                "capture of a recording": lambda: loop(client.capture(RESID, hookline.Recording("d"))),
                "started": lambda: client.capture(RESID, SEQUENCES).started(),
                "loop over a persist": lambda: loop(client.persist("r", RESID, SEQUENCES)),
            }
            for name, call in methods.items():
                with pytest.raises(hookline.HooklineError) as caught:
                    await call()
                assert type(caught.value) is CODES[code], name
                assert (caught.value.code, caught.value.message) == (code, "the server objects"), name

    asyncio.run(asyncio.wait_for(run(), 60))


def test_what_says_who_is_calling_goes_with_every_kind_of_call(fake):
    server = fake(datasets={"d": SEQUENCES})

    async def run():
        async with hookline.aio.connect(server.address, token="t0ken") as client:
            for call in (
                lambda: client.score(SEQUENCES).wait(),
                lambda: client.tokenize("a"),
            ):
                server.metadata = {}
                with pytest.raises(hookline.HooklineError):
                    await call()
                assert server.metadata.get("authorization") == "Bearer t0ken"

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_recording_that_the_cap_ended_says_so(fake):
    server = fake()
    server.recorded = 7  # the fake server sends 7 rows

    async def run():
        async with hookline.aio.connect(server.address) as client:
            await client.persist("r", RESID, SEQUENCES).wait()

    with pytest.warns(UserWarning, match="x: the recording ends at the server's cap of 7 rows") as told:
        asyncio.run(asyncio.wait_for(run(), 60))
    assert [warning.filename for warning in told] == [__file__]


def test_it_offers_what_the_other_client_offers():
    def offered(kind, left_out=()):
        return {name for name in vars(kind) if not name.startswith("_")} - set(left_out)

    # Only the other client has these ways of calling and receiving.
    missing = offered(hookline.Client, ["receiver", "run", "receive", "call"]) - offered(hookline.aio.AsyncClient)
    assert not missing
    assert offered(hookline.PersistRun) - {"close"} <= offered(hookline.aio.AsyncPersistRun)
    assert offered(hookline.Capture) - {"close"} <= offered(hookline.aio.AsyncCapture)
    for name in offered(hookline.Client) & offered(hookline.aio.AsyncClient):
        asked, there = (
            [parameter.replace(annotation=None) for parameter in inspect.signature(kind).parameters.values()]
            for kind in (getattr(hookline.Client, name), getattr(hookline.aio.AsyncClient, name))
        )
        assert asked == there, name


def test_recordings_are_made_listed_and_described(fake):
    server = fake(datasets={name: SEQUENCES for name in "abc"})

    async def run():
        async with hookline.aio.connect(server.address) as client:
            assert [recording.name for recording in await client.recordings()] == ["a", "b", "c"]
            assert (await client.recording("x")).rows == 7
            assert (await client.estimate(RESID, SEQUENCES)).hook_points[RESID].rows == 1
            progress = [step async for step in client.persist("r", RESID, SEQUENCES)]
            assert [(step.disposition, step.rows) for step in progress] == [("started", 3), ("started", 7)]
            assert progress[0].recording is None and progress[1].recording.name == "r"
            assert (await client.persist("r", RESID, hookline.Dataset("a")).wait()).name == "r"
            with pytest.raises(TypeError, match="batch_rows: a recording takes"):
                client.persist("r", RESID, SEQUENCES, batch_rows=3)

    asyncio.run(asyncio.wait_for(run(), 60))


def test_persist_and_estimate_name_the_place(fake):
    server = fake()
    server.failure = (grpc.StatusCode.INVALID_ARGUMENT, "capture.tokens.sequences[2].ids: is empty", ())

    async def run():
        async with hookline.aio.connect(server.address) as client:
            for call in (
                lambda: client.persist("r", RESID, SEQUENCES).wait(),
                lambda: client.estimate(RESID, SEQUENCES),
            ):
                with pytest.raises(hookline.InvalidArgumentError, match="row 2 of the source: is empty"):
                    await call()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_recording_is_watched_on_after_a_wait_that_timed_out(fake):
    server = fake()
    server.release.clear()

    async def run():
        async with hookline.aio.connect(server.address) as client:
            persist = client.persist("r", RESID, SEQUENCES)
            assert (await persist.__anext__()).rows == 3
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(persist.wait(), 0.05)
            assert not server.cancelled.is_set()
            server.release.set()
            assert (await persist.wait()).name == "r"

    asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize("who", ["watch", "client"])
def test_closing_ends_the_watch_of_a_recording(fake, who):
    server = fake()
    server.release.clear()

    async def run():
        client = hookline.aio.connect(server.address)
        persist = client.persist("r", RESID, SEQUENCES)
        assert (await persist.__anext__()).rows == 3
        waiting = asyncio.ensure_future(persist.wait())
        await asyncio.sleep(0)
        await (persist.aclose() if who == "watch" else client.close())
        with pytest.raises(hookline.CancelledError, match="not watched"):
            await waiting
        await client.close()

    asyncio.run(asyncio.wait_for(run(), 60))
    assert server.cancelled.wait(60)
