//! Prompts in the pixels: a border, a patch, the whole image, or the frame around a shrunk image.
//!
//! Bahng et al., "Exploring Visual Prompts for Adapting Large-Scale Models" (2022) for pad, patch and full: learned values
//! are added to the normalised image. Frame is shrink-and-fill as in `AutoVP` and ILM-VP: the image is resized to an inner
//! size and the learned values fill the canvas around it; a sigmoid keeps them colours that a picture could have.
//!
//! Only the learned values are stored, `[3, n]` with the `n` places of one channel in reading order: 69,840 values for a
//! border of 30 at 224 pixels, not 150,528.

use std::{path::Path, sync::Arc};

use rand::{Rng, RngCore};
use serde::{Deserialize, Serialize};

use super::part::{Draw, Drawn, FileTensors, Gradients, Inputs, Kind, Part, Site, TensorShape, Work, only, take_open};
use vpt_backbone::Backbone;
use vpt_base::{
    Error, Result,
    choice::choice,
    params::{Group, Param},
    random::{self, normal},
};

/// The learned tensor's name.
const NAME: &str = "prompt.pixels";
/// Standard deviation of fresh prompt pixels, in units of the normalised image.
const STD: f32 = 0.01;

/// Where the learned pixels are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields, tag = "shape")]
pub enum PixelShape {
    /// A border of `width` pixels, added over the image.
    Pad {
        /// Width of the border.
        width: usize,
    },
    /// A square of `side` pixels, added over the image.
    Patch {
        /// Side of the square.
        side: usize,
        /// Where it lies.
        place: PatchPlace,
    },
    /// Every pixel, added over the image.
    Full,
    /// The image is shrunk to `inner` pixels in the middle; the prompt fills the rest.
    Frame {
        /// Side of the shrunk image.
        inner: usize,
    },
}

choice! {
    /// Where a prompt patch lies.
    #[derive(Default)]
    pub enum PatchPlace for "patch_place" {
        /// The upper left corner.
        #[default]
        Fixed = "fixed",
        /// Drawn for every image while training; the middle otherwise, so that a prediction does not depend on chance.
        Random = "random",
    }
}

/// The upper left corners of a batch's patches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Places {
    /// The same for every image.
    Same,
    /// `(y, x)` of each image.
    Each(Vec<(usize, usize)>),
}

/// A pixel prompt for images of one size: where its values go, and back. The values themselves live in a [`Param`].
#[derive(Debug, Clone)]
pub struct PixelPrompt {
    shape: PixelShape,
    side: usize,
    mean: [f32; 3],
    std: [f32; 3],
    /// Offset and length of each run of learned pixels in a channel of `side` x `side`, for a corner at (0, 0).
    runs: Vec<(usize, usize)>,
}

impl Kind for PixelShape {
    fn build(&self, site: &Site) -> Result<Arc<dyn Part>> {
        let prompt = PixelPrompt::on(*self, site.backbone)?;
        let tensors = [(NAME.to_owned(), vec![3, prompt.len() / 3])];
        // A mapping of labels is counted without a prompt, and learning begins there.
        let std = if site.maps_labels { 0. } else { STD };
        Ok(Arc::new(PromptPixels { prompt, std, tensors }))
    }

    fn take(&self, tensors: &mut FileTensors, path: &Path) -> Result<Vec<Param>> {
        take_open(vec![(NAME, vec![Some(3), None])], tensors, path)
    }

    fn describe(&self) -> String {
        match self {
            Self::Pad { width } => format!("a border of {width} pixels"),
            Self::Patch { side, place } => format!("a {place} square of {side} pixels"),
            Self::Full => "every pixel".to_owned(),
            Self::Frame { inner } => format!("pixels around the image of {inner} pixels"),
        }
    }

