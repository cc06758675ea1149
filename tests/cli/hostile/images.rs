//! Images of all formats: cut, of no or of far too many pixels, with headers that lie.

use std::fs;
use std::io::Cursor;
use std::ops::Range;

use image::{ImageFormat, Rgb, RgbImage};

use super::{passed_over, refused};
use crate::util::{Sandbox, fixture};

const FORMATS: [(ImageFormat, &str); 6] = [
    (ImageFormat::Png, "png"),
    (ImageFormat::Jpeg, "jpg"),
    (ImageFormat::WebP, "webp"),
    (ImageFormat::Bmp, "bmp"),
    (ImageFormat::Tiff, "tif"),
    (ImageFormat::Gif, "gif"),
];

/// A picture of 40 x 30 pixels.
fn encoded(format: ImageFormat) -> Vec<u8> {
    let image = RgbImage::from_fn(40, 30, |x, y| Rgb([(x * 6) as u8, (y * 8) as u8, (x * y) as u8]));
    let mut out = Cursor::new(Vec::new());
    image.write_to(&mut out, format).unwrap();
    out.into_inner()
}

/// `bytes` with `new` from `at` on.
fn with(mut bytes: Vec<u8>, at: usize, new: &[u8]) -> Vec<u8> {
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

/// Where `part` begins in `bytes`.
fn find(bytes: &[u8], part: &[u8]) -> usize {
    bytes.windows(part.len()).position(|w| w == part).unwrap()
}

/// A PNG whose chunk header is right for what it says now.
fn with_crc(mut png: Vec<u8>, chunk: Range<usize>) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(&png[chunk.clone()]);
    png[chunk.end..chunk.end + 4].copy_from_slice(&crc.sum().to_be_bytes());
    png
}

/// A small file of `format` whose header says that the picture is `width` x `height` pixels.
fn claiming(format: ImageFormat, width: u32, height: u32) -> Vec<u8> {
    let file = encoded(format);
    let (w, h) = (width as u16, height as u16);
    match format {
        ImageFormat::Png => with_crc(with(file, 16, &[width.to_be_bytes(), height.to_be_bytes()].concat()), 12..29),
        ImageFormat::Jpeg => {
            let frame = find(&file, &[0xff, 0xc0]) + 5;
            with(file, frame, &[h.to_be_bytes(), w.to_be_bytes()].concat())
        }
        ImageFormat::Gif => {
            let file = with(file, 6, &[w.to_le_bytes(), h.to_le_bytes()].concat());
            let frame = file.iter().rposition(|&b| b == 0x2c).unwrap();
            let frame = (0..=frame).rev().find(|&i| file[i..].starts_with(&[0x2c, 0, 0, 0, 0, 40, 0, 30, 0])).unwrap();
            with(file, frame + 5, &[w.to_le_bytes(), h.to_le_bytes()].concat())
        }
        ImageFormat::Bmp => with(file, 18, &[width.to_le_bytes(), height.to_le_bytes()].concat()),
        ImageFormat::Tiff => {
            let tag = |tag: u16, kind: u16, value: u32| {
                [&tag.to_le_bytes()[..], &kind.to_le_bytes(), &1_u32.to_le_bytes(), &value.to_le_bytes()].concat()
            };
            let [x, y] = [(256, 40), (257, 30)].map(|(number, side)| {
                [3, 4].into_iter().find_map(|kind| {
                    let tag = tag(number, kind, side);
                    file.windows(12).position(|w| w == tag)
                })
            });
            let file = with(file, x.unwrap(), &tag(256, 4, width));
            with(file, y.unwrap(), &tag(257, 4, height))
        }
        ImageFormat::WebP => {
            // A canvas of its own size around the picture.
            let canvas = [[(width - 1).to_le_bytes(), (height - 1).to_le_bytes()].map(|n| n[..3].to_vec()).concat()];
            let chunk = [&b"VP8X\x0a\0\0\0\0\0\0\0"[..], &canvas.concat()].concat();
            let body = [b"WEBP", &chunk[..], &file[12..]].concat();
            [b"RIFF", &(body.len() as u32).to_le_bytes()[..], &body].concat()
        }
        _ => unreachable!(),
    }
}

/// All `images` are named and left out, between good ones, and where only headers are read.
fn refuse(images: Vec<(String, Vec<u8>)>, parts: &[&str]) {
    let sandbox = Sandbox::new();
    let (vit, good) = (fixture("vit"), fixture("images/a.png"));
    for (name, bytes) in images {
        sandbox.write(&name, bytes);
        let args = ["embed", "--backbone", &vit, "--out", "e.safetensors", &good, &name, &good];
        passed_over(&sandbox, &args, &[&[name.as_str()], parts].concat());
        sandbox.holds(&name, || assert!(sandbox.path("e.safetensors").exists(), "the good ones"));
        let _ = fs::remove_file(sandbox.path("e.safetensors"));
    }
}

#[test]
fn headers_that_claim_too_many_pixels() {
    let images = FORMATS.map(|(format, end)| (format!("huge.{end}"), claiming(format, 60_000, 60_000)));
    // Of a TIFF file the decoder says it in its own words.
    let (tiff, others) = images.into_iter().partition(|(name, _)| name == "huge.tif");
    refuse(tiff, &[]);
    refuse(others, &["60000x60000", "limit"]);
    // Fewer than the limit, and many more than so few bytes can hold.
    let formats = FORMATS.into_iter().filter(|(format, _)| *format != ImageFormat::WebP);
    refuse(formats.map(|(format, end)| (format!("large.{end}"), claiming(format, 13_000, 13_000))).collect(), &[]);
}

