//! Which way up a picture is: EXIF's orientation, and XMP's where EXIF says none, as Pillow finds them (`Image.getexif`, 13.0).
//!
//! The decoders' own readers know fewer places. EXIF lies in a JPEG's application segments, of which the first counts; in a PNG's
//! `eXIf` chunk, before or behind the pixels, or as text that `ImageMagick` writes; in a chunk of WebP; and a TIFF is EXIF itself.
//! Its value is a number of any type. Whatever cannot be read says nothing.

use std::io::{Cursor, Read, Seek, SeekFrom};

use flate2::read::ZlibDecoder;
use image::metadata::Orientation;

/// Most bytes of a part of a file that says such things.
const MAX_BYTES: u64 = 16 << 20;
/// The tag of the orientation in EXIF, and of XMP in TIFF.
const ORIENTATION: u16 = 0x0112;
const XMP: u16 = 700;
/// Text of a PNG that `ImageMagick` puts EXIF into, and text that is XMP.
const RAW_PROFILE: &[u8] = b"Raw profile type exif";
const XMP_TEXT: &[u8] = b"XML:com.adobe.xmp";
/// How a JPEG's segment of XMP begins.
const XMP_SEGMENT: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";

/// How the image in `reader` is to be turned; not at all if nothing is said of it.
pub(crate) fn orientation(mut reader: impl Read + Seek) -> Orientation {
    let Said { exif, xmp } = said(&mut reader).unwrap_or_default();
    let number = match exif {
        ExifWay::Way(number) => Some(number),
        ExifWay::Other => None,
        ExifWay::Absent => xmp.and_then(|xmp| in_xmp(&xmp)),
    };
    number.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms)
}

/// What a file says of its picture.
#[derive(Debug, Default)]
struct Said {
    exif: ExifWay,
    xmp: Option<Vec<u8>>,
}

/// The orientation by EXIF.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum ExifWay {
    /// It says none.
    #[default]
    Absent,
    /// It says one that is none of the eight ways; XMP is not asked then.
    Other,
    /// This one of the eight.
    Way(u8),
}

impl From<Option<u8>> for ExifWay {
    fn from(number: Option<u8>) -> Self {
        number.map_or(Self::Other, Self::Way)
    }
}

fn said(reader: &mut (impl Read + Seek)) -> Option<Said> {
    let start: [u8; 12] = array(reader)?;
    let mut at = |offset: u64| reader.seek(SeekFrom::Start(offset)).ok();
    match start {
        [0xff, 0xd8, ..] => at(2).map(|_| of_jpeg(reader)),
        [0x89, b'P', b'N', b'G', ..] => at(8).map(|_| of_png(reader)),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P'] => Some(of_webp(reader)),
        [b'I', b'I', ..] | [b'M', b'M', ..] => of_tiff(reader),
        _ => None,
    }
}

fn array<const N: usize>(reader: &mut impl Read) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes).ok().map(|()| bytes)
}

/// The next `length` bytes; `None` where there are fewer, or they are too many to be what is looked for.
fn bytes(reader: &mut impl Read, length: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = if length > MAX_BYTES { 0 } else { reader.take(length).read_to_end(&mut bytes).ok()? };
    (read as u64 == length).then_some(bytes)
}

/// Without the words that stand before EXIF in a JPEG, once or twice.
fn bare(mut exif: &[u8]) -> &[u8] {
    for _ in 0..2 {
        exif = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    }
    exif
}

/// What the application segments before the scan say. Several segments of EXIF are one that was cut, so the first begins it.
fn of_jpeg(reader: &mut (impl Read + Seek)) -> Said {
    let (mut said, mut exif) = (Said::default(), Vec::new());
    while let Some((code, length)) = next_segment(reader) {
        if code != 0xe1 {
            if reader.seek(SeekFrom::Current(i64::from(length))).is_err() {
                break;
            }
            continue;
        }
        let Some(segment) = bytes(reader, u64::from(length)) else { break };
        if let Some(part) = segment.strip_prefix(b"Exif\0\0") {
            exif.extend(part);
        } else if let Some(xmp) = segment.strip_prefix(XMP_SEGMENT) {
            said.xmp = Some(xmp.to_vec());
        }
    }
    said.exif = of_exif(&exif);
    said
}

