//! The IDX files of MNIST and its family (Fashion-MNIST, KMNIST, EMNIST), gzip-compressed or not.
//!
//! An image file is a big-endian header (magic number, count, rows, columns) and a byte for each pixel; a label file is a
//! header (magic number, count) and a byte for each label. The images stay in memory as they are, one byte a pixel. Classes
//! are called by their numbers.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;

use super::{Candidate, ClassFiles, Format, Layout, Recognition};
use crate::check::images::size_faults;
use crate::check::{Checking, FindingKind, Findings, ListedImage};
use crate::container::{Container, ImageSource, Stored};
use crate::dataset::{Sample, Split};
use crate::open::{LabeledSet, Parts, entries};
use vpt_base::{Error, Message, Result};

impl Layout {
    /// The MNIST family's files.
    pub const IDX: Self = Self::new("idx", "IDX");
}

/// The MNIST family's files.
pub(super) const FORMAT: Format = Format { has_boxes: false, recognize };

fn recognize(candidate: &Candidate<'_>) -> Result<Recognition> {
    if !candidate.is_folder {
        return Ok(Recognition::No);
    }
    let folder = candidate.path.to_path_buf();
    let files = named(&folder)?;
    let has_images = files.iter().any(|file| file.is_images);
    // What is wrong with the files is said on opening them.
    let has_train = paired(&files).map_or(true, |parts| parts.iter().any(|part| part.split == Split::Train));
    let found = Recognition::of_classes(Layout::IDX, has_images.then_some(IdxFiles { folder, files }));
    Ok(match found {
        Recognition::Yes(found) if !has_train => Recognition::Likely(found),
        found => found,
    })
}

/// The files in a folder that are called like ones of this kind.
struct IdxFiles {
    folder: PathBuf,
    files: Vec<NamedFile>,
}

impl ClassFiles for IdxFiles {
    fn open(&self) -> Result<LabeledSet> {
        open(&paired(&self.files)?)
    }

    fn check(&self, check: &mut Checking<'_>) -> Vec<ListedImage> {
        self.check_parts(check)
    }

    fn opens_fast(&self) -> bool {
        false
    }
}

/// Longest content that is read, in bytes.
const MAX_BYTES: u64 = 1 << 33;
/// Bytes of content that deflate can make of one byte, at most.
const MAX_RATIO: u64 = 1032;
/// Two zero bytes, the type (unsigned byte), the number of dimensions.
const IMAGES_MAGIC: u32 = 0x0000_0803;
const LABELS_MAGIC: u32 = 0x0000_0801;

/// The files of one part.
struct PartFiles {
    split: Split,
    images: PathBuf,
    labels: PathBuf,
}

/// What files of a part are called.
const PARTS: [(Split, &[&str]); 3] =
    [(Split::Train, &["train"]), (Split::Val, &["val", "valid", "validation"]), (Split::Test, &["t10k", "test"])];

/// Whether a file called `name` holds `kind` of `part`: `train-images-idx3-ubyte`, also with `.` for the second `-`, with
/// `.gz`, or after a prefix such as `emnist-letters-`.
fn is_called(name: &str, part: &str, kind: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let stem = name.strip_suffix(".gz").unwrap_or(&name).replace('.', "-");
    let whole = format!("{part}-{kind}-ubyte");
    stem == whole || stem.ends_with(&format!("-{whole}"))
}

/// A file that is called like one of this kind.
struct NamedFile {
    split: Split,
    /// The part's name in the file's.
    part: &'static str,
    is_images: bool,
    path: PathBuf,
}

/// All files in `folder` that are called like one of this kind.
fn named(folder: &Path) -> Result<Vec<NamedFile>> {
    let mut out = Vec::new();
    for (name, path) in entries(folder)?.into_iter().filter(|(_, path)| path.is_file()) {
        for (split, parts) in PARTS {
            for (kind, is_images) in [("images-idx3", true), ("labels-idx1", false)] {
                let part = parts.iter().find(|part| is_called(&name, part, kind));
                out.extend(part.map(|part| NamedFile { split, part, is_images, path: path.clone() }));
            }
        }
    }
    Ok(out)
}

