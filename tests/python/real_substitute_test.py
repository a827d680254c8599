"""Tests substitutions against the server itself. HOOKLINE_SERVER_PROGRAM names the program."""

import asyncio
import os
import threading

import grpc
import numpy as np
import pytest
import torch
from server_process import ROOT, Server

import hookline
from hookline import Intervention, _protocol

FAMILIES = os.path.join(ROOT, "tests", "fixtures", "families")
IDS = [[1, 5, 9, 200, 17, 4, 4, 30], [7, 8, 9]]
RESID = "blocks.1.hook_resid_post"
MLP = "blocks.0.hook_mlp_out"


@pytest.fixture(scope="module")
def server():
    started = Server(model=os.path.join(FAMILIES, "gpt2"), arguments=["--answer-timeout", "3s"])
    yield started
    started.kill()


class Half(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, rows):
        return rows * self.factor


def same(one, other):
    assert one.mean_loss == pytest.approx(other.mean_loss, rel=1e-5)
    assert one.mean_kl == pytest.approx(other.mean_kl, rel=1e-4, abs=1e-7)


def test_a_module_and_a_function_have_the_effect_of_the_same_intervention(client):
    expected = client.score(IDS, {"half": [Intervention.scale(RESID, 0.5)]}, kl=True).wait().variants["half"]
    for replace in (Half(), lambda rows: rows * 0.5):
        scores = client.substitute(IDS, RESID, replace, kl=True, per_token_loss=True)
        seen = [(score.sequence, score.variant, len(score.token_loss)) for score in scores]
        assert seen == [(0, "", 7), (0, "substituted", 7), (1, "", 2), (1, "substituted", 2)]
        summary = scores.wait()
        same(summary.variants["substituted"], expected)
        assert summary.variants["substituted"].replaced[0].rows == 11


def test_a_mask_positions_ids_and_a_head_leave_rows_as_they_are(client):
    z = "blocks.1.attn.hook_z"

    def kl(intervention):
        return client.score(IDS, {"a": [intervention]}, kl=True).wait().variants["a"]

    def masked(rows, place):
        assert isinstance(place, hookline.RowsPlace) and place.hook_point == RESID
        assert place.token_id.tolist() == IDS[0] + IDS[1]
        assert place.position.tolist() == [*range(8), *range(3)] and place.sequence.tolist() == [0] * 8 + [1] * 3
        return 0 * rows, np.isin(place.position, [1, 2])

    expected = kl(Intervention.zero(RESID, positions=[1, 2]))
    for output in ("torch", "numpy"):
        summary = client.substitute(IDS, RESID, masked, places=True, output=output, kl=True).wait()
        same(summary.variants["substituted"], expected)

    def zeros(rows):
        return 0 * rows

    for where in ({"positions": [1, 2]}, {"ignore_token_ids": [4, 8]}):
        summary = client.substitute(IDS, RESID, zeros, kl=True, **where).wait()
        same(summary.variants["substituted"], kl(Intervention.zero(RESID, **where)))
    summary = client.substitute(IDS, z, zeros, kl=True, head=1, variant="mine").wait()
    same(summary.variants["mine"], kl(Intervention.zero(z, head=1)))
    unchanged = client.substitute(IDS, RESID, lambda rows: None, kl=True).wait().variants["substituted"]
    assert unchanged.mean_kl == pytest.approx(0, abs=1e-6)


def test_several_hook_points_are_replaced_in_the_order_of_depth_beside_other_variants(client):
    order = []

    def replace(name, factor):
        def run(rows):
            order.append(name)
            return rows * factor

        return run

    both = [Intervention.scale(MLP, 2.0), Intervention.scale(RESID, 0.5)]
    others = {"zero": [Intervention.zero(MLP)]}
    expected = client.score(IDS, {"both": both, **others}, kl=True, hook_points=RESID)
    scores = client.substitute(
        IDS, [RESID, MLP], {RESID: replace("resid", 0.5), MLP: replace("mlp", 2.0)}, others, kl=True, hook_points=RESID
    )
    rows = {(score.sequence, score.variant): score.rows[RESID] for score in scores}
    for score in expected:
        name = "substituted" if score.variant == "both" else score.variant
        np.testing.assert_allclose(rows[score.sequence, name], score.rows[RESID], rtol=1e-4, atol=1e-5)
    assert order == ["mlp", "resid"]
    summary, wanted = scores.wait().variants, expected.wait().variants
    same(summary["substituted"], wanted["both"])
    same(summary["zero"], wanted["zero"])


