//! From a configuration to everything a run on labelled images needs: data set, backbone, plan, model, sources.

use std::sync::Arc;

use super::{
    ImageLabels,
    source::{PartImages, PartSource, ReadOutcome},
};
use crate::{
    config::{Plan, RunConfig, RunContext, Select, Task},
    feature_cache::{self, FeatureCache},
    train::{
        features::extract::Extractor,
        observer::{Event, Observer},
        process_group::ProcessGroup,
        task::{RunFingerprint, RunRequest, refuse_without_validation},
    },
};
use vpt_backbone::{
    Backbone, OpenOptions,
    class_texts::{ClassTexts, Prompts, class_texts},
};
use vpt_base::{Error, Message, Result, params::Param};
use vpt_data::{Augment, ContentHash, Dataset, Digest, FewShot, Split, SplitFile};
use vpt_model::{
    head::HeadKind,
    loss::Loss,
    model::{
        ClassifierSpec, Model,
        task_file::{MapMeta, TaskMeta, TaskMetrics},
    },
};

/// Memory for pixels that are kept from epoch to epoch, in bytes.
const CACHE_BYTES: usize = 768 << 20;
/// Unreadable images that an error names.
const NAMED: usize = 5;

/// What a run learns from.
struct Learned {
    dataset: Dataset,
    /// All classes of the data, of which a draw may have left some out.
    classes: Vec<String>,
    few_shot: Option<FewShot>,
}

/// Everything a run needs that does not change.
pub(crate) struct Setup {
    /// The processes that have the run in hand.
    pub(crate) group: ProcessGroup,
    pub(crate) plan: Plan,
    pub(crate) model: Model,
    pub(crate) dataset: Dataset,
    /// The texts that name the classes, where the head is made of them or they are learned.
    pub(crate) texts: Option<Prompts>,
    /// Training loss.
    pub(crate) loss: Loss,
    /// Draw of `shots`, or that of `draw`.
    pub(crate) few_shot: Option<FewShot>,
    pub(crate) train: Arc<PartSource>,
    pub(crate) val: Arc<PartSource>,
    pub(crate) test: Arc<PartSource>,
    /// Digests of the pixels of each image, by part.
    pub(crate) digests: [Vec<Digest>; 3],
    /// Where `promptsrc` ties the texts to: `[C, E]`.
    pub(crate) frozen_texts: Option<Vec<f32>>,
    /// The penalty of the head alone, where it isn't to be chosen: in folds, that of the run.
    pub(crate) penalty: Option<f64>,
    /// Stands for what the three parts hold.
    pub(crate) content_hash: String,
    /// Stands for configuration, data and backbone in checkpoints.
    pub(crate) fingerprint: RunFingerprint,
}

impl Setup {
    /// Opens data, with what its labels stand for, and backbone; `None` when the observer asked to stop.
    pub(crate) fn new<L: ImageLabels>(request: RunRequest, observer: &mut dyn Observer) -> Result<Option<(Self, L)>> {
        let RunRequest { config, given, group } = request;
        config.validate()?;
        let (mut dataset, labels) = L::open(config, given, observer)?;
        let classes = dataset.classes.clone();
        let few_shot = match (&config.draw, config.shots) {
            (Some(path), _) => Some(FewShot::read(path)?),
            (None, shots) => shots.map(|shots| FewShot::draw(&dataset, shots, config.seed)).transpose()?,
        };
        if let Some(draw) = &few_shot {
            dataset = draw.apply(&dataset)?;
        }
        observer.event(&Event::Note(&format!("{}: {}", dataset.name, dataset.split_note)));
        for (class, images) in few_shot.iter().flat_map(FewShot::short_classes) {
            observer.event(&Event::Note(&format!("class {class} has only {images} images to draw from")));
        }
        let open = OpenOptions {
            weights_dir: config.weights_dir.clone(),
            image_size: config.image_size,
            precision: config.precision,
            max_memory: config.max_memory,
            compute: config.compute(),
        };
        let backbone = Arc::new(Backbone::open(&config.backbone, &open)?);
        backbone.note().iter().for_each(|note| observer.event(&Event::Note(note)));
        let learned = Learned { dataset, classes, few_shot };
        Ok(Self::on(config, learned, &labels, (&backbone, group), observer)?.map(|setup| (setup, labels)))
    }