/// Images and labels of each part among `files`.
fn paired(files: &[NamedFile]) -> Result<Vec<PartFiles>> {
    let find = |part: &str, is_images: bool| {
        let mut hits = files.iter().filter(|file| file.part == part && file.is_images == is_images);
        match (hits.next(), hits.next()) {
            (Some(a), Some(b)) => Err(Error::data(&b.path, format!("{} is here too; keep one", a.path.display()))),
            (first, _) => Ok(first.map(|file| file.path.clone())),
        }
    };
    let mut parts: Vec<PartFiles> = Vec::new();
    for (split, names) in PARTS {
        for name in names {
            let Some(images) = find(name, true)? else { continue };
            let labels = find(name, false)?;
            let labels = labels.ok_or_else(|| Error::data(&images, "no labels file beside it"))?;
            if let Some(first) = parts.iter().find(|p| p.split == split) {
                return Err(Error::data(&images, format!("{} is here too; keep one", first.images.display())));
            }
            parts.push(PartFiles { split, images, labels });
        }
    }
    Ok(parts)
}

/// Opens the files of all parts.
fn open(files: &[PartFiles]) -> Result<LabeledSet> {
    let mut names: Vec<u8> = Vec::new();
    let mut parts = [None, None, None];
    for PartFiles { split, images, labels } in files {
        let (header, pixels) = read::<4>(images, IMAGES_MAGIC)?;
        let [_, count, height, width] = header;
        if count == 0 || width == 0 || height == 0 {
            return Err(Error::data(images, format!("{count} images of {width}x{height} pixels")));
        }
        let ([_, label_count], values) = read::<2>(labels, LABELS_MAGIC)?;
        if label_count != count {
            let message = format!("{label_count} labels for the {count} images in {}", images.display());
            return Err(Error::data(labels, message));
        }
        if *split == Split::Train {
            names = values.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        }
        let pixels: Arc<dyn Container> = Arc::new(GreyImages { path: images.clone(), pixels, width, height });
        let prefix = images.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let prefix = prefix.split("-idx3").next().and_then(|p| p.split(".idx3").next()).unwrap_or_default();
        let mut samples = Vec::with_capacity(values.len());
        for (index, value) in values.iter().enumerate() {
            let label = names
                .binary_search(value)
                .map_err(|_| Error::data(labels, format!("label {value} (number {index}) does not occur in train")))?;
            let image = ImageSource::Member { container: pixels.clone(), index };
            samples.push(Sample { image, label: label as u32, id: format!("{prefix}:{index}") });
        }
        parts[*split as usize] = Some(samples);
    }
    let [train, val, test] = parts;
    let samples = Parts::Split { train: train.unwrap_or_default(), val, test };
    Ok(LabeledSet { classes: names.iter().map(u8::to_string).collect(), samples })
}

/// The images of a file.
struct GreyImages {
    path: PathBuf,
    /// `[images, height, width]`.
    pixels: Vec<u8>,
    width: usize,
    height: usize,
}

impl fmt::Debug for GreyImages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, width, height, .. } = self;
        f.debug_struct("GreyImages").field("path", path).field("width", width).field("height", height).finish()
    }
}

impl Container for GreyImages {
    fn path(&self) -> &Path {
        &self.path
    }

    fn name(&self, index: usize) -> String {
        format!("image {index}")
    }

    fn read(&self, index: usize) -> Result<Stored<'_>> {
        let Self { path, pixels, width, height } = self;
        let size = width * height;
        match pixels.get(index * size..(index + 1) * size) {
            Some(pixels) => Ok(Stored::Grey { pixels, width: *width, height: *height }),
            None => Err(Error::data(path, format!("there is no image {index}"))),
        }
    }

    fn is_decoded(&self) -> bool {
        true
    }
}

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// It ends too early.
    Truncated,
    /// It holds more than its header says.
    Count,
    /// Anything else.
    Other,
}

/// A file that cannot be used.
#[derive(Debug)]
struct Bad {
    flaw: Flaw,
    error: Error,
}

impl Bad {
    fn new(flaw: Flaw, path: &Path, message: impl Into<Message>) -> Self {
        Self { flaw, error: Error::data(path, message) }
    }
}

impl From<Bad> for Error {
    fn from(bad: Bad) -> Self {
        bad.error
    }
}

impl From<Error> for Bad {
    fn from(error: Error) -> Self {
        Self { flaw: Flaw::Other, error }
    }
}

