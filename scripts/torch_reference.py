"""What PyTorch computes from a checkpoint: embeddings, losses and gradients of prompts, and the time of a training step.

    python scripts/torch_reference.py checkpoint --family clip --size b16 --out clip-b16
    python scripts/torch_reference.py embed --checkpoint clip-b16 --images a.png b.png --texts "a cat" --out out.safetensors
    python scripts/torch_reference.py grads --checkpoint clip-b16 --method vpt-deep --prompt-layers last:2 --out out.safetensors
    python scripts/torch_reference.py step --checkpoint clip-b16 --method vpt-deep --prompt-tokens 50 --batch-size 16

The other scripts compare vpt with this one, which shares no code with it. Needs torch, transformers, tokenizers, safetensors, pillow, numpy;
nothing is downloaded.

`embed` runs the models of transformers. `grads` and `step` run the textbook form of visual prompt tuning (Jia et al. 2022) below, on a
vision transformer written as timm writes it, at the checkpoint's own image size. Prompts are expanded over the batch and stand behind the
class token; each prompted block gets its own in the place of those of the block before; behind the last prompted block they go on as
tokens. Those of block 0 pass CLIP's first layer norm with the other tokens.

Random values come from one generator seeded by `--seed`, in this order: images [B, 3, H, W] (normal), labels [B], the head's weight [C, D]
and bias [C], then prompts [K, P, D] or pixels [3, H, W] (all normal times 0.1). So does every run with the same arguments have the same.
"""
import argparse
import json
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

# ------------------------------------------------------------------------------------------------ the textbook form


@dataclass(frozen=True)
class Names:
    """What a family calls the tensors of its vision tower; `{}` stands for the number of a block."""

    embeddings: str
    class_token: str
    positions: str
    patches: str
    block: str
    attention: tuple[str, str, str]
    projection: str
    norms: tuple[str, str]
    mlp: tuple[str, str]
    last_norm: str
    first_norm: str | None = None


VIT = dict(embeddings="embeddings", class_token="cls_token", positions="position_embeddings", patches="patch_embeddings.projection",
           block="encoder.layer.{}", last_norm="layernorm", projection="attention.output.dense",
           attention=("attention.attention.query", "attention.attention.key", "attention.attention.value"))
DINOV2 = Names(**VIT, norms=("norm1", "norm2"), mlp=("mlp.fc1", "mlp.fc2"))
FAMILIES = {
    "clip": Names(embeddings="vision_model.embeddings", class_token="class_embedding", positions="position_embedding.weight",
                  patches="patch_embedding", block="vision_model.encoder.layers.{}", projection="self_attn.out_proj",
                  attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), norms=("layer_norm1", "layer_norm2"), mlp=("mlp.fc1", "mlp.fc2"),
                  first_norm="vision_model.pre_layrnorm", last_norm="vision_model.post_layernorm"),
    "vit": Names(**VIT, norms=("layernorm_before", "layernorm_after"), mlp=("intermediate.dense", "output.dense")),
    "dinov2": DINOV2,
    "dinov2_with_registers": DINOV2,
}


class Checkpoint:
    """A folder in the Hugging Face layout, with its weights in one file."""

    def __init__(self, folder):
        config = json.loads((Path(folder) / "config.json").read_text())
        self.family = config["model_type"]
        if self.family not in FAMILIES:
            raise SystemExit(f"{folder}: model type {self.family}, must be one of {', '.join(FAMILIES)}")
        self.names = FAMILIES[self.family]
        self.vision = config.get("vision_config", config)
        if self.vision.get("use_swiglu_ffn"):
            raise SystemExit(f"{folder}: gated MLPs are not part of the textbook form")
        self.tensors = load_file(Path(folder) / "model.safetensors")

    def setting(self, name, default=None):
        return self.vision.get(name, default)

    def embedding(self, name):
        return self.tensors[f"{self.names.embeddings}.{name}"]

    def pair(self, name):
        """Weight and bias."""
        return self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]


def fill(module, weight, bias):
    """Gives a layer its weight, and its bias if it has one."""
    module.weight = nn.Parameter(weight, requires_grad=False)
    module.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return module


def linear(weight, bias):
    return fill(nn.Linear(weight.shape[1], weight.shape[0], device="meta"), weight, bias)


