"""Makes tests/fixtures/open-clip.json: embeddings of images and texts, and token ids, by open_clip.

    python scripts/make_open_clip_fixture.py [--fixtures tests/fixtures] [--folder OUT]

Needs torch, open_clip_torch, pillow, numpy, safetensors. The models are small and have every value from a formula (`values`), so that the
tests write the same weights without a file of them. With --folder the first model is saved there as open_clip saves one.
"""
import argparse, json, os

import numpy as np
import open_clip
import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import save_file

from fixture_values import picture, values

TEXTS = [
    "a photo of a cat", "", "  A   PHOTO\tof\nSt. Bernard's dogs!! ", "caf\u00e9 na\u00efve \u201cquoted\u201d \u2018it\u2019s\u2019", "\uff26\uff35\uff2c\uff2c \ufb01ne",
    "&lt;b&gt; &amp;amp; &quot;x&quot; &#39;y&#39;", "\u732b\u306e\u5199\u771f", "\u0444\u043e\u0442\u043e \u043a\u043e\u0448\u043a\u0438", "\U0001f408 and \U0001f415\u200d\U0001f9ba", "1234 + 5.6 = 1239.6",
    "we'll they're I'm don't can't o'clock", "x" * 300, "word " * 100, "e\u0301 combining", "<start_of_text> in the text <end_of_text>", "a_b-c/d\\e", "\u0130stanbul STRASSE \u00df", "tab\x07bell\x00nul",
]
CASES = {
    "plain": ({"embed_dim": 12, "vision_cfg": {"image_size": 32, "layers": 2, "width": 24, "patch_size": 8, "head_width": 8},
               "text_cfg": {"context_length": 20, "width": 16, "heads": 2, "layers": 2}}, {}),
    "quick": ({"embed_dim": 12, "quick_gelu": True, "custom_text": True,
               "vision_cfg": {"image_size": 32, "layers": 2, "width": 24, "patch_size": 8, "head_width": 12, "mlp_ratio": 2.5},
               "text_cfg": {"context_length": 77, "width": 16, "heads": 4, "layers": 1}},
              {"resize_mode": "squash", "interpolation": "bilinear", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}),
    "longest": ({"embed_dim": 8, "vision_cfg": {"image_size": 24, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8, "act_kwargs": {"approximate": "tanh"}},
                 "text_cfg": {"width": 8, "heads": 2, "layers": 1}}, {"resize_mode": "longest", "size": [24, 24]}),
}

# Of which all but the activation can be told by the tensors.
BARE = {"embed_dim": 12, "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"width": 64, "heads": 1, "layers": 1}}
CASES |= {"bare": (BARE, {}), "bare-quick": ({**BARE, "quick_gelu": True}, {})}


def fill(model):
    state = model.state_dict()
    for number, name in enumerate(sorted(state)):
        if name == "attn_mask" or name.endswith(".attn_mask"):
            continue
        centre = 1.0 if ("ln_" in name and name.endswith("weight")) else (2.0 if name == "logit_scale" else 0.0)
        state[name] = torch.tensor(values(number, tuple(state[name].shape), 0.3) + np.float32(centre))
    model.load_state_dict(state)
    return state


def main(fixtures, folder):
    tokenizer = open_clip.SimpleTokenizer()
    out = {"ids": [[text, [i for i in tokenizer([text])[0].tolist()]] for text in TEXTS], "cases": {}}
    for name, (model_cfg, preprocess_cfg) in CASES.items():
        cls = CustomTextCLIP if model_cfg.get("custom_text") else CLIP
        model = cls(**{key: value for key, value in model_cfg.items() if key != "custom_text"}).eval()
        state = fill(model)
        size = {"size": model_cfg["vision_cfg"]["image_size"]}
        prepare = image_transform_v2(PreprocessCfg(**{**size, **preprocess_cfg}), is_train=False)
        sizes = [(35, 32), (64, 43), (41, 67), (20, 31)]
        pixels = torch.stack([prepare(picture(*size)) for size in sizes])
        tokens = tokenizer(TEXTS, context_length=model.context_length)
        with torch.no_grad():
            images, texts = model.encode_image(pixels), model.encode_text(tokens)
        out["cases"][name] = {
            "config": {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg},
            "tensors": {key: list(value.shape) for key, value in sorted(state.items()) if not key.endswith("attn_mask")},
            "numbers": {key: number for number, key in enumerate(sorted(state))},
            "sizes": sizes,
            "images": [[round(v, 6) for v in row] for row in images.tolist()],
            "texts": [[round(v, 6) for v in row] for row in texts.tolist()],
        }
        if folder:
            place = os.path.join(folder, name)
            os.makedirs(place, exist_ok=True)
            json.dump(out["cases"][name]["config"], open(os.path.join(place, "open_clip_config.json"), "w"))
            save_file({key: value.contiguous() for key, value in state.items()}, os.path.join(place, "open_clip_model.safetensors"))
            os.makedirs(place + "-pickled", exist_ok=True)
            json.dump(out["cases"][name]["config"], open(os.path.join(place + "-pickled", "open_clip_config.json"), "w"))
            torch.save(model.state_dict(), os.path.join(place + "-pickled", "open_clip_pytorch_model.bin"))
            for number, size in enumerate(sizes):
                picture(*size).save(os.path.join(place, f"{number}.png"))
    with open(f"{fixtures}/open-clip.json", "w") as file:
        json.dump(out, file, ensure_ascii=True)
        file.write("\n")


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--fixtures", default=os.path.join(os.path.dirname(__file__), "..", "tests", "fixtures"))
    ap.add_argument("--folder")
    a = ap.parse_args()
    torch.set_num_threads(1)
    main(a.fixtures, a.folder)