    fn add_work(&self, side: usize, patch: usize, work: &mut Work) {
        let grid = side / patch;
        let all = grid * grid;
        // Patches that lie whole inside an image without prompt.
        let inside = |border: usize| grid.saturating_sub(2 * border.div_ceil(patch)).pow(2);
        work.patches = Some(match *self {
            Self::Pad { width } => all - inside(width),
            Self::Frame { inner } => all - inside((side - inner) / 2),
            Self::Patch { side, .. } => side.div_ceil(patch).pow(2).min(all),
            Self::Full => all,
        });
    }
}

/// Prompt pixels of a backbone; the values are passed in.
#[derive(Debug)]
struct PromptPixels {
    prompt: PixelPrompt,
    /// Standard deviation of fresh values.
    std: f32,
    tensors: [TensorShape; 1],
}

impl Part for PromptPixels {
    fn tensors(&self) -> &[TensorShape] {
        &self.tensors
    }

    fn init(&self, mut rng: &mut dyn RngCore) -> Result<Vec<Param>> {
        Ok(vec![self.prompt.init(self.std, &mut rng)?])
    }

    fn draw(&self, draw: &Draw) -> Drawn {
        Drawn::Places(self.prompt.training_places(draw.seed, draw.epoch, draw.indices))
    }

    fn input_side(&self) -> Option<usize> {
        Some(self.prompt.input_side())
    }

    fn outline<'a>(&'a self, inputs: &mut Inputs<'a>) {
        inputs.want.pixels = true;
    }

    fn join<'a>(&'a self, values: &'a [Param], drawn: &Drawn, inputs: &mut Inputs<'a>) -> Result<()> {
        self.outline(inputs);
        let values = &only(values, NAME)?.values;
        inputs.images = self.prompt.apply(values, &inputs.images, drawn.places())?.into();
        Ok(())
    }

    fn take_gradient(&self, values: &[Param], drawn: &Drawn, gradients: &mut Gradients) -> Result<Vec<Vec<f32>>> {
        let gradient = gradients.of_pass.pixels.take().unwrap_or_default();
        Ok(vec![self.prompt.vjp(&only(values, NAME)?.values, &gradient, drawn.places())?])
    }
}

impl PixelPrompt {
    /// A prompt for images of `backbone`.
    ///
    /// # Errors
    /// It does not fit them.
    pub(crate) fn on(shape: PixelShape, backbone: &Backbone) -> Result<Self> {
        let preprocess = &backbone.preprocess;
        Self::new(shape, backbone.vit.image_size(), preprocess.mean, preprocess.std)
    }

    /// A prompt for square images of `side` pixels that are normalised with `mean` and `std`.
    pub fn new(shape: PixelShape, side: usize, mean: [f32; 3], std: [f32; 3]) -> Result<Self> {
        let runs = match shape {
            PixelShape::Pad { width } => {
                if width == 0 || 2 * width > side {
                    return Err(Error::setting(
                        "pad",
                        format!("{width} is not between 1 and {} (half the side)", side / 2),
                    ));
                }
                border(side, width)
            }
            PixelShape::Frame { inner } => {
                if inner == 0 || inner >= side || !(side - inner).is_multiple_of(2) {
                    return Err(Error::setting(
                        "inner_size",
                        format!("{inner} must be below the image size, {side}, by an even number of pixels"),
                    ));
                }
                border(side, (side - inner) / 2)
            }
            PixelShape::Patch { side: patch, .. } => {
                if patch == 0 || patch > side {
                    return Err(Error::setting(
                        "patch_size",
                        format!("{patch} is not between 1 and the image size, {side}"),
                    ));
                }
                (0..patch).map(|y| (y * side, patch)).collect()
            }
            PixelShape::Full => vec![(0, side * side)],
        };
        Ok(Self { shape, side, mean, std, runs })
    }

    /// Where the learned pixels are.
    pub fn shape(&self) -> PixelShape {
        self.shape
    }

    /// Side of the images [`Self::apply`] takes: the inner size for a frame, else that of the canvas.
    pub fn input_side(&self) -> usize {
        match self.shape {
            PixelShape::Frame { inner } => inner,
            _ => self.side,
        }
    }

    /// Learned values: three times the prompted pixels.
    pub fn len(&self) -> usize {
        3 * self.runs.iter().map(|(_, len)| len).sum::<usize>()
    }

