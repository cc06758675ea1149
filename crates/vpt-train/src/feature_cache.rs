//! Features of frozen backbones on disk, so that no run computes again what one before it has computed.
//!
//! A feature is found by what it depends on: a `Space` stands for all that is common to many (the backbone's weights, the
//! preprocessing, the instruction set, this program's version), a `FeatureKey` for one image or text. What is found is what would be
//! computed, to the last bit, so a cache changes no result.
//!
//! A space is a folder of segments that are written beside and renamed, and never changed afterwards: any number of processes
//! can read and write at a time. A file that is damaged in any way is taken away and its features are computed again; what
//! the system refuses costs time but never a run. Beyond the size limit, the segments that were not used for longest go.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::SystemTime,
};

use vpt_base::{Error, Result, files::write_atomic};

/// Key of a feature within its space.
pub(crate) type FeatureKey = [u8; 32];

/// Changes whenever equal keys may stand for other features than before.
const FORMAT: &str = "2";
/// How a segment begins: this, the number of values of a feature (`u32`), the number of features (`u64`), all little-endian.
/// Then come the keys, then for each key its values (`f32`) and eight bytes of the BLAKE3 hash of key and values.
const MAGIC: [u8; 8] = *b"vptfeat1";
const HEADER: u64 = 20;
const CHECK: usize = 8;
/// The end of a segment's name.
const EXTENSION: &str = "features";
/// The file that is locked while segments are taken away.
const LOCK: &str = ".lock";
/// Bytes that wait in memory before they become a segment.
const SEGMENT_BYTES: usize = 64 << 20;
/// Bytes on disk unless the user says otherwise.
pub const LIMIT: u64 = 4_000_000_000;

/// The environment variable that says how large a cache may grow, in gigabytes (1e9 bytes).
pub const LIMIT_VAR: &str = "VPT_CACHE_GB";
/// The environment variable that says where the cache of the command line is.
pub const FOLDER_VAR: &str = "VPT_CACHE";

/// The size limit that the environment says, or else [`LIMIT`].
pub fn limit() -> u64 {
    let said = std::env::var(LIMIT_VAR).ok().and_then(|said| said.trim().parse::<f64>().ok());
    said.filter(|gb| gb.is_finite() && *gb >= 0.).map_or(LIMIT, |gb| (gb * 1e9) as u64)
}

/// The folder that the environment says, or else the one for caches on this system; `None` if there is neither, or the
/// environment says an empty one.
pub fn default_folder() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let sound = |path: &PathBuf| path.is_absolute();
    if let Some(said) = var(FOLDER_VAR) {
        return Some(said).filter(|path| !path.as_os_str().is_empty());
    }
    let system = if cfg!(windows) {
        var("LOCALAPPDATA").filter(sound)
    } else if cfg!(target_os = "macos") {
        var("HOME").filter(sound).map(|home| home.join("Library/Caches"))
    } else {
        var("XDG_CACHE_HOME").filter(sound).or_else(|| var("HOME").filter(sound).map(|home| home.join(".cache")))
    };
    system.map(|folder| folder.join("vpt"))
}

/// A folder of features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureCache {
    root: PathBuf,
    limit: u64,
}

/// Contents of a cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Contents {
    /// Bytes on disk.
    pub bytes: u64,
    /// Segments.
    pub files: u64,
    /// Features of images and texts.
    pub features: u64,
}

/// A segment's file as a folder lists it.
struct ListedSegment {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl FeatureCache {
    /// The cache in the folder `root`, which need not exist yet, of at most `limit` bytes.
    pub fn new(root: PathBuf, limit: u64) -> Self {
        Self { root, limit }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The most bytes it keeps.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Its contents; nothing where the folder does not exist.
    ///
    /// # Errors
    /// A folder cannot be listed.
    pub fn contents(&self) -> Result<Contents> {
        let mut contents = Contents::default();
        for listed in self.list()? {
            contents.files += 1;
            contents.bytes += listed.bytes;
            contents.features += Segment::open(&listed.path, None).map_or(0, |(_, keys)| keys.len() as u64);
        }
        Ok(contents)
    }

    /// Takes away everything that is in it and returns what that was. Files that are none of a cache stay.
    ///
    /// # Errors
    /// A folder cannot be listed or a file not be removed.
    pub fn clear(&self) -> Result<Contents> {
        let contents = self.contents()?;
        let _lock = self.lock();
        for listed in self.list()? {
            match fs::remove_file(&listed.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io(&listed.path)(error));
                }
                _ => {}
            }
        }
        for space in self.spaces()? {
            // One that holds something else stays.
            let _ = fs::remove_dir(space);
        }
        Ok(contents)
    }

