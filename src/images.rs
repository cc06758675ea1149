//! Images at the door: arrays, decoded images and files, all as what the crates below take.

use std::path::{Path, PathBuf};

use ndarray::{Array3, Array4, ArrayView3, ArrayView4, Axis};
use vpt_base::{Error, Result};
use vpt_data::ImageSource;
use vpt_image::Rgb8;

/// Something that stands for images, in an order.
///
/// Arrays are 8-bit RGB, `[H, W, 3]` for one image and `[B, H, W, 3]` for several; in any layout in memory. Files may be JPEG, PNG,
/// WebP, BMP, TIFF, GIF or HEIC, and are read when their turn comes. Preprocessing is the backbone's, so images of any size will do.
pub trait IntoImages {
    /// The images.
    ///
    /// # Errors
    /// An array has another shape; the error says which.
    fn into_images(self) -> Result<Vec<ImageSource>>;
}

/// The image `[H, W, 3]`.
fn image(array: &ArrayView3<'_, u8>) -> Result<ImageSource> {
    let (height, width, _) = array.dim();
    Rgb8::from_pixels(width, height, array.iter().copied().collect()).map(ImageSource::from)
}

/// Fails unless the last axis of `shape` is of three colors.
fn check_colors(shape: &[usize], expected: &str) -> Result<()> {
    match shape.last() {
        Some(3) => Ok(()),
        _ => Err(Error::invalid("images", format!("an array of shape {shape:?} where {expected} is expected"))),
    }
}

impl IntoImages for ArrayView4<'_, u8> {
    fn into_images(self) -> Result<Vec<ImageSource>> {
        check_colors(self.shape(), "[B, H, W, 3]")?;
        self.axis_iter(Axis(0)).map(|one| image(&one)).collect()
    }
}

impl IntoImages for ArrayView3<'_, u8> {
    fn into_images(self) -> Result<Vec<ImageSource>> {
        check_colors(self.shape(), "[H, W, 3]")?;
        Ok(vec![image(&self)?])
    }
}

impl IntoImages for &Array4<u8> {
    fn into_images(self) -> Result<Vec<ImageSource>> {
        self.view().into_images()
    }
}

impl IntoImages for &Array3<u8> {
    fn into_images(self) -> Result<Vec<ImageSource>> {
        self.view().into_images()
    }
}

impl IntoImages for Vec<ImageSource> {
    fn into_images(self) -> Result<Vec<ImageSource>> {
        Ok(self)
    }
}

impl IntoImages for &[ImageSource] {
    fn into_images(self) -> Result<Vec<ImageSource>> {
        Ok(self.to_vec())
    }
}

impl IntoImages for Vec<Rgb8> {
    fn into_images(self) -> Result<Vec<ImageSource>> {
        self.iter().try_for_each(Rgb8::check)?;
        Ok(self.into_iter().map(ImageSource::from).collect())
    }
}

impl IntoImages for &[Rgb8] {
    fn into_images(self) -> Result<Vec<ImageSource>> {
        self.to_vec().into_images()
    }
}

impl IntoImages for &[PathBuf] {
    fn into_images(self) -> Result<Vec<ImageSource>> {
        Ok(self.iter().cloned().map(ImageSource::File).collect())
    }
}

impl IntoImages for &Path {
    fn into_images(self) -> Result<Vec<ImageSource>> {
        Ok(vec![ImageSource::File(self.to_path_buf())])
    }
}

/// Images with what is known of each, as [`MemorySet`](crate::MemorySet) takes them.
///
/// # Errors
/// There are not as many labels as images, or as [`IntoImages::into_images`].
pub fn labelled<L: Clone>(images: impl IntoImages, labels: &[L]) -> Result<Vec<(ImageSource, L)>> {
    let images = images.into_images()?;
    if images.len() != labels.len() {
        return Err(Error::invalid("labels", format!("{} for {} images", labels.len(), images.len())));
    }
    Ok(images.into_iter().zip(labels.iter().cloned()).collect())
}

/// An image as an array `[H, W, 3]`.
pub fn pixels(image: &Rgb8) -> Result<Array3<u8>> {
    image.check()?;
    Array3::from_shape_vec((image.height, image.width, 3), image.pixels.clone())
        .map_err(|error| Error::invalid("image", error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_images_row_by_row_whatever_their_layout() {
        let array = Array4::from_shape_fn((2, 3, 4, 3), |(b, y, x, c)| (b * 100 + y * 20 + x * 4 + c) as u8);
        let images = array.into_images().unwrap();
        let second = images[1].load().unwrap();
        assert_eq!((images.len(), second.width, second.height), (2, 4, 3));
        assert_eq!(second.pixels[..6], [100, 101, 102, 104, 105, 106]);
        // The same pixels, channels first in memory.
        let mut planes = array.clone();
        planes.swap_axes(1, 3);
        let mut planes = planes.as_standard_layout().into_owned();
        planes.swap_axes(1, 3);
        assert!(!planes.is_standard_layout());
        assert_eq!(planes.into_images().unwrap()[1].load().unwrap(), second);
        assert_eq!(pixels(&second).unwrap(), array.index_axis(Axis(0), 1));
    }

    #[test]
    fn other_shapes_are_refused_at_the_door() {
        let message = Array4::<u8>::zeros((1, 3, 8, 8)).into_images().unwrap_err().to_string();
        assert_eq!(message, "images: an array of shape [1, 3, 8, 8] where [B, H, W, 3] is expected");
        let message = Array3::<u8>::zeros((8, 8, 4)).into_images().unwrap_err().to_string();
        assert_eq!(message, "images: an array of shape [8, 8, 4] where [H, W, 3] is expected");
        assert!(Array3::<u8>::zeros((0, 8, 3)).into_images().unwrap_err().to_string().contains("there are none"));
        let images = Array4::<u8>::zeros((2, 8, 8, 3));
        assert_eq!(labelled(&images, &[1_u32]).unwrap_err().to_string(), "labels: 1 for 2 images");
    }
}