    /// The `fold`th of so many folds of the training images: learned from the others with everything that was chosen here, on the same
    /// backbone, its head alone with the `penalty` of the run. `None` when the observer asked to stop.
    pub(crate) fn fold<L: ImageLabels>(
        &self,
        labels: &L,
        (fold, of): (usize, usize),
        penalty: Option<f64>,
        observer: &mut dyn Observer,
    ) -> Result<Option<Self>> {
        let mut folds = self.dataset.folds(of, self.plan.config.seed, L::NEEDS_EVERY_CLASS)?;
        let dataset = folds.swap_remove(fold);
        let (folds, select) = (None, Some(Select::Last));
        let config = RunConfig { folds, select, shots: None, draw: None, ..self.plan.config.clone() };
        let learned = Learned { classes: dataset.classes.clone(), dataset, few_shot: None };
        let setup = Self::on(&config, learned, labels, (self.model.backbone(), &self.group), observer)?;
        Ok(setup.map(|setup| Self { penalty, ..setup }))
    }

    fn on<L: ImageLabels>(
        config: &RunConfig,
        learned: Learned,
        labels: &L,
        (backbone, group): (&Arc<Backbone>, &ProcessGroup),
        observer: &mut dyn Observer,
    ) -> Result<Option<Self>> {
        let Learned { mut dataset, classes, few_shot } = learned;
        let facts = |dataset: &Dataset| RunContext {
            task: L::TASK,
            depth: backbone.vit.depth(),
            text_depth: backbone.text_spec().ok().map(|text| text.tower.depth),
            image_size: backbone.vit.image_size(),
            train_images: dataset.train.len(),
            shots: few_shot.as_ref().map(|draw| draw.shots),
        };
        refuse_without_validation(config, &dataset.name, dataset.val.len())?;
        let plan = config.resolve(&facts(&dataset))?;
        let (config, note) = config.with_card(&plan, &dataset.name, &classes, &dataset.classes)?;
        if let Some(note) = note {
            observer.event(&Event::Note(&note));
        }
        let config = &config;
        let plan = config.resolve(&facts(&dataset))?;
        // First: a missing text tower should be told before a thousand images are read.
        let texts = prompts(&plan, backbone, &dataset)?;
        let by_sigmoid = tells_by_sigmoid(&plan, backbone)?;
        let classifier = classifier(&plan, texts.as_ref(), dataset.train.len());
        let mut model = Model::new(backbone.clone(), &plan.parts, classifier, dataset.classes.len(), plan.threads)?;
        if by_sigmoid {
            model = model.with_logit_bias();
        }
        // Too little memory should be told now, too.
        model.memory_plan(plan.config.micro_batch, plan.batch_size)?;
        let extractor = extractor(&plan, &model, group)?;
        let read = read(&mut dataset, labels, &plan, &extractor, observer)?;
        drop(extractor);
        let Some(PartContents { mut images, digests, hash: content_hash }) = read else { return Ok(None) };
        refuse_without_validation(config, &dataset.name, dataset.val.len())?;
        // Images that were left out may change the number of steps, and of keys.
        let plan = config.resolve(&facts(&dataset))?;
        if config.method.has_cache() {
            model = model.with_keys(dataset.train.len());
        }
        let mut next = || images.pop().ok_or_else(|| Error::invalid("data", "fewer than three parts"));
        let mut next = || next().map(|images| Arc::new(PartSource::Images(images)));
        let (test, val, train) = (next()?, next()?, next()?);
        let split = SplitFile::new(&dataset).to_json();
        let fingerprint = RunFingerprint::new(&plan, &[&split, content_hash.as_bytes()], backbone)?;
        let loss = labels.loss(&plan.config, &dataset);
        let frozen_texts = texts.as_ref().filter(|_| plan.config.method.tied_to().is_some());
        let frozen_texts = frozen_texts.map(|texts| model.frozen_texts(texts)).transpose()?;
        let setup = Self {
            group: group.clone(),
            plan,
            model,
            dataset,
            texts,
            loss,
            few_shot,
            train,
            val,
            test,
            digests,
            frozen_texts,
            penalty: None,
            content_hash,
            fingerprint,
        };
        Ok(Some(setup))
    }

    /// The learned values before the first step. Those of a text head are embedded only if `wanted`: with a checkpoint
    /// nothing but their shape is needed, and many texts take long.
    pub(crate) fn initial(&self, wanted: bool, observer: &mut dyn Observer) -> Result<Vec<Param>> {
        let Self { plan, model, .. } = self;
        let mut params = model.init(plan.config.seed)?;
        if wanted && let Some(texts) = self.class_texts(observer)? {
            let scale = model.backbone().logit_scale().unwrap_or(1.);
            params.truncate(model.part_tensors());
            let head = model.head();
            params.extend(match model.backbone().logit_bias().filter(|_| head.logit_bias) {
                Some(bias) => head.of_texts_by_sigmoid(texts.unit, scale, bias)?,
                None => head.of_texts(texts.unit, scale)?,
            });
        }
        Ok(params)
    }

