"""Tests code written for a model in its own process: what collection loops use works or explains itself."""

import warnings

import numpy as np
import pytest
import torch
from fake_server import expected

import hookline

pytestmark = pytest.mark.usefixtures("receiver")

RESID = "blocks.0.hook_resid_post"
TOKENS = torch.arange(24).reshape(3, 8)


@pytest.fixture
def model(fake):
    return hookline.connect(fake().address).model()


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_the_usual_collection_loop_runs_unchanged(model, guard):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = model.to("cpu").to(torch.bfloat16).to(device="cpu", dtype=torch.float32).cpu().cuda().float()
        model.half().bfloat16().eval().train(False).requires_grad_(False).zero_grad()
        assert not model.training
        with guard(), hookline.ActivationCollector(model, [RESID]) as collector:
            for batch in TOKENS.split(2):
                model(batch.to(model.device))
    np.testing.assert_array_equal(collector.get_activations()[RESID].numpy(), expected(RESID, TOKENS.tolist()))


def test_the_device_and_dtype_are_those_of_batches_and_of_the_model(model):
    assert model.device == model.get_device() == torch.device("cpu")
    assert model.dtype == torch.float32


def test_the_config_tells_what_the_server_knows_under_the_usual_names(model):
    config = model.config
    assert (config.num_hidden_layers, config.n_layer, model.cfg.n_layers) == (2, 2, 2)
    assert (config.hidden_size, config.n_embd, model.cfg.d_model) == (8, 8, 8)
    assert (config.model_type, config.device) == ("fake", "cpu")
    assert getattr(config, "rope_theta", None) is None
    with pytest.raises(AttributeError, match="does not report a model's 'rope_theta'.*num_hidden_layers"):
        config.rope_theta


def test_what_a_call_returns_says_why_it_is_nothing(model):
    with hookline.ActivationCollector(model, [RESID]) as collector:
        output = model(TOKENS)
        for read in (lambda: output.logits, lambda: output.loss.backward(), lambda: output[0], lambda: tuple(output)):
            with pytest.raises((AttributeError, TypeError), match="returns nothing.*in the collector.*Client.score"):
                read()
    assert not output and not hasattr(output, "logits")
    assert collector.counts == {RESID: TOKENS.numel()}


def test_parameters_are_none_with_a_warning(model):
    with pytest.warns(UserWarning, match="model.device and model.dtype") as told:
        assert list(model.parameters()) == []
    assert told[0].filename == __file__
    with pytest.warns(UserWarning, match="not here"):
        assert list(model.named_parameters()) == []
    with pytest.warns(UserWarning):
        assert sum(p.numel() for p in model.parameters()) == 0


def test_training_is_refused_in_words(model):
    with pytest.warns(UserWarning, match="does not train"):
        assert model.train() is model
    with pytest.warns(UserWarning, match="no gradients"):
        model.requires_grad_()
    assert not model.training


def test_what_a_servers_model_has_not_is_explained(model):
    for name in ("generate", "lm_head", "state_dict", "forward_with_cache"):
        assert not hasattr(model, name)
        with pytest.raises(AttributeError, match=f"a model on a server has no '{name}'.*ActivationCollector"):
            getattr(model, name)
