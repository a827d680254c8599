"""Tests texts, special tokens and the names of other tools, against the server itself on the trained demo model, whose
tokens are bytes. HOOKLINE_SERVER_PROGRAM names the program."""

import asyncio
import json
import os
import pickle
import re

import numpy as np
import pytest
from server_process import DEMO, POST, RESID, ROOT, Server

import hookline
import hookline.aio
import hookline.torch
from hookline import _protocol

pytestmark = pytest.mark.usefixtures("receiver")

TOKENIZERS = os.path.join(ROOT, "tests", "fixtures", "tokenizers")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = Server(arguments=["--recordings-dir", str(tmp_path_factory.mktemp("recordings"))])
    yield started
    started.kill()


@pytest.fixture
def client(server, receiver):
    with hookline.connect(server.address, receiver=receiver) as connected:
        yield connected


def rows_of(client, *arguments, **options):
    batches = list(client.capture(*arguments, output="numpy", **options))
    return np.concatenate([batch[RESID] for batch in batches])


def test_a_text_brings_the_rows_of_its_tokens(client):
    text = "The cat sat: Grüße 日本"
    expected = rows_of(client, RESID, [list(text.encode())])
    np.testing.assert_array_equal(rows_of(client, RESID, text=text), expected)
    np.testing.assert_array_equal(rows_of(client, RESID, hookline.Text([text])), expected)


def test_special_tokens_are_added_where_asked_for_and_told(client):
    with client.capture(RESID, text=hookline.Text("ab", add_special_tokens=True), output="numpy") as capture:
        assert [(token.role, token.id) for token in capture.started.added_special_tokens] == [("bos", 256)]
        rows = next(capture)[RESID]
    np.testing.assert_array_equal(rows, rows_of(client, RESID, [[256, 97, 98]]))
    with client.capture(RESID, text="ab", output="numpy") as capture:
        assert capture.started.added_special_tokens == ()


def test_long_texts_are_refused_truncated_or_split(client):
    context = client.model().info.context_length
    text = "a" * (context + 3)
    with pytest.raises(hookline.InvalidArgumentError, match=r"text.texts\[1\].*long_texts"):
        rows_of(client, RESID, text=["short", text])
    assert len(rows_of(client, RESID, text=hookline.Text(text, long_texts="truncate"))) == context
    assert len(rows_of(client, RESID, text=hookline.Text(text, long_texts="split"))) == context + 3
    with pytest.raises(ValueError, match="not one of refuse, truncate, split"):
        hookline.Text(text, long_texts="cut")


def test_a_text_can_be_estimated_and_recorded(client):
    text = hookline.Text(["abc", "de"])
    assert client.estimate(RESID, text=text).hook_points[RESID].rows == 5
    name = f"text-{client.receiver}"
    client.persist(name, RESID, text).wait()
    assert client.recording(name).rows == 5


def test_text_and_source_exclude_each_other(client):
    with pytest.raises(TypeError, match="text: given together with source"):
        client.capture(RESID, [[1]], text="a")
    with pytest.raises(TypeError, match="source: none was given"):
        client.capture(RESID)


def test_tokenize_and_detokenize_are_each_others_inverse(client):
    (tokens,) = client.tokenize("a é", add_special_tokens=True)
    assert tokens.ids == (256, 97, 32, 0xC3, 0xA9)
    assert tokens.tokens == ("<|bos|>", "a", " ", "\ufffd", "\ufffd")
    assert tokens.offsets == ((0, 0), (0, 1), (1, 2), (2, 3), (2, 3))
    assert tokens.special == (True, False, False, False, False)
    assert client.detokenize([tokens.ids]) == ("a é",)
    assert client.detokenize([tokens.ids], skip_special_tokens=False) == ("<|bos|>a é",)
    with pytest.raises(hookline.InvalidArgumentError, match=r"sequences\[0\].ids\[1\].*no token 257"):
        client.detokenize([[97, 257]])


def test_the_model_tells_its_special_tokens(client):
    model = client.model().info
    assert [(token.role, token.id, token.token) for token in model.special_tokens] == [("bos", 256, "<|bos|>")]
    assert len(model.tokenizer_fingerprint) == 32
    assert "tokenizer.pkl" in model.tokenizer


def test_asyncio_takes_texts_too(server):
    async def main():
        async with hookline.aio.connect(server.address) as client:
            (tokens,) = await client.tokenize("ab")
            rows = [len(batch[RESID]) async for batch in client.capture(RESID, text="ab", output="numpy")]
            return tokens.ids, rows, await client.detokenize([tokens.ids])

    assert asyncio.run(main()) == ((97, 98), [2], ("ab",))


