"""Makes tests/fixtures/text-prompts.safetensors: losses and gradients of the methods that learn texts, by PyTorch.

    python scripts/make_text_prompt_fixtures.py [--fixtures tests/fixtures]

Needs torch, transformers, tokenizers, safetensors, numpy. The towers are transformers' CLIP, with whole sequences padded to the
tower's context, a causal mask and prompts put into their places before a block: nothing is shared, left out or computed ahead.
"""
import os

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import CLIPModel

from fixture_folder import fixture_folder

NAMES = ["red square", "two small_circles", "star", "a drawing of the picture"]
TEMPLATES = ["a photo of a {}.", "the {} in a picture", "a drawing of a {}"]
IMAGE_TOKENS = 3


def causal(length):
    return torch.full((length, length), float("-inf")).triu(1)[None, None]


def run_block(layer, x, mask):
    """A transformers encoder layer by its parts, which have not changed their names in years."""
    h = layer.layer_norm1(x)
    att = layer.self_attn
    b, n, d = h.shape
    split = lambda t: t.view(b, n, att.num_heads, -1).transpose(1, 2)
    q, k, v = split(att.q_proj(h)), split(att.k_proj(h)), split(att.v_proj(h))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None: scores = scores + mask
    x = x + att.out_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d))
    return x + layer.mlp(layer.layer_norm2(x))


