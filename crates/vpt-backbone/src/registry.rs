//! Where backbones are: names that are known, the folders they are looked for in, and what is found there.
//!
//! Nothing here touches the network. A name is looked for among the bundled files, in the folder of `weights_dir`, and
//! in the cache that Hugging Face's own tools and `hub` fill.

mod known;
mod named;

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use self::known::{KNOWN, Known};
pub(crate) use self::named::BackboneName;
use self::named::known_as;
use super::bare::BareFile;
use super::bundled;
use super::open_clip::{self, OpenClip};
use super::spec::{Family, Spec, TextPool, TextSpec};
use super::timm::{self, Timm, TimmModel};
use super::tokenizer::{TOKENIZER, Tokenizer};
use super::weights;
use super::weights::pickle::{PICKLED, PICKLED_INDEX};
use super::weights::{INDEX, SINGLE, Weights};
use vpt_base::files::read_limited;
use vpt_base::{Error, Message, Result};
use vpt_image::Preprocess;

pub use super::spec::CONFIG;

/// The file that says how its images are prepared.
pub const PREPROCESSOR: &str = "preprocessor_config.json";
/// The file that may say it in a section of its own (transformers 5), which then is the one that counts.
pub const PROCESSOR: &str = "processor_config.json";

/// The files of the Hugging Face layout read here are pages of text.
const MAX_TEXT_BYTES: u64 = 4 << 20;

/// A backbone that was found: a folder, or the bundled files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The known name if there is one, else `owner/name` of its repository or the name of the folder.
    pub name: String,
    /// The known backbone, if that is what the name says.
    pub known: Option<&'static Known>,
    /// The folder; `None` for the bundled backbone.
    pub dir: Option<PathBuf>,
    /// The weight file in it that was named itself, without any configuration.
    pub bare: Option<BareFile>,
}

impl Location {
    /// The path that stands for one of the backbone's files in messages.
    pub fn path(&self, file: &str) -> PathBuf {
        if let Some(bare) = &self.bare {
            return bare.path.clone();
        }
        self.dir.as_deref().unwrap_or(Path::new(bundled::NAME)).join(file)
    }

