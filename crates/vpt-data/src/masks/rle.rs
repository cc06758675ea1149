//! Masks of objects as COCO writes them: runs along columns (RLE, in a list or packed into text) and polygons.
//!
//! What comes out is pixel for pixel what pycocotools' `decode` gives (`common/maskApi.c`): a polygon's border is followed in
//! steps of a fifth of a pixel, and a column belongs to it from the first row whose middle lies behind the border.

use vpt_image::decode::MAX_PIXELS;

/// Steps a pixel in which the border of a polygon is followed.
const SCALE: f64 = 5.;

/// Most steps along the border of one polygon: a hundred times around a large photo.
const MOST_STEPS: usize = 1 << 25;

/// How far outside of its image a corner may lie, in pixels.
const FARTHEST: f64 = 1e6;

/// A mask as lengths of runs, by turns outside and inside, down the first column, then the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rle {
    width: usize,
    height: usize,
    counts: Vec<u32>,
}

impl Rle {
    /// Of a list of lengths.
    ///
    /// # Errors
    /// They are not those of `width` x `height` pixels.
    pub fn from_counts(width: usize, height: usize, counts: Vec<u32>) -> Result<Self, String> {
        let pixels = pixels(width, height)?;
        let sum: u64 = counts.iter().map(|&count| u64::from(count)).sum();
        if sum != pixels as u64 {
            return Err(format!("runs of {sum} pixels in all, in an image of {width}x{height}"));
        }
        Ok(Self { width, height, counts })
    }

    /// Of lengths packed into text, as pycocotools' `encode` does: six bits a character, differences from the third on.
    ///
    /// # Errors
    /// The text is none of these, or as [`Self::from_counts`].
    pub fn from_text(width: usize, height: usize, text: &[u8]) -> Result<Self, String> {
        pixels(width, height)?;
        let mut counts: Vec<u32> = Vec::new();
        let mut rest = text.iter();
        while rest.len() > 0 {
            let (mut value, mut shift) = (0_i64, 0);
            loop {
                let &byte = rest.next().ok_or("the text of the runs ends within a number")?;
                let six = byte.checked_sub(48).filter(|six| *six < 64);
                let six = six.ok_or_else(|| format!("byte {byte} in the text of the runs"))?;
                if shift > 30 {
                    return Err("a number in the text of the runs is too long".into());
                }
                value |= i64::from(six & 0x1f) << shift;
                shift += 5;
                if six & 0x20 == 0 {
                    if six & 0x10 != 0 {
                        value |= -1 << shift;
                    }
                    break;
                }
            }
            if counts.len() > 2 {
                value += i64::from(counts[counts.len() - 2]);
            }
            counts.push(u32::try_from(value).map_err(|_| format!("a run of {value} pixels"))?);
        }
        Self::from_counts(width, height, counts)
    }

    /// Of lengths of runs, by turns outside and inside, along the rows of the rectangle `[left, top, width, height]` in an image.
    ///
    /// # Errors
    /// The rectangle reaches past the image, or they are not those of its pixels.
    pub fn from_rows(width: usize, height: usize, rectangle: [usize; 4], counts: &[u32]) -> Result<Self, String> {
        let pixels = pixels(width, height)?;
        let [left, top, wide, high] = rectangle;
        let fits = |at: usize, length: usize, size: usize| at.checked_add(length).is_some_and(|end| end <= size);
        if wide == 0 || high == 0 || !fits(left, wide, width) || !fits(top, high, height) {
            return Err(format!("a mask of {wide}x{high} pixels at {left}, {top} in an image of {width}x{height}"));
        }
        let sum: u64 = counts.iter().map(|&count| u64::from(count)).sum();
        if sum != (wide * high) as u64 {
            return Err(format!("runs of {sum} pixels in all, in a mask of {wide}x{high}"));
        }
        let mut inside = Vec::with_capacity(wide * high);
        for (i, &count) in counts.iter().enumerate() {
            inside.extend(std::iter::repeat_n(i % 2 == 1, count as usize));
        }
        let mut columns = vec![0_u32];
        let mut add = |is_inside: bool, length: usize| {
            if (columns.len() % 2 == 0) != is_inside {
                columns.push(0);
            }
            if let Some(last) = columns.last_mut() {
                *last += length as u32;
            }
        };
        add(false, left * height);
        for x in 0..wide {
            add(false, top);
            (0..high).for_each(|y| add(inside[y * wide + x], 1));
            add(false, height - top - high);
        }
        add(false, pixels - (left + wide) * height);
        Self::from_counts(width, height, columns)
    }

