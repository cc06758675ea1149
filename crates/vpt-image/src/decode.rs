//! From image files to 8-bit RGB.
//!
//! Colours become what Pillow's `Image.open(path).convert("RGB")` makes of them: grey is repeated, alpha is dropped and not
//! composited, as in all tools that CLIP came with, CMYK is multiplied out, palettes are looked up. The one difference is
//! deliberate: 16-bit grey keeps its high byte, as 16-bit colour does, where Pillow clips everything above 255 to white. An
//! EXIF orientation is applied, as `ImageOps.exif_transpose` and transformers' `load_image` do: cameras store photos as the
//! sensor lay, and a backbone has learned which way is up. Of an animation the first frame is taken.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Seek};
use std::path::Path;

use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ExtendedColorType, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use crate::gif_canvas::GifCanvas;
use crate::heif;
use crate::jpeg;
use crate::orientation::orientation;
use crate::rgb::cmyk_to_rgb;
pub use crate::rgb::{MAX_PIXELS, Rgb8};
use crate::tiff_forms;
use vpt_base::contain::contain;
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};

/// Most bytes an image file may have.
pub const MAX_FILE_BYTES: u64 = 1 << 30;

/// The ends of file names, in lower case, that are taken for images when a folder is searched.
pub const EXTENSIONS: [&str; 12] =
    ["jpg", "jpeg", "jpe", "png", "webp", "bmp", "tif", "tiff", "gif", "heic", "heif", "hif"];

const AVIF: &str = "an AVIF image, which is not read; convert it to JPEG or PNG";
/// What is said of a file that is none of them.
const NOT_KNOWN: &str = "not an image of a known format (JPEG, PNG, WebP, BMP, TIFF, GIF, HEIC)";

/// Whether the name of `path` ends like an image's.
pub fn has_image_extension(path: &Path) -> bool {
    path.extension().and_then(|e| e.to_str()).is_some_and(|e| EXTENSIONS.iter().any(|x| e.eq_ignore_ascii_case(x)))
}

/// The name, as people write it, of the format of a file that begins with `start`, and the ends of names that it goes by.
pub fn format_of(start: &[u8]) -> Option<(String, Vec<&'static str>)> {
    if heif::is_heif(start) {
        return Some(("HEIC".to_owned(), vec!["heic", "heif", "hif"]));
    }
    let format = image::guess_format(start).ok()?;
    let mut ends = format.extensions_str().to_vec();
    if format == ImageFormat::Jpeg {
        ends.push("jpe");
    }
    let name = if format == ImageFormat::WebP { "WebP".to_owned() } else { format!("{format:?}").to_uppercase() };
    Some((name, ends))
}

/// Reads and decodes the image in `path`. The format is recognised by content, not by name.
///
/// # Errors
/// The file cannot be read, is of no known format, has more than [`MAX_PIXELS`] pixels (found before memory is taken),
/// ends too early, or is damaged in a way its decoder notices.
pub fn decode(path: &Path) -> Result<Rgb8> {
    let bytes = read_limited(path, MAX_FILE_BYTES).map_err(|error| error.of_kind(Error::image))?;
    decode_bytes(&bytes).map_err(|message| Error::image(path, message))
}

/// Width and height of the image in `path` the right way up, from its header.
///
/// # Errors
/// The file cannot be read, is of no known format, has no or more than [`MAX_PIXELS`] pixels, or its header is damaged.
pub fn size(path: &Path) -> Result<[usize; 2]> {
    let file = File::open(path).map_err(Error::io(path))?;
    // A pipe or a device could block or never end.
    if !file.metadata().map_err(Error::io(path))?.is_file() {
        return Err(Error::image(path, "not a regular file"));
    }
    size_in(BufReader::new(file)).map_err(|message| Error::image(path, message))
}

/// [`size`] of a file that is in memory; the error says what is wrong with it.
///
/// # Errors
/// As [`size`].
pub fn size_of_bytes(bytes: &[u8]) -> Result<[usize; 2], String> {
    size_in(Cursor::new(bytes))
}

