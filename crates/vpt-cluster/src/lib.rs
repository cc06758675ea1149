//! Several processes, on one machine or on many, at work on one thing: which share is whose ([`Shard`]), who has what in hand
//! ([`WorkClaim`]), how many threads a scheduler leaves to a process ([`threads`]); and the ranks of one run, which hear of each other
//! ([`Ranks`]).
//!
//! None of it talks to a scheduler. Shares come from the variables that schedulers set, claims are files in a folder that all
//! processes see, ranks are MPI's.

mod claim;
mod limits;
pub mod ranks;
mod shard;

pub use claim::WorkClaim;
pub use limits::threads;
pub use ranks::Ranks;
pub use shard::{Shard, ShardChoice};
