//! How far a run has come: its finished epochs, the sums of the one under way, and which epoch is the best.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::{checkpoint::BEST, features::logistic::Trial, task::Averaging};
use vpt_energy::Energy;
use vpt_model::metrics::Scores;

/// The moving or weighted average of the learned values, among a state's copies.
pub(crate) const AVERAGE: &str = "average";

/// The first values, to which a run that prunes goes back, among a state's copies.
pub(crate) const REWIND: &str = "rewind";

/// The head alone, on frozen features, among a state's copies: without values of parts.
pub(crate) const PROBE: &str = "probe";

/// The part of a run that learns the same values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// All that the method learns, where a run has no stages.
    #[default]
    Whole,
    /// The head alone.
    Head,
    /// Prompts and head.
    Prompts,
    /// Weights of the backbone and head, and prompts if they learn, too.
    Tuned,
    /// All that the method learns, before it is pruned.
    Unpruned,
    /// What is left after pruning, once more from its beginning.
    Pruned,
}

impl Stage {
    /// Whether a run has no stages.
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_whole(&self) -> bool {
        *self == Self::Whole
    }

    /// Name of the values of its best epoch among a state's copies.
    pub(crate) fn copy_name(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Unpruned => "unpruned",
            Self::Whole | Self::Prompts | Self::Tuned | Self::Pruned => BEST,
        }
    }
}

/// A line of `metrics.jsonl`: one epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// The epoch, counted from 1 through all stages.
    pub epoch: usize,
    /// The stage.
    #[serde(default, skip_serializing_if = "Stage::is_whole")]
    pub stage: Stage,
    /// Steps taken since the run began.
    pub step: u64,
    /// Learning rate of the last step; the head's in detection and segmentation.
    pub lr: f64,
    /// Mean training loss over the epoch, label smoothing included.
    pub train_loss: f64,
    /// Other means over the epoch's training images, by name. `train_acc1`: the share that was right when it was learned
    /// from, where an image has one class; `train_exact_match`: the same where it has any number, all of which had to be
    /// right; in detection the parts of the loss, unweighted, a positive token: `class_loss` (focal), `giou_loss`
    /// (`1 - GIoU`), `l1_loss`, `quality_loss` (cross-entropy); in segmentation `train_pixel_acc`: the share of the cells that was right.
    #[serde(flatten)]
    pub train: BTreeMap<String, f64>,
    /// On the validation images, after the epoch, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val: Option<Scores>,
    /// Wall time of the epoch's steps.
    pub train_seconds: f64,
    /// Wall time of the validation after them.
    pub val_seconds: f64,
}

impl EpochRecord {
    /// The record of the head alone, before the first epoch, beside that of an epoch.
    pub(crate) fn of_head_alone(&self, val: Option<Scores>) -> Self {
        Self { epoch: 0, step: 0, lr: 0., val, ..self.clone() }
    }

    /// Whether it is of the head alone.
    pub(crate) fn is_head_alone(&self) -> bool {
        self.epoch == 0
    }

    /// Whether this epoch is the better choice: the higher [`Scores::rank`], of equals the earlier; without validation images
    /// the later.
    pub(crate) fn better_than(&self, other: &Self) -> bool {
        let (Some(own), Some(others)) = (&self.val, &other.val) else { return self.epoch > other.epoch };
        let (own, others) = (own.rank(), others.rank());
        own > others || (own == others && self.epoch < other.epoch)
    }
}

/// Sums over the steps of the epoch under way.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct EpochSums {
    /// Steps taken.
    #[serde(rename = "epoch_steps")]
    pub(crate) steps: u64,
    /// The loss, and its parts where a task tells them.
    #[serde(rename = "epoch_losses", alias = "epoch_loss", deserialize_with = "one_or_more")]
    pub(crate) losses: Vec<f64>,
    /// How many images were right, where a task tells.
    #[serde(rename = "epoch_correct", default)]
    pub(crate) correct: u64,
    /// How many images there were.
    #[serde(rename = "epoch_images", default)]
    pub(crate) images: u64,
}

impl EpochSums {
    /// Adds a step.
    pub(crate) fn add(&mut self, losses: &[f64], correct: usize, images: usize) {
        self.losses.resize(losses.len(), 0.);
        self.losses.iter_mut().zip(losses).for_each(|(sum, loss)| *sum += loss);
        self.steps += 1;
        self.correct += correct as u64;
        self.images += images as u64;
    }
}

/// A classifier's checkpoints once had a number in the place of a list.
fn one_or_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Losses {
        One(f64),
        More(Vec<f64>),
    }
    Ok(match Losses::deserialize(deserializer)? {
        Losses::One(loss) => vec![loss],
        Losses::More(losses) => losses,
    })
}