fn size_in(mut reader: impl BufRead + Seek) -> Result<[usize; 2], String> {
    let start = reader.fill_buf().unwrap_or_default();
    if heif::is_avif(start) {
        return Err(AVIF.into());
    }
    let is_heif = heif::is_heif(start);
    let found = match jpeg::size_in(&mut reader) {
        Ok(size) => Ok(size),
        Err(_) if is_heif => reader.rewind().map_err(|error| error.to_string()).and_then(|()| {
            let mut bytes = Vec::new();
            reader.by_ref().take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
            contain(|| heif::size(&bytes)).unwrap_or_else(|panic| Err(format!("the image decoder failed: {panic}")))
        }),
        // Another format, or a damaged file, of which the decoder knows better what is wrong.
        Err(_) => reader.rewind().map_err(|error| error.to_string()).map(|()| {
            let header = contain(|| header_size(&mut reader));
            let size = header.unwrap_or_else(|panic| Err(format!("the image decoder failed: {panic}")));
            size.or_else(|message| {
                reader.rewind().map_err(|error| error.to_string())?;
                contain(|| tiff_forms::size(&mut reader)).ok().flatten().ok_or(message)
            })
        })?,
    };
    let mut size = found?;
    reader.rewind().map_err(|error| error.to_string())?;
    let mut start = [0; 4];
    if reader.read_exact(&mut start).is_ok() && start == *b"GIF8" {
        let mut bytes = start.to_vec();
        reader.by_ref().take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        size = GifCanvas::new(&bytes).map_or(size, |canvas| canvas.size.map(u32::from));
    }
    reader.rewind().map_err(|error| error.to_string())?;
    let [width, height] = upright(size, orientation(reader));
    match u64::from(width) * u64::from(height) {
        0 => Err(format!("an image of {width}x{height} pixels")),
        count if count > MAX_PIXELS as u64 => {
            Err(format!("{width}x{height} pixels, more than the limit of {MAX_PIXELS}"))
        }
        _ => Ok([width as usize, height as usize]),
    }
}

fn header_size(reader: impl BufRead + Seek) -> Result<[u32; 2], String> {
    let mut reader = ImageReader::new(reader).with_guessed_format().map_err(|e| one_line(&e))?;
    reader.format().ok_or(NOT_KNOWN)?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_FILE_BYTES);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|e| one_line(&e))?;
    Ok(decoder.dimensions().into())
}

/// How the image in `path` is to be turned to be the right way up; not at all if that cannot be told.
pub fn orientation_of(path: &Path) -> Orientation {
    read_limited(path, MAX_FILE_BYTES).map_or(Orientation::NoTransforms, |bytes| orientation_of_bytes(&bytes))
}

/// [`orientation_of`] a file that is in memory.
pub fn orientation_of_bytes(bytes: &[u8]) -> Orientation {
    orientation(Cursor::new(bytes))
}

/// The width and height of an image of `size` after it is turned.
fn upright([width, height]: [u32; 2], orientation: Orientation) -> [u32; 2] {
    match orientation {
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH => {
            [height, width]
        }
        _ => [width, height],
    }
}

/// [`decode`] for a file that is in memory; the error says what is wrong with it.
pub fn decode_bytes(bytes: &[u8]) -> Result<Rgb8, String> {
    // Decoders panic on some crafted files. They own all they work on, so nothing is left half done.
    contain(|| decode_uncontained(bytes)).unwrap_or_else(|panic| Err(format!("the image decoder failed: {panic}")))
}

/// How many bits the greatest value takes in an image of 16 bits a value, alpha aside; none of other images, and of what cannot be
/// decoded. Cameras and scanners store 10 or 12 bits so, and 16-bit readers make nearly black pictures of them.
pub fn bits_of_16(bytes: &[u8]) -> Option<u32> {
    let read = || {
        let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().ok()?;
        let mut limits = Limits::default();
        limits.max_alloc = Some(MAX_PIXELS as u64 * 16);
        reader.limits(limits);
        let decoder = reader.into_decoder().ok()?;
        let (width, height) = decoder.dimensions();
        let is_deep =
            matches!(decoder.color_type(), ColorType::L16 | ColorType::La16 | ColorType::Rgb16 | ColorType::Rgba16);
        if !is_deep || u64::from(width) * u64::from(height) > MAX_PIXELS as u64 {
            return None;
        }
        let most = |values: &[u16], channels: usize, colours: usize| {
            values.chunks_exact(channels).flat_map(|pixel| &pixel[..colours]).max().copied()
        };
        let most = match DynamicImage::from_decoder(decoder).ok()? {
            DynamicImage::ImageLuma16(image) => most(image.as_raw(), 1, 1),
            DynamicImage::ImageLumaA16(image) => most(image.as_raw(), 2, 1),
            DynamicImage::ImageRgb16(image) => most(image.as_raw(), 3, 3),
            DynamicImage::ImageRgba16(image) => most(image.as_raw(), 4, 3),
            _ => None,
        };
        most.map(|most| u16::BITS - most.leading_zeros())
    };
    contain(read).ok().flatten()
}