    /// Whether nothing is learned; never so, as [`Self::new`] refuses empty shapes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fresh values, drawn from N(0, `std`²).
    ///
    /// The papers start from N(0, 1) on the normalised image, noise as strong as the picture, which their step size of 40
    /// soon outgrows. Steps of AdamW are bounded by the learning rate, so here training starts close to the plain image.
    pub fn init(&self, std: f32, rng: &mut impl Rng) -> Result<Param> {
        let values = (0..self.len()).map(|_| std * normal(rng)).collect();
        Param::new(NAME, &[3, self.len() / 3], values, Group::Part(0))
    }

    /// Draws the places for images `indices` of `epoch`: the same for the same seed, whatever the batches.
    pub fn training_places(&self, seed: u64, epoch: usize, indices: &[usize]) -> Places {
        match self.shape {
            PixelShape::Patch { side, place: PatchPlace::Random } => Places::Each(
                indices
                    .iter()
                    .map(|&index| {
                        let mut rng = random::stream(seed, "patch place", epoch as u64, index as u64);
                        let last = self.side - side;
                        (rng.random_range(0..=last), rng.random_range(0..=last))
                    })
                    .collect(),
            ),
            _ => Places::Same,
        }
    }

    /// Puts the prompt onto images `[B, 3, input_side, input_side]`; returns `[B, 3, side, side]`.
    pub fn apply(&self, values: &[f32], images: &[f32], places: &Places) -> Result<Vec<f32>> {
        let input = self.input_side();
        let batch = self.check(values, images, input, places)?;
        let mut out = if input == self.side { images.to_vec() } else { self.on_canvas(images, batch) };
        let plane = self.side * self.side;
        for (i, channel) in out.chunks_exact_mut(plane).enumerate() {
            let (image, c) = (i / 3, i % 3);
            self.each_run(image, c, places, |at, learned, len| {
                let target = &mut channel[at..at + len];
                let source = &values[learned..learned + len];
                if let PixelShape::Frame { .. } = self.shape {
                    for (t, &v) in target.iter_mut().zip(source) {
                        *t = (sigmoid(v) - self.mean[c]) / self.std[c];
                    }
                } else {
                    for (t, v) in target.iter_mut().zip(source) {
                        *t += v;
                    }
                }
            });
        }
        Ok(out)
    }

    /// The vector-Jacobian product of [`Self::apply`]: from the gradient of its output, `[B, 3, side, side]`, that of the
    /// learned values, summed over the images in order.
    pub fn vjp(&self, values: &[f32], gradient: &[f32], places: &Places) -> Result<Vec<f32>> {
        self.check(values, gradient, self.side, places)?;
        let plane = self.side * self.side;
        let mut out = vec![0.; values.len()];
        for (i, channel) in gradient.chunks_exact(plane).enumerate() {
            self.each_run(i / 3, i % 3, places, |at, learned, len| {
                for (o, g) in out[learned..learned + len].iter_mut().zip(&channel[at..at + len]) {
                    *o += g;
                }
            });
        }
        if let PixelShape::Frame { .. } = self.shape {
            let per_channel = values.len() / 3;
            for (i, (o, &v)) in out.iter_mut().zip(values).enumerate() {
                let s = sigmoid(v);
                *o *= s * (1. - s) / self.std[i / per_channel];
            }
        }
        Ok(out)
    }

    /// Calls `f(offset in the channel, offset in the values, length)` for each run of channel `c` of image `image`.
    fn each_run(&self, image: usize, c: usize, places: &Places, mut f: impl FnMut(usize, usize, usize)) {
        let (y, x) = match (self.shape, places) {
            (_, Places::Each(corners)) => corners[image],
            (PixelShape::Patch { side, place: PatchPlace::Random }, Places::Same) => {
                ((self.side - side) / 2, (self.side - side) / 2)
            }
            _ => (0, 0),
        };
        let mut learned = c * self.len() / 3;
        for &(at, len) in &self.runs {
            f(at + y * self.side + x, learned, len);
            learned += len;
        }
    }

