"""Tests top activations against the server itself. HOOKLINE_SERVER_PROGRAM names the program."""

import asyncio
import json
import os

import grpc
import numpy as np
import pytest
from server_process import ROOT, Server

import hookline
from hookline import _protocol, examples

FIXTURES = os.path.join(ROOT, "tests", "fixtures")
RESID = "blocks.1.hook_resid_post"
LATENTS = f"{RESID}.sae.hook_sae_acts_post"
DATASET = hookline.Dataset("text", sequence_length=32, sequence_count=60)
WANTED = [*range(10, 21), 3]


def start_server(*more):
    arguments = ["--dictionary", f"sae={FIXTURES}/evaluation/dictionaries/gpt2_jumprelu", *more]
    return Server(model=os.path.join(FIXTURES, "families", "gpt2"), arguments=arguments)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    recordings = tmp_path_factory.mktemp("recordings")
    started = start_server("--recordings-dir", str(recordings), "--recordings-free-bytes", "0")
    yield started
    started.kill()


@pytest.fixture(scope="module")
def rows(server):
    """Returns all latents of all tokens, (sequences, positions, latents), and the ids."""
    with hookline.connect(server.address) as client:
        batches = list(client.capture(LATENTS, DATASET, provenance=True, output="numpy"))
    values = np.concatenate([batch[LATENTS] for batch in batches]).reshape(60, 32, -1)
    return values, np.concatenate([batch.token_id for batch in batches]).reshape(60, 32)


def places(latent):
    """Returns the places of the examples that are stronger than the last one: batches of another size can change the
    last bits, and so which of several equal examples comes last."""
    least = latent.examples[-1].activation * (1 + 1e-4) if latent.examples else 0
    return {(example.sequence, example.position) for example in latent.examples if example.activation > least}


def assert_same(found, expected):
    assert list(found.latents) == list(expected.latents)
    assert (found.sequences, found.tokens, found.ignored_tokens) == (
        expected.sequences,
        expected.tokens,
        expected.ignored_tokens,
    )
    for one, other in zip(found.latents.values(), expected.latents.values()):
        assert one.firings == other.firings
        np.testing.assert_allclose(
            [example.activation for example in one.examples],
            [example.activation for example in other.examples],
            rtol=1e-4,
        )
        assert places(one) == places(other)
        np.testing.assert_allclose(list(one.quantiles.values()), list(other.quantiles.values()), rtol=1e-4)


def test_examples_counts_and_quantiles_are_numpys_over_all_rows(client, rows):
    values, ids = rows
    found = client.top_activations("sae", DATASET, WANTED, top=7, context=9, quantiles=[0, 0.3, 0.5, 1])
    assert list(found.latents) == WANTED and found.dictionary.latents == values.shape[2]
    assert (found.sequences, found.tokens, found.ignored_tokens) == (60, 1920, 0)
    fired = 0
    for latent, one in found.latents.items():
        column = values[:, :, latent]
        above = np.sort(column[column > 0])
        assert one.firings == len(above) == one.counts.sum() and one.value_spacing == 0
        np.testing.assert_allclose(np.repeat(one.values, one.counts), above, rtol=1e-4)
        strongest = above[::-1][:7]
        np.testing.assert_allclose([example.activation for example in one.examples], strongest, rtol=1e-4)
        assert len({(example.sequence, example.position) for example in one.examples}) == len(strongest)
        for example in one.examples:
            around = slice(example.first_position, example.first_position + 9)
            assert 0 <= example.first_position <= example.position < around.stop <= 32
            np.testing.assert_array_equal(example.token_ids, ids[example.sequence, around])
            np.testing.assert_allclose(example.activations, column[example.sequence, around], rtol=1e-4, atol=1e-5)
            assert example.activation == pytest.approx(column[example.sequence, example.position], rel=1e-4)
        for share, value in one.quantiles.items():
            assert value == pytest.approx(above[max(1, int(np.ceil(share * len(above)))) - 1], rel=1e-4)
        fired += len(above) > 0
    assert fired > 5


