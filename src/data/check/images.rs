//! Single images: whether they can be decoded, and whether what comes out is of use.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use image::ImageFormat;
use rayon::prelude::*;

use super::finding::{Finding, FindingKind, Findings, Severity};
use super::listed::Listed;
use crate::Error;
use crate::files::read_limited;
use crate::image::decode::{MAX_FILE_BYTES, MAX_PIXELS, Rgb8, decode_bytes, size};

/// The shorter side below which an image is tiny, in pixels.
const TINY: usize = 8;

/// Pixels above which an image is huge: more than the sensors of cameras have.
const HUGE: usize = 1 << 26;

/// The longer side by the shorter one, above which little is left of an image that is made square.
const EXTREME: usize = 10;

/// Images between two calls of `progress`.
const STEP: usize = 256;

/// What is learned from an image.
struct Looked {
    findings: Vec<Finding>,
    hash: Option<blake3::Hash>,
}

/// Looks at the image files in `listed`, all together, and returns their hashes; none of files that cannot be read. If
/// `fast`, at headers only, and there are no hashes. `progress` is told how many are done.
pub(super) fn check(
    listed: &[Listed],
    fast: bool,
    out: &mut Findings,
    progress: &mut dyn FnMut(usize, usize),
) -> Vec<Option<blake3::Hash>> {
    let mut hashes = Vec::with_capacity(listed.len());
    for chunk in listed.chunks(STEP) {
        let look = |image: &Listed| if fast { glance(&image.path) } else { look(image) };
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
fn look(image: &Listed) -> Looked {
    let path = &*image.path;
    let has_objects = !image.label.is_empty();
    let mut out = Findings::default();
    let bytes = match read_limited(path, MAX_FILE_BYTES) {
        Ok(bytes) => bytes,
        Err(error) => {
            unreadable_file(path, &error, &mut out);
            return Looked { findings: out.0, hash: None };
        }
    };
    let mut hash = Some(blake3::hash(&bytes));
    match decode_bytes(&bytes) {
        Ok(image) => {
            check_extension(path, &bytes, &mut out);
            check_size(path, [image.width, image.height], &mut out);
            if let Some(message) = blank(&image) {
                // Blank images equal each other, which says no more. One without objects is as it should be.
                hash = None;
                if has_objects {
                    out.warning(FindingKind::BlankImage, path, None, message);
                }
            }
        }
        Err(message) => out.error(kind_of(&bytes, &message), path, None, message),
    }
    Looked { findings: out.0, hash }
}

/// Reads the image's header.
fn glance(path: &Path) -> Looked {
    let mut out = Findings::default();
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(64).read_to_end(&mut start)).map_err(Error::io(path));
    match read.and_then(|_| size(path)) {
        Ok(size) => {
            check_extension(path, &start, &mut out);
            check_size(path, size, &mut out);
        }
        Err(Error::File { message, .. }) => {
            let empty = if start.is_empty() { "empty file".to_owned() } else { message };
            out.error(kind_of(&start, &empty), path, None, empty);
        }
        Err(error) => unreadable_file(path, &error, &mut out),
    }
    Looked { findings: out.0, hash: None }
}

fn unreadable_file(path: &Path, error: &Error, out: &mut Findings) {
    let (kind, message) = match error {
        Error::Io { source, .. } => (FindingKind::NoAccess, source.to_string()),
        Error::File { message, .. } => (FindingKind::UnreadableImage, message.clone()),
        other => (FindingKind::UnreadableImage, other.to_string()),
    };
    out.add(kind, Severity::Error, path, None, message);
}

/// What kind of fault a decoder means by `message`.
pub(super) fn kind_of(bytes: &[u8], message: &str) -> FindingKind {
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if bytes.is_empty() {
        FindingKind::EmptyFile
    } else if says(&["more than the limit of", "an image of 0x", "x0 pixels"]) {
        FindingKind::AbsurdSize
    } else if image::guess_format(bytes).is_ok()
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
    let Ok(format) = image::guess_format(start) else { return };
    // Other names say nothing of a format.
    let said = match extension.as_str() {
        "jpe" => Some(ImageFormat::Jpeg),
        other => ImageFormat::from_extension(other),
    };
    if said.is_some_and(|said| said != format) {
        let message = format!("a {} image called .{extension}", title(format));
        out.warning(FindingKind::WrongExtension, path, None, message);
    }
}

fn check_size(path: &Path, size: [usize; 2], out: &mut Findings) {
    for (kind, message) in size_faults(size) {
        out.warning(kind, path, None, message);
    }
}

/// What is wrong with images of `width` x `height` pixels.
pub(super) fn size_faults([width, height]: [usize; 2]) -> Vec<(FindingKind, String)> {
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

/// The format's name as people write it.
pub(super) fn title(format: ImageFormat) -> String {
    match format {
        ImageFormat::WebP => "WebP".to_owned(),
        other => format!("{other:?}").to_uppercase(),
    }
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
