"""Tests the collector: it is used like one with hooks on a local model, and holds each row once."""

import json
import resource
import warnings
import zipfile

import numpy as np
import pytest
import torch
from fake_server import WIDTHS, expected
from torch.utils.data import DataLoader, TensorDataset

import hookline

pytestmark = pytest.mark.usefixtures("receiver")

RESID = "blocks.0.hook_resid_post"
POST = "blocks.1.mlp.hook_post"
TOKENS = torch.arange(96).reshape(12, 8)


@pytest.fixture
def model(fake):
    return hookline.connect(fake().address).model()


def check(activations, budget=96):
    for name in (RESID, POST):
        np.testing.assert_array_equal(activations[name].numpy(), expected(name, TOKENS.tolist())[:budget])


def test_it_is_used_like_one_on_a_local_model(model):
    model.eval()
    with (
        torch.no_grad(),
        hookline.ActivationCollector(model, hook_points=[RESID, POST], max_activations=50) as collector,
    ):
        for batch in DataLoader(TensorDataset(TOKENS, TOKENS + 1), batch_size=5):
            if all(collector.counts[name] >= 50 for name in collector.hook_points):
                break
            batch = [x.to(model.get_device()) for x in batch]
            model(*batch)
    assert collector.counts == {RESID: 50, POST: 50}
    check(collector.get_activations(), 50)
    assert list(collector.get_activations(POST)) == [POST]
    assert torch.equal(collector.activations[RESID][0], collector.get_activations()[RESID])
    with pytest.raises(ValueError, match="Unknown hook point: x"):
        collector.get_activations("x")


