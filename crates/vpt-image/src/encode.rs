//! Pictures as files, in the format that their name asks for.

use std::io::Cursor;
use std::path::Path;

use image::codecs::bmp::BmpEncoder;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::codecs::tiff::TiffEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder, ImageFormat, ImageResult};

use crate::rgb::Rgb8;
use vpt_base::{Error, Result};

/// Quality of JPEG files: high enough that lines and letters stay sharp.
const JPEG_QUALITY: u8 = 95;

/// `image` as a file in the format that the ending of `path` asks for; PNG if that is none of those above.
///
/// # Errors
/// The format cannot hold it, such as JPEG more than 65,535 pixels a side.
pub fn picture_bytes(image: &Rgb8, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    let (pixels, kind) = (image.pixels.as_slice(), ExtendedColorType::Rgb8);
    let size = |n: usize| u32::try_from(n).map_err(|_| Error::file(path, "an image of too many pixels"));
    let (width, height) = (size(image.width)?, size(image.height)?);
    let written: ImageResult<()> = match picture_format(path) {
        Some(ImageFormat::Jpeg) => {
            JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY).write_image(pixels, width, height, kind)
        }
        Some(ImageFormat::WebP) => WebPEncoder::new_lossless(&mut bytes).write_image(pixels, width, height, kind),
        Some(ImageFormat::Bmp) => BmpEncoder::new(&mut bytes).write_image(pixels, width, height, kind),
        Some(ImageFormat::Tiff) => TiffEncoder::new(&mut bytes).write_image(pixels, width, height, kind),
        _ => PngEncoder::new(&mut bytes).write_image(pixels, width, height, kind),
    };
    written.map_err(|error| Error::file(path, error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")))?;
    Ok(bytes.into_inner())
}

/// The format of pictures with the ending of `path`. GIF is not among them: a photo does not fit into its 256 colours.
pub fn picture_format(path: &Path) -> Option<ImageFormat> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "jpg" | "jpeg" | "jpe" => Some(ImageFormat::Jpeg),
        "png" => Some(ImageFormat::Png),
        "webp" => Some(ImageFormat::WebP),
        "bmp" => Some(ImageFormat::Bmp),
        "tif" | "tiff" => Some(ImageFormat::Tiff),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::decode_bytes;

    #[test]
    fn pictures_have_the_format_of_their_name_and_the_same_pixels() {
        let pixels = (0..30 * 20 * 3).map(|i| (i / 3 % 30 * 8) as u8).collect();
        let image = Rgb8 { width: 30, height: 20, pixels };
        for (name, format) in [
            ("a.JPG", ImageFormat::Jpeg),
            ("a.png", ImageFormat::Png),
            ("a.webp", ImageFormat::WebP),
            ("a.bmp", ImageFormat::Bmp),
            ("a.tif", ImageFormat::Tiff),
            ("a", ImageFormat::Png),
        ] {
            let bytes = picture_bytes(&image, Path::new(name)).unwrap();
            assert_eq!(image::guess_format(&bytes).unwrap(), format);
            let read = decode_bytes(&bytes).unwrap();
            let most = read.pixels.iter().zip(&image.pixels).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(most.unwrap() <= if format == ImageFormat::Jpeg { 12 } else { 0 }, "{name}: {most:?}");
        }
        let long = Rgb8::new(70_000, 1);
        let message = picture_bytes(&long, Path::new("long.jpg")).unwrap_err().to_string();
        assert!(message.starts_with("long.jpg: ") && picture_bytes(&long, Path::new("long.png")).is_ok(), "{message}");
    }
}
