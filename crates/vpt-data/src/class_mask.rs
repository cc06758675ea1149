//! The class of each pixel, as data sets of masks are read and written.

/// The class of each pixel of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassMask {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width]`, row by row; [`IGNORED`](crate::masks::IGNORED) where nothing is learned or measured.
    pub classes: Vec<u16>,
}
