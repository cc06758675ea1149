//! The files of a finished segmentation run: curves, confusion matrix, masks drawn over images, page of mistakes.

use super::{Masks, PixelsFound};
use crate::{
    config::Plan,
    report::{self, CardLine, MaskTile, PagePart, PageTable, PictureCard},
    train::{
        run_folder,
        task::{
            FinishedRun,
            dense::{LearnedValues, curves, shown},
        },
    },
};
use vpt_base::{Error, Result};
use vpt_data::{
    Split,
    masks::{MaskImage, MaskLoader},
    visit_batches,
};
use vpt_image::decode::decode_bytes;
use vpt_model::{
    metrics::{Confusion, Scores},
    model::segment::TokenInput,
};

/// Images on the page of mistakes.
const MISTAKES: usize = 24;
/// Confused pairs in its table.
const PAIRS: usize = 10;

/// Writes all of them.
pub(super) fn write(task: &Masks, plan: &Plan, title: &str, run: &FinishedRun<PixelsFound>) -> Result<()> {
    let FinishedRun { folder, record, values, val, test, .. } = *run;
    let names = &task.dataset.classes.names;
    let drawn = DrawnMasks { task, plan, learned: LearnedValues::of(values, record.stage) };
    let pixels = |scores: &Scores| scores.segment().map(|metrics| metrics.pixel_acc);
    let curves = curves(title, run, "share", "validation mIoU", ("validation accuracy of pixels", pixels))?;
    folder.write_drawn(run_folder::CURVES, curves)?;
    let on_test = format!("{title}: pixels of the test images, % of each true class");
    let confusion = test.tally.pixels.confusion();
    folder.write_drawn(run_folder::CONFUSION, report::confusion_svg(&on_test, &confusion, names)?)?;
    let sheet = report::mask_sheet_jpeg(&drawn.tiles(shown(plan, task.dataset.val.len()))?, names)?;
    folder.write(run_folder::VAL_PREDICTIONS, sheet)?;
    folder.write(run_folder::MISTAKES, mistakes(&drawn, title, val)?)
}

/// The page of the validation images with the largest share of pixels that are taken for another class.
fn mistakes(drawn: &DrawnMasks, title: &str, val: &PixelsFound) -> Result<String> {
    let dataset = &drawn.task.dataset;
    let names = &dataset.classes.names;
    let mut wrong: Vec<(usize, f64)> = val.tally.images.iter().copied().filter(|(_, right)| *right < 1.).collect();
    wrong.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
    let (count, total, shown) = (wrong.len(), dataset.val.len(), wrong.len().min(MISTAKES));
    let more = if shown < count { format!("; the {shown} with the most are shown") } else { String::new() };
    wrong.truncate(MISTAKES);
    let tiles = drawn.tiles(wrong.iter().map(|(index, _)| *index).collect())?;
    let cards = wrong.into_iter().zip(tiles).map(|((index, right), tile)| {
        let sheet = report::mask_sheet_jpeg(&[tile], names)?;
        let image = decode_bytes(&sheet).map_err(|message| Error::invalid("mistakes.html", message))?;
        let text = format!("{:.1} % of its pixels are wrong", 100. * (1. - right));
        let lines = vec![CardLine { text, probability: None, right: Some(false) }];
        Ok(PictureCard { image, path: dataset.val[index].name.clone(), lines })
    });
    let part = PagePart {
        heading: "Validation images".to_owned(),
        summary: format!("Wrong pixels in {count} of {total} images{more}."),
        folded: false,
        wide: true,
        table: pairs(&val.tally.pixels.confusion(), names),
        cards: cards.collect::<Result<_>>()?,
    };
    let intro = "The images with the largest share of pixels that are taken for another class. Left the truth, right what was found.";
    report::picture_page("Mistakes", title, intro, &[part])
}

/// The table of what was taken for what, most pixels first.
fn pairs(confusion: &Confusion, names: &[String]) -> Option<PageTable> {
    let classes = confusion.classes();
    let mut all: Vec<(u64, usize, usize)> = (0..classes)
        .flat_map(|truth| (0..classes).map(move |predicted| (truth, predicted)))
        .filter(|(truth, predicted)| truth != predicted)
        .map(|(truth, predicted)| (confusion.count(truth, predicted), truth, predicted))
        .filter(|(count, ..)| *count > 0)
        .collect();
    all.sort_by_key(|&(count, truth, predicted)| (std::cmp::Reverse(count), truth, predicted));
    let row = |&(count, truth, predicted): &(u64, usize, usize)| {
        let of: u64 = confusion.row(truth).iter().sum();
        let share = report::table::percent(count as f64 / of.max(1) as f64);
        vec![names[truth].clone(), names[predicted].clone(), count.to_string(), share]
    };
    let header = ["true class", "taken for", "pixels", "of the true class"].map(str::to_owned).to_vec();
    (!all.is_empty()).then(|| PageTable { header, rows: all.iter().take(PAIRS).map(row).collect() })
}

/// Draws the validation images with their masks, and those that learned values make of them.
struct DrawnMasks<'a> {
    task: &'a Masks,
    plan: &'a Plan,
    learned: LearnedValues<'a>,
}

impl DrawnMasks<'_> {
    /// The validation images at `chosen`.
    fn tiles(&self, chosen: Vec<usize>) -> Result<Vec<MaskTile>> {
        let Self { task, plan, learned: LearnedValues { params, with_parts } } = *self;
        let head = task.model.bind(params)?;
        let (total, images) = (chosen.len(), task.images(Split::Val));
        let mut tiles = Vec::with_capacity(total);
        let loader = MaskLoader::new(images.clone(), chosen, task.loader_options(plan))?;
        visit_batches(loader, total, &mut |_, _| true, |batch| {
            let seen: Vec<&MaskImage> = batch.indices.iter().map(|&index| &images[index]).collect();
            let input = TokenInput::Images(&batch.pixels);
            let sizes: Vec<_> = seen.iter().map(|image| [image.width, image.height]).collect();
            let found = task.model.masks(&head, with_parts, input, &batch.windows, &sizes, &task.input)?;
            for (image, predicted) in seen.into_iter().zip(found) {
                tiles.push(MaskTile { image: image.image.load()?, truth: image.mask()?, predicted });
            }
            Ok(())
        })?;
        Ok(tiles)
    }
}
