//! Visual prompt tuning: adapt a frozen CLIP or ViT backbone to a new task by learning a few prompt tokens or prompt pixels
//! and a small head, on a CPU, without Python.
//!
//! ```
//! use vpt::{FrozenBackbone, LearnedTask, Trainer, shapes};
//!
//! # fn main() -> vpt::Result<()> {
//! // 4 classes of drawn shapes, in memory; a path to a folder of images does as well.
//! let data = shapes::dataset(&shapes::ShapesConfig { images: 192, ..Default::default() })?;
//! let data = data.of_classes(|name| name.starts_with("red") && name != "red ring");
//! let images: Vec<_> = data.test.iter().map(|sample| sample.image.clone()).collect();
//!
//! let run = Trainer::new("clip-nano").method("vpt-deep")?.epochs(2).train(data)?;
//! assert!(run.test().main() > 0.5);
//!
//! // The task is a file of some kilobytes; the backbone's weights are shared by all tasks on it.
//! let file = std::env::temp_dir().join("vpt-doctest.safetensors");
//! run.save(&file)?;
//! let backbone = FrozenBackbone::open("clip-nano")?;
//! let task = LearnedTask::on(&backbone, &file)?;
//! let (class, probability) = task.predict(images.as_slice())?[0].best().map(|(c, p)| (c.to_owned(), p)).unwrap();
//! assert!(class.starts_with("red") && probability > 0.1);
//! assert_eq!(backbone.embed_images(images.as_slice())?.dim(), (images.len(), backbone.width()));
//! # Ok(())
//! # }
//! ```
//!
//! # Map
//!
//! | to | take |
//! |---|---|
//! | open a backbone, embed images and texts, tell classes by their names | [`FrozenBackbone`] |
//! | train any method on a path or on images in memory | [`Trainer`], [`MemorySet`], [`labelled`] |
//! | watch a run, stop it, go on with it | [`Observer`], [`Event`], [`resume`] |
//! | save, load and ask what was learned | [`TrainedRun`], [`LearnedTask`], [`ImageAnswer`] |
//! | put many tasks on one backbone | [`LearnedTask::on`] |
//! | go from and to arrays | [`IntoImages`] (`[B, H, W, 3]`), [`write_npy`], [`read_npy`], [`write_npz`], [`read_npz`] |
//! | write a method or a loop of one's own | [`engine`] |
//!
//! Images are 8-bit RGB and of any size, features rows of `f32`, boxes rows `[x, y, width, height, score, class]` of `f64` in pixels,
//! all as arrays of [`ndarray`], which is re-exported. What does not fit is an [`Error`] that names the file, field or
//! argument. `examples/` in the repository holds a program for each row above.
//!
//! # Features
//!
//! All are on by default. `default-features = false` is the library without command line, downloads and pictures of curves.
//!
//! | feature | what it adds |
//! |---|---|
//! | `cli` | the binary `vpt`; the library has no use for it |
//! | `export` | tasks and backbones as ONNX files: `vpt::export` |
//! | `serve` | many tasks on one backbone over HTTP: `vpt::serve` |
//! | `hub` | downloads of backbones (`vpt backbones fetch`); what lies in the local cache of Hugging Face is found without |
//! | `plots` | pictures of curves and confusion matrices in run folders |

mod arrays;
pub mod engine;
mod frozen;
mod images;
mod learned;
mod trainer;

pub use ndarray;

pub use arrays::{NpyElement, read_npy, read_npz, write_npy, write_npz};
pub use frozen::{FrozenBackbone, normalized};
pub use images::{IntoImages, labelled, pixels};
pub use learned::LearnedTask;
pub use trainer::{TrainedRun, Trainer, TrainingData, resume};
pub use vpt_backbone::{OpenOptions, Precision};
pub use vpt_base::{Error, Message, Progress, Result};
pub use vpt_data::{
    Dataset, ImageSource, MemorySet, MultilabelDataset,
    boxes::{BoxDataset, Rect},
    shapes,
};
pub use vpt_energy::{Carbon, Co2, Energy};
pub use vpt_image::{Rgb8, decode};
pub use vpt_model::{
    methods::{Method, Task},
    metrics::Scores,
    model::TaskOptions,
    predict::{AnswerOptions, Guess, ImageAnswer, PredictedBox},
};
pub use vpt_train::{
    config::RunConfig,
    train::{EpochRecord, Event, Observer, OpenData, Results, Silent},
};

#[cfg(feature = "export")]
pub use vpt_export as export;
#[cfg(feature = "serve")]
pub use vpt_serve as serve;

/// What most programs need: `use vpt::prelude::*;`.
pub mod prelude {
    pub use crate::{
        FrozenBackbone, ImageAnswer, ImageSource, IntoImages, LearnedTask, MemorySet, Rect, Trainer, labelled,
        normalized,
    };
    pub use ndarray::{Array2, Array3, Array4};
}

// The binary's view of the crates.
#[doc(hidden)]
pub use vpt_backbone as backbone;
#[doc(hidden)]
pub use vpt_base::{contain, error, files, linear_algebra, logits, params, random, suggest};
#[cfg(feature = "cli")]
#[doc(hidden)]
pub use vpt_bench as bench;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub use vpt_cluster as cluster;
#[doc(hidden)]
pub use vpt_data as data;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub use vpt_embed as shards;
#[doc(hidden)]
pub use vpt_energy as energy;
#[doc(hidden)]
pub use vpt_image as image;
#[doc(hidden)]
pub use vpt_kernel as kernel;
#[doc(hidden)]
pub use vpt_model::{head, loss, methods, metrics, model, optim, predict, prompt};
#[doc(hidden)]
pub use vpt_train::{audit, config, eval, feature_cache, infer, report, runs, train};
