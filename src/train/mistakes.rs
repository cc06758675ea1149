//! The page of a run's worst mistakes: which images go on it, and in which order.

use std::{collections::HashMap, fmt::Write};

use super::{run_folder, run_folder::RunFolder, setup::Setup};
use crate::{
    Result,
    data::{Sample, Split},
    logits::top_k,
    metrics::{calibration::Logits, multilabel::MultilabelTally},
    report::{self, ConfusedPair, Mistake, MistakeLine, MistakePart, table},
};

/// Images of validation on the page, and of test.
const SHOWN: [usize; 2] = [60, 30];
/// Confused pairs in a table.
const PAIRS: usize = 10;
/// Classes below a picture, the true one not counted.
const GUESSES: usize = 3;
/// Mistakes below a picture that may have several classes.
const MISTAKES: usize = 5;

/// Writes the page of a classifier whose logits on the validation and test images were `val` and `test`.
pub(super) fn write(folder: &RunFolder, setup: &Setup, val: &Logits, test: &Logits, temperature: f64) -> Result<()> {
    let intro = "The images that the model is wrong about, the surest mistakes first; with each the classes it thinks \
                 most likely. A picture that is labelled wrongly is often among the first.";
    let parts = [part(setup, Split::Val, val, temperature)?, part(setup, Split::Test, test, temperature)?];
    write_page(folder, setup, intro, &parts)
}

/// Writes the page of a model that tells any number of classes an image, from what it made of validation and test.
pub(super) fn write_multilabel(
    folder: &RunFolder,
    setup: &Setup,
    val: &MultilabelTally,
    test: &MultilabelTally,
) -> Result<()> {
    let intro = "The images of which the model says a class too many or too few, the surest mistakes first; with each \
                 the classes it is wrong about and those it found. A picture that is labelled wrongly is often among the first.";
    let parts = [multilabel_part(setup, Split::Val, val)?, multilabel_part(setup, Split::Test, test)?];
    write_page(folder, setup, intro, &parts)
}

fn write_page(folder: &RunFolder, setup: &Setup, intro: &str, parts: &[MistakePart]) -> Result<()> {
    let Setup { plan, model, dataset, .. } = setup;
    let title = format!("{}, {} on {}", plan.config.method, model.backbone().name, dataset.name);
    folder.write(run_folder::MISTAKES, report::mistakes_html(&title, intro, parts, false)?)
}

/// A part of the page in which nothing stands yet: `wrong` of `total` images are to be told of, of which some are shown.
fn empty_part(split: Split, total: usize, wrong: usize) -> (MistakePart, usize) {
    let shown = wrong.min(SHOWN[usize::from(split == Split::Test)]);
    let share = table::percent((total > 0).then(|| wrong as f64 / total as f64));
    let mut summary = format!("{wrong} of {total} images are wrong ({share})");
    if shown < wrong {
        let _ = write!(summary, "; the {shown} surest are shown");
    }
    summary.push('.');
    let heading = match split {
        Split::Test => {
            summary +=
                " Choose nothing by these: the result on test is honest only as long as nothing follows from it.";
            "Test images".to_owned()
        }
        _ => "Validation images".to_owned(),
    };
    let folded = split == Split::Test;
    (MistakePart { heading, summary, folded, pairs: Vec::new(), mistakes: Vec::new() }, shown)
}

