"""Tests that `hookline.sae_lens.data_provider` gives the batches of SAELens's ActivationsStore, row by row, which
fixtures/sae_lens_batches/make_batches.py has recorded."""

import json
import pathlib

import numpy as np
import pytest
import torch
from real_server_test import Server

import hookline

EMBED = "hook_embed"  # rows here do not depend on the batch that computes them
RECORDED = json.loads(
    (pathlib.Path(__file__).resolve().parent.parent / "fixtures/sae_lens_batches/expected.json").read_text()
)
CONTEXT = RECORDED["context_size"]
EXCLUDED = 255  # stands for the tokens that the store left out


@pytest.fixture(scope="module")
def server():
    started = Server()
    yield started
    started.kill()


def name_of(case):
    options = case["options"]
    return "-".join(str(options[name]) for name in ("mix", "slice", "exclude", "normalize", "prompts"))


@pytest.mark.parametrize("case", RECORDED["cases"], ids=name_of)
def test_batches_are_those_of_the_store(server, receiver, case):
    options = case["options"]
    ids = np.random.default_rng(0).integers(0, EXCLUDED, (RECORDED["sequences"], CONTEXT))
    for every, position in options["exclude"] or ():
        ids[::every, position] = EXCLUDED
    kept = len(range(CONTEXT)[slice(*options["slice"])])
    client = hookline.connect(server.address, receiver=receiver)
    provider = hookline.sae_lens.data_provider(
        client,
        EMBED,
        ids,
        batch_size=RECORDED["batch_rows"],
        shuffle_buffer=RECORDED["buffer_sequences"] * kept,
        mix_fraction=options["mix"],
        store_batch_size_prompts=options["prompts"],
        context_size=CONTEXT,
        seqpos_slice=options["slice"],
        exclude_special_tokens=[EXCLUDED] if options["exclude"] else None,
        seed=RECORDED["seed"],
    )
    rows = torch.cat([batch[EMBED] for batch in client.capture(EMBED, ids)])
    assert len(case["batches"]) == 32
    for numbers in case["batches"]:
        assert torch.equal(next(provider), rows[numbers])
    provider.close()
    client.close()
