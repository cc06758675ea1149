//! The frozen part: what a backbone is, where it is found and how its weights are read. Knows nothing of tasks.

pub mod bare;
pub mod bundled;
pub mod class_texts;
pub mod classifier;
pub mod clip;
pub mod engine;
#[cfg(test)]
mod formula;
pub mod golden;
#[cfg(feature = "hub")]
pub mod hub;
pub mod identity;
pub mod info;
pub mod names;
pub mod open_clip;
pub mod position;
pub mod registry;
pub mod spec;
mod tensor_slot;
pub mod text;
mod timm;
pub mod tokenizer;
pub mod vit;
pub mod weights;

pub use clip::{Backbone, OpenOptions};
pub use engine::{Compute, Device, Engine};
pub use identity::BackboneIdentity;
pub use vpt_kernel::Precision;
