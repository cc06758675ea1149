//! Reading and writing at a place of a file without moving a cursor, so that threads can share the file.

use std::fs::File;
use std::io::Result;

#[cfg(unix)]
use on_unix as system;
#[cfg(not(unix))]
use with_cursor as system;

/// Fills `buffer` with the bytes from `offset` on.
///
/// # Errors
/// The file cannot be read, or ends before that.
pub fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> Result<()> {
    system::read_exact_at(file, buffer, offset)
}

/// Writes all of `bytes` from `offset` on.
///
/// # Errors
/// The file cannot be written.
pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> Result<()> {
    system::write_all_at(file, bytes, offset)
}

#[cfg(unix)]
mod on_unix {
    use std::os::unix::fs::FileExt;

    use super::{File, Result};

    pub(super) fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> Result<()> {
        file.read_exact_at(buffer, offset)
    }

    pub(super) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> Result<()> {
        file.write_all_at(bytes, offset)
    }
}

/// A form for every system. A file has one cursor, so one thread moves and uses it at a time.
#[cfg(any(not(unix), test))]
mod with_cursor {
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::sync::{Mutex, PoisonError};

    use super::{File, Result};

    static CURSOR: Mutex<()> = Mutex::new(());

    pub(super) fn read_exact_at(mut file: &File, buffer: &mut [u8], offset: u64) -> Result<()> {
        // Every use begins with a seek: one that was broken off has left nothing behind that matters.
        let _alone = CURSOR.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(buffer)
    }

    pub(super) fn write_all_at(mut file: &File, bytes: &[u8], offset: u64) -> Result<()> {
        let _alone = CURSOR.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Read = fn(&File, &mut [u8], u64) -> Result<()>;
    type Write = fn(&File, &[u8], u64) -> Result<()>;

    #[test]
    fn threads_read_what_was_written_at_each_place() {
        for (read, write) in [
            (read_exact_at as Read, write_all_at as Write),
            (with_cursor::read_exact_at as Read, with_cursor::write_all_at as Write),
        ] {
            let file = tempfile::tempfile().unwrap();
            for place in [3, 0, 2, 1] {
                write(&file, &[place; 4096], u64::from(place) * 4096).unwrap();
            }
            std::thread::scope(|scope| {
                for place in 0..4 {
                    let file = &file;
                    scope.spawn(move || {
                        for _ in 0..200 {
                            let mut bytes = [9; 4096];
                            read(file, &mut bytes, u64::from(place) * 4096).unwrap();
                            assert_eq!(bytes, [place; 4096]);
                        }
                    });
                }
            });
            let error = read(&file, &mut [0; 2], 4 * 4096 - 1).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
        }
    }
}
