"""Tests batches of token ids as they are read: padding is not sent, and ambiguous input is refused."""

import collections
import logging

import numpy as np
import pytest
import torch
from fake_server import expected
from torch.utils.data import DataLoader, TensorDataset

import hookline
from hookline import _token_ids

pytestmark = pytest.mark.usefixtures("receiver")

RESID = "blocks.0.hook_resid_post"
IDS = torch.tensor([[5, 6, 7, 0, 0], [1, 2, 3, 4, 8]])
RIGHT = torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
LEFT_IDS = torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 8]])
LEFT = torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
UNPADDED = [[5, 6, 7], [1, 2, 3, 4, 8]]


def rows_of(address, source):
    """Captures `source`. It may be a function that makes the source, for those that can be read only once."""
    with hookline.connect(address) as client:
        batches = list(client.capture(RESID, source() if callable(source) else source))
    return torch.cat([batch[RESID] for batch in batches]).numpy() if batches else np.empty((0, 8), np.float32)


def check(fake, source, sequences):
    np.testing.assert_array_equal(rows_of(fake().address, source), expected(RESID, sequences))


class BatchEncoding(dict):
    """Looks like transformers's: a dict with more methods."""


@pytest.mark.parametrize(
    "ids, mask",
    [
        (IDS, RIGHT),
        (LEFT_IDS, LEFT),
        (IDS.numpy(), RIGHT.numpy()),
        (IDS.tolist(), RIGHT.tolist()),
        (IDS, RIGHT.bool()),
        (LEFT_IDS, LEFT.float()),
        (IDS, RIGHT.tolist()),
    ],
    ids=["right", "left", "numpy", "lists", "bool", "float", "mixed"],
)
@pytest.mark.parametrize("key", ["input_ids", "idx", "tokens"])
def test_masked_tokens_are_not_sent(fake, ids, mask, key):
    for source in ([{key: ids, "attention_mask": mask}], BatchEncoding({key: ids, "attention_mask": mask})):
        check(fake, source, UNPADDED)


def test_one_text_with_its_mask_is_one_sequence(fake):
    check(fake, {"input_ids": [0, 0, 5, 6], "attention_mask": [0, 0, 1, 1]}, [[5, 6]])


def test_a_row_that_is_all_padding_is_no_sequence(fake):
    mask = torch.tensor([[0] * 5, [1] * 5])
    check(fake, [{"input_ids": IDS, "attention_mask": mask}], UNPADDED[1:])


def test_without_a_mask_ids_are_taken_as_they_are(fake):
    check(fake, [{"input_ids": IDS, "attention_mask": None}], IDS.tolist())
    check(fake, IDS, IDS.tolist())


def test_a_loader_of_padded_batches_sends_no_padding(fake):
    def collate(samples):
        width = max(map(len, samples))
        return {
            "input_ids": torch.tensor([s + [0] * (width - len(s)) for s in samples]),
            "attention_mask": torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in samples]),
        }

    sequences = [list(range(i, i + 1 + i % 4)) for i in range(1, 12)]
    check(fake, DataLoader(sequences, batch_size=3, collate_fn=collate), sequences)


def test_a_model_called_with_a_padded_batch_collects_no_padding(fake):
    model = hookline.connect(fake().address).model()
    calls = [
        lambda: model(**{"input_ids": IDS, "attention_mask": RIGHT, "labels": IDS}),
        lambda: model(input_ids=LEFT_IDS, attention_mask=LEFT),
        lambda: model(IDS, attention_mask=RIGHT),
        lambda: model({"input_ids": IDS}, attention_mask=RIGHT),
        lambda: model({"tokens": IDS, "attention_mask": RIGHT}),
    ]
    for call in calls:
        with hookline.ActivationCollector(model, [RESID]) as collector:
            call()
        assert collector.counts == {RESID: 8}
        np.testing.assert_array_equal(collector.get_activations()[RESID].numpy(), expected(RESID, UNPADDED))


@pytest.mark.parametrize(
    "mask, message",
    [
        ([[1, 0, 1, 0, 0], [1] * 5], r"\[0\]: masks position 1 between"),
        ([[1, 1, 1, 0, 0]], "1 rows beside 2 sequences"),
        (RIGHT[:, :4], r"has shape \(4,\) for 5 token ids"),
        (RIGHT.reshape(2, 1, 5), r"has shape \(2, 1, 5\)"),
        ([[1, 1, 2, 2, 0], [1] * 5], "values other than 0 and 1"),
        (torch.tensor([[0.0, 0.0, 0.0, -1e9, -1e9], [0.0] * 5]), "values other than 0 and 1"),
    ],
    ids=["hole", "rows", "columns", "dimensions", "packed", "additive"],
)
def test_masks_that_are_not_padding_are_refused_by_name(fake, mask, message):
    with pytest.raises(ValueError, match="batch 0 of the source.attention_mask.*" + message):
        rows_of(fake().address, [{"input_ids": IDS, "attention_mask": mask}])