    /// The features of `width` values that depend on `parts`.
    pub(crate) fn space(&self, parts: &[&[u8]], width: usize) -> Space {
        let mut hasher = blake3::Hasher::new();
        let isa = format!("{:?}", vpt_kernel::isa());
        let common = [FORMAT.as_bytes(), env!("CARGO_PKG_VERSION").as_bytes(), isa.as_bytes()];
        for part in common.iter().chain(parts) {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let folder = self.root.join(hasher.finalize().to_hex().as_str());
        let mut space = Space {
            cache: self.clone(),
            folder,
            width,
            segments: Vec::new(),
            index: HashMap::new(),
            fresh: Vec::new(),
        };
        space.read();
        space
    }

    fn spaces(&self) -> Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io(&self.root)(error)),
        };
        let is_ours = |name: &str| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
        Ok(entries
            .flatten()
            .filter(|entry| entry.file_name().to_str().is_some_and(is_ours) && entry.path().is_dir())
            .map(|entry| entry.path())
            .collect())
    }

    fn list(&self) -> Result<Vec<ListedSegment>> {
        Ok(self.spaces()?.iter().flat_map(|space| segments_in(space)).collect())
    }

    /// Removes the segments that were not used for longest until the rest fits. Another process may be at it already.
    fn trim(&self) -> Option<()> {
        let _lock = self.lock()?;
        let mut listed = self.list().ok()?;
        listed.sort_by(|a, b| (a.used, &a.path).cmp(&(b.used, &b.path)));
        let mut bytes: u64 = listed.iter().map(|listed| listed.bytes).sum();
        for oldest in listed {
            if bytes <= self.limit {
                break;
            }
            let _ = fs::remove_file(&oldest.path);
            bytes -= oldest.bytes;
        }
        Some(())
    }

    /// Held while files are removed; `None` if another process holds it.
    fn lock(&self) -> Option<File> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(self.root.join(LOCK)).ok()?;
        match file.try_lock() {
            Err(fs::TryLockError::WouldBlock) => None,
            // A file system without locks: removing a file twice does no harm.
            _ => Some(file),
        }
    }
}

/// The segments in the folder `space`.
fn segments_in(space: &Path) -> Vec<ListedSegment> {
    let Ok(entries) = fs::read_dir(space) else { return Vec::new() };
    let listed = |entry: fs::DirEntry| {
        let path = entry.path();
        // Nothing but regular files: a pipe could block for ever.
        let meta = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?;
        let ours = path.extension().is_some_and(|extension| extension == EXTENSION);
        ours.then(|| ListedSegment { path, bytes: meta.len(), used: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH) })
    };
    let mut all: Vec<ListedSegment> = entries.flatten().filter_map(listed).collect();
    all.sort_by(|a, b| a.path.cmp(&b.path));
    all
}

/// An open segment.
#[derive(Debug)]
struct Segment {
    path: PathBuf,
    file: File,
    /// Where its features begin, in bytes.
    begin: u64,
    used: bool,
}

impl Segment {
    /// Opens the segment `path` of features of `width` values, if that is given; its keys in their order. `None` if it is
    /// damaged or cannot be read.
    fn open(path: &Path, width: Option<usize>) -> Option<(Self, Vec<FeatureKey>)> {
        let mut file = File::open(path).ok()?;
        let length = file.metadata().ok()?.len();
        let mut header = [0; HEADER as usize];
        file.read_exact(&mut header).ok()?;
        let values = u32::from_le_bytes(header[8..12].try_into().ok()?);
        let count = u64::from_le_bytes(header[12..].try_into().ok()?);
        let record = 4 * u64::from(values) + CHECK as u64;
        let expected = count.checked_mul(record + 32).and_then(|bytes| bytes.checked_add(HEADER));
        if header[..8] != MAGIC || expected != Some(length) || width.is_some_and(|width| width != values as usize) {
            return None;
        }
        // No more than the file is long.
        let mut keys = vec![[0; 32]; usize::try_from(count).ok()?];
        file.read_exact(keys.as_flattened_mut()).ok()?;
        Some((Self { path: path.to_path_buf(), file, begin: HEADER + 32 * count, used: false }, keys))
    }