/// The code of the next segment of a JPEG (ITU T.81, B.1) and the number of its bytes behind the length; `None` at the first scan
/// and at the end. What lies between segments is skipped, as libjpeg does.
pub(crate) fn next_segment(reader: &mut impl Read) -> Option<(u8, u16)> {
    loop {
        let mut code = 0;
        while code != 0xff {
            code = array::<1>(reader)?[0];
        }
        while code == 0xff {
            code = array::<1>(reader)?[0];
        }
        match code {
            0xd9 | 0xda => return None,
            // Bytes of data, and markers without a length.
            0x00 | 0x01 | 0xd0..=0xd8 => {}
            code => return Some((code, u16::from_be_bytes(array(reader)?).checked_sub(2)?)),
        }
    }
}

/// What the chunks of a PNG say, those behind the pixels as well.
fn of_png(reader: &mut (impl Read + Seek)) -> Said {
    let (mut said, mut exif, mut raw) = (Said::default(), None, None);
    while let Some([a, b, c, d, kind @ ..]) = array::<8>(reader) {
        let length = u64::from(u32::from_be_bytes([a, b, c, d]));
        let is_wanted = [b"eXIf", b"tEXt", b"zTXt", b"iTXt"].contains(&&kind);
        if kind == *b"IEND" {
            break;
        }
        if !is_wanted || length > MAX_BYTES {
            if reader.seek(SeekFrom::Current(length as i64 + 4)).is_err() {
                break;
            }
            continue;
        }
        let Some(chunk) = bytes(reader, length) else { break };
        if array::<4>(reader).is_none() {
            break;
        }
        if kind == *b"eXIf" {
            exif = Some(chunk);
        } else if let Some((key, text)) = text(kind, &chunk) {
            match key {
                RAW_PROFILE => raw = Some(text),
                XMP_TEXT => said.xmp = Some(text),
                _ => {}
            }
        }
    }
    let exif = exif.or_else(|| raw_profile(&raw?));
    said.exif = exif.map_or(ExifWay::Absent, |exif| of_exif(&exif));
    said
}

/// Key and text of a PNG's text chunk.
fn text(kind: [u8; 4], chunk: &[u8]) -> Option<(&[u8], Vec<u8>)> {
    let (key, rest) = split(chunk)?;
    let text = match (kind[0], rest) {
        (b't', text) => text.to_vec(),
        (b'z', [0, packed @ ..]) => inflated(packed)?,
        // Flag and method of compression, a language and a translated key stand before the text.
        (b'i', [packed, _, rest @ ..]) => {
            let (_, text) = split(split(rest)?.1)?;
            if *packed == 0 { text.to_vec() } else { inflated(text)? }
        }
        _ => return None,
    };
    Some((key, text))
}

/// What stands before and behind the first zero.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|&byte| byte == 0)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

fn inflated(packed: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    ZlibDecoder::new(packed).take(MAX_BYTES).read_to_end(&mut text).ok()?;
    Some(text)
}

/// The bytes of `ImageMagick`'s text: an empty line, a name, a length, then lines of hexadecimal digits.
fn raw_profile(text: &[u8]) -> Option<Vec<u8>> {
    let mut lines = text.split(|&byte| byte == b'\n').skip(3);
    let digits: Vec<u8> = lines.by_ref().flatten().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let digit = |byte: u8| (byte as char).to_digit(16);
    let pair = |pair: &[u8]| Some((digit(pair[0])? * 16 + digit(*pair.get(1)?)?) as u8);
    digits.chunks(2).map(pair).collect()
}

