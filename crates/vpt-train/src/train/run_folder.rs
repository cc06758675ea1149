//! The folder that a run leaves behind: a fresh place for it, a lock while it is in use, its files.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use serde::Serialize;
use tempfile::TempDir;

use vpt_base::{Error, Message, Result, files::write_atomic};

/// The run's configuration with every default filled in.
pub use vpt_model::model::run_origin::CONFIG;
/// What the run ran on.
pub const ENVIRONMENT: &str = "environment.json";
/// Which image went into which part.
pub const SPLIT: &str = "split.json";
/// Which images `shots` drew or `draw` named; as a file of `draw` it repeats the draw.
pub const FEW_SHOT: &str = "few_shot.json";
/// A line for every epoch.
pub const METRICS: &str = "metrics.jsonl";
/// The result; its presence says that the run is finished.
pub const RESULTS: &str = "results.json";
/// The task file of the selected epoch.
pub use vpt_model::model::task_file::BEST;
/// The task file of the last epoch.
pub const LAST: &str = "last.safetensors";
/// What resuming needs.
pub const CHECKPOINT: &str = "checkpoint.safetensors";
/// What `lr = "auto"` tried and chose.
pub const LR_SEARCH: &str = "lr_search.json";
/// What each of `folds` found.
pub const FOLDS: &str = "folds.json";
/// The strengths of the L2 penalty that `solver = "lbfgs"` tried.
pub const L2_SEARCH: &str = "l2_search.json";
/// Curves of loss and accuracy.
pub const CURVES: &str = "curves.svg";
/// Confusion matrix on the test images.
pub const CONFUSION: &str = "confusion.svg";
/// Some validation images with their predictions.
pub const VAL_PREDICTIONS: &str = "val_predictions.jpg";
/// The images a model is most sure of and wrong about.
pub const MISTAKES: &str = "mistakes.html";
/// Pixel prompts: what was learned, and images with it.
pub const PROMPT: &str = "prompt.png";
/// Detection: precision over recall on the test images.
pub const PR_CURVE: &str = "pr_curve.svg";
/// Detection: F1 over confidence on the test images.
pub const F1_CURVE: &str = "f1_curve.svg";
/// Detection: what was found in the validation images, in COCO's results form.
pub const VAL_DETECTIONS: &str = "val_detections.json";
/// Detection: what was found in the test images.
pub const TEST_DETECTIONS: &str = "test_detections.json";
/// Why the run ended before it was finished, if that was an error.
pub const ERROR: &str = "error.txt";
/// Held while a process works on the run.
pub const LOCK: &str = ".lock";
/// A look at a lock holds it for less than this; a process that works on the run holds it on.
const LOOK: Duration = Duration::from_millis(50);

/// A run's folder, locked against other processes for as long as this value lives. The lock dies with the process.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    target: WriteTarget,
}

/// Where what is written to a folder goes.
#[derive(Debug)]
enum WriteTarget {
    /// To the folder, which this lock keeps for this process.
    Here { _lock: File },
    /// Nowhere: another process writes the run. The folder has copies of what is read of it, and goes with this value.
    Elsewhere { _copies: TempDir },
}

impl RunFolder {
    /// The folder `out` for a new run: made if need be.
    ///
    /// What a run leaves that was killed before it had begun, without its configuration, is cleared away.
    ///
    /// # Errors
    /// It is not empty, cannot be made, or another process works in it.
    pub fn create(out: &Path) -> Result<Self> {
        fs::create_dir_all(out).map_err(Error::io(out))?;
        let folder = Self::lock(out)?;
        let entries = fs::read_dir(out).map_err(Error::io(out))?.flatten();
        let (unfinished, others): (Vec<_>, Vec<_>) = entries
            .filter(|e| e.file_name() != LOCK)
            .partition(|e| is_temporary(&e.path()) || is_before_config(&e.path()));
        if others.is_empty() {
            for entry in unfinished {
                fs::remove_file(entry.path()).map_err(Error::io(entry.path()))?;
            }
        } else {
            let message =
                Message::from("is not empty; give another ").field("out").text(", or go on with ").field("resume");
            return Err(Error::file(out, message));
        }
        Ok(folder)
    }

