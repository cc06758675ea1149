//! A batch in shares: each is computed apart, as a batch of its own, and they are added up in their order. What comes out depends on how
//! many shares there are, which the run's configuration says, and not on how many processes compute them.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{
    process_group::ProcessGroup,
    task::{MeanOver, StepResult},
};
use crate::config::Plan;
use vpt_base::{Error, Result};
use vpt_model::head::label_map::Vote;

/// How the batches of a run are dealt out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shares {
    /// How many a batch has; the last of an epoch may have fewer, and its last share fewer images.
    count: usize,
    /// Those of this rank.
    own: Range<usize>,
    /// Images of a share.
    pub(crate) size: usize,
}

/// All of a share's step but its gradients.
#[derive(Serialize, Deserialize)]
struct ShareTotals {
    images: usize,
    mean_over: MeanOver,
    losses: Vec<f64>,
    correct: usize,
    votes: Vec<Vote>,
    /// Lengths of the gradients.
    lens: Vec<usize>,
}

impl Shares {
    /// Those of the run `plan` on the ranks of `group`.
    ///
    /// # Errors
    /// A rank would have none.
    pub(crate) fn new(plan: &Plan, group: &ProcessGroup) -> Result<Self> {
        let (count, ranks) = (plan.config.shares.unwrap_or(1), group.size());
        if ranks > count && !plan.solved {
            let message = format!(
                "a batch has {count}, too few for {ranks} ranks: give as many or more, which is part of the run and stays with it"
            );
            return Err(Error::setting("shares", message));
        }
        let of = |rank: usize| rank * count / ranks;
        Ok(Self { count, own: of(group.rank())..of(group.rank() + 1), size: plan.batch_size / count })
    }

    /// Whether a batch is computed whole.
    pub(crate) fn are_one(&self) -> bool {
        self.count == 1
    }

    /// The images of this rank's shares in the batches that `order` is cut into.
    pub(crate) fn own_images(&self, order: &[usize]) -> Vec<usize> {
        let shares = order.chunks(self.size).enumerate();
        shares.filter(|(i, _)| self.own.contains(&(i % self.count))).flat_map(|(_, images)| images).copied().collect()
    }

    /// How many shares this rank has in a batch of so many images.
    pub(crate) fn of_batch(&self, images: usize) -> usize {
        let there_are = images.div_ceil(self.size);
        self.own.end.min(there_are).saturating_sub(self.own.start)
    }
}

