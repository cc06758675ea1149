//! Pictures that are like no other: pictures of something else, broken ones, the only one of their kind.

use super::neighbors::Neighbors;

/// Neighbours whose mean distance counts.
const ASKED: usize = 10;
/// How far beyond the third quartile of all distances, in distances between quartiles.
const FENCE: f64 = 2.;
/// Fewest images of which quartiles say something.
const FEWEST: usize = 20;

/// A picture far from all others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct FarPicture {
    /// Which.
    pub(super) image: usize,
    /// One less the mean cosine with its nearest neighbours.
    pub(super) distance: f64,
}

/// The images of `unit`, rows `[n, D]` of length 1, that are farther from their neighbours than nearly all others, the farthest
/// first.
pub(super) fn find(unit: &[f32], width: usize, neighbors: &Neighbors) -> Vec<FarPicture> {
    let row = |i: usize| &unit[i * width..][..width];
    let cosine = |i: usize, j: usize| row(i).iter().zip(row(j)).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    let images = unit.len() / width.max(1);
    let distance = |i: usize| {
        let near = &neighbors.of(i)[..ASKED.min(neighbors.of(i).len())];
        1. - near.iter().map(|&(j, _)| cosine(i, j as usize)).sum::<f64>() / near.len().max(1) as f64
    };
    let distances: Vec<f64> = (0..images).map(distance).collect();
    if images < FEWEST {
        return Vec::new();
    }
    let mut sorted = distances.clone();
    sorted.sort_by(f64::total_cmp);
    let quartile = |quarters: usize| sorted[(images - 1) * quarters / 4];
    let fence = quartile(3) + FENCE * (quartile(3) - quartile(1));
    let all = distances.into_iter().enumerate().filter(|(_, distance)| *distance > fence);
    let mut far: Vec<FarPicture> = all.map(|(image, distance)| FarPicture { image, distance }).collect();
    far.sort_by(|a, b| b.distance.total_cmp(&a.distance).then(a.image.cmp(&b.image)));
    far
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt_base::linear_algebra::normalize_l2;

    #[test]
    fn what_is_far_from_all_is_found_and_nothing_else() {
        // Three rings, so that no row is at an end.
        let place = |i: usize| {
            let (angle, radius) = (i as f32 * std::f32::consts::TAU / 42., 1. + 0.1 * (i % 3) as f32);
            [2., radius * angle.cos(), radius * angle.sin()]
        };
        let mut rows: Vec<f32> = (0..42).flat_map(place).collect();
        rows.extend([-1., 0.2, 3.]);
        normalize_l2(&mut rows, 3);
        let far = find(&rows, 3, &Neighbors::new(&rows, 3, 30, 1).unwrap());
        assert_eq!(far.iter().map(|f| f.image).collect::<Vec<_>>(), [42]);
        let few = &rows[..30];
        assert!(find(few, 3, &Neighbors::new(few, 3, 30, 1).unwrap()).is_empty());
    }
}
