//! `lora`: low-rank changes to queries, keys and values, as CLIP-LoRA has them where texts tell the classes.

use super::{
    Defaults, Epochs, Learns, MethodPart, MethodRequest, MethodSpec, Task, Texts, Warmup, after_probe, dense,
    settings::{self, DefaultText, settings},
    spec::HEAD_OPTIONS,
    weights,
};
use crate::prompt::{
    PartShape,
    weights::{LoraShape, LoraTowers, WeightShape},
};
use vpt_base::Error;

settings! {
    /// The low-rank changes.
    pub struct LoraOptions {
        Method {
            /// Rank of the changes
            lora_rank: Option<usize> => {
                value: "N", default: DefaultText::Made(|| RANK.to_string()), lacking: "low-rank change",
            }
            /// Strength of the changes: their factor is this over the root of the rank
            lora_alpha: Option<f32> => {
                value: "X", default: DefaultText::Made(|| ALPHA.to_string()), lacking: "low-rank change",
            }
            /// Share of the channels into the changes set to zero in a step, 0 to below 1
            lora_dropout: Option<f32> => {
                value: "SHARE",
                default: DefaultText::Made(|| DROPOUT.to_string()),
                lacking: "low-rank change",
                check: settings::share,
            }
            /// Which towers are changed: `image`, `text` or `both`
            lora_towers: Option<LoraTowers> => {
                value: "TOWERS",
                default: DefaultText::Words("both on a CLIP backbone, unless a `head` is asked for; else image"),
                lacking: "low-rank change",
            }
        }
    }
}

/// CLIP-LoRA's rank, strength and dropout, and its steps for each image of a class.
const RANK: usize = 2;
const ALPHA: f32 = 1.;
const DROPOUT: f32 = 0.25;
const STEPS: usize = 500;

pub(super) const METHOD: MethodSpec = MethodSpec {
    name: "lora",
    summary: "low-rank changes to queries, keys and values of both towers of a CLIP, where the texts that name the classes tell \
              them and no head is learned; with `head`, or on another backbone, of the image tower beside a head",
    source: "Hu et al. 2022, Zanella and Ben Ayed 2024",
    learns: Learns::Changes,
    combines: true,
    texts: Texts::HeadIfAny,
    options: &[HEAD_OPTIONS, &["lora_rank", "lora_alpha", "lora_dropout", "lora_towers"]],
    check: |options, _| shape(&options.lora, true).check(),
    // CLIP-LoRA's rate, schedule and epochs.
    defaults: |request| {
        let published =
            Defaults { lr: 2e-4, epochs: Epochs::StepsPerShot(STEPS), warmup: Warmup::Share(0.), ..Defaults::BASE };
        let beside_head = dense::or(
            request,
            dense::LORA_LR,
            after_probe::or(request, (published.lr, after_probe::EPOCHS), published),
        );
        if by_texts(request) { published } else { beside_head }
    },
    part: |request, options| {
        let given = &request.options.lora;
        let context = request.context;
        let by_texts = by_texts(request);
        // Of what dense heads are on, nobody asks for a text tower.
        let no_texts = context.text_depth.is_none() && !request.is_dense();
        if given.lora_towers.is_some_and(LoraTowers::text) && no_texts {
            let message = "the backbone has no text tower; take image, or a CLIP backbone";
            return Err(Error::setting("lora_towers", message));
        }
        let shape = shape(given, by_texts);
        shape.check()?;
        let dropout = given.lora_dropout.unwrap_or(DROPOUT);
        options.lora = LoraOptions {
            lora_rank: Some(shape.rank),
            lora_alpha: Some(shape.alpha),
            lora_dropout: Some(dropout),
            lora_towers: Some(shape.towers),
        };
        Ok(Some(MethodPart { shape: PartShape::Weights(WeightShape::Lora(shape)), dropout }))
    },
    ..weights::FAMILY
};

/// Whether the classes are told by their texts, and no head is learned.
fn by_texts(request: &MethodRequest<'_>) -> bool {
    let context = request.context;
    let texts = context.task == Task::Classify && context.text_depth.is_some();
    texts && request.head.is_none() && request.alone
}

/// The changes, where classes are told by texts or by a head.
fn shape(options: &LoraOptions, by_texts: bool) -> LoraShape {
    LoraShape {
        rank: options.lora_rank.unwrap_or(RANK),
        alpha: options.lora_alpha.unwrap_or(ALPHA),
        towers: options.lora_towers.unwrap_or(if by_texts { LoraTowers::Both } else { LoraTowers::Image }),
        texts: by_texts,
    }
}
