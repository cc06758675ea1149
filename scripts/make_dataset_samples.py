#!/usr/bin/env python3
"""Writes datasets/: one tiny set in every layout that vpt reads, a folder each, sets with faults in broken/, and coco-subset.

Needs pyarrow and Pillow. The pictures are drawn here: a disc or a bar on a pale ground, 48 x 36 pixels, in one of two colours.
`datasets/cards` is not made here: these files are written by hand.
"""

import gzip
import io
import json
import math
import random
import struct
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

OUT = Path(__file__).parent.parent / "datasets"
PARTS = {"train": 6, "val": 2, "test": 2}
CLASSES = ["bar", "disc"]
SIZE = (48, 36)


def draw(seed):
    """A picture, and its one object: class, left, top, right, bottom."""
    rng = random.Random(seed)
    image = Image.new("RGB", SIZE, tuple(rng.randint(200, 250) for _ in range(3)))
    kind = seed % 2
    width, height = (rng.randint(16, 24), rng.randint(6, 9)) if kind == 0 else (14, 14)
    left, top = rng.randint(2, SIZE[0] - width - 2), rng.randint(2, SIZE[1] - height - 2)
    shape = (left, top, left + width - 1, top + height - 1)
    colour = rng.choice([(190, 40, 40), (30, 60, 170)])
    pen = ImageDraw.Draw(image)
    pen.rectangle(shape, fill=colour) if kind == 0 else pen.ellipse(shape, fill=colour)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue(), (CLASSES[kind], left, top, left + width, top + height)


def is_red(picture):
    return any(colour == (190, 40, 40) for _, colour in Image.open(io.BytesIO(picture)).getcolors(SIZE[0] * SIZE[1]))


def pictures():
    seed = 0
    for part, count in PARTS.items():
        for i in range(count):
            picture, found = draw(seed)
            yield part, f"{seed:02}.png", picture, found
            seed += 1


def put(path, content):
    path = OUT / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def of_part(part):
    return [(name, picture, found) for p, name, picture, found in pictures() if p == part]


