"""Random checkpoints of SigLIP and DINOv3 in their real sizes, and the time of a training step by transformers' own modules.

    python scripts/torch_steps.py checkpoint --model siglip-b16 --out siglip-b16
    python scripts/torch_steps.py checkpoint --model dinov3-s16 --out dinov3-s16
    python scripts/compare_pytorch.py --reference scripts/torch_steps.py --run siglip-b16:16 --run dinov3-s16:32

`step` is what compare_pytorch.py calls; torch_reference.py has the families before these. The tower is frozen, prompts (Jia et al. 2022) stand
before the patches, each block has its own in the place of those of the block before, and neither SigLIP's attention pooling nor DINOv3's
class token reads one after the last block. Needs torch, transformers, safetensors; nothing is downloaded.
"""
import argparse, json, os

import torch
import torch.nn.functional as F

from torch_reference import timed

SIGLIP = {"do_resize": True, "size": {"height": 224, "width": 224}, "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
          "image_mean": [.5] * 3, "image_std": [.5] * 3, "image_processor_type": "SiglipImageProcessor"}
DINOV3 = {**SIGLIP, "resample": 2, "image_mean": [.485, .456, .406], "image_std": [.229, .224, .225], "image_processor_type": "DINOv3ViTImageProcessorFast"}
MODELS = {
    "siglip-b16": ("siglip_vision_model", {}, SIGLIP),
    "dinov3-s16": ("dinov3_vit", {"num_register_tokens": 4}, DINOV3),
    "dinov3-s16plus": ("dinov3_vit", {"num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu"}, DINOV3),
    # To try the programs out.
    "siglip-tiny": ("siglip_vision_model", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}, SIGLIP),
    "dinov3-tiny": ("dinov3_vit", {"num_register_tokens": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}, DINOV3),
}


def checkpoint(args):
    import transformers

    kind, settings, processor = MODELS[args.model]
    torch.manual_seed(0)
    siglip = kind.startswith("siglip")
    config, model = (transformers.SiglipVisionConfig, transformers.SiglipVisionModel) if siglip else (transformers.DINOv3ViTConfig, transformers.DINOv3ViTModel)
    model(config(**settings)).save_pretrained(args.out)
    with open(os.path.join(args.out, "preprocessor_config.json"), "w") as file:
        json.dump(processor, file)


class Tower:
    """A frozen tower: images [B, 3, H, W] and prompts [L, P, D] to features [B, D]."""

    def __init__(self, folder):
        import transformers

        self.net = transformers.AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval().requires_grad_(False)
        self.siglip = self.net.config.model_type.startswith("siglip")
        tower = getattr(self.net, "vision_model", self.net) if self.siglip else self.net
        self.tower, self.blocks = tower, tower.encoder.layers if self.siglip else tower.model.layer
        self.width = self.net.config.hidden_size
        self.before = 0 if self.siglip else 1 + self.net.config.num_register_tokens

    def __call__(self, images, prompts):
        x = self.tower.embeddings(images)
        turn = {} if self.siglip else {"position_embeddings": self.tower.rope_embeddings(images)}
        patches = x.shape[1] - self.before
        for i, block in enumerate(self.blocks):
            if i < len(prompts):
                x = torch.cat([x[:, : self.before], prompts[i].expand(len(x), -1, -1), x[:, -patches:]], 1)
            x = block(x, None) if self.siglip else block(x, **turn)
        if self.siglip:
            return self.tower.head(self.tower.post_layernorm(x)[:, -patches:])
        return self.tower.norm(x)[:, 0]


def step(args):
    torch.set_num_threads(args.threads)
    tower = Tower(args.checkpoint)
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator)
    images, labels = normal(args.batch_size, 3, 224, 224), torch.randint(0, 10, (args.batch_size,), generator=generator)
    layers = {"linear": 0, "vpt-shallow": 1, "vpt-deep": len(tower.blocks)}[args.method]
    learned = [normal(10, tower.width) * .1, normal(10) * .1, normal(layers, args.prompt_tokens, tower.width) * .1]
    for values in learned:
        values.requires_grad_()
    timed(args, lambda: F.cross_entropy(F.linear(tower(images, learned[2]), *learned[:2]), labels), learned)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("checkpoint", help="write a seeded random checkpoint")
    command.set_defaults(run=checkpoint)
    command.add_argument("--model", required=True, choices=MODELS)
    command.add_argument("--out", required=True, help="folder")
    command = commands.add_parser("step", help="time and memory of a training step, as JSON")
    command.set_defaults(run=step)
    command.add_argument("--checkpoint", required=True, help="folder")
    command.add_argument("--method", default="vpt-deep", choices=["linear", "vpt-shallow", "vpt-deep"])
    command.add_argument("--prompt-tokens", type=int, default=50)
    command.add_argument("--batch-size", type=int, default=4)
    command.add_argument("--precision", default="f32", choices=["f32", "bf16"])
    command.add_argument("--repeats", type=int, default=3)
    command.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.run(args)
