//! The folder of one repository in the Hugging Face cache, as its own tools lay it out, so that either finds what the
//! other has fetched:
//!
//! ```text
//! .locks/models--owner--name/<hash>.lock
//! models--owner--name/blobs/<hash>                     a file's content, under the name of its hash
//!                     blobs/<hash>.incomplete          the beginning of one
//!                     refs/main                        the commit a revision stands for
//!                     snapshots/<commit>/config.json   -> ../../blobs/<hash>
//! ```

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use vpt_base::files::write_atomic;
use vpt_base::{Error, Result};

/// The cached files of a repository.
pub(super) struct HubCache {
    root: PathBuf,
    locks: PathBuf,
}

/// Held while a file is being fetched; it ends with its process.
pub(super) struct Lock(#[expect(dead_code, reason = "the lock lasts as long as the file is open")] File);

impl HubCache {
    /// The repository `owner/name` in the cache `hub`.
    pub(super) fn new(hub: &Path, repo: &str) -> Self {
        let folder = format!("models--{}", repo.replace('/', "--"));
        Self { root: hub.join(&folder), locks: hub.join(".locks").join(folder) }
    }

    /// The content whose hash is `tag`.
    pub(super) fn blob(&self, tag: &str) -> PathBuf {
        self.root.join("blobs").join(tag)
    }

    /// The beginning of it.
    pub(super) fn incomplete(&self, tag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{tag}.incomplete"))
    }

    /// The files of a commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// Waits until nobody else is fetching the content `tag`; `waits` is called if somebody is.
    pub(super) fn lock(&self, tag: &str, waits: impl FnOnce()) -> Result<Lock> {
        for dir in [&self.locks, &self.root.join("blobs")] {
            fs::create_dir_all(dir).map_err(Error::io(dir))?;
        }
        let path = self.locks.join(format!("{tag}.lock"));
        let file = File::options().create(true).append(true).open(&path).map_err(Error::io(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waits();
                file.lock().map_err(Error::io(&path))?;
            }
            Err(TryLockError::Error(error)) => return Err(Error::io(&path)(error)),
        }
        Ok(Lock(file))
    }

    /// Makes `file` of `commit` the content `tag`.
    pub(super) fn link(&self, commit: &str, file: &str, tag: &str) -> Result<()> {
        let dir = self.snapshot(commit);
        fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
        let path = dir.join(file);
        if linked(&path).as_deref() == Some(tag) {
            return Ok(());
        }
        // Made beside and renamed: another process that fetches the same never finds the name without a file.
        let beside = dir.join(format!(".{file}.{}", std::process::id()));
        let _ = fs::remove_file(&beside);
        #[cfg(unix)]
        let made = std::os::unix::fs::symlink(Path::new("../../blobs").join(tag), &beside);
        // Where links need a privilege, the file itself is put there, as Hugging Face's tools do.
        #[cfg(not(unix))]
        let made = fs::copy(self.blob(tag), &beside).map(drop);
        made.and_then(|()| fs::rename(&beside, &path)).map_err(Error::io(&path))
    }

    /// Notes which commit a revision stands for. A commit stands for itself.
    pub(super) fn refer(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        let dir = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
        write_atomic(&path, commit.as_bytes())
    }

    /// Whether a file of any commit is the content `tag`.
    pub(super) fn is_used(&self, tag: &str) -> bool {
        let entries = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten();
        entries(self.root.join("snapshots"))
            .flat_map(|commit| entries(commit.path()))
            .any(|file| linked(&file.path()).as_deref() == Some(tag))
    }
}

/// The hash of the content that the file at `path` of a snapshot is a link to.
pub(super) fn linked(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    target.file_name().and_then(|name| name.to_str()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn files_are_links_to_their_content() {
        let dir = tempfile::tempdir().unwrap();
        let cache = HubCache::new(dir.path(), "me/mine");
        let lock = cache.lock("aa", || panic!("nobody holds it")).unwrap();
        fs::write(cache.blob("aa"), "one").unwrap();
        cache.link("c0", "f", "aa").unwrap();
        cache.refer("refs/pr/1", "c0").unwrap();
        cache.refer("c0", "c0").unwrap();
        drop(lock);
        let root = dir.path().join("models--me--mine");
        assert_eq!(fs::read_to_string(root.join("snapshots/c0/f")).unwrap(), "one");
        assert_eq!(linked(&root.join("snapshots/c0/f")).as_deref(), Some("aa"));
        assert_eq!(fs::read_to_string(root.join("refs/refs/pr/1")).unwrap(), "c0");
        assert!(!root.join("refs/c0").exists());
        assert!(cache.is_used("aa") && !cache.is_used("bb"));
        cache.link("c0", "f", "bb").unwrap();
        assert!(!cache.is_used("aa") && cache.is_used("bb"));
    }

    #[test]
    fn a_second_fetch_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let cache = HubCache::new(dir.path(), "me/mine");
        let first = cache.lock("aa", || panic!("nobody holds it")).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| cache.lock("aa", || tell.send(()).unwrap()).map(drop));
            told.recv().unwrap();
            drop(first);
            second.join().unwrap().unwrap();
        });
        drop(cache.lock("aa", || panic!("nobody holds it")).unwrap());
    }
}
