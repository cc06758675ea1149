//! A backbone as users know it: an image tower, what it expects of images and, for CLIP, the other half.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::bare::BareFile;
use super::engine::{Compute, Engine};
use super::identity::{BackboneIdentity, IdentityParts};
use super::names::{TextNames, clip};
use super::open_clip;
use super::registry::{CONFIG, Location, PREPROCESSOR, locate};
use super::spec::{Spec, TextSpec};
use super::text::{PlainTextTower, PromptedTexts, TextTower, TunedTexts};
use super::tokenizer::Tokenizer;
use super::vit::{OwnWeights, PlainTower, TokenPrompts, Tune, Tuned, Vit};
use super::weights::Weights;
use vpt_base::{Error, Message, Result};
use vpt_image::preprocess::Preprocess;
use vpt_kernel::{Init, Mat, MatMut, PanelRange, Panels, Precision, matmul};

/// Name that a tuned projection of image features has in task files: CLIP's.
pub const VISUAL_PROJECTION: &str = "visual_projection.weight";

/// How to open a backbone.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// A folder that is searched for the backbone before the Hugging Face cache.
    pub weights_dir: Option<PathBuf>,
    /// Side of the images in pixels; by default what the backbone's preprocessing makes.
    pub image_size: Option<usize>,
    /// Number format of frozen weights and of what is multiplied with them.
    pub precision: Precision,
    /// Bytes that the process should take at most (see [`Vit::limit_memory`]).
    pub max_memory: Option<u64>,
    /// What computes the image tower, and on what. Texts are computed by the native engine on any.
    pub compute: Compute,
}

/// A frozen backbone, ready to run.
#[derive(Debug)]
pub struct Backbone {
    /// Its known name, `owner/name` or folder name.
    pub name: String,
    /// Its architecture.
    pub spec: Spec,
    /// The image tower.
    pub vit: Vit,
    /// CLIP's projections and logit scale.
    pub clip: Option<Clip>,
    /// How an image becomes pixels.
    pub preprocess: Preprocess,
    /// The reason why it has no text tower, where its folder describes one that cannot be read.
    without_texts: Option<String>,
    /// What is done in another way than the library does it whose form its folder has.
    note: Option<String>,
    location: Location,
    weights: Weights,
    /// The tensors that both towers are made of.
    tensors: Vec<String>,
    /// How its files say that an image becomes pixels, for images of the size that they say.
    stored_preprocess: Preprocess,
    identity: OnceLock<BackboneIdentity>,
    hash_of_files: OnceLock<String>,
}

/// The parts behind and beside the image tower of CLIP and its kin, which hold images against texts.
pub struct Clip {
    /// `[D, projection]`; `None` where image features are what texts are held against.
    projection: Option<Panels>,
    /// Natural logarithm of the factor between cosine and logit.
    logit_scale: f32,
    /// What is added to a logit, where its sigmoid is a probability by itself.
    logit_bias: Option<f32>,
    text: Option<LazyTextTower>,
    tokenizer: OnceLock<Tokenizer>,
}

/// A text tower that is read once it is needed: most tasks need none, and the embeddings of its words alone are large.
struct LazyTextTower {
    spec: TextSpec,
    names: &'static TextNames,
    precision: Precision,
    tower: OnceLock<TextTower>,
}

impl Backbone {
    /// Opens the backbone `name_or_dir`: a known name, `owner/name`, or a folder in the Hugging Face layout.
    ///
    /// # Errors
    /// It is nowhere, a file of it is missing or damaged, or the image size does not fit it.
    pub fn open(name_or_dir: &str, options: &OpenOptions) -> Result<Self> {
        Self::read(name_or_dir, options).map_err(|error| error.of_kind(Error::weights))
    }