/// A file that is being read.
struct Open<const N: usize> {
    stream: Box<dyn Read>,
    /// The numbers of the header.
    header: [usize; N],
    compressed: bool,
    /// Bytes that the content has at most, by the file's size.
    most: u64,
}

fn open_file<const N: usize>(path: &Path, magic: u32) -> Result<Open<N>, Bad> {
    let size = fs::metadata(path).map_err(Error::io(path))?.len();
    let file = File::open(path).map_err(Error::io(path))?;
    let compressed = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz"));
    let (mut stream, most): (Box<dyn Read>, u64) = if compressed {
        (Box::new(MultiGzDecoder::new(std::io::BufReader::new(file))), size.saturating_mul(MAX_RATIO))
    } else {
        (Box::new(file), size)
    };
    let mut header = [0_usize; N];
    for (i, number) in header.iter_mut().enumerate() {
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).map_err(|e| broken(path, &e))?;
        let value = u32::from_be_bytes(bytes);
        if i == 0 && value != magic {
            let message = format!("not an IDX file of bytes: begins with {value:#010x}, not {magic:#010x}");
            return Err(Bad::new(Flaw::Other, path, message));
        }
        *number = value as usize;
    }
    Ok(Open { stream, header, compressed, most })
}

/// The `N` numbers of a header, the first of which must be `magic`.
fn header<const N: usize>(path: &Path, magic: u32) -> Result<[usize; N], Bad> {
    open_file(path, magic).map(|open| open.header)
}

/// The `N` numbers of a header, the first of which must be `magic`, and the bytes that follow: as many as the others
/// multiplied, which is checked before memory is taken.
fn read<const N: usize>(path: &Path, magic: u32) -> Result<([usize; N], Vec<u8>), Bad> {
    let Open { mut stream, header, compressed, most } = open_file::<N>(path, magic)?;
    let length = header[1..].iter().try_fold(1_u64, |product, &n| product.checked_mul(n as u64));
    let Some(length) = length.filter(|&n| n <= most.saturating_sub(4 * N as u64) && n <= MAX_BYTES) else {
        let sizes = header[1..].iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
        let message = format!("the header promises {sizes} bytes, more than the file holds");
        return Err(Bad::new(Flaw::Truncated, path, message));
    };
    // A compressed file can still promise much more than it holds: begin small and let it prove itself.
    let mut content = Vec::with_capacity(length.min(if compressed { 1 << 26 } else { length }) as usize);
    (&mut stream).take(length).read_to_end(&mut content).map_err(|e| broken(path, &e))?;
    if (content.len() as u64) < length {
        let message = format!("truncated: {} of {length} bytes after the header", content.len());
        return Err(Bad::new(Flaw::Truncated, path, message));
    }
    // Also makes the decompressor check its checksum, which stands at the end.
    if stream.read(&mut [0]).map_err(|e| broken(path, &e))? != 0 {
        let message = format!("more than the {length} bytes that the header promises");
        return Err(Bad::new(Flaw::Count, path, message));
    }
    Ok((header, content))
}

fn broken(path: &Path, error: &std::io::Error) -> Bad {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Bad::new(Flaw::Truncated, path, "truncated: the file ends too early"),
        _ => Bad::new(Flaw::Other, path, error.to_string()),
    }
}

impl IdxFiles {
    /// The images. If a check is to be fast, headers only are read and no images come back.
    fn check_parts(&self, check: &mut Checking<'_>) -> Vec<ListedImage> {
        let Checking { fast, places, out, .. } = check;
        let mut listed = Vec::new();
        for split in Split::ALL {
            let these = |is_images| self.files.iter().filter(move |f| f.split == split && f.is_images == is_images);
            for is_images in [true, false] {
                let pairs = these(is_images).zip(these(is_images).skip(1));
                for (first, NamedFile { path, .. }) in pairs.filter(|(a, b)| a.part != b.part || is_images) {
                    let message = format!("{} is for {split} too; keep one", first.path.display());
                    out.error(FindingKind::AmbiguousSplit, path, None, message);
                }
            }
            match (these(true).next(), these(false).next()) {
                (Some(images), Some(labels)) => {
                    places.parts[split as usize] = Some(images.path.clone());
                    listed.extend(check_part(split, &images.path, &labels.path, *fast, out));
                }
                (Some(images), None) => {
                    out.error(FindingKind::IdxNoLabels, &images.path, None, "no labels file beside it");
                }
                (None, Some(labels)) => {
                    out.error(FindingKind::IdxNoLabels, &labels.path, None, "no images file beside it");
                }
                (None, None) if split == Split::Train => {
                    out.error(FindingKind::NoTrain, &self.folder, None, "IDX files, and none of images for train");
                }
                (None, None) => {}
            }
        }
        listed
    }
}

