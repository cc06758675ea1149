//! Features that are computed once and read again every epoch: in memory while they are few, in a file of the run folder when
//! they are many. The file has no name, so nothing is left of it when the run ends, however it ends.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use vpt_base::file_at::{read_exact_at, write_all_at};
use vpt_base::{Error, Result};

/// Memory for features, in bytes; more than that go to the disk.
const MEMORY: usize = 1 << 30;

/// Records of equal length.
pub(super) struct Store {
    /// Values in a record.
    width: usize,
    held: Held,
}

enum Held {
    Memory(Vec<f32>),
    Disk(File, std::path::PathBuf),
}

impl Store {
    /// Room for `count` records of `width` values each; `folder` is where a file is made if there are too many.
    pub(super) fn new(count: usize, width: usize, folder: &Path) -> Result<Self> {
        let total = count.checked_mul(width).filter(|n| n.checked_mul(4).is_some_and(|bytes| bytes <= MEMORY));
        let held = match total {
            Some(values) => Held::Memory(vec![0.; values]),
            None => Held::Disk(tempfile::tempfile_in(folder).map_err(Error::io(folder))?, folder.to_path_buf()),
        };
        Ok(Self { width, held })
    }

    /// Writes record `index`.
    pub(super) fn put(&mut self, index: usize, values: &[f32]) -> Result<()> {
        match &mut self.held {
            Held::Memory(all) => all[index * self.width..(index + 1) * self.width].copy_from_slice(values),
            Held::Disk(file, folder) => {
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                write_all_at(file, &bytes, (index * self.width * 4) as u64).map_err(Error::io(folder))?;
            }
        }
        Ok(())
    }

    /// Appends what lies at `range` in record `index`, as it was written, to `to`.
    pub(super) fn get(&self, index: usize, range: Range<usize>, to: &mut Vec<f32>) -> Result<()> {
        let begin = index * self.width + range.start;
        match &self.held {
            Held::Memory(all) => to.extend_from_slice(&all[begin..begin + range.len()]),
            Held::Disk(file, folder) => {
                let mut bytes = vec![0; range.len() * 4];
                read_exact_at(file, &mut bytes, (begin * 4) as u64).map_err(Error::io(folder))?;
                to.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_from_memory_and_from_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = Store::new(5, 3, dir.path()).unwrap();
        let held = Held::Disk(tempfile::tempfile_in(dir.path()).unwrap(), dir.path().to_path_buf());
        let mut disk = Store { width: 3, held };
        for store in [&mut memory, &mut disk] {
            for index in [4, 0, 2] {
                store.put(index, &[index as f32, 0.1, f32::MIN_POSITIVE]).unwrap();
            }
            let mut read = vec![7.];
            store.get(2, 0..3, &mut read).unwrap();
            store.get(4, 1..3, &mut read).unwrap();
            assert_eq!(read, [7., 2., 0.1, f32::MIN_POSITIVE, 0.1, f32::MIN_POSITIVE]);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(matches!(Store::new(1 << 20, 1 << 20, dir.path()).unwrap().held, Held::Disk(..)));
    }
}
