"""Tests the order, the choice and the form of rows, with the server itself on the trained demo model."""

import asyncio
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from server_process import POST, RESID, Server

import hookline
from hookline._order import SequenceOrder

pytestmark = pytest.mark.usefixtures("receiver")

LENGTH = 32


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    tokens = np.random.default_rng(1).integers(0, 256, 40 * LENGTH).astype("<u2")
    path = tmp_path_factory.mktemp("tokens") / "part-0.bin"
    tokens.tofile(path)
    started = Server(
        arguments=[
            *("--dataset", f"stream={path}:uint16"),
            *("--recordings-dir", str(tmp_path_factory.mktemp("recordings"))),
        ]
    )
    started.ids = tokens.astype(np.int64).reshape(40, LENGTH)
    yield started
    started.kill()


def rows_of(client, source, hook_point=RESID, **options):
    return torch.cat([batch[hook_point] for batch in client.capture(hook_point, source, **options)])


SHUFFLED = hookline.Dataset("stream", LENGTH, first_sequence=3, sequence_count=21, shuffle_seed=7, epochs=2)


def order_of(dataset):
    order = SequenceOrder(dataset.first_sequence, dataset.sequence_count, dataset.epochs, dataset.shuffle_seed)
    return [order[i] for i in range(dataset.skip_sequences, len(order))]


def test_a_shuffled_dataset_comes_in_the_order_that_the_proto_specifies(client, server):
    batches = list(client.capture(RESID, SHUFFLED, provenance=True))
    sequences = torch.cat([batch.sequence for batch in batches])
    order = order_of(SHUFFLED)
    assert sequences[::LENGTH].tolist() == order
    assert sorted(order[:21]) == sorted(order[21:]) == list(range(3, 24)) and order[:21] != order[21:]
    tokens = torch.cat([batch.token_id for batch in batches]).numpy().reshape(-1, LENGTH)
    np.testing.assert_array_equal(tokens, server.ids[order])
    expected = rows_of(client, server.ids).reshape(40, LENGTH, -1)[order]
    torch.testing.assert_close(torch.cat([b[RESID] for b in batches]).reshape(expected.shape), expected)


def test_skipped_sequences_are_those_of_the_beginning(client):
    whole = rows_of(client, SHUFFLED)
    part = rows_of(client, hookline.Dataset("stream", LENGTH, 3, 21, None, 7, 2, skip_sequences=25))
    torch.testing.assert_close(part, whole[25 * LENGTH :])


def test_a_shuffled_pass_covers_every_row_behind_the_cap(server, tmp_path):
    path = tmp_path / "tokens.bin"
    server.ids.astype("<u2").tofile(path)
    capped = Server(arguments=["--max-rows", "300", "--dataset", f"stream={path}:uint16"])
    try:
        selection = hookline.Selection(skip_first=1, exclude_token_ids=range(0, 256, 3))
        dataset = hookline.torch.ActivationDataset(
            capped.address, RESID, SHUFFLED, selection=selection, provenance=True, batch_rows=64
        )
        batches = list(dataset)
        places = [place for batch in batches for place in zip(batch.sequence.tolist(), batch.position.tolist())]
        expected = [
            (sequence, position)
            for sequence in order_of(SHUFFLED)
            for position in range(1, LENGTH)
            if server.ids[sequence, position] % 3 != 0
        ]
        assert len(expected) > 600 and places == expected
    finally:
        capped.kill()


def test_a_recording_says_its_order(client):
    recording = client.persist("shuffled", RESID, SHUFFLED).wait()
    assert recording.state == "complete" and recording.rows == 42 * LENGTH
    rows = rows_of(client, hookline.Recording("shuffled"))
    torch.testing.assert_close(rows, rows_of(client, SHUFFLED))
    again = client.persist("shuffled", RESID, SHUFFLED)
    assert next(iter(again)).disposition == "already_complete"


