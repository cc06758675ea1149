"""Makes tests/fixtures: what PyTorch and transformers compute, on small random checkpoints, for the Rust tests to equal.

    python scripts/make_fixtures.py [--out tests/fixtures]

Needs torch, transformers, tokenizers, safetensors, pillow, numpy. Everything is seeded: a second run writes the same
numbers up to the rounding of the PyTorch build. `--reference` is the independent PyTorch program whose `grads` command
gives the losses and gradients.
"""
import argparse, json, os, shutil, subprocess, sys, tempfile

import numpy as np
import torch
from safetensors.torch import load_file, save_file


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


CORPUS = """a photo of a red square on a blue background. two small green circles to the left of a large yellow triangle.
a drawing of a filled star, an outlined ring and a hatched cross; the picture shows three shapes above the other one.
this is a picture of the thing that is in the middle, and there's no more of it than you'd want for a test"""
TEXTS = ["a photo of a red square", "", " ", "A Photo  of\ta\nRED   Square.", "it's what you'd've thought, they'll say we're I'm don't", "1234567890 3.14 2nd 1,000",
         "caf\u00e9 na\u00efve \u00c5ngstr\u00f6m", "e\u0301 vs \u00e9 (combining)", "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8", "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440",
         "\u0645\u0631\u062d\u0628\u0627", "\U0001f642\U0001f680 emoji \U0001f468\u200d\U0001f469\u200d\U0001f467", "STRASSE stra\u00dfe \u0130stanbul \u01c5", "!!!???...,,,;;;---", "<|endoftext|> inside <|startoftext|>",
         "a<|endoftext|>b", "</w> is a suffix", "x" * 300, "red square " * 100, "\u00a0\u2003nbsp\u3000wide", "tabs\tand\x00nul\x7f", "under_score-dash/slash\\back",
         "\u00bd \u2162 \u0661\u0662\u0663 \u00b2", "'S 'T 'RE 'VE '", "\ufeffbyte order mark"]


