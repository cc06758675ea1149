//! From matches to precision and recall: one category over all images.

use std::ops::Range;

use crate::metrics::coco::matching::Matches;
use crate::metrics::coco::{CategoryEval, falling};

/// IoU thresholds: .5, .55, … .95.
pub(super) const THRESHOLDS: usize = 10;
/// Most detections of one category that count in an image.
pub(super) const MOST: usize = 100;
/// Recalls at which precision is read: 0, .01, … 1.
pub(super) const RECALLS: usize = 101;
/// How many detections of one category count in an image, for recall.
const ALLOWED: [usize; 3] = [1, 10, MOST];

/// One category over all images.
pub(super) struct CategoryScore {
    /// For each range of sizes; `None` where there is no object to find.
    areas: [Option<AreaScore>; 4],
    /// Of objects of all sizes; `None` where there are none.
    all: Option<CategoryEval>,
}

/// Averages of one category in one range of sizes.
struct AreaScore {
    /// For each threshold: precision, mean over recalls.
    precision: [f64; THRESHOLDS],
    /// For each of [`ALLOWED`] and each threshold: the share of objects found.
    recall: [[f64; THRESHOLDS]; ALLOWED.len()],
}

/// A detection among all of its category.
struct RankedDetection {
    score: f64,
    /// Place among the detections of its image, from 0.
    rank: usize,
    /// Image and place in [`Matches`].
    at: (usize, usize),
}

impl CategoryScore {
    /// `matches` in the order of image ids; F1 is taken at `confidences`, which rise.
    pub(super) fn new(matches: &[Matches], confidences: &[f64]) -> Self {
        let mut entries: Vec<RankedDetection> = Vec::new();
        for (image, matches) in matches.iter().enumerate() {
            let scores = matches.scores.iter().enumerate();
            entries.extend(scores.map(|(rank, &score)| RankedDetection { score, rank, at: (image, rank) }));
        }
        entries.sort_by(|a, b| falling(a.score, b.score));
        let mut all = None;
        let areas = [0, 1, 2, 3].map(|area| {
            let objects: usize = matches.iter().map(|matches| matches.areas[area].objects).sum();
            if objects == 0 {
                return None;
            }
            let verdicts: Vec<(u16, u16)> = entries
                .iter()
                .map(|entry| {
                    let area = &matches[entry.at.0].areas[area];
                    (area.found[entry.at.1], area.ignored[entry.at.1])
                })
                .collect();
            let mut score = AreaScore { precision: [0.; THRESHOLDS], recall: Default::default() };
            for t in 0..THRESHOLDS {
                let curve = precision_over_recall(&verdicts, t, objects);
                score.precision[t] = curve.iter().sum::<f64>() / RECALLS as f64;
                for (recall, allowed) in score.recall.iter_mut().zip(ALLOWED) {
                    let right = |(entry, verdict): &(&RankedDetection, &(u16, u16))| {
                        entry.rank < allowed && verdict.0 & !verdict.1 & (1 << t) != 0
                    };
                    recall[t] = entries.iter().zip(&verdicts).filter(right).count() as f64 / objects as f64;
                }
                if area == 0 && t == 0 {
                    let scored = entries.iter().zip(&verdicts).map(|(entry, verdict)| (entry.score, *verdict));
                    let f1 = f1_over_confidence(scored, objects, confidences);
                    all = Some(CategoryEval { objects, ap: 0., ap50: score.precision[0], precision: curve, f1 });
                }
            }
            if let (0, Some(all)) = (area, &mut all) {
                all.ap = score.precision.iter().sum::<f64>() / THRESHOLDS as f64;
            }
            Some(score)
        });
        Self { areas, all }
    }

    pub(super) fn finish(self) -> Option<CategoryEval> {
        self.all
    }
}

/// Precision at each of the recalls: the best there or at any higher recall, 0 where the recall is not reached.
fn precision_over_recall(verdicts: &[(u16, u16)], t: usize, objects: usize) -> Vec<f64> {
    let bit = 1 << t;
    let (mut right, mut wrong) = (0., 0.);
    let (mut recall, mut precision) = (Vec::with_capacity(verdicts.len()), Vec::with_capacity(verdicts.len()));
    for (found, _) in verdicts.iter().filter(|(_, ignored)| ignored & bit == 0) {
        if found & bit == 0 {
            wrong += 1.;
        } else {
            right += 1.;
        }
        recall.push(right / objects as f64);
        // As pycocotools, which adds numpy's spacing of 1 against a division by zero.
        precision.push(right / (right + wrong + f64::EPSILON));
    }
    for i in (1..precision.len()).rev() {
        precision[i - 1] = f64::max(precision[i - 1], precision[i]);
    }
    let mut at = 0;
    let reached = |step: usize| {
        while recall.get(at).is_some_and(|&recall| recall < step as f64 * 0.01) {
            at += 1;
        }
        precision.get(at).copied().unwrap_or(0.)
    };
    (0..RECALLS).map(reached).collect()
}

/// F1 at the lowest threshold of the detections that score at least each of `confidences`. `scored` falls, `confidences` rise.
fn f1_over_confidence(
    scored: impl Iterator<Item = (f64, (u16, u16))>,
    objects: usize,
    confidences: &[f64],
) -> Vec<f64> {
    let mut scored = scored.filter(|(_, (_, ignored))| ignored & 1 == 0).peekable();
    let (mut right, mut wrong) = (0., 0.);
    let mut f1: Vec<f64> = confidences
        .iter()
        .rev()
        .map(|&confidence| {
            while let Some((_, (found, _))) = scored.next_if(|(score, _)| *score >= confidence) {
                if found & 1 == 0 {
                    wrong += 1.;
                } else {
                    right += 1.;
                }
            }
            2. * right / (right + wrong + objects as f64)
        })
        .collect();
    f1.reverse();
    f1
}

/// Mean over `thresholds` and categories of the precision in a range of sizes, -1 if there is nothing to find.
pub(super) fn precision(categories: &[&CategoryScore], area: usize, thresholds: Range<usize>) -> f64 {
    let scores = categories.iter().filter_map(|category| category.areas[area].as_ref());
    mean(scores.flat_map(|score| score.precision[thresholds.clone()].iter()))
}

/// Mean over thresholds and categories of the recall in a range of sizes with `ALLOWED[allowed]` detections, -1 if there is
/// nothing to find.
pub(super) fn recall(categories: &[&CategoryScore], area: usize, allowed: usize) -> f64 {
    let scores = categories.iter().filter_map(|category| category.areas[area].as_ref());
    mean(scores.flat_map(|score| score.recall[allowed].iter()))
}

fn mean<'a>(values: impl Iterator<Item = &'a f64>) -> f64 {
    let (sum, count) = values.fold((0., 0.), |(sum, count), value| (sum + value, count + 1.));
    if count > 0. { sum / count } else { -1. }
}
