//! Thrift's compact protocol, as far as it is needed to look at claims before the reader of tables believes them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// Structures within structures, at most.
const MAX_DEPTH: usize = 16;

/// Groups of columns within groups, at most: the reader goes into them by recursion.
const MAX_GROUPS: usize = 32;

/// Longest description of a table at its end, in bytes.
const MAX_FOOTER_BYTES: u64 = 1 << 28;

/// Checks what the end of a table says of its columns: that groups of them hold no more than there are, and not too deep.
pub(super) fn check_footer(file: &mut File) -> Result<(), String> {
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    let mut end = [0; 8];
    let at = length.checked_sub(8).filter(|at| *at >= 4).ok_or("truncated: too short for a Parquet file")?;
    file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut end)).map_err(|e| e.to_string())?;
    let [a, b, c, d, magic @ ..] = end;
    if magic != *b"PAR1" {
        return Err("truncated, or not a Parquet file: it does not end in PAR1".into());
    }
    let size = u64::from(u32::from_le_bytes([a, b, c, d]));
    if size > at || size > MAX_FOOTER_BYTES {
        return Err(format!("the description at its end claims {size} bytes of {length}"));
    }
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(at - size)).map_err(|e| e.to_string())?;
    file.take(size).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    let children = children(&bytes).ok_or("the description of its columns at its end cannot be read")?;
    let mut open: Vec<usize> = Vec::new();
    for &count in &children {
        if count > children.len() {
            return Err(format!("a group of {count} columns where there are {}", children.len()));
        }
        if count > 0 {
            open.push(count);
            if open.len() > MAX_GROUPS {
                return Err(format!("groups of columns more than {MAX_GROUPS} deep"));
            }
            continue;
        }
        while let Some(left) = open.last_mut() {
            *left -= 1;
            if *left > 0 {
                break;
            }
            open.pop();
        }
    }
    Ok(())
}

/// How many columns each group of columns has; 0 of a column itself.
fn children(footer: &[u8]) -> Option<Vec<usize>> {
    let mut thrift = Thrift(footer);
    let mut number = 0;
    while let Some(kind) = thrift.field(&mut number)? {
        if (number, kind) != (2, 9) {
            thrift.skip(kind, 0)?;
            continue;
        }
        let count = thrift.list_of(12)?;
        let mut out = Vec::new();
        for _ in 0..count {
            let (mut inner, mut children) = (0, 0);
            while let Some(kind) = thrift.field(&mut inner)? {
                match (inner, kind) {
                    (5, 5) => children = usize::try_from(thrift.integer()?).ok()?,
                    _ => thrift.skip(kind, 0)?,
                }
            }
            out.push(children);
        }
        return Some(out);
    }
    None
}

/// Bytes in Thrift's compact protocol.
pub(super) struct Thrift<'a>(pub(super) &'a [u8]);

impl Thrift<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    pub(super) fn integer(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// The type of the next field, none after the last; `number` goes from the field before to this one.
    #[allow(clippy::option_option)] // none is the end of the bytes
    pub(super) fn field(&mut self, number: &mut i64) -> Option<Option<u8>> {
        let byte = self.byte()?;
        if byte == 0 {
            return Some(None);
        }
        *number = match byte >> 4 {
            0 => self.integer()?,
            step => number.checked_add(i64::from(step))?,
        };
        Some(Some(byte & 0xf))
    }

    fn pass(&mut self, count: u64) -> Option<()> {
        self.0 = self.0.get(usize::try_from(count).ok()?..)?;
        Some(())
    }

    /// The length of a list of structures, of which each takes a byte at least.
    fn list_of(&mut self, kind: u8) -> Option<u64> {
        let byte = self.byte()?;
        let count = if byte >> 4 == 15 { self.varint()? } else { u64::from(byte >> 4) };
        (byte & 0xf == kind && count <= self.0.len() as u64).then_some(count)
    }

    /// Passes over a value of the type `kind`.
    pub(super) fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        if depth > MAX_DEPTH {
            return None;
        }
        match kind {
            // A boolean in a field is its type.
            1 | 2 => Some(()),
            3 => self.pass(1),
            4..=6 => self.varint().map(|_| ()),
            7 => self.pass(8),
            8 => {
                let length = self.varint()?;
                self.pass(length)
            }
            9 | 10 => {
                let byte = self.byte()?;
                let count = if byte >> 4 == 15 { self.varint()? } else { u64::from(byte >> 4) };
                for _ in 0..count.min(self.0.len() as u64 + 1) {
                    match byte & 0xf {
                        1 | 2 => self.pass(1)?,
                        kind => self.skip(kind, depth + 1)?,
                    }
                }
                Some(())
            }
            12 => {
                let mut number = 0;
                while let Some(kind) = self.field(&mut number)? {
                    self.skip(kind, depth + 1)?;
                }
                Some(())
            }
            _ => None,
        }
    }
}
