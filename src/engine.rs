//! What the library is made of, for methods and training loops of one's own: the frozen towers and their gradients, models, parts,
//! heads, losses, optimisers, loaders.
//!
//! `examples/soft_prompt.rs` learns one prompt with these in a page; `examples/own_method.rs` has a part of its own, learned by
//! steps of a [`Model`]. Unlike what stands at the root of the crate, this may change between minor versions.

pub use rand::{Rng, RngCore};
pub use vpt_backbone::{
    Backbone,
    vit::{Grads, Input, KeyValuePrompts, Pass, PromptLayers, Readout, TokenPrompts, TokenRead, TokenRows, Vit, Want},
};
pub use vpt_base::{
    params::{Group, Param},
    random::stream,
};
pub use vpt_data::{Augment, Batch, Loader, LoaderOptions, Sample, epoch_order};
pub use vpt_image::Preprocess;
pub use vpt_model::{
    head::{BoundHead, Head, HeadKind},
    loss::{BinaryCrossEntropy, CrossEntropy, Loss, LossGradients},
    model::{AnyTask, ClassifierSpec, DetectTask, Model, StepInput, StepOutput, TaskModel, task_file::TaskFile},
    optim::{EPSILON, Optimizer, OptimizerKind, Rate, Rates, schedule::Schedule},
    prompt::{
        PartShape, PartShapes,
        part::{Draw, Drawn, Gradients, Inputs, KeysValues, Part, TensorShape},
        tokens::TokenLayout,
    },
};
