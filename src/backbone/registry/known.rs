//! The backbones that have a name here, and their repositories on the Hugging Face hub.

use crate::backbone::bundled;
use crate::backbone::spec::Family;

/// A backbone with a name.
#[derive(Debug, PartialEq, Eq)]
pub struct Known {
    /// Name that `--backbone` takes.
    pub name: &'static str,
    /// Its repository on the hub, `owner/name`; empty for the bundled backbone.
    pub repo: &'static str,
    /// The repository's branch, tag or commit.
    pub revision: &'static str,
    /// Family that its `config.json` will name.
    pub family: Family,
}

const fn known(name: &'static str, repo: &'static str, family: Family) -> Known {
    Known { name, repo, revision: "main", family }
}

/// Every known backbone, the bundled one first.
pub const KNOWN: &[Known] = &[
    known(bundled::NAME, "", Family::Clip),
    known("clip-vit-b32", "openai/clip-vit-base-patch32", Family::Clip),
    known("clip-vit-b16", "openai/clip-vit-base-patch16", Family::Clip),
    known("clip-vit-l14", "openai/clip-vit-large-patch14", Family::Clip),
    known("clip-vit-l14-336", "openai/clip-vit-large-patch14-336", Family::Clip),
    known("openclip-vit-b32-laion2b", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", Family::Clip),
    known("dinov2-small", "facebook/dinov2-small", Family::Dinov2),
    known("dinov2-base", "facebook/dinov2-base", Family::Dinov2),
    known("dinov2-large", "facebook/dinov2-large", Family::Dinov2),
    known("dinov2-giant", "facebook/dinov2-giant", Family::Dinov2),
    known("dinov2-small-reg", "facebook/dinov2-with-registers-small", Family::Dinov2WithRegisters),
    known("dinov2-base-reg", "facebook/dinov2-with-registers-base", Family::Dinov2WithRegisters),
    known("dinov2-large-reg", "facebook/dinov2-with-registers-large", Family::Dinov2WithRegisters),
    known("dinov2-giant-reg", "facebook/dinov2-with-registers-giant", Family::Dinov2WithRegisters),
    known("vit-b16-in21k", "google/vit-base-patch16-224-in21k", Family::Vit),
    known("vit-b16-in1k", "google/vit-base-patch16-224", Family::Vit),
    known("deit-s16", "facebook/deit-small-patch16-224", Family::Vit),
    known("dino-s16", "facebook/dino-vits16", Family::Vit),
    known("mae-b16", "facebook/vit-mae-base", Family::Vit),
];
