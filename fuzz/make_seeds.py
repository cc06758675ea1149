#!/usr/bin/env python3
"""Writes a few small inputs for every target to fuzz/corpus/, for the fuzzer to change.

Needs Pillow. Task files are copied from the run folders that are given as arguments:
    vpt train --method linear --epochs 1 --out /tmp/run && fuzz/make_seeds.py /tmp/run
"""

import gzip
import io
import json
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
FIXTURES = HERE.parent / "tests" / "fixtures"
BETWEEN = b"\n--8<--\n"


def seed(target, name, *files):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    files = [f.encode() if isinstance(f, str) else f for f in files]
    (folder / name).write_bytes(BETWEEN.join(files))


def safetensors(tensors, metadata=None):
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, dtype, shape, content in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    header = json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def weights():
    some = [("a", "F32", [2, 3], bytes(24)), ("b", "F16", [4], bytes(8)), ("c", "I64", [0, 9], b"")]
    seed("weights", "plain", safetensors(some))
    clip = [("vision_model.embeddings.class_embedding", "BF16", [4], bytes(8)), ("x", "U8", [], b"\1")]
    seed("weights", "clip", safetensors(clip, {"format": "pt"}))
    index = {"metadata": {}, "weight_map": {"a": "a.safetensors", "b": "a.safetensors", "c": "a.safetensors"}}
    seed("weights", "index", safetensors(some), json.dumps(index))


def pickle():
    whole = (FIXTURES / "pickle" / "pytorch_model.bin").read_bytes()
    seed("pickle", "whole", whole)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        seed("pickle", "pickle", archive.read(name))
    one = (
        b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"
        b"X\x01\0\0\x000X\x03\0\0\0cpuK\x06tQK\0(K\x02K\x03t(K\x03K\x01t\x89ccollections\nOrderedDict\n)RtRs."
    )
    seed("pickle", "one", one)


def tasks(runs):
    for run in runs:
        data = (Path(run) / "best.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        seed("task", Path(run).name, data[8 : 8 + length])
        if len(data) < 10000:
            seed("task", Path(run).name + "-whole", data)


def configurations(runs):
    everything = """backbone = "clip-nano"
data = "shapes"
task = "classify"
method = "vpt-deep"
head = "cosine"
prompt_tokens = 4
prompt_layers = "last:2"
prompt_dropout = 0.1
shots = 4
seed = 7
epochs = 3
batch_size = 8
micro_batch = 2
lr = "auto"
head_lr = 0.001
optimizer = "sgd"
weight_decay = 0.01
warmup = 0.1
clip_norm = 1.0
label_smoothing = 0.1
patience = 2
select = "best"
image_size = 64
flip = true
random_resized_crop = [0.5, 1.0]
skip_bad_images = true
threads = 1
"""
    seed("run_config", "classify", everything)
    seed("run_config", "pixels", 'method = "vp-patch"\npatch_size = 8\npatch_place = "random"\nlr = 40.0\n')
    seed("run_config", "frame", 'method = "vp-frame"\ninner_size = 8\n')
    seed("run_config", "detect", 'task = "detect"\nmethod = "vpt-shallow"\nhead_epochs = 1\nepochs = 4\nema = 0.99\n'
         'fit = "pad"\nscale_jitter = [0.5, 1.5]\nbox_crop = true\nmosaic = 0.5\nopen_vocabulary = true\n')
    for run in runs:
        seed("run_config", Path(run).name, (Path(run) / "config.toml").read_bytes())
    for family in ["clip", "vit", "deit", "dinov2", "dinov2-registers", "dinov2-swiglu", "mae"]:
        files = [FIXTURES / family / name for name in ["config.json", "preprocessor_config.json"]]
        seed("backbone", family, *(file.read_bytes() for file in files))
    today = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "resample": 2,
             "crop_size": {"height": 32, "width": 32}, "do_rescale": True, "rescale_factor": 0.004, "image_mean": 0.5}
    seed("backbone", "today", '{"model_type": "clip_vision_model", "hidden_size": [8]}', json.dumps(today))


def lists():
    rows = "a.png,cat,train\nb.png,dog,train\nc.png,cat,val\nd.png,dog,test\n"
    seed("table", "split", "path,label,split\n" + rows)
    seed("table", "bare", rows)
    seed("table", "semicolons", "label;file\n" + "".join(f'{i % 3};"a {i}.png"\n' for i in range(9)))
    seed("table", "parts", "path\tlabel\na.png\tx\nb.png\ty\ne.png\tx\nf.png\ty\n", "path,label\nc.png,x\nd.png,y\n")
    item = lambda path, label, name: [path, label, name]
    zhou = {"train": [item("a.png", 0, "x"), item("b/c.png", 1, "y"), item("d.png", 0, "x"), item("e.png", 1, "y")],
            "val": [item("f.png", 0, "x")], "test": [item("g.png", 1, "y")]}
    seed("split_zhou", "all", json.dumps(zhou))
    seed("split_zhou", "train", json.dumps({**zhou, "val": [], "test": []}))
    images = struct.pack(">4I", 0x803, 6, 2, 2) + bytes(range(24))
    labels = struct.pack(">2I", 0x801, 6) + bytes([0, 1, 0, 1, 0, 1])
    seed("idx", "plain", images, labels)
    seed("idx", "packed", gzip.compress(images, mtime=0), gzip.compress(labels, mtime=0))


