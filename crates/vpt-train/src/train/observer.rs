//! How a run tells what it is doing, and how it is told to stop.

use std::path::Path;

use super::{progress::EpochRecord, results::Results};
use crate::config::Plan;
use vpt_base::Message;
use vpt_data::Split;
use vpt_energy::Carbon;
use vpt_model::metrics::calibration::Logits;

/// Something worth showing.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Something the user should know, as a sentence.
    Note(&'a str),
    /// Images of a part are read for the first time.
    Reading {
        /// The part.
        split: Split,
        /// Images done.
        done: usize,
        /// Images in all.
        total: usize,
    },
    /// Everything is ready; training is about to begin, or to go on.
    Start(&'a Start<'a>),
    /// Features are computed once for the images of a part.
    Features {
        /// The part.
        split: Split,
        /// Images done.
        done: usize,
        /// Images in all.
        total: usize,
    },
    /// `lr = "auto"` tries a learning rate; the events until the next trial or [`Event::Chosen`] belong to it.
    Trial {
        /// The rate.
        lr: f64,
        /// Which trial, counted from 1.
        number: usize,
        /// How many there are.
        of: usize,
    },
    /// `lr = "auto"` has chosen.
    Chosen {
        /// The rate.
        lr: f64,
    },
    /// A step was taken.
    Step {
        /// The epoch, counted from 1.
        epoch: usize,
        /// Steps taken in this epoch.
        step: u64,
        /// Steps in an epoch.
        steps: u64,
        /// Mean loss over the epoch so far.
        loss: f64,
        /// Accuracy over the epoch so far, in classification.
        acc1: Option<f64>,
    },
    /// Images of a part are looked at with what was learned.
    Evaluating {
        /// The part.
        split: Split,
        /// Images done.
        done: usize,
        /// Images in all.
        total: usize,
    },
    /// An epoch is over.
    Epoch {
        /// What it brought.
        record: &'a EpochRecord,
        /// How many there are.
        of: usize,
        /// Whether it is the best of its stage so far.
        best: bool,
    },
    /// Classification: what the selected epoch makes of the test images, in their order.
    Tested(&'a Logits),
    /// The run is finished.
    Finished(&'a Results),
}

/// What is known before training begins.
#[derive(Debug)]
pub struct Start<'a> {
    /// The run folder.
    pub folder: &'a Path,
    /// The run with nothing left open.
    pub plan: &'a Plan,
    /// The data set's name.
    pub data: &'a str,
    /// Class names.
    pub classes: &'a [String],
    /// Images in train, val and test.
    pub images: [usize; 3],
    /// Learned values.
    pub trainable_params: usize,
    /// Weights of the frozen backbone.
    pub backbone_params: u64,
    /// Epochs done already; above 0 when a run is resumed.
    pub epochs_done: usize,
}

/// Watches a run.
pub trait Observer {
    /// Called for everything that happens, on the training thread: it should return quickly.
    fn event(&mut self, event: &Event<'_>);

    /// How `message` is written down for those who look at the run later.
    fn words(&self, message: &Message) -> String {
        message.to_string()
    }

    /// What a kWh costs in CO2, where results are to say that.
    fn carbon(&self) -> Option<&Carbon> {
        None
    }

    /// Asked after every batch. Once it says yes, the run saves a checkpoint and ends as interrupted.
    fn stop(&self) -> bool {
        false
    }
}

/// A closure that is told what happens, and never stops the run.
impl<F: FnMut(&Event<'_>)> Observer for F {
    fn event(&mut self, event: &Event<'_>) {
        self(event);
    }
}

impl dyn Observer + '_ {
    /// Tells of a batch that is done; false if the run is to stop.
    pub fn goes_on(&mut self, event: &Event<'_>) -> bool {
        self.event(event);
        !self.stop()
    }
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&mut self, _: &Event<'_>) {}
}
