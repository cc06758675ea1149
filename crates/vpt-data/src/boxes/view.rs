//! From an image with boxes to the square input of a network, and from there back.
//!
//! Whatever is done to an image, each of its pixels that is still seen lies at `original * scale + offset`: [`View`] is that
//! map. Parts of an image are cut out and placed at whole pixels, so the map is exact, and boxes follow it in real numbers.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{Object, Rect};
use vpt_base::{Error, Result};
use vpt_image::decode::Rgb8;
use vpt_image::preprocess::{MAX_SIDE, Preprocess};
use vpt_image::resize::{Filter, Window, crop, resize};

/// An object of which less than this share of its area is still seen is neither learned nor taken for background.
pub const MIN_SEEN: f64 = 0.2;

vpt_base::choice::choice! {
    #[derive(Default)]
    /// How an image that is not square becomes a square input.
    pub enum Fit for "fit" {
        /// Both sides take the input's length: nothing is lost, and shapes change.
        #[default]
        Stretch = "stretch",
        /// The longer side takes the input's length, the image lies in the middle, and the rest is padding.
        Letterbox = "letterbox",
    }
}

/// What a network is given: a square of pixels and the grid of tokens that it makes of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BoxInput {
    /// Filter and normalisation of the backbone; its sizes are not used.
    pub preprocess: Preprocess,
    /// Side of the input in pixels, `S`.
    pub side: usize,
    /// Tokens in a row and in a column, `G`.
    pub grid: usize,
    /// How images become square.
    pub fit: Fit,
}

/// Where the pixels of an image lie in the input, as fractions of the input's side: `original * scale + offset`. A negative
/// `scale_x` mirrors.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// Input sides to an original pixel, along a row.
    pub scale_x: f64,
    /// Input sides to an original pixel, along a column.
    pub scale_y: f64,
    /// Where the original's column 0 begins.
    pub offset_x: f64,
    /// Where the original's row 0 begins.
    pub offset_y: f64,
    /// Pixels in a row of the original.
    pub width: usize,
    /// Rows of the original.
    pub height: usize,
}

/// An object in the input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Centre, width and height `[cx, cy, w, h]` of what is seen of it, as fractions of the input's side; inside 0..1.
    pub bbox: [f32; 4],
    /// Index into the data set's categories.
    pub category: usize,
    /// Many objects in one rectangle.
    pub crowd: bool,
    /// Not to be learned, and no background either: a crowd, or an object of which less than [`MIN_SEEN`] is seen.
    pub ignore: bool,
}

/// An image, or several, as the network's input.
#[derive(Clone, Debug, PartialEq)]
pub struct Viewed {
    /// `S` x `S` pixels in 8 bits; padding has the mean colour.
    pub pixels: Rgb8,
    /// The objects, in the order of the annotations. One that is less than a pixel wide or high here is left out.
    pub targets: Vec<Target>,
    /// Where the image lies; in a mosaic, the one that it was made for.
    pub view: View,
    /// Where there is image; all else is padding. They do not overlap.
    seen: Vec<Window>,
}

/// Which part of an image is seen, and where in the input.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Placement {
    /// In pixels of the image.
    pub(super) source: Window,
    /// In pixels of the input.
    pub(super) target: Window,
}

impl View {
    /// `rect`, in original pixels, as fractions of the input's side.
    pub fn to_input(&self, rect: Rect) -> Rect {
        let (x, width) = along(self.scale_x, self.offset_x, rect.x, rect.width);
        let (y, height) = along(self.scale_y, self.offset_y, rect.y, rect.height);
        Rect { x, y, width, height }
    }

