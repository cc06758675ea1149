"""Makes tests/fixtures: what PyTorch and transformers compute, on small random checkpoints, for the Rust tests to equal.

    python scripts/make_fixtures.py --reference torch_reference.py [--out tests/fixtures]

Needs torch, transformers, tokenizers, safetensors, pillow, numpy. Everything is seeded: a second run writes the same
numbers up to the rounding of the PyTorch build. `--reference` is the independent PyTorch program whose `grads` command
gives the losses and gradients.
"""
import argparse, json, os

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


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--reference", required=True, help="path of torch_reference.py")
    ap.add_argument("--out", default=os.path.join(os.path.dirname(__file__), "..", "tests", "fixtures"))
    a = ap.parse_args()
    os.makedirs(a.out, exist_ok=True)
    torch.set_num_threads(1)
    position(a.out)
    os.makedirs(f"{a.out}/clip", exist_ok=True)
    clip_tokenizer(f"{a.out}/clip")
