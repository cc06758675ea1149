//! Random changes to training images that carry boxes along, each drawn from (seed, epoch, sample) alone.
//!
//! Nothing is enlarged to be cut afterwards: what is to be seen is cut from the original's pixels and then resized.

use std::ops::Range;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::view::{BoxInput, Placement, Viewed, place};
use super::{BoxImage, Object};
use vpt_base::{Error, Result};
use vpt_image::decode::Rgb8;
use vpt_image::resize::Window;

/// Least side of a random crop, as a share of the image's; SSD's (Liu et al. 2016, §2.2).
const CROP_SIDE: f64 = 0.3;
/// Greatest ratio of a random crop's two shares; SSD's.
const CROP_RATIO: f64 = 2.;
/// Draws of a part of an image in search of one that shows an object.
const TRIES: usize = 10;
/// Where the four images of a mosaic meet, at least and at most, as a share of the input's side.
const MEETING: (f64, f64) = (0.3, 0.7);
/// Zooms that can be asked for, at least and at most.
const ZOOM: (f32, f32) = (0.1, 10.);

/// Augmentation of training images with boxes. The default does nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BoxAugment {
    /// Mirror every second image, left and right.
    pub flip: bool,
    /// Zoom by a random factor, at least and at most, all ratios being equally likely. Below 1 the image is made smaller and
    /// padded, at a random place; above 1 a random part of it is shown, in which lies the centre of an object.
    pub scale: Option<[f32; 2]>,
    /// Take of every second image a random part in which lies the centre of an object, with sides of at least 0.3 of the
    /// image's and shares of them that differ by at most a factor of 2.
    pub crop: bool,
    /// How often, as a probability, an image is shown with three others, two by two around a random point.
    pub mosaic: f32,
}

impl BoxAugment {
    /// Whether every image stays as it is.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether at most left and right are exchanged, so that resized pixels can be kept.
    pub fn only_flip(&self) -> bool {
        Self { flip: false, ..*self }.is_none()
    }

    /// # Errors
    /// The zooms are not `0.1 <= least <= greatest <= 10`, or the mosaic's probability is none.
    pub fn check(&self) -> Result<()> {
        if let Some([least, greatest]) = self.scale
            && !(ZOOM.0 <= least && least <= greatest && greatest <= ZOOM.1)
        {
            let message = format!("zooms from {least} to {greatest}; wanted is 0.1 <= least <= greatest <= 10");
            return Err(Error::invalid("scale", message));
        }
        if !(0. ..=1.).contains(&self.mosaic) {
            return Err(Error::invalid("mosaic", format!("{} is not a probability between 0 and 1", self.mosaic)));
        }
        Ok(())
    }

    /// The image at `index` of `images` as `input`, changed by `rng`; `load` gives the pixels of the image at an index, and
    /// is called for three more in a mosaic.
    ///
    /// # Errors
    /// Those of `load`.
    pub fn view(
        &self,
        input: &BoxInput,
        images: &[BoxImage],
        index: usize,
        rng: &mut ChaCha8Rng,
        mut load: impl FnMut(usize) -> Result<Rgb8>,
    ) -> Result<Viewed> {
        let mosaic = self.mosaic > 0. && rng.random_bool(f64::from(self.mosaic)) && input.side > 1;
        let (cells, own) = if mosaic {
            (four_cells(input.side, rng), rng.random_range(0..4))
        } else {
            (vec![Window { x: 0..input.side, y: 0..input.side }], 0)
        };
        let mut show = |viewed: Option<Viewed>, index: usize, cell: &Window, rng: &mut ChaCha8Rng| {
            let (image, objects) = (load(index)?, &images[index].objects);
            let placement = self.placement(input, &image, objects, cell, rng);
            let canvas = || input.canvas(placement.view(input.side, image.width, image.height));
            let mut viewed = viewed.unwrap_or_else(canvas);
            viewed.place(&image, objects, &placement, input.preprocess.filter);
            Ok::<_, Error>(viewed)
        };
        let mut viewed = show(None, index, &cells[own], rng)?;
        for (_, cell) in cells.iter().enumerate().filter(|&(i, _)| i != own) {
            let other = rng.random_range(0..images.len());
            viewed = show(Some(viewed), other, cell, rng)?;
        }
        self.flip(&mut viewed, rng);
        Ok(viewed)
    }

