"""Makes tests/fixtures/e2vpt.safetensors: loss and gradients of the first step of e2vpt, by PyTorch.

    python scripts/make_e2vpt_fixture.py [--fixtures tests/fixtures]

Needs torch, transformers, safetensors, numpy. The towers are transformers' own. Prompt tokens are put behind the class token at the
input of every prompted block. Keys and values are joined where attention is called, with heads already apart, one tensor
`[heads, N, D / heads]` a block for both, in front of a sequence's own: as E2VPT's public code has them (`SHARE_PARAM_KV`,
`LAYER_BEHIND`). The fixture has the heads' rows side by side, `[layers, N, D]`. Masks of ones over tokens and over their 16 interleaved
segments (`MASK_CLS_TOKEN`, `CLS_TOKEN_MASK_PIECES`) have a gradient each: how much these matter to pruning.
"""
import os

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AttentionInterface, AutoModel, CLIPVisionModel

from fixture_folder import fixture_folder

CLASSES, TOKENS, ROWS, SEGMENTS = 4, 3, 2, 16


def with_rows(module, query, key, value, mask, scaling, dropout=0.0, **_):
    """Attention that sees, beside a sequence's own keys and values `[B, heads, T, D / heads]`, those learned for its block."""
    rows = module.rows
    if rows is not None:
        rows = rows.expand(len(query), -1, -1, -1)
        key, value = torch.cat([rows, key], 2), torch.cat([rows, value], 2)
    weights = (query @ key.transpose(2, 3) * scaling).softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class Tower:
    def __init__(self, folder, clip):
        AttentionInterface.register("with_rows", with_rows)
        cls = CLIPVisionModel if clip else AutoModel
        net = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="with_rows").eval().double()
        net.requires_grad_(False)
        self.net, self.tokens, self.start = net, None, 0
        self.own = 1 + (net.config.image_size // net.config.patch_size) ** 2 + getattr(net.config, "num_register_tokens", 0)
        self.attention = [m for m in net.modules() if hasattr(m, "q_proj") and hasattr(m, "k_proj")]
        self.norm = next((m for n, m in net.named_modules() if n.endswith("pre_layrnorm")), None)
        blocks = [m for m in net.modules() if any(child in self.attention for child in m.children())]
        assert len(blocks) == len(self.attention) == net.config.num_hidden_layers
        for i, block in enumerate(blocks):
            block.register_forward_pre_hook(lambda _, args, kwargs, i=i: self.enter(i, args, kwargs), with_kwargs=True)

    def enter(self, i, args, kwargs):
        at = i - self.start
        x = args[0] if args else kwargs.pop("hidden_states")
        x = torch.cat([x[:, :1], x[:, x.shape[1] - self.own + 1:]], 1)  # without the prompts of the block before
        if 0 <= at < len(self.tokens):
            tokens = self.tokens[at]
            if i == 0 and self.norm is not None:
                tokens = self.norm(tokens)
            x = torch.cat([x[:, :1], tokens.expand(len(x), -1, -1), x[:, 1:]], 1)
        return (x, *args[1:]), kwargs

    def features(self, pixels, tokens, rows, start):
        self.tokens, self.start = tokens, start
        for i, module in enumerate(self.attention):
            at, heads = i - start, self.net.config.num_attention_heads
            of_block = rows[at] if 0 <= at < len(rows) else None
            module.rows = None if of_block is None else of_block.reshape(ROWS, heads, -1).transpose(0, 1)
        out = self.net(pixel_values=pixels)
        # Of CLIP the pooled token is the class token after the last norm; of the others it goes through a layer of its own.
        return out.pooler_output if self.norm is not None else out.last_hidden_state[:, 0]


def main(fixtures):
    random, out = np.random.default_rng(1), {}

    def draw(*shape, std=0.3):
        return torch.tensor((random.standard_normal(shape) * std).astype(np.float32)).double()

    for family in ("clip", "vit", "dinov2", "dinov2-registers"):
        tower = Tower(f"{fixtures}/{family}", family == "clip")
        config = tower.net.config
        width, depth = config.hidden_size, config.num_hidden_layers
        pixels = draw(3, 3, config.image_size, config.image_size, std=1.0)
        labels = torch.arange(len(pixels)) % CLASSES
        out[f"{family}.images"], out[f"{family}.labels"] = pixels.float(), labels.float()
        for case, start in (("all", 0), ("last", depth - 2)):
            layers = depth - start
            leaves = {
                "prompt.tokens": draw(layers, TOKENS, width),
                "prompt.keys_values": draw(layers, ROWS, width),
                "head.weight": draw(CLASSES, width),
                "head.bias": draw(CLASSES),
            }
            for leaf in leaves.values():
                leaf.requires_grad_(True)
            tokens, rows, weight, bias = leaves.values()
            masks = {"tokens": torch.ones(TOKENS, dtype=torch.float64), "segments": torch.ones(TOKENS, SEGMENTS, dtype=torch.float64)}
            for mask in masks.values():
                mask.requires_grad_(True)
            masked = tokens * masks["segments"].repeat(1, width // SEGMENTS) * masks["tokens"].view(-1, 1)
            loss = F.cross_entropy(tower.features(pixels, masked, rows, start) @ weight.T + bias, labels)
            loss.backward()
            for name, mask in masks.items():
                out[f"{family}.{case}.importance.{name}"] = mask.grad.float().contiguous()
            out[f"{family}.{case}.loss"] = loss.detach().float().reshape(1)
            for name, leaf in leaves.items():
                out[f"{family}.{case}.{name}"] = leaf.detach().float().contiguous()
                out[f"{family}.{case}.grad.{name}"] = leaf.grad.float().contiguous()
    path = f"{fixtures}/e2vpt.safetensors"
    save_file(out, path)
    os.chmod(path, 0o644)  # safetensors writes 0600


if __name__ == "__main__":
    fixtures = fixture_folder(__doc__)
    torch.set_num_threads(1)
    main(fixtures)
