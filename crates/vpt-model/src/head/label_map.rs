//! Label mappings: the classes of a task told by the classifier that a backbone was published with, nothing learned.
//!
//! A mapping is a matrix ω `[S, T]` from source to target classes, and target logits are source logits times ω.
//!
//! | mapping | ω | from |
//! |---|---|---|
//! | RLM | a source class of its own for each target class, drawn at random | Elsayed et al., "Adversarial Reprogramming of Neural Networks" (2019) |
//! | FLM | the same, by how often images of the target class are taken for the source class without a prompt | Tsai et al. (2020), as Chen et al. (2023) state it |
//! | ILM | the same, counted anew in every epoch, with the prompt | Chen et al., "Understanding and Improving Visual Prompting: A Label-Mapping Perspective" (2023) |
//! | BLM | how likely the target class is where the source class is predicted, ω(s, t) ∝ n(s, t) / (n(s) + 1) with columns of sum 1 | Cai et al., "Bayesian-guided Label Mapping for Visual Reprogramming" (2024) |
//! | BLM+ | the same with the probabilities of an image's three likeliest source classes in the place of a count | the same |
//!
//! Ties: of source classes with equal logits the first is predicted, and of equal counts the one of the lower source class,
//! then of the lower target class, is taken first. So where counts have run out, target classes in order get the source
//! classes that are left, in order.

use rand::{Rng, seq::index};
use serde::{Deserialize, Serialize};

use vpt_base::{
    Error, Result,
    choice::choice,
    params::{self, Group, Param},
};

choice! {
    /// How source classes become target classes.
    pub enum LabelMap for "label_map" {
        /// At random.
        Rlm = "rlm",
        /// By frequency, counted once.
        Flm = "flm",
        /// By frequency, counted in every epoch.
        Ilm = "ilm",
        /// By the Bayesian rule from frequencies.
        Blm = "blm",
        /// By the Bayesian rule from the likeliest source classes.
        BlmPlus = "blm+",
    }
}

/// The mapping ω `[S, T]`: its name in task files and checkpoints.
pub const MAP: &str = "label_map";
/// Name in checkpoints of the counts of the epoch under way, `[S, T]`.
pub(crate) const VOTES: &str = "label_map.votes";

/// Source classes of an image that BLM+ looks at.
const LIKELIEST: usize = 3;
/// Laplace smoothing: added to how often a source class was predicted.
const LAPLACE: f64 = 1.;

/// A part that an image has in the mapping: its label, a source class, and how much it counts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Vote {
    /// The source class.
    pub source: usize,
    /// The image's own class.
    pub target: usize,
    /// How much it counts.
    pub weight: f32,
}

impl LabelMap {
    /// Whether it is counted at all.
    pub fn counts(self) -> bool {
        self != Self::Rlm
    }

    /// Whether it is counted anew in every epoch.
    pub fn follows_epochs(self) -> bool {
        self.counts() && self != Self::Flm
    }

    /// Whether a target class has one source class, for itself.
    pub fn is_injective(self) -> bool {
        matches!(self, Self::Rlm | Self::Flm | Self::Ilm)
    }

    /// Votes of an image of class `target` with source logits `row` `[S]`.
    fn votes_of(self, row: &[f32], target: usize, out: &mut Vec<Vote>) {
        match self {
            Self::BlmPlus => {
                let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f64 = row.iter().map(|&logit| f64::from(logit - most).exp()).sum();
                let mut order: Vec<usize> = (0..row.len()).collect();
                let before = |a: &usize, b: &usize| row[*b].total_cmp(&row[*a]).then(a.cmp(b));
                let kept = LIKELIEST.min(row.len());
                if kept < row.len() {
                    order.select_nth_unstable_by(kept, before);
                    order.truncate(kept);
                }
                order.sort_by(before);
                let vote = |source: usize| {
                    let weight = (f64::from(row[source] - most).exp() / sum) as f32;
                    Vote { source, target, weight }
                };
                out.extend(order.into_iter().map(vote));
            }
            _ => out.push(Vote { source: vpt_base::logits::argmax(row), target, weight: 1. }),
        }
    }

    /// Votes of images with source logits `[m, S]` and `labels` `[m]`, in their order.
    pub fn votes(self, logits: &[f32], sources: usize, labels: &[u32]) -> Vec<Vote> {
        let mut votes = Vec::new();
        for (row, label) in logits.chunks_exact(sources.max(1)).zip(labels) {
            self.votes_of(row, *label as usize, &mut votes);
        }
        votes
    }

    /// The mapping ω `[S, T]` that follows from what was counted, `[S, T]`. [`Self::Rlm`] is drawn, not counted.
    pub fn matrix(self, votes: &[f32], targets: usize) -> Vec<f32> {
        if self.is_injective() { greedy(votes, targets) } else { bayes(votes, targets) }
    }
}