    /// Of the corners `[x, y, x, y, …]` of a polygon, in pixels from the upper left corner of an image.
    ///
    /// # Errors
    /// There are fewer than three corners, half a corner, one that is far outside or no number, or the border is too long.
    pub fn from_polygon(width: usize, height: usize, corners: &[f64]) -> Result<Self, String> {
        let pixels = pixels(width, height)?;
        if corners.len() < 6 || !corners.len().is_multiple_of(2) {
            return Err(format!("a polygon of {} numbers; at least six are expected, x and y by turns", corners.len()));
        }
        if let Some(bad) = corners.iter().find(|value| value.is_nan() || value.abs() > FARTHEST) {
            return Err(format!("a polygon with a corner at {bad}"));
        }
        let fine: Vec<[i64; 2]> =
            corners.chunks_exact(2).map(|xy| [xy[0], xy[1]].map(|value| (SCALE * value + 0.5) as i64)).collect();
        let border = border(&fine)?;
        // Where the border goes from one column to the next, the row from which on it is inside, or outside again.
        let mut ends: Vec<u32> = Vec::new();
        for pair in border.windows(2) {
            let [[u0, v0], [u1, v1]] = [pair[0], pair[1]];
            if u0 == u1 {
                continue;
            }
            let column = if u1 < u0 { u1 } else { u1 - 1 };
            let x = (column as f64 + 0.5) / SCALE - 0.5;
            if x.fract() != 0. || x < 0. || x > width as f64 - 1. {
                continue;
            }
            let y = ((v1.min(v0) as f64 + 0.5) / SCALE - 0.5).clamp(0., height as f64).ceil();
            ends.push((x as usize * height + y as usize) as u32);
        }
        ends.push(pixels as u32);
        ends.sort_unstable();
        let mut before = 0;
        let mut lengths = ends.into_iter().map(|end| {
            let length = end - before;
            before = end;
            length
        });
        let mut counts = vec![lengths.next().unwrap_or_default()];
        // Two ends at one place are none: the runs around them are one.
        while let Some(length) = lengths.next() {
            if length > 0 {
                counts.push(length);
            } else if let (Some(last), Some(next)) = (counts.last_mut(), lengths.next()) {
                *last += next;
            }
        }
        Ok(Self { width, height, counts })
    }

    /// Of the pixels of an image, row by row, that are in the mask.
    ///
    /// # Errors
    /// There are not as many as the image has.
    pub fn from_pixels(width: usize, height: usize, inside: &[bool]) -> Result<Self, String> {
        let pixels = pixels(width, height)?;
        if inside.len() != pixels {
            return Err(format!("{} pixels of an image of {width}x{height}", inside.len()));
        }
        let mut counts = vec![0_u32];
        for x in 0..width {
            for &is_inside in inside[x..].iter().step_by(width) {
                if (counts.len() % 2 == 0) != is_inside {
                    counts.push(0);
                }
                if let Some(last) = counts.last_mut() {
                    *last += 1;
                }
            }
        }
        Ok(Self { width, height, counts })
    }

