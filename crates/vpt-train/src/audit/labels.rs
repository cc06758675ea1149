//! Labels that may be wrong, and classes that are alike.
//!
//! What a label should be is told by two witnesses that have not seen it: a linear probe fitted without the image, as in confident
//! learning (Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", 2021), and the labels of
//! the image's nearest neighbours, weighted by how near they are. A label is doubtful where the mean of both gives it less than a
//! small share of what it gives the likeliest class. On drawn shapes and photos with labels flipped on purpose this found more at the same
//! precision than the confident joint, which judges a class by the mean confidence in it and needs many images for that, and than
//! either witness alone.

use super::neighbors::Neighbors;
use crate::train::features::logistic::{Labelled, held_out};
use vpt_base::Result;

/// A label is doubtful with less than this share of the likeliest class's probability.
const DOUBTFUL: f32 = 0.07;
/// The probe's L2 penalty, on features that are centred and of length √D.
const PENALTY: f64 = 33.;
/// How fast a neighbour's weight falls with its cosine.
const SOFTNESS: f32 = 0.05;
/// Neighbours that are asked.
pub(super) const ASKED: usize = 30;
/// Images a class must have: with fewer, nothing is left to tell one by when it is held out.
pub(super) const FEWEST: usize = 3;
/// Pairs of classes that are told, and the least share of an image's probability that goes to the other class.
const ALIKE: (usize, f64) = (10, 0.01);

/// A label that may be wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Doubt {
    /// Which image.
    pub(super) image: usize,
    /// Probability of its label.
    pub(super) given: f32,
    /// The likeliest class.
    pub(super) suggestion: u32,
    /// Its probability.
    pub(super) likely: f32,
}

/// Two classes that are hard to tell apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct AlikeClasses {
    /// The classes.
    pub(super) classes: [usize; 2],
    /// Mean share of an image's probability that the other one gets.
    pub(super) share: f64,
}

/// What the labels of images look like from outside.
#[derive(Debug, Default)]
pub(super) struct JudgedLabels {
    /// The most doubtful first.
    pub(super) doubtful: Vec<Doubt>,
    /// The most alike first.
    pub(super) alike: Vec<AlikeClasses>,
    /// Classes with too few images to tell.
    pub(super) rare: Vec<usize>,
}

/// Judges `labels` of images with the features `unit` `[n, D]`, centred and of length 1, among `classes` classes.
pub(super) fn judge(unit: &[f32], neighbors: &Neighbors, labels: &[u32], classes: usize) -> Result<JudgedLabels> {
    let mut counts = vec![0; classes];
    for &label in labels {
        counts[label as usize] += 1;
    }
    let common: Vec<usize> = (0..classes).filter(|&class| counts[class] >= FEWEST).collect();
    let rare = (0..classes).filter(|&class| (1..FEWEST).contains(&counts[class])).collect();
    if common.len() < 2 {
        return Ok(JudgedLabels { rare, ..JudgedLabels::default() });
    }
    let number: Vec<Option<u32>> = (0..classes).map(|c| common.binary_search(&c).ok().map(|i| i as u32)).collect();
    let width = unit.len() / labels.len().max(1);
    let scale = (width as f32).sqrt();
    let mut judged = Vec::new();
    let (mut features, mut own) = (Vec::new(), Vec::new());
    for (i, &label) in labels.iter().enumerate() {
        let Some(label) = number[label as usize] else { continue };
        judged.push(i);
        own.push(label);
        features.extend(unit[i * width..][..width].iter().map(|value| value * scale));
    }
    let mut probabilities = held_out(Labelled { features: &features, labels: &own }, common.len(), PENALTY)?;
    drop(features);
    for (&i, row) in judged.iter().zip(probabilities.chunks_exact_mut(common.len())) {
        let votes = votes(neighbors.of(i), |j| number[labels[j] as usize], common.len());
        row.iter_mut().zip(votes).for_each(|(p, vote)| *p = f32::midpoint(*p, vote));
    }
    let rows = || judged.iter().zip(&own).zip(probabilities.chunks_exact(common.len()));
    let mut doubtful: Vec<Doubt> = rows()
        .filter_map(|((&image, &label), row)| {
            let (best, &likely) = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1))?;
            let given = row[label as usize];
            let suggestion = common[best] as u32;
            (given < DOUBTFUL * likely).then_some(Doubt { image, given, suggestion, likely })
        })
        .collect();
    doubtful.sort_by(|a, b| (a.given / a.likely).total_cmp(&(b.given / b.likely)).then(a.image.cmp(&b.image)));
    let mut shares = vec![0f64; common.len() * common.len()];
    for ((_, &label), row) in rows() {
        let sums = &mut shares[label as usize * common.len()..][..common.len()];
        sums.iter_mut().zip(row).for_each(|(sum, &p)| *sum += f64::from(p));
    }
    Ok(JudgedLabels { doubtful, alike: alike(&shares, &common, &counts), rare })
}

