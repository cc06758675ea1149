//! The backbones that have a name here, and their repositories on the Hugging Face hub.

use crate::bundled;
use crate::names::{Family, clip, dinov2, dinov2_with_registers, dinov3, mae, siglip, timm, vit};

/// A backbone with a name.
#[derive(Debug, PartialEq, Eq)]
pub struct Known {
    /// Name that `backbone` takes.
    pub name: &'static str,
    /// Its repository on the hub, `owner/name`; empty for the bundled backbone.
    pub repo: &'static str,
    /// The repository's branch, tag or commit.
    pub revision: &'static str,
    /// Family that its `config.json` will name.
    pub family: &'static Family,
}

const fn known(name: &'static str, repo: &'static str, family: &'static Family) -> Known {
    Known { name, repo, revision: "main", family }
}

/// Every known backbone, the bundled one first.
pub const KNOWN: &[Known] = &[
    known(bundled::NAME, "", &clip::FAMILY),
    known("clip-vit-b32", "openai/clip-vit-base-patch32", &clip::FAMILY),
    known("clip-vit-b16", "openai/clip-vit-base-patch16", &clip::FAMILY),
    known("clip-vit-l14", "openai/clip-vit-large-patch14", &clip::FAMILY),
    known("clip-vit-l14-336", "openai/clip-vit-large-patch14-336", &clip::FAMILY),
    known("openclip-vit-b32-laion2b", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", &clip::FAMILY),
    known("openclip-vit-b16-laion2b", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", &clip::FAMILY),
    known("openclip-vit-l14-laion2b", "laion/CLIP-ViT-L-14-laion2B-s32B-b82K", &clip::FAMILY),
    known("openclip-vit-h14-laion2b", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", &clip::FAMILY),
    known("openclip-vit-b32-datacomp", "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K", &clip::FAMILY),
    known("openclip-vit-b16-datacomp", "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K", &clip::FAMILY),
    known("openclip-vit-l14-datacomp", "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", &clip::FAMILY),
    known("dfn-vit-b16", "apple/DFN2B-CLIP-ViT-B-16", &clip::FAMILY),
    known("dfn-vit-l14", "apple/DFN2B-CLIP-ViT-L-14", &clip::FAMILY),
    known("dfn-vit-h14", "apple/DFN5B-CLIP-ViT-H-14", &clip::FAMILY),
    known("bioclip", "imageomics/bioclip", &clip::FAMILY),
    known("bioclip-2", "imageomics/bioclip-2", &clip::FAMILY),
    known("siglip-b16", "google/siglip-base-patch16-224", &siglip::FAMILY),
    known("siglip-b16-256", "google/siglip-base-patch16-256", &siglip::FAMILY),
    known("siglip-b16-384", "google/siglip-base-patch16-384", &siglip::FAMILY),
    known("siglip-b16-512", "google/siglip-base-patch16-512", &siglip::FAMILY),
    known("siglip-l16-256", "google/siglip-large-patch16-256", &siglip::FAMILY),
    known("siglip-l16-384", "google/siglip-large-patch16-384", &siglip::FAMILY),
    known("siglip-so400m14", "google/siglip-so400m-patch14-224", &siglip::FAMILY),
    known("siglip-so400m14-384", "google/siglip-so400m-patch14-384", &siglip::FAMILY),
    known("siglip2-b32-256", "google/siglip2-base-patch32-256", &siglip::FAMILY),
    known("siglip2-b16", "google/siglip2-base-patch16-224", &siglip::FAMILY),
    known("siglip2-b16-256", "google/siglip2-base-patch16-256", &siglip::FAMILY),
    known("siglip2-b16-384", "google/siglip2-base-patch16-384", &siglip::FAMILY),
    known("siglip2-b16-512", "google/siglip2-base-patch16-512", &siglip::FAMILY),
    known("siglip2-l16-256", "google/siglip2-large-patch16-256", &siglip::FAMILY),
    known("siglip2-l16-384", "google/siglip2-large-patch16-384", &siglip::FAMILY),
    known("siglip2-l16-512", "google/siglip2-large-patch16-512", &siglip::FAMILY),
    known("siglip2-so400m14", "google/siglip2-so400m-patch14-224", &siglip::FAMILY),
    known("siglip2-so400m14-384", "google/siglip2-so400m-patch14-384", &siglip::FAMILY),
    known("siglip2-so400m16-256", "google/siglip2-so400m-patch16-256", &siglip::FAMILY),
    known("siglip2-so400m16-384", "google/siglip2-so400m-patch16-384", &siglip::FAMILY),
    known("siglip2-so400m16-512", "google/siglip2-so400m-patch16-512", &siglip::FAMILY),
    known("siglip2-giant16-256", "google/siglip2-giant-opt-patch16-256", &siglip::FAMILY),
    known("siglip2-giant16-384", "google/siglip2-giant-opt-patch16-384", &siglip::FAMILY),
    known("siglip2-b16-naflex", "google/siglip2-base-patch16-naflex", &siglip::NAFLEX),
    known("siglip2-so400m16-naflex", "google/siglip2-so400m-patch16-naflex", &siglip::NAFLEX),
    known("dinov2-small", "facebook/dinov2-small", &dinov2::FAMILY),
    known("dinov2-base", "facebook/dinov2-base", &dinov2::FAMILY),
    known("dinov2-large", "facebook/dinov2-large", &dinov2::FAMILY),
    known("dinov2-giant", "facebook/dinov2-giant", &dinov2::FAMILY),
    known("dinov2-small-reg", "facebook/dinov2-with-registers-small", &dinov2_with_registers::FAMILY),
    known("dinov2-base-reg", "facebook/dinov2-with-registers-base", &dinov2_with_registers::FAMILY),
    known("dinov2-large-reg", "facebook/dinov2-with-registers-large", &dinov2_with_registers::FAMILY),
    known("dinov2-giant-reg", "facebook/dinov2-with-registers-giant", &dinov2_with_registers::FAMILY),
    known("dinov3-s16", "facebook/dinov3-vits16-pretrain-lvd1689m", &dinov3::FAMILY),
    known("dinov3-s16plus", "facebook/dinov3-vits16plus-pretrain-lvd1689m", &dinov3::FAMILY),
    known("dinov3-b16", "facebook/dinov3-vitb16-pretrain-lvd1689m", &dinov3::FAMILY),
    known("dinov3-l16", "facebook/dinov3-vitl16-pretrain-lvd1689m", &dinov3::FAMILY),
    known("dinov3-h16plus", "facebook/dinov3-vith16plus-pretrain-lvd1689m", &dinov3::FAMILY),
    known("dinov3-s16-timm", "timm/vit_small_patch16_dinov3.lvd1689m", &timm::FAMILY),
    known("dinov3-s16plus-timm", "timm/vit_small_plus_patch16_dinov3.lvd1689m", &timm::FAMILY),
    known("dinov3-b16-timm", "timm/vit_base_patch16_dinov3.lvd1689m", &timm::FAMILY),
    known("dinov3-l16-timm", "timm/vit_large_patch16_dinov3.lvd1689m", &timm::FAMILY),
    known("dinov3-h16plus-timm", "timm/vit_huge_plus_patch16_dinov3.lvd1689m", &timm::FAMILY),
    known("vit-b16-in21k", "google/vit-base-patch16-224-in21k", &vit::FAMILY),
    known("vit-b16-in1k", "google/vit-base-patch16-224", &vit::FAMILY),
    known("deit-s16", "facebook/deit-small-patch16-224", &vit::FAMILY),
    known("dino-s16", "facebook/dino-vits16", &vit::FAMILY),
    known("mae-b16", "facebook/vit-mae-base", &mae::FAMILY),
];