    /// One of the backbone's text files; `None` where there is no such file.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn read(&self, file: &str) -> Result<Option<Cow<'static, [u8]>>> {
        let path = self.path(file);
        if self.bare.is_some() {
            return Ok(None);
        }
        if self.dir.is_none() {
            return Ok(bundled::file(file).map(Cow::Borrowed));
        }
        match read_limited(&path, MAX_TEXT_BYTES) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            read => Ok(Some(Cow::Owned(read?))),
        }
    }

    /// Whether it has open_clip's form and no other.
    fn is_open_clip(&self) -> bool {
        match &self.bare {
            Some(bare) => bare.is_clip(),
            None => self.dir.as_deref().is_some_and(is_open_clip),
        }
    }

    /// What open_clip's configuration says, where the folder has that form.
    pub(super) fn open_clip(&self) -> Result<Option<OpenClip>> {
        if let Some(bare) = &self.bare {
            return bare.open_clip();
        }
        if !self.is_open_clip() {
            return Ok(None);
        }
        let bytes = self.read(open_clip::CONFIG)?;
        bytes.map(|bytes| OpenClip::from_json(&bytes, &self.path(open_clip::CONFIG))).transpose()
    }

    /// What timm's configuration and the shapes of the weights say, where the folder has that form.
    pub(super) fn timm(&self) -> Result<Option<TimmModel>> {
        if let Some(bare) = &self.bare {
            return bare.timm();
        }
        let Some(dir) = self.dir.as_deref().filter(|dir| is_timm(dir)) else { return Ok(None) };
        let path = self.path(CONFIG);
        let Some(bytes) = self.read(CONFIG)? else { return Ok(None) };
        let timm = Timm::from_json(&bytes, &path)?;
        let spec = timm.spec(&Weights::open_timm(dir)?)?;
        Ok(Some(TimmModel { preprocess: timm.preprocess()?, note: timm.note(&spec), spec }))
    }

    /// The backbone's architecture, from its `config.json` or `open_clip_config.json`.
    ///
    /// # Errors
    /// As [`Spec::from_config`].
    pub fn spec(&self) -> Result<Spec> {
        if let Some(OpenClip { spec, .. }) = self.open_clip()? {
            return Ok(spec);
        }
        if let Some(TimmModel { spec, .. }) = self.timm()? {
            return Ok(spec);
        }
        let path = self.path(CONFIG);
        match self.read(CONFIG)? {
            Some(bytes) => Spec::from_json(&bytes, &path),
            None => Err(Error::weights(path, "no such file: not a folder in the Hugging Face layout")),
        }
    }

    /// How images are prepared, and the file that says so, as transformers finds them: a section of `processor_config.json`, else
    /// `preprocessor_config.json`. `None` where neither says it.
    ///
    /// # Errors
    /// As [`Preprocess::from_file`].
    pub fn preprocess(&self) -> Result<Option<(Preprocess, PathBuf)>> {
        if let Some(bytes) = self.read(PROCESSOR)? {
            let path = self.path(PROCESSOR);
            if let Some(preprocess) = Preprocess::from_processor_json(&bytes, &path)? {
                return Ok(Some((preprocess, path)));
            }
        }
        let Some(bytes) = self.read(PREPROCESSOR)? else { return Ok(None) };
        let path = self.path(PREPROCESSOR);
        Ok(Some((Preprocess::from_json(&bytes, &path)?, path)))
    }

    /// Opens the backbone's tensors.
    ///
    /// # Errors
    /// As [`Weights::open`].
    pub fn weights(&self) -> Result<Weights> {
        if let Some(bare) = &self.bare {
            return bare.weights();
        }
        match &self.dir {
            Some(dir) if is_open_clip(dir) => Weights::open_open_clip(dir),
            Some(dir) if is_timm(dir) => Weights::open_timm(dir),
            Some(dir) => Weights::open(dir),
            None => Weights::from_static(bundled::file(SINGLE).unwrap_or_default(), &self.path(SINGLE)),
        }
    }

    /// [`Tokenizer::content`] of the tokenizer of the backbone, whose text tower is `spec`; empty where there is none.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub(super) fn tokenizer_content(&self, spec: &TextSpec) -> Result<String> {
        match &self.dir {
            Some(dir) if spec.pool == TextPool::LastPosition => Tokenizer::content(dir),
            Some(_) if self.is_open_clip() => Ok(Tokenizer::content_of_open_clip()),
            Some(dir) => Tokenizer::content(dir),
            None => Ok(Tokenizer::content_of(bundled::file(TOKENIZER).unwrap_or_default())),
        }
    }

    /// Opens the tokenizer of the backbone, whose text tower is `spec`.
    ///
    /// # Errors
    /// There is none, or it cannot be used.
    pub(crate) fn tokenizer(&self, spec: &TextSpec) -> Result<Tokenizer> {
        match &self.dir {
            Some(dir) if spec.pool == TextPool::LastPosition => Tokenizer::open_padded(dir, spec.vocab),
            Some(_) if self.is_open_clip() => Ok(Tokenizer::open_clip(&self.path(open_clip::CONFIG))),
            Some(dir) => Tokenizer::open(dir),
            None => Tokenizer::from_bytes(bundled::file(TOKENIZER).unwrap_or_default(), &self.path(TOKENIZER)),
        }
    }
}

/// Finds the backbone `name_or_dir`: a folder, a weight file of which is said what it does not say (`FILE:quick-gelu`), a known name, or `owner/name` of a repository on the Hugging Face hub;
/// either name may have `@revision` behind it.
///
/// Names are looked for in `weights_dir` (as `name`, `owner--name`, `owner/name` or the repository's name alone, each with
/// `@revision` if there is one), then in the local Hugging Face cache (`HF_HUB_CACHE`, `HF_HOME`, else
/// `~/.cache/huggingface`).
///
/// # Errors
/// It is nowhere; the message says which folder to fill with which files, or which name may have been meant.
pub fn locate(name_or_dir: &str, weights_dir: Option<&Path>) -> Result<Location> {
    locate_in(name_or_dir, weights_dir, hub_cache(|key| std::env::var_os(key)).as_deref())
}