class QuickGelu(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": QuickGelu, "gelu": nn.GELU, "gelu_new": lambda: nn.GELU("tanh"), "gelu_pytorch_tanh": lambda: nn.GELU("tanh")}


class Block(nn.Module):
    """Attention and MLP, each behind a layer norm and, in DINOv2, before a scale of its channels."""

    def __init__(self, checkpoint, index):
        super().__init__()
        names, prefix = checkpoint.names, checkpoint.names.block.format(index)
        parts = [checkpoint.pair(f"{prefix}.{name}") for name in names.attention]
        self.heads = checkpoint.setting("num_attention_heads")
        # One product for queries, keys and values, as timm has it.
        self.qkv = linear(*(torch.cat(tensors) for tensors in zip(*parts)))
        self.projection = linear(*checkpoint.pair(f"{prefix}.{names.projection}"))
        self.norms = nn.ModuleList(layer_norm(checkpoint, f"{prefix}.{name}") for name in names.norms)
        wide, narrow = (linear(*checkpoint.pair(f"{prefix}.{name}")) for name in names.mlp)
        default = "quick_gelu" if checkpoint.family == "clip" else "gelu"
        self.mlp = nn.Sequential(wide, ACTIVATIONS[checkpoint.setting("hidden_act", default)](), narrow)
        self.scales = [checkpoint.tensors.get(f"{prefix}.layer_scale{i}.lambda1") for i in (1, 2)]

    def attention(self, x):
        batch, count, width = x.shape
        qkv = self.qkv(x).view(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv)
        return self.projection(mixed.transpose(1, 2).reshape(batch, count, width))

    def forward(self, x):
        for norm, part, scale in zip(self.norms, (self.attention, self.mlp), self.scales):
            change = part(norm(x))
            x = x + (change if scale is None else change * scale)
        return x


def layer_norm(checkpoint, name):
    weight, bias = checkpoint.pair(name)
    eps = checkpoint.setting("layer_norm_eps", 1e-5 if checkpoint.family == "clip" else 1e-6)
    return fill(nn.LayerNorm(len(weight), eps=eps, device="meta"), weight, bias)


class VisionTransformer(nn.Module):
    """The tower of a checkpoint, frozen: images [B, 3, H, W] to the class token's features [B, D]."""

    def __init__(self, checkpoint):
        super().__init__()
        names = checkpoint.names
        self.width, self.patch = checkpoint.setting("hidden_size"), checkpoint.setting("patch_size")
        weight = checkpoint.embedding(f"{names.patches}.weight")
        bias = checkpoint.tensors.get(f"{names.embeddings}.{names.patches}.bias")
        self.patches = fill(nn.Conv2d(3, self.width, self.patch, self.patch, device="meta"), weight, bias)
        self.class_token = checkpoint.embedding(names.class_token).view(1, 1, self.width)
        self.positions = checkpoint.embedding(names.positions).view(1, -1, self.width)
        self.registers = checkpoint.tensors.get(f"{names.embeddings}.register_tokens")
        self.first_norm = layer_norm(checkpoint, names.first_norm) if names.first_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(checkpoint, i) for i in range(checkpoint.setting("num_hidden_layers")))
        self.last_norm = layer_norm(checkpoint, names.last_norm)

    @property
    def image_size(self):
        return round((self.positions.shape[1] - 1) ** 0.5) * self.patch

    def embed(self, images):
        """Class token, registers and patches [B, N, D]."""
        patches = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(images), -1, -1), patches], 1) + self.positions
        if self.registers is not None:
            x = behind_class_token(x, self.registers)
        return x

    def forward(self, images, prompts=None, start=0):
        """`prompts` [K, P, D]: those of the K blocks from block `start` on."""
        prompted = {} if prompts is None else {start + i: values for i, values in enumerate(prompts)}
        x = self.embed(images)
        for i, block in enumerate(self.blocks):
            if i in prompted:
                x = behind_class_token(x, prompted[i][None], instead_of=0 if i == start else prompts.shape[1])
            x = block(self.first_norm(x) if i == 0 else x)
        return self.last_norm(x[:, 0])


def behind_class_token(x, tokens, instead_of=0):
    """Puts `tokens` [1, P, D] behind the class token of x [B, N, D], in the place of so many that are there."""
    return torch.cat([x[:, :1], tokens.expand(len(x), -1, -1), x[:, 1 + instead_of :]], 1)


# --------------------------------------------------------------------------------------------------- a training step