/// What the chunks of an extended WebP say that its header announces.
fn of_webp(reader: &mut (impl Read + Seek)) -> Said {
    const EXIF_FLAG: u8 = 8;
    const XMP_FLAG: u8 = 4;
    let mut said = Said::default();
    let mut flags = 0;
    while let Some([kind @ .., a, b, c, d]) = array::<8>(reader) {
        let length = u64::from(u32::from_le_bytes([a, b, c, d]));
        // Chunks have an even number of bytes.
        let padding = i64::from(length % 2 == 1);
        let wanted = match &kind {
            b"VP8X" => length >= 1,
            b"EXIF" => flags & EXIF_FLAG != 0 && said.exif == ExifWay::Absent,
            b"XMP " => flags & XMP_FLAG != 0 && said.xmp.is_none(),
            _ => false,
        };
        if !wanted || length > MAX_BYTES {
            if reader.seek(SeekFrom::Current(length as i64 + padding)).is_err() {
                break;
            }
            continue;
        }
        let Some(chunk) = bytes(reader, length) else { break };
        match &kind {
            b"VP8X" => flags = chunk[0],
            b"EXIF" => said.exif = of_exif(&chunk),
            _ => said.xmp = Some(chunk),
        }
        if reader.seek(SeekFrom::Current(padding)).is_err() {
            break;
        }
    }
    said
}

/// What the first directory of a TIFF says, which is as EXIF's.
fn of_tiff(reader: &mut (impl Read + Seek)) -> Option<Said> {
    let mut directory = Directory::new(reader)?;
    let exif = directory.find(ORIENTATION).map_or(ExifWay::Absent, |entry| directory.number(&entry).into());
    let xmp = directory.find(XMP).and_then(|entry| directory.bytes(&entry, entry.count));
    Some(Said { exif, xmp })
}

fn of_exif(exif: &[u8]) -> ExifWay {
    let mut reader = Cursor::new(bare(exif));
    let Some(mut directory) = Directory::new(&mut reader) else { return ExifWay::Absent };
    directory.find(ORIENTATION).map_or(ExifWay::Absent, |entry| directory.number(&entry).into())
}

/// The first directory of a TIFF (6.0), or of a `BigTIFF`.
struct Directory<'a, R> {
    reader: &'a mut R,
    is_little: bool,
    is_big: bool,
    /// Where its number of entries is.
    begin: u64,
}

/// An entry of a directory.
struct DirectoryEntry {
    kind: u16,
    count: u64,
    /// The value itself, or where it is.
    value: [u8; 8],
}

impl<'a, R: Read + Seek> Directory<'a, R> {
    /// That of the file in `reader`.
    fn new(reader: &'a mut R) -> Option<Self> {
        reader.rewind().ok()?;
        let header: [u8; 8] = array(reader)?;
        let (is_little, is_big) = match header {
            [b'I', b'I', 42, 0, ..] => (true, false),
            [b'M', b'M', 0, 42, ..] => (false, false),
            [b'I', b'I', 43, 0, ..] => (true, true),
            [b'M', b'M', 0, 43, ..] => (false, true),
            _ => return None,
        };
        let mut directory = Self { reader, is_little, is_big, begin: 0 };
        let begin = if is_big { array::<8>(directory.reader)?.to_vec() } else { header[4..].to_vec() };
        directory.begin = directory.unsigned(&begin);
        Some(directory)
    }

