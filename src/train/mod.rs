//! Training: loss, optimisers, schedule, the loop and what it leaves on disk.

pub mod loss;
pub mod optim;
pub mod run_folder;
pub mod schedule;
