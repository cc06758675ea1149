"""Makes tests/fixtures/siglip*: small random SigLIP checkpoints of both generations, and what transformers makes of images and texts.

    python scripts/make_siglip_fixtures.py [--out tests/fixtures]

Needs torch, transformers, tokenizers, safetensors, pillow, numpy. Everything is seeded. The pictures are those of make_fixtures.py.
"""
import json, os, re, shutil, string, sys

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

sys.path.insert(0, os.path.dirname(__file__))
from fixture_folder import fixture_folder
from make_fixtures import CORPUS, TEXTS, widen

SIDE, LARGE, FLOOR, CONTEXT = 32, 48, 35, 16
PROMPTED = ["a photo of a red square", "two small green circles", "", "A test: it's 3 x 4!", "red square " * 100]
CASES = ["linear", "vpt-shallow", "vpt-deep", "vpt-deep.first-2", "vpt-deep.last-2", "vpt-deep.last-1", "pad"]
STRINGS = TEXTS + ["A photo of a St. Bernard.", "a_red_square", "  spaces   inside  and around ", "\u03a3\u0391\u03a3 \u0130", "<eos> <pad> </s> <bos>", "\u2581marks \u2581 of words", "-- dash first", "(c) \u00a9 \u20ac5 100%"]


def canonicalize(text):
    """The authors' (big_vision/evaluators/proj/image_text/prompt_engineering.py), as transformers' SiglipTokenizer has it."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\s+", " ", text).strip()


def unigram():
    """A tokenizer in the form of T5's, as the first generation has it: no punctuation is ever removed by the file itself."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    t = Tokenizer(models.Unigram())
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")])
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    t.train_from_iterator(CORPUS.split("\n") * 4, trainers.UnigramTrainer(vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False))
    t.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])

    def encode(text):
        ids = t.encode(canonicalize(text), add_special_tokens=False).ids[: CONTEXT - 1] + [1]
        return ids + [1] * (CONTEXT - len(ids))

    return t, encode


