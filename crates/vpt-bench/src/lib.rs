//! Measuring: how good methods are (`few_shot`) and backbones for a data set (`backbones`); how long a training step takes, how much work it is and how much memory it
//! needs.

pub mod backbones;
pub mod detect;
pub mod few_shot;
pub mod flop;
pub mod kernels;
pub mod step;
