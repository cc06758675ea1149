//! Weight files without a configuration: `.pt`, `.pth`, `.bin` and `.safetensors` of open_clip, of `OpenAI`, and of DINO, `DINOv2` and MAE
//! as their authors published them.
//!
//! Sizes come from the shapes of the tensors, which a configuration of open_clip or timm is written from, so that such a file is read
//! as a folder of these libraries is. What no tensor tells must be said behind the path, `FILE:quick-gelu`: with the wrong activation a CLIP
//! is several points worse and nothing fails.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::names::{clip, timm};
use crate::open_clip;
use crate::open_clip::OpenClip;
use crate::spec::{CONFIG, MAX_DEPTH, Spec};
use crate::timm::{Timm, TimmModel};
use crate::weights::Weights;
use vpt_base::{Error, Result, choice::choice};

choice! {
    /// What a weight file does not say of itself.
    pub enum BareForm for "backbone" {
        /// A CLIP in open_clip's or `OpenAI`'s names whose towers have exact GELU: `LAION`'s, `DataComp`'s.
        Gelu = "gelu",
        /// One whose towers have `OpenAI`'s `QuickGELU`: theirs, Apple's DFN, `MetaCLIP`.
        QuickGelu = "quick-gelu",
        /// DINO (Caron et al. 2021).
        Dino = "dino",
        /// `DINOv2` (Oquab et al. 2023), with or without registers.
        DinoV2 = "dinov2",
        /// MAE (He et al. 2022).
        Mae = "mae",
    }
}

/// A weight file and what was said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BareFile {
    /// The file.
    pub path: PathBuf,
    /// What was said.
    pub form: BareForm,
}

impl BareFile {
    /// The file that `name` says: `FILE:FORM`. `None` where it is no file.
    ///
    /// # Errors
    /// It is a file of which nothing was said, or something that is not known.
    pub(crate) fn parse(name: &str) -> Result<Option<Self>> {
        if Path::new(name).is_file() {
            return Err(unsaid(Path::new(name)));
        }
        let Some((path, form)) = name.rsplit_once(':') else { return Ok(None) };
        if !Path::new(path).is_file() {
            let is_meant = form.parse::<BareForm>().is_ok();
            return if is_meant { Err(Error::weights(path, "no such file")) } else { Ok(None) };
        }
        Ok(Some(Self { path: PathBuf::from(path), form: form.parse()? }))
    }

    /// What it is called in messages and task files: without its folder.
    pub(crate) fn name(&self) -> String {
        let file = self.path.file_name().unwrap_or_default().to_string_lossy();
        format!("{file}:{}", self.form)
    }

    /// Whether it is a CLIP's.
    pub(crate) fn is_clip(&self) -> bool {
        matches!(self.form, BareForm::Gelu | BareForm::QuickGelu)
    }

    /// Its tensors, under the names of the library whose form it has.
    ///
    /// # Errors
    /// It cannot be read, or is not what was said.
    pub(crate) fn weights(&self) -> Result<Weights> {
        let weights = if self.is_clip() {
            Weights::of_open_clip(&self.path, &self.path)?
        } else {
            Weights::of_timm(&self.path, &self.path)?
        };
        let anchor = if self.is_clip() { clip::FAMILY.anchor } else { timm::FAMILY.anchor };
        if weights.has(&format!("{}{}", anchor.tower, anchor.tensor)) { Ok(weights) } else { Err(unsaid(&self.path)) }
    }

    /// What it is as open_clip would have it, if it is a CLIP's.
    ///
    /// # Errors
    /// As [`Self::weights`].
    pub(crate) fn open_clip(&self) -> Result<Option<OpenClip>> {
        if !self.is_clip() {
            return Ok(None);
        }
        let weights = self.weights()?;
        let config = self.open_clip_config(&weights)?;
        let mut found = OpenClip::from_json(config.to_string().as_bytes(), &self.path)?;
        if !weights.has("text_model.embeddings.token_embedding.weight") {
            found.without_texts = Some("its file holds none in open_clip's names".to_owned());
            found.spec = Spec { text: None, ..found.spec };
        }
        self.check_clip_names(&weights)?;
        Ok(Some(found))
    }

