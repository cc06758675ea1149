//! Features of very many images, shard by shard: archives of `WebDataset`, tables in Parquet's form, lists of files.
//!
//! A shard is the unit of work and of restart. Its outputs are written beside and renamed, what tells of it last, so a shard is
//! there as a whole or not at all, and a call that finds it goes on with the next ([`run()`]). Any number of processes share a folder:
//! each claims the shard that it works on. Rows are in the order of the shard and do not depend on who computed them, with how many
//! threads and in which batches, so the folder holds the same bytes however often it was interrupted.
//!
//! [`input`] says which shards there are, `open` brings them near (a command's output is put into a file first) while the one before
//! is computed, `folder` knows what is done, [`layout`] writes.

mod folder;
pub mod input;
pub mod layout;
mod metadata;
mod open;
mod run;
mod write;

pub use folder::{ShardStats, Totals};
pub use input::{ShardInput, ShardInputs, ShardSource, expand_shards};
pub use layout::{PredictionFiles, RowType, ShardLayout, ShardOutput};
pub use run::{EmbedConfig, EmbedEvent, EmbedObserver, EmbedOutcome, FailedShard, ShardDetector, ShardWork, run};