def images():
    picture = Image.effect_mandelbrot((11, 9), (-2, -1, 1, 1), 40).convert("RGB")
    picture.putpixel((3, 3), (200, 10, 10))
    for mode in ["RGB", "L", "P", "RGBA", "1", "CMYK", "I;16", "LA"]:
        for form, options in [
            ("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True, "subsampling": 0}), ("BMP", {}), ("GIF", {}),
            ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "tiff_deflate"}),
            ("TIFF", {"compression": "jpeg"}), ("TIFF", {"compression": "packbits"}), ("TIFF", {"compression": "group4"}),
            ("WEBP", {}), ("WEBP", {"lossless": True}),
        ]:
            out = io.BytesIO()
            try:
                source = picture.convert("L").convert("I").convert("I;16") if mode == "I;16" else picture.convert(mode)
                source.save(out, form, **options)
            except (OSError, KeyError, ValueError):
                continue
            kind = "-".join([form, mode.replace(";", ""), *map(str, options.values())]).lower()
            seed("image", kind, out.getvalue())
    frames = [picture, picture.rotate(90)]
    for form in ["GIF", "WEBP", "PNG"]:
        out = io.BytesIO()
        frames[0].save(out, form, save_all=True, append_images=frames[1:])
        seed("image", f"{form.lower()}-animated", out.getvalue())


