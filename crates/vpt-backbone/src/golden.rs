//! What published models say of one well-known photo, so that whoever has their weights can see that they are read as their authors
//! meant them to be.
//!
//! The photo is COCO's 000000039769 of 2017's validation part: two cats on a couch, on which the tests and conversion scripts of
//! transformers state what their models compute. It is no part of this program.

use serde::Serialize;

use super::clip::Backbone;
use vpt_base::linear_algebra::normalize_l2;
use vpt_base::{Error, Result};
use vpt_image::Rgb8;

/// How far a value may be from the published one. JPEG decoders and resizing in bytes or floats move values by some thousandths, a
/// wrong activation, norm or order of colors by tenths and more.
pub const TOLERANCE: f32 = 0.05;

/// Where the photo is.
pub const PHOTO: &str = "http://images.cocodataset.org/val2017/000000039769.jpg";

/// What one model says of the photo.
#[derive(Debug, Clone, Copy)]
pub struct Golden {
    /// Its repository on the Hugging Face hub.
    pub repo: &'static str,
    /// What is stated.
    pub stated: Stated,
    /// The file in transformers' repository that states it.
    pub source: &'static str,
}

/// What is stated of the photo.
#[derive(Debug, Clone, Copy)]
pub enum Stated {
    /// The first values of the class token after the last norm.
    Features(&'static [f32]),
    /// Logits for texts: cosines times the model's scale, and its bias added where it has one.
    Logits(&'static [&'static str], &'static [f32]),
}

/// Models and what they say.
pub const GOLDEN: [Golden; 7] = [
    Golden {
        repo: "openai/clip-vit-base-patch32",
        stated: Stated::Logits(&["a photo of a cat", "a photo of a dog"], &[24.5701, 19.3049]),
        source: "tests/models/clip/test_modeling_clip.py",
    },
    Golden {
        repo: "google/siglip-base-patch16-224",
        stated: Stated::Logits(&["a photo of 2 cats", "a photo of 2 dogs"], &[-0.7567, -10.3354]),
        source: "tests/models/siglip/test_modeling_siglip.py",
    },
    Golden {
        repo: "facebook/dinov2-base",
        stated: Stated::Features(&[-2.1747, -0.4729, 1.0936]),
        source: "tests/models/dinov2/test_modeling_dinov2.py",
    },
    Golden {
        repo: "facebook/dinov3-vits16-pretrain-lvd1689m",
        stated: Stated::Features(&[0.46356, -0.41561, 0.40824, -0.12661, -0.28664]),
        source: DINOV3,
    },
    Golden {
        repo: "facebook/dinov3-vits16plus-pretrain-lvd1689m",
        stated: Stated::Features(&[-0.47135, -1.36578, -0.31798, 0.37722, -0.76909]),
        source: DINOV3,
    },
    Golden {
        repo: "facebook/dinov3-vitb16-pretrain-lvd1689m",
        stated: Stated::Features(&[1.03464, -0.18061, -0.34102, -0.06638, -0.01138]),
        source: DINOV3,
    },
    Golden {
        repo: "facebook/dinov3-vitl16-pretrain-lvd1689m",
        stated: Stated::Features(&[0.48453, -0.58221, 0.48064, 0.59204, 0.94517]),
        source: DINOV3,
    },
];

const DINOV3: &str = "src/transformers/models/dinov3_vit/convert_dinov3_vit_to_hf.py";

/// What was computed beside what is published.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GoldenReport {
    /// The repository.
    pub repo: &'static str,
    /// The file in transformers' repository that states the values.
    pub source: &'static str,
    /// Of logits, the texts.
    pub texts: Vec<String>,
    /// As published.
    pub published: Vec<f32>,
    /// As computed here.
    pub computed: Vec<f32>,
    /// The largest difference.
    pub largest: f32,
    /// Whether that is within [`TOLERANCE`].
    pub ok: bool,
}

/// The values published for a repository.
///
/// # Errors
/// None are known; the message names the repositories of which some are.
pub fn golden_of(repo: &str) -> Result<&'static Golden> {
    GOLDEN.iter().find(|golden| golden.repo == repo).ok_or_else(|| {
        let known: Vec<&str> = GOLDEN.iter().map(|golden| golden.repo).collect();
        Error::setting(
            "image",
            format!("no values of {repo} are published that are known here, but of {}", known.join(", ")),
        )
    })
}