fn part(setup: &Setup, split: Split, logits: &Logits, temperature: f64) -> Result<MistakePart> {
    let names = &setup.dataset.classes;
    let samples = setup.dataset.part(split);
    // Surest first; of equals the first in the data.
    let mut wrong: Vec<(f64, usize, &[f32])> = Vec::new();
    let mut counts: HashMap<(usize, usize), u64> = HashMap::new();
    let mut of_class = vec![0u64; names.len()];
    for (i, (row, &label)) in logits.rows().enumerate() {
        let label = label as usize;
        of_class[label] += 1;
        if let Some(&(class, probability)) = top_k(row, 1, temperature).first()
            && class != label
        {
            wrong.push((probability, i, row));
            *counts.entry((label, class)).or_default() += 1;
        }
    }
    wrong.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let (empty, shown) = empty_part(split, samples.len(), wrong.len());
    let mut pairs: Vec<_> = counts.into_iter().collect();
    pairs.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    let pair = |((truth, predicted), count): ((usize, usize), u64)| ConfusedPair {
        truth: names[truth].clone(),
        predicted: names[predicted].clone(),
        count,
        of: of_class[truth],
    };
    Ok(MistakePart {
        pairs: pairs.into_iter().take(PAIRS).map(pair).collect(),
        mistakes: wrong
            .into_iter()
            .take(shown)
            .map(|(_, i, row)| mistake(&samples[i], row, names, temperature))
            .collect::<Result<_>>()?,
        ..empty
    })
}

fn multilabel_part(setup: &Setup, split: Split, tally: &MultilabelTally) -> Result<MistakePart> {
    let (names, samples) = (&setup.dataset.classes, setup.dataset.part(split));
    // Of each image with a mistake how sure the surest is, and all of what was said of it.
    let mut wrong: Vec<(f64, usize, Vec<Decision>)> = Vec::new();
    for image in 0..tally.images() {
        let mut said: Vec<Decision> = tally.of_image(image).enumerate().map(Decision::new).collect();
        // Mistakes before what is right, the surer ones first; of equals the first class.
        said.sort_by(|a, b| a.right.cmp(&b.right).then(b.sureness().total_cmp(&a.sureness())));
        if let Some(worst) = said.first().filter(|worst| !worst.right) {
            wrong.push((worst.sureness(), image, said));
        }
    }
    wrong.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let (empty, shown) = empty_part(split, samples.len(), wrong.len());
    let card = |(_, image, said): (f64, usize, Vec<Decision>)| {
        let mistakes = said.iter().filter(|decision| !decision.right).take(MISTAKES);
        let found = said.iter().filter(|decision| decision.right && decision.there).take(GUESSES);
        let lines = mistakes.chain(found).map(|decision| decision.line(names)).collect();
        Ok(Mistake { image: samples[image].load()?, path: samples[image].id.clone(), lines })
    };
    Ok(MistakePart { mistakes: wrong.into_iter().take(shown).map(card).collect::<Result<_>>()?, ..empty })
}

/// What is said of one class in an image that may have several.
struct Decision {
    class: usize,
    probability: f64,
    /// Whether it is in the image.
    there: bool,
    right: bool,
}

impl Decision {
    fn new((class, (logit, there)): (usize, (f32, bool))) -> Self {
        let probability = 1. / (1. + (-f64::from(logit)).exp());
        Self { class, probability, there, right: (logit >= 0.) == there }
    }

    fn sureness(&self) -> f64 {
        self.probability.max(1. - self.probability)
    }

    fn line(&self, names: &[String]) -> MistakeLine {
        let name = &names[self.class];
        let text = if self.there && !self.right { format!("{name}, overlooked") } else { name.clone() };
        MistakeLine { text, probability: Some(self.probability), right: Some(self.right) }
    }
}

fn mistake(sample: &Sample, row: &[f32], names: &[String], temperature: f64) -> Result<Mistake> {
    let truth = sample.label as usize;
    let ranked = top_k(row, row.len(), temperature);
    let line = |&(class, probability): &(usize, f64)| MistakeLine {
        text: names[class].clone(),
        probability: Some(probability),
        right: if class == truth { Some(true) } else { (class == ranked[0].0).then_some(false) },
    };
    let mut lines: Vec<_> = ranked.iter().take(GUESSES).map(line).collect();
    // The true class is always told, however unlikely it was thought.
    if !lines.iter().any(|line| line.right == Some(true)) {
        lines.extend(ranked.iter().find(|(class, _)| *class == truth).map(line));
    }
    Ok(Mistake { image: sample.load()?, path: sample.id.clone(), lines })
}