    /// The box `[cx, cy, w, h]`, in fractions of the input's side, in original pixels, cut off at the edges of the original.
    pub fn to_original(&self, bbox: [f32; 4]) -> Rect {
        let [cx, cy, w, h] = bbox.map(f64::from);
        let back = |scale: f64, offset: f64, centre: f64, length: f64, size: usize| {
            // In this order what is not a number becomes 0, here and below.
            let length = length.max(0.);
            let (start, length) = along(1. / scale, -offset / scale, centre - length / 2., length);
            let inside = |at: f64| at.max(0.).min(size as f64);
            (inside(start), inside(start + length) - inside(start))
        };
        let (x, width) = back(self.scale_x, self.offset_x, cx, w, self.width);
        let (y, height) = back(self.scale_y, self.offset_y, cy, h, self.height);
        Rect { x, y, width, height }
    }

    /// Whether left and right are exchanged.
    pub fn is_mirrored(&self) -> bool {
        self.scale_x < 0.
    }
}

/// Start and length of an interval under `x * scale + offset`.
fn along(scale: f64, offset: f64, start: f64, length: f64) -> (f64, f64) {
    let first = if scale < 0. { start + length } else { start };
    (first * scale + offset, length * scale.abs())
}

impl BoxInput {
    /// # Errors
    /// The side or the grid is 0, the side is above [`MAX_SIDE`], or there are more tokens than pixels.
    pub fn check(&self) -> Result<()> {
        if self.side == 0 || self.side > MAX_SIDE {
            return Err(Error::invalid("image size", format!("{} is not between 1 and {MAX_SIDE}", self.side)));
        }
        if self.grid == 0 || self.grid > self.side {
            let message = format!("{0}x{0} tokens of {1}x{1} pixels", self.grid, self.side);
            return Err(Error::invalid("grid", message));
        }
        Ok(())
    }

    /// `image` with `objects` as evaluation sees it: whole.
    pub fn view(&self, image: &Rgb8, objects: &[Object]) -> Viewed {
        let placement = self.whole(image.width, image.height);
        let mut viewed = self.canvas(placement.view(self.side, image.width, image.height));
        viewed.place(image, objects, &placement, self.preprocess.filter);
        viewed
    }

    /// [`view`](Self::view) of an image of `width` x `height` whose pixels in it are known.
    pub(super) fn view_again(&self, pixels: &[u8], width: usize, height: usize, objects: &[Object]) -> Viewed {
        let placement = self.whole(width, height);
        let pixels = Rgb8 { width: self.side, height: self.side, pixels: pixels.to_vec() };
        let view = placement.view(self.side, width, height);
        let mut viewed = Viewed { pixels, targets: Vec::new(), view, seen: Vec::new() };
        viewed.record(width, height, objects, &placement);
        viewed
    }

    /// Nothing but padding.
    pub(super) fn canvas(&self, view: View) -> Viewed {
        let Preprocess { mean, rescale, .. } = self.preprocess;
        let colour = mean.map(|m| (f64::from(m) / rescale).round() as u8);
        let pixels = Rgb8 { width: self.side, height: self.side, pixels: colour.repeat(self.side * self.side) };
        Viewed { pixels, targets: Vec::new(), view, seen: Vec::new() }
    }

    /// The whole of an image of `width` x `height`.
    pub(super) fn whole(&self, width: usize, height: usize) -> Placement {
        let side = 0..self.side;
        let part = Window { x: 0..width, y: 0..height };
        place(&part, self.size(width, height), &Window { x: side.clone(), y: side }, ([0.; 2], [0.5; 2]))
    }

    /// Width and height in the input, in pixels, of a part of `width` x `height` that is all it shows.
    pub(super) fn size(&self, width: usize, height: usize) -> (f64, f64) {
        let side = self.side as f64;
        let longer = width.max(height) as f64;
        match self.fit {
            Fit::Stretch => (side, side),
            Fit::Letterbox => (width as f64 / longer * side, height as f64 / longer * side),
        }
    }

    /// `viewed` as the network takes it, `[3, S, S]`: normalised, with 0 for padding.
    pub fn normalised(&self, viewed: &Viewed) -> Vec<f32> {
        let mut out = vec![0.; viewed.pixels.pixels.len()];
        self.preprocess.normalise_into(&viewed.pixels.pixels, &mut out);
        if viewed.is_padded() {
            let plane = self.side * self.side;
            for at in (0..plane).filter(|at| !viewed.is_seen(at % self.side, at / self.side)) {
                for channel in 0..3 {
                    out[channel * plane + at] = 0.;
                }
            }
        }
        out
    }
}