    /// Mirrors `viewed` if it is this one's turn.
    pub(super) fn flip(&self, viewed: &mut Viewed, rng: &mut ChaCha8Rng) {
        if self.flip && rng.random_bool(0.5) {
            viewed.mirror();
        }
    }

    /// The view of `image`, and its place in `cell`. Without zoom, an image is as large as an input of the cell's longer
    /// side would make it.
    fn placement(
        &self,
        input: &BoxInput,
        image: &Rgb8,
        objects: &[Object],
        cell: &Window,
        rng: &mut ChaCha8Rng,
    ) -> Placement {
        let whole = Window { x: 0..image.width, y: 0..image.height };
        let part = if self.crop && rng.random_bool(0.5) { random_part(whole, objects, rng) } else { whole };
        let zoom = self.scale.map_or(1., |[least, greatest]| {
            let (least, greatest) = (f64::from(least).ln(), f64::from(greatest).ln());
            (least + (greatest - least) * rng.random::<f64>()).exp()
        });
        let zoom = zoom * cell.x.len().max(cell.y.len()) as f64 / input.side as f64;
        let (width, height) = input.size(part.x.len(), part.y.len());
        let size = (width * zoom, height * zoom);
        let in_the_middle = self.scale.is_none() && (cell.x.len(), cell.y.len()) == (input.side, input.side);
        let gap = if in_the_middle { [0.5; 2] } else { rng.random() };
        let wanted = centres(objects, &part);
        for _ in 0..TRIES {
            let placement = place(&part, size, cell, (rng.random(), gap));
            if wanted.is_empty() || !centres(objects, &placement.source).is_empty() {
                return placement;
            }
        }
        // Around one of the objects.
        let [x, y] = wanted[rng.random_range(0..wanted.len())];
        let Window { x: columns, y: rows } = place(&part, size, cell, ([0.; 2], gap)).source;
        let piece = |centre: f64, part: &Range<usize>, seen: usize| {
            let left_out = (part.len() - seen).max(1) as f64;
            ((centre - seen as f64 / 2. - part.start as f64) / left_out).clamp(0., 1.)
        };
        let piece = [piece(x, &part.x, columns.len()), piece(y, &part.y, rows.len())];
        place(&part, size, cell, (piece, gap))
    }
}

/// The four parts of an input of `side` x `side` that meet in a random point.
fn four_cells(side: usize, rng: &mut ChaCha8Rng) -> Vec<Window> {
    let mut meeting = || {
        let at = rng.random_range(MEETING.0..MEETING.1) * side as f64;
        (at.round() as usize).clamp(1, side - 1)
    };
    let (x, y) = (meeting(), meeting());
    let columns = [0..x, x..side];
    [0..y, y..side].iter().flat_map(|y| columns.iter().map(|x| Window { x: x.clone(), y: y.clone() })).collect()
}

/// A random part of `whole` in which lies the centre of an object, or `whole` if none is found.
fn random_part(whole: Window, objects: &[Object], rng: &mut ChaCha8Rng) -> Window {
    let any = centres(objects, &whole).is_empty();
    for _ in 0..TRIES {
        let mut share = || rng.random_range(CROP_SIDE..=1.);
        let (x, y) = (share(), share());
        let mut along = |range: &Range<usize>, share: f64| {
            let length = ((range.len() as f64 * share).round() as usize).clamp(1, range.len());
            let start = range.start + rng.random_range(0..=range.len() - length);
            start..start + length
        };
        let part = Window { x: along(&whole.x, x), y: along(&whole.y, y) };
        if (1. / CROP_RATIO..=CROP_RATIO).contains(&(x / y)) && (any || !centres(objects, &part).is_empty()) {
            return part;
        }
    }
    whole
}

