//! The page of a run's worst mistakes: which images go on it, and in which order.

use std::{collections::HashMap, fmt::Write};

use super::{run_folder, run_folder::RunFolder, setup::Setup};
use crate::{
    Result,
    data::{Sample, Split},
    eval::{calibration::Logits, classify::top_k},
    report::{self, ConfusedPair, Mistake, MistakeLine, MistakePart, table},
};

/// Images of validation on the page, and of test.
const SHOWN: [usize; 2] = [60, 30];
/// Confused pairs in a table.
const PAIRS: usize = 10;
/// Classes below a picture, the true one not counted.
const GUESSES: usize = 3;

/// Writes the page of a classifier whose logits on the validation and test images were `val` and `test`.
pub(super) fn write(folder: &RunFolder, setup: &Setup, val: &Logits, test: &Logits, temperature: f64) -> Result<()> {
    let Setup { plan, model, dataset, .. } = setup;
    let title = format!("{}, {} on {}", plan.config.method, model.backbone().name, dataset.name);
    let intro = "The images that the model is wrong about, the surest mistakes first; with each the classes it thinks \
                 most likely. A picture that is labelled wrongly is often among the first.";
    let parts = [part(setup, Split::Val, val, temperature)?, part(setup, Split::Test, test, temperature)?];
    folder.write(run_folder::MISTAKES, report::mistakes_html(&title, intro, &parts, false)?)
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
    let (total, mistakes) = (samples.len(), wrong.len());
    let shown = mistakes.min(SHOWN[usize::from(split == Split::Test)]);
    let mut pairs: Vec<_> = counts.into_iter().collect();
    pairs.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    let pair = |((truth, predicted), count): ((usize, usize), u64)| ConfusedPair {
        truth: names[truth].clone(),
        predicted: names[predicted].clone(),
        count,
        of: of_class[truth],
    };
    let share = table::percent((total > 0).then(|| mistakes as f64 / total as f64));
    let mut summary = format!("{mistakes} of {total} images are wrong ({share})");
    if shown < mistakes {
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
    Ok(MistakePart {
        heading,
        summary,
        folded: split == Split::Test,
        pairs: pairs.into_iter().take(PAIRS).map(pair).collect(),
        mistakes: wrong
            .into_iter()
            .take(shown)
            .map(|(_, i, row)| mistake(&samples[i], row, names, temperature))
            .collect::<Result<_>>()?,
    })
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