/// How far a run has come. Fields that earlier versions wrote beside these follow from the history, and are passed over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunProgress {
    /// The chosen learning rate; 0 in a detector's checkpoints of earlier versions, where there was nothing to choose.
    #[serde(default)]
    pub(crate) lr: f64,
    /// The finished epochs.
    pub(crate) history: Vec<EpochRecord>,
    /// Sums of the epoch under way.
    #[serde(flatten)]
    pub(crate) sums: EpochSums,
    /// Wall time spent in it.
    pub(crate) epoch_seconds: f64,
    /// Wall time spent on the whole run, set-up included.
    pub(crate) wall_s: f64,
    /// What the run took; checkpoints of earlier versions know the time only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) energy: Option<Energy>,
    /// What was chosen for the head alone, where the run begins with it or is held against it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) probe: Option<ProbeChoice>,
    /// Whether the run goes back to its first values once it has pruned.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) rewinds: bool,
}

/// What was chosen for the head alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ProbeChoice {
    /// Strength of its L2 penalty; `None` where texts make it.
    pub(crate) l2: Option<f64>,
    /// Every strength that was tried.
    pub(crate) trials: Vec<Trial>,
}

impl RunProgress {
    /// A run at its beginning.
    pub(crate) fn new(lr: f64) -> Self {
        Self {
            lr,
            history: Vec::new(),
            sums: EpochSums::default(),
            epoch_seconds: 0.,
            wall_s: 0.,
            energy: None,
            probe: None,
            rewinds: false,
        }
    }

    /// What the run took so far, if it has begun.
    pub(crate) fn cost(&self) -> Option<Energy> {
        let before = || Energy::unmeasured(self.wall_s, "an earlier version did not measure");
        self.energy.clone().or_else(|| (self.wall_s > 0.).then(before))
    }

    /// The finished epochs of `stage`.
    pub(crate) fn of_stage(&self, stage: Stage) -> impl Iterator<Item = &EpochRecord> {
        self.history.iter().filter(move |record| record.stage == stage)
    }

    /// The best epoch of `stage`.
    pub(crate) fn best_of(&self, stage: Stage) -> Option<&EpochRecord> {
        self.of_stage(stage).reduce(|best, record| if record.better_than(best) { record } else { best })
    }

    /// The best epoch of the stage that came last.
    pub(crate) fn best(&self) -> Option<&EpochRecord> {
        self.best_of(self.history.last()?.stage)
    }

    /// The best epoch of the stage before the one that came last.
    pub(crate) fn best_before(&self) -> Option<&EpochRecord> {
        let last = self.history.last()?.stage;
        let before = self.history.iter().rev().find(|record| record.stage != last)?;
        self.best_of(before.stage)
    }

    /// Takes in the record of the epoch that is over; true if it is the best of its stage.
    pub(crate) fn finish_epoch(&mut self, record: EpochRecord) -> bool {
        let epoch = record.epoch;
        self.history.push(record);
        (self.sums, self.epoch_seconds) = (EpochSums::default(), 0.);
        self.best().is_some_and(|best| best.epoch == epoch)
    }

    /// Whether it can be the position of a run.
    pub(crate) fn is_sound(&self) -> bool {
        self.history.iter().enumerate().all(|(i, record)| record.epoch == i + 1)
    }

    /// Names of the copies of the learned values that a run has by now whose values are averaged so.
    pub(crate) fn copies(&self, averaging: Averaging) -> Vec<&'static str> {
        let averaged = match averaging {
            Averaging::None => false,
            Averaging::Epochs => !self.history.is_empty(),
            Averaging::Steps { .. } => !self.history.is_empty() || self.sums.steps > 0,
        };
        let mut names: Vec<&'static str> = averaged.then_some(AVERAGE).into_iter().collect();
        names.extend(self.probe.is_some().then_some(PROBE));
        names.extend(self.rewinds.then_some(REWIND));
        for record in &self.history {
            let name = record.stage.copy_name();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "these values are copied")]
pub(super) mod tests {
    use super::*;
    use vpt_model::metrics::{Metrics, coco::CocoMetrics};

    const METRICS: &str = r#"{"AP":0.5,"AP50":0.75,"AP75":0.5,"APs":-1.0,"APm":-1.0,"APl":-1.0,"AR1":0.5,"AR10":0.5,"AR100":0.5,"ARs":-1.0,"ARm":-1.0,"ARl":-1.0}"#;

    pub(crate) fn record(epoch: usize, acc1: f64, loss: f64) -> EpochRecord {
        let val = Scores::Classify(Metrics { acc1, acc5: None, mean_per_class_recall: acc1, loss });
        EpochRecord {
            epoch,
            stage: Stage::Whole,
            step: 3,
            lr: 0.1,
            train_loss: 1. / 3.,
            train: BTreeMap::from([("train_acc1".to_owned(), 0.1 + 0.2)]),
            val: Some(val),
            train_seconds: 0.7,
            val_seconds: 0.1,
        }
    }

