//! Any number of classes an image, each told by itself: mean average precision and F1.

use std::{path::Path, sync::Arc};

use super::{
    Scored, TaskResults,
    images::{
        ImageLabels, ImageTask, ScoreCurve,
        mistakes::{GUESSES, empty_part},
    },
};
use crate::{
    config::{RunConfig, Task},
    report::{CardLine, MistakePart, PictureCard},
    train::{
        OpenData,
        observer::{Event, Observer},
        progress::EpochRecord,
    },
};
use vpt_base::Result;
use vpt_data::{Dataset, LabelSets, MultilabelDataset, Split, check, multilabel::join};
use vpt_model::{
    loss::Loss,
    metrics::{Confusion, MultilabelTally, Scores},
    model::task_file::TaskMeta,
};

/// Classes that a note names.
const NAMED: usize = 5;
/// Mistakes below a picture on the page of mistakes.
const MISTAKES: usize = 5;

/// Multi-label classification.
pub(crate) type Multilabel = ImageTask<ManyClasses>;

/// Labels are sets of classes.
#[derive(Clone)]
pub(crate) struct ManyClasses(Arc<LabelSets>);

impl Scored for MultilabelTally {
    fn scores(&self) -> Scores {
        Scores::Multilabel(self.metrics())
    }
}

impl ImageLabels for ManyClasses {
    const TASK: Task = Task::Multilabel;
    const NEEDS_EVERY_CLASS: bool = false;
    const TRAIN_RIGHT: &'static str = "train_exact_match";
    const MISTAKES: &'static str = "The images of which the model says a class too many or too few, the surest mistakes \
                                    first; with each the classes it is wrong about and those it found. A picture that is \
                                    labelled wrongly is often among the first.";
    const AXIS: &'static str = "mAP, F1";

    type Evaluation = MultilabelTally;

    fn open(config: &RunConfig, given: Option<OpenData>, observer: &mut dyn Observer) -> Result<(Dataset, Self)> {
        let path = Path::new(&config.data);
        let (seed, made) = (config.seed_of_parts(), config.made_parts());
        let data = match given {
            Some(given) => given.multilabel()?,
            None => MultilabelDataset::open_with(path, seed, config.skip_bad_images, made)?,
        };
        for note in check::notes_of_boxes(&data.problems, path) {
            observer.event(&Event::Note(&note));
        }
        let counts = data.train_counts().into_iter().zip(&data.dataset.classes);
        let missing: Vec<&str> = counts.filter(|(count, _)| *count == 0).map(|(_, name)| name.as_str()).collect();
        if !missing.is_empty() {
            let named = missing[..missing.len().min(NAMED)].join(", ");
            let more = if missing.len() > NAMED { ", …" } else { "" };
            observer.event(&Event::Note(&format!("{} classes are in no training image: {named}{more}", missing.len())));
        }
        Ok((data.dataset, Self(Arc::new(data.sets))))
    }

    fn classes_of(&self, label: u32) -> Result<Vec<u32>> {
        self.0.set(label).map(<[u32]>::to_vec)
    }

    fn names(&self, label: u32, classes: &[String]) -> Result<String> {
        self.0.names(label, classes)
    }

    fn loss(&self, config: &RunConfig, dataset: &Dataset) -> Loss {
        let weights = config.class_weights.of_positives(&self.0.counts(&dataset.train), dataset.train.len());
        Loss::new(Some(&self.0), config.label_smoothing, weights)
    }

    fn found(&self, classes: usize, _: bool) -> MultilabelTally {
        MultilabelTally::new(classes)
    }

    fn add(&self, found: &mut MultilabelTally, logits: &[f32], labels: &[u32]) -> Result<()> {
        found.add(logits, &self.0.truth(labels)?)
    }

    fn task_meta(&self, meta: TaskMeta, _: Option<&MultilabelTally>) -> TaskMeta {
        meta.with_many_labels()
    }

    fn results(&self, _: &MultilabelTally, _: &MultilabelTally) -> TaskResults {
        TaskResults::default()
    }

    fn score_curves(&self) -> [ScoreCurve; 2] {
        let f1 = |record: &EpochRecord| {
            record.val.as_ref().and_then(Scores::multilabel).map_or(f64::NAN, |metrics| metrics.micro_f1)
        };
        [("validation mAP", |record| record.val.as_ref().map_or(f64::NAN, Scores::main)), ("validation micro F1", f1)]
    }