@pytest.mark.parametrize(
    "batches",
    [
        [TOKENS[:5], TOKENS[5:]],
        [(TOKENS[:5], TOKENS[:5]), (TOKENS[5:], TOKENS[5:])],
        [[TOKENS, TOKENS]],
        [{"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}],
        [{"idx": TOKENS, "targets": TOKENS}],
        TOKENS.tolist(),
    ],
    ids=["tensors", "tuples", "list", "input_ids", "idx", "ids"],
)
def test_batches_come_in_the_forms_of_data_loaders(model, batches):
    activations = hookline.collect_activations_from_dataloader(model, batches, [RESID, POST], verbose=False)
    check(activations)


@pytest.mark.parametrize("budget", [1, 39, 40, 41, 95, 96, 97])
def test_budgets_are_exact_and_reading_stops_there(model, budget):
    read = []

    def loader():
        for batch in TOKENS.split(5):
            read.append(batch)
            yield batch

    activations = hookline.collect_activations_from_dataloader(
        model, loader(), [RESID, POST], max_activations=budget, verbose=False
    )
    assert len(activations[RESID]) == min(budget, 96)
    check(activations, budget)
    assert len(read) == min(3, -(-budget // 40))


def test_counts_are_there_at_once_and_rows_can_be_read_in_between(model):
    with hookline.ActivationCollector(model, [RESID], max_activations=70) as collector:
        model(TOKENS[:2])
        assert collector.counts == {RESID: 16}
        first = collector.get_activations()[RESID]
        assert first.shape == (16, 8)
        model(TOKENS[2:12])
        assert collector.counts == {RESID: 70}
        assert collector.is_full
    np.testing.assert_array_equal(collector.get_activations()[RESID].numpy(), expected(RESID, TOKENS.tolist())[:70])
    np.testing.assert_array_equal(first.numpy(), expected(RESID, TOKENS.tolist())[:16])


def test_clear_forgets_and_starts_anew(model):
    with hookline.ActivationCollector(model, [RESID], max_activations=50) as collector:
        model(TOKENS[6:])
        collector.clear()
        assert collector.counts == {RESID: 0}
        assert len(collector.get_activations()[RESID]) == 0
        model(TOKENS[:4])
    np.testing.assert_array_equal(collector.get_activations()[RESID].numpy(), expected(RESID, TOKENS[:4].tolist()))


def test_two_collectors_may_listen_to_one_model(model):
    with hookline.ActivationCollector(model, [RESID]) as one, hookline.ActivationCollector(model, [POST]) as other:
        model(TOKENS)
    check({**one.get_activations(), **other.get_activations()})


def test_a_bfloat16_collector_holds_bfloat16(model):
    rows = hookline.collect_activations_from_dataloader(model, [TOKENS], [RESID], dtype=torch.bfloat16, verbose=False)
    assert rows[RESID].dtype == torch.bfloat16
    np.testing.assert_array_equal(rows[RESID].float().numpy(), expected(RESID, TOKENS.tolist()))


def test_a_tensor_may_be_filled_anew_after_the_call(model):
    tokens = TOKENS.clone()
    with hookline.ActivationCollector(model, [RESID, POST]) as collector:
        model(tokens)
        tokens.zero_()
    check(collector.get_activations())


def test_saved_files_give_back_the_exact_names(model, tmp_path, capsys):
    hookline.collect_activations_from_dataloader(model, [TOKENS], [RESID, POST], save_path=tmp_path, verbose=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "blocks_0_hook_resid_post.pt",
        "blocks_1_mlp_hook_post.pt",
    ]
    assert "Saved 96 activations for blocks.0.hook_resid_post" in capsys.readouterr().out
    loaded = hookline.ActivationCollector.load_activations(tmp_path)
    assert list(loaded) == [RESID, POST]
    check(loaded)
    check(hookline.ActivationCollector.load_activations(tmp_path, [POST, RESID]))
    assert hookline.ActivationCollector.load_activations(tmp_path, ["other"]) == {}
    assert "file not found" in capsys.readouterr().out
    with pytest.raises(ValueError, match="does not exist"):
        hookline.ActivationCollector.load_activations(tmp_path / "nowhere")


def test_saved_files_are_plain_torch_files_with_only_the_rows(model, tmp_path):
    collector = hookline.ActivationCollector(model, [RESID], max_activations=1_000_000, save_path=tmp_path)
    with collector:
        model(TOKENS)
    collector.save_activations()
    path = tmp_path / "blocks_0_hook_resid_post.pt"
    assert torch.load(path, weights_only=True).shape == (96, 8)
    assert path.stat().st_size < 96 * 8 * 4 + 4096
    with zipfile.ZipFile(path) as archive:
        assert json.loads(archive.read(archive.namelist()[-1])) == {"hook_point": RESID, "shape": [96, 8]}


def test_names_that_share_a_file_name_are_kept_apart(tmp_path):
    from hookline import _saving

    rows = {"a.b_c": torch.ones(1, 2), "a_b.c": torch.zeros(1, 2)}
    _saving.save(tmp_path, rows)
    loaded = hookline.ActivationCollector.load_activations(tmp_path)
    assert {name: rows.tolist() for name, rows in loaded.items()} == {n: r.tolist() for n, r in rows.items()}


@pytest.mark.parametrize(
    "name",
    [
        "blocks.11.hook_resid_pre",
        "blocks.3.attn.hook_rot_q",
        "ln_final.hook_normalized",
        "hook_embed",
        "blocks.0.ln1.hook_normalized",
        "blocks.0.hook_attn",
    ],
)
def test_files_of_the_original_collector_load_under_their_names(tmp_path, name):
    torch.save(torch.ones(3, 2), tmp_path / (name.replace(".", "_") + ".pt"))
    assert list(hookline.ActivationCollector.load_activations(tmp_path)) == [name]
    assert list(hookline.ActivationCollector.load_activations(tmp_path, [name])) == [name]


def test_files_with_code_in_them_are_refused(tmp_path):
    class Code:
        def __reduce__(self):
            return print, ("code ran",)

    torch.save(Code(), tmp_path / "hook_embed.pt")
    with pytest.raises(Exception, match="(?i)unsupported|weights"):
        hookline.ActivationCollector.load_activations(tmp_path)


def test_a_budget_costs_no_memory_before_rows_arrive(model):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = hookline.collect_activations_from_dataloader(
        model, [TOKENS], list(WIDTHS), max_activations=10_000_000, verbose=False
    )  # takes 1.9 GB of address space
    assert rows[RESID].shape == (96, 8)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_each_row_is_held_once():
    """Every part of the way from the store to the user is a view of the same memory."""
    from hookline._store import RowStore

    store = RowStore("x", 1000, 4, "float32", "cpu")
    block = store.block(10, 5)
    block.raw[:] = 7
    assert store.tensor(15)[10:].eq(7).all()
    assert store.tensor(15).data_ptr() == store.tensor(1000).data_ptr()


def test_rows_on_another_device_are_moved_in_order():
    from hookline._store import RowStore

    store = RowStore("x", 100_000, 64, "float32", "meta")
    assert store.tensor(60_000).shape == (60_000, 64)
    assert store.tensor(60_000) is store.tensor(60_000)
    assert store.tensor(90_000).device.type == "meta"
    assert store.tensor(0).device.type == "meta"


def test_a_budget_without_address_space_is_named(model):
    with pytest.raises(MemoryError, match="max_activations"):
        hookline.collect_activations_from_dataloader(model, [TOKENS], [RESID], 1 << 55, verbose=False)


@pytest.mark.parametrize("cap", [8, 20, 40, 95])
@pytest.mark.parametrize("budget", [50, 90, 1000])
def test_it_goes_on_behind_the_servers_cap(fake, cap, budget):
    model = hookline.connect(fake(cap=cap).address).model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batches in ([TOKENS], TOKENS.split(5), TOKENS.split(1)):
            rows = hookline.collect_activations_from_dataloader(model, batches, [RESID, POST], budget, verbose=False)
            check(rows, budget)


def test_a_sequence_of_more_rows_than_the_servers_cap_is_an_error(fake):
    model = hookline.connect(fake(cap=10).address).model()
    with hookline.ActivationCollector(model, [RESID]) as collector:
        model(TOKENS)
        with pytest.raises(ValueError, match="has 11 rows, more than the 10 that the server grants"):
            model([list(range(11))])
    assert len(collector.get_activations()[RESID]) == 96


def test_what_the_server_objects_to_is_raised(fake):
    import grpc

    server = fake()
    server.failure = (grpc.StatusCode.INVALID_ARGUMENT, 'hook_points[0]: no hook point "x"', ())
    model = hookline.connect(server.address).model()
    with pytest.raises(hookline.InvalidArgumentError, match="hook_points"):
        with hookline.ActivationCollector(model, ["x"]):
            model(TOKENS)


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_error_inside_the_block_leaves_at_once(fake, error):
    server = fake()
    server.release.clear()  # the rows of the calls never come
    model = hookline.connect(server.address).model()
    with pytest.raises(error):
        with hookline.ActivationCollector(model, [RESID]) as collector:
            model(TOKENS)
            raise error("mine")
    assert server.cancelled.wait(60)
    rows = collector.get_activations()[RESID]
    assert len(rows) == collector.counts[RESID] <= 96
    np.testing.assert_array_equal(rows.numpy().reshape(-1, 8), expected(RESID, TOKENS.tolist())[: len(rows)])
    server.release.set()
    collector.clear()
    with collector:
        model(TOKENS)
    np.testing.assert_array_equal(collector.get_activations()[RESID].numpy(), expected(RESID, TOKENS.tolist()))


def test_rows_that_came_before_a_failure_are_kept(fake):
    server = fake(chunk_rows=4)

    def alter(response):
        if (
            response.WhichOneof("kind") == "chunk"
            and response.chunk.first_row == 40
            and response.chunk.hook_point == POST
        ):
            response.chunk.width += 1
        return response

    server.alter = alter
    model = hookline.connect(server.address).model()
    with pytest.raises(hookline.InternalError):
        with hookline.ActivationCollector(model, [RESID, POST]) as collector:
            model(TOKENS)
    assert collector.counts == {RESID: 40, POST: 40}
    check(collector.get_activations(), 40)


@pytest.mark.parametrize(
    "bad, field",
    [([[1, 2], [3, 1000]], "sequences[1].ids[1]"), ([list(range(65))], "sequences[0]"), ([[1], []], None)],
    ids=["id", "length", "empty"],
)
def test_a_bad_call_costs_no_good_one(model, bad, field):
    with hookline.ActivationCollector(model, [RESID, POST]) as collector:
        model(TOKENS[:6])
        with pytest.raises(ValueError, match=r"call 2 of the model, row \d|batch\[1\]: is empty") as caught:
            model(bad)
        assert getattr(caught.value, "field", None) == field
        model(TOKENS[6:])
    check(collector.get_activations())


@pytest.mark.parametrize("names", [["blocks.0.hook_nope"], [RESID, "blocks.0.hook_nope"]])
def test_an_unknown_hook_point_is_raised_when_the_block_is_entered(model, names):
    collector = hookline.ActivationCollector(model, names)
    with pytest.raises(hookline.InvalidArgumentError, match="hook_nope"):
        with collector:
            pytest.fail("the block was entered")
    with pytest.raises(RuntimeError, match="ActivationCollector"):  # the collector does not listen
        model(TOKENS)


def test_calls_outside_a_collector_say_what_to_do(model):
    with pytest.raises(RuntimeError, match="ActivationCollector"):
        model(TOKENS)


def test_arguments_that_cannot_be_are_errors(model):
    with pytest.raises(ValueError, match="max_activations: 0"):
        hookline.ActivationCollector(model, [RESID], max_activations=0)
    with pytest.raises(TypeError, match="hook_points"):
        hookline.ActivationCollector(model, RESID)


def test_collection_goes_on_over_a_broken_connection(fake):
    model = hookline.connect(fake(breaks=[33, 50]).address).model()
    check(hookline.collect_activations_from_dataloader(model, TOKENS.split(2), [RESID, POST], verbose=False))
