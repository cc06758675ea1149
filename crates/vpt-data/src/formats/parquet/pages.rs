//! Where the pages of a column lie, and what they claim. The reader of columns takes memory for what a page's header says, so
//! headers are looked at before: no page may claim more than it can hold.
//!
//! Of the fields of a header (parquet-format, `PageHeader`) the few that matter are read.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use flate2::read::MultiGzDecoder;
use parquet::basic::Compression;
use parquet::file::metadata::ColumnChunkMetaData;

use super::thrift::Thrift;

/// Largest page, in bytes, when it is decompressed.
const MAX_PAGE_BYTES: u64 = 1 << 30;

/// What a page of any size may hold; above it, [`MAX_RATIO`] times its size in the file.
const SMALL: u64 = 1 << 26;

/// Bytes that compression may make of one byte in pages that are not small. Pictures hardly become smaller.
const MAX_RATIO: u64 = 32;

/// Longest header of a page. Those of columns of pictures are short; statistics of texts may take a few kilobytes.
const MAX_HEADER_BYTES: u64 = 1 << 16;

/// A page of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// Where it begins in the file.
    pub(super) offset: u64,
    /// Bytes with its header.
    pub(super) size: u64,
    /// Values in it; in a column without lists, rows.
    pub(super) values: usize,
}

/// The data pages of the column `chunk`, all of whose claims can be true.
pub(super) fn of(file: &mut File, chunk: &ColumnChunkMetaData) -> Result<Vec<Page>, String> {
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    let start = chunk.dictionary_page_offset().filter(|&at| at > 0).unwrap_or(chunk.data_page_offset());
    let end = start.checked_add(chunk.compressed_size());
    let (Ok(start), Some(Ok(end))) = (u64::try_from(start), end.map(u64::try_from)) else {
        return Err("a column that begins before the file does".into());
    };
    if start >= end || end > length {
        return Err(format!("a column at bytes {start} to {end} of a file of {length}: it is cut off or damaged"));
    }
    match chunk.compression() {
        Compression::UNCOMPRESSED
        | Compression::SNAPPY
        | Compression::GZIP(_)
        | Compression::ZSTD(_)
        | Compression::LZ4_RAW => {}
        other => return Err(format!("a column compressed by {other}; snappy, gzip, zstd, lz4_raw and none are read")),
    }
    let expected = usize::try_from(chunk.num_values()).map_err(|_| "a column of less than no values")?;
    let (mut at, mut pages, mut values) = (start, Vec::new(), 0_usize);
    while at < end && values < expected {
        let header = PageHeader::read(file, at, end)?;
        let size = header.length + header.compressed;
        if size > end - at {
            return Err(format!("a page of {size} bytes where {} are left of its column", end - at));
        }
        let most = SMALL.max(header.compressed.saturating_mul(MAX_RATIO)).min(MAX_PAGE_BYTES);
        if header.uncompressed > most {
            let (claimed, held) = (header.uncompressed, header.compressed);
            return Err(format!("a page of {held} bytes claims to hold {claimed}"));
        }
        if matches!(chunk.compression(), Compression::GZIP(_)) {
            header.unpack(file, at)?;
        }
        if let Some(count) = header.values {
            values = values.saturating_add(count);
            pages.push(Page { offset: at, size, values: count });
        }
        at += size;
    }
    if values != expected {
        return Err(format!("a column of {expected} values whose pages hold {values}"));
    }
    Ok(pages)
}

/// What a page says of itself.
struct PageHeader {
    /// Its own bytes.
    length: u64,
    uncompressed: u64,
    compressed: u64,
    /// Values of a data page; none of a dictionary or an index.
    values: Option<usize>,
    /// Bytes before the compressed ones, in the second form of data pages.
    plain: u64,
}

impl PageHeader {
    fn read(file: &mut File, at: u64, end: u64) -> Result<Self, String> {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(at)).map_err(|e| e.to_string())?;
        file.take(MAX_HEADER_BYTES.min(end - at)).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
        Self::parse(&bytes).ok_or_else(|| format!("no header of a page at byte {at}"))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut thrift = Thrift(bytes);
        let mut header = Self { length: 0, uncompressed: 0, compressed: 0, values: None, plain: 0 };
        let mut number = 0;
        while let Some(kind) = thrift.field(&mut number)? {
            match (number, kind) {
                (2, 5) => header.uncompressed = thrift.integer()?.try_into().ok()?,
                (3, 5) => header.compressed = thrift.integer()?.try_into().ok()?,
                // A data page in its first and its second form.
                (5 | 8, 12) => {
                    let mut inner = 0;
                    while let Some(kind) = thrift.field(&mut inner)? {
                        match (inner, kind) {
                            (1, 5) => header.values = Some(thrift.integer()?.try_into().ok()?),
                            (5 | 6, 5) if number == 8 => header.plain += u64::try_from(thrift.integer()?).ok()?,
                            _ => thrift.skip(kind, 0)?,
                        }
                    }
                }
                _ => thrift.skip(kind, 0)?,
            }
        }
        header.length = (bytes.len() - thrift.0.len()) as u64;
        Some(header)
    }

    /// Checks that what is compressed by gzip, which the reader unpacks to its end, is as long as it claims.
    fn unpack(&self, file: &mut File, at: u64) -> Result<(), String> {
        file.seek(SeekFrom::Start(at + self.length + self.plain)).map_err(|e| e.to_string())?;
        let packed = file.take(self.compressed.saturating_sub(self.plain));
        let claimed = self.uncompressed.saturating_sub(self.plain);
        let mut unpacked = MultiGzDecoder::new(packed).take(claimed + 1);
        // A page that is not compressed all the same is not this one's business.
        let length = std::io::copy(&mut unpacked, &mut std::io::sink()).unwrap_or(0);
        if length > claimed {
            return Err(format!("a page of {} bytes holds more than the {claimed} that it claims", self.compressed));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A data page of three values, 40 bytes of 30: a boolean, a list and a nested structure are passed over.
    const HEADER: [u8; 24] = [
        0x15, 0, 0x15, 80, 0x15, 60, 0x2c, 0x15, 6, 0x15, 0, 0x15, 6, 0x15, 6, 0x1c, 0x18, 1, 65, 0x11, 0, 0x00, 0x00,
        9,
    ];

    #[test]
    fn a_header_is_read_to_its_end() {
        let header = PageHeader::parse(&HEADER).unwrap();
        assert_eq!((header.uncompressed, header.compressed, header.values), (40, 30, Some(3)));
        assert_eq!(header.length, 23);
        assert!((0..23).all(|n| PageHeader::parse(&HEADER[..n]).is_none()), "cut off");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_a_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..60)) {
            let _ = PageHeader::parse(&bytes);
        }
    }
}
