//! The `vpt` program as its users meet it: commands, files, messages, exit codes.
//!
//! The backbones are the small checkpoints under `fixtures/`, the images are made here. They show that the program does
//! what it says, not that prompts are any good.

// The lint's exception for tests does not reach the functions they share.
#![allow(clippy::unwrap_used)]
// Counts that were read as numbers of JSON.
#![allow(clippy::float_cmp)]

mod attention;
mod bad_files;
mod boxes;
mod cluster;
mod commands;
mod data_audit;
mod data_cards;
mod data_check;
mod design_command;
mod detect;
mod docs;
mod engine;
mod export;
mod few_shot;
mod formats;
mod hostile;
mod hub;
#[cfg(unix)]
mod interrupt;
mod json;
mod label_map;
mod misuse;
mod multilabel;
mod old_runs;
mod predict_set;
mod resume;
mod runs;
mod segment;
#[cfg(unix)]
mod serve;
mod shards;
mod streams;
mod task;
mod train;
mod transcripts;
mod tuned;
mod util;
