//! What prompt tokens begin as beside random values: patch tokens of training images, as they go into the prompted blocks, a random choice
//! (Wang et al., "Revisiting the Power of Prompt for Visual Tuning", ICML 2024), the same patch of the same image in every block; or
//! what VIPAMIN makes of the images.

mod vipamin;

use rand::{Rng, seq::SliceRandom};

use self::vipamin::BlockStart;
use super::setup::Setup;
use crate::train::observer::{Event, Observer};
use vpt_backbone::vit::{AttentionMeans, OwnWeights, Pass, Readout, TokenRead, TokenRows};
use vpt_base::{Result, params::Param, random::stream};
use vpt_model::methods::PromptInit;

/// Images that are run at a time.
const BATCH: usize = 8;
/// Images that VIPAMIN looks at, at most.
const LOOKED_AT: usize = 64;

/// Puts other values in the place of the random prompt tokens among `initial`, if that is asked for; false if the observer asked to
/// stop.
pub(super) fn begin(setup: &Setup, initial: &mut [Param], observer: &mut dyn Observer) -> Result<bool> {
    let Setup { plan, model, .. } = setup;
    let asked = plan.config.options.tokens.prompt_init.unwrap_or(PromptInit::Random);
    let Some(layout) = plan.parts.tokens().filter(|_| asked != PromptInit::Random) else { return Ok(true) };
    let shape = [layout.layers, layout.tokens, model.backbone().vit.width()];
    let Some(prompts) = initial.iter_mut().find(|param| param.name == "prompt.tokens" && param.shape == shape) else {
        return Ok(true);
    };
    match asked {
        PromptInit::Random => Ok(true),
        PromptInit::Patches => patches(setup, layout.start, prompts, observer),
        PromptInit::Vipamin => vipamin(setup, layout.start, prompts, observer),
    }
}

/// The images of these samples, ready for the tower, one behind the other.
fn images(setup: &Setup, samples: &[usize]) -> Result<Vec<f32>> {
    let backbone = setup.model.backbone();
    let preprocess = backbone.preprocess.for_image_size(backbone.vit.image_size())?;
    let mut images = Vec::new();
    for &sample in samples {
        images.extend(preprocess.apply(&setup.dataset.train[sample].load()?)?);
    }
    Ok(images)
}

/// Tokens as they go into each of `layers` blocks from `start` on.
fn reads(start: usize, layers: usize, rows: TokenRows) -> Vec<TokenRead> {
    (start..start + layers).map(|after| TokenRead { after, rows }).collect()
}

