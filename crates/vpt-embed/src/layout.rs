//! How a folder of outputs lies.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vpt_base::choice::choice;

choice! {
    /// Files of a shard's embeddings.
    pub enum ShardLayout for "layout" {
        /// `img_emb/img_emb_N.npy` and `metadata/metadata_N.parquet`, as clip-retrieval writes and autofaiss reads them; rows of length 1.
        ClipRetrieval = "clip-retrieval",
        /// `N.safetensors` with `image_embeds`, and `N.jsonl`.
        Safetensors = "safetensors",
        /// `N.npy` and `N.jsonl`.
        Npy = "npy",
    }
}

choice! {
    /// Files of a shard's predictions.
    #[derive(Default)]
    pub enum PredictionFiles for "layout" {
        /// `N.jsonl`, a line for each image.
        #[default]
        JsonLines = "json-lines",
        /// `N.parquet`, a row for each image; lists of classes and of boxes are text in JSON.
        Parquet = "parquet",
    }
}

impl PredictionFiles {
    /// Folders that were begun before there was a choice name none.
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "what serde calls")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

choice! {
    /// Type of the values of an embedding.
    pub enum RowType for "dtype" {
        /// 16 bits.
        F16 = "f16",
        /// 32 bits.
        F32 = "f32",
    }
}

impl ShardLayout {
    /// The type that rows have where none is asked for.
    pub fn row_type(self) -> RowType {
        match self {
            Self::ClipRetrieval => RowType::F16,
            Self::Safetensors | Self::Npy => RowType::F32,
        }
    }

    /// Whether rows have length 1 whatever is asked for.
    pub fn is_normalized(self) -> bool {
        self == Self::ClipRetrieval
    }
}

/// What is written of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "form", rename_all = "lowercase")]
pub enum ShardOutput {
    /// A row of values for each image.
    Embeddings {
        /// In which files.
        layout: ShardLayout,
        /// Of which type.
        dtype: RowType,
        /// Whether each has length 1.
        normalized: bool,
    },
    /// Classes of each image and how likely they are, or boxes of objects in it.
    Predictions {
        /// In which files.
        #[serde(default, skip_serializing_if = "PredictionFiles::is_default")]
        layout: PredictionFiles,
    },
}

/// The files of a shard below the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShardFiles {
    /// Rows, or lines of predictions.
    pub(crate) main: PathBuf,
    /// Names, and what is known of each image.
    pub(crate) names: Option<PathBuf>,
    /// Written last.
    pub(crate) stats: PathBuf,
}

impl ShardOutput {
    /// The files of shard `index`, whose number is written with `digits`.
    pub(crate) fn files(self, index: usize, digits: usize) -> ShardFiles {
        let number = format!("{index:0digits$}");
        let (main, names) = match self {
            Self::Embeddings { layout: ShardLayout::ClipRetrieval, .. } => (
                Path::new("img_emb").join(format!("img_emb_{number}.npy")),
                Some(Path::new("metadata").join(format!("metadata_{number}.parquet"))),
            ),
            Self::Embeddings { layout: ShardLayout::Safetensors, .. } => {
                (format!("{number}.safetensors").into(), Some(format!("{number}.jsonl").into()))
            }
            Self::Embeddings { layout: ShardLayout::Npy, .. } => {
                (format!("{number}.npy").into(), Some(format!("{number}.jsonl").into()))
            }
            Self::Predictions { layout: PredictionFiles::JsonLines } => (format!("{number}.jsonl").into(), None),
            Self::Predictions { layout: PredictionFiles::Parquet } => (format!("{number}.parquet").into(), None),
        };
        ShardFiles { main, names, stats: Path::new("stats").join(format!("{number}.json")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_predictions_from_before_there_was_a_choice_are_of_lines() {
        let lines = ShardOutput::Predictions { layout: PredictionFiles::JsonLines };
        assert_eq!(serde_json::to_string(&lines).unwrap(), r#"{"form":"predictions"}"#);
        for layout in PredictionFiles::ALL {
            let output = ShardOutput::Predictions { layout: *layout };
            let text = serde_json::to_string(&output).unwrap();
            assert_eq!(serde_json::from_str::<ShardOutput>(&text).unwrap(), output, "{text}");
        }
    }
}
