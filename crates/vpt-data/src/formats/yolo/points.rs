//! Lines of boxes with keypoints that look like polygons: both are a class and many numbers, and only `kpt_shape` in
//! `data.yaml` tells them apart.

use std::collections::BTreeSet;

/// How far past its box a keypoint may lie, in shares of the box.
const SLACK: f64 = 0.25;

/// Four corners are a turned box far more often than two keypoints.
const CORNERS: usize = 8;

/// Lines of more numbers than a box has, of a data set that says nothing of keypoints.
#[derive(Default)]
pub(super) struct LongLines {
    all: usize,
    /// Those that may be a box with points of two numbers each, and of three.
    like_points: [usize; 2],
    /// Numbers behind the class.
    lengths: BTreeSet<usize>,
}

impl LongLines {
    /// Takes in the numbers behind the class.
    pub(super) fn add(&mut self, numbers: &[f64]) {
        self.all += 1;
        for (count, dimensions) in self.like_points.iter_mut().zip([2, 3]) {
            *count += usize::from(is_box_with_points(numbers, dimensions));
        }
        self.lengths.insert(numbers.len());
    }

    /// Takes in other lines.
    pub(super) fn extend(&mut self, other: &Self) {
        self.all += other.all;
        self.like_points.iter_mut().zip(other.like_points).for_each(|(count, other)| *count += other);
        self.lengths.extend(&other.lengths);
    }

    /// What to write, if all lines are boxes with the same number of keypoints.
    pub(super) fn shape(&self) -> Option<String> {
        let length = *self.lengths.first().filter(|_| self.lengths.len() == 1)?;
        let fits =
            [2, 3].into_iter().zip(self.like_points).filter(|(_, count)| *count == self.all && length != CORNERS);
        let shapes: Vec<String> =
            fits.map(|(dimensions, _)| format!("[{}, {dimensions}]", (length - 4) / dimensions)).collect();
        (!shapes.is_empty()).then(|| shapes.join(" or "))
    }
}

/// Whether `numbers` may be center, width and height of a box with points in it, each in `dimensions` numbers, of which the third
/// says whether it is seen.
fn is_box_with_points(numbers: &[f64], dimensions: usize) -> bool {
    let [x, y, width, height, points @ ..] = numbers else { return false };
    let share = |value: f64| (0. ..=1.).contains(&value);
    if ![*x, *y, *width, *height].into_iter().all(share) || *width == 0. || *height == 0. {
        return false;
    }
    let fits = |point: &[f64]| {
        let (dx, dy) = ((point[0] - x).abs() / width, (point[1] - y).abs() / height);
        // A point that is not labelled is at 0 0.
        let is_inside = dx.max(dy) <= 0.5 + SLACK || (point[0] == 0. && point[1] == 0.);
        is_inside && point.get(2).is_none_or(|seen| [0., 1., 2.].contains(seen))
    };
    !points.is_empty() && points.len() % dimensions == 0 && points.chunks_exact(dimensions).all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(lines: &[&[f64]]) -> Option<String> {
        let mut all = LongLines::default();
        for line in lines {
            all.add(line);
        }
        all.shape()
    }

    #[test]
    fn boxes_with_points_are_told_from_polygons() {
        let pose = [0.5, 0.5, 0.2, 0.2, 0.42, 0.42, 0.58, 0.45, 0.5, 0.58];
        assert_eq!(shape(&[&pose]).unwrap(), "[3, 2]");
        let seen = [0.5, 0.5, 0.2, 0.2, 0.42, 0.42, 2., 0., 0., 0.];
        assert_eq!(shape(&[&seen, &seen]).unwrap(), "[2, 3]");
        // A triangle, a pentagon, a turned box, polygons of several lengths.
        for lines in [
            &[&[0.1, 0.1, 0.9, 0.1, 0.5, 0.9][..]][..],
            &[&[0.1, 0.1, 0.9, 0.1, 0.95, 0.5, 0.5, 0.9, 0.05, 0.5]],
            &[&[0.4, 0.4, 0.6, 0.4, 0.6, 0.6, 0.4, 0.6]],
            &[&pose, &[0.5, 0.5, 0.2, 0.2, 0.5, 0.5]],
            &[],
        ] {
            assert_eq!(shape(lines), None, "{lines:?}");
        }
    }
}
