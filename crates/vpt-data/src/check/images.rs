//! Single images: whether they can be decoded, and whether what comes out is of use.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use image::ImageFormat;
use rayon::prelude::*;

use super::finding::{Finding, FindingKind, Findings};
use super::listed::ListedImage;
use crate::{ImageSource, Stored};
use vpt_base::Error;
use vpt_base::files::read_limited;
use vpt_image::decode::{EXTENSIONS, MAX_FILE_BYTES, MAX_PIXELS, Rgb8, bits_of_16, decode_bytes, format_of};

/// The shorter side below which an image is tiny, in pixels.
const TINY: usize = 8;

/// Pixels above which an image is huge: more than the sensors of cameras have.
const HUGE: usize = 1 << 26;

/// The longer side by the shorter one, above which little is left of an image that is made square.
const EXTREME: usize = 10;

/// Bits up to which an image of 16 bits a value is taken for one of fewer.
const MOST_UNUSED: u32 = 12;

/// Images between two calls of `progress`.
const STEP: usize = 256;

/// What is learned from an image.
struct Looked {
    findings: Vec<Finding>,
    hash: Option<blake3::Hash>,
}

/// Looks at the images in `listed`, all together, and returns their hashes; none of files that cannot be read. If
/// `fast`, at headers only, and there are no hashes. `progress` is told how many are done.
pub(crate) fn check(
    listed: &[ListedImage],
    fast: bool,
    out: &mut Findings,
    progress: &mut dyn FnMut(usize, usize),
) -> Vec<Option<blake3::Hash>> {
    let mut hashes = Vec::with_capacity(listed.len());
    for chunk in listed.chunks(STEP) {
        let look = |image: &ListedImage| if fast { glance(image) } else { look(image) };
        let looked: Vec<Looked> = chunk.par_iter().map(look).collect();
        for Looked { findings, hash } in looked {
            out.0.extend(findings);
            hashes.push(hash);
        }
        progress(hashes.len(), listed.len());
    }
    hashes
}

/// Decodes the image.
fn look(image: &ListedImage) -> Looked {
    let (path, prefix) = (image.file(), image.prefix());
    let mut out = Findings::default();
    let stored = match &image.image {
        ImageSource::Member { container, index } => container.read(*index),
        _ => read_limited(path, MAX_FILE_BYTES).map(|bytes| Stored::Encoded(bytes.into())),
    };
    let (hash, blank) = match stored {
        Ok(Stored::Encoded(bytes)) => {
            let blank = match decode_bytes(&bytes) {
                Ok(image) => {
                    check_extension(path, &bytes, &mut out);
                    check_size(path, &prefix, [image.width, image.height], &mut out);
                    check_bits(path, &prefix, &bytes, &mut out);
                    blank(&image)
                }
                Err(message) => {
                    out.error(kind_of(&bytes, &message), path, None, prefix.clone() + &message);
                    None
                }
            };
            (blake3::hash(&bytes), blank)
        }
        // They all have one size, which is judged once.
        Ok(Stored::Grey { pixels, width, height }) => {
            let is_blank = width.min(height) > 1 && pixels.iter().all(|value| *value == pixels[0]);
            (blake3::hash(pixels), is_blank.then(|| "all pixels are the same".to_owned()))
        }
        Ok(Stored::Decoded(image)) => (blake3::hash(&image.pixels), blank(&image)),
        Err(error) => {
            unreadable_file(path, &prefix, &error, &mut out);
            return Looked { findings: out.0, hash: None };
        }
    };
    // Blank images equal each other, which says no more. One without objects is as it should be.
    if let Some(message) = blank.as_ref().filter(|_| !image.label.is_empty()) {
        out.warning(FindingKind::BlankImage, path, None, prefix + message);
    }
    Looked { findings: out.0, hash: Some(hash).filter(|_| blank.is_none()) }
}

/// Reads the header of the image's file.
fn glance(image: &ListedImage) -> Looked {
    let (path, prefix) = (image.file(), image.prefix());
    let mut out = Findings::default();
    let mut start = Vec::new();
    let read = match &image.image {
        ImageSource::File(path) => {
            File::open(path).and_then(|file| file.take(64).read_to_end(&mut start)).map_err(Error::io(path)).map(|_| ())
        }
        _ => Ok(()),
    };
    match read.and_then(|()| image.image.size()) {
        Ok(size) => {
            check_extension(path, &start, &mut out);
            check_size(path, &prefix, size, &mut out);
            // Deep images are few, and a run on them is to be told.
            if is_deep_png(&start)
                && let Ok(bytes) = read_limited(path, MAX_FILE_BYTES)
            {
                check_bits(path, &prefix, &bytes, &mut out);
            }
        }
        Err(Error::Image { message, .. }) => {
            let is_empty = prefix.is_empty() && start.is_empty();
            let message = if is_empty { "empty file".to_owned() } else { message.to_string() };
            out.error(kind_of(&start, &message), path, None, message);
        }
        Err(error) => unreadable_file(path, &prefix, &error, &mut out),
    }
    Looked { findings: out.0, hash: None }
}

