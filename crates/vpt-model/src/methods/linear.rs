//! `linear`: a head on features that are computed once, in steps or fitted to its minimum.

use super::{
    Defaults, Epochs, MethodHead, MethodSpec, Task, Texts,
    settings::{self, DefaultText, settings},
};
use crate::head::HeadKind;
use vpt_base::{Error, Message, choice::choice};

choice! {
    /// How a linear probe is fitted.
    pub enum Solver for "solver" {
        /// In steps, with the optimiser.
        Sgd = "sgd",
        /// To the minimum of the cross-entropy with an L2 penalty, by L-BFGS.
        Lbfgs = "lbfgs",
    }
}

settings! {
    /// How a linear probe is fitted.
    pub struct ProbeOptions {
        Method {
            /// How the head is fitted: in steps, or by L-BFGS to the minimum, as the CLIP paper does
            solver: Option<Solver> => {
                value: "SOLVER", default: DefaultText::Words("sgd"), lacking: "choice of solvers",
            }
            /// Strength of the L2 penalty, 1/C in scikit-learn; with `solver` lbfgs
            l2: Option<f64> => {
                value: "X",
                default: DefaultText::Words("chosen by validation"),
                lacking: "such penalty without {solver} lbfgs",
                check: settings::positive,
            }
        }
    }
}

/// Peak learning rate of a head alone that begins as CLIP's zero-shot classifier: low, as it is near its goal. On the drawn shapes with
/// 1 and 4 images a class 1e-4 to 2e-3 make no difference; at 5e-3, which other heads need, it begins to forget.
const TEXT_LR: f64 = 5e-4;

/// What methods on frozen features train with where nothing else is said.
pub(super) const PROBE: Defaults = Defaults { head_lr: 5e-3, epochs: Epochs::of_steps(2000), ..Defaults::BASE };

pub(super) const METHOD: MethodSpec = MethodSpec {
    name: "linear",
    summary: "nothing; a head on features computed once, in steps or by `solver` lbfgs to its minimum",
    source: "Radford et al. 2021",
    head: MethodHead::Any,
    texts: Texts::Unread,
    tasks: &[Task::Classify, Task::Multilabel, Task::Detect, Task::Segment],
    options: &[&["solver", "l2"]],
    solved: |options| options.probe.solver == Some(Solver::Lbfgs),
    check: |options, head| {
        let lbfgs = Message::new().field("solver").text(" lbfgs");
        if options.probe.solver == Some(Solver::Lbfgs) {
            return match head.filter(|&head| head != HeadKind::Linear) {
                Some(head) => {
                    let message = Message::from(format!("{head} is not for ")).text(lbfgs);
                    Err(Error::setting("head", message.text(", which fits a linear head")))
                }
                None => Ok(()),
            };
        }
        match options.probe.l2 {
            Some(_) => {
                Err(Error::setting("l2", Message::from("method linear has no such penalty without ").text(lbfgs)))
            }
            None => Ok(()),
        }
    },
    defaults: |request| {
        if let Some(defaults) = request.dense_defaults() {
            return Defaults { lr: 1e-3, ..defaults };
        }
        if request.head == Some(HeadKind::Text) {
            return Defaults { lr: TEXT_LR, head_lr: TEXT_LR, ..PROBE };
        }
        PROBE
    },
    part: |request, options| {
        options.probe.solver =
            (request.context.task == Task::Classify).then_some(request.options.probe.solver.unwrap_or(Solver::Sgd));
        Ok(None)
    },
    ..super::features::FAMILY
};
