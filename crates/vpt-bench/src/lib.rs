//! Measuring: how good methods are (`few_shot`); how long a training step takes, how much work it is and how much memory it
//! needs.

pub mod detect;
pub mod few_shot;
pub mod flop;
pub mod kernels;
pub mod step;