def clip_tokenizer(out, size=600):
    """A tokenizer built like CLIP's: byte-level BPE with `</w>` at the end of words, of `size` tokens."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    codes = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    chars = [chr(c) for c in codes] + [chr(256 + i) for i in range(256 - len(codes))]
    words = [list(w[:-1]) + [w[-1] + "</w>"] for w in CORPUS.replace(".", " .").replace(",", " ,").replace(";", " ;").split()]
    merges = []
    while len(merges) < size - 512 - 2:
        pairs = {}
        for w in words:
            for p in zip(w, w[1:]): pairs[p] = pairs.get(p, 0) + 1
        best = max(sorted(pairs), key=pairs.get); merges.append(best)
        for w in words:
            i = 0
            while i < len(w) - 1:
                if (w[i], w[i + 1]) == best: w[i:i + 2] = ["".join(best)]
                i += 1
    vocab = chars + [c + "</w>" for c in chars] + ["".join(m) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {t: i for i, t in enumerate(vocab)}
    assert len(vocab) == size
    with open(f"{out}/vocab.json", "w") as f: json.dump(vocab, f)
    with open(f"{out}/merges.txt", "w") as f: f.write("#version: 0.2\n" + "".join(" ".join(m) + "\n" for m in merges))
    t = Tokenizer(models.BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    t.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    pattern = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t.post_processor = processors.RobertaProcessing(("<|endoftext|>", size - 1), ("<|startoftext|>", size - 2), trim_offsets=False, add_prefix_space=False)
    t.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    t.save(f"{out}/tokenizer.json", pretty=False)
    cases = []
    for context in (77, 16):
        t.enable_truncation(context)
        cases += [{"text": x, "context": context, "ids": t.encode(x).ids} for x in TEXTS]
    with open(f"{out}/texts.json", "w") as f: f.write("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")


# A checkpoint for every family, in every form a folder can have: types, shards, prefixes, old preprocessor files.
KW = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
CLIP_MEAN, CLIP_STD = [.48145466, .4578275, .40821073], [.26862954, .26130258, .27577711]
IN_MEAN, IN_STD = [.485, .456, .406], [.229, .224, .225]
SIDE, LARGE = 32, 48
PROMPTED = ["a photo of a red square", "two small green circles", "", "A test: it's 3 x 4!", "red square " * 100]
CASES = [("linear", "all"), ("vpt-shallow", "all"), ("vpt-deep", "all"), ("vpt-deep", "first:2"), ("vpt-deep", "last:2"), ("vpt-deep", "last:1"), ("pad", "all")]


def families():
    """name -> (model, the plain model inside it, type stored, save options, preprocessor_config.json)"""
    import transformers as T
    vision = dict(**KW, intermediate_size=128, image_size=SIDE, patch_size=8)
    text = dict(**KW, intermediate_size=128, vocab_size=600, bos_token_id=598, eos_token_id=599, pad_token_id=599)
    clip = T.CLIPModel(T.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    # eos_token_id 2 is what configurations of 2021 to 2023 say.
    gelu = T.CLIPModel(T.CLIPConfig(text_config=dict(text, eos_token_id=2, hidden_act="gelu", num_hidden_layers=2), vision_config=dict(vision, hidden_act="gelu"), projection_dim=24))
    vit = T.ViTForImageClassification(T.ViTConfig(**vision))
    deit = T.DeiTForImageClassificationWithTeacher(T.DeiTConfig(**vision, layer_norm_eps=1e-6))
    dino = T.Dinov2Model(T.Dinov2Config(**KW, image_size=SIDE, patch_size=8, layerscale_value=.5))
    reg = T.Dinov2WithRegistersForImageClassification(T.Dinov2WithRegistersConfig(**KW, image_size=SIDE, patch_size=8, layerscale_value=.5))
    common = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    crop = {**common, "size": {"shortest_edge": 40}, "resample": 3, "do_center_crop": True, "crop_size": {"height": SIDE, "width": SIDE}, "image_mean": IN_MEAN, "image_std": IN_STD}
    old = {"do_resize": True, "size": SIDE, "resample": 3, "do_center_crop": True, "crop_size": SIDE, "do_normalize": True, "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
           "feature_extractor_type": "CLIPFeatureExtractor"}
    stretch = {**common, "size": {"height": SIDE, "width": SIDE}, "resample": 2, "image_mean": [.5] * 3, "image_std": [.5] * 3, "image_processor_type": "ViTImageProcessor"}
    return {
        "clip": (clip, clip, torch.float16, {}, old),
        "clip-gelu": (gelu, gelu, torch.bfloat16, {}, {**crop, "size": {"shortest_edge": SIDE}, "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "image_processor_type": "CLIPImageProcessor"}),
        "vit": (vit, vit.vit, torch.float32, dict(max_shard_size="80KB"), stretch),
        "deit": (deit, deit.deit, torch.float16, {}, {**stretch, "resample": 3}),
        "dinov2": (dino, dino, torch.bfloat16, dict(max_shard_size="40KB"), {**crop, "image_processor_type": "BitImageProcessor"}),
        "dinov2-registers": (reg, reg.dinov2_with_registers, torch.float16, {}, {**crop, "image_processor_type": "BitImageProcessor"}),
    }


def widen(net, dtype):
    """The default initialisation is too narrow to tell right from wrong. Values are rounded to the type they will be stored in."""
    for name, p in net.named_parameters():
        if "logit_scale" in name: continue
        if p.ndim == 1: p.add_(torch.randn_like(p) * .1)
        elif "patch" in name: p.normal_(0, .05)
        elif p.ndim == 2 and "embed" not in name: p.normal_(0, p.shape[1] ** -.5)
        else: p.normal_(0, .2)
        p.copy_(p.to(dtype).float())


def pictures(out):
    """Two small pictures drawn here: smooth colours, edges and noise, none of them square."""
    from PIL import Image
    os.makedirs(f"{out}/images", exist_ok=True)
    rng = np.random.default_rng(0)
    for name, w, h in (("a", 53, 41), ("b", 40, 64)):
        y, x = np.mgrid[:h, :w]
        im = np.stack([255 * x / w, 255 * y / h, 128 + 127 * np.sin((x + y) / 5)], -1)
        im[(x - w / 2) ** 2 + (y - h / 3) ** 2 < 90] = (230, 40, 20) if name == "a" else (20, 60, 240)
        im[(x // 6 + y // 6) % 2 == 0] *= .8
        Image.fromarray(np.clip(im + rng.normal(0, 8, im.shape), 0, 255).astype(np.uint8)).save(f"{out}/images/{name}.png")
    a = Image.open(f"{out}/images/a.png")
    for name, im, options in (("420", a, dict(subsampling=2)), ("422-progressive", a, dict(subsampling=1, progressive=True)), ("444", a, dict(subsampling=0)), ("grey", a.convert("L"), {})):
        path = f"{out}/images/{name}"; im.save(f"{path}.jpg", quality=85, **options)
        Image.open(f"{path}.jpg").convert("RGB").save(f"{path}.png")
    return [f"{out}/images/{n}.png" for n in "ab"]


def preprocess(path, c, side=None):
    from PIL import Image
    im = Image.open(path).convert("RGB"); w, h = im.size
    size, filter = c["size"], c["resample"]
    if side: im = im.resize((side, side), filter)
    elif isinstance(size, dict) and "height" in size: im = im.resize((size["width"], size["height"]), filter)
    else:
        s = size if isinstance(size, int) else size["shortest_edge"]; long = int(s * max(w, h) / min(w, h))
        im = im.resize((s, long) if w <= h else (long, s), filter); w, h = im.size
        l, t = (w - SIDE) // 2, (h - SIDE) // 2; im = im.crop((l, t, l + SIDE, t + SIDE))
    x = torch.from_numpy(np.array(im)).permute(2, 0, 1).float() / 255
    return (x - torch.tensor(c["image_mean"]).view(3, 1, 1)) / torch.tensor(c["image_std"]).view(3, 1, 1)


def embeddings(name, plain, c, out, images):
    """Image embeddings at the stored size and at a larger one, with the pixels they were computed from, and text embeddings."""
    result = {}
    for key, side in (("", None), ("large.", LARGE)):
        x = torch.stack([preprocess(p, c, side) for p in images])
        options = dict(interpolate_pos_encoding=True) if side and not name.startswith("dinov2") else {}
        if name.startswith("clip"): e = plain.visual_projection(plain.vision_model(x, **options).pooler_output)
        else: e = plain(x, **options).last_hidden_state[:, 0]
        result |= {key + "pixels": x, key + "image_embeds": e}
    if name.startswith("clip"):
        from tokenizers import Tokenizer
        t = Tokenizer.from_file(f"{out}/tokenizer.json"); t.enable_padding(length=77, pad_id=599); t.enable_truncation(77)
        ids = torch.tensor([e.ids for e in t.encode_batch(PROMPTED)])
        result["text_embeds"] = plain.text_projection(plain.text_model(ids).pooler_output)
    return result


def gradients(reference, plain):
    """The reference program's `grads` for every method. What is the same for all of them is stored once."""
    result = {}
    with tempfile.TemporaryDirectory() as tmp:
        plain.save_pretrained(f"{tmp}/model")
        for method, layers in CASES:
            case = method if layers == "all" else f"{method}.{layers.replace(':', '-')}"
            subprocess.run([sys.executable, reference, "grads", "--checkpoint", f"{tmp}/model", "--method", method, "--prompt-layers", layers, "--classes", "7",
                            "--batch-size", "3", "--out", f"{tmp}/out.safetensors"], check=True)
            for k, v in load_file(f"{tmp}/out.safetensors").items():
                if k in ("images", "labels", "head.weight", "head.bias"):
                    assert torch.equal(result.setdefault(k, v), v)
                else: result[f"{case}.{k}"] = v
    return result