    /// What it is as timm would have it, if it is no CLIP's.
    ///
    /// # Errors
    /// As [`Self::weights`].
    pub(crate) fn timm(&self) -> Result<Option<TimmModel>> {
        if self.is_clip() {
            return Ok(None);
        }
        let weights = self.weights()?;
        let &[width, _, patch, _] = self.shape(&weights, "patch_embed.proj.weight")? else {
            return Err(self.crooked(&weights, "patch_embed.proj.weight"));
        };
        let scaled = weights.has("blocks.0.ls1.gamma");
        if scaled != (self.form == BareForm::DinoV2) {
            let message =
                if scaled { "has layer scale, as only dinov2 has" } else { "has no layer scale, as dinov2 has" };
            return Err(self.error(&format!("is not of {}: it {message}", self.form)));
        }
        let size = if width == 1280 { "huge" } else { "base" };
        let library = if self.form == BareForm::DinoV2 { "_dinov2" } else { "" };
        // Their evaluations: shorter side 256, 224 from the middle, ImageNet's mean and deviation.
        let config = json!({"architecture": format!("vit_{size}_patch{patch}_224{library}"), "pretrained_cfg": {
            "input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center",
            "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}});
        let timm = Timm::from_json(config.to_string().as_bytes(), &self.path)?;
        let spec = timm.spec(&weights)?;
        Ok(Some(TimmModel { preprocess: timm.preprocess()?, note: None, spec }))
    }

    /// What its sizes and images are taken to be, which the file does not say.
    pub(crate) fn note(&self) -> String {
        let images = match self.form {
            BareForm::Gelu | BareForm::QuickGelu => "prepared as for OpenAI's CLIP",
            BareForm::Dino | BareForm::DinoV2 | BareForm::Mae => {
                "resized to 256 and cropped to 224 as by its authors, positions resampled as by timm"
            }
        };
        format!("a file without a configuration: sizes are those of its tensors, images are {images}")
    }

    fn error(&self, message: &str) -> Error {
        Error::weights(&self.path, message.to_owned())
    }

    fn shape<'a>(&self, weights: &'a Weights, name: &str) -> Result<&'a [usize]> {
        weights.shape(name).ok_or_else(|| self.error(&format!("has no tensor `{name}`")))
    }

    fn crooked(&self, weights: &Weights, name: &str) -> Error {
        self.error(&format!("has a tensor `{name}` of shape {:?}", weights.shape(name).unwrap_or_default()))
    }

    /// The `open_clip_config.json` of a CLIP with these tensors.
    fn open_clip_config(&self, weights: &Weights) -> Result<Value> {
        let vision = "vision_model.";
        let name = format!("{vision}embeddings.patch_embedding.weight");
        let &[width, 3, patch, _] = self.shape(weights, &name)? else { return Err(self.crooked(weights, &name)) };
        let name = format!("{vision}embeddings.position_embedding.weight");
        let &[rows, _] = self.shape(weights, &name)? else { return Err(self.crooked(weights, &name)) };
        let grid = rows.saturating_sub(1).isqrt();
        if grid * grid + 1 != rows {
            return Err(self.crooked(weights, &name));
        }
        let name = "visual_projection.weight";
        let &[embed_dim, _] = self.shape(weights, name)? else { return Err(self.crooked(weights, name)) };
        // In all configurations of open_clip 3.3: 16 heads where the width is one of these, else heads of 64.
        let head_width = if [1280, 1408, 1664, 1792].contains(&width) { width / 16 } else { 64 };
        let (layers, ratio) = self.blocks(weights, vision, width)?;
        let mut text = json!({});
        let name = "text_model.embeddings.token_embedding.weight";
        if weights.has(name) {
            let &[vocabulary, width] = self.shape(weights, name)? else { return Err(self.crooked(weights, name)) };
            let name = "text_model.embeddings.position_embedding.weight";
            let &[context, _] = self.shape(weights, name)? else { return Err(self.crooked(weights, name)) };
            let (layers, ratio) = self.blocks(weights, "text_model.", width)?;
            text = json!({"context_length": context, "vocab_size": vocabulary, "width": width, "heads": (width / 64).max(1),
                "layers": layers, "mlp_ratio": ratio});
        }
        Ok(json!({"model_cfg": {"embed_dim": embed_dim, "quick_gelu": self.form == BareForm::QuickGelu, "vision_cfg": {
            "image_size": grid * patch, "layers": layers, "width": width, "patch_size": patch, "head_width": head_width,
            "mlp_ratio": ratio}, "text_cfg": text}}))
    }

    /// Blocks of a tower, and the ratio of the width of their MLP and their own, which `width` times that is cut down to.
    fn blocks(&self, weights: &Weights, tower: &str, width: usize) -> Result<(usize, f64)> {
        let block = |i: usize| format!("{tower}encoder.layers.{i}.layer_norm1.weight");
        let layers = (0..=MAX_DEPTH).take_while(|&i| weights.has(&block(i))).count();
        let name = format!("{tower}encoder.layers.0.mlp.fc1.weight");
        let &[mlp, _] = self.shape(weights, &name)? else { return Err(self.crooked(weights, &name)) };
        Ok((layers, (mlp as f64 + 0.5) / width as f64))
    }

    /// Checks that nothing is in the file that a plain CLIP has not: it would be left out without a word.
    fn check_clip_names(&self, weights: &Weights) -> Result<()> {
        let plain = ["vision_model.", "text_model."];
        let beside = ["visual_projection.weight", "text_projection.weight", "text_model.text_projection.weight"];
        let numbers =
            ["logit_scale", "attn_mask", "text.attn_mask", "input_resolution", "context_length", "vocab_size"];
        let is_known = |name: &str| {
            let in_tower = plain.iter().any(|tower| name.starts_with(tower)) && !name.contains(".head.");
            in_tower || beside.contains(&name) || numbers.contains(&name) || name.ends_with(".attn_mask")
        };
        match weights.names().find(|name| !is_known(name)) {
            None => Ok(()),
            Some(name) => {
                let shown: String = name.chars().take(80).collect();
                let message = format!(
                    "has a tensor `{}`, which a plain CLIP has not; a folder with {} is needed",
                    shown.escape_debug(),
                    open_clip::CONFIG
                );
                Err(self.error(&message))
            }
        }
    }
}

/// What must be said of the weight file `path`, by what it holds.
fn unsaid(path: &Path) -> Error {
    let folder =
        path.parent().filter(|folder| [CONFIG, open_clip::CONFIG].iter().any(|config| folder.join(config).is_file()));
    if let Some(folder) = folder {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        return Error::weights(path, format!("is a file of a folder with a configuration: give {}", folder.display()));
    }
    let shown = path.display();
    let anchor = clip::FAMILY.anchor;
    let opened = match Weights::of_open_clip(path, path) {
        Err(error) => return error,
        Ok(weights) => weights,
    };
    if opened.has(&format!("{}{}", anchor.tower, anchor.tensor)) {
        let message = format!(
            "has no configuration, and no tensor tells the activation of its towers: give {shown}:quick-gelu (as OpenAI, \
             DFN and MetaCLIP have it) or {shown}:gelu (as LAION and DataComp)"
        );
        return Error::weights(path, message);
    }
    if Weights::of_timm(path, path).is_ok_and(|weights| weights.has(timm::FAMILY.anchor.tensor)) {
        let message = format!(
            "has no configuration: give {shown}:dino, {shown}:dinov2 or {shown}:mae if it is one of these, else a folder with \
             timm's {CONFIG} beside it"
        );
        return Error::weights(path, message);
    }
    let message = format!(
        "has no configuration, and its tensors are not called as open_clip, OpenAI, DINO, DINOv2 or MAE call them: give a folder \
         with a {CONFIG}"
    );
    Error::weights(path, message)
}
