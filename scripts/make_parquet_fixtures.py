#!/usr/bin/env python3
"""Writes tests/fixtures/parquet: small tables as the hub has them, by pyarrow, which the library `datasets` writes with.

Needs pyarrow and Pillow.
"""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

OUT = Path(__file__).parent.parent / "tests" / "fixtures" / "parquet"
NAMES = ["owl", "cat"]
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
OBJECT = pa.struct([("bbox", pa.list_(pa.float32(), 4)), ("category", pa.int64()), ("area", pa.int64())])


def picture(i):
    image = Image.new("RGB", (12, 10), (i * 20, 255 - i * 20, 40))
    image.putpixel((i, 3), (255, 255, 255))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def write(name, columns, features, **options):
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, OUT / f"{name}.parquet", row_group_size=5, **options)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    pictures = pa.array([{"bytes": picture(i), "path": f"{i}.png"} for i in range(8)], PICTURE)
    label = {"names": NAMES, "_type": "ClassLabel"}
    image = {"_type": "Image"}
    write("classes", {"image": pictures, "label": [i % 2 for i in range(8)]}, {"image": image, "label": label},
          compression="snappy")
    objects = [[{"bbox": [1, 2, 3 + k, 4], "category": k % 2, "area": 7} for k in range(i % 3)] for i in range(8)]
    feature = {"bbox": {"feature": {"dtype": "float32"}, "_type": "Sequence"}, "category": label}
    write("boxes", {"image": pictures, "objects": pa.array(objects, pa.list_(OBJECT))},
          {"image": image, "objects": {"feature": feature, "_type": "Sequence"}},
          compression="zstd", data_page_version="2.0")