class Problem:
    """Random images and labels, what is learned, and its loss."""

    def __init__(self, args):
        self.net = VisionTransformer(Checkpoint(args.checkpoint))
        self.pad, self.start = args.pad, 0
        side, width, depth = self.net.image_size, self.net.width, len(self.net.blocks)
        generator = torch.Generator().manual_seed(args.seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        self.images = normal(args.batch_size, 3, side, side)
        self.labels = torch.randint(0, args.classes, (args.batch_size,), generator=generator)
        self.learned = {"head.weight": normal(args.classes, width) * 0.1, "head.bias": normal(args.classes) * 0.1}
        if args.method == "vpt-shallow":
            self.learned["prompts"] = normal(1, args.prompt_tokens, width) * 0.1
        elif args.method == "vpt-deep":
            self.start, layers = prompt_layers(args.prompt_layers, depth)
            self.learned["prompts"] = normal(layers, args.prompt_tokens, width) * 0.1
        elif args.method == "pad":
            self.learned["pixels"] = normal(3, side, side) * 0.1
        for values in self.learned.values():
            values.requires_grad_()

    def prompted_images(self):
        """The images, with the learned pixels added to a border of `--pad` pixels."""
        if "pixels" not in self.learned:
            return self.images
        border = torch.ones(self.images.shape[-2:])
        border[self.pad : -self.pad, self.pad : -self.pad] = 0
        return self.images + self.learned["pixels"] * border

    def loss(self):
        """Logits [B, C] and their mean cross-entropy."""
        features = self.net(self.prompted_images(), self.learned.get("prompts"), self.start)
        logits = F.linear(features, self.learned["head.weight"], self.learned["head.bias"])
        return logits, F.cross_entropy(logits, self.labels)


def prompt_layers(text, depth):
    """First block and number of blocks of `all`, `first:K` or `last:K`."""
    end, _, count = text.partition(":")
    if end == "all":
        return 0, depth
    if end not in ("first", "last") or not count.isdigit() or not 1 <= int(count) <= depth:
        raise SystemExit(f"--prompt-layers {text}: must be all, first:K or last:K with K from 1 to {depth}")
    return (0 if end == "first" else depth - int(count)), int(count)


def grads(args):
    problem = Problem(args)
    logits, loss = problem.loss()
    loss.backward()
    found = {"images": problem.images, "labels": problem.labels, "logits": logits.detach(), "loss": loss.detach().view(1)}
    for name, values in problem.learned.items():
        found |= {name: values.detach(), f"grad.{name}": values.grad}
    write(found, args.out)


def step(args):
    torch.set_num_threads(args.threads)
    problem = Problem(args)
    timed(args, lambda: problem.loss()[1], problem.learned.values())


def timed(args, loss, learned):
    """Prints the typical time of a step, which `loss` begins and which makes the gradients of `learned`, and the memory it took."""
    seconds = []
    for _ in range(1 + args.repeats):
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.precision == "bf16"):
            value = loss()
        for values in learned:
            values.grad = None
        value.backward()
        seconds.append(time.perf_counter() - start)
    # The first one warms up.
    typical = median(seconds[1:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"median_s": typical, "img_per_s": args.batch_size / typical, "peak_rss_bytes": peak}))


# -------------------------------------------------------------------------------------------------------- embeddings


def pixels(path, config):
    """An image as preprocessor_config.json asks for it [3, H, W]: resized and cropped by Pillow, normalized."""
    from PIL import Image

    image = Image.open(path).convert("RGB")
    size, crop = config["size"], config.get("crop_size")
    if isinstance(size, dict) and "height" in size:
        image = image.resize((size["width"], size["height"]), config["resample"])
    else:
        short = size["shortest_edge"] if isinstance(size, dict) else size
        width, height = image.size
        # The longer side is cut off, not rounded, as torchvision does.
        long = int(short * max(width, height) / min(width, height))
        image = image.resize((short, long) if width <= height else (long, short), config["resample"])
    if config.get("do_center_crop", crop is not None):
        height, width = (crop["height"], crop["width"]) if isinstance(crop, dict) else (crop, crop)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    return (values - mean) / std


