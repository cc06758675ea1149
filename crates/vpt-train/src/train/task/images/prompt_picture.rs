//! Pictures of a pixel prompt: alone, and on validation images.

use super::{ImageLabels, ImageTask, setup::Setup};
use crate::{
    report,
    train::{run_folder, task::FinishedRun},
};
use vpt_base::Result;
use vpt_image::decode::Rgb8;
use vpt_model::prompt::pixels::{PixelPrompt, PixelShape, Places};

/// Validation images with the prompt, spread over the part.
const SHOWN: usize = 4;
/// Prompts are faint; no contrast beyond this is asked for.
const MOST_CONTRAST: f32 = 64.;

/// Writes the picture of the prompt that `run` has learned, if the method learns pixels.
pub(super) fn write<L: ImageLabels>(task: &ImageTask<L>, run: &FinishedRun<L::Evaluation>) -> Result<()> {
    let setup = &task.setup;
    let Some((pixels, prompt)) = task.model_of(run.record).pixels(run.values)? else { return Ok(()) };
    let mut columns = vec![alone(setup, &pixels, prompt)?];
    let samples = &setup.dataset.val;
    let preprocess = setup.model.preprocess()?;
    let count = SHOWN.min(samples.len());
    for i in 0..count {
        let sample = &samples[i * samples.len() / count];
        let image = preprocess.apply(&sample.load()?)?;
        let with = pixels.apply(prompt, &image, &Places::Same)?;
        // Of a frame's image, which is smaller, only its place on the canvas is known here.
        let without = match setup.plan.parts.pixels() {
            Some(PixelShape::Frame { .. }) => pixels.apply(&vec![0.; prompt.len()], &image, &Places::Same)?,
            _ => image,
        };
        let name = task.labels.names(sample.label, &setup.dataset.classes)?;
        columns.push([(picture(setup, &without), name), (picture(setup, &with), "with the prompt".to_owned())]);
    }
    run.folder.write(run_folder::PROMPT, report::prompt_sheet_png(&columns)?)
}

/// The prompt on a plain ground, as it is and with more contrast.
fn alone(setup: &Setup, pixels: &PixelPrompt, prompt: &[f32]) -> Result<[(Rgb8, String); 2]> {
    // The mean colour of the backbone's images.
    let ground = vec![0.; 3 * pixels.input_side().pow(2)];
    let strongest = prompt.iter().fold(0f32, |most, v| most.max(v.abs()));
    // As far as a normalised colour can go from the mean one without being cut off is about 1.5. A frame's values go through
    // a sigmoid, which bounds them.
    let contrast = if strongest > 0. { (1.5 / strongest).clamp(1., MOST_CONTRAST) } else { 1. };
    let draw = |factor: f32| -> Result<Rgb8> {
        let values: Vec<f32> = prompt.iter().map(|v| v * factor).collect();
        Ok(picture(setup, &pixels.apply(&values, &ground, &Places::Same)?))
    };
    let stretched = (draw(contrast)?, format!("contrast x {contrast:.1}"));
    Ok([(draw(1.)?, "the prompt alone".to_owned()), stretched])
}

/// A normalised image `[3, s, s]` as pixels, cut off where it is darker than black or brighter than white.
fn picture(setup: &Setup, image: &[f32]) -> Rgb8 {
    let side = setup.model.backbone().vit.image_size();
    let preprocess = &setup.model.backbone().preprocess;
    let plane = side * side;
    let mut out = Rgb8::new(side, side);
    for (i, pixel) in out.pixels.chunks_exact_mut(3).enumerate() {
        for (c, value) in pixel.iter_mut().enumerate() {
            let level = image[c * plane + i] * preprocess.std[c] + preprocess.mean[c];
            *value = (level * 255.).round().clamp(0., 255.) as u8;
        }
    }
    out
}