    fn read(name_or_dir: &str, options: &OpenOptions) -> Result<Self> {
        options.compute.check()?;
        if options.compute.engine != Engine::Native && options.max_memory.is_some() {
            let message =
                format!("not with {{engine}} {}, which keeps to no limit; see {{micro_batch}}", options.compute.engine);
            return Err(Error::setting("max_memory", Message::naming(&message)));
        }
        let location = locate(name_or_dir, options.weights_dir.as_deref())?;
        let mut note = None;
        let (spec, path, preprocess, without_texts) = if let Some(found) = location.open_clip()? {
            note = location.bare.as_ref().map(BareFile::note);
            (found.spec, location.path(open_clip::CONFIG), found.preprocess, found.without_texts)
        } else if let Some(found) = location.timm()? {
            note = location.bare.as_ref().map(BareFile::note).or(found.note);
            (found.spec, location.path(CONFIG), found.preprocess, None)
        } else {
            let (spec, path) = (location.spec()?, location.path(PREPROCESSOR));
            let (preprocess, path) = match (location.preprocess()?, spec.family.preprocess) {
                (Some(found), _) => found,
                (None, Some(preprocess)) => (preprocess(spec.image_size), path),
                (None, None) => {
                    return Err(Error::weights(path, "no such file: it says how images are prepared"));
                }
            };
            (spec, path, preprocess, None)
        };
        let weights = location.weights()?;
        let stored_preprocess = preprocess.clone();
        let preprocess = match options.image_size {
            Some(n) => {
                spec.check_image_size(n)?;
                preprocess.for_image_size(n)?
            }
            None => preprocess,
        };
        let image_size = match preprocess.output_size() {
            Some((width, height)) if width == height => width,
            Some((width, height)) => {
                return Err(Error::weights(
                    path,
                    format!("makes images of {width} x {height}, but only squares are read"),
                ));
            }
            None => {
                return Err(Error::weights(path, "makes images of no fixed size: neither a crop nor an exact size"));
            }
        };
        let vit = Vit::load_on(&spec, &weights, image_size, options.precision, options.compute);
        // Where nobody typed a size, it is the one in the file.
        let mut vit = if options.image_size.is_none() { vit.map_err(|error| error.in_file(&path))? } else { vit? };
        vit.limit_memory(options.max_memory);
        let joint = spec.projection.is_some() || spec.text.is_some();
        let clip = joint.then(|| Clip::load(&spec, &weights, options.precision)).transpose()?;
        let (name, tensors) = (location.name.clone(), weights.asked());
        Ok(Self {
            name,
            spec,
            vit,
            clip,
            preprocess,
            without_texts,
            note,
            location,
            weights,
            tensors,
            stored_preprocess,
            identity: OnceLock::new(),
            hash_of_files: OnceLock::new(),
        })
    }

    /// What stands for everything that decides its outputs: what a task file is bound to.
    ///
    /// # Errors
    /// Its files cannot be read any more.
    pub fn identity(&self) -> Result<&BackboneIdentity> {
        if let Some(identity) = self.identity.get() {
            return Ok(identity);
        }
        let classifier = self.spec.classifier.map(|_| self.spec.family.classifier);
        let beside: Vec<String> =
            classifier.iter().flat_map(|layer| [format!("{layer}.weight"), format!("{layer}.bias")]).collect();
        let tokenizer = match self.clip.as_ref().and_then(|clip| clip.text.as_ref()) {
            Some(text) => self.location.tokenizer_content(&text.spec)?,
            None => String::new(),
        };
        let identity = IdentityParts {
            tensors: self.weights.content(&self.tensors, &beside)?,
            config: self.spec.content(),
            tokenizer,
            processor: super::identity::processor(&self.stored_preprocess)?,
        };
        Ok(self.identity.get_or_init(|| BackboneIdentity::new(&identity)))
    }

    /// [`BackboneIdentity::hash`].
    ///
    /// # Errors
    /// As [`Backbone::identity`].
    pub fn hash(&self) -> Result<&str> {
        Ok(&self.identity()?.hash)
    }

    /// BLAKE3 of the weight files, in hexadecimal: what earlier versions knew a backbone by.
    ///
    /// # Errors
    /// The files cannot be read any more.
    pub fn hash_of_files(&self) -> Result<&str> {
        if let Some(hash) = self.hash_of_files.get() {
            return Ok(hash);
        }
        let hash = self.weights.hash()?;
        Ok(self.hash_of_files.get_or_init(|| hash))
    }