    /// A whole number of as many bytes.
    fn unsigned(&self, bytes: &[u8]) -> u64 {
        let add = |number: u64, &byte: &u8| number << 8 | u64::from(byte);
        if self.is_little { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) }
    }

    /// The first entry of this tag.
    fn find(&mut self, tag: u16) -> Option<DirectoryEntry> {
        self.reader.seek(SeekFrom::Start(self.begin)).ok()?;
        let count = if self.is_big { array::<8>(self.reader)?.to_vec() } else { array::<2>(self.reader)?.to_vec() };
        // More entries than a classic directory can have are none.
        for _ in 0..self.unsigned(&count).min(1 << 16) {
            let [t0, t1, k0, k1] = array(self.reader)?;
            let (count, value) = if self.is_big {
                (array::<8>(self.reader)?.to_vec(), array::<8>(self.reader)?)
            } else {
                let (count, [a, b, c, d]) = (array::<4>(self.reader)?.to_vec(), array(self.reader)?);
                (count, [a, b, c, d, 0, 0, 0, 0])
            };
            if self.unsigned(&[t0, t1]) == u64::from(tag) {
                let kind = self.unsigned(&[k0, k1]) as u16;
                return Some(DirectoryEntry { kind, count: self.unsigned(&count), value });
            }
        }
        None
    }

    /// The first `length` bytes of the values of `entry`, which are in it or elsewhere.
    fn bytes(&mut self, entry: &DirectoryEntry, length: u64) -> Option<Vec<u8>> {
        let inside = if self.is_big { 8 } else { 4 };
        let whole = entry.count.checked_mul(width_of(entry.kind)?)?;
        if whole <= inside {
            return Some(entry.value[..length.min(whole) as usize].to_vec());
        }
        let at = self.unsigned(&entry.value[..inside as usize]);
        self.reader.seek(SeekFrom::Start(at)).ok()?;
        bytes(self.reader, length)
    }

    /// The first of the values of `entry`, if it is one of the eight ways to turn a picture.
    fn number(&mut self, entry: &DirectoryEntry) -> Option<u8> {
        let width = width_of(entry.kind)?;
        let bytes = self.bytes(entry, width)?;
        if entry.count == 0 || bytes.len() as u64 != width {
            return None;
        }
        let whole = self.unsigned(&bytes);
        let number = match entry.kind {
            // Numbers without and with a sign, of which none of the eight has one.
            3 | 4 | 6 | 8 | 9 | 13 | 16 | 17 => whole as f64,
            5 | 10 => self.unsigned(&bytes[..4]) as f64 / self.unsigned(&bytes[4..]) as f64,
            11 => f64::from(f32::from_bits(whole as u32)),
            12 => f64::from_bits(whole),
            _ => return None,
        };
        (1..=8).find(|&way| f64::from(way).total_cmp(&number).is_eq())
    }
}

/// Bytes of a value of TIFF's type `kind`.
fn width_of(kind: u16) -> Option<u64> {
    match kind {
        1 | 2 | 6 | 7 => Some(1),
        3 | 8 => Some(2),
        4 | 9 | 11 | 13 => Some(4),
        5 | 10 | 12 | 16..=18 => Some(8),
        _ => None,
    }
}

