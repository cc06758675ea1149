//! What images are decoded to.

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