    /// Images of the inner size in the middle of a zero canvas.
    fn on_canvas(&self, images: &[f32], batch: usize) -> Vec<f32> {
        let (side, inner) = (self.side, self.input_side());
        let margin = (side - inner) / 2;
        let mut out = vec![0.; batch * 3 * side * side];
        for (canvas, image) in out.chunks_exact_mut(side * side).zip(images.chunks_exact(inner * inner)) {
            for (y, row) in image.chunks_exact(inner).enumerate() {
                canvas[(margin + y) * side + margin..][..inner].copy_from_slice(row);
            }
        }
        out
    }

    /// Checks the lengths of everything that comes in; returns the batch size.
    fn check(&self, values: &[f32], images: &[f32], side: usize, places: &Places) -> Result<usize> {
        let image = 3 * side * side;
        let batch = images.len() / image;
        if values.len() != self.len() {
            return Err(Error::invalid(NAME, format!("{} values where the prompt has {}", values.len(), self.len())));
        }
        if images.len() != batch * image {
            return Err(Error::invalid(
                NAME,
                format!("{} pixel values are not whole images [3, {side}, {side}]", images.len()),
            ));
        }
        if let Places::Each(corners) = places {
            let last = match self.shape {
                PixelShape::Patch { side, .. } => self.side - side,
                _ => 0,
            };
            if corners.len() != batch || corners.iter().any(|&(y, x)| y > last || x > last) {
                return Err(Error::invalid(
                    NAME,
                    format!("the places do not fit {batch} images of side {}", self.side),
                ));
            }
        }
        Ok(batch)
    }
}

/// Runs of the border of `width` pixels of a `side` x `side` channel.
fn border(side: usize, width: usize) -> Vec<(usize, usize)> {
    let mut runs = Vec::new();
    for y in 0..side {
        if y < width || y >= side - width {
            runs.push((y * side, side));
        } else {
            runs.extend([(y * side, width), ((y + 1) * side - width, width)]);
        }
    }
    runs
}

