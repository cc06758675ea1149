//! Runs: what is configured, trained, kept in a run folder, evaluated, predicted and reported, for every task and method; and data sets
//! looked at with the eyes of a backbone.

pub mod audit;
pub mod config;
pub mod eval;
pub mod feature_cache;
pub mod infer;
pub mod report;
pub mod runs;
pub mod train;