def token_ids(folder, texts, context):
    """The ids of the texts [B, context], cut off and filled up with the token that ends a text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(context)
    tokenizer.enable_padding(length=context, pad_id=tokenizer.token_to_id("<|endoftext|>"))
    return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(texts)])


@torch.no_grad()
def embed(args):
    from transformers import AutoModel

    folder = Path(args.checkpoint)
    net = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    config = json.loads((folder / "preprocessor_config.json").read_text())
    found = {"pixels": torch.stack([pixels(path, config) for path in args.images])}
    if net.config.model_type == "clip":
        found["image_embeds"] = net.visual_projection(net.vision_model(found["pixels"]).pooler_output)
        if args.texts:
            ids = token_ids(folder, args.texts, net.config.text_config.max_position_embeddings)
            found |= {"input_ids": ids, "text_embeds": net.text_projection(net.text_model(ids).pooler_output)}
    else:
        found["image_embeds"] = net(found["pixels"]).last_hidden_state[:, 0]
    write(found, args.out)


def write(tensors, path):
    if path is None:
        raise SystemExit("--out FILE is needed")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


# ------------------------------------------------------------------------------------------------ random checkpoints

# Side of the image, side of a patch, width, depth, heads.
SIZES = {"tiny": (32, 8, 32, 3, 4), "small": (64, 8, 192, 6, 3), "s14": (224, 14, 384, 12, 6), "b32": (224, 32, 768, 12, 12), "b16": (224, 16, 768, 12, 12)}
VOCABULARY = 600


def random_model(family, size):
    import transformers

    side, patch, width, depth, heads = SIZES[size]
    tower = dict(hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, image_size=side, patch_size=patch)
    if family == "clip":
        text_width = {768: 512}.get(width, width)
        text = dict(hidden_size=text_width, num_hidden_layers=depth, num_attention_heads=max(text_width // 64, 4), intermediate_size=4 * text_width,
                    vocab_size=VOCABULARY, bos_token_id=VOCABULARY - 2, eos_token_id=VOCABULARY - 1, pad_token_id=VOCABULARY - 1)
        config = transformers.CLIPConfig(text_config=text, vision_config=tower | dict(intermediate_size=4 * width), projection_dim=min(text_width, 512))
        return transformers.CLIPModel(config)
    if family == "vit":
        return transformers.ViTModel(transformers.ViTConfig(**tower, intermediate_size=4 * width), add_pooling_layer=False)
    if side == 224:
        tower["image_size"] = 518  # As the published ones are stored.
    if family == "dinov2":
        return transformers.Dinov2Model(transformers.Dinov2Config(**tower, layerscale_value=0.5))
    return transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**tower, layerscale_value=0.5))


@torch.no_grad()
def checkpoint(args):
    from make_fixtures import CLIP_MEAN, CLIP_STD, IN_MEAN, IN_STD, clip_tokenizer, widen

    torch.manual_seed(args.seed)
    net, side = random_model(args.family, args.size), SIZES[args.size][0]
    widen(net, torch.float32)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    net.save_pretrained(out)
    clip = args.family == "clip"
    processor = {
        "image_processor_type": "CLIPImageProcessor" if clip else "BitImageProcessor",
        "do_resize": True, "size": {"shortest_edge": side}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": side, "width": side},
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": CLIP_MEAN if clip else IN_MEAN, "image_std": CLIP_STD if clip else IN_STD,
    }
    (out / "preprocessor_config.json").write_text(json.dumps(processor, indent=1))
    if clip:
        clip_tokenizer(str(out), VOCABULARY)
        os.remove(out / "texts.json")  # The fixture's own.


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("checkpoint", help="write a seeded random checkpoint in the Hugging Face layout")
    command.set_defaults(run=checkpoint)
    command.add_argument("--family", required=True, choices=["clip", "vit", "dinov2", "dinov2-registers"])
    command.add_argument("--size", default="tiny", choices=SIZES)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--out", required=True, help="folder")

    command = commands.add_parser("embed", help="embeddings of images and texts, by transformers")
    command.set_defaults(run=embed)
    command.add_argument("--checkpoint", required=True, help="folder")
    command.add_argument("--images", nargs="+", required=True)
    command.add_argument("--texts", nargs="*", help="of CLIP")
    command.add_argument("--out", required=True, help="safetensors file")

    for name, run, what in (("grads", grads, "logits, loss and gradients of all that is learned"), ("step", step, "time and memory of a training step, as JSON")):
        command = commands.add_parser(name, help=what)
        command.set_defaults(run=run)
        command.add_argument("--checkpoint", required=True, help="folder")
        command.add_argument("--method", default="vpt-deep", choices=["linear", "vpt-shallow", "vpt-deep", "pad"])
        command.add_argument("--prompt-tokens", type=int, default=5)
        command.add_argument("--prompt-layers", default="all", help="all, first:K or last:K (vpt-deep)")
        command.add_argument("--pad", type=int, default=4, help="width of the border (pad)")
        command.add_argument("--classes", type=int, default=10)
        command.add_argument("--batch-size", type=int, default=4)
        command.add_argument("--seed", type=int, default=0)
        if run is grads:
            command.add_argument("--out", required=True, help="safetensors file")
        else:
            command.add_argument("--precision", default="f32", choices=["f32", "bf16"])
            command.add_argument("--repeats", type=int, default=3)
            command.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    args = arguments()
    args.run(args)
