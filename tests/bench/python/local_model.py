"""nanochat's first architecture in PyTorch, with its module names, for collectors that use hooks."""

import torch
import torch.nn.functional as F


def norm(x):
    return (
        F.rms_norm(x, (x.shape[-1],))
        if hasattr(F, "rms_norm")
        else x * (x.square().mean(-1, True) + 1.1920929e-07).rsqrt()
    )


def turn(x):
    """Rotates (B, T, heads, d) by the rotary embedding, half-split."""
    length, half = x.shape[1], x.shape[3] // 2
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(half) / half)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1)


class Attention(torch.nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        for name in ("c_q", "c_k", "c_v", "c_proj"):
            setattr(self, name, torch.nn.Linear(width, width, bias=False))

    def forward(self, x):
        shape = (*x.shape[:2], self.heads, -1)
        q, k, v = (project(x).view(shape) for project in (self.c_q, self.c_k, self.c_v))
        q, k = norm(turn(q)), norm(turn(k))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if hasattr(F, "scaled_dot_product_attention"):
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
            later = torch.ones(scores.shape[2:], dtype=torch.bool).triu(1)
            z = scores.masked_fill(later, float("-inf")).softmax(-1) @ v
        return self.c_proj(z.transpose(1, 2).reshape(x.shape))


class Mlp(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.c_fc = torch.nn.Linear(width, 4 * width, bias=False)
        self.c_proj = torch.nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        return self.c_proj(self.c_fc(x).relu().square())


class Block(torch.nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attn, self.mlp = Attention(width, heads), Mlp(width)

    def forward(self, x):
        x = x + self.attn(norm(x))
        return x + self.mlp(norm(x))


class Model(torch.nn.Module):
    def __init__(self, layers, width, heads, vocabulary):
        super().__init__()
        self.transformer = torch.nn.ModuleDict(
            {
                "wte": torch.nn.Embedding(vocabulary, width),
                "h": torch.nn.ModuleList(Block(width, heads) for _ in range(layers)),
            }
        )
        self.lm_head = torch.nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids):
        x = norm(self.transformer.wte(ids))
        for block in self.transformer.h:
            x = block(x)
        return 15 * torch.tanh(self.lm_head(norm(x)) / 15)