def boxes():
    coco = {
        "info": {},
        "images": [{"id": i, "file_name": f"{n}.png", "width": 8, "height": 6} for i, n in enumerate("abc", 1)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 3.5, 2], "area": 7, "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 9, "bbox": [-1, 0, 30, 20], "area": 7, "iscrowd": 1},
            {"id": 2, "image_id": 3, "category_id": 9, "bbox": [None, 0, 1, 1], "segmentation": [[1, 1, 2, 2, 3, 3]]},
        ],
        "categories": [{"id": 3, "name": "x"}, {"id": 9, "name": "y"}],
    }
    seed("boxes", "coco", json.dumps(coco))
    # As other tools write it: numbers as text, ids that are text, nothing that may be left out, headings among the categories.
    loose = json.loads(json.dumps(coco))
    loose["images"] = [{"id": f"i{i['id']}", "file_name": i["file_name"], "width": "8", "height": 6.0} for i in loose["images"]]
    loose["annotations"] = [{"image_id": f"i{i}", "category_id": "3", "bbox": ["1", 1.0, "2", 2e0]} for i in (1, 2, 3)]
    loose["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
    loose["categories"][1]["supercategory"] = "things"
    seed("boxes", "coco-loose", json.dumps(loose))
    lvis = {**coco, "images": [{**i, "neg_category_ids": [3], "not_exhaustive_category_ids": []} for i in coco["images"]]}
    seed("boxes", "lvis", json.dumps(lvis).replace("\"bbox\": [1, 1", "\"bbox\": [NaN, 1", 1))
    voc = """<annotation><folder>f</folder><filename>a.png</filename>
<size><width>8</width><height>6</height><depth>3</depth></size>
<object><name>x</name><difficult>0</difficult><truncated>1</truncated>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>5.5</xmax><ymax>6</ymax></bndbox></object>
<object><name>y</name><crowd>1</crowd><area>3.5</area><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>9</xmax><ymax>2</ymax></bndbox></object>
</annotation>"""
    seed("boxes", "voc", voc)
    labels = "0 0.5 0.5 0.5 0.5\n1 .2 .2 .4 .2\n1 0.1 0.1 0.6 0.1 0.6 0.8\n0 nan 1e9 -1 0\n"
    seed("boxes", "yolo", "path: .\ntrain: images\nval: images\nnc: 2\nnames: [x, y]\n", labels)
    seed("boxes", "yolo-map", "train: [images]\nnames:\n  0: x\n  1: 'y'\nkpt_shape: [2, 3]\n", labels)


def named_boxes():
    seed("named_boxes", "createml", json.dumps([{"image": f"{n}.png", "annotations": [{"label": "x", "coordinates":
         {"x": 3, "y": 3, "width": 2, "height": 2.5}}]} for n in "abc"]))
    seed("named_boxes", "labelme", json.dumps({"version": "5", "shapes": [
        {"label": "x", "points": [[1, 1], [4, 4]], "shape_type": "rectangle"},
        {"label": "y", "points": [[1, 1], [2, 2]], "shape_type": "circle"},
        {"label": "y", "points": [[1, 1], [4, 4], [2, 5]]}], "imagePath": "a.png", "imageWidth": 8, "imageHeight": 6}))
    seed("named_boxes", "cvat", """<annotations><meta><task><labels><label><name>x</name></label></labels></task></meta>
<image id="0" name="a.png" width="8" height="6"><box label="x" xtl="1" ytl="1" xbr="3" ybr="4" rotation="30"/>
<polygon label="x" points="1,1;2,2;3,1"/><ellipse label="x" cx="3" cy="3" rx="1" ry="1"/></image>
<image id="1" name="b.png" subset="Train" width="8" height="6"/><image id="2" name="c.png"><tag label="x"/></image></annotations>""")
    seed("named_boxes", "darknet", "classes = 2\ntrain = data/train.txt\nnames = obj.names\n", "0 .5 .5 .5 .5\n1 0.2 0.2 0.1 0.1\n")
    seed("named_boxes", "metadata", "m" + "".join(json.dumps({"file_name": f"{n}.png", "objects": {"bbox": [[1, 1, 2, 2]],
         "categories": [i]}}) + "\n" for i, n in enumerate("abc")))
    seed("named_boxes", "labels", "m" + "".join(json.dumps({"file_name": f"{n}.png", "label": n}) + "\n" for n in "abc"))
    seed("named_boxes", "lines", "l" + "".join(f"{n}.png 1,1,3,3,0 2,2,4,4,1\n" for n in "abc"))
    seed("named_boxes", "csv", "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,8,6,x,1,1,4,4\nb.png,8,6,y,0,0,9,9\nc.png,8,6,x,1,1,2,2\n")
    seed("named_boxes", "openimages", "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\n"
         + "".join(f"{n},x,/m/1,1,0.1,0.5,0.1,0.6,{i % 2}\n" for i, n in enumerate("abc")))


def archives():
    for name in ["classes", "boxes"]:
        seed("parquet", name, (FIXTURES / "parquet" / f"{name}.parquet").read_bytes())
    picture = (HERE / "src" / "pixels.png").read_bytes()
    for kind, texts in [("cls", ["0", "1"]), ("txt", ["x", "y"]), ("json", ['{"label": 0}', '{"label": 1}'])]:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for i in range(8):
                for ending, content in [("png", picture), (kind, texts[i % 2].encode())]:
                    member = tarfile.TarInfo(f"{i:04}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        seed("webdataset", kind, out.getvalue())


def tokenizers():
    clip = FIXTURES / "clip"
    seed("tokenizer", "pair", '{"a": 0, "b": 1, "ab": 2, "b</w>": 3, "<|startoftext|>": 4, "<|endoftext|>": 5}',
         "#version: 0.2\na b\n")
    whole = json.loads((clip / "tokenizer.json").read_text())
    whole["model"]["vocab"] = {"a": 0, "b": 1, "ab": 2, "o": 3, "f</w>": 4, "of</w>": 5,
                               "<|startoftext|>": 459, "<|endoftext|>": 460}
    whole["model"]["merges"] = [["a", "b"], ["o", "f</w>"]]
    seed("tokenizer", "clip", json.dumps(whole))
    plain = {"version": "1.0", "added_tokens": [], "normalizer": {"type": "Lowercase"},
             "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None}
    word = {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"}
    seed("tokenizer", "words", json.dumps({**plain, "model": word}))
    piece = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
             "max_input_chars_per_word": 9, "vocab": {"a": 0, "##b": 1, "[UNK]": 2}}
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[UNK]", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
                "special_tokens": {"[UNK]": {"id": "[UNK]", "ids": [2], "tokens": ["[UNK]"]}}}
    bert = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
            "lowercase": True}
    seed("tokenizer", "pieces", json.dumps({**plain, "normalizer": bert, "pre_tokenizer": {"type": "BertPreTokenizer"},
                                            "post_processor": template, "model": piece}))
    gram = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.5], ["do", -2.0]], "byte_fallback": False}
    meta = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    seed("tokenizer", "unigram", json.dumps({**plain, "pre_tokenizer": meta, "model": gram}))


def requests():
    seed("serve", "one", json.dumps({"image": "aGk=", "top_k": 3}))
    seed("serve", "many", json.dumps({"images": ["data:image/png;base64,aGk=", "aA"], "tasks": ["a", "b"], "min_score": 0.5}))
    seed("serve", "embeddings", json.dumps({"model": "m", "input": ["a"], "encoding_format": "base64", "dimensions": 3}))
    image = {"name": "image", "shape": [1], "datatype": "BYTES"}
    seed("serve", "infer", json.dumps({"inputs": [{**image, "data": ["aGk="]}], "outputs": [{"name": "labels"}]}))
    seed("serve", "binary", json.dumps({"inputs": [{**image, "parameters": {"binary_data_size": 6}}]}), b"\x02\0\0\0hi")
    pixels = {"name": "pixel_values", "shape": [1, 3, 1, 1], "datatype": "FP32", "parameters": {"binary_data_size": 12}}
    seed("serve", "pixels", json.dumps({"id": "7", "inputs": [pixels]}), struct.pack("<3f", 1, 2, 3))


if __name__ == "__main__":
    requests()
    weights()
    pickle()
    tasks(sys.argv[1:])
    configurations(sys.argv[1:])
    lists()
    images()
    boxes()
    named_boxes()
    archives()
    tokenizers()