def test_a_mask_whose_place_is_not_said_is_refused(fake):
    with pytest.raises(ValueError, match="looks like an attention_mask"):
        rows_of(fake().address, DataLoader(TensorDataset(IDS, RIGHT), batch_size=2))
    check(fake, DataLoader(TensorDataset(IDS, torch.ones_like(IDS)), batch_size=2), IDS.tolist())


def test_requests_that_hold_their_source_hold_no_padding(fake):
    from hookline._request import capture_options

    batch = {"input_ids": LEFT_IDS, "attention_mask": LEFT}
    for source in (batch, [batch]):
        message = capture_options(RESID, source).whole_message()
        assert [list(sequence.ids) for sequence in message.tokens.sequences] == UNPADDED


def test_workers_share_a_padded_source_without_its_padding(fake):
    client = hookline.connect(fake().address)
    parts = [hookline.torch.shard(client, [{"input_ids": IDS, "attention_mask": RIGHT}], i, 2) for i in range(2)]
    assert [np.asarray(ids).tolist() for part in parts for ids in part] == UNPADDED


def test_transposed_lists_of_default_collate_are_refused(fake):
    address = fake().address
    columns = DataLoader([{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5, 6]}], batch_size=2)
    lists = DataLoader([[1, 2, 3], [4, 5, 6]], batch_size=2)
    for source in (columns, [next(iter(columns))], next(iter(columns)), lists):
        with pytest.raises(TypeError, match="default_collate.*dim=1"):
            rows_of(address, source)
    model = hookline.connect(address).model()
    with hookline.ActivationCollector(model, [RESID]), pytest.raises(TypeError, match="default_collate"):
        model(next(iter(lists)))
    turned = torch.stack(next(iter(lists)), dim=1)
    np.testing.assert_array_equal(rows_of(address, turned), expected(RESID, [[1, 2, 3], [4, 5, 6]]))


def test_a_sequence_beside_its_targets_is_not_taken_for_two(fake):
    address = fake().address
    x = torch.arange(10)
    loader = DataLoader(TensorDataset(x.reshape(2, 5), x.reshape(2, 5) + 1), batch_size=None)
    triple = (x.tolist(), [1] * 10, x.tolist())
    for source in (iter([(x, x + 1)]), iter([(x, x[1:])]), iter([triple]), iter([(x, x, 3)]), loader, (x, x + 1)):
        with pytest.raises(TypeError, match="a sequence with its targets"):
            rows_of(address, source)
    np.testing.assert_array_equal(rows_of(address, iter([(x, torch.tensor(3))])), expected(RESID, [x.tolist()]))


def test_a_batch_with_its_targets_is_one_also_where_it_is_the_whole_source(fake):
    labels = torch.tensor([3, 4])
    padded = {"input_ids": IDS, "attention_mask": RIGHT}
    for source in ((padded, labels), [padded, labels], next(iter(DataLoader([(padded, 1)], batch_size=None)))):
        check(fake, source, UNPADDED)
    check(fake, [IDS, labels], IDS.tolist())
    check(fake, [IDS, LEFT_IDS], IDS.tolist() + LEFT_IDS.tolist())  # two batches
    following = torch.arange(40).reshape(4, 10)
    for source in ((IDS, LEFT_IDS), [IDS, RIGHT], [following, following + 1], [following, following + 1, RIGHT]):
        with pytest.raises(TypeError, match=r"can be batches, or a batch with its targets and mask.*source\[0\]"):
            rows_of(fake().address, source)


def test_samples_that_no_loader_has_collated_are_all_taken(fake):
    samples = [{"input_ids": [0, 5, 6, 7], "attention_mask": [0, 1, 1, 1]}, {"input_ids": torch.tensor([[1, 2]])}]
    check(fake, DataLoader(samples, batch_size=2, collate_fn=list), [[5, 6, 7], [1, 2]])
    check(fake, samples, [[5, 6, 7], [1, 2]])
    model = hookline.connect(fake().address).model()
    with hookline.ActivationCollector(model, [RESID]) as collector:
        model(samples)
    assert collector.counts == {RESID: 5}
    for batch in (tuple(samples), [{"input_ids": IDS}, {"input_ids": IDS}]):
        with pytest.raises(TypeError, match="2 dicts with token ids can be samples, or inputs with their targets"):
            rows_of(fake().address, iter([batch]))


def test_parts_by_name_are_read_wherever_they_have_names(fake):
    Batch = collections.namedtuple("Batch", "attention_mask input_ids")

    class Table:
        """Stands for pyarrow's, which NumPy would read as one array of all columns."""

        def to_pydict(self):
            return {"attention_mask": RIGHT.tolist(), "input_ids": IDS.tolist()}

    for batch in (Batch(RIGHT, IDS), Table()):
        check(fake, batch, UNPADDED)
        check(fake, iter([batch]), UNPADDED)
    columns = np.empty((1, 2), object)
    columns[0] = [[1, 2], [1, 1]]
    with pytest.raises(TypeError, match="a table of 2 columns"):
        rows_of(fake().address, iter([columns]))