def test_a_dataset_and_many_passes_work_like_token_ids(client):
    source = hookline.Dataset("text", sequence_length=64, first_sequence=0, sequence_count=80)
    passes = []

    def replace(rows):
        passes.append(len(rows))
        return rows * 0.5

    summary = client.substitute(source, RESID, replace, kl=True).wait()
    expected = client.score(source, {"half": [Intervention.scale(RESID, 0.5)]}, kl=True).wait()
    same(summary.variants["substituted"], expected.variants["half"])
    assert sum(passes) == 80 * 64 and len(passes) > 1


def test_what_the_function_raises_or_returns_wrongly_is_raised_and_ends_the_call(client):
    def fails(rows):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        client.substitute(IDS, RESID, fails).wait()
    for replace, error, message in (
        (lambda rows: rows[:, :3], ValueError, r"rows of \(11, 3\), not \(11, 48\)"),
        (lambda rows: (rows, [True]), ValueError, r"a mask of \(1,\), not \(11,\)"),
        (lambda rows: rows / 0, ValueError, "not finite"),
        (lambda rows: "much", TypeError, "rows of blocks.1.hook_resid_post are str"),
    ):
        with pytest.raises(error, match=message):
            client.substitute(IDS, RESID, replace).wait()
    with pytest.raises(TypeError, match="int for blocks.1.hook_resid_post is not a function"):
        client.substitute(IDS, RESID, 3)
    with pytest.raises(ValueError, match="the hook points are"):
        client.substitute(IDS, [RESID], {MLP: Half()})
    with pytest.raises(hookline.InvalidArgumentError, match="hook_mlp_out"):
        client.substitute(IDS, "blocks.0.hook_mlp_ou", Half())
    with pytest.raises(hookline.InvalidArgumentError, match="row 1 of the source, position 2"):
        client.substitute([[1, 2], [3, 4, 500]], RESID, Half())
    with pytest.raises(hookline.InvalidArgumentError, match="only in Substitute"):
        client.score(IDS, {"a": [Intervention(RESID, "client")]})


def test_a_silent_client_loses_its_call_and_nobody_else(server, client):
    waits, ended = threading.Event(), threading.Event()

    def silent_rows(rows):
        waits.set()
        assert ended.wait(60)
        return rows

    failed = []

    def silent():
        try:
            client.substitute(IDS, RESID, silent_rows).wait()
        except hookline.HooklineError as error:
            failed.append(error)

    thread = threading.Thread(target=silent)
    thread.start()
    assert waits.wait(60)
    assert client.substitute(IDS, RESID, Half()).wait().sequences == 2
    assert client.score(IDS).wait().sequences == 2
    assert sum(len(batch[RESID]) for batch in client.capture(RESID, IDS)) == 11
    # This call became silent after the other one, so when it ends both have ended.
    with grpc.insecure_channel(server.address) as channel:
        request = _protocol.SubstituteRequest()
        request.request.tokens.sequences.add().ids.extend(IDS[0])
        request.request.variants.add(name="a").interventions.add(hook_point=RESID).client.SetInParent()

        def messages():
            yield request.SerializeToString()
            ended.wait(60)

        with pytest.raises(grpc.RpcError) as caught:
            for _ in channel.stream_stream(_protocol.SUBSTITUTE)(messages()):
                pass
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        ended.set()
    thread.join()
    assert isinstance(failed[0], hookline.DeadlineExceededError) and "--answer-timeout" in str(failed[0])


