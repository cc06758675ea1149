//! Protocol buffers as far as ONNX needs them: ten messages of varints, floats and length-prefixed bytes.
//!
//! A message is written after its length, and a graph holds all weights, so lengths are added up from shapes first and values are
//! asked for one tensor at a time while the file is written: no weight is in memory twice. Reading goes over bytes and copies
//! nothing; everything is checked against the end of what holds it.

use std::io::{self, Write};

/// A message to be written: numbered fields in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ProtoMessage(Vec<(u32, Field)>);

#[derive(Clone, Debug, PartialEq)]
enum Field {
    Varint(u64),
    Float(f32),
    Bytes(Vec<u8>),
    Message(ProtoMessage),
    /// Values that are asked for when they are written.
    Streamed {
        /// Bytes of it.
        len: u64,
        /// Which.
        source: usize,
    },
}

/// Writes the bytes of a source.
pub(crate) type StreamWriter<'a> = &'a mut dyn FnMut(usize, &mut dyn Write) -> io::Result<()>;

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const LENGTH: u32 = 2;
const FIXED32: u32 = 5;

impl ProtoMessage {
    /// An integer.
    #[must_use]
    pub(crate) fn int(mut self, field: u32, value: i64) -> Self {
        self.0.push((field, Field::Varint(value as u64)));
        self
    }

    /// A float.
    #[must_use]
    pub(crate) fn float(mut self, field: u32, value: f32) -> Self {
        self.0.push((field, Field::Float(value)));
        self
    }

    /// A string or bytes.
    #[must_use]
    pub(crate) fn bytes(mut self, field: u32, value: impl AsRef<[u8]>) -> Self {
        self.0.push((field, Field::Bytes(value.as_ref().to_vec())));
        self
    }

    /// A message.
    #[must_use]
    pub(crate) fn message(mut self, field: u32, value: ProtoMessage) -> Self {
        self.0.push((field, Field::Message(value)));
        self
    }

    /// Several messages of one field.
    #[must_use]
    pub(crate) fn messages(mut self, field: u32, values: impl IntoIterator<Item = ProtoMessage>) -> Self {
        self.0.extend(values.into_iter().map(|value| (field, Field::Message(value))));
        self
    }

    /// `len` bytes of the source `source`.
    #[must_use]
    pub(crate) fn streamed(mut self, field: u32, len: u64, source: usize) -> Self {
        self.0.push((field, Field::Streamed { len, source }));
        self
    }

    /// The text of its first field, which is the name of what has one.
    pub(crate) fn text(&self) -> Option<String> {
        match self.0.first() {
            Some((_, Field::Bytes(bytes))) => String::from_utf8(bytes.clone()).ok(),
            _ => None,
        }
    }

    /// Bytes that [`Self::write`] writes.
    pub(crate) fn len(&self) -> u64 {
        self.0.iter().map(|(field, value)| varint_len(u64::from(*field) << 3) + value.len()).sum()
    }

    /// Writes it, asking `stream` for what is streamed.
    pub(crate) fn write(&self, out: &mut dyn Write, stream: StreamWriter) -> io::Result<()> {
        for (field, value) in &self.0 {
            let kind = match value {
                Field::Varint(_) => VARINT,
                Field::Float(_) => FIXED32,
                _ => LENGTH,
            };
            write_varint(out, u64::from(field << 3 | kind))?;
            match value {
                Field::Varint(value) => write_varint(out, *value)?,
                Field::Float(value) => out.write_all(&value.to_le_bytes())?,
                Field::Bytes(bytes) => {
                    write_varint(out, bytes.len() as u64)?;
                    out.write_all(bytes)?;
                }
                Field::Message(message) => {
                    write_varint(out, message.len())?;
                    message.write(out, stream)?;
                }
                Field::Streamed { len, source } => {
                    write_varint(out, *len)?;
                    stream(*source, out)?;
                }
            }
        }
        Ok(())
    }
}

impl Field {
    /// Bytes of the value with what stands before it.
    fn len(&self) -> u64 {
        match self {
            Self::Varint(value) => varint_len(*value),
            Self::Float(_) => 4,
            Self::Bytes(bytes) => prefixed(bytes.len() as u64),
            Self::Message(message) => prefixed(message.len()),
            Self::Streamed { len, .. } => prefixed(*len),
        }
    }
}

fn prefixed(len: u64) -> u64 {
    varint_len(len) + len
}

fn varint_len(value: u64) -> u64 {
    u64::from(64 - (value | 1).leading_zeros()).div_ceil(7)
}

fn write_varint(out: &mut dyn Write, mut value: u64) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(10);
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    out.write_all(&bytes)
}

