//! From decoded images to what a backbone expects, as its `preprocessor_config.json` says.
//!
//! Equal to transformers' image processors (5.23, Pillow form): resize, centre crop (padded with black where the image is
//! smaller), rescale, normalise. Up to the last two steps everything is 8-bit and equal bit for bit; only `DINOv3`'s processor
//! rescales first and resizes values that it does not round.

use serde::{Deserialize, Serialize};

use crate::decode::{MAX_PIXELS, Rgb8};
use crate::resize::{Filter, Window, overlap, paste, resize, resize_planes, resize_window};
use vpt_base::Error;

const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Longest side that may be asked for, in pixels. No published backbone comes near it.
pub const MAX_SIDE: usize = 16_384;

/// The size to resize to, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Size {
    /// The shorter side becomes this long and the longer follows.
    ShortestEdge(usize),
    /// The longer side becomes this long and the shorter follows.
    LongestEdge(usize),
    /// Both sides are given; the image is stretched.
    Exact {
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
    },
}

impl Size {
    /// `(width, height)` of an image of `width` x `height` after resizing. A longer side that follows is rounded down, a shorter
    /// one to the nearest number.
    pub fn of(self, width: usize, height: usize) -> (usize, usize) {
        match self {
            Self::Exact { width, height } => (width, height),
            Self::ShortestEdge(short) => {
                let long = ((short * width.max(height)) as f64 / width.min(height) as f64) as usize;
                if width <= height { (short, long) } else { (long, short) }
            }
            Self::LongestEdge(long) => {
                // As `ResizeKeepRatio` of timm and open_clip, with the order of its operations.
                let ratio = width.max(height) as f64 / long as f64;
                let side = |side: usize| ((side as f64 / ratio).round_ties_even() as usize).max(1);
                (side(width), side(height))
            }
        }
    }
}

/// Where a crop begins that leaves an odd number of pixels over, or exceeds the image by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CropRounding {
    /// Rounded down, as by transformers.
    #[default]
    Down,
    /// Half a pixel goes to the even number, and of a border the smaller half comes first: torchvision's `CenterCrop`, which
    /// open_clip and timm take.
    Even,
}

impl CropRounding {
    /// Where in `size` pixels a crop of `crop` begins; negative where it reaches outside.
    fn begin(self, size: usize, crop: usize) -> isize {
        let over = size as isize - crop as isize;
        match self {
            Self::Down => over.div_euclid(2),
            Self::Even if over < 0 => over / 2,
            Self::Even => (over as f64 / 2.).round_ties_even() as isize,
        }
    }

    /// Whether it is what files without the field mean.
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_default(&self) -> bool {
        *self == Self::Down
    }
}

/// Preprocessing of an image: resize, crop, rescale, normalize.
///
/// As JSON this is part of a task file; what is read back is checked like a configuration is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Preprocess {
    /// The size to resize to.
    pub resize: Option<Size>,
    /// How to resize.
    pub filter: Filter,
    /// `(width, height)` of the part kept from the middle.
    pub crop: Option<(usize, usize)>,
    /// Where the middle is.
    #[serde(default, skip_serializing_if = "CropRounding::is_default")]
    pub crop_rounding: CropRounding,
    /// The color of what a crop takes from outside of the image.
    #[serde(default, skip_serializing_if = "is_black")]
    pub border: [u8; 3],
    /// Whether resizing leaves the values as they come, as `DINOv3`'s processor, instead of rounding them to 8 bits.
    #[serde(default, skip_serializing_if = "is_false")]
    pub unrounded: bool,
    /// Factor of 8-bit values.
    pub rescale: f64,
    /// Taken off each channel after rescaling.
    pub mean: [f32; 3],
    /// Standard deviation that each channel is then divided by.
    pub std: [f32; 3],
}

