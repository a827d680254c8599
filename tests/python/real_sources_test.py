"""Tests padding, caps and errors about token ids, with the server itself on the trained demo model."""

import itertools

import numpy as np
import pytest
import torch
from server_process import RESID, Server

import hookline

pytestmark = pytest.mark.usefixtures("receiver")

CAP = 1000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    tokens = np.random.default_rng(0).integers(0, 256, 4096).astype("<u2")
    path = tmp_path_factory.mktemp("tokens") / "part-0.bin"
    tokens.tofile(path)
    started = Server(
        arguments=[
            *("--max-rows", str(CAP)),
            *("--dataset", f"stream={path}:uint16"),
            *("--recordings-dir", str(tmp_path_factory.mktemp("recordings"))),
        ]
    )
    started.tokens = tokens.astype(np.int64)
    yield started
    started.kill()


def rows_of(client, source, **options):
    return torch.cat([batch[RESID] for batch in client.capture(RESID, source, **options)])


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_of_a_padded_batch_are_those_of_the_unpadded_sequences(client, server, side):
    sequences = [server.tokens[start : start + length] for start, length in ((0, 3), (100, 40), (200, 17), (300, 1))]
    ids = np.full((4, 40), 32)
    mask = np.zeros((4, 40), np.int64)
    for row, sequence in enumerate(sequences):
        places = slice(0, len(sequence)) if side == "right" else slice(40 - len(sequence), 40)
        ids[row, places], mask[row, places] = sequence, 1
    batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    rows = rows_of(client, [batch])
    torch.testing.assert_close(rows, rows_of(client, [ids.tolist() for ids in sequences]), rtol=1e-4, atol=1e-4)
    model = client.model()
    with hookline.ActivationCollector(model, [RESID], max_activations=CAP) as collector:
        model(**batch)
    torch.testing.assert_close(collector.get_activations()[RESID], rows, rtol=1e-4, atol=1e-4)


SELECTIONS = {
    "all": None,
    "positions": hookline.Selection(skip_first=2, position_stride=3),
    "excluded": hookline.Selection(skip_first=1, exclude_token_ids=np.arange(50)),
}


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("form", ["dataset", "array", "batches"])
def test_a_pass_covers_every_row_behind_the_cap(client, server, selection, form):
    ids = server.tokens.reshape(32, 128)
    source = {
        "dataset": lambda: hookline.Dataset("stream", 128),
        "array": lambda: ids,
        "batches": lambda: (ids[i : i + 5] for i in range(0, 32, 5)),
    }[form]()
    chosen = SELECTIONS[selection]
    options = {"selection": chosen, "batch_rows": 100, "provenance": True}
    dataset = hookline.torch.ActivationDataset(server.address, RESID, source, **options)
    batches = list(dataset)
    kept = [(s, p) for s in range(32) for p in range(128)]
    if selection == "positions":
        kept = [(s, p) for s, p in kept if p >= 2 and (p - 2) % 3 == 0]
    if selection == "excluded":
        kept = [(s, p) for s, p in kept if p >= 1 and ids[s, p] >= 50]
    came = [(s, p) for b in batches for s, p in zip(b.sequence.tolist(), b.position.tolist())]
    assert came == kept
    assert [t for b in batches for t in b.token_id.tolist()] == [ids[place] for place in kept]
    expected = torch.cat([rows_of(client, ids[i : i + 4], selection=chosen) for i in range(0, 32, 4)])
    torch.testing.assert_close(torch.cat([b[RESID] for b in batches]), expected, rtol=1e-4, atol=1e-4)