def test_latents_travel_as_index_and_value_and_the_summary_counts_rows_with_more(client, rows):
    values, _ = rows
    values = values.reshape(-1, values.shape[2])
    k = int(np.median((values != 0).sum(1)))
    capture = client.capture(LATENTS, DATASET, top_k=k, output="numpy")
    sparse = [batch[LATENTS] for batch in capture]
    indices, kept = (np.concatenate([getattr(part, name) for part in sparse]) for name in ("indices", "values"))
    np.testing.assert_allclose(kept, -np.sort(-values, 1)[:, :k], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(values, indices.astype(np.int64), 1), kept, rtol=1e-4, atol=1e-5)
    truncated = capture.summary.hook_points[LATENTS].truncated_rows
    assert truncated == ((values != 0).sum(1) > k).sum() and 0 < truncated < len(values)


def test_latents_are_selected_budgeted_recorded_and_resumed_like_any_other_rows(server, client, rows):
    values = rows[0]
    selected = values[:, 3::2].reshape(-1, values.shape[2])
    selection = hookline.Selection(skip_first=3, position_stride=2)
    (batch,) = client.capture(
        [RESID, LATENTS], DATASET, selection=selection, max_activations_by_hook_point={RESID: 50, LATENTS: 33},
        batch_rows=5000, output="numpy",
    )  # fmt: skip
    assert len(batch[RESID]) == 50
    np.testing.assert_allclose(batch[LATENTS], selected[:33], rtol=1e-4, atol=1e-5)

    client.persist("latents", LATENTS, DATASET, selection=selection).wait()
    recorded = np.concatenate(
        [b[LATENTS] for b in client.capture(LATENTS, hookline.Recording("latents"), output="numpy")]
    )
    np.testing.assert_allclose(recorded, selected, rtol=1e-4, atol=1e-5)

    request = _protocol.CaptureRequest(hook_points=[LATENTS], dtype=1, deterministic=True, max_message_bytes=1 << 16)
    request.dataset.name, request.dataset.sequence_length, request.dataset.sequence_count = "text", 32, 60
    with grpc.insecure_channel(server.address) as channel:

        def capture():
            call = channel.unary_stream(_protocol.CAPTURE)(request.SerializeToString())
            messages = [_protocol.CaptureResponse.FromString(message) for message in call]
            return [message.chunk for message in messages if message.WhichOneof("kind") == "chunk"]

        whole = capture()
        assert len(whole) > 2
        request.resume_token = whole[1].resume_token
        rest = capture()
    assert rest[0].first_row == whole[1].first_row + whole[1].rows
    assert b"".join(chunk.data for chunk in rest) == b"".join(chunk.data for chunk in whole[2:])


def test_what_a_killed_server_had_found_is_gone_on_from_with_the_same_answer(client, tmp_path, monkeypatch):
    expected = client.top_activations("sae", DATASET, WANTED, ignore_token_ids=[32])
    assert expected.ignored_tokens > 0
    # The search has eight passes, and a checkpoint comes between two of them.
    first, checkpoint = start_server("--max-batch-tokens", "256"), tmp_path / "found"
    read = examples.ExamplesReader.read

    def kill_after_a_checkpoint(reader, data):
        read(reader, data)
        if checkpoint.exists():
            first.kill()
            raise hookline.UnavailableError("killed")

    with monkeypatch.context() as patched, hookline.connect(first.address) as broken:
        patched.setattr(examples.ExamplesReader, "read", kill_after_a_checkpoint)
        with pytest.raises(hookline.UnavailableError):
            broken.top_activations(
                "sae", DATASET, WANTED, ignore_token_ids=[32], checkpoint=checkpoint, checkpoint_sequences=1
            )
    assert checkpoint.exists()
    found = client.top_activations("sae", DATASET, WANTED, ignore_token_ids=[32], checkpoint=checkpoint)
    assert_same(found, expected)
    assert not checkpoint.exists()