#[derive(Deserialize)]
struct Unchecked {
    resize: Option<Size>,
    filter: Filter,
    crop: Option<(usize, usize)>,
    #[serde(default)]
    crop_rounding: CropRounding,
    #[serde(default)]
    border: [u8; 3],
    #[serde(default)]
    unrounded: bool,
    rescale: f64,
    mean: [f32; 3],
    std: [f32; 3],
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_black(color: &[u8; 3]) -> bool {
    *color == [0; 3]
}

impl TryFrom<Unchecked> for Preprocess {
    type Error = String;

    fn try_from(u: Unchecked) -> Result<Self, String> {
        let Unchecked { resize, filter, crop, crop_rounding, border, unrounded, rescale, mean, std } = u;
        let made = Self { resize, filter, crop, crop_rounding, border, unrounded, rescale, mean, std };
        made.check().map_err(|(field, message)| format!("{field}: {message}"))?;
        Ok(made)
    }
}

impl Preprocess {
    /// Preprocessing of OpenAI's CLIP at `size` x `size` pixels.
    pub fn clip(size: usize) -> Self {
        Self {
            resize: Some(Size::ShortestEdge(size)),
            filter: Filter::Bicubic,
            crop: Some((size, size)),
            crop_rounding: CropRounding::Down,
            border: [0; 3],
            unrounded: false,
            rescale: 1.0 / 255.0,
            mean: CLIP_MEAN,
            std: CLIP_STD,
        }
    }

    /// SigLIP's preprocessing for images of `size` pixels: no regard for their aspect ratio, values from -1 to 1.
    pub fn siglip(size: usize) -> Self {
        let resize = Some(Size::Exact { width: size, height: size });
        Self { resize, crop: None, mean: [0.5; 3], std: [0.5; 3], ..Self::clip(size) }
    }

    /// That of SigLIP 2's NaFlex models, for square images of `size` pixels.
    pub fn siglip_naflex(size: usize) -> Self {
        Self { filter: Filter::Bilinear, ..Self::siglip(size) }
    }

    /// `(width, height)` of what [`apply`](Self::apply) gives, if it is the same for all images.
    pub fn output_size(&self) -> Option<(usize, usize)> {
        match (self.crop, self.resize) {
            (Some(size), _) => Some(size),
            (None, Some(Size::Exact { width, height })) => Some((width, height)),
            (None, _) => None,
        }
    }

    /// The same for images of `n` x `n` pixels: the resize keeps its proportion to the crop.
    ///
    /// # Errors
    /// `n` is 0 or above [`MAX_SIDE`].
    pub fn for_image_size(&self, n: usize) -> vpt_base::Result<Self> {
        if n == 0 || n > MAX_SIDE {
            return Err(Error::invalid("image size", format!("{n} is not between 1 and {MAX_SIDE}")));
        }
        let scale = |side: usize, now: usize| ((side * n + now / 2) / now).clamp(1, MAX_SIDE);
        let resize = match (self.resize, self.crop) {
            (None, Some(_)) => None,
            (Some(Size::ShortestEdge(side)), Some((w, h))) => Some(Size::ShortestEdge(scale(side, w.min(h)))),
            (Some(Size::LongestEdge(side)), Some((w, h))) => Some(Size::LongestEdge(scale(side, w.max(h)))),
            (Some(Size::Exact { width, height }), Some((w, h))) => {
                Some(Size::Exact { width: scale(width, w), height: scale(height, h) })
            }
            // Nothing else makes the image square.
            (_, None) => Some(Size::Exact { width: n, height: n }),
        };
        Ok(Self { resize, crop: self.crop.map(|_| (n, n)), ..self.clone() })
    }

    /// `image` resized and cropped, still in 8 bits.
    ///
    /// # Errors
    /// As [`resized`](Self::resized).
    pub fn pixels(&self, image: &Rgb8) -> vpt_base::Result<Rgb8> {
        let (width, height) = self.resized(image)?;
        let Some((crop_width, crop_height)) = self.crop else {
            return Ok(resize(image, width, height, self.filter));
        };
        let begin = |size, crop| self.crop_rounding.begin(size, crop);
        Ok(self.crop_at(image, (width, height), (begin(width, crop_width), begin(height, crop_height))))
    }