    fn prediction(&self, logits: &[f32], classes: &[String], _: &MultilabelTally) -> Option<(String, Option<f64>)> {
        let there = logits.iter().zip(classes).filter(|(logit, _)| **logit >= 0.).map(|(_, name)| name.as_str());
        Some((join(there), None))
    }

    fn confusion(_: &MultilabelTally) -> Option<&Confusion> {
        None
    }

    fn mistakes(
        &self,
        dataset: &Dataset,
        split: Split,
        found: &MultilabelTally,
        _: &MultilabelTally,
    ) -> Result<MistakePart> {
        mistakes(dataset, split, found)
    }
}

/// The images of `split` with a mistake, the surest first.
fn mistakes(dataset: &Dataset, split: Split, tally: &MultilabelTally) -> Result<MistakePart> {
    let (names, samples) = (&dataset.classes, dataset.part(split));
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
        Ok(PictureCard { image: samples[image].load()?, path: samples[image].id.clone(), lines })
    };
    Ok(MistakePart { mistakes: wrong.into_iter().take(shown).map(card).collect::<Result<_>>()?, ..empty })
}

/// A decision on one class in an image that may have several.
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

    fn line(&self, names: &[String]) -> CardLine {
        let name = &names[self.class];
        let text = if self.there && !self.right { format!("{name}, overlooked") } else { name.clone() };
        CardLine { text, probability: Some(self.probability), right: Some(self.right) }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::eval::zero_shot::ZeroShotPass;
    use crate::train::task::{RunRequest, TrainTask};
    use crate::train::{evaluate, observer::Silent, process_group::ProcessGroup, progress::Stage};
    use vpt_data::shapes::{self, ShapesConfig};
    use vpt_model::{head::HeadKind, methods::Method};

    /// A text head on the backbone `name` among the fixtures, for scenes in `dir`.
    fn text_head(name: &str, dir: &Path) -> RunConfig {
        let data = dir.join("scenes");
        if !data.exists() {
            let task = shapes::ShapesTask::Detect;
            shapes::write_coco(&data, &ShapesConfig { images: 30, task, ..ShapesConfig::default() }).unwrap();
        }
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
        RunConfig {
            backbone: fixtures.join(name).display().to_string(),
            data: data.display().to_string(),
            task: Task::Multilabel,
            method: Method::LINEAR,
            head: Some(HeadKind::Text),
            threads: Some(2),
            ..RunConfig::default()
        }
    }

    #[test]
    fn before_the_first_step_a_text_head_is_the_sigmoid_of_zero_shot_logits() {
        let dir = tempfile::tempdir().unwrap();
        let config = text_head("siglip", dir.path());
        let task = Multilabel::open(RunRequest::new(&config, &ProcessGroup::default()), &mut Silent).unwrap().unwrap();
        let setup = &task.setup;
        let params = setup.initial(true, &mut Silent).unwrap();
        let shapes = setup.initial(false, &mut Silent).unwrap();
        let named = |params: &[vpt_base::params::Param]| {
            params.iter().map(|param| (param.name.clone(), param.shape.clone(), param.group)).collect::<Vec<_>>()
        };
        assert_eq!(named(&params), named(&shapes));
        assert_eq!(params.last().map(|bias| (bias.name.as_str(), bias.values[0])), Some(("head.logit_bias", -3.25)));
        let test = (Split::Test, &setup.test);
        let found = evaluate(&task, &params, Stage::Whole, test, false, &mut Silent).unwrap().unwrap().metrics();
        let (prompts, backbone) = (setup.texts.clone().unwrap(), setup.model.backbone());
        let truth = |labels: &[u32]| task.labels.0.truth(labels);
        let (dataset, split) = (&setup.dataset, Split::Test);
        let pass = ZeroShotPass { backbone, dataset, split, prompts: &prompts, threads: 2 };
        let expected = pass.each_class(&truth, &mut |_, _| {}).unwrap().metrics();
        assert_eq!(
            (found.map, found.micro_f1, found.exact_match),
            (expected.map, expected.micro_f1, expected.exact_match)
        );
        assert!((found.loss - expected.loss).abs() < 1e-5, "{found:?} {expected:?}");
    }

    #[test]
    fn a_backbone_that_compares_classes_tells_none_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let refusal = |name: &str| {
            let config = text_head(name, dir.path());
            Multilabel::open(RunRequest::new(&config, &ProcessGroup::default()), &mut Silent).err().unwrap().to_string()
        };
        let message = "head: text is for one class an image: CLIP compares classes, it does not say which are there";
        assert_eq!(refusal("clip"), message);
        assert!(refusal("vit").contains("has no text tower"));
    }
}