def test_a_sampling_pass_goes_on_behind_the_cap(server):
    selection = hookline.Selection(sample_rows=70, seed=3)
    for source in (hookline.Dataset("stream", 128), server.tokens.reshape(32, 128)):
        dataset = hookline.torch.ActivationDataset(
            server.address, RESID, source, selection=selection, batch_rows=100, provenance=True
        )
        places = [(s, p) for b in dataset for s, p in zip(b.sequence.tolist(), b.position.tolist())]
        assert len(set(places)) == len(places)
        # If the client sends its own tokens, the sequence that the cap cuts is not sampled again, and its rows may
        # be missing.
        least = 32 * 70 if isinstance(source, hookline.Dataset) else 32 * 70 - 2 * 70
        assert least <= len(places) <= 32 * 70
        assert {s for s, _ in places} == set(range(32))


def test_a_provider_never_cycles_over_the_first_rows(client, server):
    provider = hookline.sae_lens.data_provider(
        client, RESID, hookline.Dataset("stream", 128), batch_size=500, shuffle_buffer=0
    )
    rows = torch.cat(list(itertools.islice(provider, 8)))
    ids = server.tokens.reshape(32, 128)
    expected = torch.cat([rows_of(client, ids[i : i + 4]) for i in range(0, 32, 4)])[:4000]
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-4)


def test_a_provider_over_a_feed_says_that_the_cap_ends_it(client):
    feed = hookline.Feed("capped", hookline.Dataset("stream", 128))
    provider = hookline.sae_lens.data_provider(client, RESID, feed, batch_size=500, shuffle_buffer=0)
    with pytest.warns(UserWarning, match="cap of 1000 rows"):
        with pytest.raises(ValueError, match="a feed cannot be continued"):
            list(itertools.islice(provider, 8))


@pytest.mark.parametrize("bad, what", [([1, 999, 3], "token id 999"), ([1] * 5000, "5000 tokens are more")])
def test_a_bad_sequence_late_in_a_source_is_named_by_its_place(client, bad, what):
    sequences = [[1, 2, 3]] * 40_000
    sequences[30_000] = bad
    selection = hookline.Selection(position_stride=3, sample_rows=1, exclude_token_ids=[1])  # too few rows for the cap
    with pytest.raises(hookline.InvalidArgumentError, match=f"row 30000 of the source.*{what}"):
        rows_of(client, sequences, selection=selection)
    batches = (sequences[i : i + 64] for i in range(0, 40_000, 64))
    with pytest.raises(hookline.InvalidArgumentError, match=f"batch 468 of the source, row 48.*{what}"):
        rows_of(client, batches, selection=selection)


def test_persist_and_estimate_say_what_is_wrong_and_where(client):
    with pytest.raises(hookline.InvalidArgumentError, match="nearest"):
        client.persist("a", "blocks.9.hook_typo", [[1, 2]])
    for call in (client.persist, lambda _, *arguments: client.estimate(*arguments)):
        with pytest.raises(hookline.InvalidArgumentError, match="row 1 of the source, position 1: token id 999"):
            call("b", RESID, [[1, 2], [3, 999]])


def test_excluded_ids_of_an_array_are_left_out(client):
    for ids in (np.array([0, 1]), torch.tensor([0, 1])):
        assert len(rows_of(client, [[0, 1, 2]], selection=hookline.Selection(exclude_token_ids=ids))) == 1


def test_the_cap_is_said(client):
    with pytest.warns(UserWarning, match="grants 1000 rows"):
        assert len(rows_of(client, [[1] * 128] * 40, max_activations=4000)) == CAP
    with pytest.warns(UserWarning, match="ended at the server's cap of 1000 rows"):
        assert len(rows_of(client, [[1] * 128] * 40)) == CAP
    with pytest.warns(UserWarning, match="grants 1000 rows"):
        assert client.statistics(RESID, hookline.Dataset("stream", 128), max_activations=4000)[RESID].rows == CAP
    with pytest.warns(UserWarning, match="ended at the server's cap of 1000 rows") as told:
        assert client.statistics(RESID, hookline.Dataset("stream", 128))[RESID].rows == CAP
    assert [warning.filename for warning in told] == [__file__]
    with pytest.warns(UserWarning, match="the recording ends at the server's cap of 1000 rows"):
        client.persist(f"capped-{client.receiver}", RESID, hookline.Dataset("stream", 128)).wait()