    /// Where it was found.
    pub(super) fn location(&self) -> &Location {
        &self.location
    }

    /// The weight files.
    pub(super) fn weights(&self) -> &Weights {
        &self.weights
    }

    /// What is done in another way than its authors do it, and a user should know.
    pub fn note(&self) -> Option<String> {
        let of_family = Some(self.spec.family.note).filter(|note| !note.is_empty());
        self.note.as_deref().or(of_family).map(|note| format!("{}: {note}", self.name))
    }

    /// Number of values in the backbone's tensors.
    pub fn parameters(&self) -> u64 {
        self.weights.parameters()
    }

    /// Width of what [`Backbone::embed`] makes.
    pub fn embedding_width(&self) -> usize {
        let projection = self.clip.as_ref().and_then(|clip| clip.projection.as_ref());
        projection.map_or(self.vit.width(), Panels::n)
    }

    /// Image embeddings of `pixels` `[B, 3, S, S]`, not normalised: CLIP's projected class token `[B, projection]`, what attention
    /// pooling makes `[B, D]` of SigLIP, the class token after the last norm `[B, D]` of other families.
    ///
    /// # Errors
    /// As [`Vit::features`].
    pub fn embed(&self, pixels: &[f32], prompts: Option<TokenPrompts>, threads: usize) -> Result<Vec<f32>> {
        Ok(self.project(self.vit.features(pixels, prompts, threads)?))
    }

    /// The embeddings that features `[B, D]` (the class token after the last norm) stand for: CLIP's projection of them,
    /// `[B, projection]`, the features themselves for other families.
    pub fn project(&self, features: Vec<f32>) -> Vec<f32> {
        match self.clip.as_ref().and_then(|clip| clip.projection.as_ref()) {
            Some(projection) => product(&features, projection),
            None => features,
        }
    }

    /// The vector-Jacobian product of [`Self::project`]: from gradients `[B, projection]` of embeddings those of the features,
    /// `[B, D]`.
    pub fn project_vjp(&self, gradient: Vec<f32>) -> Vec<f32> {
        match self.clip.as_ref().and_then(|clip| clip.projection.as_ref()) {
            Some(projection) => product(&gradient, projection.t()),
            None => gradient,
        }
    }

    /// The image tower with weights of its own: see [`Vit::tuned`].
    ///
    /// # Errors
    /// As [`Vit::tuned`].
    pub fn tuned(&self, tune: Tune) -> Result<Tuned> {
        self.vit.tuned(&self.spec, &self.weights, tune)
    }

    /// The image tower's weights as plain matrices, with those of a task's own.
    pub fn plain<'a>(&'a self, own: OwnWeights<'a>) -> PlainTower<'a> {
        PlainTower::new(&self.spec, &self.weights, self.vit.image_size(), own)
    }

