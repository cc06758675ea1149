//! The images whose features are nearest to those of each image.

use std::cmp::Ordering;

use candle_core::{Device, Tensor};

use vpt_base::candle::Fault;
use vpt_base::{Result, parallel::shares};

/// Rows that are compared with all others at a time.
const BLOCK: usize = 256;

/// The nearest images of each, nearest first.
#[derive(Debug, Clone)]
pub(super) struct Neighbors {
    /// How many of each image: fewer than asked for where there are not as many images.
    count: usize,
    /// Which, and the cosines with them, `[n, count]`.
    all: Vec<(u32, f32)>,
}

impl Neighbors {
    /// The `count` rows with the highest cosine with each of `unit`, rows `[n, D]` of length 1.
    pub(super) fn new(unit: &[f32], width: usize, count: usize, threads: usize) -> Result<Self> {
        let images = unit.len() / width.max(1);
        let count = count.min(images.saturating_sub(1));
        let mut all = Vec::with_capacity(images * count);
        if count > 0 {
            let rows = Tensor::from_slice(unit, (images, width), &Device::Cpu).map_err(Fault::from)?;
            for first in (0..images).step_by(BLOCK) {
                let block = BLOCK.min(images - first);
                let cosines = cosines(&rows, first, block)?;
                let nearest = |i: usize| nearest(&cosines[i * images..][..images], first + i, count);
                let found = shares(block, threads, |range| range.flat_map(nearest).collect::<Vec<_>>());
                all.extend(found.into_iter().flatten());
            }
        }
        Ok(Self { count, all })
    }

    /// Those of the image `i`.
    pub(super) fn of(&self, i: usize) -> &[(u32, f32)] {
        &self.all[i * self.count..][..self.count]
    }
}

/// The products of `block` rows from `first` on with all rows, `[block, n]`.
fn cosines(rows: &Tensor, first: usize, block: usize) -> Result<Vec<f32>, Fault> {
    Ok(rows.narrow(0, first, block)?.matmul(&rows.t()?)?.flatten_all()?.to_vec1()?)
}

/// The `count` greatest of `cosines` but that with `own`.
fn nearest(cosines: &[f32], own: usize, count: usize) -> Vec<(u32, f32)> {
    let mut found: Vec<(u32, f32)> = (0..).zip(cosines.iter().copied()).filter(|(i, _)| *i as usize != own).collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0));
    if count < found.len() {
        found.select_nth_unstable_by(count, order);
        found.truncate(count);
    }
    found.sort_by(order);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt_base::linear_algebra::normalize_l2;

    #[test]
    fn the_nearest_are_those_with_the_greatest_cosine() {
        let (images, width) = (300, 3);
        let mut rows: Vec<f32> = (0..images * width).map(|i| ((i * i * 7 + i) % 31) as f32 - 15.).collect();
        normalize_l2(&mut rows, width);
        let found = Neighbors::new(&rows, width, 5, 2).unwrap();
        let row = |i: usize| &rows[i * width..][..width];
        let cosine = |i: usize, j: usize| row(i).iter().zip(row(j)).map(|(a, b)| a * b).sum::<f32>();
        for i in [0, 17, 255, 256, 299] {
            let mut all: Vec<f32> = (0..images).filter(|&j| j != i).map(|j| cosine(i, j)).collect();
            all.sort_by(|a, b| b.total_cmp(a));
            let of = found.of(i);
            assert!(of.iter().zip(&all).all(|((_, found), expected)| (found - expected).abs() < 1e-6));
            assert!(of.iter().all(|(j, found)| *j as usize != i && (cosine(i, *j as usize) - found).abs() < 1e-6));
        }
        assert_eq!(Neighbors::new(&rows[..6], width, 5, 2).unwrap().of(1).len(), 1);
        assert!(Neighbors::new(&rows[..3], width, 5, 2).unwrap().of(0).is_empty());
    }
}