    /// A fresh folder `<root>/<name>-<n>` for a new run, `n` one above the highest there is.
    pub fn create_numbered(root: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(root).map_err(Error::io(root))?;
        let stem = format!("{}-", file_name(name));
        let used = fs::read_dir(root)
            .map_err(Error::io(root))?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix(&stem)?.parse::<u32>().ok());
        let mut number = used.max().map_or(1, |n| n.saturating_add(1));
        loop {
            let path = root.join(format!("{stem}{number}"));
            match fs::create_dir(&path) {
                Ok(()) => return Self::lock(&path),
                // Another run took this number in the meantime.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < u32::MAX => number += 1,
                Err(error) => return Err(Error::io(&path)(error)),
            }
        }
    }

    /// The folder `path` of a run to go on with. Temporary files of a killed process are cleared away.
    ///
    /// # Errors
    /// It is no run folder, or another process works in it.
    pub fn open(path: &Path) -> Result<Self> {
        fs::metadata(path).map_err(Error::typed(path))?;
        if !path.join(CONFIG).is_file() {
            return Err(Error::file(path, format!("is not a run folder: it has no {CONFIG}")));
        }
        let folder = Self::lock(path)?;
        for entry in fs::read_dir(path).map_err(Error::io(path))?.flatten() {
            let path = entry.path();
            if is_temporary(&path) {
                fs::remove_file(&path).map_err(Error::io(&path))?;
            }
        }
        Ok(folder)
    }

    /// Locks the folder `path`, whatever is in it.
    ///
    /// # Errors
    /// Another process works in it, or it cannot be written.
    pub fn lock(path: &Path) -> Result<Self> {
        let file = path.join(LOCK);
        if file.exists() && !file.is_file() {
            return Err(Error::file(&file, "not a regular file"));
        }
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&file).map_err(Error::io(&file))?;
        let mut taken = lock.try_lock();
        if matches!(taken, Err(TryLockError::WouldBlock)) {
            thread::sleep(LOOK);
            taken = lock.try_lock();
        }
        match taken {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::file(path, "another process is working on this run")),
            // A file system without locks is no reason not to train.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(Error::io(&file)(error)),
        }
        Ok(Self { path: path.to_path_buf(), target: WriteTarget::Here { _lock: lock } })
    }

    /// A place that holds copies of `files` of a run that another process writes; what is written to it goes nowhere.
    pub(crate) fn elsewhere(files: &[(String, Vec<u8>)]) -> Result<Self> {
        let copies = tempfile::Builder::new().prefix("vpt-").tempdir().map_err(Error::io(std::env::temp_dir()))?;
        let path = copies.path().to_path_buf();
        for (name, bytes) in files {
            let file = path.join(name);
            fs::write(&file, bytes).map_err(Error::io(&file))?;
        }
        Ok(Self { path, target: WriteTarget::Elsewhere { _copies: copies } })
    }

    /// Whether this process writes it.
    pub(crate) fn is_here(&self) -> bool {
        matches!(self.target, WriteTarget::Here { .. })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of the file `name` in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether it holds the file `name`.
    pub fn has(&self, name: &str) -> bool {
        self.file(name).is_file()
    }

    /// Writes the file `name`, whole or not at all.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> Result<()> {
        if self.is_here() { write_atomic(&self.file(name), bytes.as_ref()) } else { Ok(()) }
    }

    /// Writes the picture `name`, if it was drawn: see [`report`](crate::report).
    pub(crate) fn write_drawn(&self, name: &str, picture: Option<String>) -> Result<()> {
        picture.map_or(Ok(()), |picture| self.write(name, picture))
    }

    /// Writes the file `name` as indented JSON.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let path = self.file(name);
        let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::file(&path, e.to_string()))?;
        text.push('\n');
        self.write(name, text)
    }

    /// Adds `value` as a line of JSON to the file `name`. Lines after the last checkpoint are written again on resuming,
    /// so this neither syncs nor renames.
    pub fn append_line(&self, name: &str, value: &impl Serialize) -> Result<()> {
        if !self.is_here() {
            return Ok(());
        }
        let path = self.file(name);
        let mut line = serde_json::to_string(value).map_err(|e| Error::file(&path, e.to_string()))?;
        line.push('\n');
        let mut file = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io(&path))?;
        file.write_all(line.as_bytes()).map_err(Error::io(&path))
    }

    /// Writes the file `name` anew with a line of JSON for each of `values`.
    pub fn write_lines<T: Serialize>(&self, name: &str, values: &[T]) -> Result<()> {
        let mut text = String::new();
        for value in values {
            text += &serde_json::to_string(value).map_err(|e| Error::file(self.file(name), e.to_string()))?;
            text.push('\n');
        }
        self.write(name, text)
    }
}

/// Whether a file is one that was being written when its process was killed.
fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with(".vpt-") && path.extension().is_some_and(|e| e == "tmp") && path.is_file()
}

