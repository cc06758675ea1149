//! One class an image: accuracy, calibration, and what was taken for what.

use std::{cell::OnceCell, collections::HashMap, path::Path};

use super::{
    Scored, TaskResults,
    images::{
        ImageLabels, ImageTask, ScoreCurve,
        mistakes::{GUESSES, empty_part},
    },
};
use crate::{
    config::{RunConfig, Task},
    report::{CardLine, ConfusedPair, MistakePart, PictureCard},
    train::{
        OpenData,
        observer::{Event, Observer},
        progress::EpochRecord,
    },
};
use vpt_base::{Result, logits::top_k};
use vpt_data::{Dataset, Sample, Split, check};
use vpt_model::{
    loss::Loss,
    metrics::{Calibration, Confusion, Scores, Tally, calibration::Logits},
    model::task_file::TaskMeta,
};

/// Confused pairs in the table on the page of mistakes.
const PAIRS: usize = 10;

/// Classification.
pub(crate) type Classify = ImageTask<OneClass>;

/// Labels are classes.
#[derive(Clone)]
pub(crate) struct OneClass;

/// Counts, and logits if they are kept, of images of one class each.
pub(crate) struct ClassifyEvaluation {
    pub(crate) tally: Tally,
    logits: Option<Logits>,
    temperature: OnceCell<f64>,
}

impl ClassifyEvaluation {
    /// Temperature that is fitted on these images, if there are any and their logits were kept.
    fn temperature(&self) -> Option<f64> {
        let logits = self.logits.as_ref().filter(|logits| logits.rows().next().is_some())?;
        Some(*self.temperature.get_or_init(|| logits.temperature()))
    }
}

impl Scored for ClassifyEvaluation {
    fn scores(&self) -> Scores {
        Scores::Classify(self.tally.metrics())
    }

    fn logits(&self) -> Option<&Logits> {
        self.logits.as_ref()
    }
}

impl ImageLabels for OneClass {
    const TASK: Task = Task::Classify;
    const NEEDS_EVERY_CLASS: bool = true;
    const TRAIN_RIGHT: &'static str = "train_acc1";
    const MISTAKES: &'static str = "The images that the model is wrong about, the surest mistakes first; with each the \
                                    classes it thinks most likely. A picture that is labelled wrongly is often among the \
                                    first.";
    const AXIS: &'static str = "accuracy (top 1)";

    type Evaluation = ClassifyEvaluation;

    fn open(config: &RunConfig, given: Option<OpenData>, observer: &mut dyn Observer) -> Result<(Dataset, Self)> {
        if let Some(given) = given {
            return Ok((given.classify()?, Self));
        }
        let path = Path::new(&config.data);
        for note in check::notes(path) {
            observer.event(&Event::Note(&note));
        }
        Ok((Dataset::open_with(path, config.seed_of_parts(), config.made_parts())?, Self))
    }

    fn classes_of(&self, label: u32) -> Result<Vec<u32>> {
        Ok(vec![label])
    }

    fn names(&self, label: u32, classes: &[String]) -> Result<String> {
        Ok(classes[label as usize].clone())
    }

    fn loss(&self, config: &RunConfig, dataset: &Dataset) -> Loss {
        let mut counts = vec![0; dataset.classes.len()];
        dataset.train.iter().for_each(|sample| counts[sample.label as usize] += 1);
        Loss::new(None, config.label_smoothing, config.class_weights.of_classes(&counts))
    }

    fn found(&self, classes: usize, details: bool) -> ClassifyEvaluation {
        let logits = details.then(|| Logits::new(classes));
        ClassifyEvaluation { tally: Tally::new(classes), logits, temperature: OnceCell::new() }
    }

    fn add(&self, found: &mut ClassifyEvaluation, logits: &[f32], labels: &[u32]) -> Result<()> {
        found.tally.add(logits, labels)?;
        found.logits.as_mut().map_or(Ok(()), |kept| kept.add(logits, labels))
    }

    fn task_meta(&self, mut meta: TaskMeta, val: Option<&ClassifyEvaluation>) -> TaskMeta {
        meta.temperature = val.and_then(ClassifyEvaluation::temperature);
        meta
    }

    fn results(&self, val: &ClassifyEvaluation, test: &ClassifyEvaluation) -> TaskResults {
        let temperature = val.temperature();
        let logits = val.logits.as_ref().zip(test.logits.as_ref()).zip(temperature);
        let ece = logits.map(|((val, test), t)| Calibration { val: val.eces(t), test: test.eces(t) });
        TaskResults { temperature, ece, ..TaskResults::default() }
    }

    fn score_curves(&self) -> [ScoreCurve; 2] {
        let train = |record: &EpochRecord| record.train.get(Self::TRAIN_RIGHT).copied().unwrap_or(f64::NAN);
        [("train", train), ("validation", |record| record.val.as_ref().map_or(f64::NAN, Scores::main))]
    }

    fn prediction(
        &self,
        logits: &[f32],
        classes: &[String],
        val: &ClassifyEvaluation,
    ) -> Option<(String, Option<f64>)> {
        let &(class, probability) = top_k(logits, 1, val.temperature().unwrap_or(1.)).first()?;
        Some((classes[class].clone(), Some(probability)))
    }

    fn confusion(found: &ClassifyEvaluation) -> Option<&Confusion> {
        Some(found.tally.confusion())
    }

    fn mistakes(
        &self,
        dataset: &Dataset,
        split: Split,
        found: &ClassifyEvaluation,
        val: &ClassifyEvaluation,
    ) -> Result<MistakePart> {
        match &found.logits {
            Some(logits) => mistakes(dataset, split, logits, val.temperature().unwrap_or(1.)),
            None => Ok(empty_part(split, 0, 0).0),
        }
    }
}

/// The mistakes among `logits` of the images of `split`, the surest first.
fn mistakes(dataset: &Dataset, split: Split, logits: &Logits, temperature: f64) -> Result<MistakePart> {
    let names = &dataset.classes;
    let samples = dataset.part(split);
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

fn mistake(sample: &Sample, row: &[f32], names: &[String], temperature: f64) -> Result<PictureCard> {
    let truth = sample.label as usize;
    let ranked = top_k(row, row.len(), temperature);
    let line = |&(class, probability): &(usize, f64)| CardLine {
        text: names[class].clone(),
        probability: Some(probability),
        right: if class == truth { Some(true) } else { (class == ranked[0].0).then_some(false) },
    };
    let mut lines: Vec<_> = ranked.iter().take(GUESSES).map(line).collect();
    // The true class is always told, however unlikely it was thought.
    if !lines.iter().any(|line| line.right == Some(true)) {
        lines.extend(ranked.iter().find(|(class, _)| *class == truth).map(line));
    }
    Ok(PictureCard { image: sample.load()?, path: sample.id.clone(), lines })
}
