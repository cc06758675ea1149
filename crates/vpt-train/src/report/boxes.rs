//! Boxes drawn on images: pictures of predictions, and `val_predictions.jpg` of a detection run.

use std::collections::BTreeSet;
use std::path::Path;

use noto_sans_mono_bitmap::{FontWeight, RasterHeight};

use super::label;
use super::text::{Font, blend};
use vpt_base::Result;
use vpt_data::boxes::{Object, Rect};
use vpt_image::decode::Rgb8;
use vpt_image::encode::picture_bytes;
use vpt_image::resize::{Filter, resize};

/// Colours of categories, again from the start where they run out. Neighbours are far apart, and none is so dark, so pale or
/// so grey that it would be taken for a part of a photo.
const PALETTE: [[u8; 3]; 16] = [
    [235, 50, 60],
    [0, 150, 255],
    [255, 205, 0],
    [0, 200, 110],
    [200, 80, 255],
    [255, 130, 0],
    [0, 220, 230],
    [255, 90, 180],
    [150, 220, 0],
    [80, 90, 255],
    [170, 95, 35],
    [255, 165, 150],
    [0, 135, 125],
    [190, 170, 255],
    [150, 0, 100],
    [190, 190, 90],
];

const BLACK: [u8; 3] = [0; 3];
const WHITE: [u8; 3] = [255; 3];

/// A rectangle to draw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrawnBox {
    /// Where, in pixels of the image.
    pub rect: Rect,
    /// Index into the names that it is drawn with.
    pub category: usize,
    /// Score by a model; none for the truth.
    pub score: Option<f64>,
    /// Many objects in one: drawn in dashes.
    pub crowd: bool,
}

impl From<&Object> for DrawnBox {
    fn from(object: &Object) -> Self {
        Self { rect: object.rect, category: object.category, score: None, crowd: object.crowd }
    }
}

/// The colour of the category at an index.
pub(super) fn colour(category: usize) -> [u8; 3] {
    PALETTE[category % PALETTE.len()]
}

/// How large lines and letters are.
#[derive(Clone, Copy, Debug)]
struct Scale {
    /// Pixels across a line.
    line: usize,
    /// Pixels from the top of a label to its bottom.
    text: usize,
}

impl Scale {
    /// As suits an image of `width` x `height`.
    fn of(width: usize, height: usize) -> Self {
        let mean = (width + height) as f64 / 2.;
        Self { line: ((mean * 0.0035).round() as usize).max(2), text: ((mean * 0.026).round() as usize).max(16) }
    }

    /// The letters to begin with: those of the size, or larger ones.
    fn font(self) -> Font {
        let height = if self.text <= 16 { RasterHeight::Size16 } else { RasterHeight::Size32 };
        Font { weight: FontWeight::Bold, height }
    }
}

/// Draws `boxes` on `image`, each in the colour of its category with its name (by index in `names`) and score. Lines and
/// letters grow with the image. Where labels would cover each other, those of higher scores choose their place first.
pub fn draw_boxes(image: &mut Rgb8, boxes: &[DrawnBox], names: &[String]) {
    draw(image, boxes, names, Scale::of(image.width, image.height), Text::Name);
}

/// Kind of a box's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    /// Its name, and its score if it has one.
    Name,
    /// Its score, if it has one.
    Score,
}

fn draw(image: &mut Rgb8, boxes: &[DrawnBox], names: &[String], scale: Scale, text: Text) {
    let mut boxes: Vec<(DrawnBox, Edges)> =
        boxes.iter().filter_map(|b| Some((*b, Edges::of(b.rect, image, scale.line)?))).collect();
    // A stable order in which the highest score comes first and the truth keeps its own.
    boxes.sort_by(|(a, _), (b, _)| b.score.unwrap_or(1.).total_cmp(&a.score.unwrap_or(1.)));
    for (drawn, edges) in boxes.iter().rev() {
        outline(image, *edges, scale.line, colour(drawn.category), drawn.crowd);
    }
    let mut taken: Vec<Edges> = Vec::new();
    for (drawn, edges) in &boxes {
        let name = match text {
            Text::Name => names.get(drawn.category).map_or("?", String::as_str),
            Text::Score if drawn.score.is_none() => continue,
            Text::Score => "",
        };
        let strip = strip(name, drawn.score, colour(drawn.category), scale, image.width);
        let place = place_label(*edges, (strip.width, strip.height), (image.width, image.height), &taken);
        paste(image, &strip, place.left, place.top);
        taken.push(place);
    }
}