fn locate_in(name: &str, weights_dir: Option<&Path>, cache: Option<&Path>) -> Result<Location> {
    let folder = Path::new(name);
    // A folder that merely has the name of a known backbone is not taken for one.
    if folder.is_dir() && (known_as(name).is_none() || folder.join(CONFIG).is_file()) {
        return match missing(folder) {
            None => {
                Ok(Location { name: folder_name(folder), known: None, dir: Some(folder.to_path_buf()), bare: None })
            }
            Some(file) => {
                Err(Error::weights(folder, format!("holds no {file}: not a folder in the Hugging Face layout")))
            }
        };
    }
    if let Some(bare) = BareFile::parse(name)? {
        let dir = bare.path.parent().map(Path::to_path_buf);
        return Ok(Location { name: bare.name(), known: None, dir, bare: Some(bare) });
    }
    let named = BackboneName::parse(name)?;
    let found = |dir: Option<PathBuf>| Location { name: named.name.clone(), known: named.known, dir, bare: None };
    if named.name == bundled::NAME && bundled::file(SINGLE).is_some() {
        return Ok(found(None));
    }
    let mut incomplete = None;
    let here = weights_dir.map(|dir| in_weights_dir(dir, &named)).unwrap_or_default();
    for dir in here.into_iter().chain(cache.and_then(|cache| snapshot(cache, &named.repo, &named.revision))) {
        match missing(&dir) {
            None => return Ok(found(Some(dir))),
            Some(file) if incomplete.is_none() && dir.is_dir() => incomplete = Some((dir, file)),
            Some(_) => {}
        }
    }
    Err(not_found(&named.name, &named.repo, weights_dir, incomplete))
}

/// Whether the folder `dir` has open_clip's form: its configuration, and no model of transformers or timm beside it.
pub(crate) fn is_open_clip(dir: &Path) -> bool {
    let has_weights = || dir.join(SINGLE).is_file() || dir.join(INDEX).is_file();
    // With both forms in a folder, open_clip's has texts.
    let of_timm = || is_timm_config(&dir.join(CONFIG)) && !dir.join(open_clip::WEIGHTS[0]).is_file();
    dir.join(open_clip::CONFIG).is_file() && !(has_weights() && (names_model(&dir.join(CONFIG)) || of_timm()))
}

/// Whether the folder `dir` has timm's form and no other.
pub(crate) fn is_timm(dir: &Path) -> bool {
    !is_open_clip(dir) && is_timm_config(&dir.join(CONFIG))
}

/// Whether `config`, a `config.json`, is timm's.
pub(crate) fn is_timm_config(config: &Path) -> bool {
    read_limited(config, MAX_TEXT_BYTES).is_ok_and(|bytes| timm::is_config(&bytes))
}

/// Whether `config`, a `config.json`, says what a model is, as that of transformers does.
pub(crate) fn names_model(config: &Path) -> bool {
    let config = read_limited(config, MAX_TEXT_BYTES).ok();
    let config = config.and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
    config.is_some_and(|config| config.get("model_type").is_some_and(serde_json::Value::is_string))
}

/// The first file that `dir` would need to be a backbone's folder and lacks.
fn missing(dir: &Path) -> Option<&'static str> {
    if is_open_clip(dir) {
        return if open_clip::weight_file(dir).is_some() { None } else { Some(open_clip::WEIGHTS[0]) };
    }
    if !dir.join(CONFIG).is_file() {
        return Some(CONFIG);
    }
    let is_there = |name: &&str| dir.join(name).is_file();
    let pickled = || is_timm(dir) && weights::pickled_timm(dir).is_some();
    let has_weights = [SINGLE, INDEX, PICKLED, PICKLED_INDEX].iter().any(is_there) || pickled();
    if has_weights { None } else { Some(SINGLE) }
}

fn folder_name(dir: &Path) -> String {
    let full = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    full.file_name().map_or_else(|| full.display().to_string(), |name| name.to_string_lossy().into_owned())
}

fn in_weights_dir(dir: &Path, named: &BackboneName) -> Vec<PathBuf> {
    let BackboneName { name, repo, .. } = named;
    let base = repo.rsplit('/').next().unwrap_or(repo);
    let revision = name.split_once('@').map(|(_, revision)| format!("@{revision}")).unwrap_or_default();
    let own = [repo.replace('/', "--"), repo.clone(), base.to_owned()].map(|folder| format!("{folder}{revision}"));
    let mut folders: Vec<PathBuf> = Vec::new();
    for folder in [name.clone()].iter().chain(&own).filter(|_| !repo.is_empty()) {
        if !folders.contains(&dir.join(folder)) {
            folders.push(dir.join(folder));
        }
    }
    folders
}

