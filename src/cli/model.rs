//! The flags that name a learned task, shared by the commands that use one.

use std::path::{Path, PathBuf};

use clap::Args;
use vpt::model::{AnyTask, TaskOptions};

use super::Global;

/// Which task, and where its backbone is.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// Task file, or the run folder that holds it as best.safetensors
    #[arg(long, value_name = "RUN|FILE")]
    model: PathBuf,
    /// Its backbone, where neither the task file nor its run folder says where it is
    #[arg(long, value_name = "NAME|DIR")]
    backbone: Option<String>,
    /// Folder to look for known backbones in, before the local Hugging Face cache
    #[arg(long, value_name = "DIR")]
    weights_dir: Option<PathBuf>,
}

impl ModelArgs {
    pub(crate) fn path(&self) -> &Path {
        &self.model
    }

    pub(crate) fn open(&self, global: &Global) -> vpt::Result<AnyTask> {
        AnyTask::open(&self.model, &options(self.backbone.as_deref(), self.weights_dir.as_deref(), global))
    }
}

/// How to open a task file together with its backbone.
pub(crate) fn options(backbone: Option<&str>, weights_dir: Option<&Path>, global: &Global) -> TaskOptions {
    TaskOptions {
        backbone: backbone.map(str::to_owned),
        weights_dir: weights_dir.map(Path::to_path_buf),
        precision: global.asked_precision(),
        max_memory: global.max_memory(),
        engine: global.engine,
        device: global.device,
        threads: global.threads(),
    }
}