    /// The feature `row`, whose key is `key`; `None` if it is damaged.
    fn read(&mut self, row: u64, key: &FeatureKey, width: usize) -> Option<Vec<f32>> {
        let mut bytes = vec![0; 4 * width + CHECK];
        self.file.seek(SeekFrom::Start(self.begin + row * bytes.len() as u64)).ok()?;
        self.file.read_exact(&mut bytes).ok()?;
        let (values, sum) = bytes.split_at(4 * width);
        if sum != check(key, values) {
            return None;
        }
        let values: Vec<f32> = values.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        self.used = true;
        values.iter().all(|value| value.is_finite()).then_some(values)
    }
}

/// Checksum that is written behind a feature.
fn check(key: &FeatureKey, values: &[u8]) -> [u8; CHECK] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(key).update(values);
    let mut sum = [0; CHECK];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

/// Features of one kind. Dropping it writes down what was added.
#[derive(Debug)]
pub(crate) struct Space {
    cache: FeatureCache,
    folder: PathBuf,
    width: usize,
    segments: Vec<Option<Segment>>,
    /// The segment of each key, and the position in it.
    index: HashMap<FeatureKey, (usize, u64)>,
    fresh: Vec<(FeatureKey, Vec<f32>)>,
}

impl Space {
    fn read(&mut self) {
        for listed in segments_in(&self.folder) {
            let Some((segment, keys)) = Segment::open(&listed.path, Some(self.width)) else {
                let _ = fs::remove_file(&listed.path);
                continue;
            };
            let number = self.segments.len();
            self.index.extend(keys.into_iter().zip(0..).map(|(key, row)| (key, (number, row))));
            self.segments.push(Some(segment));
        }
    }

    /// The feature for `key`.
    pub(crate) fn get(&mut self, key: &FeatureKey) -> Option<Vec<f32>> {
        let (number, row) = *self.index.get(key)?;
        let slot = self.segments.get_mut(number)?;
        let values = slot.as_mut()?.read(row, key, self.width);
        if values.is_none() {
            // Whatever else is in it is no more to be trusted.
            if let Some(segment) = slot.take() {
                let _ = fs::remove_file(segment.path);
            }
            self.index.retain(|_, (other, _)| *other != number);
        }
        values
    }

    /// Keeps a feature for `key`.
    pub(crate) fn put(&mut self, key: FeatureKey, values: &[f32]) {
        debug_assert_eq!(values.len(), self.width);
        self.fresh.push((key, values.to_vec()));
        if self.fresh.len() * 4 * self.width >= SEGMENT_BYTES {
            self.write();
        }
    }