/// `part` of an image, which would take `size` pixels, in the `cell` of an input. Where it is longer than the cell, a piece
/// of it is taken, and where it is shorter it is padded; `at` says which piece, and where in the cell, each from 0 (left,
/// top) to 1.
pub(super) fn place(part: &Window, size: (f64, f64), cell: &Window, at: ([f64; 2], [f64; 2])) -> Placement {
    let along = |part: &Range<usize>, size: f64, cell: &Range<usize>, piece: f64, gap: f64| {
        let within = |range: &Range<usize>, length: f64, at: f64| {
            let length = (length.round() as usize).clamp(1, range.len().max(1));
            let start = range.start + (at * (range.len() - length) as f64) as usize;
            start..start + length
        };
        let room = cell.len() as f64;
        if size > room {
            (within(part, part.len() as f64 * room / size, piece), cell.clone())
        } else {
            (part.clone(), within(cell, size, gap))
        }
    };
    let (piece, gap) = at;
    let (from_x, to_x) = along(&part.x, size.0, &cell.x, piece[0], gap[0]);
    let (from_y, to_y) = along(&part.y, size.1, &cell.y, piece[1], gap[1]);
    Placement { source: Window { x: from_x, y: from_y }, target: Window { x: to_x, y: to_y } }
}

impl Placement {
    /// The map of an image of `width` x `height` to an input of `side` pixels.
    pub(super) fn view(&self, side: usize, width: usize, height: usize) -> View {
        let along = |source: &Range<usize>, target: &Range<usize>| {
            let scale = target.len() as f64 / source.len() as f64;
            (scale / side as f64, (target.start as f64 - source.start as f64 * scale) / side as f64)
        };
        let (scale_x, offset_x) = along(&self.source.x, &self.target.x);
        let (scale_y, offset_y) = along(&self.source.y, &self.target.y);
        View { scale_x, scale_y, offset_x, offset_y, width, height }
    }
}

impl Viewed {
    /// Draws a part of `image` and adds what is seen of `objects`.
    pub(super) fn place(&mut self, image: &Rgb8, objects: &[Object], placement: &Placement, filter: Filter) {
        let Placement { source, target } = placement;
        let whole = (source.x.len(), source.y.len()) == (image.width, image.height);
        let part;
        let part = if whole {
            image
        } else {
            part = crop(image, source.x.start as isize, source.y.start as isize, source.x.len(), source.y.len());
            &part
        };
        let drawn = resize(part, target.x.len(), target.y.len(), filter);
        for (row, y) in drawn.pixels.chunks_exact(drawn.width * 3).zip(target.y.clone()) {
            let at = (y * self.pixels.width + target.x.start) * 3;
            self.pixels.pixels[at..at + row.len()].copy_from_slice(row);
        }
        self.record(image.width, image.height, objects, placement);
    }

    /// Adds what is seen of `objects` of an image of `width` x `height`.
    fn record(&mut self, width: usize, height: usize, objects: &[Object], placement: &Placement) {
        let side = self.pixels.width;
        let view = placement.view(side, width, height);
        let fraction = |at: usize| at as f64 / side as f64;
        let (x, y) = (&placement.target.x, &placement.target.y);
        let frame =
            Rect { x: fraction(x.start), y: fraction(y.start), width: fraction(x.len()), height: fraction(y.len()) };
        let image = Rect { x: 0., y: 0., width: width as f64, height: height as f64 };
        let is_rectangle = |Rect { x, y, width, height }: Rect| [x, y, width, height].iter().all(|v| v.is_finite());
        self.targets.extend(objects.iter().filter(|o| is_rectangle(o.rect)).filter_map(|object| {
            let whole = view.to_input(common(object.rect, image));
            let rect = common(whole, frame);
            let enough = rect.width * side as f64 >= 1. && rect.height * side as f64 >= 1.;
            let bbox = [rect.x + rect.width / 2., rect.y + rect.height / 2., rect.width, rect.height];
            enough.then(|| Target {
                bbox: inside(bbox.map(|v| v as f32)),
                category: object.category,
                crowd: object.crowd,
                ignore: object.crowd || rect.area() < MIN_SEEN * whole.area(),
            })
        }));
        self.seen.push(placement.target.clone());
    }

