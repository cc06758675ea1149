//! PyTorch's checkpoints, which a hub serves and `backbones fetch` converts.

use std::fs;
use std::io::Write;
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::hub::command_at;
use crate::hub::server::Hub;
use crate::util::{Sandbox, finish, fixture, limited};

/// An archive of these files.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in files {
        zip.start_file(*name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// An archive of this pickle and a storage of 64 bytes.
fn pickle(bytes: &[u8]) -> Vec<u8> {
    archive(&[("a/data.pkl", bytes), ("a/data/0", &[0; 64])])
}

/// `archive` with the first occurrence of `from` after its last `PK\1\2` replaced.
fn in_directory(archive: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut out = archive.to_vec();
    let start = out.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap() + at;
    out[start..start + bytes.len()].copy_from_slice(bytes);
    out
}

/// `archive` with bytes of the record at its end replaced.
fn in_end(archive: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut out = archive.to_vec();
    let start = out.windows(4).rposition(|w| w == b"PK\x05\x06").unwrap() + at;
    out[start..start + bytes.len()].copy_from_slice(bytes);
    out
}

/// A deflated entry `a/data.pkl` that says it is `size` bytes long: a bomb.
fn bomb(size: u32) -> Vec<u8> {
    let mut packed = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(&vec![b'('; size as usize]).unwrap();
    let packed = packed.finish().unwrap();
    let mut fields = vec![20, 0, 0, 0, 8, 0, 0, 0, 0x21, 0];
    let mut crc = flate2::Crc::new();
    crc.update(&vec![b'('; size as usize]);
    fields.extend([crc.sum(), packed.len() as u32, size, 10].iter().flat_map(|n| n.to_le_bytes()));
    let name = b"a/data.pkl";
    let local = [&b"PK\x03\x04"[..], &fields, name, &packed].concat();
    let central = [&b"PK\x01\x02\x14\x00"[..], &fields, &[0; 14], name].concat();
    let end = [
        &b"PK\x05\x06\0\0\0\0\x01\0\x01\0"[..],
        &(central.len() as u32).to_le_bytes(),
        &(local.len() as u32).to_le_bytes(),
        &[0, 0],
    ]
    .concat();
    [local, central, end].concat()
}

/// The beginning of a file before PyTorch 1.6, what it says of the machine, and a dictionary of one tensor.
const OLD: &[u8] = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.";
const MACHINE: &[u8] = b"\x80\x02}X\x0d\0\0\0little_endian\x88s.";
const ONE: &[u8] =
    b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n\
    X\x01\0\0\x000X\x03\0\0\0cpuK\x06NtQK\x00K\x02\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRs.";

#[test]
fn checkpoints_of_pytorch() {
    let whole = fs::read(Path::new(&fixture("pickle")).join("pytorch_model.bin")).unwrap();
    let repeated = |begin: &[u8], part: &[u8], times: usize| pickle(&[begin, &part.repeat(times), b"."].concat());
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("zeros", vec![0; 1 << 16]),
        ("text", b"not a checkpoint".to_vec()),
        ("old-form", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.".to_vec()),
        ("old-form-of-nothing", [OLD, b"\x80\x02N.\x80\x02N.\x80\x02]."].concat()),
        ("old-form-of-4-gigabytes", [OLD, MACHINE, b"\x80\x02X\xff\xff\xff\xffabc."].concat()),
        ("old-form-cut", [OLD, MACHINE, b"\x80\x02}.\x80\x02]X\x01\0\0\x000a."].concat()),
        ("old-form-with-a-long-storage", [OLD, MACHINE, ONE, b"\x80\x02]X\x01\0\0\x000a.", &[0xff; 8]].concat()),
        (
            "old-form-with-a-longer-storage",
            [OLD, MACHINE, ONE, b"\x80\x02]X\x01\0\0\x000a.", &[0x7f; 8], &[0; 64]].concat(),
        ),
        ("cut-in-the-pickle", whole[..300].to_vec()),
        ("cut-in-the-middle", whole[..whole.len() / 2].to_vec()),
        ("cut-by-a-byte", whole[..whole.len() - 1].to_vec()),
        ("nothing-in-the-archive", archive(&[])),
        ("no-pickle", archive(&[("a/data/0", &[0; 64])])),
        ("two-pickles", archive(&[("a/data.pkl", b"\x80\x02}."), ("b/data.pkl", b"\x80\x02}.")])),
        ("empty-pickle", pickle(b"")),
        ("nothing-but-a-stop", pickle(b".")),
        ("a-number", pickle(b"\x80\x02K\x01.")),
        ("unknown-operation", pickle(b"\x80\x02\xff\xff.")),
        ("stack-underflow", pickle(b"\x80\x02ssss.")),
        ("reduce-of-nothing", pickle(b"\x80\x02R.")),
        ("a-call", pickle(b"\x80\x02cos\nsystem\n(X\x04\0\0\0true\x85tR.")),
        ("a-call-in-a-dictionary", pickle(b"\x80\x02}X\x01\0\0\0acos\nsystem\nX\x04\0\0\0true\x85Rs.")),
        ("an-unknown-memo", pickle(b"\x80\x02h\x63.")),
        ("a-far-memo", pickle(b"\x80\x02j\xff\xff\xff\xff.")),
        ("a-memo-far-away", pickle(b"\x80\x02}r\xff\xff\xff\xff.")),
        ("a-string-of-4-gigabytes", pickle(b"\x80\x02X\xff\xff\xff\xffabc.")),
        ("a-global-without-end", pickle(b"\x80\x02cos")),
        ("a-frame-of-2-to-the-64", pickle(b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff}.")),
        ("nested-tuples", repeated(b"\x80\x02)", b"\x85", 200_000)),
        ("nested-lists", repeated(b"\x80\x02", b"]", 2_000_000)),
        ("nested-marks", repeated(b"\x80\x02", b"(", 2_000_000)),
        ("doubling-by-the-memo", repeated(b"\x80\x02)", b"q\x01h\x01h\x01\x86", 40)),
        ("many-numbers", repeated(b"\x80\x02](", b"K\x01", 2_000_000)),
        ("a-pickle-of-20-megabytes", pickle(&vec![b'K'; 20 << 20])),
        ("a-deflated-bomb", bomb(200 << 20)),
        ("directory-at-the-wrong-place", in_end(&whole, 16, &[0, 0, 0, 0])),
        ("directory-beyond-the-file", in_end(&whole, 16, &[0xff, 0xff, 0xff, 0x7f])),
        ("directory-of-65535-files", in_end(&whole, 8, &[0xff, 0xfe, 0xff, 0xfe])),
        ("directory-of-no-bytes", in_end(&whole, 12, &[0, 0, 0, 0])),
        ("a-file-beyond-the-file", in_directory(&whole, 42, &[0xff, 0xff, 0xff, 0x7f])),
        ("a-file-of-4-gigabytes", in_directory(&whole, 20, &[0xff, 0xff, 0xff, 0xf0, 0xff, 0xff, 0xff, 0xf0])),
        ("names-longer-than-the-file", in_directory(&whole, 28, &[0xff, 0xff])),
    ];
    let config = ("config.json", fs::read(Path::new(&fixture("vit")).join("config.json")).unwrap());
    let table = Sandbox::new();
    for (name, bytes) in cases {
        let sandbox = Sandbox::new();
        let hub = Hub::new("me/mine", &[config.clone(), ("pytorch_model.bin", bytes)]);
        let args = ["backbones", "fetch", "me/mine"];
        table.holds(name, || {
            let run = finish(limited(command_at(&sandbox, &hub.endpoint(), &args, &[])), &args);
            // Some of these archives are whole all the same; what is damaged is then not read.
            if run.code == Some(0) {
                assert!(name.starts_with("directory-") || name.starts_with("a-file-"), "{run:#?}");
                return;
            }
            run.fails(&["pytorch_model.bin", "not a PyTorch checkpoint that can be read"]);
            let cached = crate::util::files(&sandbox.path("cache/models--me--mine/snapshots"));
            let kept = crate::util::files(&sandbox.path("cache/models--me--mine/snapshots").join(&cached[0]));
            assert_eq!((cached.len(), kept), (1, vec!["config.json".to_owned()]), "nothing is left of it");
        });
    }
}
