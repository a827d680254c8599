"""`hookline examples` against the server, with a dictionary beside a small model."""

import json
import os

import pytest
from conftest import ROOT, Server, read_safetensors, run, start

FIXTURES = os.path.join(ROOT, "tests", "fixtures")
SOURCE = ("--dataset", "text", "--sequence-length", "32", "--sequence-count", "60")


class DictionaryServer(Server):
    """A server with a dictionary beside the model that it belongs to."""

    def __init__(self):
        model = os.path.join(FIXTURES, "families", "gpt2")
        dictionaries = os.path.join(FIXTURES, "evaluation", "dictionaries")
        dictionary = os.path.join(dictionaries, "gpt2_jumprelu")
        transcoder = os.path.join(dictionaries, "gpt2_transcoder")
        tokens = os.path.join(FIXTURES, "nanochat", "demo", "tokens.npy")
        super().__init__(
            model=False,
            arguments=["--model", model, "--device", "cpu", "--slab-count", "32", "--dictionary", f"sae={dictionary}"]
            + ["--dictionary", f"transcoder={transcoder}", "--dataset", f"text={tokens}", "--max-batch-tokens", "64"],
        )


@pytest.fixture(scope="module")
def server():
    running = DictionaryServer()
    yield running
    running.kill()


def test_latents_are_printed_with_their_strongest_tokens(server):
    code, output, errors = run(server, "examples", "sae", *SOURCE, "--latents", "10-12,3", "--top", "4", "--quiet")
    assert code == 0, errors
    heads = [line for line in output.splitlines() if line.startswith("latent ")]
    assert [head.split(":")[0] for head in heads] == ["latent 10", "latent 11", "latent 12", "latent 3"]
    assert all(" of 1920 tokens" in head for head in heads)
    assert any("quantiles 1%: " in head for head in heads)
    lines = output.splitlines()
    table = lines[lines.index(next(head for head in heads if "quantiles" in head)) + 1 :]
    assert table[0].split() == ["activation", "sequence", "position", "context"]
    strongest = [float(line.split()[0]) for line in table[1:5]]
    assert strongest == sorted(strongest, reverse=True)
    assert "[" in table[1] and "]" in table[1]


def test_scores_put_a_transcoder_where_it_writes(server, tmp_path):
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("1 2 3 4 5 6 7 8\n")
    code, output, errors = run(server, "score", "--tokens", str(tokens), "--dictionary", "transcoder")
    assert code == 0, errors
    assert [line.split()[0] for line in output.splitlines()[-2:]] == ["(clean)", "dictionary"]


def test_json_and_files_hold_the_same(server, tmp_path):
    folder, dashboard = tmp_path / "latents", tmp_path / "sae.json"
    options = ("--latents", "10-20", "--top", "5", "--context", "8", "--json", "--quiet")
    code, output, errors = run(
        server, "examples", "sae", *SOURCE, *options, "--delphi", str(folder), "--sae-dashboard", str(dashboard)
    )
    assert code == 0, errors
    messages = [json.loads(line) for line in output.splitlines()]
    assert messages[0]["started"]["dictionary"]["name"] == "sae" and "summary" in messages[-1]
    latents = [message["latent"] for message in messages if "latent" in message]
    assert [latent["latent"] for latent in latents] == list(range(10, 21))
    _, tensors = read_safetensors(folder / "sae" / "10_20.safetensors")
    assert tensors["tokens"].shape[1] == 8
    first = next(latent for latent in latents if latent["examples"])
    assert tensors["tokens"][0].tolist() == first["examples"][0]["tokenIds"]
    assert json.loads((folder / "sae" / "config.json").read_text())["model_name"] == "gpt2"
    features = json.loads(dashboard.read_text())["feature_data_dict"]
    assert sorted(map(int, features)) == list(range(10, 21))
    sequences = features[str(first["latent"])]["sequence_data"]["seq_group_data"][0]["seq_data"]
    assert sequences[0]["token_ids"] == first["examples"][0]["tokenIds"]


def test_a_killed_search_goes_on_from_its_checkpoint_with_the_same_answer(server, tmp_path):
    checkpoint = tmp_path / "found"
    source = ("--dataset", "text", "--sequence-length", "16", "--sequence-count", "4000")
    command = ("examples", "sae", *source, "--latents", "10-20", "--json", "--quiet")
    code, expected, errors = run(server, *command)
    assert code == 0, errors
    command += ("--checkpoint", str(checkpoint), "--checkpoint-sequences", "1")
    killed = start(server, *command)
    while not checkpoint.exists():
        assert killed.poll() is None
    killed.kill()
    killed.communicate()
    code, output, errors = run(server, *command)
    assert code == 0, errors
    assert not checkpoint.exists()
    messages, whole = ([json.loads(line) for line in text.splitlines()] for text in (output, expected))
    started = messages[0]["started"]
    assert 0 < int(started["resumedSequences"]) < int(started["sequences"])
    assert len(messages) == len(whole) == 13
    for one, other in zip(messages[1:12], whole[1:12]):
        places = [
            [(e["sequence"], e["position"], e["tokenIds"]) for e in m["latent"]["examples"]] for m in (one, other)
        ]
        assert places[0] == places[1] and one["latent"]["firings"] == other["latent"]["firings"]
    checkpoint.write_bytes(b"nothing")
    code, _, errors = run(server, *command)
    assert code == 2 and "--checkpoint" in errors and str(checkpoint) in errors


def test_errors_name_the_flag_or_the_field(server):
    code, _, errors = run(server, "examples", "sae", *SOURCE, "--latents", "10-x")
    assert code == 2 and "--latents: `10-x`" in errors
    code, _, errors = run(server, "examples", "sae", *SOURCE, "--latents", "64")
    assert code == 2 and "latents[0]: 64 is not a latent, 0 to 63" in errors
    code, _, errors = run(server, "examples", "other", *SOURCE, "--latents", "1")
    assert code == 1 and "this server has sae" in errors