    /// The text tower's weights as plain matrices.
    ///
    /// # Errors
    /// The backbone has none.
    pub fn plain_texts(&self) -> Result<PlainTextTower<'_>> {
        let text = self.text()?;
        Ok(PlainTextTower::new(&text.spec, text.names, &self.weights))
    }

    /// The text tower with low-rank changes of its own: see [`TextTower::tuned`].
    ///
    /// # Errors
    /// As [`TextTower::tuned`], or the backbone has no text tower.
    pub fn tuned_texts(&self, rank: usize, scale: f32) -> Result<TunedTexts> {
        self.text_tower()?.tuned(&self.weights, rank, scale)
    }

    /// CLIP's projection of image features `[E, D]`, as the checkpoint has it.
    ///
    /// # Errors
    /// There is none, or it cannot be read any more.
    pub fn visual_projection(&self) -> Result<Vec<f32>> {
        self.weights.get(self.spec.family.joint.projection, &[self.embedding_width(), self.vit.width()])
    }

    /// `texts` as token ids, up to the end token of each.
    ///
    /// # Errors
    /// As [`Self::embed_texts`].
    pub fn token_ids<S: AsRef<str>>(&self, texts: &[S]) -> Result<Vec<Vec<u32>>> {
        let tower = self.text_tower()?;
        tower.read_part(self.encode(texts, tower.context())?, &self.tokenizer_path())
    }

    /// Whether there is a text tower: CLIP's.
    pub fn has_text_tower(&self) -> bool {
        self.text().is_ok()
    }

    /// Architecture of CLIP's text tower; [`Self::text_tower`] is the tower itself.
    ///
    /// # Errors
    /// The backbone has none.
    pub fn text_spec(&self) -> Result<&TextSpec> {
        self.text().map(|text| &text.spec)
    }

    fn text(&self) -> Result<&LazyTextTower> {
        self.clip.as_ref().and_then(|clip| clip.text.as_ref()).ok_or_else(|| {
            let message = match &self.without_texts {
                Some(reason) => format!("{} has a text tower that cannot be read: {reason}", self.name),
                None if self.spec.family == &clip::FAMILY => {
                    format!("{} is the image tower of a CLIP alone, without texts; take the whole CLIP", self.name)
                }
                None => format!("{} ({}) has no text tower; a CLIP backbone is needed", self.name, self.spec.family),
            };
            Error::setting("backbone", message)
        })
    }

    /// CLIP's text tower, whose weights are read when it is first asked for.
    ///
    /// # Errors
    /// The backbone has none, or its files cannot be read any more.
    pub fn text_tower(&self) -> Result<&TextTower> {
        let text = self.text()?;
        if let Some(tower) = text.tower.get() {
            return Ok(tower);
        }
        let tower = TextTower::load(&text.spec, text.names, &self.weights, text.precision)?;
        Ok(text.tower.get_or_init(|| tower))
    }

    /// Text embeddings `[T, projection]` of CLIP, not normalised.
    ///
    /// # Errors
    /// The backbone has no text tower or no tokenizer, or that fails on a text.
    pub fn embed_texts<S: AsRef<str>>(&self, texts: &[S], threads: usize) -> Result<Vec<f32>> {
        let tower = self.text_tower()?;
        tower.embed(&self.encode(texts, tower.context())?, &self.tokenizer_path(), threads)
    }

    /// Texts that will have `tokens` learned vectors behind their start token. One that is too long then loses its end, as
    /// long texts do, but not the end token.
    ///
    /// # Errors
    /// As [`Self::embed_texts`], or there is no room for the vectors.
    pub fn class_texts<S: AsRef<str>>(&self, texts: &[S], tokens: usize) -> Result<PromptedTexts> {
        let spec = self.text_spec()?;
        // Start, end and at least one token of a name.
        let Some(room) = spec.context.checked_sub(tokens).filter(|&room| room > 2) else {
            let message = format!("{tokens} vectors leave no room for a name in a text of {} tokens", spec.context);
            return Err(Error::setting("prompt_tokens", message));
        };
        PromptedTexts::new(spec, &self.encode(texts, room)?, &self.tokenizer_path())
    }

    /// The text tower's embeddings `[k, D]` of the tokens of `text`, start and end token left out.
    ///
    /// # Errors
    /// As [`Self::embed_texts`].
    pub fn word_embeddings(&self, text: &str) -> Result<Vec<f32>> {
        let tower = self.text_tower()?;
        let ids = self.encode(&[text], tower.context())?.pop().unwrap_or_default();
        tower.word_embeddings(&ids, &self.tokenizer_path())
    }

    /// Token ids of `texts`, at most `context` of each.
    fn encode<S: AsRef<str>>(&self, texts: &[S], context: usize) -> Result<Vec<Vec<u32>>> {
        let Some(clip) = &self.clip else { return Ok(Vec::new()) };
        if clip.tokenizer.get().is_none() {
            let _ = clip.tokenizer.set(self.location.tokenizer(self.text_spec()?)?);
        }
        let Some(tokenizer) = clip.tokenizer.get() else { return Ok(Vec::new()) };
        texts.iter().map(|text| tokenizer.encode(text.as_ref(), context)).collect()
    }

    fn tokenizer_path(&self) -> PathBuf {
        self.location.path(Path::new(super::tokenizer::TOKENIZER).to_str().unwrap_or_default())
    }

    /// The factor between cosine similarity and logit, `exp(logit_scale)`, of a CLIP backbone.
    pub fn logit_scale(&self) -> Option<f32> {
        self.clip.as_ref().map(|clip| clip.logit_scale.exp())
    }

    /// What is added to cosine times [`Self::logit_scale`] of a backbone that was trained by the sigmoid of its logits, a
    /// probability for every pair of image and text (SigLIP).
    pub fn logit_bias(&self) -> Option<f32> {
        self.clip.as_ref().and_then(|clip| clip.logit_bias)
    }
}