/// The step of a batch of which this rank computes the shares `own`, each with its number of images; and the number of images in all.
///
/// # Errors
/// A rank has an error in the place of a share.
pub(crate) fn join(
    group: &ProcessGroup,
    own: impl Iterator<Item = Result<(usize, StepResult)>>,
    losses_are_means: bool,
) -> Result<(StepResult, usize)> {
    let mut sums: Vec<Vec<f32>> = Vec::new();
    let told = own.map(|share| {
        let (images, StepResult { losses, correct, gradients, votes, mean_over }) = share?;
        let lens = gradients.iter().map(Vec::len).collect();
        // A share's gradients are of its mean; in the batch's mean it counts by what it is a mean over.
        let mut values = gradients.concat();
        let weight = mean_over.divisor() as f32;
        for value in &mut values {
            *value *= weight;
        }
        match sums.first_mut() {
            // The order is that of all shares where all are here, and one sum takes less memory.
            Some(sum) if group.is_alone() => sum.iter_mut().zip(&values).for_each(|(sum, value)| *sum += value),
            _ => sums.push(values),
        }
        Ok(ShareTotals { images, mean_over, losses, correct, votes, lens })
    });
    let told = told.collect::<Result<Vec<_>>>();
    let totals: Vec<ShareTotals> = group.gather(told)?.into_iter().flatten().collect();
    let Some(first) = totals.first() else { return Err(Error::invalid("shares", "a batch without images")) };
    let lens = first.lens.clone();
    let count = totals.iter().map(|share| share.mean_over.count).sum();
    let mean_over = MeanOver { count, least: first.mean_over.least };
    let mut losses = vec![0.; first.losses.len()];
    for share in &totals {
        let weight = if losses_are_means { share.mean_over.divisor() / mean_over.divisor() } else { 1. };
        losses.iter_mut().zip(&share.losses).for_each(|(sum, loss)| *sum += weight * loss);
    }
    let images = totals.iter().map(|share| share.images).sum();
    let correct = totals.iter().map(|share| share.correct).sum();
    let votes = totals.into_iter().flat_map(|share| share.votes).collect();
    let sum = group.sum(sums, lens.iter().sum())?;
    let factor = (1. / mean_over.divisor()) as f32;
    let mut begin = 0;
    let cut = |len: usize| {
        let of_tensor = begin..begin + len;
        begin += len;
        sum[of_tensor].iter().map(|value| factor * value).collect()
    };
    let gradients = lens.into_iter().map(cut).collect();
    Ok((StepResult { losses, correct, gradients, votes, mean_over }, images))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::process_group::on_ranks;

    fn shares(count: usize, own: Range<usize>) -> Shares {
        Shares { count, own, size: 3 }
    }

    #[test]
    fn batches_are_dealt_to_shares_and_these_to_ranks() {
        // Two batches of twelve images and one of four.
        let order: Vec<usize> = (0..28).rev().collect();
        let whole = shares(4, 0..4);
        assert_eq!(whole.own_images(&order), order);
        assert_eq!([12, 9, 4, 3, 1].map(|images| whole.of_batch(images)), [4, 3, 2, 1, 1]);
        let second = shares(4, 2..4);
        assert_eq!(second.own_images(&order), [21, 20, 19, 18, 17, 16, 9, 8, 7, 6, 5, 4]);
        assert_eq!([12, 9, 4, 3].map(|images| second.of_batch(images)), [2, 1, 0, 0]);
        let first = shares(4, 0..2);
        assert_eq!(first.own_images(&order)[12..], [3, 2, 1, 0]);
    }

    fn step(share: usize) -> StepResult {
        let gradients = vec![vec![0.1 + share as f32, 0.3], vec![1. / (share + 3) as f32]];
        let vote = Vote { source: share, target: 1, weight: 0.5 };
        let mean_over = MeanOver { count: 1. + share as f64, least: 1. };
        StepResult { losses: vec![0.5, share as f64], correct: share, gradients, votes: vec![vote], mean_over }
    }

    #[test]
    fn a_batch_is_the_same_on_any_number_of_ranks() {
        let joined = |size: usize| {
            on_ranks(size, |group| {
                let own = (group.rank() * 4 / size..(group.rank() + 1) * 4 / size).map(|i| Ok((3, step(i))));
                join(&group, own, true).unwrap()
            })
        };
        let (alone, images) = joined(1).remove(0);
        assert_eq!((images, alone.correct, alone.votes.len()), (12, 6, 4));
        assert_eq!(alone.votes.iter().map(|vote| vote.source).collect::<Vec<_>>(), [0, 1, 2, 3]);
        // By hand: shares count 1, 2, 3 and 4 tenths.
        assert!((alone.losses[1] - 2.).abs() < 1e-12 && (alone.losses[0] - 0.5).abs() < 1e-12);
        assert!((alone.gradients[0][0] - 2.1).abs() < 1e-6 && (alone.gradients[0][1] - 0.3).abs() < 1e-6);
        for size in [2, 3, 4] {
            for (step, images) in joined(size) {
                assert_eq!((step.losses, step.gradients, images), (alone.losses.clone(), alone.gradients.clone(), 12));
                assert_eq!(step.votes, alone.votes);
            }
        }
    }

    #[test]
    fn sums_are_added_and_a_share_without_anything_counts_nothing() {
        let empty = || StepResult {
            mean_over: MeanOver { count: 0., least: 1. },
            gradients: vec![vec![0.; 2], vec![0.]],
            ..step(0)
        };
        let group = ProcessGroup::default();
        let joined = |shares: Vec<StepResult>, means| {
            join(&group, shares.into_iter().map(|share| Ok((1, share))), means).unwrap().0
        };
        let one = joined(vec![empty(), step(1)], false);
        assert_eq!((one.gradients, one.losses), (step(1).gradients, vec![1., 1.]));
        assert_eq!(joined(vec![empty(), empty()], true).gradients, empty().gradients);
        let failed = join(&group, [Ok((1, step(1))), Err(Error::invalid("x", "y"))].into_iter(), true);
        assert_eq!(failed.err().unwrap().to_string(), "x: y");
    }
}