fn unreadable_file(path: &Path, prefix: &str, error: &Error, out: &mut Findings) {
    let (kind, message) = match error {
        Error::Io { source, .. } => (FindingKind::NoAccess, source.to_string()),
        Error::Data { message, .. } | Error::Image { message, .. } | Error::File { message, .. } => {
            (FindingKind::UnreadableImage, message.to_string())
        }
        other => (FindingKind::UnreadableImage, other.to_string()),
    };
    out.error(kind, path, None, prefix.to_owned() + &message);
}

/// What kind of fault a decoder means by `message`.
pub(crate) fn kind_of(bytes: &[u8], message: &str) -> FindingKind {
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if bytes.is_empty() {
        FindingKind::EmptyFile
    } else if says(&["more than the limit of", "an image of 0x", "x0 pixels"]) {
        FindingKind::AbsurdSize
    } else if format_of(bytes).is_some()
        && says(&[
            "truncated",
            "too early",
            "end of file",
            "End of File",
            "EOF",
            "fill whole buffer",
            "end of image",
            "not enough data",
            "Not enough bytes",
        ])
    {
        FindingKind::TruncatedImage
    } else {
        FindingKind::UnreadableImage
    }
}

fn check_extension(path: &Path, start: &[u8], out: &mut Findings) {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    let Some((format, ends)) = format_of(start) else { return };
    // Other names say nothing of a format.
    let says_one = EXTENSIONS.contains(&&*extension) || ImageFormat::from_extension(&extension).is_some();
    if says_one && !ends.contains(&&*extension) {
        let message = format!("a {format} image called .{extension}");
        out.warning(FindingKind::WrongExtension, path, None, message);
    }
}

/// Whether the header of a PNG says that it has 16 bits a value (its first chunk, 9 bytes in).
fn is_deep_png(start: &[u8]) -> bool {
    start.starts_with(b"\x89PNG") && start.get(24) == Some(&16)
}

fn check_bits(path: &Path, prefix: &str, bytes: &[u8], out: &mut Findings) {
    let Some(bits) = bits_of_16(bytes).filter(|bits| (1..=MOST_UNUSED).contains(bits)) else { return };
    let message = format!(
        "{prefix}16 bits a value of which {bits} are used, so it is nearly black; scale the values to 16 bits, or save 8"
    );
    out.warning(FindingKind::UnusedBits, path, None, message);
}

fn check_size(path: &Path, prefix: &str, size: [usize; 2], out: &mut Findings) {
    for (kind, message) in size_faults(size) {
        out.warning(kind, path, None, prefix.to_owned() + &message);
    }
}

/// What is wrong with images of `width` x `height` pixels.
pub(crate) fn size_faults([width, height]: [usize; 2]) -> Vec<(FindingKind, String)> {
    let (short, long) = (width.min(height), width.max(height));
    let mut faults = Vec::new();
    if short < TINY {
        faults.push((FindingKind::TinyImage, format!("{width}x{height} pixels")));
    } else if long > EXTREME * short {
        let message = format!("{width}x{height} pixels: the sides are more than {EXTREME} to 1");
        faults.push((FindingKind::ExtremeAspectRatio, message));
    }
    if width * height > HUGE && width * height <= MAX_PIXELS {
        faults.push((FindingKind::HugeImage, format!("{width}x{height} pixels: slow to read at every epoch")));
    }
    faults
}

/// A message if all pixels are the same. An image of a pixel or two is tiny, not blank.
fn blank(image: &Rgb8) -> Option<String> {
    let (first, rest) = image.pixels.split_first_chunk::<3>()?;
    let is_blank = image.width.min(image.height) >= TINY && rest.chunks_exact(3).all(|pixel| pixel == first);
    let [r, g, b] = first;
    is_blank.then(|| format!("all pixels are of one colour, ({r}, {g}, {b})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_judged_by_their_sides() {
        let kinds = |size| size_faults(size).into_iter().map(|(kind, _)| kind).collect::<Vec<_>>();
        assert_eq!(kinds([28, 28]), []);
        assert_eq!(kinds([8, 80]), []);
        assert_eq!(kinds([8, 81]), [FindingKind::ExtremeAspectRatio]);
        assert_eq!(kinds([7, 400]), [FindingKind::TinyImage]);
        assert_eq!(kinds([8192, 8192]), []);
        assert_eq!(kinds([8193, 8192]), [FindingKind::HugeImage]);
    }

    #[test]
    fn blank_is_one_colour_everywhere() {
        let mut image = Rgb8::new(9, 9);
        assert!(blank(&image).is_some());
        *image.pixels.last_mut().unwrap() = 1;
        assert!(blank(&image).is_none());
    }
}
