//! Losses, logits and gradients of every method that learns texts against PyTorch's; see
//! `scripts/make_text_prompt_fixtures.py`.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use safetensors::{Dtype, SafeTensors};

use super::*;
use crate::{
    head::HeadKind,
    model::{
        ClassifierSpec, TaskModel,
        task_file::{BackboneId, TaskFile, TaskMeta, TaskMetrics},
        tests::assert_close,
    },
    prompt::{PartShape, tokens::TokenLayout},
};
use vpt_backbone::OpenOptions;
use vpt_base::params;

const NAMES: [&str; 4] = ["red square", "two small_circles", "star", "a drawing of the picture"];
const IMAGE_TOKENS: usize = 3;

struct TextFixture {
    backbone: Arc<Backbone>,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    labels: Vec<u32>,
}

fn names() -> Vec<String> {
    NAMES.map(str::to_owned).to_vec()
}

impl TextFixture {
    fn load() -> Self {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
        let bytes = std::fs::read(dir.join("text-prompts.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let f32s = |b: &[u8]| b.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let floats = file.iter().filter(|(_, view)| view.dtype() == Dtype::F32);
        let tensors =
            floats.map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), f32s(view.data())))).collect();
        let labels = file.tensor("labels").unwrap().data().chunks_exact(8).map(|b| u32::from(b[0])).collect();
        let backbone = Backbone::open(dir.join("clip").to_str().unwrap(), &OpenOptions::default()).unwrap();
        Self { backbone: Arc::new(backbone), tensors, labels }
    }

    fn get(&self, name: &str) -> &[f32] {
        &self.tensors[name].1
    }

    fn model(&self, shape: TextShape, threads: usize) -> Model {
        self.with_words(shape, None, threads).unwrap()
    }

    fn with_words(&self, shape: TextShape, words: Option<&str>, threads: usize) -> Result<Model> {
        self.with_names(shape, &Prompts::of_names(&names()).classnames, words, threads)
    }

    fn with_names(&self, shape: TextShape, names: &[String], words: Option<&str>, threads: usize) -> Result<Model> {
        let (parts, spec) = (PartShape::Text(shape).into(), ClassifierSpec::Texts { names, words });
        Model::new(self.backbone.clone(), &parts, spec, NAMES.len(), threads)
    }

    /// The learned values of `case`.
    fn params(&self, case: &str, model: &Model) -> Vec<Param> {
        let param = |(name, shape): (String, Vec<usize>)| {
            let (found, values) = &self.tensors[&format!("{case}.{name}")];
            assert_eq!(*found, shape, "{case} {name}");
            Param::new(&name, &shape, values.clone(), Group::Part(0)).unwrap()
        };
        model.tensors().into_iter().map(param).collect()
    }

    fn compare(&self, case: &str, model: &Model, params: &[Param], output: &StepOutput) {
        let mean = output.loss as f32 / self.labels.len() as f32;
        assert_close(&[mean], self.get(&format!("{case}.loss")), case);
        for (param, gradient) in params.iter().zip(&output.gradients) {
            assert_close(gradient, self.get(&format!("{case}.grad.{}", param.name)), &format!("{case} {}", param.name));
        }
        assert_eq!(output.gradients.len(), params.len());
        let logits = model.logits(params, self.get("images")).unwrap();
        assert_close(&logits, self.get(&format!("{case}.logits")), case);
        let rows = logits.chunks_exact(NAMES.len()).zip(&self.labels);
        let right = rows.filter(|(row, label)| vpt_base::logits::argmax(row) == **label as usize).count();
        assert_eq!(output.correct, right, "{case}");
    }
}

fn cases() -> Vec<(String, TextShape)> {
    let mut cases = vec![
        ("coop".to_owned(), TextShape { tokens: 5, layers: 1, beside: Beside::Nothing }),
        ("cocoop".to_owned(), TextShape { tokens: 4, layers: 1, beside: Beside::MetaNet }),
    ];
    for layers in 1..=3 {
        let tokens = Beside::Tokens(TokenLayout { start: 0, layers, tokens: IMAGE_TOKENS });
        cases.push((format!("ivlp.{layers}"), TextShape { tokens: 4, layers, beside: tokens }));
        cases.push((format!("promptsrc.{layers}"), TextShape { tokens: 4, layers, beside: tokens }));
        cases.push((format!("maple.{layers}"), TextShape { tokens: 2, layers, beside: Beside::Map }));
    }
    cases
}

#[test]
fn every_method_has_pytorchs_loss_logits_and_gradients() {
    let fixture = TextFixture::load();
    let templates = ["a photo of a {}.", "the {} in a picture", "a drawing of a {}"].map(str::to_owned);
    let loss = Loss::CrossEntropy(CrossEntropy::default());
    for (case, shape) in cases() {
        let model = fixture.model(shape, 2);
        let params = fixture.params(&case, &model);
        let texts =
            model.frozen_texts(&Prompts { templates: templates.to_vec(), ..Prompts::of_names(&names()) }).unwrap();
        assert_close(&texts, fixture.get("frozen_texts"), "frozen texts");
        let features = fixture.backbone.vit.features(fixture.get("images"), None, 1).unwrap();
        let frozen = case.starts_with("promptsrc").then_some(Frozen { texts: &texts, features: None });
        let kept = frozen.map(|frozen| Frozen { features: Some(&features), ..frozen });
        for (frozen, micro_batch) in [(frozen, None), (kept, Some(1))] {
            let (images, labels) = (fixture.get("images"), &fixture.labels[..]);
            let input = StepInput { images, blocks: 0, labels, drawn: &[], loss: &loss, frozen, micro_batch };
            fixture.compare(&case, &model, &params, &model.step(&params, &input).unwrap());
        }
        if shape.image_tokens().is_none() {
            let output = model.head_step(&params, &[], &features, &fixture.labels, &loss).unwrap();
            fixture.compare(&case, &model, &params, &output);
        }
    }
}

