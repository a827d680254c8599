"""Tests one client over several server processes of the demo model. HOOKLINE_SERVER_PROGRAM names the program."""

import os
import signal

import numpy as np
import pytest
import torch
from server_processes import DEMO, ServerProcess

import hookline
from hookline.many import Sharing

PROGRAM = os.environ.get("HOOKLINE_SERVER_PROGRAM", "")

assert os.path.exists(PROGRAM), "HOOKLINE_SERVER_PROGRAM must name hookline-server; ctest sets it"

pytestmark = pytest.mark.usefixtures("receiver")

RESID, POST = "blocks.1.hook_resid_post", "blocks.0.mlp.hook_post"
RETRY = hookline.Retry(attempts=60, max_seconds=1)
BATCH_TOKENS = 512  # small, so that a short source has many deterministic batches


@pytest.fixture(scope="module")
def servers():
    started = [ServerProcess(PROGRAM, ["--max-batch-tokens", str(BATCH_TOKENS)]) for _ in range(2)]
    for server in started:
        server.wait()
    yield started
    for server in started:
        server.send(signal.SIGCONT)
        server.end()


@pytest.fixture(scope="module")
def table():
    return np.load(os.path.join(DEMO, "tokens.npy")).astype(np.int64)[: 100 * 32].reshape(100, 32)


def connect(servers, **sharing):
    settled = Sharing(**{"block_tokens": 512, "silence_seconds": 0.5, "answer_seconds": 2, **sharing})
    return hookline.connect([server.address for server in servers], sharing=settled)


def read(client, source, **options):
    with client.capture([RESID, POST], source, provenance=True, output="torch", retry=RETRY, **options) as running:
        batches = list(running)
    rows = {name: torch.cat([batch[name] for batch in batches if name in batch]) for name in (RESID, POST)}
    columns = [torch.cat([getattr(b, name) for b in batches]) for name in ("sequence", "position", "token_id")]
    return rows, columns, running.summary


def check_same(found, reference, exact=False):
    for name in (RESID, POST):
        tolerance = dict(rtol=0, atol=0) if exact else dict(rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found[0][name], reference[0][name], **tolerance)
        assert found[2].hook_points[name].rows == len(reference[0][name])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found[1], reference[1]))
    assert found[2].stop_reason == reference[2].stop_reason


@pytest.mark.parametrize(
    "options",
    [
        dict(max_activations=1501, max_activations_by_hook_point={POST: 333}, batch_rows=256),
        dict(selection=hookline.Selection(skip_first=1, sample_rows=7, seed=3, exclude_token_ids=[32])),
    ],
    ids=["budgets", "sampled"],
)
def test_rows_are_those_of_one_server(servers, table, options):
    dataset = hookline.Dataset("text", 32, sequence_count=50, epochs=2, skip_sequences=7, shuffle_seed=5)
    with hookline.connect(servers[0].address) as one, connect(servers) as many:
        for source in (table, dataset):
            found, reference = read(many, source, **options), read(one, source, **options)
            check_same(found, reference)
            if source is table:
                assert found[2].batches > 2


def test_deterministic_rows_are_those_of_one_server_to_the_bit(servers, table):
    dataset = hookline.Dataset("text", 31, sequence_count=90, prepend_token_id=256)
    lists = [table[:9], table[9:60], table[60:]]
    with hookline.connect(servers[0].address) as one, connect(servers, block_tokens=1100) as many:
        for source in (dataset, lists):
            with many.capture(RESID, source, deterministic=True) as running:
                assert running.started.batch_tokens == BATCH_TOKENS  # otherwise a dataset would be one block
            found, reference = read(many, source, deterministic=True), read(one, source, deterministic=True)
            check_same(found, reference, exact=True)
            assert found[2].batches == reference[2].batches


@pytest.mark.parametrize("event", ["kill", "stop", "drain"])
def test_a_server_that_ends_in_the_middle_costs_no_row(servers, table, event):
    victim = servers[1]
    source = np.tile(table, (4, 1))

    def stream():
        for index in range(0, len(source), 10):
            yield source[index : index + 10]
            if index == 100:
                victim.send({"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "drain": signal.SIGTERM}[event])

    with hookline.connect(servers[0].address) as one, connect(servers) as many:
        found = read(many, stream())
        check_same(found, read(one, source))
    if event == "stop":
        victim.send(signal.SIGCONT)
    else:
        victim.end()
        victim.start()
    victim.wait()