    /// What the texts that name the classes say, where the head is made of them.
    pub(crate) fn class_texts(&self, observer: &mut dyn Observer) -> Result<Option<ClassTexts>> {
        let Some(texts) = self.texts.as_ref().filter(|_| self.plan.config.reads_texts()) else { return Ok(None) };
        let (classes, templates) = (texts.classnames.len(), texts.templates.len());
        let note = format!("embedding {classes} class names in {templates} templates for the head");
        observer.event(&Event::Note(&note));
        let extractor = self.extractor()?;
        class_texts(texts, |texts| extractor.texts(texts)).map(Some)
    }

    /// Extractor of features without prompts, and of embeddings of texts.
    pub(crate) fn extractor(&self) -> Result<Extractor<'_>> {
        extractor(&self.plan, &self.model, &self.group)
    }

    /// Digests of the pixels of each image of `split`.
    pub(crate) fn digests(&self, split: Split) -> &[Digest] {
        &self.digests[split as usize]
    }

    /// Heading of the pictures of this run.
    pub(crate) fn title(&self) -> String {
        format!("{}, {} on {}", self.plan.config.method, self.model.backbone().name, self.dataset.name)
    }

    /// Metadata of a task file of this run.
    pub(crate) fn task_meta(&self, metrics: TaskMetrics) -> Result<TaskMeta> {
        let (names, preprocess) = (self.dataset.classes.clone(), self.model.preprocess()?);
        let meta = self.plan.task_meta(self.model.backbone(), names, preprocess, metrics)?;
        let classnames = self.plan.config.classnames.clone().filter(|_| self.plan.config.method.has_texts());
        let mut meta = meta.with_classnames(classnames);
        meta.label_map = self.model.label_map().map(MapMeta::new);
        Ok(meta)
    }
}

/// What tells the classes in a run of `plan` on `images` training images, whose classes `texts` name.
fn classifier<'a>(plan: &'a Plan, texts: Option<&'a Prompts>, images: usize) -> ClassifierSpec<'a> {
    let method = plan.config.method;
    match (plan.config.label_map, texts) {
        (Some(kind), _) => ClassifierSpec::LabelMap(kind),
        (None, Some(texts)) if method.has_texts() => {
            ClassifierSpec::Texts { names: &texts.classnames, words: plan.context_words() }
        }
        (None, texts) if plan.told_by_texts() => ClassifierSpec::Templates(texts),
        (None, _) if method.on_embeddings() => {
            ClassifierSpec::OnEmbeddings { kind: plan.head, keys: if method.has_cache() { images } else { 0 } }
        }
        (None, _) => ClassifierSpec::Head(plan.head),
    }
}

/// Whether a text head says of each class by itself whether it is there: in tasks with any number of classes an image.
///
/// # Errors
/// The backbone was not trained by the sigmoid of its logits, so they say nothing of the kind.
fn tells_by_sigmoid(plan: &Plan, backbone: &Backbone) -> Result<bool> {
    if plan.config.task != Task::Multilabel || plan.head != HeadKind::Text {
        return Ok(false);
    }
    if backbone.logit_bias().is_none() {
        let message = "text is for one class an image: CLIP compares classes, it does not say which are there";
        return Err(Error::setting("head", message));
    }
    Ok(true)
}

/// The texts that name the classes, if the head of `plan` is made of them, or if they are learned.
fn prompts(plan: &Plan, backbone: &Backbone, dataset: &Dataset) -> Result<Option<Prompts>> {
    let config = &plan.config;
    if plan.told_by_texts() {
        return config.class_prompts(&dataset.classes).map(Some);
    }
    if config.method.has_texts() {
        // Vectors take the place of a template; there may be others to stay close to.
        let prompts = config.class_prompts(&dataset.classes)?;
        return Ok(Some(Prompts { templates: config.templates.clone().unwrap_or_default(), ..prompts }));
    }
    if !config.reads_texts() {
        return Ok(None);
    }
    if !backbone.has_text_tower() && config.head == Some(HeadKind::Text) {
        let message = format!(
            "text begins with the text embeddings of CLIP, and {} ({}) has no text tower; take linear or cosine",
            backbone.name, backbone.spec.family
        );
        return Err(Error::setting("head", message));
    }
    if !backbone.has_text_tower() {
        let message = format!(
            "{} begins with the text embeddings of CLIP, and {} ({}) has no text tower; take linear or ncm",
            config.method, backbone.name, backbone.spec.family
        );
        return Err(Error::setting("method", message));
    }
    config.class_prompts(&dataset.classes).map(Some)
}