/// Pixels from the left and top ones up to, not including, the right and bottom ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Edges {
    left: usize,
    top: usize,
    right: usize,
    bottom: usize,
}

impl Edges {
    /// The outer edges of a line around `rect`: it lies outside, so that a small object stays visible, and inside where the
    /// image ends. `None` if nothing of it is in `image`.
    fn of(rect: Rect, image: &Rgb8, line: usize) -> Option<Self> {
        let along = |start: f64, end: f64, size: usize| {
            let inside = start < size as f64 && end > 0. && start <= end && (end - start).is_finite();
            let first = (start.round() as usize).saturating_sub(line);
            inside.then(|| (first.min(size.saturating_sub(1)), (end.round() as usize).saturating_add(line).min(size)))
        };
        let (left, right) = along(rect.x, rect.right(), image.width)?;
        let (top, bottom) = along(rect.y, rect.bottom(), image.height)?;
        Some(Self { left, top, right, bottom })
    }

    /// Pixels that both cover.
    fn common(self, other: Self) -> usize {
        let width = self.right.min(other.right).saturating_sub(self.left.max(other.left));
        width * self.bottom.min(other.bottom).saturating_sub(self.top.max(other.top))
    }
}

/// A line inside the edges, with a dark hairline around it that sets it off from what has its colour.
fn outline(image: &mut Rgb8, edges: Edges, line: usize, colour: [u8; 3], dashed: bool) {
    let Edges { left, top, right, bottom } = edges;
    let around =
        Edges { left: left.saturating_sub(1), top: top.saturating_sub(1), right: right + 1, bottom: bottom + 1 };
    for (Edges { left, top, right, bottom }, thick, colour, ink) in [(around, 1, BLACK, 90), (edges, line, colour, 255)]
    {
        for y in top..bottom.min(image.height) {
            let sides = if y < top + thick || y + thick >= bottom {
                [left..right, right..right]
            } else {
                [left..(left + thick).min(right), right.saturating_sub(thick).max(left)..right]
            };
            let drawn = |x: &usize| !dashed || ((x - left + y - top) / (4 * line)).is_multiple_of(2);
            for x in sides.into_iter().flatten().filter(drawn) {
                blend(image, x, y, colour, ink);
            }
        }
    }
}

/// A label as pixels, at most `most` wide: the name, cut if it is too long, and the score.
fn strip(name: &str, score: Option<f64>, paper: [u8; 3], scale: Scale, most: usize) -> Rgb8 {
    let font = scale.font();
    let score = score.map_or(String::new(), |score| format!("{score:.2}"));
    let gap = if name.is_empty() || score.is_empty() { "" } else { " " };
    // In pixels of the font, before the strip is resized.
    let most = most * font.line() / scale.text.max(1);
    let letters = (most.saturating_sub(PADDING * 2) / font.advance()).max(1);
    let text = label(name, letters.saturating_sub(score.len() + gap.len()).max(1)) + gap + &score;
    let text: String = text.chars().take(letters).collect();
    let width = (text.chars().count() * font.advance() + 2 * PADDING).min(most.max(1));
    let mut strip = Rgb8 { width, height: font.line(), pixels: paper.repeat(width * font.line()) };
    font.write(&mut strip, &text, PADDING, 0, ink_on(paper));
    if scale.text == font.line() {
        return strip;
    }
    resize(&strip, (width * scale.text / font.line()).max(1), scale.text, Filter::Bicubic)
}

/// Pixels beside the text of a label.
const PADDING: usize = 2;

/// Black or white, whichever is easier to read on `paper`.
fn ink_on(paper: [u8; 3]) -> [u8; 3] {
    let [r, g, b] = paper.map(f64::from);
    if 0.299 * r + 0.587 * g + 0.114 * b > 125. { BLACK } else { WHITE }
}

/// Where in an image of `image` (width, height) a label of `size` goes that belongs to `edges`: above, below, inside at the
/// top or bottom, or beside, whichever covers least of the labels in `taken`.
fn place_label(edges: Edges, size: (usize, usize), image: (usize, usize), taken: &[Edges]) -> Edges {
    let (width, height) = size;
    let Edges { left, top, right, bottom } = edges;
    let last = (image.0.saturating_sub(width), image.1.saturating_sub(height));
    let at = |x: usize, y: usize| {
        let (left, top) = (x.min(last.0), y.min(last.1));
        Edges { left, top, right: left + width, bottom: top + height }
    };
    let mut places = Vec::with_capacity(8);
    if top >= height {
        places.extend([at(left, top - height), at(right.saturating_sub(width), top - height)]);
    }
    if bottom + height <= image.1 {
        places.extend([at(left, bottom), at(right.saturating_sub(width), bottom)]);
    }
    places.extend([at(left, top), at(left, bottom.saturating_sub(height))]);
    if right + width <= image.0 {
        places.push(at(right, top));
    }
    if left >= width {
        places.push(at(left - width, top));
    }
    let covered = |place: &Edges| taken.iter().map(|t| t.common(*place)).sum::<usize>();
    places.into_iter().min_by_key(covered).unwrap_or_else(|| at(left, top))
}