@pytest.mark.parametrize(
    "source, sequences",
    [
        ([torch.tensor([1, 2]), torch.tensor([3, 4])], [[1, 2], [3, 4]]),
        (lambda: iter([([1, 2, 3], 1)]), [[1, 2, 3]]),
        (lambda: iter([(torch.tensor([1, 2, 3]), None, "a")]), [[1, 2, 3]]),
        (lambda: iter([[torch.tensor([1, 2, 3]), torch.tensor([4])]]), [[1, 2, 3], [4]]),
        (lambda: iter([[np.array([1, 2]), np.array([3, 4])]]), [[1, 2], [3, 4]]),
        (lambda: iter([[torch.tensor(1), torch.tensor(2)]]), [[1, 2]]),
        (lambda: iter([torch.empty(0, 4, dtype=torch.long), torch.tensor([[1, 2]])]), [[1, 2]]),
        (np.array([[1, 2], [3]], dtype=object), [[1, 2], [3]]),
        ({"tokens": [[1, 2], [3]]}, [[1, 2], [3]]),
    ],
    ids=["tensors", "label", "nothing", "ragged", "arrays", "scalars", "no rows", "objects", "tokens"],
)
def test_other_forms_are_taken_for_what_they_are(fake, source, sequences):
    check(fake, source, sequences)


def test_nested_tensors_are_their_components(fake):
    nested = torch.nested.nested_tensor([torch.tensor([1, 2, 3]), torch.tensor([4])])
    check(fake, iter([{"input_ids": nested}]), [[1, 2, 3], [4]])
    check(fake, nested, [[1, 2, 3], [4]])


@pytest.mark.parametrize(
    "source, message",
    [
        ([[1, 2], []], r"source\[1\]: is empty.*leave out"),
        (lambda: iter([[[1, 2]], [[3], []]]), r"batch 1 of the source\[1\]: is empty"),
        (torch.empty(2, 0, dtype=torch.long), r"\(2, 0\), but a sequence has at least one token"),
        (torch.tensor([[1, 2]]).to_sparse(), "to_dense"),
        (np.ma.masked_array([[1, 2]], [[0, 1]]), "attention_mask"),
        (torch.ones(1, 2, 3, dtype=torch.long), "one or two dimensions, not 3"),
        (["a", "b"], "tokenize"),
        ({"tokens": ["the", "cat"]}, "tokenize"),
        ({"labels": [1]}, "input_ids, idx, tokens.*labels"),
        (lambda: iter([[[[1, 2]], [[3], [4, 5]]]]), "other lengths"),
        (lambda: iter([[torch.tensor([[1, 2]]), torch.tensor([[3, 4], [5, 6]])]]), "other lengths"),
        (torch.tensor([[True, False]]), "not bool"),
        (np.array([[1, 2**40]]), r"source\[0:\]\[0, 1\]: 1099511627776 is not a token id"),
    ],
)
def test_what_cannot_be_a_sequence_is_refused_with_the_cure(fake, source, message):
    with pytest.raises((TypeError, ValueError), match=message):
        rows_of(fake().address, source)


def test_what_is_left_out_is_logged_once(fake, caplog, monkeypatch):
    monkeypatch.setattr(_token_ids, "_told", set())
    batch = {"input_ids": IDS, "labels": IDS, "position_ids": IDS}
    with caplog.at_level(logging.WARNING, "hookline"):
        check(fake, [batch, batch], IDS.tolist() * 2)
        check(fake, [batch], IDS.tolist())
    assert [record.getMessage().partition("left out: ")[2] for record in caplog.records] == ["labels, position_ids"]


def test_sequences_that_do_not_begin_with_bos_are_said_once(fake, caplog, monkeypatch):
    monkeypatch.setattr(_token_ids, "_told", set())
    address = fake(datasets={"d": [[1, 2], [3, 4]]}).address
    with caplog.at_level(logging.WARNING, "hookline"):
        rows_of(address, [[256, i] for i in range(100)])  # all begin with the same id
        rows_of(address, [[i, i] for i in range(10)])  # too few to conclude that the first id is padding or BOS
        rows_of(address, hookline.Dataset("d", prepend_token_id=256, sequence_length=2))
        assert not caplog.records
        rows_of(address, [[i, i] for i in range(100)])
        rows_of(address, ([[i, i]] for i in range(100)))
        assert ["token ids sent" in record.getMessage() for record in caplog.records] == [True]
        rows_of(address, hookline.Dataset("d", 2))
    assert "dataset 'd' cut at 2 tokens" in caplog.records[1].getMessage()
    assert "prepend_token_id" in caplog.records[1].getMessage()
