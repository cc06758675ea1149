//! What images are decoded to.

use vpt_base::{Error, Result};

/// Most pixels an image may have: where Pillow stops suspecting a decompression bomb and refuses.
pub const MAX_PIXELS: usize = 178_956_970;

/// An image of 8-bit RGB pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb8 {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, 3]`, row by row from the top left.
    pub pixels: Vec<u8>,
}

impl Rgb8 {
    /// An image of `pixels` `[height, width, 3]`.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn from_pixels(width: usize, height: usize, pixels: Vec<u8>) -> Result<Self> {
        let image = Self { width, height, pixels };
        image.check()?;
        Ok(image)
    }

    /// Whether there are as many values as width and height say.
    ///
    /// # Errors
    /// There are more or fewer, none, or more pixels than [`MAX_PIXELS`].
    pub fn check(&self) -> Result<()> {
        let Self { width, height, pixels } = self;
        let refuse = |why: String| Err(Error::invalid("image", format!("{width}x{height} pixels{why}")));
        match width.checked_mul(*height) {
            Some(0) => refuse(": there are none".to_owned()),
            Some(count @ 1..=MAX_PIXELS) if count * 3 == pixels.len() => Ok(()),
            Some(count @ 1..=MAX_PIXELS) => {
                refuse(format!(" of three colors are {} values, not {}", count * 3, pixels.len()))
            }
            _ => refuse(format!(", more than {MAX_PIXELS}")),
        }
    }

    /// A black image.
    pub fn new(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![0; width * height * 3] }
    }

    /// An image of grey levels `[height, width]`, repeated over the channels.
    pub fn from_grey(width: usize, height: usize, grey: &[u8]) -> Self {
        debug_assert_eq!(grey.len(), width * height);
        Self { width, height, pixels: grey.iter().flat_map(|&v| [v; 3]).collect() }
    }
}

/// Ink of four colours, 255 where there is most, as Pillow makes light of it.
pub(crate) fn cmyk_to_rgb([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    let light = u32::from(255 - black);
    [cyan, magenta, yellow].map(|ink| {
        // A product of shares of 255, rounded.
        let product = u32::from(ink) * light + 128;
        light.saturating_sub(((product >> 8) + product) >> 8) as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_must_be_as_many_as_the_size_says() {
        assert_eq!(Rgb8::from_pixels(2, 1, vec![7; 6]).unwrap().pixels, [7; 6]);
        for (width, height, values, why) in [
            (2, 1, 5, "2x1 pixels of three colors are 6 values, not 5"),
            (0, 4, 0, "0x4 pixels: there are none"),
            (usize::MAX, 2, 0, "more than 178956970"),
            (MAX_PIXELS, 2, 0, "more than 178956970"),
        ] {
            let message = Rgb8::from_pixels(width, height, vec![0; values]).unwrap_err().to_string();
            assert!(message.contains(why), "{message}");
        }
    }
}