/// Puts `part` on `image` with its upper left corner at (`x`, `y`), cut at the edges.
fn paste(image: &mut Rgb8, part: &Rgb8, x: usize, y: usize) {
    let width = part.width.min(image.width.saturating_sub(x));
    for (row, y) in part.pixels.chunks_exact(part.width * 3).zip(y..image.height) {
        let at = (y * image.width + x) * 3;
        image.pixels[at..at + width * 3].copy_from_slice(&row[..width * 3]);
    }
}

/// One image of the page.
#[derive(Clone, Debug)]
pub struct BoxTile {
    /// The image as it is in the data set, any size.
    pub image: Rgb8,
    /// Ground truth.
    pub truth: Vec<DrawnBox>,
    /// Detections by a model.
    pub predicted: Vec<DrawnBox>,
}

/// Images in a row of the page, each twice.
const PAIRS: usize = 2;
/// Width and height that an image is fitted into, in pixels.
const CELL: (usize, usize) = (420, 320);
/// Space between the pictures, and twice as much between pairs.
const GAP: usize = 8;
/// Height of a line of text with the space around it.
const LINE: usize = 24;
/// Letters of headings and legend.
const FONT: Font = Font { weight: FontWeight::Regular, height: RasterHeight::Size16 };
/// Letters of a name in the legend.
pub(super) const NAME: usize = 32;

/// Draws `tiles`, two a row, each with the truth on its left and the prediction on its right, as a JPEG file. A legend names
/// the colours; names stand at the boxes where categories on the page share a colour.
///
/// # Errors
/// If the JPEG encoder refuses the picture: more than 65,535 pixels high, some four hundred tiles.
pub fn box_sheet_jpeg(tiles: &[BoxTile], names: &[String]) -> Result<Vec<u8>> {
    let all = || tiles.iter().flat_map(|t| t.truth.iter().chain(&t.predicted));
    let categories: BTreeSet<usize> = all().map(|b| b.category).collect();
    let mut legend: Vec<(Option<usize>, String)> = Vec::new();
    for &category in &categories {
        legend.push((Some(category), label(names.get(category).map_or("?", String::as_str), NAME)));
    }
    if all().any(|b| b.crowd) {
        legend.push((None, "dashed: a crowd".into()));
    }
    let colours: BTreeSet<[u8; 3]> = categories.iter().map(|&c| colour(c)).collect();
    let named = colours.len() < categories.len();
    pair_sheet_jpeg(tiles.len(), &legend, |i| {
        let tile = &tiles[i];
        let (small, scale) = fitted(&tile.image);
        [&tile.truth, &tile.predicted].map(|boxes| {
            let mut picture = small.clone();
            let boxes: Vec<_> = boxes.iter().map(|b| scaled(*b, scale)).collect();
            let text = if named { Text::Name } else { Text::Score };
            draw(&mut picture, &boxes, names, Scale { line: 2, text: 16 }, text);
            picture
        })
    })
}

/// A page of `count` pairs of pictures, truth and prediction, below a legend of colours.
pub(super) fn pair_sheet_jpeg(
    count: usize,
    legend: &[(Option<usize>, String)],
    picture: impl Fn(usize) -> [Rgb8; 2],
) -> Result<Vec<u8>> {
    let pairs = count.clamp(1, PAIRS);
    let pair = 2 * CELL.0 + 3 * GAP;
    let width = pairs * pair + GAP;
    let lines = wrap(legend, width - 2 * GAP);
    let rows = count.div_ceil(pairs);
    let above = GAP + lines.len() * LINE + LINE;
    let height = above + rows * (CELL.1 + 2 * GAP);
    let mut sheet = Rgb8 { width, height, pixels: WHITE.repeat(width * height) };
    for (row, line) in lines.iter().enumerate() {
        let y = GAP + row * LINE;
        for &(x, entry) in line {
            let (category, text) = &legend[entry];
            if let Some(category) = category {
                let swatch = Rgb8 { width: 16, height: 16, pixels: colour(*category).repeat(16 * 16) };
                paste(&mut sheet, &swatch, x + GAP, y);
            }
            FONT.write(&mut sheet, text, x + GAP + SWATCH, y, BLACK);
        }
    }
    for column in 0..pairs {
        let x = column * pair + GAP;
        FONT.write(&mut sheet, "truth", x, above - LINE + 4, BLACK);
        FONT.write(&mut sheet, "prediction", x + CELL.0 + GAP, above - LINE + 4, BLACK);
    }
    for i in 0..count {
        let (x, y) = (i % pairs * pair + GAP, above + i / pairs * (CELL.1 + 2 * GAP));
        for (picture, x) in picture(i).into_iter().zip([x, x + CELL.0 + GAP]) {
            paste(&mut sheet, &picture, x + (CELL.0 - picture.width) / 2, y + (CELL.1 - picture.height) / 2);
        }
    }
    picture_bytes(&sheet, Path::new("val_predictions.jpg"))
}

