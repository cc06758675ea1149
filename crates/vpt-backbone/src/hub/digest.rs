//! Hashes by which the hub names its files. A file's entity tag is its hash: SHA-256 where it is kept in large-file storage, else
//! the hash git gives it. So the name of a cached file says what must be in it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// Bytes hashed at a time.
const CHUNK: usize = 1 << 18;

/// A hash that is being computed.
pub(super) enum FileDigest {
    Sha256(Sha256),
    Git(Sha1),
}

impl FileDigest {
    /// The kind of hash that `tag` is, begun for a file of `size` bytes; `None` if it is none.
    pub(super) fn like(tag: &str, size: u64) -> Option<Self> {
        if !tag.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return None;
        }
        match tag.len() {
            64 => Some(Self::Sha256(Sha256::new())),
            // git hashes the kind and length of what it stores, too.
            40 => Some(Self::Git(Sha1::new_with_prefix(format!("blob {size}\0")))),
            _ => None,
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Git(hash) => hash.update(bytes),
        }
    }

    /// The next `len` bytes of `from`.
    pub(super) fn read(&mut self, from: impl Read, len: u64) -> io::Result<()> {
        let mut from = from.take(len);
        let mut buffer = vec![0; CHUNK];
        let mut left = len;
        while left > 0 {
            let n = from.read(&mut buffer)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.update(&buffer[..n]);
            left -= n as u64;
        }
        Ok(())
    }

    /// The hash in hexadecimal, as a tag has it.
    pub(super) fn finish(self) -> String {
        match self {
            Self::Sha256(hash) => hex(&hash.finalize()),
            Self::Git(hash) => hex(&hash.finalize()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).filter_map(|d| char::from_digit(d.into(), 16)).collect()
}

/// Whether the file `path` is what `tag` says; `None` if the tag is no hash.
pub(super) fn matches(path: &Path, tag: &str) -> io::Result<Option<bool>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let Some(mut digest) = FileDigest::like(tag, size) else { return Ok(None) };
    digest.read(file, size)?;
    Ok(Some(digest.finish() == tag))
}

/// SHA-256 of the file `path`.
pub(super) fn sha256(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut digest = FileDigest::Sha256(Sha256::new());
    digest.read(file, size)?;
    Ok(digest.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    // `git hash-object` and `sha256sum` of a file that holds `hello` and a newline.
    const GIT: &str = "ce013625030ba8dba906f756967f9e9ca394464a";
    const SHA256: &str = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

    #[test]
    fn files_are_known_by_the_hashes_of_git_and_large_file_storage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hello");
        std::fs::write(&path, "hello\n").unwrap();
        assert_eq!(matches(&path, GIT).unwrap(), Some(true));
        assert_eq!(matches(&path, SHA256).unwrap(), Some(true));
        assert_eq!(sha256(&path).unwrap(), SHA256);
        assert_eq!(matches(&path, &GIT.replace('c', "d")).unwrap(), Some(false));
        for tag in ["", "abc", &GIT.to_uppercase(), &format!("{GIT}-2"), &"g".repeat(64)] {
            assert_eq!(matches(&path, tag).unwrap(), None, "{tag}");
        }
    }

    #[test]
    fn a_hash_is_that_of_the_whole_in_whatever_pieces() {
        let mut digest = FileDigest::like(GIT, 6).unwrap();
        digest.read(&b"hel"[..], 3).unwrap();
        digest.update(b"lo\n");
        assert_eq!(digest.finish(), GIT);
        assert!(FileDigest::like(GIT, 6).unwrap().read(&b"hel"[..], 4).is_err());
    }
}