def responses(server, request):
    import grpc

    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_stream(_protocol.CAPTURE)(request.SerializeToString(), timeout=120)
        return [_protocol.CaptureResponse.FromString(message) for message in call]


def test_values_come_beside_token_strings(server):
    """Tests the JSON that a person with grpcurl sends and reads."""
    request = _protocol.CaptureRequest(hook_points=[RESID], encoding=2)
    request.text.texts.append("The cat")
    chunks = [response.chunk for response in responses(server, request) if response.HasField("chunk")]
    assert [text for chunk in chunks for text in chunk.token_text] == list("The cat")
    assert [token for chunk in chunks for token in chunk.token_id] == list(b"The cat")


def test_provenance_of_tokens_has_their_text_too(server):
    request = _protocol.CaptureRequest(hook_points=[RESID, POST], provenance=True)
    request.tokens.sequences.add().ids.extend([256, 104, 105])
    for response in responses(server, request):
        if response.HasField("chunk"):
            assert list(response.chunk.token_text) == ["<|bos|>", "h", "i"]


@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("options", [{}, {"batch_rows": 2}, {"batch_rows": 3, "shuffle_buffer": 4, "seed": 1}])
def test_batches_say_the_text_of_each_row(client, output, options):
    ids = [256, *b"The cat"]
    batches = list(client.capture([RESID, POST], [ids], output=output, provenance=True, **options))
    spelled = dict(zip(ids, ["<|bos|>", *"The cat"]))
    for batch in batches:
        assert batch.token_text == [spelled[token] for token in batch.token_id.tolist()]
        assert pickle.loads(pickle.dumps(batch)).token_text == batch.token_text
    assert sorted(token for batch in batches for token in batch.token_id.tolist()) == sorted(ids)
    (plain,) = client.capture(RESID, text="ab", output=output)
    assert plain.token_text is None


def test_batches_of_asyncio_and_of_data_loaders_say_it_too(server):
    async def main():
        async with hookline.aio.connect(server.address) as client:
            return [batch.token_text async for batch in client.capture(RESID, text="ab", provenance=True)]

    assert asyncio.run(main()) == [["a", "b"]]
    dataset = hookline.torch.ActivationDataset(server.address, RESID, [[97, 98], [99]], batch_rows=2, provenance=True)
    assert [batch.token_text for batch in dataset] == [["a", "b"], ["c"]]


def test_a_text_is_continued_where_it_was_cut(server):
    def request():
        made = _protocol.CaptureRequest(hook_points=[RESID], provenance=True, max_message_bytes=1 << 14)
        made.text.texts.extend(["abc" * 20, "de" * 20, "f" * 40])
        return made

    whole = [response.chunk for response in responses(server, request()) if response.HasField("chunk")]
    assert len(whole) > 2
    resumed = request()
    resumed.resume_token = whole[1].resume_token
    rest = [response.chunk for response in responses(server, resumed) if response.HasField("chunk")]
    assert [list(chunk.token_id) for chunk in rest] == [list(chunk.token_id) for chunk in whole[2:]]
    assert [chunk.first_row for chunk in rest] == [chunk.first_row for chunk in whole[2:]]


def test_texts_can_be_streamed(server):
    import grpc

    first = _protocol.CaptureStreamRequest()
    first.request.hook_points.append(RESID)
    first.request.provenance = True
    text = _protocol.CaptureStreamRequest()
    text.text.texts.extend(["ab", "c"])
    tokens = _protocol.CaptureStreamRequest()
    tokens.tokens.sequences.add().ids.extend([100])
    with grpc.insecure_channel(server.address) as channel:
        messages = iter([message.SerializeToString() for message in (first, text, tokens)])
        answers = [
            _protocol.CaptureResponse.FromString(answer)
            for answer in channel.stream_stream(_protocol.CAPTURE_STREAM)(messages, timeout=120)
        ]
    ids = [token for answer in answers if answer.HasField("chunk") for token in answer.chunk.token_id]
    assert ids == [97, 98, 99, 100]


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("blocks.1.hook_in", "blocks.1.hook_resid_pre"),
        ("blocks.1.hook_out", "blocks.1.hook_resid_post"),
        ("model.layers.1", "blocks.1.hook_resid_post"),
        ("layers.1.input", "blocks.1.hook_resid_pre"),
        ("model.layers.1.mlp.output", "blocks.1.hook_mlp_out"),
        ("blocks.1.hook_attn", "blocks.1.hook_attn_out"),
    ],
)
def test_aliases_bring_the_same_rows_under_the_name_that_was_used(client, alias, name):
    ids = [[256, 104, 105]]
    (expected,) = client.capture(name, ids, output="numpy")
    (batch,) = client.capture(alias, ids, output="numpy")
    assert list(batch) == [alias]
    np.testing.assert_array_equal(batch[alias], expected[name])
    assert alias in {point.name: point.aliases for point in client.model().hook_points}[name]


