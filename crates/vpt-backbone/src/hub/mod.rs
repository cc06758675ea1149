//! Backbones from the Hugging Face hub into its standard cache, where [`registry`](super::registry) and every other tool
//! that reads the cache find them.
//!
//! Only [`fetch`] opens a connection, and only through `client`. What comes from the hub is hostile until its hash is
//! right, and what a repository says of itself (file names, lengths, its list of shards) stays so after that.

mod cache;
mod client;
mod digest;
mod download;
mod settings;
mod verify;

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Serialize;

use self::cache::HubCache;
use self::client::{Client, RequestFailure};
use self::download::{Cached, Download, FetchFailure};
use self::settings::HubSettings;
pub use self::verify::{FileState, Verified, VerifiedFile, is_bundled, verify};
use super::open_clip::{self, OpenClip};
use super::registry::{BackboneName, CONFIG, PREPROCESSOR, PROCESSOR, by_hand, is_timm_config, names_model};
use super::spec::{Spec, TextPool};
use super::timm::Timm;
use super::tokenizer::{MERGES, TOKENIZER, VOCAB};
use super::weights::pickle::{PICKLED, PICKLED_INDEX, convert};
use super::weights::{INDEX, SINGLE, parse_index};
use vpt_base::files::read_limited;
use vpt_base::{Error, Message, Result};
use vpt_image::Preprocess;

/// How long the files of a backbone may be.
struct Limits {
    text: u64,
    tokenizer: u64,
    index: u64,
    weights: u64,
    shards: usize,
}

const WEIGHTS: Limits = Limits { text: 4 << 20, tokenizer: 64 << 20, index: 16 << 20, weights: 1 << 37, shards: 512 };

/// Progress events of [`fetch`].
#[derive(Debug)]
#[non_exhaustive]
pub enum FetchEvent<'a> {
    /// How much of a file is there.
    Progress {
        /// Its name.
        file: &'a str,
        /// Bytes that are there.
        done: u64,
        /// Its length.
        total: u64,
    },
    /// A file is whole.
    Finished {
        /// Its name.
        file: &'a str,
        /// Its length.
        bytes: u64,
        /// Where it is from.
        source: FileOrigin,
    },
    /// Something went wrong and is tried again.
    Retry {
        /// The file.
        file: &'a str,
        /// Cause of the failure.
        why: &'a str,
    },
    /// Another process is fetching the same file.
    Waiting {
        /// The file.
        file: &'a str,
    },
    /// Weights in PyTorch's form are being written as safetensors.
    Converting {
        /// The file.
        file: &'a str,
    },
    /// The repository lacks a file that is of use, but that one can do without.
    Lacks {
        /// The file.
        file: &'a str,
    },
}

/// Where a file of a fetched backbone is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileOrigin {
    /// It came from the hub now.
    Hub,
    /// It was in the cache, whole.
    Cache,
}

/// Result of [`fetch`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fetched {
    /// The name it was asked for by.
    pub name: String,
    /// Its repository on the hub.
    pub repo: String,
    /// The revision that was asked for.
    pub revision: String,
    /// The commit this is.
    pub commit: String,
    /// The folder its files are in.
    pub path: PathBuf,
    /// The licence of its weights, where its configuration tells.
    pub license: Option<String>,
    /// Its files.
    pub files: Vec<FetchedFile>,
}

/// A file that [`fetch`] brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FetchedFile {
    /// Its name in the folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Where it is from.
    pub source: FileOrigin,
}

/// Fetches the backbone `name` (a known name or `owner/name`, either with `@revision`) from the hub into the Hugging Face
/// cache. What is there already and whole is not fetched again; what had been begun is gone on with.
///
/// # Errors
/// The name is no backbone's, `HF_HUB_OFFLINE` is set, no hub can be reached (the message says which folder to fill with
/// which files instead), the hub refuses, a file's length or hash is not what the hub says, the model is of a family that
/// is not supported, or the cache cannot be written.
pub fn fetch(name: &str, tell: &mut dyn FnMut(FetchEvent<'_>)) -> Result<Fetched> {
    let named = BackboneName::parse(name)?;
    if named.repo.is_empty() {
        return Err(Error::invalid(named.name, "is part of this program: there is nothing to fetch"));
    }
    let var = |key: &str| std::env::var_os(key);
    if settings::offline(var) {
        let mend = by_hand(&named.name, &named.repo, None);
        return Err(Error::invalid(
            "HF_HUB_OFFLINE",
            Message::from("is set, so nothing is fetched; unset it, or ").text(mend),
        ));
    }
    let settings = HubSettings::new(var)?;
    let cache = HubCache::new(&settings.cache, &named.repo);
    let client = Client::new(settings)?;
    let download =
        Download { client: &client, cache: &cache, repo: &named.repo, revision: named.revision.clone(), tell };
    Fetch { named: &named, client: &client, cache: &cache, download, files: vec![] }.run()
}

/// The licence of the weights that a `config.json` is of, where it tells: that of `DINOv3`, which has to be passed on with them, by
/// its `model_type`, others as timm has noted them.
fn license(config: &[u8]) -> Option<String> {
    let config: serde_json::Value = serde_json::from_slice(config).ok()?;
    let text = |at: &str| config.pointer(at).and_then(serde_json::Value::as_str);
    let is_dinov3 =
        [text("/model_type"), text("/architecture")].into_iter().flatten().any(|name| name.contains("dinov3"));
    if is_dinov3 {
        let address = "https://ai.meta.com/resources/models-and-libraries/dinov3-license/";
        return Some(format!("DINOv3 License ({address}), to be passed on with the weights and what is made of them"));
    }
    let noted = text("/pretrained_cfg/license").or_else(|| text("/license"))?;
    Some(noted.chars().filter(|c| !c.is_control()).take(80).collect())
}

/// A fetch under way.
struct Fetch<'a> {
    named: &'a BackboneName,
    client: &'a Client,
    cache: &'a HubCache,
    download: Download<'a>,
    files: Vec<FetchedFile>,
}

