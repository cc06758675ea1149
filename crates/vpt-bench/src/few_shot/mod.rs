//! Comparing methods by CoOp's few-shot protocol, or with k boxes, or masks, a class: a grid of data sets, methods, shots and seeds, in a folder that survives
//! whatever happens to the processes that fill it.
//!
//! [`GridConfig::jobs`] turns what a user asks for into jobs (`grid`, `job`), [`run()`] decides which of them are to
//! be done (`run`), [`perform`] does one (`work`; `boxes`, `masks`), and [`merge()`] writes what all of them say (`summary`,
//! `tables`, `curves`, `html`). The protocol is that of Zhou et al., "Learning to Prompt for Vision-Language Models" (2022),
//! and, for base and new classes, of "Conditional Prompt Learning for Vision-Language Models" (2022).

mod boxes;
mod curves;
mod data;
mod grid;
mod html;
mod job;
mod masks;
mod merge;
mod method;
mod run;
mod summary;
mod tables;
#[cfg(test)]
mod tests;
mod work;

pub use grid::{GridConfig, GridFile, GridSchedule, Mode, QUICK_PASSES, TextFile};
pub use job::{Half, Identity, Job, JobResult, PartResult, TestPart};
pub use merge::{merge, to_json};
pub use method::GridMethod;
pub use run::{GridEvent, GridOutcome, Worker, run};
pub(crate) use summary::compare;
pub use summary::{Cell, CellScores, Comparison, Failure, Spread, Summary};
pub use tables::console;
pub use work::{Performed, perform};