    #[test]
    fn the_better_epoch_is_more_accurate_then_lower_in_loss_then_earlier() {
        let first = record(1, 0.5, 1.);
        assert!(record(2, 0.6, 9.).better_than(&first));
        assert!(!record(2, 0.4, 0.1).better_than(&first));
        assert!(record(2, 0.5, 0.9).better_than(&first));
        assert!(!record(2, 0.5, 1.).better_than(&first));
        let blind = |epoch| EpochRecord { val: None, ..record(epoch, 0., 0.) };
        assert!(blind(2).better_than(&blind(1)) && !blind(1).better_than(&blind(2)));
        let line = serde_json::to_string(&blind(1)).unwrap();
        assert!(!line.contains("\"val\""), "{line}");
        assert_eq!(serde_json::from_str::<EpochRecord>(&line).unwrap(), blind(1));
    }

    #[test]
    fn the_better_epoch_of_a_detector_has_the_higher_ap_then_ap50() {
        let none: CocoMetrics = serde_json::from_str(METRICS).unwrap();
        let of = |epoch, ap, ap50| {
            let val = Scores::Detect(CocoMetrics { ap, ap50, ..none });
            EpochRecord { val: Some(val), ..record(epoch, 0., 0.) }
        };
        let first = of(1, 0.5, 0.6);
        assert!(of(2, 0.6, 0.1).better_than(&first));
        assert!(of(2, 0.5, 0.7).better_than(&first));
        assert!(!of(2, 0.5, 0.6).better_than(&first) && !of(2, 0.4, 0.9).better_than(&first));
    }

    #[test]
    fn every_stage_has_its_best_epoch() {
        let mut progress = RunProgress::new(0.1);
        let mut add = |stage, epoch, acc1| progress.finish_epoch(EpochRecord { stage, ..record(epoch, acc1, 1.) });
        let better = [(Stage::Head, 0.5), (Stage::Head, 0.7), (Stage::Head, 0.7), (Stage::Prompts, 0.1)];
        let better: Vec<bool> =
            better.into_iter().zip(1..).map(|((stage, acc1), epoch)| add(stage, epoch, acc1)).collect();
        assert_eq!(better, [true, true, false, true]);
        let epoch = |record: Option<&EpochRecord>| record.map(|record| record.epoch);
        assert_eq!((epoch(progress.best_before()), epoch(progress.best())), (Some(2), Some(4)));
        assert_eq!(progress.copies(Averaging::Steps { decay: 0.9 }), [AVERAGE, "head", BEST]);
    }

    #[test]
    fn positions_and_lines_of_earlier_versions_are_read() {
        let classify = r#"{"lr":0.01,"history":[{"epoch":1,"step":4,"lr":0.002,"train_loss":0.5,"train_acc1":0.25,
            "val":{"acc1":0.5,"mean_per_class_recall":0.5,"loss":0.7},"train_seconds":1.0,"val_seconds":0.5}],"best_epoch":1,
            "epoch_steps":2,"epoch_loss":1.5,"epoch_correct":3,"epoch_images":8,"epoch_seconds":0.5,"wall_s":2.0,"averaged":true}"#;
        let progress: RunProgress = serde_json::from_str(classify).unwrap();
        let sums = EpochSums { steps: 2, losses: vec![1.5], correct: 3, images: 8 };
        assert_eq!((progress.lr, &progress.sums, progress.history[0].stage), (0.01, &sums, Stage::Whole));
        assert_eq!(progress.history[0].train["train_acc1"], 0.25);
        assert_eq!(progress.copies(Averaging::Epochs), [AVERAGE, BEST]);

        let line = format!(
            r#"{{"epoch":1,"stage":"head","step":4,"lr":0.002,"train_loss":5.5,"class_loss":1.5,"giou_loss":1.0,{}{METRICS},{}}}"#,
            r#""l1_loss":2.0,"quality_loss":1.0,"val":"#, r#""train_seconds":1.0,"val_seconds":0.5"#
        );
        let detect = format!(
            r#"{{"history":[{line}],"best_head":1,"best_prompts":null,"epoch_steps":1,
            "epoch_losses":[1.0,2.0,3.0,4.0,5.0],"epoch_seconds":0.5,"wall_s":2.0}}"#
        );
        let progress: RunProgress = serde_json::from_str(&detect).unwrap();
        assert_eq!((progress.lr, progress.sums.losses.len(), progress.history[0].stage), (0., 5, Stage::Head));
        assert_eq!(serde_json::to_string(&progress.history[0]).unwrap(), line, "a line is written as it was");
        let again: RunProgress = serde_json::from_str(&serde_json::to_string(&progress).unwrap()).unwrap();
        assert_eq!(again, progress);
    }
}