/// The labels of neighbours as shares `[C]`; those without a `label` do not vote.
fn votes(neighbors: &[(u32, f32)], label: impl Fn(usize) -> Option<u32>, classes: usize) -> Vec<f32> {
    let mut votes = vec![0f32; classes];
    let nearest = neighbors.first().map_or(0., |(_, cosine)| *cosine);
    for &(j, cosine) in neighbors {
        if let Some(label) = label(j as usize) {
            votes[label as usize] += ((cosine - nearest) / SOFTNESS).exp();
        }
    }
    let sum: f32 = votes.iter().sum();
    votes.into_iter().map(|vote| vote / sum.max(f32::MIN_POSITIVE)).collect()
}

/// The pairs of `common` classes whose images give most to the other; `shares` `[C, C]` are summed over the images of each.
fn alike(shares: &[f64], common: &[usize], counts: &[usize]) -> Vec<AlikeClasses> {
    let n = common.len();
    let mean = |a: usize, b: usize| shares[a * n + b] / counts[common[a]] as f64;
    let pairs = (0..n).flat_map(|a| (a + 1..n).map(move |b| (a, b)));
    let mut all: Vec<AlikeClasses> = pairs
        .map(|(a, b)| AlikeClasses { classes: [common[a], common[b]], share: f64::midpoint(mean(a, b), mean(b, a)) })
        .filter(|pair| pair.share >= ALIKE.1)
        .collect();
    all.sort_by(|a, b| b.share.total_cmp(&a.share).then(a.classes.cmp(&b.classes)));
    all.truncate(ALIKE.0);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;
    use vpt_base::linear_algebra::normalize_l2;
    use vpt_base::random::stream;

    /// Rows around a direction a class; the last two classes are near each other.
    fn rows(classes: usize, each: usize) -> (Vec<f32>, Vec<u32>) {
        let width = classes + 2;
        let mut rng = stream(3, "rows", 0, 0);
        let (mut rows, mut labels) = (Vec::new(), Vec::new());
        for i in 0..classes * each {
            let class = i % classes;
            let mut row: Vec<f32> = (0..width).map(|_| rng.random_range(-0.25..0.25)).collect();
            row[class] += 1.;
            if class + 2 >= classes {
                row[classes] += 1.5;
            }
            rows.extend(row);
            labels.push(class as u32);
        }
        normalize_l2(&mut rows, width);
        (rows, labels)
    }

    fn judged(rows: &[f32], labels: &[u32], classes: usize) -> JudgedLabels {
        let neighbors = Neighbors::new(rows, rows.len() / labels.len(), ASKED, 2).unwrap();
        judge(rows, &neighbors, labels, classes).unwrap()
    }

    #[test]
    fn flipped_labels_are_found_with_what_they_were() {
        let (rows, truth) = rows(6, 20);
        assert!(judged(&rows, &truth, 6).doubtful.is_empty());
        let mut labels = truth.clone();
        let flipped = [3, 50, 77];
        for i in flipped {
            labels[i] = (labels[i] + 2) % 6;
        }
        let found = judged(&rows, &labels, 6);
        let mut images: Vec<usize> = found.doubtful.iter().map(|doubt| doubt.image).collect();
        images.sort_unstable();
        assert_eq!(images, flipped);
        assert!(found.doubtful.iter().all(|doubt| doubt.suggestion == truth[doubt.image]));
        assert_eq!(found.alike[0].classes, [4, 5]);
    }

    #[test]
    fn of_too_few_images_nothing_is_told() {
        let (rows, mut labels) = rows(3, 12);
        // Two classes of one and two images.
        labels[0] = 3;
        labels[4] = 4;
        labels[7] = 4;
        let found = judged(&rows, &labels, 6);
        assert_eq!(found.rare, [3, 4]);
        assert!(found.doubtful.iter().all(|doubt| ![0, 4, 7].contains(&doubt.image)));
        let alone = judged(&rows, &vec![0; labels.len()], 1);
        assert!(alone.doubtful.is_empty() && alone.rare.is_empty());
    }
}