#[test]
fn fresh_vectors_are_words_or_drawn() {
    let fixture = TextFixture::load();
    for (_, shape) in cases() {
        let model = fixture.model(shape, 1);
        let drawn = model.init(1).unwrap();
        assert_eq!((model.init(1).unwrap() == drawn, model.init(2).unwrap() == drawn), (true, false));
        let expected: Vec<_> = drawn.iter().map(|p| (p.name.as_str(), p.shape.clone())).collect();
        assert_eq!(expected, model.tensors().iter().map(|(n, s)| (&**n, s.clone())).collect::<Vec<_>>());
        let words = fixture.with_words(shape, Some("a photo of a red"), 1).unwrap().init(1).unwrap();
        let embeddings = fixture.backbone.word_embeddings("a photo of a red").unwrap();
        let len = shape.tokens * 32;
        assert_eq!(words[0].values[..len], embeddings[..len]);
        // All else is drawn as before.
        assert_eq!((&words[0].values[len..], &words[1..]), (&drawn[0].values[len..], &drawn[1..]));
        if shape.tokens > 1 {
            let error = fixture.with_words(shape, Some("a"), 1).unwrap_err().to_string();
            assert_eq!(error, format!("context_init: 'a' is 1 tokens where {} vectors are learned", shape.tokens));
        }
    }
    let vectors = fixture.model(TextShape { tokens: 60, layers: 1, beside: Beside::Nothing }, 1).init(1).unwrap();
    let square: f64 = vectors[0].values.iter().map(|&v| f64::from(v).powi(2)).sum();
    let deviation = (square / vectors[0].values.len() as f64).sqrt();
    assert!((deviation - 0.02).abs() < 1e-3, "{deviation}");
}

fn task(fixture: &TextFixture, model: &Model, learned: &[Param]) -> TaskModel {
    let id = BackboneId::of(&fixture.backbone).unwrap();
    let meta = TaskMeta::new(
        crate::methods::Method::COOP,
        model.parts().clone(),
        HeadKind::Cosine,
        id,
        names(),
        fixture.backbone.vit.image_size(),
        model.preprocess().unwrap(),
        TaskMetrics::default(),
    );
    let file = TaskFile { meta, params: model.task_params(learned).unwrap() };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("task.safetensors");
    file.save(&path).unwrap();
    let read = TaskFile::open(&path).unwrap();
    assert_eq!(read, file);
    TaskModel::with_backbone(read, fixture.backbone.clone(), 2).unwrap()
}

#[test]
fn a_task_file_tells_the_same_classes_and_others_by_their_names() {
    let fixture = TextFixture::load();
    let images = fixture.get("images");
    for (case, shape) in cases() {
        let model = fixture.model(shape, 2);
        let learned = fixture.params(&case, &model);
        let task = task(&fixture, &model, &learned);
        assert!(task.is_open_vocabulary());
        let logits = task.logits(images).unwrap();
        assert_close(&logits, fixture.get(&format!("{case}.logits")), &case);
        // The same names in another order, and another one.
        let others = task.with_classes(["star", "yellow triangle", "red square"].map(str::to_owned).to_vec()).unwrap();
        assert_eq!(others.meta().classes[1], "yellow triangle");
        for (row, other) in logits.chunks_exact(4).zip(others.logits(images).unwrap().chunks_exact(3)) {
            assert_close(&[other[0], other[2]], &[row[2], row[0]], &case);
            assert!((other[1] - row[1]).abs() > 1e-4, "{case}");
        }
        assert!(task.with_classes(Vec::new()).is_err());
    }
}

#[test]
fn texts_need_a_text_tower_and_names() {
    let fixture = TextFixture::load();
    let shape = TextShape { tokens: 4, layers: 1, beside: Beside::Nothing };
    let few = fixture.with_names(shape, &names()[..3], None, 1);
    assert!(few.unwrap_err().to_string().contains("3 names for 4"));
    // A head of their own is not what tells these classes.
    let parts = PartShape::Text(shape).into();
    assert!(Model::new(fixture.backbone.clone(), &parts, ClassifierSpec::Head(HeadKind::Cosine), 4, 1).is_err());
    assert!(fixture.with_words(TextShape { layers: 4, ..shape }, None, 1).is_err());
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/vit");
    let vit = Arc::new(Backbone::open(dir.to_str().unwrap(), &OpenOptions::default()).unwrap());
    let (names, words) = (&names()[..], None);
    assert!(Model::new(vit, &parts, ClassifierSpec::Texts { names, words }, 4, 1).is_err());
    let long = fixture.with_words(TextShape { tokens: 76, ..shape }, None, 1);
    assert!(long.unwrap_err().to_string().starts_with("prompt_tokens: "));
    // Vectors that are many learn all the same.
    let many = fixture.model(TextShape { tokens: 70, ..shape }, 1);
    let params = many.init(1).unwrap();
    assert_eq!(params::count(&params), 70 * 32);
    assert_eq!(many.logits(&params, fixture.get("images")).unwrap().len(), fixture.labels.len() * NAMES.len());
}
