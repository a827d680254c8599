"""Tests scores against the server itself. HOOKLINE_SERVER_PROGRAM names the program."""

import asyncio
import json
import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from server_process import ROOT, Server

import hookline
from hookline import Intervention

FAMILIES = os.path.join(ROOT, "tests", "fixtures", "families")
EVALUATION = os.path.join(ROOT, "tests", "fixtures", "evaluation")
IDS = [[1, 5, 9, 200, 17, 4, 4, 30], [7, 8, 9]]
RESID = "blocks.1.hook_resid_post"


def read_tensors(*path):
    """Reads the int32 and float32 tensors of a safetensors file."""
    with open(os.path.join(*path), "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    types = {"I32": "<i4", "F32": "<f4"}
    return {
        name: torch.from_numpy(np.frombuffer(data[slice(*of["data_offsets"])], types[of["dtype"]]).copy()).reshape(
            of["shape"]
        )
        for name, of in header.items()
        if name != "__metadata__"
    }


TOKENS = read_tensors(FAMILIES, "gpt2", "reference.safetensors")["tokens_1"].long().numpy()  # sequence 1 of the fixture


@pytest.fixture(scope="module")
def server():
    folder = os.path.join(EVALUATION, "dictionaries")
    arguments = ["--dictionary", f"sparse={folder}/gpt2_topk", "--dictionary", f"wide={folder}/gpt2_jumprelu@{RESID}"]
    started = Server(model=os.path.join(FAMILIES, "gpt2"), arguments=arguments)
    yield started
    started.kill()


def test_scores_come_with_what_was_asked_for_and_a_summary(client):
    scores = client.score(
        IDS,
        {"ablated": [Intervention.zero(RESID)]},
        per_token_loss=True,
        kl=True,
        top_logits=3,
        log_probability_token_ids=[0, 5],
        hook_points=RESID,
        loss_recovered=True,
    )
    by_key = {(score.sequence, score.variant): score for score in scores}
    assert sorted(by_key) == [(0, ""), (0, "ablated"), (1, ""), (1, "ablated")]
    clean, ablated = by_key[0, ""], by_key[0, "ablated"]
    assert clean.token_loss.shape == (7,) and clean.kl is None and ablated.kl.shape == (8,)
    assert clean.mean_loss == pytest.approx(clean.token_loss.mean(), rel=1e-5)
    assert clean.top_logits.ids.shape == clean.top_logits.logits.shape == (8, 3)
    assert clean.log_probabilities.shape == (8, 2)
    assert clean.rows[RESID].shape == (8, 48) and not ablated.rows[RESID].any()
    summary = scores.wait()
    assert list(summary.variants) == ["", "ablated"]
    assert summary.variants[""].tokens == 9 and summary.sequences == 2 and summary.tokens == 11
    assert summary.variants["ablated"].loss_recovered == pytest.approx(0, abs=1e-4)
    assert summary.variants["ablated"].replaced[0].rows == 11
    # The rows are those that a capture brings.
    (batch,) = client.capture(RESID, IDS[:1], output="numpy")
    np.testing.assert_allclose(clean.rows[RESID], batch[RESID], rtol=1e-4, atol=1e-5)


def test_interventions_are_transformer_lens_hooks(client):
    with open(os.path.join(EVALUATION, "interventions.json")) as file:
        cases = next(one["cases"] for one in json.load(file) if one["fixture"] == "gpt2")
    make = {
        "zero": lambda hook, given, where: Intervention.zero(hook, **where),
        "mean": lambda hook, given, where: Intervention.mean(hook, given.get("vector"), **where),
        "add": lambda hook, given, where: Intervention.add(hook, given["vector"], given.get("scale", 1.0), **where),
        "scale": lambda hook, given, where: Intervention.scale(hook, given["factor"], **where),
        "projectOut": lambda hook, given, where: Intervention.project_out(hook, given["direction"], **where),
        "set": lambda hook, given, where: Intervention.set(hook, [row["values"] for row in given["rows"]], **where),
    }
    names = {"positions": "positions", "ignoreTokenIds": "ignore_token_ids", "head": "head"}

    def intervention(step):
        (operation,) = make.keys() & step.keys()
        where = {names[key]: value for key, value in step.items() if key in names}
        return make[operation](step["hookPoint"], step[operation], where)

    variants = {str(i): [intervention(step) for step in case["interventions"]] for i, case in enumerate(cases)}
    assert len(variants) > 100
    seen = 0
    names_of_variants = list(variants)
    for first in range(0, len(variants), 64):  # a request may have 64 variants
        part = {name: variants[name] for name in names_of_variants[first : first + 64]}
        for score in client.score(torch.tensor(TOKENS), part, per_token_loss=True):
            if score.variant:
                expected = cases[int(score.variant)]["tokenLoss"]
                np.testing.assert_allclose(score.token_loss, expected, rtol=1e-4, atol=1e-4)
                seen += 1
    assert seen == len(cases)


def test_errors_name_the_field_or_the_place_in_the_source(client):
    with pytest.raises(hookline.InvalidArgumentError, match="hook_mlp_out") as caught:
        client.score(IDS, {"a": [Intervention.zero("blocks.1.hook_mlp_ot")]})
    assert caught.value.field == "variants[0].interventions[0].hook_point"
    with pytest.raises(hookline.InvalidArgumentError, match="row 1 of the source, position 2"):
        client.score([[1, 2], [3, 4, 500]])
    with pytest.raises(TypeError, match="per_token_losses: score takes"):
        client.score(IDS, per_token_losses=True)
    with pytest.raises(TypeError, match="vector"):
        client.score(IDS, {"a": [Intervention.add(RESID, "much")]})


def test_a_dataset_of_the_server_is_scored(client):
    summary = client.score(hookline.Dataset("text", sequence_length=64, first_sequence=3, sequence_count=5)).wait()
    assert (summary.sequences, summary.tokens, summary.variants[""].tokens) == (5, 320, 315)


def test_asyncio_scores_as_the_other_client(server, client):
    expected = client.score(IDS, {"a": [Intervention.scale(RESID, 0.5)]}, kl=True).wait()

    async def run():
        async with hookline.aio.connect(server.address) as other:
            scores = other.score(IDS, {"a": [Intervention.scale(RESID, 0.5)]}, kl=True)
            seen = [score async for score in scores]
            with pytest.raises(hookline.InvalidArgumentError, match="row 0 of the source"):
                await other.score([[999]]).wait()
            return seen, await scores.wait()

    seen, summary = asyncio.run(run())
    assert len(seen) == 4
    assert summary.variants == expected.variants


def test_a_perfect_autoencoder_recovers_the_loss_and_a_zero_one_nothing(client):
    perfect = client.loss_recovered(lambda x: x, RESID, IDS)
    assert perfect.ce_loss_score == pytest.approx(1, abs=1e-4)
    assert perfect.explained_variance == pytest.approx(1, abs=1e-6)
    assert perfect.cossim == pytest.approx(1, abs=1e-6) and perfect.l0 is None and perfect.tokens == 11
    nothing = client.loss_recovered(torch.zeros_like, RESID, IDS)
    assert nothing.ce_loss_score == pytest.approx(0, abs=1e-4)
    assert nothing.ce_loss_with_ablation == pytest.approx(nothing.ce_loss_with_sae)


def test_asyncio_measures_the_same_and_the_event_loop_goes_on(client, server):
    on_loops_thread = []

    def smaller(rows):
        on_loops_thread.append(threading.current_thread() is threading.main_thread())
        return 0.5 * rows

    async def run():
        async with hookline.aio.connect(server.address) as aio:
            return await aio.loss_recovered(smaller, RESID, IDS, ignore_token_ids=[4])

    told = asyncio.run(run())
    expected = client.loss_recovered(smaller, RESID, IDS, ignore_token_ids=[4])
    assert on_loops_thread == [False, True]  # one call of each, since all sequences share a pass
    assert told.tokens == expected.tokens == 9
    for measure in ("ce_loss_with_sae", "ce_loss_without_sae", "ce_loss_with_ablation", "kl_div_with_sae", "mse"):
        assert getattr(told, measure) == pytest.approx(getattr(expected, measure), rel=1e-4), measure


def test_an_autoencoder_of_one_head_replaces_that_heads_rows(client):
    hook_point, width = "blocks.1.attn.hook_z", 12

    class OneHead:
        def __init__(self, head):
            self.cfg = SimpleNamespace(metadata=SimpleNamespace(hook_head_index=head))

        def encode(self, rows):
            assert rows.shape[1] == width
            return rows

        def decode(self, latents):
            return 0 * latents

    told = client.loss_recovered(OneHead(2), hook_point, IDS)
    zero = client.score(IDS, {"zero": [Intervention.zero(hook_point, head=2)]}, kl=True).wait().variants["zero"]
    assert told.ce_loss_with_sae == pytest.approx(told.ce_loss_with_ablation, rel=1e-5)
    assert told.ce_loss_with_sae == pytest.approx(zero.mean_loss, rel=1e-5)
    assert told.kl_div_with_sae == pytest.approx(zero.mean_kl, rel=1e-4) and told.l0 == pytest.approx(width)
    with pytest.raises(ValueError, match="head 4 .*, which has 4 heads"):
        client.loss_recovered(OneHead(4), hook_point, IDS)
    with pytest.raises(ValueError, match="head 1 .*resid_post, which has no heads"):
        client.loss_recovered(OneHead(1), RESID, IDS)


class Autoencoder:
    """SAELens's standard autoencoder or, if its file has a threshold, its jumprelu."""

    def __init__(self, name):
        self._weights = read_tensors(EVALUATION, "dictionaries", name, "sae_weights.safetensors")

    def encode(self, rows):
        weights = self._weights
        if "threshold" not in weights:
            return torch.relu((rows - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"])
        before = rows @ weights["W_enc"] + weights["b_enc"]
        return torch.relu(before) * (before > weights["threshold"])

    def decode(self, latents):
        return latents @ self._weights["W_dec"] + self._weights["b_dec"]


@pytest.mark.parametrize("name", ["gpt2_standard", "gpt2_jumprelu"])
def test_an_autoencoders_measures_are_those_of_sae_lenss_evals(client, name):
    with open(os.path.join(EVALUATION, "dictionaries.json")) as file:
        expected = next(one["metrics"] for one in json.load(file) if one["name"] == name)
    told = client.loss_recovered(Autoencoder(name), RESID, [TOKENS.tolist()])
    assert len(expected) == 12 and told.tokens == len(TOKENS)
    for measure, value in expected.items():
        assert getattr(told, measure) == pytest.approx(value, abs=1e-4, rel=1e-4), measure


def test_dictionaries_of_the_server_are_listed_captured_and_put_in_place(client):
    with open(os.path.join(EVALUATION, "dictionaries.json")) as file:
        recorded = {one["name"]: one for one in json.load(file)}
    listed = {one.name: one for one in client.dictionaries()}
    assert sorted(listed) == ["sparse", "wide"]
    assert listed["sparse"].hook_point == RESID and listed["sparse"].max_active == 5 and listed["wide"].latents == 64
    (batch,) = client.capture(listed["wide"].hook_points[2], [TOKENS.tolist()], output="numpy")
    (latents,) = batch.values()
    np.testing.assert_allclose(latents[:6].ravel(), recorded["gpt2_jumprelu"]["latents"], rtol=1e-4, atol=1e-5)
    variants = {name: [Intervention.dictionary(RESID, name)] for name in listed} | {
        "same": [Intervention.latents(RESID, "wide", scale={3: 1.0}, keep_error=True)]
    }
    summary = client.score([TOKENS.tolist()], variants, kl=True).wait().variants
    for name, kind in (("sparse", "gpt2_topk"), ("wide", "gpt2_jumprelu")):
        metrics = recorded[kind]["metrics"]
        assert summary[name].mean_loss == pytest.approx(metrics["ce_loss_with_sae"], abs=1e-4)
        assert summary[name].mean_kl == pytest.approx(metrics["kl_div_with_sae"], abs=1e-4)
        assert summary[name].replaced[0].l0 == pytest.approx(metrics["l0"], abs=1e-4)
        assert summary[name].replaced[0].explained_variance == pytest.approx(metrics["explained_variance"], abs=1e-4)
    assert summary["same"].mean_kl == pytest.approx(0, abs=1e-6)
    with pytest.raises(hookline.InvalidArgumentError, match="there are sparse, wide"):
        client.score(IDS, {"a": [Intervention.dictionary(RESID, "other")]})


def test_models_say_whether_they_can_be_scored(client):
    info = client.model().info
    assert info.evaluates
    heads = {point.name: point.heads for point in info.hook_points}
    assert heads["blocks.0.attn.hook_z"] == 4 and heads[RESID] == 0