def checkpoints(out, reference, images):
    torch.manual_seed(0)
    for name, (net, plain, dtype, options, c) in families().items():
        dir = f"{out}/{name}"; shutil.rmtree(dir, ignore_errors=True); os.makedirs(dir)
        with torch.no_grad():
            widen(net, dtype); net.eval()
            if name.startswith("clip"): clip_tokenizer(dir)
            result = embeddings(name, plain, c, dir, images)
        if name != "deit": result |= gradients(reference, plain)
        save_file({k: v.contiguous() for k, v in result.items()}, f"{dir}/expected.safetensors")
        net.to(dtype).save_pretrained(dir, **options)
        with open(f"{dir}/preprocessor_config.json", "w") as f: json.dump(c, f, indent=1)
    with open(f"{out}/prompted.json", "w") as f: json.dump(PROMPTED, f)
    for name in ("vocab.json", "merges.txt", "texts.json"): os.remove(f"{out}/clip-gelu/{name}")


def small_families(out, images):
    """Checkpoints of whose forms the others have all but one thing: a gated MLP; an encoder inside an auto-encoder, with fixed positions. Embeddings only;
    the pixels are those of `dinov2` and `vit`."""
    import transformers as T
    kw = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=8)
    swiglu = T.Dinov2WithRegistersModel(T.Dinov2WithRegistersConfig(**kw, use_swiglu_ffn=True, layerscale_value=.5))
    mae = T.ViTMAEForPreTraining(T.ViTMAEConfig(**kw, intermediate_size=40, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=16))
    for name, net, plain, like in (("dinov2-swiglu", swiglu, swiglu, "dinov2"), ("mae", mae, mae.vit, "vit")):
        dir = f"{out}/{name}"; shutil.rmtree(dir, ignore_errors=True); os.makedirs(dir)
        with open(f"{out}/{like}/preprocessor_config.json") as f: c = json.load(f)
        with torch.no_grad():
            fixed = plain.embeddings.position_embeddings.half().float()
            widen(net, torch.float16); net.eval()
            result = {}
            for key, side in (("", None), ("large.", LARGE)):
                x = torch.stack([preprocess(p, c, side) for p in images]); options = {}
                if name == "mae":
                    plain.embeddings.position_embeddings.copy_(fixed); plain.config.mask_ratio = 0.
                    options = dict(noise=torch.arange(x[0, 0].numel() // 64).expand(len(x), -1).float(), interpolate_pos_encoding=bool(side))
                result[key + "image_embeds"] = plain(x, **options).last_hidden_state[:, 0].contiguous()
        net.config.mask_ratio = .75
        save_file(result, f"{dir}/expected.safetensors"); net.half().save_pretrained(dir)
        shutil.copy(f"{out}/{like}/preprocessor_config.json", dir)


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--reference", default=os.path.join(os.path.dirname(__file__), "torch_reference.py"), help="the program that runs PyTorch")
    ap.add_argument("--out", default=os.path.join(os.path.dirname(__file__), "..", "tests", "fixtures"))
    a = ap.parse_args()
    os.makedirs(a.out, exist_ok=True)
    torch.set_num_threads(1)
    position(a.out)
    images = pictures(a.out)
    checkpoints(a.out, a.reference, images)
    torch.manual_seed(1)
    small_families(a.out, images)
    for root, _, files in os.walk(a.out):
        for name in files: os.chmod(os.path.join(root, name), 0o644)  # safetensors writes 0600
