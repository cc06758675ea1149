"""Makes tests/fixtures: what PyTorch and transformers compute, on small random checkpoints, for the Rust tests to equal.

    python scripts/make_fixtures.py --reference torch_reference.py [--out tests/fixtures]

Needs torch, transformers, tokenizers, safetensors, pillow, numpy. Everything is seeded: a second run writes the same
numbers up to the rounding of the PyTorch build. `--reference` is the independent PyTorch program whose `grads` command
gives the losses and gradients.
"""
import argparse, os

import torch
from safetensors.torch import save_file


def position(out):
    """Position embeddings interpolated by each family's own code, through its `interpolate_pos_encoding`."""
    import transformers as T
    kw = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    result = {}
    targets = [(4, 4), (7, 7), (3, 3), (2, 8), (9, 5), (1, 1), (16, 16), (1, 13)]
    for family, name, grid in [("clip", "CLIPVision", 4), ("vit", "ViT", 4), ("dinov2", "Dinov2", 4), ("dinov2_with_registers", "Dinov2WithRegisters", 4),
                               ("vit", "ViT", 7), ("dinov2_with_registers", "Dinov2WithRegisters", 7)]:
        config = getattr(T, name + "Config")(**kw, image_size=grid * 2, patch_size=2)
        torch.manual_seed(grid)
        net = getattr(T, name + "Model")(config).embeddings
        pos = torch.randn(1, 1 + grid * grid, 8)
        with torch.no_grad():
            (net.position_embedding.weight if family == "clip" else net.position_embeddings).copy_(pos if family != "clip" else pos[0])
            for h, w in targets:
                tokens = torch.zeros(1, 1 + h * w, 8)
                result[f"{family}.{grid}.{h}x{w}"] = net.interpolate_pos_encoding(tokens, h * 2, w * 2)[0].contiguous().clone()
        result[f"{family}.{grid}"] = pos[0].contiguous()
    save_file(result, f"{out}/position.safetensors")


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--reference", required=True, help="path of torch_reference.py")
    ap.add_argument("--out", default=os.path.join(os.path.dirname(__file__), "..", "tests", "fixtures"))
    a = ap.parse_args()
    os.makedirs(a.out, exist_ok=True)
    torch.set_num_threads(1)
    position(a.out)