fn sigmoid(v: f32) -> f32 {
    1. / (1. + (-v).exp())
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // these values are exact
mod tests {
    use super::*;
    use vpt_base::random::stream;

    const MEAN: [f32; 3] = [0.5, 0.4, 0.3];
    const STD: [f32; 3] = [0.2, 0.25, 0.3];

    fn prompt(shape: PixelShape, side: usize) -> PixelPrompt {
        PixelPrompt::new(shape, side, MEAN, STD).unwrap()
    }

    fn random(len: usize, index: u64) -> Vec<f32> {
        let mut rng = stream(7, "test", 0, index);
        (0..len).map(|_| normal(&mut rng)).collect()
    }

    #[test]
    fn only_the_border_is_stored() {
        assert_eq!(prompt(PixelShape::Pad { width: 30 }, 224).len(), 69_840);
        assert_eq!(prompt(PixelShape::Full, 224).len(), 150_528);
        assert_eq!(prompt(PixelShape::Patch { side: 16, place: PatchPlace::Fixed }, 224).len(), 768);
        assert_eq!(prompt(PixelShape::Frame { inner: 164 }, 224).len(), 69_840);
    }

    #[test]
    fn pad_adds_to_the_border_and_leaves_the_rest() {
        let p = prompt(PixelShape::Pad { width: 1 }, 4);
        let out = p.apply(&vec![1.; p.len()], &[0.; 48], &Places::Same).unwrap();
        #[rustfmt::skip]
        let channel = [1., 1., 1., 1.,
                       1., 0., 0., 1.,
                       1., 0., 0., 1.,
                       1., 1., 1., 1.];
        assert_eq!(out, channel.repeat(3));
    }

    #[test]
    fn frame_keeps_the_image_and_fills_with_colours_between_black_and_white() {
        let p = prompt(PixelShape::Frame { inner: 2 }, 4);
        let image: Vec<f32> = (0..12u8).map(f32::from).collect();
        let mut values = vec![0.; p.len()];
        values[0] = 50.;
        values[1] = -50.;
        let out = p.apply(&values, &image, &Places::Same).unwrap();
        assert_eq!([out[5], out[6], out[9], out[10]], [0., 1., 2., 3.]);
        assert_eq!(out[32 + 10], 11.);
        assert!((out[0] - (1. - MEAN[0]) / STD[0]).abs() < 1e-5);
        assert!((out[1] + MEAN[0] / STD[0]).abs() < 1e-5);
        assert!((out[16] - (0.5 - MEAN[1]) / STD[1]).abs() < 1e-5);
    }

    #[test]
    fn random_patches_move_while_training_and_rest_in_the_middle() {
        let p = prompt(PixelShape::Patch { side: 2, place: PatchPlace::Random }, 6);
        let places = p.training_places(3, 1, &[0, 1, 2, 3, 4, 5, 6, 7]);
        let Places::Each(corners) = &places else { panic!("places are drawn") };
        assert!(corners.iter().any(|c| c != &corners[0]));
        assert_eq!(p.training_places(3, 1, &[5]), Places::Each(vec![corners[5]]));
        let out = p.apply(&[1.; 12], &[0.; 108], &Places::Same).unwrap();
        let lit: Vec<usize> = (0..36).filter(|&i| out[i] == 1.).collect();
        assert_eq!(lit, [14, 15, 20, 21]);
        let out = p.apply(&[1.; 12], &[0.; 108], &Places::Each(vec![(0, 4)])).unwrap();
        assert_eq!((out[4], out[5], out[10], out[11], out.iter().sum::<f32>()), (1., 1., 1., 1., 12.));
    }

    #[test]
    fn gradients_equal_finite_differences() {
        let shapes = [
            PixelShape::Pad { width: 2 },
            PixelShape::Patch { side: 3, place: PatchPlace::Fixed },
            PixelShape::Patch { side: 3, place: PatchPlace::Random },
            PixelShape::Full,
            PixelShape::Frame { inner: 4 },
        ];
        for shape in shapes {
            let p = prompt(shape, 8);
            let images = random(2 * 3 * p.input_side() * p.input_side(), 1);
            let values = random(p.len(), 2);
            // A loss that weighs every output pixel differently: its gradient is the weights.
            let weights = random(2 * 3 * 64, 3);
            let places = p.training_places(5, 0, &[0, 1]);
            let loss = |values: &[f32]| -> f64 {
                let out = p.apply(values, &images, &places).unwrap();
                out.iter().zip(&weights).map(|(o, w)| f64::from(*o) * f64::from(*w)).sum()
            };
            let gradient = p.vjp(&values, &weights, &places).unwrap();
            for i in 0..values.len() {
                let shifted = |by: f32| {
                    let mut v = values.clone();
                    v[i] += by;
                    loss(&v)
                };
                let slope = (shifted(1e-2) - shifted(-1e-2)) / 2e-2;
                assert!((slope - f64::from(gradient[i])).abs() < 2e-3, "{shape:?} {i}: {slope} {}", gradient[i]);
            }
        }
    }

    #[test]
    fn sizes_that_do_not_fit_name_the_flag() {
        let fails = |shape| PixelPrompt::new(shape, 64, MEAN, STD).unwrap_err().to_string();
        assert!(fails(PixelShape::Pad { width: 0 }).starts_with("pad: "));
        assert!(fails(PixelShape::Pad { width: 33 }).contains("between 1 and 32"));
        assert!(fails(PixelShape::Patch { side: 65, place: PatchPlace::Fixed }).starts_with("patch_size: "));
        assert!(fails(PixelShape::Frame { inner: 64 }).starts_with("inner_size: "));
        assert!(fails(PixelShape::Frame { inner: 47 }).contains("even"));
        let p = prompt(PixelShape::Full, 4);
        assert!(p.apply(&[0.; 47], &[0.; 48], &Places::Same).is_err());
        assert!(p.apply(&[0.; 48], &[0.; 50], &Places::Same).is_err());
    }
}