impl Fetch<'_> {
    fn run(mut self) -> Result<Fetched> {
        // First of all what the model is: gigabytes of something else need not come.
        let described = self.file(CONFIG, WEIGHTS.text)?;
        if described && names_model(&self.path(CONFIG)) || !self.file(open_clip::CONFIG, WEIGHTS.text)? {
            if described && is_timm_config(&self.path(CONFIG)) {
                self.timm()?;
            } else {
                self.transformers(described)?;
            }
        } else {
            self.open_clip()?;
        }
        let license = read_limited(&self.path(CONFIG), WEIGHTS.text).ok().and_then(|config| license(&config));
        let Self { named, cache, download, files, .. } = self;
        // Last of all, so that a revision never stands for half a backbone.
        cache.refer(&named.revision, &download.revision)?;
        Ok(Fetched {
            name: named.name.clone(),
            repo: named.repo.clone(),
            revision: named.revision.clone(),
            path: cache.snapshot(&download.revision),
            license,
            commit: download.revision,
            files,
        })
    }

    /// Brings what a model of transformers consists of beside its configuration, which is `described`.
    fn transformers(&mut self, described: bool) -> Result<()> {
        if !described {
            return Err(self.error(&format!("has no {CONFIG}: it is no model in the Hugging Face layout")));
        }
        let spec = Spec::from_config(&self.path(CONFIG))?;
        // transformers 5 writes the one where there is a tokenizer, and the other where there is none.
        if self.file(PROCESSOR, WEIGHTS.text)? && self.says_something_of_images()? {
            self.file(PREPROCESSOR, WEIGHTS.text)?;
        } else {
            self.wanted(PREPROCESSOR, WEIGHTS.text)?;
        }
        if spec.text.is_some() {
            let whole = self.file(TOKENIZER, WEIGHTS.tokenizer)?;
            // What older repositories have in its place.
            let parts = !whole && self.file(VOCAB, WEIGHTS.tokenizer)? && self.file(MERGES, WEIGHTS.tokenizer)?;
            if !whole && !parts {
                (self.download.tell)(FetchEvent::Lacks { file: TOKENIZER });
            }
        }
        self.any_weights()
    }

    /// Brings weights in the form that there is.
    fn any_weights(&mut self) -> Result<()> {
        let is_there = self.file(SINGLE, WEIGHTS.weights)?
            || self.shards(INDEX)?
            || self.pickled()?
            || self.shards(PICKLED_INDEX)?;
        if !is_there {
            return Err(self.error(&format!("has neither {SINGLE} nor {INDEX} nor {PICKLED}")));
        }
        Ok(())
    }

    /// Brings the weights of a model of timm. Whether they are supported, their shapes will tell.
    fn timm(&mut self) -> Result<()> {
        let path = self.path(CONFIG);
        Timm::from_json(&read_limited(&path, WEIGHTS.text)?, &path)?;
        self.any_weights()
    }

    /// Whether the `processor_config.json` that is there says how images are prepared.
    fn says_something_of_images(&self) -> Result<bool> {
        let path = self.path(PROCESSOR);
        Ok(Preprocess::from_processor_json(&read_limited(&path, WEIGHTS.text)?, &path)?.is_some())
    }

    /// Brings the weights of a model of open_clip, whose tokenizer, if it is CLIP's, is part of this program. Those in PyTorch's form
    /// are read as they are.
    fn open_clip(&mut self) -> Result<()> {
        let path = self.path(open_clip::CONFIG);
        let spec = OpenClip::from_json(&read_limited(&path, WEIGHTS.text)?, &path)?.spec;
        if spec.text.is_some_and(|text| text.pool == TextPool::LastPosition) {
            self.wanted(TOKENIZER, WEIGHTS.tokenizer)?;
        }
        for name in open_clip::WEIGHTS {
            if self.file(name, WEIGHTS.weights)? {
                return Ok(());
            }
        }
        Err(self.error(&format!("has none of {}", open_clip::WEIGHTS.join(", "))))
    }

    /// Where `file` lies when it is there.
    fn path(&self, file: &str) -> PathBuf {
        self.cache.snapshot(&self.download.revision).join(file)
    }

    /// Brings a file; whether the repository has it.
    fn file(&mut self, name: &str, limit: u64) -> Result<bool> {
        let cached = self.download.file(name, limit).map_err(|failed| self.explain(name, failed))?;
        self.files.extend(cached.as_ref().map(|c| FetchedFile {
            name: name.to_owned(),
            bytes: c.bytes,
            source: c.source,
        }));
        Ok(cached.is_some())
    }

    /// Brings a file that one can do without.
    fn wanted(&mut self, name: &str, limit: u64) -> Result<()> {
        if !self.file(name, limit)? {
            (self.download.tell)(FetchEvent::Lacks { file: name });
        }
        Ok(())
    }

    /// Weights in the several files that `index` names; whether the repository has them so. Those in PyTorch's form are read as
    /// they are.
    fn shards(&mut self, index: &str) -> Result<bool> {
        if !self.file(index, WEIGHTS.index)? {
            return Ok(false);
        }
        let path = self.path(index);
        let names: BTreeSet<_> = parse_index(&read_limited(&path, WEIGHTS.index)?, &path)?.into_values().collect();
        if names.is_empty() || names.len() > WEIGHTS.shards {
            let message = format!("names {} files, not 1 to {}", names.len(), WEIGHTS.shards);
            return Err(Error::weights(path, message));
        }
        for name in names {
            if !self.file(&name, WEIGHTS.weights)? {
                return Err(self.error(&format!("has no {name}, which its {index} names")));
            }
        }
        Ok(true)
    }

    /// Weights in PyTorch's form, made safetensors; whether the repository has them so.
    ///
    /// The file that is made lies in the cache as if the hub had sent it, so that it is found, checked and not made again.
    fn pickled(&mut self) -> Result<bool> {
        let cached = self.download.content(PICKLED, WEIGHTS.weights).map_err(|failed| self.explain(PICKLED, failed))?;
        let Some(Cached { tag, source, .. }) = cached else { return Ok(false) };
        (self.download.tell)(FetchEvent::Converting { file: PICKLED });
        let pickled = self.cache.blob(&tag);
        let made = self.cache.incomplete(&format!("{tag}.{SINGLE}"));
        let lock = self.cache.lock(&tag, || ())?;
        let converted = convert(&pickled, &made).and_then(|()| {
            let tag = digest::sha256(&made).map_err(Error::io(&made))?;
            let blob = self.cache.blob(&tag);
            std::fs::rename(&made, &blob).map_err(Error::io(&blob))?;
            let bytes = std::fs::metadata(&blob).map_err(Error::io(&blob))?.len();
            self.cache.link(&self.download.revision, SINGLE, &tag)?;
            Ok(bytes)
        });
        let Ok(bytes) = converted else {
            let _ = std::fs::remove_file(&made);
            return converted.map(|_| true);
        };
        // Unless another tool has a use for it, which is then in a snapshot.
        if !self.cache.is_used(&tag) {
            std::fs::remove_file(&pickled).map_err(Error::io(&pickled))?;
        }
        drop(lock);
        (self.download.tell)(FetchEvent::Finished { file: SINGLE, bytes, source });
        self.files.push(FetchedFile { name: SINGLE.to_owned(), bytes, source });
        Ok(true)
    }

    fn error(&self, message: &str) -> Error {
        Error::invalid(format!("{}/{}", self.client.endpoint(), self.named.repo), message)
    }

    fn explain(&self, file: &str, failed: FetchFailure) -> Error {
        match failed {
            FetchFailure::Local(error) => error,
            FetchFailure::Hub(RequestFailure::Unreachable(why)) => {
                let mend = by_hand(&self.named.name, &self.named.repo, None);
                let message = Message::from(format!("cannot be reached ({why}); without a hub, ")).text(mend);
                Error::invalid(self.client.endpoint(), message)
            }
            FetchFailure::Hub(RequestFailure::Refused(why) | RequestFailure::Broken(why)) => {
                self.error(&format!("{file}: {why}"))
            }
            FetchFailure::Hub(RequestFailure::Absent) => self.error(&format!("has no {file}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::license;

    #[test]
    fn a_licence_is_told_by_the_configuration() {
        let of = |json: &str| license(json.as_bytes()).unwrap_or_default();
        assert!(of(r#"{"model_type": "dinov3_vit"}"#).starts_with("DINOv3 License (https://"));
        let timm = r#"{"architecture": "vit_small_patch16_dinov3", "pretrained_cfg": {"license": "other"}}"#;
        assert!(of(timm).starts_with("DINOv3 License (https://"));
        assert_eq!(of(r#"{"architecture": "vit_tiny", "pretrained_cfg": {"license": "apache-2.0\n"}}"#), "apache-2.0");
        assert_eq!((of("{}"), of("["), of(r#"{"license": 3}"#)), (String::new(), String::new(), String::new()));
    }
}