/// A source class of its own for each of `targets` classes, drawn among `sources`: ω `[S, T]`.
pub(crate) fn random(sources: usize, targets: usize, rng: &mut impl Rng) -> Vec<f32> {
    one_to_one(index::sample(rng, sources, targets.min(sources)).into_iter().zip(0..), sources, targets)
}

fn one_to_one(pairs: impl Iterator<Item = (usize, usize)>, sources: usize, targets: usize) -> Vec<f32> {
    let mut map = vec![0.; sources * targets];
    pairs.for_each(|(source, target)| map[source * targets + target] = 1.);
    map
}

/// The pair with the highest count, then the highest of those that share neither class with it, and so on.
fn greedy(votes: &[f32], targets: usize) -> Vec<f32> {
    let sources = votes.len() / targets.max(1);
    // In the order of the matrix, which a stable sort keeps among equals.
    let mut counted: Vec<usize> = (0..votes.len()).filter(|&i| votes[i] > 0.).collect();
    counted.sort_by(|&a, &b| votes[b].total_cmp(&votes[a]));
    let (mut of_source, mut of_target) = (vec![false; sources], vec![false; targets]);
    let mut pairs = Vec::with_capacity(targets);
    for i in counted {
        let (source, target) = (i / targets, i % targets);
        if !of_source[source] && !of_target[target] {
            (of_source[source], of_target[target]) = (true, true);
            pairs.push((source, target));
        }
    }
    let free = |taken: &[bool]| (0..taken.len()).filter(|&i| !taken[i]).collect::<Vec<_>>();
    pairs.extend(free(&of_source).into_iter().zip(free(&of_target)));
    one_to_one(pairs.into_iter(), sources, targets)
}

/// How likely each target class is where a source class is predicted, columns scaled to a sum of 1. A target class that
/// nothing was counted of is told by all source classes alike.
fn bayes(votes: &[f32], targets: usize) -> Vec<f32> {
    let sources = votes.len() / targets.max(1);
    let mut map: Vec<f64> = votes.iter().map(|&n| f64::from(n)).collect();
    let mut columns = vec![0.; targets];
    for row in map.chunks_exact_mut(targets.max(1)) {
        let predicted = row.iter().sum::<f64>() + LAPLACE;
        for (value, column) in row.iter_mut().zip(&mut columns) {
            *value /= predicted;
            *column += *value;
        }
    }
    let alike = 1. / sources.max(1) as f64;
    let scaled = |(i, value): (usize, f64)| {
        let column = columns[i % targets];
        (if column > 0. { value / column } else { alike }) as f32
    };
    map.into_iter().enumerate().map(scaled).collect()
}

/// The linear head that target logits are of source features: weight `[T, D]` and bias `[T]`, of the classifier's `weight`
/// `[S, D]` and `bias` `[S]` and the mapping `[S, T]`. Constants: nothing of it is learned.
pub(crate) fn fold(map: &[f32], weight: &[f32], bias: &[f32], targets: usize) -> Result<Vec<Param>> {
    let width = weight.len() / bias.len().max(1);
    if targets == 0 || map.len() != bias.len() * targets {
        let message = format!("{} values for {} source classes and {targets} classes", map.len(), bias.len());
        return Err(Error::invalid(MAP, message));
    }
    let (mut folded, mut shift) = (vec![0.; targets * width], vec![0.; targets]);
    for ((source, row), parts) in weight.chunks_exact(width).enumerate().zip(map.chunks_exact(targets)) {
        for (target, &part) in parts.iter().enumerate().filter(|(_, part)| **part != 0.) {
            let to = &mut folded[target * width..(target + 1) * width];
            to.iter_mut().zip(row).for_each(|(to, from)| *to += part * from);
            shift[target] += part * bias[source];
        }
    }
    Ok(vec![
        Param::new("head.weight", &[targets, width], folded, Group::Fixed)?,
        Param::new("head.bias", &[targets], shift, Group::Fixed)?,
    ])
}

/// Adds what was counted to the votes among `params`.
pub(crate) fn count(params: &mut [Param], votes: &[Vote], targets: usize) {
    let Some(counted) = params.iter_mut().find(|param| param.name == VOTES) else { return };
    for vote in votes {
        if let Some(sum) = counted.values.get_mut(vote.source * targets + vote.target) {
            *sum += vote.weight;
        }
    }
}

