#!/usr/bin/env python3
"""Embeds many archives while processes are killed, and compares the folder with that of one process that was not.

    python scripts/check_shards.py target/release/vpt --shards 200 --each 50 --kills 20

Archives of drawn PNGs, one picture in a hundred broken, are embedded once without disturbance. Then three processes work at once, one of them at
a time killed with SIGKILL at a random moment and started again, until all is done. Every file must be equal to the byte, failures must be those
that were made, and the peak of memory of a run over all archives not above that over the first few. Where embedding_reader (as autofaiss uses it) and
pyarrow can be imported, the folder is read with them. Exit code 1 if anything differs. Needs Python and nothing else.
"""

import argparse, io, json, pathlib, random, struct, subprocess, sys, tarfile, tempfile, time, zlib


def png(number, side):
    """A picture of `side` pixels with a pattern of its own."""
    rows = bytearray()
    for y in range(side):
        rows.append(0)
        for x in range(side):
            rows += bytes(((x * 9 + number * 5) & 255, (y * 7 + number * 31) & 255, (x * y + number) & 255))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(rows), 1)) + chunk(b"IEND", b"")


def make(folder, shards, each, side):
    broken = []
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as archive:
            for i in range(each):
                number = shard * each + i
                key = f"{shard:05}{i:04}"
                bad = number % 100 == 37
                broken += [key] * bad
                for name, content in [(f"{key}.png", b"no picture" if bad else png(number, side)),
                                      (f"{key}.txt", f"picture {number}".encode()),
                                      (f"{key}.json", json.dumps({"url": f"http://x/{number}", "width": side}).encode())]:
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return broken


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vpt")
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--each", type=int, default=50)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--backbone", default="clip-nano")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        (work / "shards").mkdir()
        broken = make(work / "shards", args.shards, args.each, args.side)
        last = f"{args.shards - 1:05}"

        def command(out, upto=last):
            return [args.vpt, "embed", "--backbone", args.backbone, "--input", f"{work}/shards/{{00000..{upto}}}.tar", "--out",
                    str(work / out), "--layout", "clip-retrieval", "--skip-bad-images", "--json", "--quiet"]

        few = json.loads(subprocess.run(command("few", "00004"), check=True, capture_output=True).stdout)
        one = json.loads(subprocess.run(command("one"), check=True, capture_output=True).stdout)
        whole = content(work / "one")
        keys = [failure["key"] for name, text in whole.items() if name.startswith("stats/") for failure in json.loads(text)["failures"]]
        assert sorted(keys) == broken, (len(keys), len(broken))
        assert one["all"]["images"] == args.shards * args.each - len(broken), one["all"]
        mib = [round(result["peak_rss_bytes"] / 2**20, 1) for result in (few, one)]
        print(f"{one['all']['images']} images, {len(broken)} listed as broken, {one['img_per_s']:.1f} images/s; "
              f"waiting {one['waiting_s']:.2f} s of {one['waiting_s'] + one['engine_s']:.2f} s; peak memory after 5 and {args.shards} shards {mib} MiB")
        assert mib[1] <= mib[0] * 1.1 + 16, mib

        rng, kills = random.Random(5), 0
        running = [subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL) for _ in range(3)]
        begun = time.time()
        while any(process.poll() is None for process in running):
            if kills < args.kills and all(process.poll() is None for process in running):
                time.sleep(rng.uniform(0.05, 0.6))
                at = rng.randrange(3)
                running[at].kill()
                running[at].wait()
                kills += 1
                running[at] = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL)
            else:
                time.sleep(0.05)
            assert time.time() - begun < 3000
        assert all(process.returncode == 0 for process in running), [process.returncode for process in running]
        found = content(work / "killed")
        assert found.keys() == whole.keys(), sorted(found.keys() ^ whole.keys())[:5]
        different = [name for name in whole if found[name] != whole[name]]
        assert not different, different[:5]
        print(f"three processes, {kills} kills: {len(whole)} files, equal to the byte")

        try:
            import embedding_reader, pyarrow.parquet
        except ImportError:
            print("not read with embedding_reader and pyarrow, which are not there")
            return
        reader = embedding_reader.EmbeddingReader(embeddings_folder=str(work / "one/img_emb"), file_format="npy")
        rows = sum(batch.shape[0] for batch, _ in reader(batch_size=512))
        assert (rows, reader.dimension) == (one["all"]["images"], one["width"]), (rows, reader.dimension)
        joined = embedding_reader.EmbeddingReader(
            embeddings_folder=str(work / "one/img_emb"), metadata_folder=str(work / "one/metadata"), file_format="parquet_npy",
            meta_columns=["image_path", "caption", "url", "width"])
        batch, meta = next(iter(joined(batch_size=args.each)))
        assert list(meta["image_path"])[:2] == ["000000000", "000000001"] and meta["caption"].iloc[1] == "picture 1", meta.head()
        length = (batch.astype("float64") ** 2).sum(axis=1)
        assert abs(length - 1).max() < 2e-3, length
        table = pyarrow.parquet.read_table(work / "one/metadata")
        print(f"embedding_reader reads {rows} rows of {reader.dimension}, pyarrow {table.num_rows} rows of {table.column_names}")


if __name__ == "__main__":
    sys.exit(main())