    /// Writes what was added. That it cannot be written is no reason to stop a run.
    fn write(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        let mut bytes = Vec::with_capacity(HEADER as usize + self.fresh.len() * (32 + 4 * self.width + CHECK));
        bytes.extend(MAGIC);
        bytes.extend((self.width as u32).to_le_bytes());
        bytes.extend((self.fresh.len() as u64).to_le_bytes());
        bytes.extend(self.fresh.iter().flat_map(|(key, _)| key));
        for (key, values) in self.fresh.drain(..) {
            let values: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            bytes.extend(&values);
            bytes.extend(check(&key, &values));
        }
        let name = format!("{}.{EXTENSION}", &blake3::hash(&bytes).to_hex()[..32]);
        let written = fs::create_dir_all(&self.folder)
            .map_err(Error::io(&self.folder))
            .and_then(|()| write_atomic(&self.folder.join(name), &bytes));
        match written {
            Ok(()) => {
                self.cache.trim();
            }
            Err(error) => tracing::warn!("features are not kept for other runs: {error}"),
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        for segment in self.segments.iter().flatten().filter(|segment| segment.used) {
            // What is used stays longest.
            if let Ok(file) = OpenOptions::new().append(true).open(&segment.path) {
                let _ = file.set_modified(SystemTime::now());
            }
        }
        self.write();
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // these values are exact
mod tests {
    use super::*;
    use std::time::Duration;

    fn key(i: usize) -> FeatureKey {
        *blake3::hash(&i.to_le_bytes()).as_bytes()
    }

    fn values(i: usize) -> [f32; 3] {
        [i as f32, -0.5, f32::MIN_POSITIVE]
    }

    fn fill(cache: &FeatureCache, range: std::ops::Range<usize>) {
        let mut space = cache.space(&[b"model"], 3);
        range.for_each(|i| space.put(key(i), &values(i)));
    }

    fn files(cache: &FeatureCache) -> Vec<PathBuf> {
        cache.list().unwrap().into_iter().map(|listed| listed.path).collect()
    }

    #[test]
    fn features_come_back_to_their_own_space_only() {
        let dir = tempfile::tempdir().unwrap();
        let cache = FeatureCache::new(dir.path().join("a/b"), LIMIT);
        assert_eq!(cache.contents().unwrap(), Contents::default());
        fill(&cache, 0..5);
        fill(&cache, 5..8);
        let mut space = cache.space(&[b"model"], 3);
        assert!((0..8).all(|i| space.get(&key(i)).unwrap() == values(i)));
        assert!(space.get(&key(8)).is_none());
        assert!(cache.space(&[b"mod", b"el"], 3).get(&key(1)).is_none());
        let contents = cache.contents().unwrap();
        assert_eq!((contents.files, contents.features), (2, 8));
        fs::write(cache.root().join("mine.txt"), "x").unwrap();
        assert_eq!(cache.clear().unwrap(), contents);
        assert_eq!(cache.contents().unwrap(), Contents::default());
        assert!(cache.root().join("mine.txt").exists());
    }

    #[test]
    fn a_damaged_file_is_taken_away_and_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = FeatureCache::new(dir.path().to_owned(), LIMIT);
        fill(&cache, 0..4);
        let path = files(&cache).pop().unwrap();
        let whole = fs::read(&path).unwrap();
        let mut damaged: Vec<Vec<u8>> = [0, 7, 19, 20, 60, whole.len() - 1].map(|len| whole[..len].to_vec()).to_vec();
        // A bit in the header, in a count that would take all memory, in a key, in a value, in a check.
        for byte in [0, 9, 13, 19, 25, 20 + 4 * 32 + 1, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[byte] ^= 0x40;
            damaged.push(bytes);
        }
        damaged.push([&whole[..], b"tail"].concat());
        for bytes in damaged {
            fs::write(&path, &bytes).unwrap();
            let mut space = cache.space(&[b"model"], 3);
            let found: Vec<_> = (0..4).map(|i| space.get(&key(i))).collect();
            assert!(found.iter().enumerate().all(|(i, f)| f.as_ref().is_none_or(|f| *f == values(i))));
            let missing: Vec<_> = (0..4).filter(|&i| found[i].is_none()).collect();
            assert!(!missing.is_empty());
            for &i in &missing {
                space.put(key(i), &values(i));
            }
            drop(space);
            let mut space = cache.space(&[b"model"], 3);
            assert!(missing.iter().all(|&i| space.get(&key(i)).unwrap() == values(i)));
            drop(space);
            cache.clear().unwrap();
            fill(&cache, 0..4);
        }
    }

    #[test]
    fn beyond_the_limit_what_was_not_used_for_longest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let cache = FeatureCache::new(dir.path().to_owned(), LIMIT);
        fill(&cache, 0..10);
        let one = cache.contents().unwrap().bytes;
        let old = |path: &Path, seconds| {
            let file = OpenOptions::new().append(true).open(path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
        };
        old(&files(&cache)[0], 300);
        let first = files(&cache);
        fill(&cache, 10..20);
        let second = files(&cache).into_iter().find(|path| !first.contains(path)).unwrap();
        old(&second, 200);
        // The first is used again, so the second goes.
        assert!(cache.space(&[b"model"], 3).get(&key(0)).is_some());
        fill(&FeatureCache::new(dir.path().to_owned(), 2 * one), 20..30);
        assert!(files(&cache).len() == 2 && files(&cache).contains(&first[0]) && !files(&cache).contains(&second));
    }

    #[test]
    fn many_writers_and_readers_at_once_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = FeatureCache::new(dir.path().to_owned(), LIMIT);
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let cache = &cache;
                scope.spawn(move || fill(cache, 10 * thread..10 * thread + 15));
            }
        });
        let mut space = cache.space(&[b"model"], 3);
        assert!((0..85).all(|i| space.get(&key(i)).unwrap() == values(i)));
    }

    #[test]
    fn a_folder_that_cannot_be_written_costs_nothing_but_time() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        let cache = FeatureCache::new(file.join("cache"), LIMIT);
        fill(&cache, 0..3);
        assert!(cache.space(&[b"model"], 3).get(&key(0)).is_none());
    }
}