/// Puts the mapping that follows from the votes among `params` in the place of the old one, and begins to count anew. Where
/// nothing was counted all stays as it is.
pub(crate) fn renew(params: &mut [Param], kind: LabelMap, targets: usize) {
    let Some(counted) = params.iter_mut().find(|param| param.name == VOTES) else { return };
    if counted.values.iter().all(|&n| n == 0.) {
        return;
    }
    let zeros = vec![0.; counted.values.len()];
    let votes = std::mem::replace(&mut counted.values, zeros);
    if let Some(map) = params.iter_mut().find(|param| param.name == MAP) {
        map.values = kind.matrix(&votes, targets);
    }
}

/// The source classes that have a part in each target class, of a mapping `[S, T]`, and how much: most of `most`, the largest
/// part first, of equals the lower class.
pub fn leading(params: &[Param], most: usize) -> Result<Vec<Vec<(usize, f32)>>> {
    let map = params::find(params, MAP)?;
    let [_, targets] = map.shape[..] else { return Err(Error::invalid(MAP, "not of two dimensions")) };
    let column = |target: usize| {
        let column = map.values.iter().skip(target).step_by(targets).copied().enumerate();
        let mut parts: Vec<(usize, f32)> = column.filter(|(_, part)| *part > 0.).collect();
        parts.sort_by(|a, b| b.1.total_cmp(&a.1));
        parts.truncate(most);
        parts
    };
    Ok((0..targets).map(column).collect())
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // counts are exact
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use vpt_base::random::{normal, stream};

    /// Logits of few values, so that ties are frequent, and labels.
    fn case(seed: u64) -> (usize, usize, Vec<f32>, Vec<u32>) {
        let mut rng = stream(seed, "label map test", 0, 0);
        let targets = rng.random_range(1..6);
        let sources = targets + rng.random_range(0..5);
        let images = rng.random_range(0..14);
        let levels = if seed.is_multiple_of(2) { 3 } else { 1000 };
        let logits = (0..images * sources).map(|_| rng.random_range(0..levels) as f32 * 0.37).collect();
        let labels = (0..images).map(|_| rng.random_range(0..targets as u32)).collect();
        (sources, targets, logits, labels)
    }

    /// The counts, by one look for every pair of classes.
    fn counted(sources: usize, targets: usize, logits: &[f32], labels: &[u32]) -> Vec<Vec<f64>> {
        let predicted: Vec<usize> = logits
            .chunks(sources)
            .map(|row| (0..sources).find(|&s| row.iter().all(|other| row[s] >= *other)).unwrap())
            .collect();
        let of = |s, t| predicted.iter().zip(labels).filter(|(p, l)| **p == s && **l as usize == t).count() as f64;
        (0..sources).map(|s| (0..targets).map(|t| of(s, t)).collect()).collect()
    }

    fn votes(kind: LabelMap, sources: usize, targets: usize, logits: &[f32], labels: &[u32]) -> Vec<f32> {
        let zeros =
            |name: &str| Param::new(name, &[sources, targets], vec![0.; sources * targets], Group::Fixed).unwrap();
        let mut params = vec![zeros(MAP), zeros(VOTES)];
        count(&mut params, &kind.votes(logits, sources, labels), targets);
        params.remove(1).values
    }

    #[test]
    fn frequency_maps_equal_a_search_of_the_whole_matrix_for_every_class() {
        for seed in 0..200 {
            let (sources, targets, logits, labels) = case(seed);
            let mut left = counted(sources, targets, &logits, &labels);
            let mut expected = vec![0.; sources * targets];
            for _ in 0..targets {
                let (mut best, mut at) = (-1., (0, 0));
                for (s, row) in left.iter().enumerate() {
                    for (t, &count) in row.iter().enumerate() {
                        if count > best {
                            (best, at) = (count, (s, t));
                        }
                    }
                }
                expected[at.0 * targets + at.1] = 1.;
                left[at.0].fill(-1.);
                for row in &mut left {
                    row[at.1] = -1.;
                }
            }
            for kind in [LabelMap::Flm, LabelMap::Ilm] {
                let votes = votes(kind, sources, targets, &logits, &labels);
                assert_eq!(kind.matrix(&votes, targets), expected, "case {seed}");
            }
        }
    }

    /// The formula, a number at a time.
    fn by_formula(counts: &[Vec<f64>], targets: usize) -> Vec<f64> {
        let conditional = |s: usize, t: usize| counts[s][t] / (counts[s].iter().sum::<f64>() + 1.);
        let column = |t: usize| (0..counts.len()).map(|s| conditional(s, t)).sum::<f64>();
        let value = |s: usize, t: usize| match column(t) {
            0. => 1. / counts.len() as f64,
            sum => conditional(s, t) / sum,
        };
        (0..counts.len()).flat_map(|s| (0..targets).map(move |t| (s, t))).map(|(s, t)| value(s, t)).collect()
    }

    fn close(found: &[f32], expected: &[f64], what: &str) {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (f, e) in found.iter().zip(expected) {
            assert!((f64::from(*f) - e).abs() < 1e-6, "{what}: {found:?} {expected:?}");
        }
    }

    #[test]
    fn bayesian_maps_equal_the_formula() {
        for seed in 0..200 {
            let (sources, targets, logits, labels) = case(seed);
            let expected = by_formula(&counted(sources, targets, &logits, &labels), targets);
            let votes = votes(LabelMap::Blm, sources, targets, &logits, &labels);
            let map = LabelMap::Blm.matrix(&votes, targets);
            close(&map, &expected, &format!("case {seed}"));
            for t in 0..targets {
                let sum: f32 = map.iter().skip(t).step_by(targets).sum();
                assert!((sum - 1.).abs() < 1e-5, "column {t} of case {seed} has the sum {sum}");
            }
        }
    }

    #[test]
    fn the_likeliest_three_count_by_their_probabilities() {
        for seed in 0..200 {
            let (sources, targets, logits, labels) = case(seed);
            let mut counts = vec![vec![0.; targets]; sources];
            for (row, &label) in logits.chunks(sources).zip(&labels) {
                let sum: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
                for s in 0..sources {
                    // As many as come before it.
                    let ahead = (0..sources).filter(|&o| row[o] > row[s] || (row[o] == row[s] && o < s)).count();
                    if ahead < 3 {
                        counts[s][label as usize] += f64::from(row[s]).exp() / sum;
                    }
                }
            }
            let votes = votes(LabelMap::BlmPlus, sources, targets, &logits, &labels);
            let of_votes: Vec<f64> = counts.iter().flatten().copied().collect();
            close(&votes, &of_votes, &format!("votes of case {seed}"));
            close(&LabelMap::BlmPlus.matrix(&votes, targets), &by_formula(&counts, targets), &format!("case {seed}"));
        }
    }

    #[test]
    fn a_random_map_gives_every_class_a_source_of_its_own() {
        let mut maps = BTreeSet::new();
        for seed in 0..20 {
            let map = random(9, 4, &mut stream(seed, "label map", 0, 0));
            assert!(map.chunks(4).all(|row| row.iter().sum::<f32>() <= 1.), "{map:?}");
            assert!((0..4).all(|t| map.iter().skip(t).step_by(4).sum::<f32>() == 1.), "{map:?}");
            assert_eq!(map, random(9, 4, &mut stream(seed, "label map", 0, 0)));
            maps.insert(format!("{map:?}"));
        }
        assert!(maps.len() > 15, "only {} different ones of twenty", maps.len());
    }

    #[test]
    fn the_folded_head_gives_source_logits_times_the_map() {
        let mut rng = stream(4, "test", 0, 0);
        let mut random = |n: usize| (0..n).map(|_| normal(&mut rng)).collect::<Vec<f32>>();
        let (sources, targets, width) = (7, 3, 5);
        let (weight, bias, map, x) =
            (random(sources * width), random(sources), random(sources * targets), random(2 * width));
        let folded = fold(&map, &weight, &bias, targets).unwrap();
        for row in x.chunks(width) {
            let dot = |w: &[f32]| w.iter().zip(row).map(|(w, x)| w * x).sum::<f32>();
            let source: Vec<f32> = (0..sources).map(|s| dot(&weight[s * width..][..width]) + bias[s]).collect();
            for t in 0..targets {
                let expected: f32 = (0..sources).map(|s| source[s] * map[s * targets + t]).sum();
                let found = dot(&folded[0].values[t * width..][..width]) + folded[1].values[t];
                assert!((found - expected).abs() < 1e-4, "{found} {expected}");
            }
        }
        assert!(fold(&map[1..], &weight, &bias, targets).is_err());
    }

    #[test]
    fn a_map_is_renewed_from_votes_which_then_begin_anew() {
        let (sources, targets, logits, labels) = (4, 2, [1., 0., 0., 0., 0., 0., 5., 0.], [1, 0]);
        let param = |name: &str| Param::new(name, &[sources, targets], vec![0.; 8], Group::Fixed).unwrap();
        let mut params = vec![param(MAP), param(VOTES)];
        count(&mut params, &LabelMap::Ilm.votes(&logits, sources, &labels), targets);
        renew(&mut params, LabelMap::Ilm, targets);
        assert_eq!(leading(&params, 1).unwrap(), [[(2, 1.)], [(0, 1.)]]);
        assert_eq!(params[1].values, [0.; 8]);
        let before = params.clone();
        renew(&mut params, LabelMap::Ilm, targets);
        assert_eq!(params, before, "nothing was counted");
    }
}