fn decode_uncontained(bytes: &[u8]) -> Result<Rgb8, String> {
    if bytes.is_empty() {
        return Err("empty file".into());
    }
    if heif::is_heif(bytes) {
        return heif::decode(bytes);
    }
    if heif::is_avif(bytes) {
        return Err(AVIF.into());
    }
    let canvas = GifCanvas::new(bytes);
    let bytes = &*canvas.map_or(bytes.into(), |canvas| canvas.in_header(bytes));
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| one_line(&e))?;
    let format = reader.format().ok_or(NOT_KNOWN)?;
    let mut limits = Limits::default();
    // Decoders may hold the pixels twice, at up to 8 bytes each.
    limits.max_alloc = Some(MAX_PIXELS as u64 * 16);
    reader.limits(limits);
    let mut decoder = match reader.into_decoder() {
        Ok(decoder) => decoder,
        Err(error) if format == ImageFormat::Tiff => {
            let image = tiff_forms::other_form(bytes);
            return image.map(|image| turned(image, orientation_of_bytes(bytes))).ok_or_else(|| one_line(&error));
        }
        Err(error) => return Err(one_line(&error)),
    };
    let (width, height) = decoder.dimensions();
    let count = u64::from(width) * u64::from(height);
    if count == 0 {
        return Err(format!("an image of {width}x{height} pixels"));
    }
    if count > MAX_PIXELS as u64 {
        return Err(format!("{width}x{height} pixels, more than the limit of {MAX_PIXELS}"));
    }
    if is_cut_short(format, bytes, count) {
        return Err("truncated image: the file ends too early".into());
    }
    // A frame of a GIF file may say that it is larger than the picture that it is a part of.
    let mut limits = Limits::default();
    limits.max_alloc = Some(count * 16 + (16 << 20));
    decoder.set_limits(limits).map_err(|e| one_line(&e))?;
    let image = match format {
        ImageFormat::Jpeg => jpeg::decode(bytes, width as usize, height as usize),
        ImageFormat::Tiff if tiff_forms::is_jpeg_of_four(bytes) => {
            let image = tiff_forms::jpeg(bytes, width as usize, height as usize);
            Some(image.ok_or("JPEG of four channels in an arrangement that is not supported")?)
        }
        ImageFormat::Tiff if decoder.original_color_type() == ExtendedColorType::Cmyk8 => {
            Some(cmyk_tiff(bytes, width as usize, height as usize)?)
        }
        ImageFormat::Tiff => tiff_forms::jpeg(bytes, width as usize, height as usize),
        ImageFormat::Bmp => bmp_of_16_bits(bytes, width as usize, height as usize),
        _ => None,
    };
    let image = if let Some(image) = image {
        image
    } else {
        let mut image = DynamicImage::from_decoder(decoder).map_err(|e| one_line(&e))?;
        if let (Some(GifCanvas { fill: [r, g, b], .. }), DynamicImage::ImageRgba8(image)) = (canvas, &mut image) {
            image.pixels_mut().filter(|pixel| pixel.0[3] == 0).for_each(|pixel| pixel.0 = [r, g, b, 0]);
        }
        to_rgb8(image)?
    };
    Ok(turned(image, orientation_of_bytes(bytes)))
}

/// `image` the right way up.
fn turned(image: Rgb8, orientation: Orientation) -> Rgb8 {
    if orientation == Orientation::NoTransforms {
        return image;
    }
    let Rgb8 { width, height, pixels } = image;
    let mut image =
        RgbImage::from_raw(width as u32, height as u32, pixels).map(DynamicImage::ImageRgb8).unwrap_or_default();
    image.apply_orientation(orientation);
    Rgb8 { width: image.width() as usize, height: image.height() as usize, pixels: image.into_rgb8().into_raw() }
}

/// A TIFF of CMYK colours; the general decoder rounds them down.
fn cmyk_tiff(bytes: &[u8], width: usize, height: usize) -> Result<Rgb8, String> {
    let mut decoder = tiff::decoder::Decoder::new(Cursor::new(bytes)).map_err(|e| one_line(&e))?;
    let tiff::decoder::DecodingResult::U8(inks) = decoder.read_image().map_err(|e| one_line(&e))? else {
        return Err("CMYK of other than 8 bits".into());
    };
    let (inks, rest) = inks.as_chunks::<4>();
    if inks.len() != width * height || !rest.is_empty() {
        return Err("CMYK in an arrangement that is not supported".into());
    }
    Ok(Rgb8 { width, height, pixels: inks.iter().flat_map(|&inks| cmyk_to_rgb(inks)).collect() })
}