def test_an_ambiguous_name_is_refused_with_both_meanings(client):
    with pytest.raises(hookline.InvalidArgumentError, match="hook_resid_mid.*ln2.hook_normalized"):
        list(client.capture("blocks.1.hook_mlp_in", [[1]]))


def test_tensors_that_are_not_captured_name_the_nearest(client):
    with pytest.raises(hookline.InvalidArgumentError, match="logits.*ln_final"):
        list(client.capture("unembed.hook_out", [[1]]))


def test_a_model_without_a_tokenizer_refuses_only_text(receiver, tmp_path):
    for name in os.listdir(DEMO):
        if name != "tokenizer.pkl":
            os.symlink(os.path.join(DEMO, name), tmp_path / name)
    started = Server(model=str(tmp_path))
    try:
        with hookline.connect(started.address, receiver=receiver) as client:
            assert len(rows_of(client, RESID, [[1, 2]])) == 2
            with pytest.raises(hookline.FailedPreconditionError, match="tokenizer.json.*tokenizer.pkl"):
                list(client.capture(RESID, text="a"))
            with pytest.raises(hookline.FailedPreconditionError, match="tokenizer.json"):
                client.tokenize("a")
            assert client.model().info.tokenizer.startswith("none: looked for")
            (batch,) = client.capture(RESID, [[1, 2]], provenance=True, output="numpy")
            assert batch.token_text is None
    finally:
        started.kill()


def test_a_dataset_of_another_tokenizer_is_told(receiver, tmp_path):
    dataset = tmp_path / "packed.npy"
    np.save(dataset, np.arange(40, dtype=np.uint16).reshape(5, 8))
    sidecar = {
        "format": 1,
        "tokenizer": {"fingerprint": "0" * 32, "file": "tokenizer.json"},
        "packing": "saelens",
        "options": {"context_size": 8, "begin_batch_token": "bos"},
        "documents": 3,
        "tokens": 40,
    }
    (tmp_path / "packed.npy.json").write_text(json.dumps(sidecar))
    started = Server(arguments=["--dataset", f"packed={dataset}"], log=tmp_path / "log")
    assert f"dataset packed was packed with the tokenizer {'0' * 32}" in (tmp_path / "log").read_text()
    try:
        with hookline.connect(started.address, receiver=receiver) as client:
            packing = client.dataset("packed").packing
            assert (packing.method, packing.documents, packing.options["context_size"]) == ("saelens", 3, "8")
            assert "0" * 32 in packing.warning
            assert client.dataset("text").packing is None
            with client.capture(RESID, hookline.Dataset("packed"), output="numpy") as capture:
                assert "was packed with the tokenizer" in capture.started.tokenizer_warning
            with client.capture(RESID, hookline.Dataset("text", 8), max_activations=1, output="numpy") as capture:
                assert capture.started.tokenizer_warning == ""
    finally:
        started.kill()


def test_a_tokenizer_of_more_tokens_than_the_model_has_is_refused_where_it_shows(receiver, tmp_path):
    started = Server(arguments=["--tokenizer", "demo=" + os.path.join(TOKENIZERS, "gpt2")], log=tmp_path / "log")
    log = (tmp_path / "log").read_text()
    assert re.search("model demo: its tokenizer gives ids below .* only those below 257", log)
    try:
        with hookline.connect(started.address, receiver=receiver) as client:
            expected = json.load(open(os.path.join(TOKENIZERS, "gpt2", "expected.json")))[0]
            (tokens,) = client.tokenize(expected["text"])
            assert list(tokens.ids) == expected["ids"]
            with pytest.raises(hookline.InvalidArgumentError, match=r"text.texts\[0\].*vocabulary_size 257"):
                list(client.capture(RESID, text=expected["text"]))
    finally:
        started.kill()


def test_a_text_scores_as_its_tokens(client):
    by_text = next(client.score(hookline.Text("The cat sat"), per_token_loss=True))
    by_tokens = next(client.score([list(b"The cat sat")], per_token_loss=True))
    assert len(by_text.token_loss) == 10
    np.testing.assert_allclose(by_text.token_loss, by_tokens.token_loss, rtol=1e-5)
