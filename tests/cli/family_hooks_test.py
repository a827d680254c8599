"""For every type of model, `hookline hooks` lists exactly the hook points that the README of the fixtures names.

`expected` has the rules of that README as code; the references beside the fixtures confirm names and widths.
"""

import json
import pathlib

import pytest
from conftest import ROOT, Server, read_safetensors, run

FAMILIES = pathlib.Path(ROOT) / "tests" / "fixtures" / "families"
FIXTURES = sorted(path.parent.name for path in FAMILIES.glob("*/config.json"))
# Their references were made before a sublayer's raw output was a hook point.
WITHOUT_RAW_OUTPUTS = {"gemma2", "gemma3", "gemma3_multimodal", "olmo2"}

LEARNED_POSITIONS = {"gpt2", "gpt_neo", "opt"}
NORMS_AROUND = {"gemma2", "gemma3", "gemma3_text", "gemma4_text"}
NORMS_BEHIND = {"olmo2", "olmo3"}
ONE_NORM = {"phi", "gptj"}
PLAIN_MLP = {"gpt2", "gpt_neox", "phi", "gpt_neo", "gptj", "opt"}


def attention_hooks(kind, config, layer):
    """Lists the hook points between the norm before attention and the attention's output, in the order of the pass."""
    if kind.startswith("qwen3_5") and config["layer_types"][layer] == "linear_attention":
        return ["hook_z"]
    if kind == "deepseek_v3":
        return ["hook_q", "hook_v", "hook_rot_q", "hook_rot_k", "hook_z"]
    own_keys = layer < config.get("num_hidden_layers", 0) - config.get("num_kv_shared_layers", 0)
    rotates = kind not in LEARNED_POSITIONS and not (kind == "smollm3" and not config["no_rope_layers"][layer])
    names = ["hook_q"] + (["hook_k", "hook_v"] if own_keys or kind in LEARNED_POSITIONS | {"gptj"} else [])
    names += ["hook_rot_q"] * rotates + ["hook_rot_k"] * (rotates and "hook_k" in names)
    return [*names, "hook_z"]


def mlp_hooks(kind, config, layer):
    experts = config.get("num_experts") or config.get("num_local_experts") or config.get("n_routed_experts")
    if experts and layer >= config.get("first_k_dense_replace", 0):
        return ["hook_router_logits", "hook_expert_indices", "hook_expert_weights"]
    return ["hook_pre"] + ["hook_pre_linear"] * (kind not in PLAIN_MLP) + ["hook_post"]


def expected(config):
    """Returns the names, in the order of the forward pass."""
    config = config.get("text_config", config)
    kind = config["model_type"]
    parallel = kind in ONE_NORM or (kind == "gpt_neox" and config.get("use_parallel_residual", True))
    layers = config.get("num_hidden_layers") or config.get("n_layer") or config.get("num_layers")
    names = ["hook_embed"] + ["hook_pos_embed"] * (kind in LEARNED_POSITIONS)
    norm = ["hook_scale", "hook_normalized", "hook_out"]
    for layer in range(layers):

        def sublayer(number, part, hooks, raw, out):
            before = [] if kind in NORMS_BEHIND or (number == 2 and kind in ONE_NORM) else norm
            after = norm if kind in NORMS_AROUND | NORMS_BEHIND else []
            return [
                *(f"ln{number}.{name}" for name in before),
                *(f"{part}.{name}" for name in hooks),
                *([f"{part}.{raw}"] if after else []),
                *(f"ln{number}_post.{name}" for name in after),
                out,
            ]

        block = ["hook_resid_pre"]
        block += sublayer(1, "attn", attention_hooks(kind, config, layer), "hook_out", "hook_attn_out")
        block += ["hook_resid_mid"] * (not parallel)
        block += sublayer(2, "mlp", mlp_hooks(kind, config, layer), "hook_out", "hook_mlp_out")
        names += [f"blocks.{layer}.{name}" for name in [*block, "hook_resid_post"]]
    return [*names, *(f"ln_final.{name}" for name in norm)]


@pytest.fixture(scope="module")
def families():
    """Returns a server that has all families."""
    arguments = [flag for name in FIXTURES for flag in ("--model", f"{name}={FAMILIES / name}")]
    running = Server(model=False, arguments=[*arguments, "--device", "cpu", "--slab-count", "64"])
    yield running
    running.kill()


def listed(server, model):
    """Returns the widths of the hook points by name, in the order in which they are listed."""
    code, output, errors = run(server, "hooks", "--model", model)
    assert code == 0, errors
    header, *lines = output.splitlines()
    assert header.split()[:4] == ["hook", "point", "width", "layer"]
    return {line.split()[0]: int(line.split()[1]) for line in lines}


@pytest.mark.parametrize("name", FIXTURES)
def test_each_type_lists_exactly_the_hook_points_that_its_readme_says(families, name):
    hooks = listed(families, name)
    assert list(hooks) == expected(json.loads((FAMILIES / name / "config.json").read_text()))
    reference = read_safetensors(FAMILIES / name / "reference.safetensors")[1]
    widths = {key[: -len("/1")]: rows.shape[1] for key, rows in reference.items() if key.endswith("/1")}
    if name in WITHOUT_RAW_OUTPUTS:
        hooks = {key: width for key, width in hooks.items() if not key.endswith(("attn.hook_out", "mlp.hook_out"))}
    # The references hold no scales, which follow from a norm's input and its hook_normalized.
    scales = {key: width for key, width in hooks.items() if key.endswith(".hook_scale")}
    assert set(scales.values()) == {1}
    assert {key: width for key, width in hooks.items() if key not in scales} == widths