/// A BMP of 16 bits a pixel, five of each colour or six of green, whose values Pillow stretches to 255 and rounds down; the general
/// decoder rounds to the nearest.
fn bmp_of_16_bits(bytes: &[u8], width: usize, height: usize) -> Option<Rgb8> {
    let word = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let (begin, header, compression) = (word(10)? as usize, word(14)?, word(30)?);
    if header < 40 || word(28)? & 0xffff != 16 {
        return None;
    }
    let masks = [54, 58, 62].map(word);
    let green = match (compression, masks) {
        (0, _) | (3, [Some(0x7c00), Some(0x3e0), Some(0x1f)]) => 5,
        (3, [Some(0xf800), Some(0x7e0), Some(0x1f)]) => 6,
        _ => return None,
    };
    let most_of_green = (1 << green) - 1;
    let is_upside_down = word(22)? as i32 > 0;
    let stride = (2 * width).next_multiple_of(4);
    let mut pixels = Vec::with_capacity(3 * width * height);
    for row in 0..height {
        let row = if is_upside_down { height - 1 - row } else { row };
        let at = begin.checked_add(row * stride)?;
        for value in bytes.get(at..at + 2 * width)?.as_chunks().0 {
            let value = u32::from(u16::from_le_bytes(*value));
            let of = |value: u32, most: u32| ((value & most) * 255 / most) as u8;
            pixels.extend([of(value >> (5 + green), 31), of(value >> 5, most_of_green), of(value, 31)]);
        }
    }
    Some(Rgb8 { width, height, pixels })
}

fn to_rgb8(image: DynamicImage) -> Result<Rgb8, String> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let high = |v: u16| (v >> 8) as u8;
    let pixels = match image {
        DynamicImage::ImageRgb8(i) => i.into_raw(),
        DynamicImage::ImageLuma8(i) => return Ok(Rgb8::from_grey(width, height, i.as_raw())),
        DynamicImage::ImageLumaA8(i) => i.as_raw().chunks_exact(2).flat_map(|p| [p[0]; 3]).collect(),
        DynamicImage::ImageRgba8(i) => i.as_raw().chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect(),
        DynamicImage::ImageLuma16(i) => i.as_raw().iter().flat_map(|&v| [high(v); 3]).collect(),
        DynamicImage::ImageLumaA16(i) => i.as_raw().chunks_exact(2).flat_map(|p| [high(p[0]); 3]).collect(),
        DynamicImage::ImageRgb16(i) => i.as_raw().iter().map(|&v| high(v)).collect(),
        DynamicImage::ImageRgba16(i) => {
            i.as_raw().chunks_exact(4).flat_map(|p| [high(p[0]), high(p[1]), high(p[2])]).collect()
        }
        other => return Err(format!("pixels of type {:?} are not supported", other.color())),
    };
    Ok(Rgb8 { width, height, pixels })
}

/// Whether the file lacks its end, or has too few bytes for an image of `count` pixels however well they were compressed.
/// The JPEG decoder fills what is missing with grey and says nothing.
fn is_cut_short(format: ImageFormat, bytes: &[u8], count: u64) -> bool {
    let length = bytes.len() as u64;
    match format {
        // At least a bit for the mean of each block of 8 x 8 pixels.
        ImageFormat::Jpeg => length * 8 < count / 64 || !jpeg::reaches_its_end(bytes),
        // At least a bit for each pixel before deflate, which makes at most 1032 bytes of one.
        ImageFormat::Png => length * 1032 < count / 8,
        ImageFormat::WebP => {
            // "RIFF", then the number of bytes that follow.
            let declared = bytes.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
            length < u64::from(declared) + 8
        }
        // Rows of a whole number of four bytes, unless they are compressed by runs.
        ImageFormat::Bmp => {
            let number =
                |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
            let bits = u64::from(number(28) & 0xffff);
            let is_plain = number(14) >= 40 && matches!(number(30), 0 | 3 | 6);
            (is_plain && length * 8 < count * bits) || length << MOST_OF_A_BYTE < count
        }
        // A code of twelve bits stands for 4096 pixels at most.
        ImageFormat::Gif => length << 12 < count,
        _ => length << MOST_OF_A_BYTE < count,
    }
}

/// Logarithm of the pixels that a byte stands for at most, in the formats with the best compression: a bit of a TIFF file is
/// a whole white row of a fax.
const MOST_OF_A_BYTE: u32 = 17;

fn one_line(error: &impl std::fmt::Display) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