/// Pixels from the left of a legend's entry to its text.
const SWATCH: usize = 22;

/// The entries of a legend in lines of at most `width` pixels, each with its column.
fn wrap(legend: &[(Option<usize>, String)], width: usize) -> Vec<Vec<(usize, usize)>> {
    let mut lines: Vec<Vec<(usize, usize)>> = Vec::new();
    let mut x = 0;
    for (entry, (_, text)) in legend.iter().enumerate() {
        let wide = SWATCH + (text.chars().count() + 2) * FONT.advance();
        match lines.last_mut() {
            Some(line) if x + wide <= width => line.push((x, entry)),
            _ => {
                x = 0;
                lines.push(vec![(0, entry)]);
            }
        }
        x += wide;
    }
    lines
}

/// `image` as large as fits a cell, and the factors of its width and height.
pub(super) fn fitted(image: &Rgb8) -> (Rgb8, [f64; 2]) {
    let (width, height) = (image.width as f64, image.height as f64);
    let scale = (CELL.0 as f64 / width).min(CELL.1 as f64 / height);
    let side = |length: f64, most: usize| ((length * scale).round() as usize).clamp(1, most);
    let (w, h) = (side(width, CELL.0), side(height, CELL.1));
    // Enlarged pixels of a tiny image should look like pixels.
    let filter = if scale >= 4. { Filter::Nearest } else { Filter::Bicubic };
    (resize(image, w, h, filter), [w as f64 / width, h as f64 / height])
}

