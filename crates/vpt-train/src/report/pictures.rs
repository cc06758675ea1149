//! Where pictures made of input images are written, and in which format.

use std::collections::HashSet;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::codecs::bmp::BmpEncoder;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::codecs::tiff::TiffEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder, ImageFormat, ImageResult};

use vpt_base::{Error, Result};
use vpt_image::decode::Rgb8;

/// Quality of JPEG files: high enough that lines and letters stay sharp.
const JPEG_QUALITY: u8 = 95;

/// For each of `inputs` a file in `folder` for a picture made of it: of the same name, with `-2`, `-3` before the ending where
/// that is taken by another input or is an input itself. What is neither JPEG, PNG, WebP, BMP nor TIFF by its ending gets
/// `.png` behind its name.
///
/// # Errors
/// An input has no file name.
pub fn picture_paths(inputs: &[PathBuf], folder: &Path) -> Result<Vec<PathBuf>> {
    let real = |path: &Path| path.canonicalize().ok();
    let read: HashSet<PathBuf> = inputs.iter().filter_map(|input| real(input)).collect();
    // Some file systems do not tell upper from lower case.
    let mut taken = HashSet::new();
    let mut free = |path: &Path| {
        let is_input = real(path).is_some_and(|path| read.contains(&path));
        !is_input && taken.insert(path.to_string_lossy().to_lowercase())
    };
    let path_of = |input: &PathBuf| {
        let name = input.file_name().ok_or_else(|| Error::file(input, "not the name of a file"))?;
        let mut path = folder.join(name);
        if format(&path).is_none() {
            path.as_mut_os_string().push(".png");
        }
        let (stem, ending) = (path.file_stem().unwrap_or_default(), path.extension().unwrap_or_default());
        let numbered = |n: usize| {
            let mut name = stem.to_os_string();
            name.push(format!("-{n}."));
            name.push(ending);
            folder.join(name)
        };
        let mut candidates = std::iter::once(path.clone()).chain((2..).map(numbered));
        candidates.find(|path| free(path)).ok_or_else(|| Error::file(input, "no name is left for its picture"))
    };
    inputs.iter().map(path_of).collect()
}

/// `image` as a file in the format that the ending of `path` asks for; PNG if that is none of those above.
///
/// # Errors
/// The format cannot hold it, such as JPEG more than 65,535 pixels a side.
pub fn picture_bytes(image: &Rgb8, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    let (pixels, kind) = (image.pixels.as_slice(), ExtendedColorType::Rgb8);
    let size = |n: usize| u32::try_from(n).map_err(|_| Error::file(path, "an image of too many pixels"));
    let (width, height) = (size(image.width)?, size(image.height)?);
    let written: ImageResult<()> = match format(path) {
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
fn format(path: &Path) -> Option<ImageFormat> {
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
    use vpt_image::decode::decode_bytes;

    fn names(inputs: &[PathBuf], folder: &Path) -> Vec<String> {
        let paths = picture_paths(inputs, folder).unwrap();
        paths.iter().map(|p| p.strip_prefix(folder).unwrap().display().to_string()).collect()
    }

    #[test]
    fn names_stay_unless_they_would_meet() {
        let dir = tempfile::tempdir().unwrap();
        let inputs = ["a/cat.jpg", "b/cat.jpg", "c/CAT.jpg", "cat-2.jpg", "a/dog.gif", "b/no ending", "dog.gif.png"];
        let inputs = inputs.map(PathBuf::from);
        let expected =
            ["cat.jpg", "cat-2.jpg", "CAT-3.jpg", "cat-2-2.jpg", "dog.gif.png", "no ending.png", "dog.gif-2.png"];
        assert_eq!(names(&inputs, dir.path()), expected);
        assert!(picture_paths(&["..".into()], dir.path()).is_err());
    }

    #[test]
    fn no_input_is_ever_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["cat.jpg", "cat-2.jpg"] {
            std::fs::write(at(name), name).unwrap();
        }
        assert_eq!(names(&[at("cat.jpg")], dir.path()), ["cat-2.jpg"]);
        let roundabout = dir.path().join(".").join("cat-2.jpg");
        assert_eq!(names(&[at("cat.jpg"), roundabout], dir.path()), ["cat-3.jpg", "cat-2-2.jpg"]);
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(at("cat.jpg"), at("link.jpg")).unwrap();
            let elsewhere = tempfile::tempdir().unwrap();
            let other = elsewhere.path().join("link.jpg");
            std::fs::write(&other, "another").unwrap();
            assert_eq!(names(&[at("cat.jpg"), other], dir.path()), ["cat-2.jpg", "link-2.jpg"]);
        }
    }

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