/// Where Hugging Face's tools keep what they have downloaded, by the variables they read.
pub(crate) fn hub_cache(var: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |key: &str| var(key).filter(|v| !v.is_empty()).map(PathBuf::from);
    path("HF_HUB_CACHE")
        .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| path("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| path("HOME").map(|home| home.join(".cache/huggingface/hub")))
}

/// The folder of a repository's revision in a cache laid out as `models--owner--name/{refs,snapshots}`.
pub(crate) fn snapshot(cache: &Path, repo: &str, revision: &str) -> Option<PathBuf> {
    let dir = cache.join(format!("models--{}", repo.replace('/', "--")));
    let is_commit = |s: &str| !s.is_empty() && s.len() <= 64 && s.bytes().all(|b| b.is_ascii_hexdigit());
    let named = read_limited(&dir.join("refs").join(revision), 1 << 10).ok().and_then(|b| String::from_utf8(b).ok());
    let commit = named.as_deref().map_or(revision, str::trim);
    is_commit(commit).then(|| dir.join("snapshots").join(commit)).filter(|dir| dir.is_dir())
}

fn not_found(name: &str, repo: &str, weights_dir: Option<&Path>, incomplete: Option<(PathBuf, &str)>) -> Error {
    if let Some((dir, file)) = incomplete {
        return Error::weights(dir, format!("is the place of backbone {name}, but holds no {file}"));
    }
    if repo.is_empty() {
        return Error::setting("backbone", format!("{name} is not part of this build and has no public repository"));
    }
    Error::setting(
        "backbone",
        Message::from(format!("{name} is neither in "))
            .field("weights_dir")
            .text(format!(" nor in the Hugging Face cache; run `vpt backbones fetch {name}`, or "))
            .text(by_hand(name, repo, weights_dir)),
    )
}

/// How to bring a backbone to its place without this program.
pub(crate) fn by_hand(name: &str, repo: &str, weights_dir: Option<&Path>) -> Message {
    let dir = weights_dir.map_or_else(|| PathBuf::from("weights"), Path::to_path_buf).join(name.replace('/', "--"));
    let message = Message::from(format!(
        "put {CONFIG}, {SINGLE} (or its shards and {INDEX}), {PREPROCESSOR} and, for CLIP, {TOKENIZER} of \
         https://huggingface.co/{repo} into {}",
        dir.display()
    ));
    match weights_dir {
        Some(_) => message,
        None => message.text(" and give `").field("weights_dir").text(" weights`"),
    }
}

/// A row of `vpt backbones list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackboneRow {
    /// The known name.
    pub name: &'static str,
    /// Its family.
    pub family: &'static Family,
    /// Its repository on the Hugging Face hub; empty for the bundled one.
    pub repo: &'static str,
    /// The revision of the repository.
    pub revision: &'static str,
    /// Whether it can be used now.
    pub found: bool,
    /// The folder it was found in, or `bundled`.
    pub path: Option<String>,
}