/// The centres of the objects, crowds aside, that lie in `part`.
fn centres(objects: &[Object], part: &Window) -> Vec<[f64; 2]> {
    let inside = |at: f64, range: &Range<usize>| (range.start as f64..range.end as f64).contains(&at);
    let single = objects.iter().filter(|object| !object.crowd);
    let centre = single.map(|Object { rect: r, .. }| [r.x + r.width / 2., r.y + r.height / 2.]);
    centre.filter(|[x, y]| inside(*x, &part.x) && inside(*y, &part.y)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Rect;
    use super::super::view::tests::{assert_boxes_hold_their_pixels, input, object, painted};
    use super::super::view::{Fit, Target};
    use super::*;
    use crate::ImageSource;
    use proptest::prelude::*;
    use vpt_base::random::stream;

    /// Five images with a rectangle each, of a colour and a category of its own.
    fn images() -> (Vec<BoxImage>, Vec<Rgb8>) {
        let made = [
            ([90, 60], [20, 10, 40, 30]),
            ([50, 80], [5, 50, 12, 25]),
            ([64, 64], [1, 1, 60, 60]),
            ([200, 30], [150, 3, 20, 20]),
            ([20, 20], [8, 8, 5, 7]),
        ];
        let one = |(category, (size, rect)): (usize, ([usize; 2], _))| {
            let (image, object) = painted(size, rect, category);
            let name = format!("{category}.png");
            let (id, path, [width, height]) = (1, name.clone().into(), size);
            (BoxImage { id, name, image: ImageSource::File(path), width, height, objects: vec![object] }, image)
        };
        made.into_iter().enumerate().map(one).unzip()
    }

    fn view(augment: BoxAugment, input: &BoxInput, index: usize, draw: u64) -> Viewed {
        let (images, pixels) = images();
        let mut rng = stream(7, "augment", 0, draw);
        augment.view(input, &images, index, &mut rng, |i| Ok(pixels[i].clone())).unwrap()
    }

    /// Each change alone, then all together.
    fn changes() -> [BoxAugment; 6] {
        let none = BoxAugment::default();
        let (flip, scale, crop) = (true, Some([0.4, 2.5]), true);
        let mosaic = 1.;
        [
            none,
            BoxAugment { flip, ..none },
            BoxAugment { scale, ..none },
            BoxAugment { crop, ..none },
            BoxAugment { mosaic, ..none },
            BoxAugment { flip, scale, crop, mosaic: 0.5 },
        ]
    }

    #[test]
    fn boxes_hold_the_painted_pixels_after_every_change() {
        for augment in changes() {
            for fit in [Fit::Stretch, Fit::Letterbox] {
                for draw in 0..60 {
                    let index = draw as usize % 5;
                    let viewed = view(augment, &input(96, fit), index, draw);
                    assert_boxes_hold_their_pixels(&viewed);
                    assert!(viewed.targets.iter().any(|t| t.category == index), "{augment:?} {draw}");
                }
            }
        }
    }

    #[test]
    fn nothing_asked_for_is_the_plain_view() {
        let (images, pixels) = images();
        for fit in [Fit::Stretch, Fit::Letterbox] {
            let input = input(80, fit);
            for index in 0..5 {
                let plain = input.view(&pixels[index], &images[index].objects);
                assert_eq!(view(BoxAugment::default(), &input, index, 3), plain);
            }
        }
    }

    #[test]
    fn a_view_depends_on_its_stream_alone() {
        let input = input(48, Fit::Stretch);
        for augment in &changes()[1..] {
            let of = |draw| view(*augment, &input, 0, draw);
            assert_eq!(of(1), of(1));
            assert!((0..8).any(|draw| of(draw) != of(100)), "{augment:?}");
        }
    }

    #[test]
    fn zooms_reach_in_and_out_and_a_crop_is_a_part() {
        let scale = BoxAugment { scale: Some([0.5, 2.]), ..BoxAugment::default() };
        let crop = BoxAugment { crop: true, ..BoxAugment::default() };
        let input = input(96, Fit::Stretch);
        let zooms = |augment| {
            let of = |draw| view(augment, &input, 0, draw).view.scale_x * 90.;
            (0..200).map(of).collect::<Vec<f64>>()
        };
        let scaled = zooms(scale);
        assert!(scaled.iter().all(|z| (0.49..2.05).contains(z)));
        let smaller = scaled.iter().filter(|z| **z < 1.).count();
        assert!((70..130).contains(&smaller), "{smaller}");
        let cropped = zooms(crop);
        assert!(cropped.iter().all(|z| (0.99..3.5).contains(z)));
        let whole = cropped.iter().filter(|z| (**z - 1.).abs() < 1e-9).count();
        assert!((70..130).contains(&whole), "{whole}");
    }

    #[test]
    fn a_mosaic_shows_four_images_and_draws_the_others_from_all() {
        let mosaic = BoxAugment { mosaic: 1., ..BoxAugment::default() };
        let mut seen = [0; 5];
        for draw in 0..100 {
            let (images, pixels) = images();
            let mut loaded = Vec::new();
            let mut rng = stream(1, "augment", 0, draw);
            let load = |i: usize| {
                loaded.push(i);
                Ok(pixels[i].clone())
            };
            mosaic.view(&input(64, Fit::Stretch), &images, 2, &mut rng, load).unwrap();
            assert_eq!((loaded.len(), loaded[0]), (4, 2));
            loaded[1..].iter().for_each(|&i| seen[i] += 1);
        }
        assert!(seen.iter().all(|n| (30..90).contains(n)), "{seen:?}");
    }

    #[test]
    fn senseless_settings_are_refused() {
        for scale in [[0., 1.], [2., 1.], [0.5, 11.], [f32::NAN, 1.]] {
            assert!(BoxAugment { scale: Some(scale), ..BoxAugment::default() }.check().is_err());
        }
        for mosaic in [-0.1, 1.1, f32::NAN] {
            assert!(BoxAugment { mosaic, ..BoxAugment::default() }.check().is_err());
        }
        let all = changes();
        assert!(all.iter().all(|a| a.check().is_ok()));
        assert_eq!(all.map(|a| a.only_flip()), [true, true, false, false, false, false]);
    }

    proptest! {
        #[test]
        fn boxes_stay_inside_and_come_back(
            change in 0_usize..6, letterbox: bool, seed: u64, size in [1_usize..70, 1..70], side in 1_usize..60,
            rect in [-20.0..80.0_f64, -20.0..80.0, 0.0..90.0, 0.0..90.0],
        ) {
            let fit = if letterbox { Fit::Letterbox } else { Fit::Stretch };
            let [width, height] = size;
            let image = BoxImage {
                id: 1, name: String::new(), image: ImageSource::File("".into()), width, height, objects: vec![object(rect, 0)],
            };
            let augment = BoxAugment { mosaic: 0., ..changes()[change] };
            let mut rng = stream(seed, "augment", 0, 0);
            let load = |_| Ok(Rgb8::new(width, height));
            let viewed = augment.view(&input(side, fit), &[image], 0, &mut rng, load).unwrap();
            for Target { bbox: [cx, cy, w, h], .. } in &viewed.targets {
                prop_assert!(*w > 0. && *h > 0. && cx - w / 2. >= 0. && cy - h / 2. >= 0.);
                prop_assert!(cx + w / 2. <= 1. && cy + h / 2. <= 1.);
                let [x, y, w, h] = rect;
                let whole = Rect { x, y, width: w, height: h };
                let back = viewed.view.to_original(viewed.targets[0].bbox);
                // What was seen is a part of the object, to the precision of the box.
                prop_assert!(back.intersection(whole) >= back.area() * 0.999 - 1e-3, "{back:?} of {whole:?}");
            }
        }
    }
}
