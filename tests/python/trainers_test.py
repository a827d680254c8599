"""Tests the parts that trainers plug in: a torch dataset and SAELens's data provider."""

import pickle

import numpy as np
import pytest
import torch
from fake_server import expected
from torch.utils.data import DataLoader

import hookline
from hookline.torch import shard

pytestmark = pytest.mark.usefixtures("receiver")

RESID = "blocks.0.hook_resid_post"
POST = "blocks.1.mlp.hook_post"
SEQUENCES = [list(range(i, i + 10)) for i in range(20)]


def test_a_dataset_yields_a_captures_batches_in_every_pass(fake):
    dataset = hookline.torch.ActivationDataset(fake().address, [RESID, POST], SEQUENCES, batch_rows=64)
    for _ in range(2):
        batches = list(DataLoader(dataset, batch_size=None))
        assert [len(batch[RESID]) for batch in batches] == [64, 64, 64, 8]
        for name in (RESID, POST):
            np.testing.assert_array_equal(torch.cat([b[name] for b in batches]).numpy(), expected(name, SEQUENCES))
    assert dataset.summary.stop_reason == "source_ended"


def test_a_dataset_and_its_errors_can_cross_to_another_process(fake):
    dataset = hookline.torch.ActivationDataset(fake().address, RESID, torch.tensor(SEQUENCES), dtype="bfloat16")
    assert next(iter(pickle.loads(pickle.dumps(dataset))))[RESID].dtype == torch.bfloat16
    error = hookline.InvalidArgumentError("m", field="f")
    error.retry_after = 2.5
    again = pickle.loads(pickle.dumps(error))
    assert (again.message, again.field, again.code) == ("m", "f", "INVALID_ARGUMENT")
    assert again.retry_after == 2.5


def test_workers_share_a_source_without_overlap(fake):
    server = fake(datasets={"d": SEQUENCES})
    with hookline.connect(server.address) as client:
        parts = [shard(client, hookline.Dataset("d", 10, first_sequence=3, sequence_count=11), i, 4) for i in range(4)]
        covered = [n for part in parts for n in range(part.first_sequence, part.first_sequence + part.sequence_count)]
        assert covered == list(range(3, 14))
        parts = [shard(client, SEQUENCES, i, 3) for i in range(3)]
        assert sorted(ids for part in parts for ids in part) == SEQUENCES
        assert shard(client, SEQUENCES[:1], 1, 2) is None
        with pytest.raises(ValueError, match="2 workers"):
            shard(client, iter(SEQUENCES), 0, 2)


def test_spawned_workers_receive_their_parts(fake):
    dataset = hookline.torch.ActivationDataset(fake().address, RESID, SEQUENCES)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    rows = torch.cat([batch[RESID] for batch in loader]).numpy()
    in_order = expected(RESID, SEQUENCES)
    assert sorted(map(tuple, rows)) == sorted(map(tuple, in_order))


def test_a_data_provider_yields_full_batches_for_ever(fake):
    provider = hookline.sae_lens.data_provider(fake().address, RESID, SEQUENCES, batch_size=64, shuffle_buffer=100)
    batches = [next(provider) for _ in range(10)]  # three in a pass
    assert {tuple(batch.shape) for batch in batches} == {(64, 8)}
    first_pass, second_pass = torch.cat(batches[:3]), torch.cat(batches[3:6])
    assert not torch.equal(first_pass, second_pass)


def test_a_data_provider_may_end(fake):
    provider = hookline.sae_lens.data_provider(fake().address, RESID, iter(SEQUENCES), batch_size=64)
    assert len(list(provider)) == 3
    provider = hookline.sae_lens.data_provider(fake().address, RESID, SEQUENCES, batch_size=64, repeat=False)
    assert len(list(provider)) == 3


def test_a_source_smaller_than_a_batch_is_an_error_not_an_endless_loop(fake):
    with pytest.raises(ValueError, match="fewer rows than a batch, which has 64"):
        next(hookline.sae_lens.data_provider(fake().address, RESID, SEQUENCES[:2], batch_size=64))