def gemma():
    """A tokenizer in the form of Gemma's, and ids by transformers' own class for the second generation, which adds lower case."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import Siglip2Tokenizer
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    t = Tokenizer(models.BPE(fuse_unk=True, unk_token="<unk>", byte_fallback=True))
    t.normalizer = normalizers.Replace(" ", "\u2581")
    t.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    t.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    t.train_from_iterator(CORPUS.split("\n"), trainers.BpeTrainer(vocab_size=520, special_tokens=special + [f"<0x{i:02X}>" for i in range(256)], show_progress=False))
    file = json.loads(t.to_str())
    # Bytes are tokens of the model, which a text can only give by falling back on them.
    file["added_tokens"] = [token for token in file["added_tokens"] if token["content"] in special]
    merges = [tuple(m) for m in file["model"]["merges"]]
    own = Siglip2Tokenizer(file["model"]["vocab"], merges, add_bos_token=False, add_eos_token=True, padding_side="right", model_max_length=CONTEXT)
    return Tokenizer.from_str(json.dumps(file)), lambda text: own(text, padding="max_length", truncation=True, max_length=CONTEXT).input_ids


def pixels(path, side, filter):
    im = Image.open(path).convert("RGB").resize((side, side), filter)
    return (torch.from_numpy(np.array(im)).permute(2, 0, 1).float() / 255 - .5) / .5


def patch_rows(x, patch):
    """What the NaFlex processor makes of square images: [B, N, p p 3]."""
    b, c, h, w = x.shape
    return x.reshape(b, c, h // patch, patch, w // patch, patch).permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * c)


def features(tower, images, prompts=None, start=0):
    """Image features [B, D] with prompts [K, P, D] before the patches of the K blocks from `start` on. The head reads no prompt."""
    x = tower.embeddings(images)
    count, own = 0, x.shape[1]
    for i, block in enumerate(tower.encoder.layers):
        if prompts is not None and start <= i < start + len(prompts):
            count = prompts.shape[1]
            x = torch.cat([prompts[i - start].expand(len(x), -1, -1), x[:, -own:]], 1)
        x = block(x, None)
    return tower.head(tower.post_layernorm(x)[:, -own:])


def gradients(tower):
    """Losses and gradients of every method, as torch_reference.py has them for the other families."""
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator)
    width, depth = 32, 3
    shared = {"images": normal(3, 3, SIDE, SIDE), "labels": torch.randint(0, 7, (3,), generator=generator), "head.weight": normal(7, width) * .1, "head.bias": normal(7) * .1}
    result = dict(shared)
    border = torch.ones(SIDE, SIDE); border[4:-4, 4:-4] = 0
    for case in CASES:
        learned = {k: shared[k].clone().requires_grad_() for k in ("head.weight", "head.bias")}
        method, _, layers = case.partition(".")
        end, _, k = layers.partition("-"); k = int(k or depth)
        start = depth - k if end == "last" else 0
        images, prompts = shared["images"], None
        if method.startswith("vpt"):
            prompts = learned["prompts"] = (normal(1 if method == "vpt-shallow" else k, 4, width) * .1).requires_grad_()
        if method == "pad":
            learned["pixels"] = (normal(3, SIDE, SIDE) * .1).requires_grad_()
            images = images + learned["pixels"] * border
        logits = torch.nn.functional.linear(features(tower, images, prompts, start), learned["head.weight"], learned["head.bias"])
        loss = torch.nn.functional.cross_entropy(logits, shared["labels"]); loss.backward()
        result |= {f"{case}.logits": logits.detach(), f"{case}.loss": loss.detach().view(1)}
        for name, values in learned.items():
            result[f"{case}.grad.{name}"] = values.grad
            if name not in shared: result[f"{case}.{name}"] = values.detach()
    return result


def checkpoint(out, name, net, tokenizer, images, c, dtype, large):
    dir = f"{out}/{name}"; shutil.rmtree(dir, ignore_errors=True); os.makedirs(dir)
    t, encode = tokenizer
    side, filter = c["size"]["height"] if "size" in c else SIDE, c["resample"]
    with torch.no_grad():
        widen(net, dtype); net.eval()
        net.logit_scale.fill_(2.5); net.logit_bias.fill_(-3.25)
        result = {}
        for key, s in (("", side), ("large.", large)):
            x = torch.stack([pixels(p, s, filter) for p in images])
            if name == "siglip2":
                n = (s // 8) ** 2
                e = net.get_image_features(pixel_values=patch_rows(x, 8), pixel_attention_mask=torch.ones(len(x), n, dtype=torch.long), spatial_shapes=torch.tensor([[s // 8, s // 8]] * len(x))).pooler_output
            else: e = net.get_image_features(x, interpolate_pos_encoding=s != side).pooler_output
            result |= {key + "pixels": x, key + "image_embeds": e}
        result["text_embeds"] = net.get_text_features(torch.tensor([encode(text) for text in PROMPTED])).pooler_output
        i, w = (torch.nn.functional.normalize(result[k], dim=-1) for k in ("image_embeds", "text_embeds"))
        result["logits_per_image"] = i @ w.T * net.logit_scale.exp() + net.logit_bias
    if name == "siglip": result |= gradients(net.vision_model)
    save_file({k: v.contiguous() for k, v in result.items()}, f"{dir}/expected.safetensors")
    net.to(dtype).save_pretrained(dir)
    t.save(f"{dir}/tokenizer.json", pretty=False)
    with open(f"{dir}/preprocessor_config.json", "w") as f: json.dump(c, f, indent=1)
    with open(f"{dir}/texts.json", "w") as f: f.write("[\n" + ",\n".join(json.dumps({"text": x, "context": CONTEXT, "ids": encode(x)}) for x in STRINGS) + "\n]\n")


def main(out):
    import transformers as T
    kw = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80)
    first, second = unigram(), gemma()
    text = lambda t: dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40, projection_size=32, vocab_size=t.get_vocab_size(), max_position_embeddings=CONTEXT)
    images = [f"{out}/images/{n}.png" for n in "ab"]
    c = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [.5] * 3, "image_std": [.5] * 3, "resample": 3}
    square = lambda side: {**c, "size": {"height": side, "width": side}, "image_processor_type": "SiglipImageProcessor"}
    torch.manual_seed(2)
    net = T.SiglipModel(T.SiglipConfig(vision_config=dict(**kw, image_size=SIDE, patch_size=8), text_config=text(first[0])))
    checkpoint(out, "siglip", net, first, images, square(SIDE), torch.float16, LARGE)
    # 35 pixels are four patches of 8 and 3 that are not read.
    net = T.SiglipModel(T.SiglipConfig(vision_config=dict(**kw, image_size=FLOOR, patch_size=8), text_config=text(second[0])))
    checkpoint(out, "siglip-v2", net, second, images, square(FLOOR), torch.bfloat16, LARGE)
    net = T.Siglip2Model(T.Siglip2Config(vision_config=dict(**kw, num_patches=16, patch_size=8), text_config=text(second[0])))
    naflex = {**c, "resample": 2, "patch_size": 8, "max_num_patches": 16, "image_processor_type": "Siglip2ImageProcessor"}
    checkpoint(out, "siglip2", net, second, images, naflex, torch.float16, LARGE)
    for name in ("siglip", "siglip-v2", "siglip2"):
        for file in os.listdir(f"{out}/{name}"): os.chmod(f"{out}/{name}/{file}", 0o644)  # safetensors writes 0600


if __name__ == "__main__":
    fixtures = fixture_folder(__doc__, "--out")
    torch.set_num_threads(1)
    main(fixtures)