impl Golden {
    /// What `backbone` says of the photo, beside what is published.
    ///
    /// # Errors
    /// The backbone has no texts where they are needed, or the image cannot be prepared.
    pub fn compare(&self, backbone: &Backbone, photo: &Rgb8, threads: usize) -> Result<GoldenReport> {
        let mut embedding = backbone.embed(&backbone.preprocess.apply(photo)?, None, threads)?;
        let (texts, published, computed) = match self.stated {
            Stated::Features(published) => {
                (Vec::new(), published, embedding[..published.len().min(embedding.len())].to_vec())
            }
            Stated::Logits(texts, published) => {
                let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
                let mut of_texts = backbone.embed_texts(&texts, threads)?;
                let width = embedding.len();
                normalize_l2(&mut of_texts, width);
                normalize_l2(&mut embedding, width);
                let (scale, bias) = (backbone.logit_scale().unwrap_or(1.), backbone.logit_bias().unwrap_or(0.));
                let logit = |text: &[f32]| scale * text.iter().zip(&embedding).map(|(a, b)| a * b).sum::<f32>() + bias;
                let logits = of_texts.chunks_exact(width).map(logit).collect();
                (texts, published, logits)
            }
        };
        let differences = published.iter().zip(&computed).map(|(a, b): (&f32, &f32)| (a - b).abs());
        // A value that is not a number is the worst of all, which `max` would pass over.
        let largest = differences.fold(0., |worst: f32, d| if d.is_nan() { f32::INFINITY } else { worst.max(d) });
        let ok = largest <= TOLERANCE && computed.len() == published.len();
        Ok(GoldenReport {
            repo: self.repo,
            source: self.source,
            texts,
            published: published.to_vec(),
            computed,
            largest,
            ok,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clip::OpenOptions;

    fn photo() -> Rgb8 {
        Rgb8::from_pixels(80, 60, (0..80 * 60 * 3).map(|i| (i * 7 % 251) as u8).collect()).unwrap()
    }

    #[test]
    fn values_of_a_wrong_text_or_feature_are_told_from_those_that_are_right() {
        const TEXTS: [&str; 2] = ["a red circle", "a blue star"];
        let backbone = Backbone::open("clip-nano", &OpenOptions::default()).unwrap();
        let golden = |stated| Golden { repo: "mine", stated, source: "here" };
        let seen = golden(Stated::Features(&[0.; 4])).compare(&backbone, &photo(), 1).unwrap();
        let features: &'static [f32] = seen.computed.clone().leak();
        let report = golden(Stated::Features(features)).compare(&backbone, &photo(), 1).unwrap();
        assert!(report.ok && report.largest == 0.);
        let wrong: &'static [f32] = vec![features[0], features[1] + 2. * TOLERANCE].leak();
        assert!(!golden(Stated::Features(wrong)).compare(&backbone, &photo(), 1).unwrap().ok);

        let logits = golden(Stated::Logits(&TEXTS, &[0.; 2])).compare(&backbone, &photo(), 1).unwrap().computed;
        let swapped: &'static [f32] = vec![logits[1], logits[0]].leak();
        assert!((logits[0] - logits[1]).abs() > TOLERANCE, "{logits:?} tell nothing apart");
        assert!(golden(Stated::Logits(&TEXTS, logits.leak())).compare(&backbone, &photo(), 1).unwrap().ok);
        assert!(!golden(Stated::Logits(&TEXTS, swapped)).compare(&backbone, &photo(), 1).unwrap().ok);
    }

    #[test]
    fn what_is_published_is_of_models_that_are_known() {
        for golden in GOLDEN {
            assert!(crate::registry::KNOWN.iter().any(|known| known.repo == golden.repo), "{}", golden.repo);
            if let Stated::Logits(texts, logits) = golden.stated {
                assert_eq!(texts.len(), logits.len());
            }
        }
        assert!(golden_of("me/mine").unwrap_err().to_string().contains("openai/clip-vit-base-patch32"));
    }
}
