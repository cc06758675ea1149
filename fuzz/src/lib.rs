//! What the targets share: a folder in memory for inputs that are read from files, and inputs of several files.

use std::fs;
use std::path::{Path, PathBuf};

use vpt::data::boxes::{BoxDataset, BoxLayout, convert};

/// Stands between the files of an input.
const BETWEEN: &[u8] = b"\n--8<--\n";

/// A folder that a target puts its inputs into. It is left behind when the process is killed; `/dev/shm` forgets it.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// An empty folder, in memory where there is such a place.
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let root = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        Self(tempfile::Builder::new().prefix("vpt-fuzz-").tempdir_in(root).expect("a folder for inputs"))
    }

    /// Writes the file `name`, whose folders are made.
    pub fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).expect("a folder for an input");
        }
        fs::write(&path, bytes).expect("room for an input");
        path
    }

    /// Where the file `name` is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// Opens the boxes at `path` and, if they can be read, cuts them out and converts them. Every object is inside its image, which is [`PNG`], and of a
/// category that there is.
pub fn open_and_convert(scratch: &Scratch, path: &Path) {
    let Ok(data) = BoxDataset::open(path, 1) else { return };
    for image in data.train.iter().chain(&data.val).chain(&data.test) {
        for object in &image.objects {
            let rect = object.rect;
            let inside = rect.x >= 0. && rect.y >= 0. && rect.right() <= 8.001 && rect.bottom() <= 6.001;
            assert!(inside && object.category < data.categories.len() && object.area.is_finite(), "{object:?}");
        }
    }
    let _ = (data.summary(), data.fingerprint());
    let (crops, ..) = data.crops(0.);
    for sample in crops.train.iter().chain(&crops.val).chain(&crops.test) {
        let image = sample.load().expect("a box of a picture that is there");
        assert!(image.width > 0 && image.height > 0 && image.pixels.len() == image.width * image.height * 3);
    }
    let out = scratch.path("converted");
    let _ = convert(&data, BoxLayout::Coco, &out);
    let _ = fs::remove_dir_all(out);
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// The first `N` files of an input; what is not there is empty.
pub fn files<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    let mut rest = Some(data);
    std::array::from_fn(|i| {
        let data = rest.unwrap_or_default();
        let cut = (i + 1 < N).then(|| data.windows(BETWEEN.len()).position(|w| w == BETWEEN)).flatten();
        rest = cut.map(|at| &data[at + BETWEEN.len()..]);
        &data[..cut.unwrap_or(data.len())]
    })
}

/// A PNG of 8 x 6 pixels, for formats that describe images.
pub const PNG: &[u8] = include_bytes!("pixels.png");

/// A zip archive of these files, not compressed and with the checksums that belong to them.
pub fn stored_zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut archive, mut list) = (Vec::new(), Vec::new());
    for (name, bytes) in files {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        let (offset, len) = (archive.len() as u32, bytes.len() as u32);
        // Flags, method and date are zero, and so are the lengths of what may follow the name.
        let mut entry = vec![20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0];
        entry.extend([crc.sum(), len, len, name.len() as u32].iter().flat_map(|n| n.to_le_bytes()));
        archive.extend(b"PK\x03\x04");
        archive.extend(&entry);
        archive.extend([name.as_bytes(), bytes].concat());
        list.extend(b"PK\x01\x02\x14\x00");
        list.extend(entry);
        list.extend([0; 10]);
        list.extend(offset.to_le_bytes());
        list.extend(name.as_bytes());
    }
    let (offset, len, count) = (archive.len() as u32, list.len() as u32, files.len() as u16);
    archive.extend(list);
    archive.extend(b"PK\x05\x06\0\0\0\0");
    archive.extend([count, count].iter().flat_map(|n| n.to_le_bytes()));
    archive.extend([len, offset].iter().flat_map(|n| n.to_le_bytes()));
    archive.extend([0, 0]);
    archive
}