fn scaled(drawn: DrawnBox, [x, y]: [f64; 2]) -> DrawnBox {
    let r = drawn.rect;
    DrawnBox { rect: Rect { x: r.x * x, y: r.y * y, width: r.width * x, height: r.height * y }, ..drawn }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn grey(width: usize, height: usize) -> Rgb8 {
        Rgb8 { width, height, pixels: vec![128; width * height * 3] }
    }

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("category {i}")).collect()
    }

    fn drawn([x, y, width, height]: [f64; 4], category: usize, score: Option<f64>) -> DrawnBox {
        DrawnBox { rect: Rect { x, y, width, height }, category, score, crowd: false }
    }

    fn at(image: &Rgb8, x: usize, y: usize) -> [u8; 3] {
        let at = (y * image.width + x) * 3;
        [image.pixels[at], image.pixels[at + 1], image.pixels[at + 2]]
    }

    #[test]
    fn lines_lie_around_what_they_show_and_grow_with_the_image() {
        for (size, line) in [(200, 2), (1000, 4), (3000, 11)] {
            let mut image = grey(size, size);
            let [x, y, w, h] = [size / 2, size / 2, 7, 9];
            draw_boxes(&mut image, &[drawn([x as f64, y as f64, 7., 9.], 2, None)], &names(3));
            for inside in 0..h {
                assert!((0..w).all(|dx| at(&image, x + dx, y + inside) == [128; 3]));
                assert!((1..=line).all(|dx| at(&image, x - dx, y + inside) == PALETTE[2]));
                assert!((0..line).all(|dx| at(&image, x + w + dx, y + inside) == PALETTE[2]));
                assert!(at(&image, x - line - 1, y + inside)[0] < 128);
            }
        }
    }

    #[test]
    fn a_crowd_is_drawn_in_dashes() {
        let crowd = DrawnBox { crowd: true, ..drawn([20., 40., 100., 50.], 0, None) };
        let mut image = grey(200, 200);
        draw(&mut image, &[crowd], &names(1), Scale { line: 2, text: 16 }, Text::Score);
        let coloured = (20..120).filter(|&x| at(&image, x, 39) == PALETTE[0]).count();
        assert!((40..60).contains(&coloured), "{coloured}");
    }

    #[test]
    fn labels_of_equal_boxes_do_not_cover_each_other() {
        let edges = Edges { left: 50, top: 60, right: 150, bottom: 140 };
        let mut taken: Vec<Edges> = Vec::new();
        for _ in 0..6 {
            let place = place_label(edges, (48, 16), (200, 200), &taken);
            assert!(taken.iter().all(|t| t.common(place) == 0), "{place:?} and {taken:?}");
            taken.push(place);
        }
        assert_eq!((taken[0].left, taken[0].top), (50, 44), "above, if there is room");
    }

    #[test]
    fn colours_differ_and_text_stands_out_from_each() {
        for (i, a) in PALETTE.iter().enumerate() {
            for b in &PALETTE[..i] {
                let distance: i32 = a.iter().zip(b).map(|(&a, &b)| (i32::from(a) - i32::from(b)).pow(2)).sum();
                assert!(distance > 45 * 45, "{a:?} and {b:?}");
            }
            // Relative luminance and contrast ratio as in WCAG 2.
            let luminance = |colour: [u8; 3]| {
                let linear = colour.map(|v| ((f64::from(v) / 255. + 0.055) / 1.055).powf(2.4));
                0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05
            };
            let (paper, ink) = (luminance(*a), luminance(ink_on(*a)));
            assert!(paper.max(ink) / paper.min(ink) > 3., "text on {a:?}");
        }
    }

    #[test]
    fn a_page_is_a_jpeg_whatever_the_images() {
        let tile = |width, height, category| {
            let rect = [0., 0., width as f64 / 2., height as f64 / 2.];
            let truth = vec![DrawnBox { crowd: true, ..drawn(rect, category, None) }];
            BoxTile { image: grey(width, height), truth, predicted: vec![drawn(rect, category, Some(0.5))] }
        };
        let size = |tiles: &[BoxTile]| {
            let jpeg = box_sheet_jpeg(tiles, &names(40)).unwrap();
            assert_eq!(jpeg, box_sheet_jpeg(tiles, &names(40)).unwrap(), "same bytes every time");
            let page = vpt_image::decode::decode_bytes(&jpeg).unwrap();
            (page.width, page.height)
        };
        let one = size(&[tile(640, 480, 0)]);
        assert_eq!(one, (2 * 420 + 4 * GAP, GAP + 2 * LINE + 320 + 2 * GAP));
        let four = size(&[tile(1, 1, 0), tile(3000, 10, 16), tile(10, 3000, 99), tile(28, 28, 3)]);
        assert_eq!(four.0, 4 * 420 + 7 * GAP);
        assert!(box_sheet_jpeg(&[], &[]).is_ok());
    }

    #[test]
    fn a_legend_keeps_to_its_width_and_leaves_nothing_out() {
        let legend: Vec<_> = (0..50).map(|i| (Some(i), "x".repeat(i % 30))).collect();
        let lines = wrap(&legend, 400);
        assert_eq!(lines.iter().flatten().map(|e| e.1).collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
        for &(x, entry) in lines.iter().flatten() {
            assert!(x + SWATCH + legend[entry].1.len() * FONT.advance() <= 400);
        }
    }

    proptest! {
        #[test]
        fn labels_stay_inside(
            edges in [0_usize..300, 0..300, 0..300, 0..300], image in [40_usize..300, 20..300], others in 0_usize..9,
        ) {
            let [x, y, w, h] = edges;
            let (left, top) = (x.min(image[0] - 1), y.min(image[1] - 1));
            let edges = Edges { left, top, right: (left + w).min(image[0]), bottom: (top + h).min(image[1]) };
            let mut taken = Vec::new();
            for _ in 0..=others {
                let place = place_label(edges, (40, 20), (image[0], image[1]), &taken);
                prop_assert!(place.right <= image[0] && place.bottom <= image[1]);
                taken.push(place);
            }
        }

        #[test]
        fn any_box_on_any_image_is_drawn_or_left_out(
            rect: [f64; 4], near in [-9.0..50.0_f64, -9.0..50.0, -1.0..60.0, -1.0..60.0], size in [1_usize..40, 1..40], name: String,
        ) {
            let boxes = [drawn(rect, 0, Some(rect[0])), drawn(near, 1, Some(0.5)), drawn(near, 2, None)];
            draw_boxes(&mut grey(size[0], size[1]), &boxes, &[name]);
        }
    }
}