    /// Exchanges left and right.
    pub fn mirror(&mut self) {
        let side = self.pixels.width;
        for row in self.pixels.pixels.chunks_exact_mut(side * 3) {
            let (pixels, _) = row.as_chunks_mut::<3>();
            pixels.reverse();
        }
        for Target { bbox, .. } in &mut self.targets {
            let [cx, cy, w, h] = *bbox;
            *bbox = inside([1. - cx, cy, w, h]);
        }
        for Window { x, .. } in &mut self.seen {
            *x = side - x.end..side - x.start;
        }
        self.view.scale_x = -self.view.scale_x;
        self.view.offset_x = 1. - self.view.offset_x;
    }

    /// For each of `grid` x `grid` tokens, row by row, whether its centre lies on an image; `None` if all do.
    pub fn valid_tokens(&self, grid: usize) -> Option<Vec<bool>> {
        let centre = |token: usize| (2 * token + 1) * self.pixels.width / (2 * grid);
        let valid = (0..grid * grid).map(|token| self.is_seen(centre(token % grid), centre(token / grid)));
        self.is_padded().then(|| valid.collect()).filter(|valid: &Vec<bool>| valid.contains(&false))
    }

    fn is_padded(&self) -> bool {
        self.seen.iter().map(|w| w.x.len() * w.y.len()).sum::<usize>() < self.pixels.width * self.pixels.height
    }

    fn is_seen(&self, x: usize, y: usize) -> bool {
        self.seen.iter().any(|w| w.x.contains(&x) && w.y.contains(&y))
    }
}

/// What `a` and `b` have in common; of negative width or height if that is nothing.
fn common(a: Rect, b: Rect) -> Rect {
    let (x, y) = (a.x.max(b.x), a.y.max(b.y));
    Rect { x, y, width: a.right().min(b.right()) - x, height: a.bottom().min(b.bottom()) - y }
}

