//! Pictures of archives, tables and lists with what is said of them, without classes: what embeddings of many images are made of.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{parquet, webdataset};
use crate::container::ImageSource;
use vpt_base::{Error, Result};

/// A picture, what it is called, and what is said of it.
#[derive(Clone, Debug)]
pub struct ShardSample {
    /// The sample's name: in an archive the path up to the first dot of the file's name.
    pub key: String,
    /// The picture.
    pub image: ImageSource,
    /// The text that belongs to it.
    pub caption: Option<String>,
    /// What else is known, by names.
    pub facts: Map<String, Value>,
}

/// Something of a sample that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleFault {
    /// The sample's name.
    pub key: String,
    /// Why.
    pub error: String,
}

impl SampleFault {
    /// What `error` says of the sample `key`; the file that holds it is known.
    pub(super) fn new(key: &str, error: Error) -> Self {
        Self { key: key.to_owned(), error: reason(error) }
    }
}

/// What an archive, a table or a list holds.
#[derive(Clone, Debug, Default)]
pub struct ShardSamples {
    /// Samples with a picture, in their order.
    pub samples: Vec<ShardSample>,
    /// Samples of which there is no picture, or not one of their own.
    pub faults: Vec<SampleFault>,
    /// What is said of samples whose pictures can be used, and cannot be read.
    pub notes: Vec<SampleFault>,
}

impl ShardSamples {
    /// What is in the file `path`: a table in Parquet's form, else a tar archive.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or is compressed as a whole.
    pub fn open(path: &Path) -> Result<Self> {
        let mut start = Vec::new();
        File::open(path).and_then(|file| file.take(4).read_to_end(&mut start)).map_err(Error::typed(path))?;
        match start.as_slice() {
            b"PAR1" => parquet::samples(path),
            [0x1f, 0x8b, ..] => Err(Error::data(path, "compressed by gzip; decompress it first")),
            [] => Err(Error::data(path, "empty: not even the end of a tar archive")),
            _ => webdataset::pictures(path),
        }
    }

    /// The image files `paths`, called by their paths.
    pub fn of_files(paths: &[PathBuf]) -> Self {
        let sample = |path: &PathBuf| ShardSample {
            key: path.display().to_string(),
            image: ImageSource::File(path.clone()),
            caption: None,
            facts: Map::new(),
        };
        Self { samples: paths.iter().map(sample).collect(), ..Self::default() }
    }

    /// Whether `path` is called as archives and tables are.
    pub fn is_shard(path: &Path) -> bool {
        path.extension().is_some_and(|own| ["tar", "parquet"].iter().any(|known| own.eq_ignore_ascii_case(known)))
    }
}

/// What is wrong, without the file.
pub(crate) fn reason(error: Error) -> String {
    match error {
        Error::Data { message, .. } | Error::Image { message, .. } | Error::File { message, .. } => message.to_string(),
        Error::Io { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}