impl LazyTextTower {
    /// Checks that the tensors are there.
    fn new(spec: &TextSpec, names: &'static TextNames, weights: &Weights, precision: Precision) -> Result<Self> {
        TextTower::check(spec, names, weights)?;
        Ok(Self { spec: spec.clone(), names, precision, tower: OnceLock::new() })
    }
}

impl Clip {
    fn load(spec: &Spec, weights: &Weights, precision: Precision) -> Result<Self> {
        let (d, names) = (spec.vision.width, &spec.family.joint);
        let projection = spec.projection.map(|width| {
            let weight = weights.get(names.projection, &[width, d])?;
            Ok::<_, Error>(Panels::pack(Mat::new(&weight, width, d, d).t()))
        });
        let scalar = |name: &str| match weights.shape(name) {
            None => Ok(None),
            // A scalar, or a list of one.
            Some(shape) => weights.get(name, if shape == [1] { &[1] } else { &[] }).map(|value| Some(value[0])),
        };
        let text = spec.text.as_ref().zip(names.text);
        Ok(Self {
            projection: projection.transpose()?,
            logit_scale: scalar(names.logit_scale)?.unwrap_or(0.0),
            logit_bias: scalar(names.logit_bias)?,
            text: text.map(|(spec, names)| LazyTextTower::new(spec, names, weights, precision)).transpose()?,
            tokenizer: OnceLock::new(),
        })
    }
}

/// Rows `[n, k]` times a matrix `[k, m]`: `[n, m]`.
pub fn product<'a>(rows: &[f32], matrix: impl Into<PanelRange<'a>>) -> Vec<f32> {
    let matrix = matrix.into();
    let (k, m) = (matrix.k(), matrix.n());
    let n = rows.len() / k;
    let mut out = vec![0.0; n * m];
    matmul(Mat::new(rows, n, k, k), matrix, MatMut::new(&mut out, n, m, m), Init::Zero);
    out
}

impl std::fmt::Debug for Clip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.text.as_ref().map(|text| &text.spec);
        write!(f, "Clip {{ logit_scale: {}, text: {text:?} }}", self.logit_scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/clip")
    }

    #[test]
    fn the_text_tower_is_read_with_the_first_text() {
        let backbone = Backbone::open(fixture().to_str().unwrap(), &OpenOptions::default()).unwrap();
        let is_read = || backbone.clip.as_ref().unwrap().text.as_ref().unwrap().tower.get().is_some();
        let side = backbone.vit.image_size();
        backbone.embed(&vec![0.; 3 * side * side], None, 1).unwrap();
        assert!(backbone.has_text_tower() && !is_read());
        backbone.embed_texts(&["a cat"], 1).unwrap();
        assert!(is_read());
    }

    #[test]
    fn a_text_tower_that_is_not_there_is_told_when_the_backbone_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(fixture()).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        let file = dir.path().join("config.json");
        let text = std::fs::read_to_string(&file).unwrap();
        let config: serde_json::Value = serde_json::from_str(&text).unwrap();
        for (field, value, message) in [
            ("num_hidden_layers", 4, "has no tensor `text_model.encoder.layers.3."),
            ("vocab_size", 601, "`text_model.embeddings.token_embedding.weight` has shape [600, 32]"),
        ] {
            let mut config = config.clone();
            config["text_config"][field] = value.into();
            std::fs::write(&file, config.to_string()).unwrap();
            let error = Backbone::open(dir.path().to_str().unwrap(), &OpenOptions::default()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