    /// `(width, height)` of `image` after the resize and before the crop, of which only what the crop keeps is ever made.
    ///
    /// # Errors
    /// `image` is so long and thin that this would be more than [`MAX_PIXELS`], and nothing is cropped.
    pub fn resized(&self, image: &Rgb8) -> vpt_base::Result<(usize, usize)> {
        let (width, height) =
            self.resize.map_or((image.width, image.height), |size| size.of(image.width, image.height));
        if self.crop.is_none() && width.saturating_mul(height) > MAX_PIXELS {
            let message = format!("{}x{} pixels would be resized to {width}x{height}", image.width, image.height);
            return Err(Error::invalid("image", message));
        }
        Ok((width, height))
    }

    /// Where what is kept of `image` lies in it: left, top, width and height in its pixels. It reaches outside where the crop does.
    ///
    /// # Errors
    /// As [`resized`](Self::resized).
    pub fn kept(&self, image: &Rgb8) -> vpt_base::Result<[f64; 4]> {
        let (width, height) = self.resized(image)?;
        let (crop_width, crop_height) = self.crop.unwrap_or((width, height));
        let along = |size: usize, resized: usize, crop: usize| {
            let begin = self.crop.map_or(0, |_| self.crop_rounding.begin(resized, crop));
            let scale = size as f64 / resized as f64;
            [begin as f64 * scale, crop as f64 * scale]
        };
        let [left, width] = along(image.width, width, crop_width);
        let [top, height] = along(image.height, height, crop_height);
        Ok([left, top, width, height])
    }

    /// `image` resized to `size` and of that the crop from column and row `begin` on, [`border`](Self::border) where it reaches outside.
    pub fn crop_at(&self, image: &Rgb8, size: (usize, usize), begin: (isize, isize)) -> Rgb8 {
        let (crop_width, crop_height) = self.crop.unwrap_or(size);
        let (x, left) = overlap(begin.0, crop_width, size.0);
        let (y, top) = overlap(begin.1, crop_height, size.1);
        let part = resize_window(image, size.0, size.1, self.filter, &Window { x, y });
        paste(part, left, top, (crop_width, crop_height), self.border)
    }

    /// Rescales and normalises `pixels`, `[H, W, 3]` in 8 bits, into `out`, `[3, H, W]`. Lengths must agree.
    pub fn normalise_into(&self, pixels: &[u8], out: &mut [f32]) {
        debug_assert_eq!(pixels.len(), out.len());
        let plane = pixels.len() / 3;
        for c in 0..3 {
            let mut table = [0.0_f32; 256];
            for (value, entry) in table.iter_mut().enumerate() {
                *entry = ((value as f64 * self.rescale) as f32 - self.mean[c]) / self.std[c];
            }
            for (pixel, out) in pixels.chunks_exact(3).zip(&mut out[c * plane..(c + 1) * plane]) {
                *out = table[usize::from(pixel[c])];
            }
        }
    }

    /// All of it: `[3, H, W]`, normalised.
    ///
    /// # Errors
    /// As [`pixels`](Self::pixels).
    pub fn apply(&self, image: &Rgb8) -> vpt_base::Result<Vec<f32>> {
        if self.unrounded {
            let (width, height) = self.resized(image)?;
            let mut out = resize_planes(image, self.rescale, (width, height), self.filter);
            for ((plane, mean), std) in out.chunks_exact_mut((width * height).max(1)).zip(self.mean).zip(self.std) {
                for value in plane {
                    *value = (*value - mean) / std;
                }
            }
            return Ok(out);
        }
        let pixels = self.pixels(image)?;
        let mut out = vec![0.0; pixels.pixels.len()];
        self.normalise_into(&pixels.pixels, &mut out);
        Ok(out)
    }

