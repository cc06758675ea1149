//! Which files are tasks, and what they are called: a task file by its name, that of a run by the run's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use vpt_model::model::task_file::BEST;

/// Folders in folders that are looked into, so that the folder of `runs` finds `runs/classify/photos-1`.
const DEPTH: usize = 4;
/// Tasks at most.
const MOST_TASKS: usize = 100_000;
/// Letters of a name at most.
const MOST_LETTERS: usize = 128;
/// Files of a run that are no tasks by themselves.
const OF_RUNS: [&str; 3] = [BEST, "last.safetensors", "checkpoint.safetensors"];

/// By what a changed file is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    bytes: u64,
    changed: Option<SystemTime>,
    inode: u64,
}

impl Stamp {
    /// That of the file as it is now.
    pub(crate) fn of(path: &Path) -> std::io::Result<Self> {
        let meta = std::fs::metadata(path)?;
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(&meta);
        #[cfg(not(unix))]
        let inode = 0;
        Ok(Self { bytes: meta.len(), changed: meta.modified().ok(), inode })
    }
}

/// The tasks below some paths, and what was passed by.
#[derive(Debug, Default)]
pub(crate) struct FoundTasks {
    /// Files by the names of their tasks.
    pub(crate) tasks: BTreeMap<String, PathBuf>,
    /// What is not served though it may be meant, with the reason.
    pub(crate) passed_by: Vec<String>,
}

/// Whether a task may be called so: it is a part of addresses and of file names.
pub(crate) fn is_name(name: &str) -> bool {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !name.is_empty() && name.len() <= MOST_LETTERS && !name.starts_with('.') && name.bytes().all(sound)
}

/// The tasks that `roots` stand for.
pub(crate) fn find(roots: &[PathBuf]) -> FoundTasks {
    let mut found = FoundTasks::default();
    for root in roots {
        if root.is_dir() {
            found.look_into(root, DEPTH);
        } else {
            found.take(root);
        }
    }
    found
}

impl FoundTasks {
    fn look_into(&mut self, folder: &Path, depth: usize) {
        let best = folder.join(BEST);
        if best.is_file() {
            self.take(&best);
            return;
        }
        let Ok(entries) = std::fs::read_dir(folder) else {
            self.passed_by.push(format!("{}: cannot be read", folder.display()));
            return;
        };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with('.') || OF_RUNS.contains(&name) {
                continue;
            }
            if path.is_dir() {
                if depth > 1 {
                    self.look_into(&path, depth - 1);
                }
            } else if path.extension().is_some_and(|end| end == "safetensors") {
                self.take(&path);
            }
        }
    }

    /// Takes a task file, unless its name cannot be used.
    fn take(&mut self, path: &Path) {
        let named = match path.file_name().and_then(|name| name.to_str()) {
            Some(BEST) => std::path::absolute(path).ok().and_then(|path| Some(path.parent()?.file_name()?.to_owned())),
            _ => path.file_stem().map(ToOwned::to_owned),
        };
        let name = named.and_then(|name| name.into_string().ok()).unwrap_or_default();
        let mut pass_by = |why: &str| self.passed_by.push(format!("{}: {why}", path.display()));
        if !is_name(&name) {
            pass_by("no name for a task: letters, digits, '.', '_' and '-', 128 at most");
        } else if self.tasks.len() == MOST_TASKS {
            pass_by("there are 100,000 tasks already");
        } else if let Some(other) = self.tasks.get(&name) {
            if other != path {
                let why = format!("{} is called {name}, too", other.display());
                pass_by(&why);
            }
        } else {
            self.tasks.insert(name, path.to_path_buf());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_called_by_their_names_and_runs_by_theirs() {
        let dir = tempfile::tempdir().unwrap();
        for file in [
            "flowers.safetensors",
            "runs/classify/photos-1/best.safetensors",
            "runs/classify/photos-1/last.safetensors",
            "runs/detect/cells-2/best.safetensors",
            "other/flowers.safetensors",
            "other/not so good.safetensors",
            ".hidden/x.safetensors",
            "notes.txt",
        ] {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let found = find(&[dir.path().to_path_buf()]);
        assert_eq!(found.tasks.keys().collect::<Vec<_>>(), ["cells-2", "flowers", "photos-1"]);
        assert!(found.tasks["flowers"].ends_with("flowers.safetensors"));
        let said = found.passed_by.join("\n");
        assert!(found.passed_by.len() == 2 && said.contains("flowers, too") && said.contains("no name"), "{said}");
        let run = dir.path().join("runs/classify/photos-1");
        assert_eq!(find(&[run]).tasks.keys().collect::<Vec<_>>(), ["photos-1"]);
    }

    #[test]
    fn names_are_parts_of_addresses() {
        assert!(["a", "photos-vpt-deep-1", "v1.2_x"].into_iter().all(is_name));
        let long = "x".repeat(129);
        assert!(!["", ".", "..", ".x", "a/b", "a b", "ü", "a%2f", &long].into_iter().any(is_name));
    }
}