    /// The lengths packed into text, as pycocotools' `encode` does; see [`Self::from_text`].
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (i, &count) in self.counts.iter().enumerate() {
            let mut value = i64::from(count);
            if i > 2 {
                value -= i64::from(self.counts[i - 2]);
            }
            loop {
                let five = (value & 0x1f) as u8;
                value >>= 5;
                let is_last = value == if five & 0x10 == 0 { 0 } else { -1 };
                text.push(char::from(48 + if is_last { five } else { five | 0x20 }));
                if is_last {
                    break;
                }
            }
        }
        text
    }

    /// Pixels in the mask.
    pub fn area(&self) -> u64 {
        self.counts.iter().skip(1).step_by(2).map(|&count| u64::from(count)).sum()
    }

    /// Calls `paint` with the position `y * width + x` of each pixel in the mask.
    pub fn visit(&self, mut paint: impl FnMut(usize)) {
        let mut at = 0;
        for (i, &count) in self.counts.iter().enumerate() {
            let end = at + count as usize;
            if i % 2 == 1 {
                (at..end).for_each(|down| paint(down % self.height * self.width + down / self.height));
            }
            at = end;
        }
    }

    /// The mask `[height, width]`.
    pub fn decode(&self) -> Vec<bool> {
        let mut mask = vec![false; self.width * self.height];
        self.visit(|at| mask[at] = true);
        mask
    }
}

/// How many pixels an image has.
fn pixels(width: usize, height: usize) -> Result<usize, String> {
    let count = width.checked_mul(height).filter(|count| (1..=MAX_PIXELS).contains(count));
    count.ok_or_else(|| format!("a mask of {width}x{height} pixels"))
}