fn patches(setup: &Setup, start: usize, prompts: &mut Param, observer: &mut dyn Observer) -> Result<bool> {
    let Setup { plan, model, dataset, .. } = setup;
    let [layers, tokens, width] = prompts.shape[..] else { return Ok(true) };
    observer.event(&Event::Note("prompt tokens begin as patch tokens of training images"));
    let reads = reads(start, layers, TokenRows::Patches);
    let rng = &mut stream(plan.config.seed, "prompt patches", 0, 0);
    let drawn: Vec<usize> = (0..tokens).map(|_| rng.random_range(0..dataset.train.len() as u64) as usize).collect();
    for (batch, chosen) in drawn.chunks(BATCH).enumerate() {
        let images = images(setup, chosen)?;
        let pass = Pass { readout: Readout::Tokens(&reads), ..Pass::forward(&images, plan.threads) };
        let read = model.backbone().vit.read(&pass)?;
        let rows = read.len() / width / chosen.len();
        let patches = rows / reads.len();
        for (i, of_image) in read.chunks_exact(rows * width).enumerate() {
            let patch = rng.random_range(0..patches as u64) as usize;
            for layer in 0..layers {
                let from = (layer * patches + patch) * width;
                let to = (layer * tokens + batch * BATCH + i) * width;
                prompts.values[to..to + width].copy_from_slice(&of_image[from..from + width]);
            }
        }
        if observer.stop() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn vipamin(setup: &Setup, start: usize, prompts: &mut Param, observer: &mut dyn Observer) -> Result<bool> {
    let Setup { plan, model, dataset, .. } = setup;
    let [layers, tokens, width] = prompts.shape[..] else { return Ok(true) };
    let (vit, seed) = (&model.backbone().vit, plan.config.seed);
    observer.event(&Event::Note("prompt tokens begin by what is alike and what is missing in training images"));
    let reads = reads(start, layers, TokenRows::All);
    let each = vit.tokens() * width;
    let mut drawn: Vec<usize> = (0..dataset.train.len()).collect();
    drawn.shuffle(&mut stream(seed, "prompt images", 0, 0));
    drawn.truncate(LOOKED_AT);
    let blank = || AttentionMeans { keys: vec![0.; each], found: vec![0.; each] };
    let mut means: Vec<(Vec<f32>, AttentionMeans)> = (0..layers).map(|_| (vec![0.; each], blank())).collect();
    for chosen in drawn.chunks(BATCH) {
        let images = images(setup, chosen)?;
        let pass = Pass { readout: Readout::Tokens(&reads), ..Pass::forward(&images, plan.threads) };
        let read = vit.read(&pass)?;
        for (layer, (entering, inside)) in means.iter_mut().enumerate() {
            let of_layer: Vec<f32> =
                read.chunks_exact(layers * each).flat_map(|image| &image[layer * each..][..each]).copied().collect();
            let found = vit.attention_means(start + layer, &of_layer, plan.threads)?;
            let share = chosen.len() as f32 / drawn.len() as f32;
            let add = |sum: &mut [f32], values: &[f32], share: f32| {
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += share * value);
            };
            add(&mut inside.keys, &found.keys, share);
            add(&mut inside.found, &found.found, share);
            of_layer.chunks_exact(each).for_each(|image| add(entering, image, 1. / drawn.len() as f32));
        }
        if observer.stop() {
            return Ok(false);
        }
    }
    let tower = model.backbone().plain(OwnWeights::default());
    let patch = model.backbone().spec.patch_size;
    let bound = (6. / (3 * patch * patch + width) as f64).sqrt() as f32;
    let rng = &mut stream(seed, "prompt directions", 0, 0);
    let mut filled = 0;
    let own = prompts.values.chunks_exact_mut(tokens * width);
    for (layer, (values, (entering, inside))) in own.zip(&means).enumerate() {
        let block = tower.block(start + layer)?;
        let of_block = BlockStart {
            width,
            heads: model.backbone().spec.vision.heads,
            prefix: vit.tokens() - (vit.image_size() / patch).pow(2),
            tokens: entering,
            means: inside,
            values: &block.v,
        };
        let outside: Vec<f32> = (0..tokens * width).map(|_| rng.random_range(-bound..bound)).collect();
        let (prompts, is_outside) = of_block.prompts(&vit.keys_of(start + layer, values), &outside)?;
        values.copy_from_slice(&prompts);
        filled += usize::from(!is_outside);
    }
    if filled > 0 {
        let note = format!(
            "in {filled} of {layers} blocks attention finds every direction in the images: prompts are of alike patches alone"
        );
        observer.event(&Event::Note(&note));
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        config::{LearningRate, RunConfig},
        train::{
            run_folder,
            tests::{backbone, config, finish, workplace},
        },
    };
    use vpt_backbone::{Backbone, OpenOptions};
    use vpt_data::Dataset;
    use vpt_model::{methods::Method, model::task_file::TaskFile};

    #[test]
    fn prompts_begin_as_the_same_patch_in_every_block() {
        let dir = workplace();
        let still = RunConfig {
            lr: Some(LearningRate::Value(1e-30)),
            keep_better: Some(false),
            ..config(&dir, Method::VPT_DEEP)
        };
        let still = still.with_options(|o| {
            o.tokens.prompt_init = Some(PromptInit::Patches);
            o.tokens.prompt_tokens = Some(11);
        });
        let (folder, _) = finish(&still, &dir);
        let prompts = TaskFile::open(&folder.join(run_folder::LAST)).unwrap().params.swap_remove(0);
        let [layers, tokens, width] = prompts.shape[..] else { panic!("{:?}", prompts.shape) };
        let backbone = Backbone::open(&backbone(), &OpenOptions::default()).unwrap();
        let preprocess = backbone.preprocess.for_image_size(backbone.vit.image_size()).unwrap();
        let data = Dataset::open(Path::new(&still.data), 1).unwrap();
        let reads: Vec<_> = (0..layers).map(|after| TokenRead { after, rows: TokenRows::Patches }).collect();
        let mut found = vec![false; tokens];
        for sample in &data.train {
            let image = preprocess.apply(&sample.load().unwrap()).unwrap();
            let pass = Pass { readout: Readout::Tokens(&reads), ..Pass::forward(&image, 1) };
            let read = backbone.vit.read(&pass).unwrap();
            let patches = read.len() / width / layers;
            for patch in 0..patches {
                for (token, found) in found.iter_mut().enumerate() {
                    let same = |layer: usize| {
                        let (a, b) = ((layer * tokens + token) * width, (layer * patches + patch) * width);
                        prompts.values[a..a + width].iter().zip(&read[b..b + width]).all(|(a, b)| (a - b).abs() < 1e-4)
                    };
                    *found |= (0..layers).all(same);
                }
            }
        }
        assert_eq!(found, vec![true; tokens]);
    }

    #[test]
    fn prompts_begin_by_what_is_alike_and_what_is_missing() {
        let dir = workplace();
        let begin = |init| {
            let still = RunConfig {
                lr: Some(LearningRate::Value(1e-30)),
                keep_better: Some(false),
                ..config(&dir, Method::VPT_DEEP)
            };
            let (folder, _) = finish(&still.with_options(|o| o.tokens.prompt_init = Some(init)), &dir);
            TaskFile::open(&folder.join(run_folder::LAST)).unwrap().params.swap_remove(0)
        };
        let [random, found, again] = [PromptInit::Random, PromptInit::Vipamin, PromptInit::Vipamin].map(begin);
        assert_eq!(found.values, again.values);
        assert_eq!(found.shape, random.shape);
        assert!(found.values.iter().all(|value| value.is_finite()));
        let same = found.values.iter().zip(&random.values).filter(|(a, b)| a.to_bits() == b.to_bits()).count();
        assert_eq!(same, 0);
    }
}
