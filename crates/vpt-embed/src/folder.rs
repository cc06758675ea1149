//! The folder of outputs: of what it is, what is done, and the folders beside in which shards are made.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::input::ShardInput;
use crate::layout::{ShardFiles, ShardOutput};
use vpt_base::{
    Error, Message, Result,
    files::{read_limited, write_atomic},
};
use vpt_cluster::WorkClaim;
use vpt_data::SampleFault;

/// Says what a folder holds.
const FOLDER: &str = "embed.json";
/// Shards that are being made.
const WORK: &str = ".work";
/// The version of [`FOLDER`].
const FORMAT: u32 = 1;
/// Longest file of either kind, in bytes.
const MAX_JSON: u64 = 1 << 30;

/// What a folder's content depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FolderIdentity {
    pub(crate) format: u32,
    pub(crate) backbone: String,
    /// Everything that decides the backbone's outputs.
    pub(crate) backbone_hash: String,
    pub(crate) image_size: usize,
    pub(crate) precision: String,
    pub(crate) engine: String,
    /// What was learned, as a hash; none of a backbone as it is.
    pub(crate) task: Option<String>,
    /// Values of a row; none of predictions.
    pub(crate) width: Option<usize>,
    pub(crate) output: ShardOutput,
    pub(crate) shards: usize,
    /// Hash over which shards these are.
    pub(crate) shards_hash: String,
}

impl FolderIdentity {
    pub(crate) const FORMAT: u32 = FORMAT;

    /// What `other` has different, in words.
    fn difference(&self, other: &Self) -> Option<String> {
        let Self {
            format,
            backbone_hash,
            image_size,
            precision,
            engine,
            task,
            width,
            output,
            shards,
            shards_hash,
            backbone,
        } = self;
        let differs = [
            ("version", format != &other.format),
            ("backbone", backbone_hash != &other.backbone_hash || backbone != &other.backbone || width != &other.width),
            ("image size", image_size != &other.image_size),
            ("precision", precision != &other.precision),
            ("engine", engine != &other.engine),
            ("task", task != &other.task),
            ("layout, type or length of rows", output != &other.output),
            ("shards", shards != &other.shards || shards_hash != &other.shards_hash),
        ];
        let names: Vec<&str> = differs.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }
}

