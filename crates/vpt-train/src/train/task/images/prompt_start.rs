//! Prompt tokens that begin as patch tokens of training images, as they go into the prompted blocks: the random choice of Wang et al.,
//! "Revisiting the Power of Prompt for Visual Tuning" (ICML 2024). A prompt is the same patch of the same image in every block.

use rand::Rng;

use super::setup::Setup;
use crate::train::observer::{Event, Observer};
use vpt_backbone::vit::{Pass, Readout, TokenRead, TokenRows};
use vpt_base::{Result, params::Param, random::stream};
use vpt_model::methods::PromptInit;

/// Images that are run at a time.
const BATCH: usize = 8;

/// Puts patch tokens in the place of the random prompt tokens among `initial`, if that is asked for; false if the observer asked to
/// stop.
pub(super) fn begin(setup: &Setup, initial: &mut [Param], observer: &mut dyn Observer) -> Result<bool> {
    let Setup { plan, model, dataset, .. } = setup;
    let asked = plan.config.options.tokens.prompt_init == Some(PromptInit::Patches);
    let Some(layout) = plan.parts.tokens().filter(|_| asked) else { return Ok(true) };
    let vit = &model.backbone().vit;
    let shape = [layout.layers, layout.tokens, vit.width()];
    let Some(prompts) = initial.iter_mut().find(|param| param.name == "prompt.tokens" && param.shape == shape) else {
        return Ok(true);
    };
    observer.event(&Event::Note("prompt tokens begin as patch tokens of training images"));
    let preprocess = model.backbone().preprocess.for_image_size(vit.image_size())?;
    let reads: Vec<TokenRead> = (layout.start..layout.start + layout.layers)
        .map(|after| TokenRead { after, rows: TokenRows::Patches })
        .collect();
    let rng = &mut stream(plan.config.seed, "prompt patches", 0, 0);
    let drawn: Vec<usize> =
        (0..layout.tokens).map(|_| rng.random_range(0..dataset.train.len() as u64) as usize).collect();
    let [_, tokens, width] = shape;
    for (batch, chosen) in drawn.chunks(BATCH).enumerate() {
        let mut images = Vec::new();
        for &image in chosen {
            images.extend(preprocess.apply(&dataset.train[image].load()?)?);
        }
        let pass = Pass { readout: Readout::Tokens(&reads), ..Pass::forward(&images, plan.threads) };
        let read = vit.read(&pass)?;
        let rows = read.len() / width / chosen.len();
        let patches = rows / reads.len();
        for (i, of_image) in read.chunks_exact(rows * width).enumerate() {
            let patch = rng.random_range(0..patches as u64) as usize;
            for layer in 0..layout.layers {
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
}
