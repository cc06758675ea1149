//! What goes in: decoded and transformed images, data set formats, splits, few-shot draws, batches.

pub mod augment;
pub mod batch_loader;
pub mod boxes;
pub mod cards;
pub mod check;
mod container;
pub mod dataset;
pub mod examine;
pub mod few_shot;
mod formats;
pub mod loader;
mod memory;
pub mod multilabel;
mod open;
mod part_names;
mod prefetch;
mod sample_loader;
pub mod shapes;
pub mod split;
mod trivial;

pub use augment::{Augment, AugmentPolicy};
pub use batch_loader::{ImageCount, visit_batches};
pub use cards::Card;
pub use container::{Container, ImageSource, Stored};
pub use dataset::{Dataset, Layout, Sample, Split};
pub use examine::{ContentHash, Digest, digest};
pub use examine::{DatasetSummary, Unreadable};
pub use few_shot::FewShot;
pub use formats::{SampleFault, ShardSample, ShardSamples};
pub use loader::{Batch, Loader, LoaderOptions, PixelCache, epoch_order};
pub use memory::MemorySet;
pub use multilabel::{LabelSets, MultilabelDataset};
pub use prefetch::blaming;
pub use sample_loader::{SampleBatch, SampleImages, SampleLoader};
pub use split::{MeasuredPart, SplitFile};