/// Hash over which shards `inputs` are, in their order.
pub(crate) fn shards_hash(inputs: &[ShardInput]) -> String {
    let mut hasher = blake3::Hasher::new();
    for input in inputs {
        let identity = input.identity();
        hasher.update(&(identity.len() as u64).to_le_bytes());
        hasher.update(identity.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// What is known of a shard that is done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardStats {
    /// What it is called.
    pub shard: String,
    /// Its number, from 0 on.
    pub index: usize,
    /// Length of its file.
    pub bytes: Option<u64>,
    /// Samples in it: those with a row or line, and failures.
    pub samples: usize,
    /// Samples with a row or line.
    pub images: usize,
    /// Samples without, in the order in which they are found out: pictures that cannot be read, and samples without one.
    pub failures: Vec<SampleFault>,
    /// What is said of samples that have a row, and could not be read.
    pub notes: Vec<SampleFault>,
    /// Its files below the folder, with their lengths.
    pub files: Vec<(String, u64)>,
}

/// What shards hold together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Shards that are done.
    pub shards: usize,
    /// Samples in them.
    pub samples: usize,
    /// Those with a row or line.
    pub images: usize,
    /// Those without.
    pub failures: usize,
    /// Things said of samples that could not be read.
    pub notes: usize,
}

impl Totals {
    /// Counts a shard that is done.
    pub fn add(&mut self, stats: &ShardStats) {
        self.shards += 1;
        self.samples += stats.samples;
        self.images += stats.images;
        self.failures += stats.failures.len();
        self.notes += stats.notes.len();
    }
}

/// A folder of outputs.
#[derive(Debug)]
pub(crate) struct OutFolder {
    path: PathBuf,
    output: ShardOutput,
    digits: usize,
}

impl OutFolder {
    /// The folder `path`, which is empty or holds what `identity` says, or part of it.
    ///
    /// # Errors
    /// It holds other things, or cannot be written.
    pub(crate) fn claim(path: &Path, identity: &FolderIdentity) -> Result<Self> {
        fs::create_dir_all(path).map_err(Error::io(path))?;
        let file = path.join(FOLDER);
        if !file.exists() {
            let entries = fs::read_dir(path).map_err(Error::io(path))?;
            let hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b".");
            if entries.flatten().any(|entry| !hidden(&entry.file_name())) && !file.exists() {
                let message =
                    Message::from("is not empty and was not begun by this command; give another ").field("out");
                return Err(Error::file(path, message));
            }
            let mut json =
                serde_json::to_vec_pretty(identity).map_err(|error| Error::file(&file, error.to_string()))?;
            json.push(b'\n');
            write_atomic(&file, &json)?;
        }
        // Of two that begin at once with other settings one is told.
        let found: FolderIdentity = serde_json::from_slice(&read_limited(&file, MAX_JSON)?)
            .map_err(|error| Error::file(&file, format!("does not say what the folder holds: {error}")))?;
        if let Some(what) = identity.difference(&found) {
            let message = Message::from(format!("was begun with another {what}; give another ")).field("out");
            return Err(Error::file(path, message));
        }
        let output = identity.output;
        let folder = Self { path: path.to_path_buf(), output, digits: identity.shards.max(1).to_string().len() };
        let files = folder.files(0);
        for file in [Some(&files.main), files.names.as_ref(), Some(&files.stats)].into_iter().flatten() {
            let parent = path.join(file).parent().map_or_else(|| path.to_path_buf(), Path::to_path_buf);
            fs::create_dir_all(&parent).map_err(Error::io(&parent))?;
        }
        Ok(folder)
    }

    /// The files of a shard below the folder.
    pub(crate) fn files(&self, index: usize) -> ShardFiles {
        self.output.files(index, self.digits)
    }

    /// What is known of a shard if it is done: all files are there as they were written, and its source, of `bytes`, is as it was.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(crate) fn done(&self, index: usize, bytes: Option<u64>) -> Result<Option<ShardStats>> {
        let file = self.path.join(self.files(index).stats);
        if !file.is_file() {
            return Ok(None);
        }
        // What is no such file is written anew.
        let Ok(stats) = serde_json::from_slice::<ShardStats>(&read_limited(&file, MAX_JSON)?) else { return Ok(None) };
        // Of a shard that is gone what was made of it stays.
        if bytes.is_some() && stats.bytes != bytes {
            return Ok(None);
        }
        let is_there =
            |(name, bytes): &(String, u64)| fs::metadata(self.path.join(name)).is_ok_and(|m| m.len() == *bytes);
        Ok(stats.files.iter().all(is_there).then_some(stats))
    }

    /// The folder in which a shard is made.
    pub(crate) fn work(&self, index: usize) -> PathBuf {
        self.path.join(WORK).join(format!("{index:0width$}", width = self.digits))
    }

    /// A claim on a shard, whose folder of work is empty then; `None` if another process has it.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(crate) fn take(&self, index: usize) -> Result<Option<WorkClaim>> {
        let work = self.work(index);
        let mut taken = WorkClaim::take(&work);
        // The folder around it may be cleared away in the moment in which this one is made.
        if !work.exists() {
            taken = WorkClaim::take(&work);
        }
        let Some(claim) = taken? else { return Ok(None) };
        for entry in fs::read_dir(&work).map_err(Error::io(&work))?.flatten() {
            if !WorkClaim::is_own(&entry.file_name()) {
                fs::remove_file(entry.path()).map_err(Error::io(entry.path()))?;
            }
        }
        Ok(Some(claim))
    }

    /// Moves the files of a shard from its folder of work to their places, what tells of them last, and lets go of it.
    ///
    /// # Errors
    /// They cannot be moved.
    pub(crate) fn finish(
        &self,
        claim: WorkClaim,
        mut stats: ShardStats,
        made: &[(PathBuf, PathBuf)],
    ) -> Result<ShardStats> {
        for (from, to) in made {
            let bytes = fs::metadata(from).map_err(Error::io(from))?.len();
            let target = self.path.join(to);
            fs::rename(from, &target).map_err(Error::io(&target))?;
            sync_folder(&target);
            stats.files.push((to.to_string_lossy().replace('\\', "/"), bytes));
        }
        let work = self.work(stats.index);
        let (from, to) = (work.join("stats.json"), self.path.join(self.files(stats.index).stats));
        let mut json = serde_json::to_vec_pretty(&stats).map_err(|error| Error::file(&to, error.to_string()))?;
        json.push(b'\n');
        write_atomic(&from, &json)?;
        fs::rename(&from, &to).map_err(Error::io(&to))?;
        sync_folder(&to);
        drop(claim);
        // Whoever takes it now finds it done; what cannot be removed is in nobody's way.
        let _ = fs::remove_dir_all(&work);
        Ok(stats)
    }

    /// Clears away folders of work of shards that are done: of processes that reached for one too late, or were killed behind its end.
    pub(crate) fn tidy(&self) {
        let work = self.path.join(WORK);
        let Ok(entries) = fs::read_dir(&work) else { return };
        for entry in entries.flatten() {
            let index = entry.file_name().to_str().and_then(|name| name.parse::<usize>().ok());
            let is_done = index.is_some_and(|index| self.done(index, None).is_ok_and(|done| done.is_some()));
            if is_done && !WorkClaim::is_held(&entry.path()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let _ = fs::remove_dir(work);
    }
}

/// The rename itself must survive a power cut. Not every file system lets a folder be synced.
fn sync_folder(path: &Path) {
    if let Some(Ok(folder)) = path.parent().map(fs::File::open) {
        let _ = folder.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{RowType, ShardLayout};

    fn identity(shards: usize) -> FolderIdentity {
        let output =
            ShardOutput::Embeddings { layout: ShardLayout::ClipRetrieval, dtype: RowType::F16, normalized: true };
        FolderIdentity {
            format: FORMAT,
            backbone: "b".to_owned(),
            backbone_hash: "ab".to_owned(),
            image_size: 32,
            precision: "f32".to_owned(),
            engine: "native".to_owned(),
            task: None,
            width: Some(4),
            output,
            shards,
            shards_hash: "cd".to_owned(),
        }
    }

    fn stats(index: usize) -> ShardStats {
        ShardStats {
            shard: "a.tar".to_owned(),
            index,
            bytes: Some(7),
            samples: 1,
            images: 1,
            failures: Vec::new(),
            notes: Vec::new(),
            files: Vec::new(),
        }
    }

    #[test]
    fn a_folder_takes_one_set_of_settings() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        OutFolder::claim(&out, &identity(12)).unwrap();
        OutFolder::claim(&out, &identity(12)).unwrap();
        let other = FolderIdentity { backbone_hash: "ee".to_owned(), ..identity(13) };
        let message = OutFolder::claim(&out, &other).unwrap_err().to_string();
        assert!(message.ends_with("out: was begun with another backbone, shards; give another out"), "{message}");
        fs::write(dir.path().join("own.txt"), "mine").unwrap();
        assert!(OutFolder::claim(dir.path(), &identity(1)).unwrap_err().to_string().contains("is not empty"));
    }

    #[test]
    fn a_shard_is_done_when_all_of_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let folder = OutFolder::claim(dir.path(), &identity(12)).unwrap();
        assert_eq!(folder.done(3, Some(7)).unwrap(), None);
        let claim = folder.take(3).unwrap().unwrap();
        assert!(folder.take(3).unwrap().is_none());
        fs::write(folder.work(3).join("rows"), "1234").unwrap();
        let made = [(folder.work(3).join("rows"), folder.files(3).main)];
        let written = folder.finish(claim, stats(3), &made).unwrap();
        assert_eq!(written.files, [("img_emb/img_emb_03.npy".to_owned(), 4)]);
        assert_eq!(folder.done(3, Some(7)).unwrap(), Some(written.clone()));
        assert_eq!(folder.done(3, None).unwrap(), Some(written));
        folder.tidy();
        assert!(!dir.path().join(WORK).exists());
        assert_eq!(folder.done(3, Some(8)).unwrap(), None, "the source has changed");
        fs::write(dir.path().join("img_emb/img_emb_03.npy"), "123").unwrap();
        assert_eq!(folder.done(3, Some(7)).unwrap(), None, "cut off by somebody");
        // What a killed process left in the folder of work is gone.
        fs::create_dir_all(folder.work(3)).unwrap();
        fs::write(folder.work(3).join("rows"), "12").unwrap();
        let _claim = folder.take(3).unwrap().unwrap();
        assert!(!folder.work(3).join("rows").exists());
    }
}