def test_a_hook_name_of_sae_lens_is_a_hook_point_unless_it_means_two():
    for name in ("blocks.3.hook_resid_post", "blocks.3.attn.hook_z", "blocks.3.mlp.hook_in", "model.layers.3.mlp"):
        assert hookline.sae_lens.hook_point(name) == name
    ambiguous = "blocks.11.hook_mlp_in"
    scope = hookline.sae_lens.hook_point(ambiguous, release="gemma-scope-2-4b-pt-transcoders")
    assert scope == "blocks.11.ln2.hook_out"
    assert hookline.sae_lens.hook_point(ambiguous, release="another") == "blocks.11.hook_resid_mid"
    with pytest.raises(ValueError, match=r"blocks\.11\.ln2\.hook_out.*blocks\.11\.hook_resid_mid"):
        hookline.sae_lens.hook_point(ambiguous)


def as_sae_lens_mixes(buffer_rows, batch_rows, parts, fraction):
    """Mixes as SAELens 6.54's sae_lens.training.mixing_buffer does, step by step."""
    storage = None
    for part in parts:
        storage = part if storage is None else torch.cat([storage, part])
        if len(storage) >= buffer_rows:
            if fraction > 0:
                storage = storage[torch.randperm(len(storage))]
            keep = int(buffer_rows * fraction)
            cut = max(1, (len(storage) - keep) // batch_rows) * batch_rows
            serving, storage = storage[:cut], storage[cut:]
            yield from serving.split(batch_rows)
    yield from storage[: len(storage) // batch_rows * batch_rows].split(batch_rows)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_a_provider_mixes_as_sae_lens_does(fake, fraction):
    groups = [torch.from_numpy(expected(RESID, SEQUENCES[i : i + 3])) for i in range(0, 18, 3)]  # leaves two of 20 out
    torch.manual_seed(4)
    mixed = list(as_sae_lens_mixes(55, 16, groups * 3, fraction))
    provider = hookline.sae_lens.data_provider(
        fake().address,
        RESID,
        SEQUENCES,
        batch_size=16,
        shuffle_buffer=55,
        mix_fraction=fraction,
        store_batch_size_prompts=3,
        seed=4,
    )
    found = [next(provider) for _ in mixed[:-4]]  # the last four come from the loader's end
    assert len(found) > 20 and all(map(torch.equal, found, mixed))


def test_rows_of_excessive_norm_are_left_out(fake):
    rows = torch.from_numpy(expected(RESID, SEQUENCES))
    norms = rows.norm(dim=1)
    medians = 1.5
    assert 0 < (norms > medians * norms.median()).sum() < len(rows) // 2
    provider = hookline.sae_lens.data_provider(
        fake().address, RESID, SEQUENCES, batch_size=1, shuffle_buffer=0, repeat=False, max_norm_medians=medians
    )
    torch.testing.assert_close(torch.cat(list(provider)), rows[norms <= medians * norms.median()])


def test_settings_that_contradict_are_errors_of_the_call(fake):
    provider = hookline.sae_lens.data_provider
    for options, name in (
        ({"shuffle_buffer": 10}, "shuffle_buffer"),
        ({"mix_fraction": 1.5}, "mix_fraction"),
        ({"max_norm_medians": 0.5}, "max_norm_medians"),
        ({"exclude_special_tokens": True}, "exclude_special_tokens"),
        ({"seqpos_slice": (1, None)}, "context_size"),
        ({"seqpos_slice": (5, 2), "context_size": 10}, "seqpos_slice"),
        ({"exclude_special_tokens": [1], "selection": hookline.Selection(skip_first=1)}, "selection"),
        ({"top_k": 4}, "top_k"),
    ):
        with pytest.raises(ValueError, match=name):
            provider(fake().address, RESID, SEQUENCES, **{"batch_size": 64, **options})
