#!/usr/bin/env python3
"""Writes datasets/: one tiny set in every layout that vpt reads, a folder each.

Needs pyarrow and Pillow. The pictures are drawn here: a disc or a bar on a pale ground, 48 x 36 pixels, in one of two colours.
"""

import io
import json
import random
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
        for folder, names in (("one-hot", CLASSES), ("multi-hot", [*CLASSES, "red"])):
            hot = "filename, " + ", ".join(names) + "\n"
            for name, picture, (kind, *_) in rows:
                put(f"{folder}/{part}/{name}", picture)
                true = [kind, "red"] if is_red(picture) else [kind]
                hot += f"{name}, " + ", ".join(str(int(c in true)) for c in names) + "\n"
            put(f"{folder}/{part}/_classes.csv", hot)


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