def classes():
    for part, name, picture, (kind, *_) in pictures():
        put(f"metadata/{part}/{name}", picture)
    for part in PARTS:
        rows = of_part(part)
        put(f"metadata/{part}/metadata.jsonl",
            "".join(json.dumps({"file_name": name, "label": found[0]}) + "\n" for name, _, found in rows))
        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({
            "image": pa.array([{"bytes": picture, "path": name} for name, picture, _ in rows], image),
            "label": [CLASSES.index(found[0]) for *_, found in rows],
        })
        features = {"image": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        where = OUT / "parquet" / "data"
        where.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, where / f"{'validation' if part == 'val' else part}-00000-of-00001.parquet")
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for name, picture, found in rows:
                for ending, content in [("png", picture), ("cls", found[0].encode())]:
                    member = tarfile.TarInfo(f"{name[:-4]}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        put(f"webdataset/{part}-000000.tar", out.getvalue())
        for name, picture, (kind, *_) in rows:
            put(f"image-folder/{part}/{kind}/{name}", picture)
            for folder, where in [("csv", "images"), ("split-zhou", "images"), ("fgvc-json", "images"), ("list-txt", part)]:
                put(f"{folder}/{where}/{name}", picture)
        put(f"list-txt/{part}.txt", "".join(f"{part}/{name} {CLASSES.index(found[0])}\n" for name, _, found in rows))
        put(f"fgvc-json/{part}.json", json.dumps({name: CLASSES.index(found[0]) for name, _, found in rows}, indent=0))
        idx(part, rows)
        for folder, names in (("one-hot", CLASSES), ("multi-hot", [*CLASSES, "red"])):
            hot = "filename, " + ", ".join(names) + "\n"
            for name, picture, (kind, *_) in rows:
                put(f"{folder}/{part}/{name}", picture)
                true = [kind, "red"] if is_red(picture) else [kind]
                hot += f"{name}, " + ", ".join(str(int(c in true)) for c in names) + "\n"
            put(f"{folder}/{part}/_classes.csv", hot)
    every = [(part, name, found[0]) for part in PARTS for name, _, found in of_part(part)]
    put("csv/labels.csv", "path,label,split\n" + "".join(f"images/{name},{kind},{part}\n" for part, name, kind in every))
    put("list-txt/classes.txt", "\n".join(CLASSES) + "\n")
    put("fgvc-json/classes.txt", "\n".join(CLASSES) + "\n")
    lists = {part: [[name, CLASSES.index(kind), kind] for p, name, kind in every if p == part] for part in PARTS}
    put("split-zhou/split_zhou_Samples.json", json.dumps(lists))


def idx(part, rows):
    """The files of the MNIST family, packed: 28 x 28 grey pixels a picture, and its number. There is no val."""
    name = {"train": "train", "test": "t10k"}.get(part)
    if name is None:
        return
    grey = [Image.open(io.BytesIO(picture)).convert("L").resize((28, 28)).tobytes() for _, picture, _ in rows]
    labels = bytes(CLASSES.index(found[0]) for *_, found in rows)
    for kind, header, content in [
        ("images-idx3", struct.pack(">IIII", 0x803, len(rows), 28, 28), b"".join(grey)),
        ("labels-idx1", struct.pack(">II", 0x801, len(rows)), labels),
    ]:
        put(f"idx/{name}-{kind}-ubyte.gz", gzip.compress(header + content, mtime=0))


def coco(rows, categories, url=None):
    """COCO's object of `rows`, with LVIS's fields where pictures have a `url`."""
    ids = {category["name"]: category["id"] for category in categories}
    images, annotations = [], []
    for name, _, found in rows:
        number = int(name.split(".")[0])
        image = {"id": number, "width": SIZE[0], "height": SIZE[1]}
        kind, left, top, right, bottom = found
        image |= {"file_name": name} if url is None else {
            "coco_url": f"http://images.cocodataset.org/{url}/{name}", "neg_category_ids": [],
            "not_exhaustive_category_ids": []}
        images.append(image)
        width, height = right - left, bottom - top
        annotations.append({"id": number + 1, "image_id": number, "category_id": ids[kind],
                            "bbox": [left, top, width, height], "area": width * height, "iscrowd": 0})
    return {"images": images, "annotations": annotations, "categories": categories}


def more_boxes():
    """Layouts whose files are JSON, text or XML, and the tables of the Hugging Face hub."""
    categories = [{"id": 3 * i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES)]
    for part in PARTS:
        rows = of_part(part)
        put(f"coco/annotations/instances_{part}2017.json", json.dumps(coco(rows, categories)))
        put(f"roboflow-coco/{part}/_annotations.coco.json", json.dumps(coco(rows, categories)))
        jsonl = ""
        for name, picture, (kind, left, top, right, bottom) in rows:
            put(f"coco/{part}2017/{name}", picture)
            put(f"roboflow-coco/{part}/{name}", picture)
            put(f"yolo/images/{part}/{name}", picture)
            put(f"yolo/labels/{part}/{name[:-4]}.txt",
                f"{CLASSES.index(kind)} {(left + right) / 2 / SIZE[0]:.6f} {(top + bottom) / 2 / SIZE[1]:.6f} "
                f"{(right - left) / SIZE[0]:.6f} {(bottom - top) / SIZE[1]:.6f}\n")
            put(f"voc/JPEGImages/{name}", picture)
            put(f"voc/Annotations/{name[:-4]}.xml",
                f"<annotation>\n  <filename>{name}</filename>\n"
                f"  <size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>\n"
                f"  <object>\n    <name>{kind}</name>\n    <difficult>0</difficult>\n"
                f"    <bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>\n"
                "  </object>\n</annotation>\n")
            put(f"metadata-boxes/{part}/{name}", picture)
            box = [left, top, right - left, bottom - top]
            jsonl += json.dumps({"file_name": name, "objects": {"bbox": [box], "category": [kind]}}) + "\n"
        put(f"metadata-boxes/{part}/metadata.jsonl", jsonl)
        put(f"voc/ImageSets/Main/{part}.txt", "".join(name[:-4] + "\n" for name, *_ in rows))
        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        objects = pa.struct([("bbox", pa.list_(pa.list_(pa.float32(), 4))), ("category", pa.list_(pa.int64()))])
        table = pa.table({
            "image": pa.array([{"bytes": picture, "path": name} for name, picture, _ in rows], image),
            "objects": pa.array([{"bbox": [[left, top, right - left, bottom - top]], "category": [CLASSES.index(kind)]}
                                 for *_, (kind, left, top, right, bottom) in rows], objects),
        })
        names = {"names": CLASSES, "_type": "ClassLabel"}
        features = {"image": {"_type": "Image"}, "objects": {"feature": {
            "bbox": {"feature": {"dtype": "float32", "_type": "Value"}, "length": 4, "_type": "Sequence"},
            "category": names}, "_type": "Sequence"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        where = OUT / "parquet-boxes" / "data"
        where.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, where / f"{'validation' if part == 'val' else part}-00000-of-00001.parquet")
    for part in ["train", "val"]:
        rows = of_part(part)
        frequent = [{**category, "frequency": "f", "synset": f"{category['name']}.n.01"} for category in categories]
        put(f"lvis/annotations/lvis_v1_{part}.json", json.dumps(coco(rows, frequent, f"{part}2017")))
        for name, picture, _ in rows:
            put(f"lvis/{part}2017/{name}", picture)
    put("yolo/data.yaml", "path: .\n" + "".join(f"{part}: images/{part}\n" for part in PARTS)
        + "names:\n" + "".join(f"  {i}: {name}\n" for i, name in enumerate(CLASSES)))


def scene(seed):
    """A drawn street scene, JPEG, and its objects: category, left, top, width, height."""
    rng = random.Random(1000 + seed)
    width, height = 96, 72
    image = Image.new("RGB", (width, height), tuple(rng.randint(150, 220) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 50, width, height), fill=tuple(rng.randint(90, 140) for _ in range(3)))
    objects = []
    for slot in rng.sample(range(3), rng.randint(1, 3)):
        size = rng.randint(16, 26)
        left, top = slot * 32 + rng.randint(1, 30 - size), rng.randint(4, height - size - 4)
        category = rng.choice(["sports ball", "kite", "stop sign"])
        box = (left, top, left + size - 1, top + size - 1)
        middle = (left + size / 2 - 0.5, top + size / 2 - 0.5)
        if category == "sports ball":
            pen.ellipse(box, fill=(240, 240, 235), outline=(30, 30, 30))
        elif category == "kite":
            corners = [(middle[0], box[1]), (box[2], middle[1]), (middle[0], box[3]), (box[0], middle[1])]
            pen.polygon(corners, fill=(40, 90, 200))
        else:
            cut = round(size * (1 - math.sqrt(0.5)))
            left_, top_, right, bottom = box
            pen.polygon([(left_ + cut, top_), (right - cut, top_), (right, top_ + cut), (right, bottom - cut),
                         (right - cut, bottom), (left_ + cut, bottom), (left_, bottom - cut), (left_, top_ + cut)],
                        fill=(190, 30, 40))
        objects.append((category, left, top, size, size))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return out.getvalue(), objects


def masks():
    """The same pictures with a class for each pixel: background, bar, disc."""
    names = ["background", *CLASSES]
    palette = [0, 0, 0, 128, 0, 0, 0, 128, 0]

    def mask(found, first):
        """Numbers from `first` on, as a PNG file."""
        kind, left, top, right, bottom = found
        image = Image.new("P", SIZE, first)
        image.putpalette(palette)
        pen = ImageDraw.Draw(image)
        shape, number = (left, top, right - 1, bottom - 1), names.index(kind) + first
        pen.rectangle(shape, fill=number) if kind == "bar" else pen.ellipse(shape, fill=number)
        out = io.BytesIO()
        image.save(out, "PNG", optimize=True)
        return image, out.getvalue()

    def lengths(inside):
        """Lengths of runs outside and inside by turns."""
        counts, last = [0], False
        for pixel in inside:
            if pixel != last:
                counts.append(0)
                last = pixel
            counts[-1] += 1
        return counts

    def runs(image):
        """Runs of what is no background, down the columns."""
        return lengths(image.getpixel((x, y)) > 0 for x in range(SIZE[0]) for y in range(SIZE[1]))

    xml = ('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n  <meta><task><labels>'
           + "".join(f"<label><name>{name}</name></label>" for name in CLASSES) + "</labels></task></meta>\n")
    for part in PARTS:
        rows = of_part(part)
        categories = [{"id": 3 * i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES)]
        content = coco(rows, categories)
        for (name, picture, found), annotation in zip(rows, content["annotations"]):
            image, numbers = mask(found, 0)
            annotation["segmentation"] = {"size": [SIZE[1], SIZE[0]], "counts": runs(image)}
            put(f"coco-masks/{part}/{name}", picture)
            kind, left, top, right, bottom = found
            corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
            middle = [(left + right) / 2, (top + bottom) / 2]
            put(f"labelme-masks/{part}/{name}", picture)
            shape = ({"label": kind, "points": corners, "group_id": None, "shape_type": "polygon", "flags": {}} if kind == "bar" else
                     {"label": kind, "points": [middle, [right, middle[1]]], "group_id": None, "shape_type": "circle", "flags": {}})
            put(f"labelme-masks/{part}/{name[:-4]}.json", json.dumps({
                "version": "5.5.0", "flags": {}, "imagePath": name, "imageData": None,
                "imageHeight": SIZE[1], "imageWidth": SIZE[0], "shapes": [shape]}, indent=2) + "\n")
            put(f"cvat-masks/images/{part}/{name}", picture)
            points = ";".join(f"{x}.0,{y}.0" for x, y in corners)
            drawn = f'<polygon label="bar" points="{points}" z_order="0" occluded="0"></polygon>'
            if kind == "disc":
                rle = ", ".join(map(str, lengths(image.getpixel((x, y)) > 0 for y in range(top, bottom) for x in range(left, right))))
                drawn = (f'<mask label="disc" rle="{rle}" left="{left}" top="{top}" width="{right - left}" height="{bottom - top}" '
                         'z_order="0" occluded="0"></mask>')
            xml += (f'  <image id="{int(name[:-4])}" name="{name}" subset="{part}" width="{SIZE[0]}" height="{SIZE[1]}">\n'
                    f'    {drawn}\n  </image>\n')
            put(f"voc-masks/JPEGImages/{name}", picture)
            put(f"voc-masks/SegmentationClass/{name}", numbers)
            put(f"mask-pairs/images/{part}/{name}", picture)
            put(f"mask-pairs/masks/{part}/{name}", numbers)
            folder = {"train": "training", "val": "validation", "test": "testing"}[part]
            put(f"ade20k/images/{folder}/{name}", picture)
            put(f"ade20k/annotations/{folder}/{name}", mask(found, 1)[1])
        put(f"coco-masks/annotations/instances_{part}.json", json.dumps(content))
        put(f"voc-masks/ImageSets/Segmentation/{part}.txt", "".join(f"{name[:-4]}\n" for name, *_ in rows))
    put("cvat-masks/annotations.xml", xml + "</annotations>\n")
    for folder in ["voc-masks", "mask-pairs"]:
        put(f"{folder}/classes.txt", "\n".join(names) + "\n")
    table = "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
    put("ade20k/objectInfo150.txt", table + "".join(f"{i + 1}\t0\t0\t0\t0\t{name}\n" for i, name in enumerate(names)))


def coco_subset():
    """What the first command that people try runs on: COCO's layout, three of its categories under its ids."""
    ids = {"stop sign": 13, "sports ball": 37, "kite": 38}
    categories = [{"id": number, "name": name, "supercategory": "drawn"} for name, number in ids.items()]
    seed = number = 0
    for part, count in [("train2017", 24), ("val2017", 8)]:
        images, annotations = [], []
        for _ in range(count):
            seed += 1
            picture, objects = scene(seed)
            name = f"{seed:012}.jpg"
            put(f"coco-subset/{part}/{name}", picture)
            images.append({"id": seed, "file_name": name, "width": 96, "height": 72})
            for category, left, top, width, height in objects:
                number += 1
                annotations.append({"id": number, "image_id": seed, "category_id": ids[category],
                                    "bbox": [left, top, width, height], "area": width * height, "iscrowd": 0})
        content = {"images": images, "annotations": annotations, "categories": categories}
        put(f"coco-subset/annotations/instances_{part}.json", json.dumps(content))


def broken():
    """Sets with faults, each of which `vpt data check` tells; broken/README.md has what it says."""
    seed = 100
    for part, count in [("train", 3), ("val", 1), ("test", 1)]:
        for i in range(count):
            for kind in CLASSES:
                picture, _ = draw(seed)
                put(f"broken/photos/{part}/{kind}/{i}.png", picture)
                seed += 1
    at = OUT / "broken" / "photos"
    (at / "test" / "bar" / "1.png").write_bytes((at / "train" / "bar" / "2.png").read_bytes())
    (at / "train" / "disc" / "3.png").write_bytes((at / "train" / "bar" / "1.png").read_bytes())
    photo = io.BytesIO()
    Image.open(io.BytesIO(draw(200)[0])).save(photo, "JPEG", quality=90)
    (at / "test" / "disc" / "1.png").write_bytes(photo.getvalue())
    photo = io.BytesIO()
    Image.open(io.BytesIO(draw(201)[0])).save(photo, "JPEG", quality=90)
    (at / "val" / "disc" / "1.jpg").write_bytes(photo.getvalue()[:-200])
    put("broken/photos/train/disc/IMG_0231.avif", b"\0\0\0\x18ftypavif\0\0\0\0mif1avif")
    rows = of_part("train")
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    content = coco(rows, categories)
    for name, picture, _ in rows[:-1]:
        put(f"broken/boxes/{name}", picture)
    one, two, three, four = content["annotations"][:4]
    one["bbox"][2] = 400
    two["category_id"] = 9
    three["bbox"][3] = 0
    content["annotations"].append({**four, "id": 77})
    put("broken/boxes/train.json", json.dumps(content, indent=1))
    names = [name for name, *_ in rows]
    for name, picture, _ in rows:
        put(f"broken/table/images/{name}", picture)
    lines = ["path,label", f"images/{names[0]},bar", f"images/{names[1]},disc", f"images/{names[2]},", "images/none.png,disc",
             f"images/{names[0]},disc", f"images/{names[3]},Disc"]
    put("broken/table/labels.csv", "\n".join(lines) + "\n")


def boxes():
    for part in PARTS:
        rows = of_part(part)
        for folder in ["roboflow-csv", "createml", "labelme", "yolov4-txt"]:
            for name, picture, _ in rows:
                put(f"{folder}/{part}/{name}", picture)
        csv = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
        lines, ml = "", []
        images = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
        for name, picture, (kind, left, top, right, bottom) in rows:
            csv += f"{name},{SIZE[0]},{SIZE[1]},{kind},{left},{top},{right},{bottom}\n"
            lines += f"{name} {left},{top},{right},{bottom},{CLASSES.index(kind)}\n"
            box = {"x": (left + right) / 2, "y": (top + bottom) / 2, "width": right - left, "height": bottom - top}
            ml.append({"image": name, "annotations": [{"label": kind, "coordinates": box}]})
            put(f"labelme/{part}/{name[:-4]}.json", json.dumps({
                "version": "5.5.0", "flags": {}, "imagePath": name, "imageData": None,
                "imageHeight": SIZE[1], "imageWidth": SIZE[0],
                "shapes": [{"label": kind, "points": [[left, top], [right, bottom]], "group_id": None,
                            "shape_type": "rectangle", "flags": {}}]}, indent=2) + "\n")
            put(f"open-images/{part}/{name}", picture)
            fractions = [left / SIZE[0], right / SIZE[0], top / SIZE[1], bottom / SIZE[1]]
            corners = ",".join(f"{v:.6f}" for v in fractions)
            images += f"{name[:-4]},xclick,/m/0{CLASSES.index(kind)},1,{corners},0,0,0,0,0\n"
        put(f"roboflow-csv/{part}/_annotations.csv", csv)
        put(f"yolov4-txt/{part}/_annotations.txt", lines)
        put(f"yolov4-txt/{part}/_classes.txt", "\n".join(CLASSES) + "\n")
        put(f"createml/{part}/_annotations.createml.json", json.dumps(ml))
        put(f"open-images/{'validation' if part == 'val' else part}-annotations-bbox.csv", images)
    put("open-images/class-descriptions-boxable.csv", "".join(f"/m/0{i},{name}\n" for i, name in enumerate(CLASSES)))
    darknet = "classes = 2\n"
    xml = ('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n  <meta><task><labels>'
           + "".join(f"<label><name>{name}</name></label>" for name in CLASSES) + "</labels></task></meta>\n")
    for part in PARTS:
        key = "valid" if part == "val" else part
        darknet += f"{key} = data/{key}.txt\n"
        listed = ""
        for name, picture, (kind, left, top, right, bottom) in of_part(part):
            listed += f"data/obj_{key}_data/{name}\n"
            put(f"darknet/obj_{key}_data/{name}", picture)
            put(f"darknet/obj_{key}_data/{name[:-4]}.txt",
                f"{CLASSES.index(kind)} {(left + right) / 2 / SIZE[0]:.6f} {(top + bottom) / 2 / SIZE[1]:.6f} "
                f"{(right - left) / SIZE[0]:.6f} {(bottom - top) / SIZE[1]:.6f}\n")
            put(f"cvat/images/{part}/{name}", picture)
            xml += (f'  <image id="{int(name[:-4])}" name="{name}" subset="{part}" width="{SIZE[0]}" height="{SIZE[1]}">\n'
                    f'    <box label="{kind}" xtl="{left}" ytl="{top}" xbr="{right}" ybr="{bottom}" occluded="0"></box>\n  </image>\n')
        put(f"darknet/{key}.txt", listed)
    put("darknet/obj.data", darknet + "names = data/obj.names\nbackup = backup/\n")
    put("darknet/obj.names", "\n".join(CLASSES) + "\n")
    put("cvat/annotations.xml", xml + "</annotations>\n")


if __name__ == "__main__":
    classes()
    boxes()
    more_boxes()
    masks()
    coco_subset()
    broken()