/// Extractor of features without prompts, of images as `model` takes them, and of embeddings of texts.
pub(crate) fn extractor<'a>(plan: &Plan, model: &'a Model, group: &ProcessGroup) -> Result<Extractor<'a>> {
    let cache = plan.config.cache_dir.clone().map(|root| FeatureCache::new(root, feature_cache::limit()));
    Ok(Extractor {
        group: group.clone(),
        backbone: model.backbone(),
        preprocess: model.preprocess()?,
        precision: plan.config.precision,
        cache,
        threads: plan.threads,
    })
}

/// Content of the three parts.
struct PartContents {
    images: Vec<PartImages>,
    /// Digests of the pixels of each image, by part.
    digests: [Vec<Digest>; 3],
    /// Hash of all of it.
    hash: String,
}

/// The content of the three parts. All images are read once, so that a file that cannot be read does not come up at the end of
/// a long run, and `dataset` is put in an order that follows from their content alone: by class, then by the digest of their
/// pixels. So the same images give the same result however they are stored.
fn read<L: ImageLabels>(
    dataset: &mut Dataset,
    meaning: &L,
    plan: &Plan,
    extractor: &Extractor,
    observer: &mut dyn Observer,
) -> Result<Option<PartContents>> {
    let config = &plan.config;
    let preprocess = extractor.preprocess.clone();
    let crop = config.random_resized_crop.map(|[least, most]| (least, most));
    let augment = Augment {
        flip: config.flip.unwrap_or(false),
        random_resized_crop: crop,
        random_crop: false,
        policy: config.augment,
    };
    let mut room = CACHE_BYTES;
    let mut parts = Vec::new();
    let mut all_digests: [Vec<Digest>; 3] = Default::default();
    let mut left_out = Vec::new();
    let mut hash = ContentHash::new(&dataset.classes);
    for split in Split::ALL {
        let augment = if split == Split::Train { augment } else { Augment::default() };
        let make = |dataset: &Dataset, room: &mut usize| {
            let samples = dataset.part(split).to_vec();
            PartImages::new(samples, preprocess.clone(), augment, config.seed, plan.threads, room)
        };
        let room_before = room;
        let mut images = make(dataset, &mut room);
        // Features come from elsewhere, and the cache knows many a digest.
        let read = if config.method.on_features() {
            extractor.read(dataset.part(split), split, observer)?
        } else {
            images.read(split, &extractor.group, observer)?
        };
        let Some(ReadOutcome { digests, unreadable }) = read else { return Ok(None) };
        if !unreadable.is_empty() {
            let mut position = 0;
            dataset.part_mut(split).retain(|_| {
                position += 1;
                !unreadable.iter().any(|(i, _)| *i == position - 1)
            });
            room = room_before;
            images = make(dataset, &mut room);
        }
        left_out.extend(unreadable.into_iter().map(|(_, error)| error));
        let mut content = Vec::with_capacity(digests.len());
        for (sample, digest) in dataset.part(split).iter().zip(digests) {
            content.push((meaning.classes_of(sample.label)?, digest));
        }
        hash.part(split, content.iter().map(|(labels, digest)| (&labels[..], *digest)));
        let mut order: Vec<usize> = (0..content.len()).collect();
        order.sort_by(|&a, &b| content[a].cmp(&content[b]));
        parts.push(images.reordered(&order));
        // Whoever looks for the image of a prediction finds it in the same place.
        let part = dataset.part_mut(split);
        *part = order.iter().map(|&from| part[from].clone()).collect();
        all_digests[split as usize] = order.iter().map(|&from| content[from].1).collect();
    }
    let read = PartContents { images: parts, digests: all_digests, hash: hash.finish() };
    if left_out.is_empty() {
        return Ok(Some(read));
    }
    let unusable = |message: Message| Error::invalid(format!("data set {}", dataset.name), message);
    let named = left_out.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    let more = if left_out.len() > NAMED { format!("; and {} more", left_out.len() - NAMED) } else { String::new() };
    if !config.skip_bad_images {
        let message = Message::from(format!("{} images cannot be read; ", left_out.len())).field("skip_bad_images");
        return Err(unusable(message.text(format!(" leaves them out: {named}{more}"))));
    }
    for split in Split::ALL {
        if dataset.part(split).is_empty() {
            return Err(unusable(format!("no image of {split} can be read: {named}{more}").into()));
        }
    }
    for (label, class) in dataset.classes.iter().enumerate() {
        if L::NEEDS_EVERY_CLASS && !dataset.train.iter().any(|sample| sample.label as usize == label) {
            let message = format!("no image of class `{class}` is left to learn from: {named}{more}");
            return Err(unusable(message.into()));
        }
    }
    let note = format!("; {} unreadable images left out", left_out.len());
    dataset.split_note.push_str(&note);
    observer.event(&Event::Note(&format!("{} images cannot be read and are left out: {named}{more}", left_out.len())));
    Ok(Some(read))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        eval::zero_shot::ZeroShotPass,
        train::{
            evaluate,
            observer::Silent,
            progress::Stage,
            task::{TrainTask, classify::Classify},
        },
    };
    use vpt_model::methods::Method;

    fn text_head() -> RunConfig {
        RunConfig { method: Method::LINEAR, head: Some(HeadKind::Text), threads: Some(2), ..RunConfig::default() }
    }

    fn open(config: &RunConfig) -> Result<Classify> {
        Classify::open(RunRequest::new(config, &ProcessGroup::default()), &mut Silent).map(Option::unwrap)
    }

    #[test]
    fn before_the_first_step_a_text_head_is_zero_shot_classification() {
        // Other names than the data's, of which none is right for the first class.
        let names = open(&text_head()).unwrap().setup.dataset.classes;
        let mut names: Vec<String> = names.iter().map(|name| format!("bright {name}")).collect();
        names[0] = "cat".to_owned();
        let templates = vec!["a photo of a {}.".to_owned(), "{c}".to_owned()];
        let own = RunConfig { classnames: Some(names.clone()), templates: Some(templates.clone()), ..text_head() };
        let mut seen = Vec::new();
        for config in [text_head(), own] {
            let task = open(&config).unwrap();
            let setup = &task.setup;
            let params = setup.initial(true, &mut Silent).unwrap();
            let test = (Split::Test, &setup.test);
            let tally = evaluate(&task, &params, Stage::Whole, test, false, &mut Silent).unwrap().unwrap().tally;
            let prompts = setup.texts.clone().unwrap();
            let backbone = setup.model.backbone();
            let (dataset, split) = (&setup.dataset, Split::Test);
            let pass = ZeroShotPass { backbone, dataset, split, prompts: &prompts, threads: 2 };
            let expected = pass.one_class(&mut |_, _| {}).unwrap();
            assert_eq!(tally.confusion(), expected.confusion());
            let (found, expected) = (tally.metrics(), expected.metrics());
            assert_eq!((found.acc1, found.acc5), (expected.acc1, expected.acc5));
            assert!((found.loss - expected.loss).abs() < 1e-4 * expected.loss, "{} {}", found.loss, expected.loss);
            seen.push((found.acc1, prompts));
        }
        assert!(seen[0].0 > 0.8 && seen[1].0 < seen[0].0, "the texts matter");
        assert_eq!((&seen[1].1.classnames, &seen[1].1.templates), (&names, &templates));
    }

    #[test]
    fn texts_that_cannot_be_are_refused_by_their_flags() {
        let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
        let refusal = |config: RunConfig| open(&config).err().unwrap().to_string();
        let vit = RunConfig { backbone: fixtures.join("vit").display().to_string(), ..text_head() };
        let message = refusal(vit);
        assert!(
            message.starts_with("head: text begins with") && message.contains("vit (vit) has no text tower"),
            "{message}"
        );
        let few = RunConfig { classnames: Some(vec!["cat".into()]), ..text_head() };
        assert_eq!(refusal(few), "classnames: 1 class names for 64 classes of the data");
        let linear = RunConfig { templates: Some(vec!["a {}".into()]), head: Some(HeadKind::Linear), ..text_head() };
        assert_eq!(
            refusal(linear),
            "templates: only for head text and zero-shot, zs-lp, clap, tip-adapter, tip-adapter-f, promptsrc, lora, not linear"
        );
        let placeless = RunConfig { templates: Some(vec!["a {}".into(), "a dog".into()]), ..text_head() };
        assert!(refusal(placeless).starts_with("templates: template 2 ('a dog') has no {}"));
        let long = RunConfig { templates: Some(vec![format!("{{}}{}", "x".repeat(500_000))]), ..text_head() };
        assert!(refusal(long).starts_with("templates: more than 400 kB"));
    }
}