/// Every known backbone, and where it was found.
pub fn list(weights_dir: Option<&Path>) -> Vec<BackboneRow> {
    let cache = hub_cache(|key| std::env::var_os(key));
    let row = |known: &'static Known| {
        let location = locate_in(known.name, weights_dir, cache.as_deref()).ok();
        let path = location.map(|l| l.dir.map_or_else(|| "bundled".to_owned(), |dir| dir.display().to_string()));
        BackboneRow {
            name: known.name,
            family: known.family,
            repo: known.repo,
            revision: known.revision,
            found: path.is_some(),
            path,
        }
    };
    KNOWN.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::named::is_repository;
    use super::*;
    use crate::info::info;
    use crate::names::{clip, deit, dinov2, dinov2_with_registers, mae, vit};

    /// Makes an (empty) checkpoint folder.
    fn fill(dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join(CONFIG), "{}").unwrap();
        std::fs::write(dir.join(SINGLE), "").unwrap();
    }

    fn refused(name: &str, weights_dir: Option<&Path>, cache: Option<&Path>) -> String {
        let message = locate_in(name, weights_dir, cache).unwrap_err().to_string();
        assert!(!message.contains('\n'), "{message}");
        message
    }

    #[test]
    fn names_are_found_in_the_weights_folder_and_then_in_the_cache() {
        let (weights, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (weights, cache) = (weights.path(), cache.path());
        let at = |name: &str| locate_in(name, Some(weights), Some(cache)).map(|l| l.dir.unwrap());
        assert!(at("clip-vit-b32").is_err());

        let repo = cache.join("models--openai--clip-vit-base-patch32");
        fill(&repo.join("snapshots/0123abcd"));
        assert!(at("clip-vit-b32").is_err(), "no reference says which snapshot");
        std::fs::create_dir(repo.join("refs")).unwrap();
        std::fs::write(repo.join("refs/main"), "0123abcd\n").unwrap();
        assert_eq!(at("clip-vit-b32").unwrap(), repo.join("snapshots/0123abcd"));
        assert_eq!(at("openai/clip-vit-base-patch32").unwrap(), repo.join("snapshots/0123abcd"));
        std::fs::write(repo.join("refs/main"), "../../elsewhere").unwrap();
        assert!(at("clip-vit-b32").is_err());

        // Each next one comes before those already there.
        for folder in
            ["clip-vit-base-patch32", "openai/clip-vit-base-patch32", "openai--clip-vit-base-patch32", "clip-vit-b32"]
        {
            fill(&weights.join(folder));
            assert_eq!(at("clip-vit-b32").unwrap(), weights.join(folder));
        }
        let location = locate_in("openai/clip-vit-base-patch32", Some(weights), None).unwrap();
        assert_eq!((location.name.as_str(), location.dir), ("clip-vit-b32", Some(weights.join("clip-vit-b32"))));
    }

    #[test]
    fn a_revision_is_another_backbone() {
        let (weights, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (weights, cache) = (weights.path(), cache.path());
        let at = |name: &str| locate_in(name, Some(weights), Some(cache)).map(|l| (l.name, l.dir.unwrap()));
        let repo = cache.join("models--facebook--dinov2-small");
        for (revision, commit) in [("main", "aaaa"), ("v1", "bbbb"), ("refs/pr/1", "cccc")] {
            fill(&repo.join("snapshots").join(commit));
            let name = repo.join("refs").join(revision);
            std::fs::create_dir_all(name.parent().unwrap()).unwrap();
            std::fs::write(name, commit).unwrap();
        }
        for (name, full, commit) in [
            ("dinov2-small", "dinov2-small", "aaaa"),
            ("dinov2-small@v1", "dinov2-small@v1", "bbbb"),
            ("facebook/dinov2-small@v1", "dinov2-small@v1", "bbbb"),
            ("dinov2-small@refs/pr/1", "dinov2-small@refs/pr/1", "cccc"),
            ("dinov2-small@bbbb", "dinov2-small@bbbb", "bbbb"),
        ] {
            assert_eq!(at(name).unwrap(), (full.to_owned(), repo.join("snapshots").join(commit)), "{name}");
        }
        fill(&weights.join("dinov2-small"));
        assert_eq!(at("dinov2-small@v1").unwrap().1, repo.join("snapshots/bbbb"), "the folder may be another revision");
        fill(&weights.join("facebook--dinov2-small@v1"));
        assert_eq!(at("dinov2-small@v1").unwrap().1, weights.join("facebook--dinov2-small@v1"));
        for (name, part) in [
            ("dinov2-small@v2", "run `vpt backbones fetch dinov2-small@v2`, or put"),
            ("dinov2-small@", "`` is no branch, tag or commit"),
            ("dinov2-small@../x", "`../x` is no branch"),
            ("dinov2-small@a//b", "`a//b` is no branch"),
            ("me/mine@a b", "`a b` is no branch"),
            ("clip-nano@main", "has no revisions"),
            ("dinov2-smal@v1", "did you mean dinov2-small?"),
        ] {
            let message = refused(name, None, Some(cache));
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_folder_is_taken_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("my-model");
        std::fs::create_dir(&model).unwrap();
        let name = model.to_str().unwrap();
        assert!(refused(name, None, None).contains("my-model: holds no config.json"));
        std::fs::write(model.join(CONFIG), "{}").unwrap();
        assert!(refused(name, None, None).contains("my-model: holds no model.safetensors"));
        fill(&model);
        let location = locate_in(name, None, None).unwrap();
        assert_eq!((location.name.as_str(), location.dir, location.known), ("my-model", Some(model.clone()), None));
        let location = locate_in(&format!("{name}/"), None, None).unwrap();
        assert_eq!(location.name, "my-model");
        assert!(location.spec().unwrap_err().to_string().contains("model_type: missing"));
        assert!(location.read(PREPROCESSOR).unwrap().is_none());
    }

    #[test]
    fn what_is_not_found_says_what_to_do() {
        let message = refused("dinov2-small", Some(Path::new("/w")), None);
        for part in [
            "run `vpt backbones fetch dinov2-small`, or put config.json, ",
            "facebook/dinov2-small into /w/dinov2-small",
        ] {
            assert!(message.contains(part), "{message}");
        }
        assert!(refused("me/mine", None, None).contains("into weights/me--mine and give `weights_dir weights`"));
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("dino-s16")).unwrap();
        assert!(refused("dino-s16", Some(dir.path()), None).contains("backbone dino-s16, but holds no config.json"));
    }

    #[test]
    fn misspelt_names_get_a_suggestion() {
        for (name, near) in
            [("clip-vitb32", "clip-vit-b32"), ("dinov2-smal", "dinov2-small"), ("CLIP-nano", "clip-nano")]
        {
            assert!(refused(name, None, None).ends_with(&format!("did you mean {near}?")), "{name}");
        }
        assert!(refused("resnet50", None, None).contains("known are clip-nano, clip-vit-b32,"));
        assert!(refused("", None, None).contains("`` is neither a folder nor a known name"));
        assert!(refused("../x/y", None, None).contains("neither a folder nor a known name"));
        assert!(refused(&"x".repeat(5000), None, None).contains("known are"));
    }

    #[test]
    fn the_cache_is_where_hugging_face_keeps_it() {
        let with = |set: &[(&str, &str)]| {
            let value = |key: &str| set.iter().find(|(k, _)| *k == key).map(|(_, v)| OsString::from(v));
            hub_cache(value).map(|path| path.to_str().unwrap().to_owned())
        };
        let all = [("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")];
        assert_eq!(with(&all).as_deref(), Some("/c"));
        assert_eq!(with(&all[..3]).as_deref(), Some("/f/hub"));
        assert_eq!(with(&all[..2]).as_deref(), Some("/x/huggingface/hub"));
        assert_eq!(with(&all[..1]).as_deref(), Some("/h/.cache/huggingface/hub"));
        assert_eq!(with(&[("HF_HUB_CACHE", ""), ("HOME", "/h")]).as_deref(), Some("/h/.cache/huggingface/hub"));
        assert_eq!(with(&[]), None);
    }

    const CASES: [(&str, &Family, u64, &str, usize, &str); 8] = [
        ("clip", &clip::FAMILY, 106_337, "F16", 1, "vision_model.embeddings.class_embedding"),
        ("clip-gelu", &clip::FAMILY, 93_633, "BF16", 1, "text_model.final_layer_norm.bias"),
        ("vit", &vit::FAMILY, 44_994, "F32", 3, "embeddings.cls_token"),
        ("deit", &deit::FAMILY, 45_124, "F16", 1, "embeddings.distillation_token"),
        ("dinov2", &dinov2::FAMILY, 45_152, "BF16", 3, "encoder.layer.2.layer_scale1.lambda1"),
        ("dinov2-registers", &dinov2_with_registers::FAMILY, 45_410, "F16", 1, "embeddings.register_tokens"),
        ("dinov2-swiglu", &dinov2_with_registers::FAMILY, 10_688, "F16", 1, "encoder.layer.1.mlp.weights_in.bias"),
        ("mae", &mae::FAMILY, 13_936, "F16", 1, "encoder.layer.1.output.dense.bias"),
    ];

    // Counts by PyTorch: the sum of the checkpoint's tensor sizes.
    #[test]
    fn folders_of_every_family_are_described() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
        for (folder, family, parameters, dtype, files, class) in CASES {
            let dir = fixtures.join(folder);
            let info = info(dir.to_str().unwrap(), None).unwrap();
            assert_eq!((info.name.as_str(), info.spec.family, info.files.len()), (folder, family, files));
            assert_eq!((info.parameters, info.dtypes), (parameters, vec![dtype.to_owned()]), "{folder}");
            let weights = locate(dir.to_str().unwrap(), None).unwrap().weights().unwrap();
            assert!(weights.has(class), "{folder}");
        }
    }

    #[test]
    fn known_names_are_unique_and_listed() {
        let mut names: Vec<_> = list(None).iter().map(|row| row.name).collect();
        assert_eq!(names.first(), Some(&bundled::NAME));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KNOWN.len());
        assert!(KNOWN.iter().all(|k| k.repo.is_empty() == (k.name == bundled::NAME)));
        assert!(KNOWN.iter().all(|k| k.repo.is_empty() || is_repository(k.repo)));
    }
}