@pytest.mark.parametrize(
    "selection, kept",
    [
        (hookline.Selection(position_end=-3), slice(None, -3)),
        (hookline.Selection(skip_first=2, position_end=-3, position_stride=4), slice(2, -3, 4)),
        (hookline.Selection(last_only=True), slice(-1, None)),
        (hookline.Selection(last_only=True, position_end=-2), slice(-3, -2)),
    ],
)
def test_selections_keep_what_pythons_slices_do(client, server, selection, kept):
    rows = rows_of(client, server.ids[:8].tolist(), selection=selection)
    whole = rows_of(client, server.ids[:8]).reshape(8, LENGTH, -1)[:, kept]
    torch.testing.assert_close(rows, whole.reshape(rows.shape))
    assert selection.rows_of(server.ids[0]) * 8 == len(rows)


def test_statistics_are_numpys(client, server):
    names = [RESID, POST]
    statistics = client.statistics(names, hookline.Dataset("stream", LENGTH))
    assert list(statistics) == names and statistics.summary.stop_reason == "source_ended"
    for name in names:
        rows = rows_of(client, server.ids, name).double().numpy()
        norms = np.linalg.norm(rows, axis=1)
        told = statistics[name]
        assert told.rows == 40 * LENGTH and told.nan_count == told.infinity_count == 0
        np.testing.assert_allclose(told.mean_vector, rows.mean(axis=0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(told.mean_row_norm, norms.mean(), rtol=1e-5)
        factor = hookline.sae_lens.scaling_factor(told)
        np.testing.assert_allclose(factor * norms.mean(), rows.shape[1] ** 0.5, rtol=1e-5)
        np.testing.assert_allclose(told.rms, np.sqrt((rows**2).mean()), rtol=1e-5)
        np.testing.assert_allclose(told.mean, rows.mean(), rtol=1e-3, atol=1e-5)
        quantiles = np.quantile(norms, [0.01, 0.5, 0.99], method="inverted_cdf")
        np.testing.assert_allclose([told.row_norm_p1, told.row_norm_p50, told.row_norm_p99], quantiles, rtol=0.004)
        assert abs(told.outlier_row_share - (norms > 10 * np.median(norms)).mean()) < 0.002
    assert statistics.array("row_norm_p50").shape == (2,)


def test_statistics_of_streamed_tokens_by_asyncio_are_the_same(client, server):
    async def ask():
        async with hookline.aio.connect(server.address) as asynchronous:
            return await asynchronous.statistics(RESID, server.ids, max_activations=500)

    told, expected = asyncio.run(ask())[RESID], client.statistics(RESID, server.ids, max_activations=500)[RESID]
    assert told.rows == expected.rows == 500
    np.testing.assert_allclose(told.mean_vector, expected.mean_vector, rtol=1e-4, atol=1e-5)


def test_statistics_refuse_what_they_cannot_have(client):
    with pytest.raises(TypeError, match="batch_rows: statistics take"):
        client.statistics(RESID, [[1, 2]], batch_rows=3)
    with pytest.raises(TypeError, match="recording"):
        client.statistics(RESID, hookline.Recording("shuffled"))
    with pytest.raises(hookline.InvalidArgumentError, match="nearest"):
        client.statistics("blocks.9.hook_typo", [[1, 2]])


@pytest.mark.parametrize("output", ["torch", "numpy"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "float8_e4m3"])
def test_top_k_is_torchs(client, server, output, dtype):
    whole = rows_of(client, server.ids, POST)
    k = 9
    values, indices = whole.abs().topk(k, dim=1)
    batches = list(client.capture(POST, server.ids, top_k=k, dtype=dtype, output=output, batch_rows=500))
    got = [batch[POST] for batch in batches]
    assert [len(rows) for rows in got] == [500, 500, 280]
    assert got[0].shape == (500, whole.shape[1])
    exact = {"float32": 1e-5, "float16": 1e-3, "int8": 0.01, "float8_e4m3": 0.07}[dtype]
    found = np.concatenate([np.asarray(rows.values, np.float32) for rows in got])
    np.testing.assert_allclose(np.abs(found), values.numpy(), rtol=exact, atol=exact * float(values.max()))
    same = np.concatenate([np.asarray(rows.indices) for rows in got]) == indices.numpy()
    assert same.mean() > 0.999  # batches round differently, so near ties can change places
    dense = got[0].dense()
    assert ((dense != 0).sum(axis=1) <= k).all()
    if output == "torch":
        torch.testing.assert_close(got[0].sparse().to_dense(), dense)


def test_top_k_of_a_recording_is_that_of_the_capture(client, server):
    client.persist("sparse", [POST, RESID], hookline.Dataset("stream", LENGTH), top_k=4, dtype="bfloat16").wait()
    (read,) = client.capture(POST, hookline.Recording("sparse"), batch_rows=1 << 14)
    (live,) = client.capture(POST, hookline.Dataset("stream", LENGTH), top_k=4, dtype="bfloat16", batch_rows=1 << 14)
    assert read[POST].values.dtype == torch.bfloat16
    assert (read[POST].indices == live[POST].indices).float().mean() > 0.999
    shuffled = hookline.Recording("sparse", shuffle_seed=3)
    (mixed,) = client.capture(POST, shuffled, batch_rows=1 << 14)
    assert sorted(mixed[POST].values[:, 0].tolist()) == sorted(read[POST].values[:, 0].tolist())


def quantized(rows, dtype):
    most = 127 if dtype == "int8" else 448
    scale = rows.abs().amax(dim=1, keepdim=True) / most
    numbers = rows / scale
    if dtype == "int8":
        return numbers.round() * scale
    if not hasattr(torch, "float8_e4m3fn"):
        # This takes the nearest of all numbers of the type; ties hardly occur.
        from hookline._rows import _float8_table

        table = torch.from_numpy(_float8_table()[_float8_table() == _float8_table()]).unique()
        middle = (table[1:] + table[:-1]) / 2
        return table[torch.bucketize(numbers.contiguous(), middle)] * scale
    return numbers.to(torch.float8_e4m3fn).float() * scale


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3"])
def test_scaled_rows_are_torchs_and_the_summary_tells_their_error(client, server, dtype):
    whole = rows_of(client, server.ids)
    capture = client.capture(RESID, server.ids, dtype=dtype)
    rows = torch.cat([batch[RESID] for batch in capture])
    assert rows.dtype == torch.float32
    expected = quantized(whole, dtype)
    # The rows of two captures differ in the last bits, so a few are rounded the other way.
    assert (rows - expected).abs().le(1e-4 + 1e-4 * expected.abs()).float().mean() > 0.99
    error = float((rows - whole).norm() / whole.norm())
    assert capture.summary.hook_points[RESID].conversion_error == pytest.approx(error, rel=1e-3)
    assert 0.001 < error < 0.05
    client.persist(f"rows-{dtype}", RESID, server.ids, dtype=dtype).wait()
    read = rows_of(client, hookline.Recording(f"rows-{dtype}"))
    torch.testing.assert_close(read, rows, rtol=0.15, atol=0.2)


def test_a_provider_goes_on_in_a_new_process_as_if_undisturbed(client, server, tmp_path):
    """The rows of the embedding do not depend on the batch that computes them, so they are compared bit by bit."""
    program = """
import sys, torch, hookline
address, receiver, state, batches, out = sys.argv[1:]
client = hookline.connect(address, receiver=receiver)
source = hookline.Dataset("stream", 32, first_sequence=3, sequence_count=21, shuffle_seed=7)
provider = hookline.sae_lens.data_provider(
    client, "hook_embed", source, batch_size=50, shuffle_buffer=330, store_batch_size_prompts=4, seed=5,
    max_norm_medians=3.0, selection=hookline.Selection(exclude_token_ids=range(0, 256, 5)))
if state != "-":
    provider.load_state_dict(torch.load(state))
rows = torch.cat([next(provider) for _ in range(int(batches))])
torch.save(rows, out + ".rows")
torch.save(provider.state_dict(), out + ".state")
"""

    def run(state, batches, out):
        path = str(tmp_path / out)
        arguments = [server.address, client.receiver, state, str(batches), path]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=300, env=environment)
        return torch.load(path + ".rows"), path + ".state"

    whole, _ = run("-", 40, "whole")  # about three epochs
    rng = np.random.default_rng(0)
    first = int(rng.integers(1, 20))
    a, state = run("-", first, "a")
    b, _ = run(state, 40 - first, "b")
    assert torch.equal(torch.cat([a, b]), whole)


@pytest.mark.parametrize("budget", [None, 500])
def test_a_provider_of_tokens_goes_on_at_every_batch(client, server, budget):
    def provider():
        options = {"batch_size": 70, "shuffle_buffer": 200, "store_batch_size_prompts": 3, "max_activations": budget}
        return hookline.sae_lens.data_provider(client, "hook_embed", server.ids, **options)

    whole = list(itertools.islice(provider(), 30))
    for cut in (0, 1, 7, 17, 18, 29):
        first = provider()
        before = [next(first) for _ in range(cut)]
        second = provider()
        second.load_state_dict(first.state_dict())
        after = [next(second) for _ in range(30 - cut)]
        assert all(map(torch.equal, before + after, whole))
    with pytest.raises(ValueError, match="batch_size 70"):
        hookline.sae_lens.data_provider(client, "hook_embed", server.ids).load_state_dict(first.state_dict())
    with pytest.raises(TypeError, match="cannot be continued"):
        hookline.sae_lens.data_provider(client, "hook_embed", iter(server.ids)).state_dict()


def test_special_tokens_are_left_out_as_their_ids_are(client):
    tokens = np.full((4, 30), 65)
    tokens[:, 0] = tokens[1::2, 7] = 256  # BOS of the demo model

    def rows(excluded):
        provider = hookline.sae_lens.data_provider(
            client, "hook_embed", tokens, batch_size=10, shuffle_buffer=0, repeat=False, exclude_special_tokens=excluded
        )
        return torch.cat(list(provider))

    assert len(rows(True)) == 110  # of 114, in whole batches
    for ids in ([256], np.array([256]), torch.tensor([256])):
        assert torch.equal(rows(True), rows(ids))
    assert len(rows(False)) == len(rows(None)) == 120


def test_a_well_mixed_batch_holds_rows_of_many_sequences(client, server):
    in_order = hookline.sae_lens.data_provider(client, "hook_embed", server.ids, batch_size=64, shuffle_buffer=0)
    mixed = hookline.sae_lens.data_provider(client, "hook_embed", server.ids, batch_size=64)
    for provider in (in_order, mixed):
        next(provider)
    assert in_order.mixing < 0.1 < 0.8 < mixed.mixing < 1.2


def test_statistics_can_be_drawn(client):
    """A stand-in for matplotlib's axes takes the calls."""

    class Axes:
        figure = object()

        def __init__(self):
            self.lines, self.areas = {}, []

        def plot(self, layers, norms, label=None, **_):
            if label:
                self.lines[label] = (layers, list(norms))

        def fill_between(self, layers, low, high, **_):
            self.areas.append((list(low), list(high)))

        def __getattr__(self, name):
            return lambda *_, **__: None

    statistics = client.statistics("blocks.*.hook_resid_p*", hookline.Dataset("stream", LENGTH), max_activations=200)
    axes = Axes()
    assert hookline.plot.norms(statistics, axes=axes) is axes.figure
    layers = list(range(client.model().info.layers))
    medians = [statistics[f"blocks.{layer}.hook_resid_post"].row_norm_p50 for layer in layers]
    assert axes.lines["hook_resid_post"] == (layers, medians) and set(axes.lines) == {
        "hook_resid_pre",
        "hook_resid_post",
    }
    assert all(low <= high for area in axes.areas for low, high in zip(*area))
    embedding = client.statistics("hook_embed", [[1, 2]])
    with pytest.raises(ValueError, match="none of the 1 hook points is in a block"):
        hookline.plot.norms(embedding, axes=axes)


def test_values_for_reading_by_eye_carry_the_indices(server):
    import grpc

    from hookline import _protocol

    request = _protocol.CaptureRequest(hook_points=[POST], encoding=2, top_k=2, dtype=5, statistics_only=False)
    request.tokens.sequences.add().ids.extend(server.ids[0].tolist())
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_stream(_protocol.CAPTURE)(request.SerializeToString())
        chunks = [_protocol.CaptureResponse.FromString(message).chunk for message in call]
    chunk = chunks[1]
    assert chunk.top_k == 2 and chunk.rows == LENGTH and not chunk.data
    assert len(chunk.values) == len(chunk.indices) == 2 * LENGTH
    assert max(chunk.indices) < chunk.width
    assert abs(chunk.values[0]) >= abs(chunk.values[1]) > 0


@pytest.mark.parametrize("shuffle_buffer", [0, 300])
@pytest.mark.parametrize("kind", ["top_k", "budgets"])
def test_a_torch_dataset_goes_on_with_any_form_of_rows(server, client, tmp_path, kind, shuffle_buffer):
    short = {"hook_embed": 333, POST: 700}
    form = {"top_k": 5} if kind == "top_k" else {"max_activations_by_hook_point": short}

    def batches():
        options = {"batch_rows": 60, "shuffle_buffer": shuffle_buffer, "provenance": True, **form}
        return iter(hookline.torch.ActivationDataset(server.address, ["hook_embed", POST], SHUFFLED, **options))

    def tensors(batch):
        rows = [(rows.indices, rows.values) if kind == "top_k" else (rows,) for rows in batch.values()]
        return [part for parts in rows for part in parts] + [batch.sequence, batch.position, batch.token_id]

    whole = list(batches())
    if kind == "budgets":
        for name, rows in short.items():
            assert sum(len(batch[name]) for batch in whole if name in batch) == rows
        assert sum(batch.rows for batch in whole) == 700
        places = {(s, p): row for b in client.capture("hook_embed", SHUFFLED, provenance=True, max_activations=700)
                  for s, p, row in zip(b.sequence.tolist(), b.position.tolist(), b["hook_embed"])}  # fmt: skip
        for batch in whole:  # checks that the rows belong to the tokens that the provenance names
            for place, row in zip(zip(batch.sequence.tolist(), batch.position.tolist()), batch.get("hook_embed", ())):
                assert torch.equal(row, places[place])
    else:
        (first,) = client.capture("hook_embed", SHUFFLED, top_k=5, max_activations=60, batch_rows=60)
        assert shuffle_buffer or torch.equal(whole[0]["hook_embed"].dense(), first["hook_embed"].dense())
    for cut in (0, 3, 6, 10, len(whole)):
        first = batches()
        before = list(itertools.islice(first, cut))
        torch.save(first.state_dict(), tmp_path / "state.pt")
        second = batches()
        second.load_state_dict(torch.load(tmp_path / "state.pt"))
        for found, expected in zip(before + list(second), whole, strict=True):
            assert list(found) == list(expected)
            for one, other in zip(tensors(found), tensors(expected), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def selection_by_id():
    return hookline.Selection(exclude_token_ids=range(0, 256, 5))


@pytest.mark.parametrize("shuffle_buffer", [0, 300])
def test_a_torch_dataset_goes_on_at_every_batch(server, client, shuffle_buffer):
    def batches():
        return iter(
            hookline.torch.ActivationDataset(
                server.address,
                ["hook_embed", POST],
                SHUFFLED,
                batch_rows=60,
                shuffle_buffer=shuffle_buffer,
                provenance=True,
                max_activations=1000,
                selection=selection_by_id(),
            )
        )

    whole = list(batches())
    assert [batch.rows for batch in whole] == [60] * 16 + [40]
    in_order = client.capture("hook_embed", SHUFFLED, provenance=True, selection=selection_by_id())
    sequences = torch.cat([batch.sequence for batch in in_order])[:1000]
    assert torch.equal(torch.cat([batch.sequence for batch in whole]), sequences) == (shuffle_buffer == 0)
    for cut in (0, 1, 5, 12, 16, 17):
        first = batches()
        before = list(itertools.islice(first, cut))
        second = batches()
        second.load_state_dict(first.state_dict())
        after = list(second)
        assert [batch.first_row for batch in before + after] == [batch.first_row for batch in whole]
        for found, expected in zip(before + after, whole, strict=True):
            assert torch.equal(found["hook_embed"], expected["hook_embed"])
            assert torch.equal(found.sequence, expected.sequence) and torch.equal(found.position, expected.position)
            torch.testing.assert_close(found[POST], expected[POST], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def capped(server, tmp_path_factory):
    """Starts a server whose batches have five sequences, and whose captures end within a batch."""
    path = tmp_path_factory.mktemp("capped") / "tokens.bin"
    server.ids.astype("<u2").tofile(path)
    limits = ["--max-rows", "333", "--max-batch-tokens", str(5 * LENGTH + 3)]
    started = Server(arguments=[*limits, "--dataset", f"stream={path}:uint16"])
    yield started
    started.kill()


def cut_and_whole(make, batches, cuts):
    """Yields for each of `cuts` the batches of two providers, of which the second takes over there, and those
    of one alone."""
    whole = list(itertools.islice(make(), batches))
    for cut in cuts:
        first, second = make(), make()
        before = list(itertools.islice(first, cut))
        second.load_state_dict(first.state_dict())
        yield before + list(itertools.islice(second, batches - cut)), whole
        first.close()
        second.close()


@pytest.mark.parametrize("budget", [None, 500])
@pytest.mark.parametrize("kind", ["shuffled", "in_order", "ids"])
def test_deterministic_rows_are_those_of_the_undisturbed_run_in_every_bit(capped, server, kind, budget):
    dataset = hookline.Dataset("stream", LENGTH, shuffle_seed=7 if kind == "shuffled" else None)
    source = server.ids[:9] if kind == "ids" else dataset  # ids after the cap would run in other batches
    with hookline.connect(capped.address) as client:

        def provider():
            options = {"batch_size": 70, "shuffle_buffer": 150, "store_batch_size_prompts": 3, "deterministic": True}
            return hookline.sae_lens.data_provider(client, RESID, source, max_activations=budget, **options)

        for found, whole in cut_and_whole(provider, 25, (3, 9, 18, 24)):
            assert len(found) == 25 and all(map(torch.equal, found, whole))


def test_another_size_of_batches_ends_a_deterministic_run(capped, client):
    def provider(connected):
        source = hookline.Dataset("stream", LENGTH)
        options = {"batch_size": 70, "shuffle_buffer": 0, "store_batch_size_prompts": 6, "deterministic": True}
        return hookline.sae_lens.data_provider(connected, RESID, source, **options)

    with hookline.connect(capped.address) as small:
        begun, other = provider(small), provider(client)
        for _ in range(6):
            next(begun)
        other.load_state_dict(begun.state_dict())
        with pytest.raises(ValueError, match="64 sequences in a batch .*one that runs 5"):
            for _ in range(6):
                next(other)
        begun.close()


@pytest.mark.parametrize("kind", ["dataset", "ids"])
def test_sampled_rows_are_those_of_the_undisturbed_run(client, server, kind):
    source = server.ids if kind == "ids" else SHUFFLED

    def provider():
        selection = hookline.Selection(sample_rows=5, seed=3)
        options = {"batch_size": 20, "shuffle_buffer": 60, "store_batch_size_prompts": 3, "selection": selection}
        return hookline.sae_lens.data_provider(client, "hook_embed", source, **options)

    for found, whole in cut_and_whole(provider, 30, (1, 7, 16, 29)):
        assert all(map(torch.equal, found, whole))