/// Every point in fine steps along the border of the polygon with these corners, which is closed.
fn border(corners: &[[i64; 2]]) -> Result<Vec<[i64; 2]>, String> {
    let edges = || corners.iter().zip(corners.iter().cycle().skip(1));
    let length = |(a, b): (&[i64; 2], &[i64; 2])| (a[0].abs_diff(b[0]).max(a[1].abs_diff(b[1])) + 1) as usize;
    let steps: usize = edges().map(length).sum();
    if steps > MOST_STEPS {
        return Err(format!("a polygon whose border is {} pixels long", steps / SCALE as usize));
    }
    let mut points = Vec::with_capacity(steps);
    for (&from, &to) in edges() {
        let [dx, dy] = [from[0].abs_diff(to[0]) as i64, from[1].abs_diff(to[1]) as i64];
        let is_wide = dx >= dy;
        let is_turned = if is_wide { from[0] > to[0] } else { from[1] > to[1] };
        let ([xs, ys], [xe, ye]) = if is_turned { (to, from) } else { (from, to) };
        let (steps, slope) =
            if is_wide { (dx, (ye - ys) as f64 / dx as f64) } else { (dy, (xe - xs) as f64 / dy as f64) };
        for step in 0..=steps {
            let t = if is_turned { steps - step } else { step };
            // Of two equal corners there is no slope, and one point.
            let across = |start: i64| if steps == 0 { start } else { (start as f64 + slope * t as f64 + 0.5) as i64 };
            points.push(if is_wide { [t + xs, across(ys)] } else { [across(xs), t + ys] });
        }
    }
    Ok(points)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    const FIXTURE: &str = include_str!("../../../../tests/fixtures/segment.json");

    #[derive(Deserialize)]
    struct Fixture {
        runs: Vec<RunCase>,
        polygons: Vec<PolygonCase>,
    }

    #[derive(Deserialize)]
    struct RunCase {
        width: usize,
        height: usize,
        text: String,
        counts: Vec<u32>,
        area: u64,
        mask: Vec<String>,
    }

    #[derive(Deserialize)]
    struct PolygonCase {
        width: usize,
        height: usize,
        corners: Vec<f64>,
        mask: Vec<String>,
    }

    fn pixels_of(rows: &[String]) -> Vec<bool> {
        rows.iter().flat_map(|row| row.bytes().map(|byte| byte == b'1')).collect()
    }

    #[test]
    fn masks_are_those_of_pycocotools() {
        let Fixture { runs, polygons } = serde_json::from_str(FIXTURE).unwrap();
        assert!(runs.len() >= 40 && polygons.len() >= 60);
        for RunCase { width, height, text, counts, area, mask } in runs {
            let expected = pixels_of(&mask);
            for rle in [
                Rle::from_text(width, height, text.as_bytes()).unwrap(),
                Rle::from_counts(width, height, counts).unwrap(),
            ] {
                assert_eq!(rle.decode(), expected, "{text}");
                assert_eq!((rle.area(), rle.to_text()), (area, text.clone()));
            }
            // The same runs are found again, but those of no length.
            let again = Rle::from_pixels(width, height, &expected).unwrap();
            assert_eq!(again.decode(), expected);
            let text = again.to_text();
            assert_eq!(Rle::from_text(width, height, text.as_bytes()).unwrap(), again, "{text}");
        }
        for PolygonCase { width, height, corners, mask } in polygons {
            let rle = Rle::from_polygon(width, height, &corners).unwrap();
            assert_eq!(rle.decode(), pixels_of(&mask), "{corners:?} in {width}x{height}");
        }
    }

    #[test]
    fn what_is_no_mask_is_refused() {
        let text = |text: &str| Rle::from_text(4, 3, text.as_bytes()).unwrap_err();
        assert!(text("").contains("0 pixels"), "{}", text(""));
        assert!(text("\u{7f}").contains("byte 127"));
        assert!(text("oooooooooo").contains("too long"));
        assert!(text("l").contains("ends within"));
        assert!(text("O").contains("a run of -1"));
        assert!(Rle::from_counts(4, 3, vec![u32::MAX; 9]).is_err() && Rle::from_counts(4, 3, vec![5, 6]).is_err());
        assert!(Rle::from_counts(usize::MAX, 2, Vec::new()).is_err() && Rle::from_text(0, 3, b"0").is_err());
        let polygon = |corners: &[f64]| Rle::from_polygon(4, 3, corners).unwrap_err();
        assert!(polygon(&[0., 0., 1., 1.]).contains("4 numbers"));
        assert!(polygon(&[0., 0., 1., 1., 2.]).contains("5 numbers"));
        assert!(polygon(&[0., 0., 1., f64::NAN, 2., 2.]).contains("NaN"));
        assert!(polygon(&[0., 0., 1., 1e9, 2., 2.]).contains("1000000000"));
        assert!(polygon(&[0., 0., 1e6, 1e6].repeat(20)).contains("pixels long"));
    }

    #[test]
    fn runs_of_rows_are_turned_and_put_into_their_place() {
        // ..##      of 4 x 3, in an image of 6 x 5 from column 1 and row 2 on.
        // .#.#
        // #..#
        let rle = Rle::from_rows(6, 5, [1, 2, 4, 3], &[2, 2, 1, 1, 1, 2, 2, 1]).unwrap();
        let rows = ["......", "......", "...##.", "..#.#.", ".#..#."];
        let expected: Vec<bool> = rows.iter().flat_map(|row| row.bytes().map(|byte| byte == b'#')).collect();
        assert_eq!((rle.decode(), rle.area()), (expected, 6));
        assert_eq!(Rle::from_rows(2, 2, [0, 0, 2, 2], &[0, 4]).unwrap().decode(), [true; 4]);
        for (rectangle, counts) in [
            ([3, 2, 4, 3], &[12][..]),
            ([1, 3, 4, 3], &[12]),
            ([usize::MAX, 0, 1, 1], &[1]),
            ([0, 0, usize::MAX, usize::MAX], &[1]),
            ([0, 0, 0, 3], &[]),
            ([0, 0, 2, 2], &[5]),
            ([0, 0, 2, 2], &[u32::MAX, u32::MAX]),
        ] {
            assert!(Rle::from_rows(6, 5, rectangle, counts).is_err(), "{rectangle:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_mask_or_refused(width in 1_usize..50, height in 1_usize..50, text in prop::collection::vec(40_u8..120, 0..30)) {
            if let Ok(rle) = Rle::from_text(width, height, &text) {
                prop_assert_eq!(rle.decode().len(), width * height);
            }
        }

        #[test]
        fn any_polygon_has_its_pixels_inside(width in 1_usize..40, height in 1_usize..40, corners in prop::collection::vec(-99.0..99.0_f64, 0..14)) {
            if let Ok(rle) = Rle::from_polygon(width, height, &corners) {
                let mask = rle.decode();
                prop_assert_eq!(mask.iter().filter(|inside| **inside).count() as u64, rle.area());
                prop_assert_eq!(rle.counts.iter().map(|count| *count as usize).sum::<usize>(), width * height);
            }
        }
    }
}