/// A field that was read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Wire<'a> {
    /// An integer.
    Int(i64),
    /// A float.
    Float(f32),
    /// A string, bytes or a message.
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    /// The integer.
    pub(crate) fn int(self) -> Result<i64, String> {
        if let Self::Int(value) = self { Ok(value) } else { Err("no integer where one must be".to_owned()) }
    }

    /// The float.
    pub(crate) fn float(self) -> Result<f32, String> {
        if let Self::Float(value) = self { Ok(value) } else { Err("no float where one must be".to_owned()) }
    }

    /// The bytes.
    pub(crate) fn bytes(self) -> Result<&'a [u8], String> {
        if let Self::Bytes(value) = self { Ok(value) } else { Err("no bytes where some must be".to_owned()) }
    }

    /// The text.
    pub(crate) fn text(self) -> Result<&'a str, String> {
        std::str::from_utf8(self.bytes()?).map_err(|_| "a text that is no UTF-8".to_owned())
    }

    /// The integers, one or packed.
    pub(crate) fn ints(self) -> Result<Vec<i64>, String> {
        let Self::Bytes(bytes) = self else { return self.int().map(|value| vec![value]) };
        let (mut at, mut ints) = (0, Vec::new());
        while at < bytes.len() {
            ints.push(read_varint(bytes, &mut at)? as i64);
        }
        Ok(ints)
    }
}

/// The fields of a message, by their numbers.
pub(crate) fn fields(bytes: &[u8]) -> impl Iterator<Item = Result<(u32, Wire<'_>), String>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= bytes.len() {
            return None;
        }
        let field = field(bytes, &mut at);
        if field.is_err() {
            at = bytes.len();
        }
        Some(field)
    })
}

fn field<'a>(bytes: &'a [u8], at: &mut usize) -> Result<(u32, Wire<'a>), String> {
    let key = read_varint(bytes, at)?;
    let number = u32::try_from(key >> 3).map_err(|_| "a field of no number".to_owned())?;
    let value = match (key & 7) as u32 {
        VARINT => Wire::Int(read_varint(bytes, at)? as i64),
        FIXED32 => {
            let four = take(bytes, at, 4)?;
            Wire::Float(f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
        }
        FIXED64 => Wire::Bytes(take(bytes, at, 8)?),
        LENGTH => {
            let len = read_varint(bytes, at)?;
            Wire::Bytes(take(bytes, at, len)?)
        }
        kind => return Err(format!("a field of the unknown kind {kind}")),
    };
    Ok((number, value))
}

fn take<'a>(bytes: &'a [u8], at: &mut usize, len: u64) -> Result<&'a [u8], String> {
    let end = usize::try_from(len).ok().and_then(|len| at.checked_add(len));
    let found = end.and_then(|end| bytes.get(*at..end)).ok_or_else(|| "ends too early".to_owned())?;
    *at += found.len();
    Ok(found)
}

fn read_varint(bytes: &[u8], at: &mut usize) -> Result<u64, String> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at).ok_or_else(|| "ends too early".to_owned())?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err("an integer without an end".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(message: &ProtoMessage) -> Vec<u8> {
        let mut out = Vec::new();
        message.write(&mut out, &mut |source, out| out.write_all(&vec![source as u8; 300])).unwrap();
        assert_eq!(out.len() as u64, message.len());
        out
    }

    #[test]
    fn what_is_written_is_read_again() {
        let inner = ProtoMessage::default().int(1, -1).bytes(2, "text").float(3, 0.5);
        let bytes = written(&ProtoMessage::default().int(1, 300).message(7, inner).streamed(9, 300, 5));
        let all: Vec<_> = fields(&bytes).collect::<Result<_, _>>().unwrap();
        assert_eq!(all[0], (1, Wire::Int(300)));
        let inner: Vec<_> = fields(all[1].1.bytes().unwrap()).collect::<Result<_, _>>().unwrap();
        assert_eq!(inner, [(1, Wire::Int(-1)), (2, Wire::Bytes(b"text")), (3, Wire::Float(0.5))]);
        assert_eq!(all[2], (9, Wire::Bytes(&[5; 300])));
        assert_eq!(Wire::Bytes(&[1, 0x80, 1]).ints().unwrap(), [1, 128]);
    }

    #[test]
    fn damaged_bytes_are_errors() {
        let bytes = written(&ProtoMessage::default().int(1, 300).bytes(2, [7; 40]));
        for len in 1..bytes.len() {
            let read: Result<Vec<_>, _> = fields(&bytes[..len]).collect();
            assert!(read.is_err() || len == 3, "{len}");
        }
        for bad in [&[0xff; 12][..], &[0x0b], &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]] {
            assert!(fields(bad).any(|field| field.is_err()), "{bad:?}");
        }
    }
}