/// Whether a file is one of those that are written before a run's configuration.
fn is_before_config(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    [SPLIT, FEW_SHOT, ENVIRONMENT].contains(&name) && path.is_file()
}

/// Whether a process works on the run in the folder `path`. Nothing is written.
pub fn in_use(path: &Path) -> bool {
    let file = path.join(LOCK);
    // Opening a pipe could block.
    if !file.is_file() {
        return false;
    }
    File::open(&file).is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// `name` with everything but letters, digits, `.`, `_` and `-` replaced, fit to be part of a file name anywhere.
pub fn file_name(name: &str) -> String {
    let clean: String =
        name.chars().take(80).map(|c| if c.is_alphanumeric() || "._-".contains(c) { c } else { '_' }).collect();
    match clean.trim_start_matches('.') {
        "" => "run".to_owned(),
        clean => clean.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_up_and_names_stay_inside_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let name = |name: &str| {
            let folder = RunFolder::create_numbered(dir.path(), name).unwrap();
            folder.path().strip_prefix(dir.path()).unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(name("shapes"), "shapes-1");
        assert_eq!(name("shapes"), "shapes-2");
        fs::create_dir(dir.path().join("shapes-9")).unwrap();
        assert_eq!(name("shapes"), "shapes-10");
        assert_eq!(name("../a b/c"), "_a_b_c-1");
        assert_eq!(name(".."), "run-1");
    }

    #[test]
    fn a_folder_in_use_is_refused_until_it_is_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("run");
        let folder = RunFolder::create(&out).unwrap();
        assert!(RunFolder::create(&out).unwrap_err().to_string().ends_with("another process is working on this run"));
        assert!(in_use(&out));
        folder.write(CONFIG, "").unwrap();
        assert!(RunFolder::open(&out).is_err());
        drop(folder);
        assert!(!in_use(&out) && !in_use(dir.path()));
        assert!(RunFolder::create(&out).unwrap_err().to_string().contains("is not empty"));
        fs::write(out.join(".vpt-abc.tmp"), "half").unwrap();
        RunFolder::open(&out).unwrap();
        assert!(!out.join(".vpt-abc.tmp").exists());
    }

    #[test]
    fn what_is_left_of_a_run_that_never_began_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        for name in [SPLIT, ENVIRONMENT, ".vpt-abc.tmp"] {
            fs::write(dir.path().join(name), "{}").unwrap();
        }
        drop(RunFolder::create(dir.path()).unwrap());
        assert!(!dir.path().join(SPLIT).exists() && !dir.path().join(".vpt-abc.tmp").exists());
        for name in [SPLIT, "notes.txt"] {
            fs::write(dir.path().join(name), "{}").unwrap();
        }
        assert!(RunFolder::create(dir.path()).unwrap_err().to_string().contains("is not empty"));
        assert!(dir.path().join(SPLIT).exists(), "nothing is taken from a folder that is refused");
    }

    #[test]
    fn a_run_that_is_written_elsewhere_is_read_and_left_alone() {
        let files = [(CHECKPOINT.to_owned(), b"state".to_vec())];
        let folder = RunFolder::elsewhere(&files).unwrap();
        assert!(folder.has(CHECKPOINT) && !folder.is_here());
        folder.write(RESULTS, "{}").unwrap();
        folder.append_line(METRICS, &1).unwrap();
        folder.write_lines(METRICS, &[1, 2]).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let path = folder.path().to_path_buf();
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn only_run_folders_are_resumed() {
        let dir = tempfile::tempdir().unwrap();
        let misspelt = RunFolder::open(&dir.path().with_extension("x")).unwrap_err().to_string();
        assert!(misspelt.ends_with(&format!("did you mean {}?", dir.path().display())), "{misspelt}");
        let message = RunFolder::open(dir.path()).unwrap_err().to_string();
        assert!(message.ends_with("is not a run folder: it has no config.toml"), "{message}");
        assert!(!dir.path().join(LOCK).exists());
    }

    #[test]
    fn lines_are_added_and_rewritten() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(dir.path()).unwrap();
        for line in [1, 2, 3] {
            folder.append_line(METRICS, &line).unwrap();
        }
        assert_eq!(fs::read_to_string(folder.file(METRICS)).unwrap(), "1\n2\n3\n");
        folder.write_lines(METRICS, &[1, 2]).unwrap();
        assert_eq!(fs::read_to_string(folder.file(METRICS)).unwrap(), "1\n2\n");
    }
}