fn check_part(split: Split, images: &Path, labels: &Path, fast: bool, out: &mut Findings) -> Vec<ListedImage> {
    let mut report = |path: &Path, bad: Bad| {
        let kind = match bad.flaw {
            Flaw::Truncated => FindingKind::IdxTruncated,
            Flaw::Count => FindingKind::IdxCount,
            Flaw::Other => FindingKind::IdxMalformed,
        };
        out.refused(kind, path, &bad.error);
    };
    let image_header = header::<4>(images, IMAGES_MAGIC).map_err(|bad| report(images, bad)).ok();
    let label_header = header::<2>(labels, LABELS_MAGIC).map_err(|bad| report(labels, bad)).ok();
    // What a header cannot say is not to be looked for behind it.
    let pixels = image_header.filter(|_| !fast).and_then(|_| {
        read::<4>(images, IMAGES_MAGIC).map_err(|bad| report(images, bad)).ok().map(|(_, pixels)| pixels)
    });
    let values = label_header.filter(|_| !fast).and_then(|_| {
        read::<2>(labels, LABELS_MAGIC).map_err(|bad| report(labels, bad)).ok().map(|(_, values)| values)
    });
    let Some([_, count, height, width]) = image_header else { return Vec::new() };
    if let Some([_, labelled]) = label_header
        && labelled != count
    {
        let message = format!("{labelled} labels for the {count} images in {}", images.display());
        out.error(FindingKind::IdxLabels, labels, None, message);
    }
    if count == 0 || width == 0 || height == 0 {
        out.error(FindingKind::IdxMalformed, images, None, format!("{count} images of {width}x{height} pixels"));
        return Vec::new();
    }
    for (kind, message) in size_faults([width, height]) {
        out.warning(kind, images, None, format!("images of {message}"));
    }
    let (Some(pixels), Some(values)) = (pixels, values) else { return Vec::new() };
    let container: Arc<dyn Container> = Arc::new(GreyImages { path: images.into(), pixels, width, height });
    let place: (Arc<Path>, Option<u64>) = (labels.into(), None);
    let names: Vec<Arc<str>> = (0..=u8::MAX).map(|value| value.to_string().into()).collect();
    let image = |(index, value): (usize, &u8)| ListedImage {
        image: ImageSource::Member { container: container.clone(), index },
        split: Some(split),
        label: names[usize::from(*value)].clone(),
        place: place.clone(),
    };
    values.iter().take(count).enumerate().map(image).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Dataset;
    use std::io::Write;

    fn images(count: u32, height: u32, width: u32, pixels: &[u8]) -> Vec<u8> {
        let header = [IMAGES_MAGIC, count, height, width];
        header.iter().flat_map(|n| n.to_be_bytes()).chain(pixels.iter().copied()).collect()
    }

    fn labels(count: u32, values: &[u8]) -> Vec<u8> {
        [LABELS_MAGIC, count].iter().flat_map(|n| n.to_be_bytes()).chain(values.iter().copied()).collect()
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        dir
    }

    #[test]
    fn plain_and_compressed_files_are_read() {
        let pixels: Vec<u8> = (0..24).collect();
        let dir = folder(&[
            ("train-images-idx3-ubyte", images(4, 2, 3, &pixels)),
            ("train-labels-idx1-ubyte.gz", gz(&labels(4, &[7, 3, 7, 3]))),
            ("t10k-images.idx3-ubyte.gz", gz(&images(1, 2, 3, &pixels[6..12]))),
            ("t10k-labels.idx1-ubyte", labels(1, &[7])),
        ]);
        let found = open(&paired(&named(dir.path()).unwrap()).unwrap()).unwrap();
        assert_eq!(found.classes, ["3", "7"]);
        let Parts::Split { train, val: None, test: Some(test) } = found.samples else { panic!("parts") };
        assert_eq!(train.iter().map(|s| s.label).collect::<Vec<_>>(), [1, 0, 1, 0]);
        assert_eq!((train[1].id.as_str(), test[0].id.as_str()), ("train-images:1", "t10k-images:0"));
        let image = train[1].load().unwrap();
        assert_eq!((image.width, image.height), (3, 2));
        assert_eq!(image.pixels.chunks(3).map(|p| p[0]).collect::<Vec<_>>(), [6, 7, 8, 9, 10, 11]);
        assert_eq!(image, test[0].load().unwrap());
    }

    #[test]
    fn headers_that_lie_are_refused() {
        let good_images = || images(2, 1, 1, &[1, 2]);
        let good_labels = || labels(2, &[0, 1]);
        let cases = [
            (images(2, 1, 1, &[1]), good_labels(), "more than the file holds"),
            (images(u32::MAX, u32::MAX, u32::MAX, &[1]), good_labels(), "more than the file holds"),
            (images(2, 1, 1, &[1, 2, 3]), good_labels(), "more than the 2 bytes"),
            (good_images(), labels(3, &[0, 1, 2]), "3 labels for the 2 images"),
            (labels(2, &[0, 1]), good_labels(), "not an IDX file"),
            (images(0, 1, 1, &[]), labels(0, &[]), "0 images"),
            (vec![0, 0, 8], good_labels(), "truncated"),
        ];
        for (images, labels, expected) in cases {
            for compress in [false, true] {
                let pack = |bytes: &Vec<u8>| if compress { gz(bytes) } else { bytes.clone() };
                let end = if compress { ".gz" } else { "" };
                let dir = folder(&[
                    (&format!("train-images-idx3-ubyte{end}"), pack(&images)),
                    (&format!("train-labels-idx1-ubyte{end}"), pack(&labels)),
                ]);
                let message = Dataset::open(dir.path(), 1).unwrap_err().to_string();
                // A short compressed file could hold what is missing by its size alone; it is found out when read.
                let found = message.contains(expected) || (compress && message.contains("truncated"));
                assert!(found && message.contains("-ubyte"), "{message} / {expected}");
            }
        }
    }

    #[test]
    fn a_damaged_archive_is_an_error() {
        let mut packed = gz(&images(2, 1, 1, &[1, 2]));
        let last = packed.len() - 6;
        packed[last] ^= 1;
        let dir = folder(&[("train-images-idx3-ubyte.gz", packed), ("train-labels-idx1-ubyte", labels(2, &[0, 1]))]);
        assert!(Dataset::open(dir.path(), 1).is_err());
    }

    #[test]
    fn labels_must_be_there_and_known() {
        let dir = folder(&[("train-images-idx3-ubyte", images(1, 1, 1, &[1]))]);
        assert!(Dataset::open(dir.path(), 1).unwrap_err().to_string().contains("no labels file"));
        let dir = folder(&[
            ("train-images-idx3-ubyte", images(1, 1, 1, &[1])),
            ("train-labels-idx1-ubyte", labels(1, &[0])),
            ("t10k-images-idx3-ubyte", images(1, 1, 1, &[1])),
            ("t10k-labels-idx1-ubyte", labels(1, &[5])),
        ]);
        let message = Dataset::open(dir.path(), 1).unwrap_err().to_string();
        assert!(message.contains("t10k-labels") && message.contains("label 5"), "{message}");
    }

    proptest::proptest! {
        #[test]
        fn no_header_makes_a_panic(numbers: [u8; 16], labels: [u8; 12], compress: bool) {
            let mut image_file = images(1, 1, 1, &[1]);
            image_file[4..16].copy_from_slice(&numbers[..12]);
            let mut label_file = labels.to_vec();
            label_file[..4].copy_from_slice(&LABELS_MAGIC.to_be_bytes());
            let pack = |bytes: Vec<u8>| if compress { gz(&bytes) } else { bytes };
            let end = if compress { ".gz" } else { "" };
            let dir = folder(&[
                (&format!("train-images-idx3-ubyte{end}"), pack(image_file)),
                (&format!("train-labels-idx1-ubyte{end}"), pack(label_file)),
            ]);
            let _ = Dataset::open(dir.path(), 1);
        }
    }
}