def test_a_checkpoint_of_another_request_is_refused(client, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"something else")
    with pytest.raises(ValueError, match="checkpoint: .*other"):
        client.top_activations("sae", DATASET, WANTED, checkpoint=other)
    message = _protocol.TopActivationsResponse().checkpoint
    message.digest, message.sequences = "0" * 32, 3
    other.write_bytes(message.SerializeToString())
    with pytest.raises(hookline.FailedPreconditionError, match="resume.digest"):
        client.top_activations("sae", DATASET, WANTED, checkpoint=other)


def test_errors_name_the_field_and_what_would_be_accepted(client):
    with pytest.raises(hookline.NotFoundError, match="this server has sae"):
        client.top_activations("other", DATASET, [1])
    with pytest.raises(hookline.InvalidArgumentError, match="0 to 63") as caught:
        client.top_activations("sae", DATASET, [1, 64])
    assert caught.value.field == "latents[1]"
    with pytest.raises(hookline.InvalidArgumentError, match="dataset.sequence_length"):
        client.top_activations("sae", hookline.Dataset("text"), [1])
    with pytest.raises(hookline.ResourceExhaustedError, match="262144"):
        client.top_activations("sae", DATASET, range(64), top=1000)
    with pytest.raises(TypeError, match="dataset"):
        client.top_activations("sae", [[1, 2, 3]], [1])
    with pytest.raises(ValueError, match="latents"):
        client.top_activations("sae", DATASET, -1)


def test_asyncio_finds_the_same(server, client):
    async def find():
        async with hookline.aio.connect(server.address) as connected:
            with pytest.raises(hookline.InvalidArgumentError, match="latents"):
                await connected.top_activations("sae", DATASET, [])
            return await connected.top_activations("sae", DATASET, WANTED)

    assert_same(asyncio.run(find()), client.top_activations("sae", DATASET, WANTED))


def test_files_are_laid_out_as_delphi_and_sae_dashboard_read_them(client, rows, tmp_path):
    values, _ = rows
    found = client.top_activations(client.dictionaries()[0], DATASET, WANTED, top=5, context=8)
    folder = found.save_delphi(tmp_path / "latents")
    assert folder == tmp_path / "latents" / "sae"
    config = json.loads((folder / "config.json").read_text())
    assert config["cache_ctx_len"] == 8 and config["model_name"] == "gpt2" and config["dataset_repo"] == "text"
    contents = (folder / "3_20.safetensors").read_bytes()
    size = int.from_bytes(contents[:8], "little")
    header, data = json.loads(contents[8 : 8 + size]), contents[8 + size :]
    types = {"I64": np.int64, "F32": np.float32}
    tensors = {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], types[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
    }
    locations, tokens, activations = tensors["locations"], tensors["tokens"], tensors["activations"]
    assert tokens.shape[1] == 8 and locations.shape == (len(activations), 3)
    # Windows are ordered by latent; the strongest example comes first.
    for latent, one in found.latents.items():
        own = activations[locations[:, 2] == latent - 3]
        assert (len(own) > 0) == (one.firings > 0)
        if len(own):
            assert own.max() == pytest.approx(one.examples[0].activation)
    path = found.save_sae_dashboard(tmp_path / "sae.json")
    whole = json.loads(path.read_text())
    assert [int(key) for key in whole["feature_data_dict"]] == WANTED
    statistics = whole["feature_stats"]
    shares = np.array(statistics["quantiles"][:-1])
    for index, latent in enumerate(WANTED):
        column = values[:, :, latent].ravel().astype(np.float64)
        expected = np.quantile(column, shares)
        kept = statistics["quantile_data"][index]
        np.testing.assert_allclose(kept, expected[len(expected) - len(kept) :], rtol=1e-3, atol=2e-5)
        assert statistics["frac_nonzero"][index] == pytest.approx((column > 0).mean())
        feature = whole["feature_data_dict"][str(latent)]
        if (column > 0).any():
            assert sum(feature["acts_histogram_data"]["bar_heights"]) == (column > 0).sum()
        group = feature["sequence_data"]["seq_group_data"][0]
        assert len(group["seq_data"]) == len(found.latents[latent].examples)