def test_a_client_that_vanishes_leaves_the_server_as_it_was(server, client):
    for _ in range(3):
        with grpc.insecure_channel(server.address) as channel:
            request = _protocol.SubstituteRequest()
            request.request.tokens.sequences.add().ids.extend(IDS[0])
            intervention = request.request.variants.add(name="a").interventions.add(hook_point=RESID)
            intervention.client.SetInParent()
            done = threading.Event()
            first = request.SerializeToString()

            def messages(first=first, done=done):
                yield first
                done.wait(60)

            call = channel.stream_stream(_protocol.SUBSTITUTE)(messages())
            kinds = [_protocol.ScoreResponse.FromString(next(call)).WhichOneof("kind") for _ in range(2)]
            assert kinds == ["started", "asked"]
            done.set()
        assert client.substitute(IDS, RESID, Half()).wait().sequences == 2


def test_an_answer_that_does_not_fit_ends_the_call_by_field(server):
    with grpc.insecure_channel(server.address) as channel:
        first = _protocol.SubstituteRequest()
        first.request.tokens.sequences.add().ids.extend(IDS[1])
        first.request.variants.add(name="a").interventions.add(hook_point=RESID).client.SetInParent()
        answer = _protocol.SubstituteRequest()
        answer.answer.variant, answer.answer.hook_point, answer.answer.rows = "a", RESID, 3
        for data, message in (
            (np.full((3, 48), np.nan, "<f4"), "answer.data: nan in replaced row 0"),
            (np.zeros((2, 48), "<f4"), "answer.data: has 96 values, but 3 rows of 48 values have 144"),
        ):
            answer.answer.data = data.tobytes()
            asked = threading.Event()
            second = answer.SerializeToString()

            def messages(second=second, asked=asked):
                yield first.SerializeToString()
                asked.wait(60)
                yield second

            call = channel.stream_stream(_protocol.SUBSTITUTE)(messages())
            next(call), next(call)
            asked.set()
            with pytest.raises(grpc.RpcError) as caught:
                next(call)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT and message in caught.value.details()
        call = channel.stream_stream(_protocol.SUBSTITUTE)(iter([answer.SerializeToString()]))
        with pytest.raises(grpc.RpcError, match="must be the first message of the stream"):
            next(call)


def test_asyncio_substitutes_as_the_other_client(server, client):
    expected = client.substitute(IDS, RESID, Half(), kl=True).wait()
    measured = client.loss_recovered(lambda rows: 0.5 * rows, RESID, IDS)

    async def half(rows):
        await asyncio.sleep(0)
        return 0.5 * rows

    async def run():
        async with hookline.aio.connect(server.address) as other:
            for replace in (half, Half()):
                scores = other.substitute(IDS, RESID, replace, kl=True)
                assert len([score async for score in scores]) == 4
                same((await scores.wait()).variants["substituted"], expected.variants["substituted"])
            with pytest.raises(ValueError, match="rows of"):
                await other.substitute(IDS, RESID, lambda rows: rows[:1]).wait()
            with pytest.raises(hookline.InvalidArgumentError, match="row 0 of the source"):
                await other.substitute([[999]], RESID, Half()).wait()
            return await other.loss_recovered(lambda rows: 0.5 * rows, RESID, IDS)

    told = asyncio.run(run())
    assert told == measured


def test_loss_recovered_takes_the_servers_own_sources(client):
    source = hookline.Dataset("text", sequence_length=32, first_sequence=0, sequence_count=3)
    told = client.loss_recovered(lambda rows: 0.5 * rows, RESID, source, ignore_token_ids=[32])
    assert 0 < told.tokens < 96
    half = client.score(source, {"half": [Intervention.scale(RESID, 0.5, ignore_token_ids=[32])]}).wait()
    everywhere = client.loss_recovered(lambda rows: 0.5 * rows, RESID, source)
    assert everywhere.tokens == 96
    assert everywhere.ce_loss_without_sae == pytest.approx(half.variants[""].mean_loss, rel=1e-5)