#[test]
fn images_without_pixels() {
    let mut images: Vec<_> = FORMATS
        .into_iter()
        .filter(|(format, _)| *format != ImageFormat::WebP)
        .flat_map(|(format, end)| {
            [(0, 5), (5, 0), (0, 0)].map(|(w, h)| (format!("{w}x{h}.{end}"), claiming(format, w, h)))
        })
        .collect();
    let frame = b"\x10\x02\x00\x9d\x01\x2a\0\0\0\0";
    let body = [&b"WEBPVP8 "[..], &(frame.len() as u32).to_le_bytes(), frame].concat();
    images.push(("0x0.webp".to_owned(), [b"RIFF", &(body.len() as u32).to_le_bytes()[..], &body].concat()));
    refuse(images, &[]);
}

#[test]
fn truncated_images() {
    let mut images = Vec::new();
    for (format, end) in FORMATS {
        let file = encoded(format);
        // The header, a part of it, most of the pixels.
        for keep in [5, 30, file.len() / 2, file.len() - 40] {
            images.push((format!("cut-{keep}.{end}"), file[..keep].to_vec()));
        }
    }
    refuse(images, &[]);
}

#[test]
fn what_is_no_image() {
    let png = encoded(ImageFormat::Png);
    let data = find(&png, b"IDAT");
    let jpeg = encoded(ImageFormat::Jpeg);
    let tiff = encoded(ImageFormat::Tiff);
    let gif = encoded(ImageFormat::Gif);
    let frame = find(&gif, &[0x2c, 0, 0, 0, 0, 40, 0, 30, 0]) + 5;
    let images = vec![
        ("frame-larger-than-its-picture.gif", with(gif, frame, &[0x52, 0x49, 0x46, 0x46])),
        ("empty.png", vec![]),
        ("zeros.jpg", vec![0; 1000]),
        ("text.gif", b"path,label\n".to_vec()),
        ("svg.png", b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>".to_vec()),
        ("signature.png", png[..8].to_vec()),
        ("signature.jpg", vec![0xff, 0xd8]),
        ("signature.gif", b"GIF89a".to_vec()),
        ("signature.tif", b"II*\0".to_vec()),
        ("signature.webp", b"RIFF\0\0\0\0WEBP".to_vec()),
        ("signature.bmp", b"BM".to_vec()),
        ("checksum.png", with(png.clone(), 30, &[0, 0])),
        ("inflate.png", with(png.clone(), data + 6, &[0xff; 12])),
        ("chunk-of-2-gigabytes.png", with(png.clone(), data - 4, &[0x7f, 0xff, 0xff, 0xff])),
        ("no-scan.jpg", [&jpeg[..find(&jpeg, &[0xff, 0xda])], &[0xff, 0xd9]].concat()),
        ("components.jpg", with(jpeg.clone(), find(&jpeg, &[0xff, 0xc0]) + 9, &[200])),
        ("directory-beyond.tif", with(tiff.clone(), 4, &[0xff, 0xff, 0xff, 0x7f])),
        ("directory-of-itself.tif", with(tiff, 4, &[0, 0, 0, 0])),
    ];
    refuse(images.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect(), &[]);
}

#[test]
#[cfg(unix)]
fn paths_that_lead_nowhere() {
    use std::os::unix::fs::symlink;

    let sandbox = Sandbox::new();
    let (vit, good) = (fixture("vit"), fixture("images/a.png"));
    symlink("loop.png", sandbox.path("loop.png")).unwrap();
    symlink("nowhere", sandbox.path("broken.png")).unwrap();
    symlink("/dev/zero", sandbox.path("endless.png")).unwrap();
    fs::create_dir(sandbox.path("folder.png")).unwrap();
    for name in ["loop.png", "broken.png", "endless.png", "folder.png", "missing.png", "/dev/stdin"] {
        passed_over(&sandbox, &["embed", "--backbone", &vit, "--out", "e.safetensors", &good, name], &[name]);
    }
    assert!(std::process::Command::new("mkfifo").arg(sandbox.path("pipe.png")).status().unwrap().success());
    passed_over(&sandbox, &["embed", "--backbone", &vit, "--out", "e.safetensors", "pipe.png"], &["pipe.png"]);
}

#[test]
fn a_bad_image_among_good_ones() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 8);
    let vit = fixture("vit");
    let png = encoded(ImageFormat::Png);
    for (number, bad) in [vec![], png[..png.len() / 2].to_vec(), b"text".to_vec()].into_iter().enumerate() {
        sandbox.write("colours/green/003.png", bad);
        let out = format!("run{number}");
        let train =
            ["train", "--backbone", &vit, "--data", "colours", "--out", &out, "--threads", "1", "--epochs", "1"];
        refused(&sandbox, &train, &["colours/green/003.png"]);
        sandbox.holds("data check", || {
            let run = sandbox.vpt_within_limits(&["data", "check", "colours"]);
            assert!(run.code == Some(1) && run.stdout.contains("colours/green/003.png: "), "{run:#?}");
        });
    }
}