class Clip:
    def __init__(self, dir):
        self.net = CLIPModel.from_pretrained(dir, dtype=torch.float32).eval().double()
        for p in self.net.parameters(): p.requires_grad_(False)
        self.tokenizer = Tokenizer.from_file(f"{dir}/tokenizer.json")
        self.context = self.net.config.text_config.max_position_embeddings
        self.tokenizer.no_padding()

    def ids(self, text):
        return self.tokenizer.encode(text).ids

    def word_embeddings(self, text):
        return self.net.text_model.embeddings.token_embedding(torch.tensor(self.ids(text)[1:-1]))

    def text(self, vectors, names):
        """vectors [layers, n, D] or, an image each, [1, n, D]: projected embeddings [C, E]."""
        model = self.net.text_model
        n = vectors.shape[1]
        rows, ends = [], []
        for name in names:
            ids = self.ids(name.replace("_", " ") + ".")
            words = model.embeddings.token_embedding(torch.tensor(ids))
            x = torch.cat([words[:1], vectors[0], words[1:]])
            ends.append(len(x) - 1)
            end = model.embeddings.token_embedding(torch.tensor([ids[-1]] * (self.context - len(x))))
            rows.append(torch.cat([x, end]))
        x = torch.stack(rows) + model.embeddings.position_embedding.weight[: self.context]
        for i, layer in enumerate(model.encoder.layers):
            if 0 < i < len(vectors):
                x = torch.cat([x[:, :1], vectors[i].expand(len(x), -1, -1), x[:, 1 + n:]], 1)
            x = run_block(layer, x, causal(self.context).double())
        x = model.final_layer_norm(x)[torch.arange(len(x)), ends]
        return self.net.text_projection(x)

    def plain_text(self, text):
        ids = torch.tensor([self.ids(text)])
        return self.net.text_projection(self.net.text_model(input_ids=ids).pooler_output)[0]

    def image(self, pixels, tokens=None):
        """tokens [layers, P, D]: before `ln_pre` in the first block, in place of the old ones later; they travel on at the end."""
        model = self.net.vision_model
        x = model.embeddings(pixels)
        own = x.shape[1]
        if tokens is not None: x = torch.cat([x, tokens[0].expand(len(x), -1, -1)], 1)
        x = model.pre_layrnorm(x)
        for i, layer in enumerate(model.encoder.layers):
            if tokens is not None and 0 < i < len(tokens):
                x = torch.cat([x[:, :own], tokens[i].expand(len(x), -1, -1)], 1)
            x = run_block(layer, x, None)
        return self.net.visual_projection(model.post_layernorm(x[:, 0]))


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def make(dir, seed):
    torch.manual_seed(seed)
    clip = Clip(dir)
    expected = load_file(f"{dir}/expected.safetensors")
    pixels, labels = expected["images"].double(), torch.arange(len(expected["images"])) % len(NAMES)
    width, image_width = clip.net.config.text_config.hidden_size, clip.net.config.vision_config.hidden_size
    text_depth, depth = clip.net.config.text_config.num_hidden_layers, clip.net.config.vision_config.num_hidden_layers
    embedding = clip.net.config.projection_dim
    scale = clip.net.logit_scale.exp()
    random = lambda *shape, std=.5: (torch.randn(*shape) * std).float().double()
    out = {"images": expected["images"], "labels": labels}

    with torch.no_grad():
        assert torch.allclose(clip.text(clip.word_embeddings("a photo of a")[None], ["red square"])[0], clip.plain_text("a photo of a red square."), atol=1e-10)
        assert torch.allclose(clip.image(pixels), clip.net.get_image_features(pixels).pooler_output if hasattr(clip.net.get_image_features(pixels), "pooler_output") else clip.net.get_image_features(pixels), atol=1e-10)
        frozen_images = unit(clip.image(pixels))
        frozen_texts = unit(torch.stack([torch.stack([clip.plain_text(t.replace("{}", c.replace("_", " "))) for t in TEMPLATES]).mean(0) for c in NAMES]))
    out["frozen_texts"] = frozen_texts.float()

    def case(name, params, loss_of):
        params = {k: v.clone().requires_grad_(True) for k, v in params.items()}
        loss, logits = loss_of(params)
        loss.backward()
        for key, p in params.items():
            out[f"{name}.{key}"] = p.detach().float().contiguous()
            out[f"{name}.grad.{key}"] = p.grad.float().contiguous()
        out[f"{name}.loss"] = loss.detach().float().reshape(1)
        out[f"{name}.logits"] = logits.detach().float().contiguous()

    def logits_of(images, texts):
        return scale * unit(images) @ unit(texts).T

    def coop(p):
        logits = logits_of(clip.image(pixels), clip.text(p["prompt.text"], NAMES))
        return F.cross_entropy(logits, labels), logits

    def cocoop(p):
        images = unit(clip.image(pixels))
        hidden = F.relu(images @ p["prompt.meta.fc1.weight"].T + p["prompt.meta.fc1.bias"])
        shift = hidden @ p["prompt.meta.fc2.weight"].T + p["prompt.meta.fc2.bias"]
        logits = torch.cat([logits_of(image[None], clip.text(p["prompt.text"] + s, NAMES)) for image, s in zip(images, shift)])
        return F.cross_entropy(logits, labels), logits

    def ivlp(p):
        logits = logits_of(clip.image(pixels, p["prompt.tokens"]), clip.text(p["prompt.text"], NAMES))
        return F.cross_entropy(logits, labels), logits

    def maple(p):
        tokens = torch.stack([F.linear(t, w, b) for t, w, b in zip(p["prompt.text"], p["prompt.map.weight"], p["prompt.map.bias"])])
        logits = logits_of(clip.image(pixels, tokens), clip.text(p["prompt.text"], NAMES))
        return F.cross_entropy(logits, labels), logits

    def promptsrc(p):
        images, texts = unit(clip.image(pixels, p["prompt.tokens"])), unit(clip.text(p["prompt.text"], NAMES))
        logits, before = scale * images @ texts.T, scale * frozen_images @ frozen_texts.T
        ties = 10 * F.l1_loss(images, frozen_images) + 25 * F.l1_loss(texts, frozen_texts)
        kl = F.kl_div(F.log_softmax(logits, 1), F.log_softmax(before, 1), reduction="sum", log_target=True) / logits.numel()
        return F.cross_entropy(logits, labels) + ties + kl, logits

    hidden = max(embedding // 16, 1)
    meta = {"prompt.meta.fc1.weight": random(hidden, embedding), "prompt.meta.fc1.bias": random(hidden).abs(), "prompt.meta.fc2.weight": random(width, hidden), "prompt.meta.fc2.bias": random(width)}
    case("coop", {"prompt.text": random(1, 5, width)}, coop)
    case("cocoop", {"prompt.text": random(1, 4, width), **meta}, cocoop)
    for layers in (1, 2, text_depth):
        text, tokens = random(layers, 4, width), random(layers, IMAGE_TOKENS, image_width)
        case(f"ivlp.{layers}", {"prompt.text": text, "prompt.tokens": tokens}, ivlp)
        case(f"promptsrc.{layers}", {"prompt.text": text, "prompt.tokens": tokens}, promptsrc)
        case(f"maple.{layers}", {"prompt.text": random(layers, 2, width), "prompt.map.weight": random(layers, image_width, width, std=.2), "prompt.map.bias": random(layers, image_width)}, maple)
    return out


if __name__ == "__main__":
    fixtures = fixture_folder(__doc__)
    torch.set_num_threads(1)
    path = f"{fixtures}/text-prompts.safetensors"
    save_file(make(f"{fixtures}/clip", 1), path)
    os.chmod(path, 0o644)  # safetensors writes 0600
