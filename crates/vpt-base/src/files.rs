//! Reading and writing whole files without surprises.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Writes `bytes` to `path` so that a reader, or a crash at any moment, sees the old file or the new one and nothing in
/// between: a temporary file beside it, synced, renamed over it.
///
/// # Errors
/// The folder does not exist or cannot be written; the error names `path`.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut new = NewFile::beside(path)?;
    // Through the file itself: what it is called meanwhile is nobody's business in an error.
    new.file_mut().write_all(bytes).map_err(Error::io(path))?;
    new.rename(path)?;
    Ok(())
}

/// A file that is being written beside the one that it will replace. Dropped, it leaves nothing behind.
#[derive(Debug)]
pub struct NewFile(tempfile::NamedTempFile);

impl NewFile {
    /// An empty file in the folder of `path`.
    ///
    /// # Errors
    /// The folder does not exist or cannot be written; the error names `path`.
    pub fn beside(path: &Path) -> Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".vpt-").suffix(".tmp");
        #[cfg(unix)]
        {
            // Temporary files are private by default; a result is not. The umask still applies.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        builder.tempfile_in(folder(path)).map(Self).map_err(Error::io(path))
    }

    /// The file itself.
    pub fn file_mut(&mut self) -> &mut File {
        self.0.as_file_mut()
    }

    /// Where it lies meanwhile.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Syncs it and gives it the name `path`, in the folder that it is in; gives its length in bytes.
    ///
    /// # Errors
    /// The system's word; the error names `path`.
    pub fn rename(self, path: &Path) -> Result<u64> {
        let file = self.0.as_file();
        file.sync_all().map_err(Error::io(path))?;
        let len = file.metadata().map_err(Error::io(path))?.len();
        self.0.persist(path).map_err(|e| Error::io(path)(e.error))?;
        // The rename itself must survive a power cut too. Not every file system lets a folder be synced.
        if let Ok(folder) = File::open(folder(path)) {
            let _ = folder.sync_all();
        }
        Ok(len)
    }
}

/// The folder that `path` is in.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Fills a folder beside `out` and renames it to `out` when it is complete, so that half a set is never taken for one.
///
/// # Errors
/// `out` exists and is not an empty folder, or cannot be written, or `fill` fails. Nothing is left in `out` then.
pub fn whole(out: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let is_free = match fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(error) => return Err(Error::io(out)(error)),
    };
    if !is_free {
        return Err(Error::file(out, "the folder is not empty"));
    }
    // A path that ends in `..` or the like has no name to put a folder beside; its absolute form has.
    let target: PathBuf = std::path::absolute(out).map_err(Error::io(out))?;
    let parent = target.parent().unwrap_or(&target);
    fs::create_dir_all(parent).map_err(Error::io(parent))?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".vpt-").suffix(".tmp");
    #[cfg(unix)]
    {
        // Temporary folders are private by default; a result is not. The umask still applies.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o777));
    }
    let folder = builder.tempdir_in(parent).map_err(Error::io(out))?;
    fill(folder.path())?;
    if target.exists() {
        fs::remove_dir(&target).map_err(Error::io(out))?;
    }
    fs::rename(folder.path(), &target).map_err(Error::io(out))?;
    // It has another name now; there is nothing left to delete.
    let _ = folder.keep();
    Ok(())
}

/// The bytes of `path`.
///
/// # Errors
/// It cannot be read, is not a regular file, or is longer than `limit` bytes.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    // A pipe or a device could block or never end.
    let meta = fs::metadata(path).map_err(Error::io(path))?;
    if !meta.is_file() {
        return Err(Error::file(path, "not a regular file"));
    }
    if meta.len() > limit {
        return Err(Error::file(path, format!("{} bytes, more than the limit of {limit}", meta.len())));
    }
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    // The file may grow while it is read.
    File::open(path).and_then(|f| f.take(limit + 1).read_to_end(&mut bytes)).map_err(Error::io(path))?;
    if bytes.len() as u64 > limit {
        return Err(Error::file(path, format!("more bytes than the limit of {limit}")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use crate::files::*;

    #[test]
    fn writing_replaces_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("result.json");
        write_atomic(&path, b"first").unwrap();
        write_atomic(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_is_an_error_that_names_the_target() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("absent").join("result.json");
        let message = write_atomic(&path, b"x").unwrap_err().to_string();
        assert!(message.starts_with(&path.display().to_string()), "{message}");
    }

    #[test]
    fn reading_stops_at_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, b"12345").unwrap();
        assert_eq!(read_limited(&path, 5).unwrap(), b"12345");
        assert!(read_limited(&path, 4).is_err());
        assert!(read_limited(dir.path(), 4).is_err());
    }
}
