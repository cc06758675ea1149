//! The position of a detection run, and the line of `metrics.jsonl` that an epoch leaves.

use serde::{Deserialize, Serialize};

use crate::{
    head::detect::LossSums,
    metrics::coco::CocoMetrics,
    train::checkpoint::{BEST, Position},
};

/// The moving average of the learned values.
pub(super) const AVERAGE: &str = "average";
/// The best averages of the stage in which the head learns alone.
pub(super) const HEAD: &str = "head";

/// What learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The head alone.
    Head,
    /// Prompts and head.
    Prompts,
}

/// A line of `metrics.jsonl`: one epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetectRecord {
    /// The epoch, counted from 1 through both stages.
    pub epoch: usize,
    /// What learned.
    pub stage: Stage,
    /// Steps taken since the run began.
    pub step: u64,
    /// The head's learning rate in the last step.
    pub lr: f64,
    /// Mean over the epoch's steps of the loss, whose parts follow as they stand in it, unweighted.
    pub train_loss: f64,
    /// Focal loss of the classes a positive token.
    pub class_loss: f64,
    /// `1 - GIoU` a positive token.
    pub giou_loss: f64,
    /// L1 distance of the box a positive token.
    pub l1_loss: f64,
    /// Cross-entropy of the quality a positive token.
    pub quality_loss: f64,
    /// Of the averaged values, on the validation images, after the epoch.
    pub val: CocoMetrics,
    /// Wall time of the epoch's steps.
    pub train_seconds: f64,
    /// Wall time of the validation after them.
    pub val_seconds: f64,
}

impl DetectRecord {
    /// Whether this epoch is the better choice: higher AP, of equals higher AP50, of equals the earlier.
    fn better_than(&self, other: &Self) -> bool {
        (self.val.ap, self.val.ap50) > (other.val.ap, other.val.ap50)
    }
}

/// How far a run has come.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DetectProgress {
    /// The finished epochs.
    pub(super) history: Vec<DetectRecord>,
    /// The best of those in which the head learned alone, from 1.
    pub(super) best_head: Option<usize>,
    /// The best of those with prompts, from 1.
    pub(super) best_prompts: Option<usize>,
    /// Steps taken in the epoch under way.
    pub(super) epoch_steps: u64,
    /// Sum over these steps of the losses a positive token: the whole, then class, `GIoU`, L1 and quality.
    pub(super) epoch_losses: [f64; 5],
    /// Wall time spent in the epoch under way.
    pub(super) epoch_seconds: f64,
    /// Wall time spent on the whole run, set-up included.
    pub(super) wall_s: f64,
}

impl DetectProgress {
    /// The record of an epoch, from 1.
    pub(super) fn record(&self, epoch: Option<usize>) -> Option<&DetectRecord> {
        self.history.get(epoch?.checked_sub(1)?)
    }

    /// Adds a step's losses.
    pub(super) fn add(&mut self, sums: &LossSums) {
        let n = sums.positives.max(1) as f64;
        let parts = [sums.total(sums.positives), sums.class / n, sums.giou / n, sums.l1 / n, sums.quality / n];
        self.epoch_losses.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
        self.epoch_steps += 1;
    }

    /// Means of the losses over the epoch's steps so far.
    pub(super) fn losses(&self) -> [f64; 5] {
        self.epoch_losses.map(|sum| sum / self.epoch_steps.max(1) as f64)
    }

    /// Takes in the record of the epoch that is over; true if it is the best of its stage.
    pub(super) fn finish_epoch(&mut self, record: DetectRecord) -> bool {
        let best = match record.stage {
            Stage::Head => &mut self.best_head,
            Stage::Prompts => &mut self.best_prompts,
        };
        let is_best = best.and_then(|e| self.history.get(e - 1)).is_none_or(|best| record.better_than(best));
        if is_best {
            *best = Some(record.epoch);
        }
        self.history.push(record);
        (self.epoch_steps, self.epoch_losses, self.epoch_seconds) = (0, [0.; 5], 0.);
        is_best
    }
}

impl Position for DetectProgress {
    type Record = DetectRecord;

    fn history(&self) -> &[DetectRecord] {
        &self.history
    }

    fn best_epoch(&self) -> Option<usize> {
        self.best_prompts.or(self.best_head)
    }

    fn wall_s(&mut self) -> &mut f64 {
        &mut self.wall_s
    }

    fn is_sound(&self) -> bool {
        let in_order = self.history.iter().enumerate().all(|(i, record)| record.epoch == i + 1);
        let of = |epoch: Option<usize>, stage| match epoch {
            Some(_) => self.record(epoch).is_some_and(|record| record.stage == stage),
            None => self.history.iter().all(|record| record.stage != stage),
        };
        in_order && of(self.best_head, Stage::Head) && of(self.best_prompts, Stage::Prompts)
    }

    fn copies(&self) -> Vec<&'static str> {
        let average = (!self.history.is_empty() || self.epoch_steps > 0).then_some(AVERAGE);
        let (head, best) = (self.best_head.map(|_| HEAD), self.best_prompts.map(|_| BEST));
        [average, head, best].into_iter().flatten().collect()
    }
}