    /// Whether every value makes sense; the error is the field and what is wrong.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let side = |field, n: usize| match n {
            1..=MAX_SIDE => Ok(()),
            _ => Err((field, format!("{n} is not between 1 and {MAX_SIDE}"))),
        };
        match self.resize {
            Some(Size::ShortestEdge(n) | Size::LongestEdge(n)) => side("size", n)?,
            Some(Size::Exact { width, height }) => [width, height].into_iter().try_for_each(|n| side("size", n))?,
            None => {}
        }
        if self.unrounded && self.crop.is_some() {
            return Err(("do_center_crop", "is not supported where resizing does not round".into()));
        }
        if self.unrounded && !matches!(self.filter, Filter::Bilinear | Filter::Bicubic) {
            return Err(("resample", format!("{:?} is not supported where resizing does not round", self.filter)));
        }
        if let Some((width, height)) = self.crop {
            [width, height].into_iter().try_for_each(|n| side("crop_size", n))?;
        }
        if !(self.rescale.is_finite() && self.rescale > 0.0 && self.rescale <= 1e6) {
            return Err(("rescale_factor", format!("{} is not between 0 and 1000000", self.rescale)));
        }
        if let Some(mean) = self.mean.iter().find(|m| !(-1e6..=1e6).contains(*m)) {
            return Err(("image_mean", format!("{mean} is not between -1000000 and 1000000")));
        }
        if let Some(std) = self.std.iter().find(|s| !(1e-6..=1e6).contains(*s)) {
            return Err(("image_std", format!("{std} is not between 0.000001 and 1000000")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::preprocess::*;

    #[test]
    #[allow(clippy::float_cmp)] // these values are exact
    fn what_is_kept_lies_in_the_middle_and_may_reach_outside() {
        let image = Rgb8::new(640, 320);
        assert_eq!(Preprocess::clip(160).kept(&image).unwrap(), [160., 0., 320., 320.]);
        assert_eq!(Preprocess::siglip(160).kept(&image).unwrap(), [0., 0., 640., 320.]);
        let padded = Preprocess { resize: None, crop: Some((660, 400)), ..Preprocess::clip(1) };
        assert_eq!(padded.kept(&image).unwrap(), [-10., -40., 660., 400.]);
    }

    #[test]
    fn the_longer_side_is_rounded_down() {
        assert_eq!(Size::ShortestEdge(224).of(640, 481), (298, 224));
        assert_eq!(Size::ShortestEdge(224).of(481, 640), (224, 298));
        assert_eq!(Size::ShortestEdge(224).of(100, 100), (224, 224));
        assert_eq!(Size::Exact { width: 3, height: 4 }.of(640, 481), (3, 4));
        // By timm's ResizeKeepRatio; a half goes to the even number.
        assert_eq!(Size::LongestEdge(224).of(640, 481), (224, 168));
        assert_eq!(Size::LongestEdge(6).of(12, 5), (6, 2));
        assert_eq!(Size::LongestEdge(6).of(7, 12), (4, 6));
        assert_eq!(Size::LongestEdge(8).of(1000, 1), (8, 1));
    }

    // Of torchvision 0.29: `int(round((size - crop) / 2.0))`, and `(crop - size) // 2` pixels of border.
    #[test]
    fn a_crop_begins_where_its_program_says() {
        let begins = |rounding: CropRounding| [8, 9, 10, 11, 13, 15, 7, 5].map(|size| rounding.begin(size, 8));
        assert_eq!(begins(CropRounding::Down), [0, 0, 1, 1, 2, 3, -1, -2]);
        assert_eq!(begins(CropRounding::Even), [0, 0, 1, 2, 2, 4, 0, -1]);
        let json = serde_json::to_value(Preprocess::clip(8)).unwrap();
        assert!(json.get("crop_rounding").is_none());
        let even = Preprocess { crop_rounding: CropRounding::Even, ..Preprocess::clip(8) };
        assert_eq!(serde_json::from_value::<Preprocess>(serde_json::to_value(&even).unwrap()).unwrap(), even);
    }

    #[test]
    fn another_image_size_scales_resize_and_crop() {
        let deit = Preprocess { resize: Some(Size::Exact { width: 256, height: 256 }), ..Preprocess::clip(224) };
        let small = deit.for_image_size(112).unwrap();
        assert_eq!(small.resize, Some(Size::Exact { width: 128, height: 128 }));
        assert_eq!(small.crop, Some((112, 112)));
        assert_eq!(Preprocess::clip(224).for_image_size(64).unwrap(), Preprocess::clip(64));
        let stretched = Preprocess { crop: None, ..deit };
        assert_eq!(stretched.for_image_size(48).unwrap().output_size(), Some((48, 48)));
        assert!(deit_error(0) && deit_error(MAX_SIDE + 1));
    }

    fn deit_error(n: usize) -> bool {
        Preprocess::clip(224).for_image_size(n).is_err()
    }

    #[test]
    fn json_round_trips_and_is_checked() {
        let clip = Preprocess::clip(224);
        let json = serde_json::to_string(&clip).unwrap();
        assert_eq!(serde_json::from_str::<Preprocess>(&json).unwrap(), clip);
        for (from, to, field) in [
            ("\"shortest_edge\":224", "\"shortest_edge\":0", "size"),
            ("[224,224]", "[224,99999999]", "crop_size"),
            ("0.00392156862745098", "-1.0", "rescale_factor"),
            ("0.26862955", "0.0", "image_std"),
        ] {
            let bad = json.replace(from, to);
            assert_ne!(bad, json);
            let message = serde_json::from_str::<Preprocess>(&bad).unwrap_err().to_string();
            assert!(message.starts_with(field), "{message}");
        }
    }

    #[test]
    fn an_image_smaller_than_the_crop_gets_a_black_border() {
        let p = Preprocess { resize: None, crop: Some((4, 5)), ..Preprocess::clip(1) };
        let white = Rgb8 { width: 3, height: 2, pixels: vec![255; 18] };
        let out = p.pixels(&white).unwrap();
        let grey: Vec<u8> = out.pixels.chunks_exact(3).map(|p| p[0]).collect();
        let row = [0, 255, 255, 255];
        assert_eq!(grey, [[0; 4], [0; 4], row, row, [0; 4]].concat());
    }

    // Pillow's `resize((672000, 224), BICUBIC)` and `crop` of the middle, which is what this makes of the middle alone.
    #[test]
    fn of_a_thin_image_only_what_the_crop_keeps_is_made() {
        let stripes = |width: usize| (0..width).flat_map(|x| [(x % 7 * 40) as u8; 3]).collect::<Vec<u8>>();
        let thin = Rgb8 { width: 3000, height: 1, pixels: stripes(3000) };
        let clip = Preprocess::clip(224);
        let made = clip.pixels(&thin).unwrap();
        // The neighbourhood of the middle alone, with the crop in its middle, is the same picture.
        let near = Rgb8 { width: 14, height: 1, pixels: thin.pixels[3 * 1493..3 * 1507].to_vec() };
        assert_eq!(made, clip.pixels(&near).unwrap());
        for (width, height) in [(60_000, 1), (1, 60_000), (1 << 22, 2)] {
            assert_eq!(clip.pixels(&Rgb8::new(width, height)).unwrap(), Rgb8::new(224, 224));
        }
        let whole = Preprocess { resize: Some(Size::ShortestEdge(224)), crop: None, ..clip };
        assert!(whole.apply(&Rgb8::new(60_000, 1)).unwrap_err().to_string().contains("60000x1"));
    }

    #[test]
    fn values_are_rescaled_and_normalised_by_channel() {
        let p =
            Preprocess { resize: None, crop: None, mean: [0.0, 0.5, 1.0], std: [1.0, 0.5, 2.0], ..Preprocess::clip(1) };
        let image = Rgb8 { width: 2, height: 1, pixels: vec![0, 255, 255, 255, 0, 0] };
        assert_eq!(p.apply(&image).unwrap(), [0.0, 1.0, 1.0, -1.0, 0.0, -0.5]);
    }
}