/// The digit of the first `tiff:Orientation` in XMP, an attribute or an element.
fn in_xmp(xmp: &[u8]) -> Option<u8> {
    const NAME: &[u8] = b"tiff:Orientation";
    let mut rest = xmp;
    while let Some(at) = rest.windows(NAME.len()).position(|window| window == NAME) {
        rest = &rest[at + NAME.len()..];
        if let Some([digit @ b'0'..=b'9', ..]) = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">")) {
            return Some(digit - b'0');
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const TURNED: Orientation = Orientation::Rotate90;

    /// EXIF whose orientation is of this type, with `behind` at byte 26.
    fn exif(kind: u16, value: &[u8], behind: &[u8]) -> Vec<u8> {
        let mut out = b"II*\0\x08\0\0\0\x01\0\x12\x01".to_vec();
        out.extend(kind.to_le_bytes());
        out.extend([1, 0, 0, 0]);
        out.extend(value);
        out.resize(22, 0);
        out.extend([0; 4]);
        out.extend(behind);
        out
    }

    fn short(way: u8) -> Vec<u8> {
        exif(3, &[way, 0], &[])
    }

    fn jpeg(segments: &[&[u8]]) -> Vec<u8> {
        let mut out = vec![0xff, 0xd8];
        for segment in segments {
            out.extend([0xff, 0xe1]);
            out.extend((segment.len() as u16 + 2).to_be_bytes());
            out.extend(*segment);
        }
        out.extend([0xff, 0xda, 0, 2, 0xff, 0xd9]);
        out
    }

    fn with_exif(exif: &[u8]) -> Vec<u8> {
        [b"Exif\0\0", exif].concat()
    }

    fn xmp(text: &str) -> Vec<u8> {
        [XMP_SEGMENT, text.as_bytes()].concat()
    }

    fn png(chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
        let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
        for (kind, chunk) in chunks {
            out.extend((chunk.len() as u32).to_be_bytes());
            out.extend(*kind);
            out.extend(*chunk);
            out.extend([0; 4]);
        }
        out
    }

    fn of(file: &[u8]) -> Orientation {
        for length in 0..file.len() {
            orientation(Cursor::new(&file[..length]));
        }
        orientation(Cursor::new(file))
    }

    // Each as `ImageOps.exif_transpose` of Pillow 13.0 has it.
    #[test]
    fn a_number_of_any_type_counts() {
        for kind in [3, 4, 6, 8, 9, 13] {
            assert_eq!(of(&jpeg(&[&with_exif(&exif(kind, &[6], &[]))])), TURNED, "{kind}");
        }
        for kind in [1, 2, 7, 0, 99] {
            assert_eq!(of(&jpeg(&[&with_exif(&exif(kind, &[6], &[]))])), Orientation::NoTransforms, "{kind}");
        }
        let quotient = [12, 0, 0, 0, 2, 0, 0, 0];
        for (kind, value, behind) in
            [(5, &[26][..], &quotient[..]), (11, &6f32.to_le_bytes(), &[]), (12, &[26], &6f64.to_le_bytes())]
        {
            assert_eq!(of(&jpeg(&[&with_exif(&exif(kind, value, behind))])), TURNED, "{kind}");
        }
        for way in [0, 1, 9, 255] {
            assert_eq!(of(&jpeg(&[&with_exif(&short(way))])), Orientation::NoTransforms, "{way}");
        }
    }

    #[test]
    fn the_first_exif_counts_and_xmp_where_it_says_nothing() {
        let (turned, upright) = (with_exif(&short(6)), with_exif(&short(1)));
        let attribute = xmp(r#"<x tiff:Orientation="6"/>"#);
        let empty = with_exif(b"II*\0\x08\0\0\0\0\0\0\0\0\0");
        let of_bytes = with_exif(&exif(1, &[1], &[]));
        for (segments, expected) in [
            (&[&turned[..], &upright][..], TURNED),
            (&[&upright, &turned], Orientation::NoTransforms),
            (&[&with_exif(&turned)], TURNED),
            (&[&attribute], TURNED),
            (&[&xmp("<tiff:Orientation>6</tiff:Orientation>")], TURNED),
            (&[&xmp("<x tiff:Orientation='6'/>")], Orientation::NoTransforms),
            (&[&attribute, &xmp("nothing")], Orientation::NoTransforms),
            (&[&upright, &attribute], Orientation::NoTransforms),
            (&[&of_bytes, &attribute], Orientation::NoTransforms),
            (&[&empty, &attribute], TURNED),
            (&[b"Exif\0\0"], Orientation::NoTransforms),
        ] {
            assert_eq!(of(&jpeg(segments)), expected, "{segments:?}");
        }
        // Between segments anything may lie; behind the scan nothing counts.
        let mut stray = jpeg(&[b"none", &turned]);
        stray.splice(10..10, *b"abc");
        assert_eq!(of(&stray), TURNED);
        let late = [&jpeg(&[])[..], &jpeg(&[&turned])[2..]].concat();
        assert_eq!(of(&late), Orientation::NoTransforms);
    }

    #[test]
    fn a_png_says_it_in_chunks_before_or_behind_the_pixels() {
        let pixels: (&[u8; 4], &[u8]) = (b"IDAT", &[1, 2, 3]);
        let exif: (&[u8; 4], &[u8]) = (b"eXIf", &short(6));
        assert_eq!(of(&png(&[pixels, exif, (b"IEND", &[])])), TURNED);
        assert_eq!(of(&png(&[exif, pixels])), TURNED);
        assert_eq!(of(&png(&[(b"IEND", &[]), exif])), Orientation::NoTransforms);

        let digit = |half: u8| char::from_digit(u32::from(half), 16).unwrap();
        let digits: String =
            with_exif(&short(6)).iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect();
        let (first, second) = digits.split_at(20);
        let profile = format!("\nexif\n      32\n{first}\n{second}\n");
        let packed = |text: &[u8]| {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        };
        let plain = [RAW_PROFILE, b"\0", profile.as_bytes()].concat();
        let zipped = [RAW_PROFILE, b"\0\0", &packed(profile.as_bytes())].concat();
        assert_eq!(of(&png(&[(b"tEXt", &plain)])), TURNED);
        assert_eq!(of(&png(&[(b"zTXt", &zipped), pixels])), TURNED);
        assert_eq!(of(&png(&[(b"zTXt", &zipped), (b"eXIf", &short(3))])), Orientation::Rotate180);
        assert_eq!(of(&png(&[(b"tEXt", b"Raw profile type exif\0\nexif\n1\nxy")])), Orientation::NoTransforms);

        let text = br#"<x tiff:Orientation="8"/>"#;
        let international = [XMP_TEXT, b"\0\0\0en\0key\0", text].concat();
        let compressed = [XMP_TEXT, b"\0\x01\0\0\0", &packed(text)].concat();
        for chunk in [international, compressed] {
            assert_eq!(of(&png(&[(b"iTXt", &chunk)])), Orientation::Rotate270);
        }
    }

    #[test]
    fn webp_and_tiff_say_it_in_their_own_way() {
        let webp = |flags: u8, chunks: &[(&[u8; 4], &[u8])]| {
            let mut out = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0".to_vec();
            out.extend([flags, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            for (kind, chunk) in chunks {
                out.extend(*kind);
                out.extend((chunk.len() as u32).to_le_bytes());
                out.extend(*chunk);
                out.resize(out.len().next_multiple_of(2), 0);
            }
            out
        };
        let exif: (&[u8; 4], &[u8]) = (b"EXIF", &short(6));
        assert_eq!(of(&webp(8, &[(b"VP8 ", &[1, 2, 3]), exif])), TURNED);
        assert_eq!(of(&webp(8, &[(b"EXIF", &with_exif(&short(6)))])), TURNED);
        assert_eq!(of(&webp(0, &[exif])), Orientation::NoTransforms);
        assert_eq!(of(&webp(4, &[(b"XMP ", br#"<x tiff:Orientation="6"/>"#)])), TURNED);

        assert_eq!(of(&short(6)), TURNED);
        assert_eq!(of(b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x04\0\0\0\x01\0\0\0\x06"), TURNED);
        let big =
            b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x12\x01\x03\0\x01\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0";
        assert_eq!(of(big), TURNED);
        let text = br#"<x tiff:Orientation="6"/>"#;
        let mut with_xmp = b"II*\0\x08\0\0\0\x01\0\xbc\x02\x01\0".to_vec();
        with_xmp.extend((text.len() as u32).to_le_bytes());
        with_xmp.extend([26, 0, 0, 0, 0, 0, 0, 0]);
        with_xmp.extend(text);
        assert_eq!(of(&with_xmp), TURNED);
        assert_eq!(of(b"GIF89a and so on"), Orientation::NoTransforms);
    }
}
