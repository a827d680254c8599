#!/usr/bin/env python3
"""Trains a SAELens autoencoder on the rows of one hook point of a running server, and measures it.

    hookline-server --model tests/fixtures/nanochat/demo --dataset text=tests/fixtures/nanochat/demo/tokens.npy &
    client/python/examples/train_sae_lens.py --dataset text --out sae       # needs sae-lens 6.54

If it is killed, the same command continues from the last checkpoint with exactly the batches that would have come:
beside SAELens's own files, a checkpoint holds the state of the data provider, its buffer included. Load the autoencoder
in `--out` with `sae_lens.SAE.load_from_disk`; its metadata says which model, hook point and dataset it belongs to.

The last tenth of the dataset is not trained on; explained variance, 1 - sum |x - r(x)|^2 / sum |x - mean x|^2, and the
mean number of features in use are measured there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from sae_lens import SAE, LoggingConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer

import hookline

PROVIDER_STATE = "hookline_provider.pt"


def last_checkpoint(folder: Path) -> Path | None:
    """Returns the newest complete checkpoint: the provider's state is written last, and renamed into place."""
    found = [path.parent for path in folder.glob(f"*/{PROVIDER_STATE}")]
    return max(found, key=lambda path: int(path.name.rpartition("_")[2]), default=None)


@torch.no_grad()
def evaluate(sae: SAE, client: hookline.Client, hook_point: str, source: hookline.Dataset) -> tuple[float, float]:
    """Returns the explained variance and the mean number of features in use."""
    mean = torch.from_numpy(client.statistics(hook_point, source)[hook_point].mean_vector)
    residual = total = used = 0.0
    rows = 0
    for batch in client.capture(hook_point, source, batch_rows=4096):
        features = sae.encode(batch[hook_point])
        residual += float((sae.decode(features) - batch[hook_point]).square().sum())
        total += float((batch[hook_point] - mean).square().sum())
        used += float((features != 0).sum())
        rows += batch.rows
    return 1 - residual / total, used / rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server", default="localhost:7471", help="host:port (default: %(default)s)")
    parser.add_argument("--dataset", required=True, help="a dataset of the server")
    parser.add_argument("--sequence-length", type=int, default=128, help="tokens (default: %(default)s)")
    parser.add_argument("--hook-point", default="blocks.1.hook_resid_post", help="(default: %(default)s)")
    parser.add_argument("--features", type=int, default=512, help="of the autoencoder (default: %(default)s)")
    parser.add_argument("--k", type=int, default=16, help="features used for a row (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=1 << 18, help="to train on (default: %(default)s)")
    parser.add_argument("--batch-rows", type=int, default=1024, help="(default: %(default)s)")
    parser.add_argument("--checkpoints", type=int, default=8, help="before the end (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="directory for the autoencoder and its checkpoints")
    arguments = parser.parse_args()

    client = hookline.connect(arguments.server)
    model = client.model()
    point = next((point for point in model.hook_points if point.name == arguments.hook_point), None)
    if point is None:
        sys.exit(f"--hook-point: {model.name} has no {arguments.hook_point}")
    length = arguments.sequence_length
    sequences = client.dataset(arguments.dataset).tokens // length
    held_out = max(1, sequences // 10)
    train = hookline.Dataset(
        arguments.dataset, length, sequence_count=sequences - held_out, shuffle_seed=arguments.seed
    )
    test = hookline.Dataset(arguments.dataset, length, first_sequence=sequences - held_out)

    torch.manual_seed(arguments.seed)
    provider = hookline.sae_lens.data_provider(
        client,
        point.name,
        train,
        batch_size=arguments.batch_rows,
        shuffle_buffer=1 << 14,
        seed=arguments.seed,
        deterministic=True,  # rows then depend neither on other clients nor on where the run was interrupted
    )
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=point.width,
            d_sae=arguments.features,
            k=arguments.k,
            metadata=SAEMetadata(
                model_name=model.name,
                hook_name=point.name,
                context_size=length,
                prepend_bos=False,
                dataset_path=arguments.dataset,
                hookline_fingerprint=model.info.fingerprint,  # of the weights
            ),
        )
    )
    checkpoints = arguments.out / "checkpoints"

    def save_provider(*, checkpoint_path: Path | None) -> None:
        assert checkpoint_path is not None
        torch.save(provider.state_dict(), checkpoint_path / "unfinished.pt")
        (checkpoint_path / "unfinished.pt").rename(checkpoint_path / PROVIDER_STATE)

    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=arguments.rows,
            train_batch_size_samples=arguments.batch_rows,
            lr=1e-3,
            lr_end=1e-4,
            n_checkpoints=arguments.checkpoints,
            checkpoint_path=str(checkpoints),
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=provider,
        save_checkpoint_fn=save_provider,
    )
    before = last_checkpoint(checkpoints)
    if before is not None:
        sae.load_weights_from_checkpoint(before)
        trainer.load_trainer_state(before)
        provider.load_state_dict(torch.load(before / PROVIDER_STATE))
        trainer.n_training_steps += 1  # SAELens counts the step only after the checkpoint
        trainer.checkpoint_thresholds = [at for at in trainer.checkpoint_thresholds if at > trainer.n_training_samples]
        print(f"continues after {trainer.n_training_samples} rows, from {before}", flush=True)

    trainer.fit()
    sae.save_inference_model(arguments.out)
    variance, used = evaluate(SAE.load_from_disk(arguments.out), client, point.name, test)
    print(f"trained on {trainer.n_training_samples} rows; the last batch was mixed to {provider.mixing:.2f} of ideal")
    print(f"held out: explained variance {variance:.4f}, {used:.1f} features of {arguments.features} in use for a row")
    return 0


if __name__ == "__main__":
    sys.exit(main())