/// The box without the little by which rounding carries it over an edge.
fn inside([cx, cy, w, h]: [f32; 4]) -> [f32; 4] {
    let length = |centre: f32, length: f32| length.min(2. * centre).min(2. * (1. - centre));
    [cx, cy, length(cx, w), length(cy, h)]
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // equal bits are meant
pub(super) mod tests {
    use super::*;

    /// Full and empty channels, so that a colour is told from grey by the side of the middle that each lies on.
    pub(in super::super) const COLOURS: [[u8; 3]; 5] =
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255]];

    /// A grey image with a rectangle, the object, in the colour of its category.
    pub(in super::super) fn painted(size: [usize; 2], rect: [usize; 4], category: usize) -> (Rgb8, Object) {
        let [width, height] = size;
        let [x, y, w, h] = rect;
        let mut image = Rgb8 { width, height, pixels: vec![128; width * height * 3] };
        for row in y..y + h {
            let at = (row * width + x) * 3;
            image.pixels[at..at + w * 3].copy_from_slice(&COLOURS[category].repeat(w));
        }
        (image, object(rect.map(|v| v as f64), category))
    }

    pub(in super::super) fn object([x, y, width, height]: [f64; 4], category: usize) -> Object {
        Object { id: 1, category, rect: Rect { x, y, width, height }, area: width * height, crowd: false }
    }

    pub(in super::super) fn input(side: usize, fit: Fit) -> BoxInput {
        BoxInput { preprocess: Preprocess::clip(224), side, grid: side.div_ceil(8), fit }
    }

    /// Left, top, right and bottom of the pixels of a colour; `None` without any.
    pub(in super::super) fn found(image: &Rgb8, colour: [u8; 3]) -> Option<[usize; 4]> {
        let is = |p: &[u8]| p.iter().zip(colour).all(|(&v, c)| if c == 0 { v < 64 } else { v > 191 });
        let at = image.pixels.chunks_exact(3).enumerate().filter(|(_, p)| is(p));
        at.map(|(i, _)| (i % image.width, i / image.width)).fold(None, |all, (x, y)| {
            let [l, t, r, b] = all.unwrap_or([x, y, x, y]);
            Some([l.min(x), t.min(y), r.max(x + 1), b.max(y + 1)])
        })
    }

    /// Holds every target that is the only one of its category against the pixels of its colour, and every colour without
    /// a target to be next to invisible.
    pub(in super::super) fn assert_boxes_hold_their_pixels(viewed: &Viewed) {
        let side = viewed.pixels.width as f64;
        for (category, &colour) in COLOURS.iter().enumerate() {
            let seen = found(&viewed.pixels, colour);
            let targets: Vec<_> = viewed.targets.iter().filter(|t| t.category == category).collect();
            match (seen, &targets[..]) {
                (Some([l, t, r, b]), []) => assert!(r - l <= 2 || b - t <= 2, "{l} {t} {r} {b} without a box"),
                (None, [target, ..]) => {
                    let [.., w, h] = target.bbox.map(|v| f64::from(v) * side);
                    assert!(w.min(h) < 2., "{target:?} without pixels");
                }
                (Some(edges), [target]) => {
                    let [cx, cy, w, h] = target.bbox.map(|v| f64::from(v) * side);
                    let expected = [cx - w / 2., cy - h / 2., cx + w / 2., cy + h / 2.];
                    for (edge, expected) in edges.iter().zip(expected) {
                        assert!((*edge as f64 - expected).abs() <= 1., "{edges:?}, expected {expected:?}");
                    }
                }
                // Neither pixels nor a box; or several boxes, whose pixels cannot be told apart.
                _ => {}
            }
        }
    }

    #[test]
    fn a_stretched_image_fills_the_input_and_its_box_holds_the_painted_pixels() {
        let (image, object) = painted([90, 40], [13, 5, 31, 20], 0);
        for side in [32, 64, 200] {
            let viewed = input(side, Fit::Stretch).view(&image, &[object]);
            assert_boxes_hold_their_pixels(&viewed);
            assert_eq!(viewed.valid_tokens(8), None);
            let expected = [28.5 / 90., 15. / 40., 31. / 90., 20. / 40.];
            assert!(viewed.targets[0].bbox.iter().zip(expected).all(|(&v, e)| (f64::from(v) - e).abs() < 1e-6));
        }
    }

    #[test]
    fn a_letterboxed_image_keeps_its_shape_in_the_middle_of_zeros() {
        for (size, rect) in [([90, 40], [13, 5, 31, 20]), ([40, 90], [5, 50, 20, 31])] {
            let (image, object) = painted(size, rect, 1);
            let input = input(72, Fit::Letterbox);
            let mut viewed = input.view(&image, &[object]);
            for _ in 0..2 {
                assert_boxes_hold_their_pixels(&viewed);
                assert!((viewed.view.scale_x.abs() - viewed.view.scale_y).abs() < 1e-12);
                let values = input.normalised(&viewed);
                let zeros = (0..72 * 72).filter(|at| (0..3).all(|c| values[c * 72 * 72 + at] == 0.)).count();
                assert_eq!(zeros, 72 * 72 - 72 * 32, "rows 20 to 52 of 72 are image");
                // The centres of tokens of 8 pixels lie at 4, 12, ..: those at 20 to 44 are on the image.
                let valid = viewed.valid_tokens(9).unwrap();
                let wide = size[0] > size[1];
                let expected = |t: usize| (2..6).contains(&if wide { t / 9 } else { t % 9 });
                assert_eq!(valid, (0..81).map(expected).collect::<Vec<_>>());
                viewed.mirror();
            }
        }
    }

    #[test]
    fn mirroring_moves_boxes_and_view_along_and_undoes_itself() {
        let (image, object) = painted([50, 60], [3, 7, 11, 30], 2);
        let plain = input(64, Fit::Stretch).view(&image, &[object]);
        let mut mirrored = plain.clone();
        mirrored.mirror();
        assert!(mirrored.view.is_mirrored() && !plain.view.is_mirrored());
        assert_boxes_hold_their_pixels(&mirrored);
        let back = mirrored.view.to_original(mirrored.targets[0].bbox);
        assert!((back.x - 3.).abs() < 1e-4 && (back.width - 11.).abs() < 1e-4, "{back:?}");
        mirrored.mirror();
        assert_eq!(mirrored.pixels, plain.pixels);
    }

    #[test]
    fn predictions_come_back_cut_off_at_the_edges_whatever_they_are() {
        let view = input(64, Fit::Letterbox).view(&Rgb8::new(80, 40), &[]).view;
        let all = Rect { x: 0., y: 0., width: 80., height: 40. };
        assert_eq!(view.to_original([0.5, 0.5, 3., 3.]), all);
        assert_eq!(view.to_original([0.5, 0.1, 1., 0.1]).area(), 0., "in the padding");
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 0.5];
        for a in odd {
            for b in odd {
                for bbox in [[a, b, a, b], [0.5, 0.5, a, b], [a, b, 0.5, 0.5]] {
                    let Rect { x, y, width, height } = view.to_original(bbox);
                    let inside = |at: f64, length: f64, size: f64| at >= 0. && length >= 0. && at + length <= size;
                    assert!(inside(x, width, 80.) && inside(y, height, 40.), "{bbox:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_rectangle_in_the_image_vanishes() {
        let bad = [
            [10., 10., 0., 5.],
            [10., 10., 5., -3.],
            [-20., 10., 20., 5.],
            [120., 120., 5., 5.],
            [f64::NAN, 10., 5., 5.],
            [10., 10., f64::INFINITY, 5.],
            [10., 10., 1.9, 50.],
        ];
        let objects: Vec<_> = bad.into_iter().chain([[10., 10., 2.1, 50.]]).map(|r| object(r, 0)).collect();
        // Half the size: two pixels become one.
        let viewed = input(50, Fit::Stretch).view(&Rgb8::new(100, 100), &objects);
        assert_eq!(viewed.targets.len(), 1, "{:?}", viewed.targets);
    }

    #[test]
    fn an_object_that_is_hardly_seen_is_ignored_and_one_outside_is_gone() {
        let input = input(100, Fit::Stretch);
        let seen = |from: usize| {
            let placement =
                Placement { source: Window { x: from..100, y: 0..100 }, target: Window { x: 0..100, y: 0..100 } };
            let mut viewed = input.canvas(placement.view(100, 100, 100));
            viewed.place(&Rgb8::new(100, 100), &[object([40., 0., 20., 50.], 0)], &placement, Filter::Bicubic);
            viewed.targets.first().map(|t| t.ignore)
        };
        assert_eq!([seen(40), seen(55), seen(57), seen(60)], [Some(false), Some(false), Some(true), None]);
        let crowd = Object { crowd: true, ..object([0., 0., 50., 50.], 0) };
        let target = input.view(&Rgb8::new(100, 100), &[crowd]).targets[0];
        assert!(target.crowd && target.ignore);
        // What lies outside of the image was never there to be seen.
        let outside = object([-90., 0., 100., 50.], 0);
        assert!(!input.view(&Rgb8::new(100, 100), &[outside]).targets[0].ignore);
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        let good = input(64, Fit::Stretch);
        assert!(good.check().is_ok());
        for (side, grid) in [(0, 1), (MAX_SIDE + 1, 1), (64, 0), (64, 65)] {
            assert!(BoxInput { side, grid, ..good.clone() }.check().is_err(), "{side} {grid}");
        }
    }
}
