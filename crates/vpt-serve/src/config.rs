//! What a server is, filled in: limits, where it listens, which tasks it has.

use std::path::{Path, PathBuf};
use std::time::Duration;

use vpt_backbone::Precision;
use vpt_base::{Error, Result, files::read_limited};
use vpt_model::head::detect::DecodeOptions;

/// Everything that a server's behaviour depends on beside the files of its tasks.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// Task files, run folders, and folders of both.
    pub tasks: Vec<PathBuf>,
    /// The backbone; that of the first task if `None`.
    pub backbone: Option<String>,
    /// Where to look for known backbones first.
    pub weights_dir: Option<PathBuf>,
    /// Number format to compute in; f32, or that of the run that the first task lies in, if `None`.
    pub precision: Option<Precision>,
    /// Threads to compute and to decode with.
    pub threads: usize,
    /// Address to listen at.
    pub host: String,
    /// Port; any that is free if 0.
    pub port: u16,
    /// Who may ask; everybody if there are none.
    pub keys: ApiKeys,
    /// Whether tasks may be put, taken away and looked for by HTTP.
    pub admin: bool,
    /// Images times tasks that may wait or be worked on; more are refused.
    pub max_queue: usize,
    /// Images times tasks that go through the backbone at a time; `None`: what takes a tenth of a second, 32 at the most.
    pub max_batch: Option<usize>,
    /// How long a batch waits to be filled.
    pub batch_delay: Duration,
    /// Bytes of tasks in memory.
    pub task_memory: u64,
    /// Tasks with tuned weights in memory; each takes a copy of what it tunes.
    pub allow_tuned: usize,
    /// Which boxes of an image detectors keep.
    pub boxes: DecodeOptions,
    /// Bytes of a request's body.
    pub max_body: usize,
    /// Pixels of an image.
    pub max_pixels: usize,
    /// Images of a request.
    pub max_images: usize,
    /// Open connections.
    pub max_connections: usize,
    /// How long a request may take, with its body, before it is given up.
    pub timeout: Duration,
    /// How often the tasks' files are looked at.
    pub rescan: Duration,
    /// How long the server goes on as before, but not ready, after it was told to end.
    pub drain_delay: Duration,
    /// How long it then waits for what it has accepted.
    pub drain_timeout: Duration,
    /// Whether metrics count requests by task.
    pub metrics_per_task: bool,
}

impl Default for ServeConfig {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            tasks: Vec::new(),
            backbone: None,
            weights_dir: None,
            precision: None,
            threads,
            host: "127.0.0.1".to_owned(),
            port: 8484,
            keys: ApiKeys::default(),
            admin: false,
            max_queue: 512,
            max_batch: None,
            batch_delay: Duration::ZERO,
            task_memory: 1 << 30,
            allow_tuned: 0,
            boxes: DecodeOptions::default(),
            max_body: 32 << 20,
            max_pixels: 50_000_000,
            max_images: 64,
            max_connections: 512,
            timeout: Duration::from_secs(30),
            rescan: Duration::from_secs(2),
            drain_delay: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(20),
            metrics_per_task: false,
        }
    }
}

/// Keys that requests are accepted with, as their hashes.
#[derive(Debug, Clone, Default)]
pub struct ApiKeys(Vec<blake3::Hash>);

impl ApiKeys {
    /// The keys in a file, one a line; empty lines and those that begin with `#` aside.
    ///
    /// # Errors
    /// The file cannot be read, holds no key, or one that no header can carry.
    pub fn read(path: &Path) -> Result<Self> {
        let text = String::from_utf8(read_limited(path, 1 << 20)?).map_err(|_| Error::file(path, "not UTF-8 text"))?;
        let keys = Self::of(text.lines()).map_err(|message| Error::file(path, message))?;
        if keys.is_empty() { Err(Error::file(path, "holds no key")) } else { Ok(keys) }
    }

    fn of<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let lines = lines.map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let hash = |key: &str| {
            let sound = key.bytes().all(|byte| byte.is_ascii_graphic());
            sound.then(|| blake3::hash(key.as_bytes())).ok_or("a key holds a blank, or what is no ASCII")
        };
        Ok(Self(lines.map(hash).collect::<Result<_, _>>()?))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `key` is one of them. Hashes are compared in a time that does not depend on where they differ, and all of them.
    pub fn accept(&self, key: &str) -> bool {
        let hash = blake3::hash(key.as_bytes());
        self.0.iter().fold(false, |found, known| (*known == hash) | found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_lines_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            ApiKeys::read(&path)
        };
        let keys = read("# of the team\n first \n\nsecond\n").unwrap();
        assert!(keys.accept("first") && keys.accept("second"));
        assert!(!keys.accept("# of the team") && !keys.accept("") && !keys.accept("firs"));
        assert!(read("# none\n").unwrap_err().to_string().contains("holds no key"));
        assert!(read("two words\n").unwrap_err().to_string().contains("a blank"));
    }
}
