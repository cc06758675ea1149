//! Against scikit-learn, NumPy and PyTorch: `tests/fixtures/features.json`, made by `scripts/make_feature_fixtures.py`.

use std::{path::Path, sync::Arc};

use serde_json::Value;

use super::{
    clap::Penalty,
    logistic::{Labelled, search},
    tip_adapter::{self, TipCache},
    *,
};
use crate::{
    config::{LearningRate, RunConfig, RunContext, Task},
    train::{
        checkpoint::TrainState,
        fit::StageFit,
        observer::Silent,
        progress::{RunProgress, Stage},
        run_writer::NoWriter,
        task::{
            StagePlan,
            classify::{Classify, OneClass},
            images::source::PartSource,
        },
    },
};
use vpt_backbone::{Backbone, OpenOptions};
use vpt_base::params;
use vpt_data::{Dataset, Layout};
use vpt_model::{
    head::BoundHead,
    loss::Loss,
    methods::Method,
    model::{ClassifierSpec, Model, StepOutput},
    optim::EPSILON,
};

const CLASSES: usize = 3;

/// What the script wrote.
struct FeatureFixture(Value);

impl FeatureFixture {
    fn new() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/features.json");
        Self(serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
    }

    fn at(&self, pointer: &str) -> &Value {
        self.0.pointer(pointer).unwrap_or_else(|| panic!("no {pointer}"))
    }

    fn number(&self, pointer: &str) -> f64 {
        self.at(pointer).as_f64().unwrap()
    }

    fn f64s(&self, pointer: &str) -> Vec<f64> {
        self.at(pointer).as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    }

    fn f32s(&self, pointer: &str) -> Vec<f32> {
        self.f64s(pointer).into_iter().map(|v| v as f32).collect()
    }

    fn labels(&self, pointer: &str) -> Vec<u32> {
        self.f64s(pointer).into_iter().map(|v| v as u32).collect()
    }

    /// Class weights with the script's scale, and their head.
    fn head(&self, weight: Vec<f32>, group: Group) -> (Head, Vec<Param>) {
        let width = weight.len() / CLASSES;
        let params = cosine::given(weight, CLASSES, self.number("/scale") as f32, group).unwrap();
        (Head { kind: HeadKind::Cosine, width, classes: CLASSES, keys: 0, logit_bias: false }, params)
    }

    fn zero_shot(&self) -> BoundHead {
        let (head, params) = self.head(self.f32s("/texts"), Group::Fixed);
        head.bind(&params).unwrap()
    }

    fn penalty(&self) -> Penalty {
        let (features, labels) = (self.f32s("/probes/train"), self.labels("/probes/labels"));
        let train = Labelled { features: &features, labels: &labels };
        Penalty::new(self.f32s("/texts"), &self.zero_shot(), train).unwrap()
    }
}

/// Whether the largest difference is at most `most` of the largest value.
#[track_caller]
fn assert_close(found: &[f32], expected: &[f64], most: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f64, |m, v| m.max(v.abs()));
    assert!(largest > 0., "{what}: nothing to tell right from wrong by");
    for (found, expected) in found.iter().zip(expected) {
        let gap = (f64::from(*found) - expected).abs();
        assert!(gap <= most * largest, "{what}: {gap:e} beside {largest:e}");
    }
}

#[test]
fn a_linear_probe_is_scikit_learn_s() {
    let fixture = FeatureFixture::new();
    let (features, labels) = (fixture.f32s("/logistic/train"), fixture.labels("/logistic/labels"));
    let train = Labelled { features: &features, labels: &labels };
    for case in 0..3 {
        let at = |name: &str| format!("/logistic/cases/{case}/{name}");
        let l2 = fixture.number(&at("l2"));
        let (values, loss) = logistic::fit_closely(train, CLASSES, l2).unwrap();
        let (weight, bias) = values.split_at(CLASSES * train.width());
        let near = |found: &[f64], name: &str| {
            let expected = fixture.f64s(&at(name));
            assert_eq!(found.len(), expected.len(), "{name}");
            found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-6 * e.abs().max(1.))
        };
        let mean = bias.iter().sum::<f64>() / CLASSES as f64;
        let centred: Vec<f64> = bias.iter().map(|b| b - mean).collect();
        assert!(near(weight, "coef") && near(&centred, "intercept"), "{l2}");
        let expected = fixture.number(&at("loss"));
        assert!((loss - expected).abs() < 1e-6 * expected, "{l2}: {loss} {expected}");
        // What a run makes of it: a head in f32, after a search that was told the strength.
        let (probe, chosen, trials) = search(train, train, CLASSES, Some(l2), &|| false).unwrap().unwrap();
        assert!((chosen - l2).abs() < f64::EPSILON && trials.len() == 1);
        let head = Head { kind: HeadKind::Linear, width: train.width(), classes: CLASSES, keys: 0, logit_bias: false };
        let logits = head.bind(&probe.params().unwrap()).unwrap().logits(&fixture.f32s("/logistic/other")).unwrap();
        let probabilities: Vec<f32> = logits.chunks(CLASSES).flat_map(softmax).collect();
        assert_close(&probabilities, &fixture.f64s(&at("probabilities")), 1e-5, "probabilities");
    }
}

fn facts(train_images: usize) -> RunContext {
    RunContext { task: Task::Classify, depth: 2, text_depth: None, image_size: 32, train_images, shots: None }
}

fn softmax(row: &[f32]) -> Vec<f32> {
    let powers: Vec<f64> = row.iter().map(|&v| f64::from(v).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|p| (p / sum) as f32).collect()
}

#[test]
fn the_strength_of_a_probe_is_looked_for_down_to_an_eighth_of_a_decade() {
    let fixture = FeatureFixture::new();
    let (features, labels) = (fixture.f32s("/logistic/train"), fixture.labels("/logistic/labels"));
    let (train, val) = labels.split_at(20);
    let (of_train, of_val) = features.split_at(20 * features.len() / labels.len());
    let (train, val) = (Labelled { features: of_train, labels: train }, Labelled { features: of_val, labels: val });
    let (_, chosen, trials) = search(train, val, CLASSES, None, &|| false).unwrap().unwrap();
    assert_eq!(trials.len(), 7 + 2 * 4);
    let rank = |t: &Trial| (-t.calibrated_loss.unwrap(), -t.val.loss);
    assert!(
        trials.iter().all(|t| rank(t) <= rank(trials.iter().find(|t| t.l2.to_bits() == chosen.to_bits()).unwrap()))
    );
    let eighths = 8. * chosen.log10();
    assert!((eighths - eighths.round()).abs() < 1e-9, "{chosen}");
    assert!(search(train, val, CLASSES, None, &|| true).unwrap().is_none());
}

#[test]
fn without_validation_images_strengths_are_judged_by_cross_validation() {
    let fixture = FeatureFixture::new();
    let (features, labels) = (fixture.f32s("/logistic/train"), fixture.labels("/logistic/labels"));
    let train = Labelled { features: &features, labels: &labels };
    let none = Labelled { features: &[], labels: &[] };
    let (_, chosen, trials) = search(train, none, CLASSES, None, &|| false).unwrap().unwrap();
    let lowest = trials.iter().map(|t| t.val.loss).fold(f64::INFINITY, f64::min);
    let trial = trials.iter().find(|t| t.l2.to_bits() == chosen.to_bits()).unwrap();
    assert!(trial.val.loss.to_bits() == lowest.to_bits());
    assert!(trials.iter().all(|t| t.val.loss > lowest || t.l2 <= chosen), "of equals the stronger: {trials:?}");
    // By hand: the first image of each class held out, then the second, and so on.
    let mut seen = [0; CLASSES];
    let places: Vec<usize> = labels
        .iter()
        .map(|&label| {
            seen[label as usize] += 1;
            seen[label as usize] - 1
        })
        .collect();
    let folds = seen.into_iter().min().unwrap().min(5);
    let (mut right, mut loss) = (0., 0.);
    for fold in 0..folds {
        let part = |held: bool| -> (Vec<f32>, Vec<u32>) {
            let rows = (0..labels.len()).filter(|&i| (places[i] % folds == fold) == held);
            let width = train.width();
            let rows: Vec<usize> = rows.collect();
            let values = rows.iter().flat_map(|&i| features[i * width..(i + 1) * width].to_vec()).collect();
            (values, rows.iter().map(|&i| labels[i]).collect())
        };
        let [held, rest] = [part(true), part(false)];
        let [held, rest] = [&held, &rest].map(|(features, labels)| Labelled { features, labels });
        let (_, _, trials) = search(rest, held, CLASSES, Some(chosen), &|| false).unwrap().unwrap();
        let n = held.labels.len() as f64;
        (right, loss) = (right + trials[0].val.acc1 * n, loss + trials[0].val.loss * n);
    }
    let n = labels.len() as f64;
    assert!((trial.val.acc1 - right / n).abs() < 1e-12 && (trial.val.loss - loss / n).abs() < 1e-4 * loss / n);
    // Beside few validation images, too; a strength that is given is not looked for, so that nothing else is held out.
    let (_, _, beside) = search(train, train, CLASSES, None, &|| false).unwrap().unwrap();
    let [alone, both] = [&trials, &beside].map(|of| of.iter().find(|t| (t.l2 - 1.).abs() < f64::EPSILON).unwrap());
    let (_, _, given) = search(train, train, CLASSES, Some(1.), &|| false).unwrap().unwrap();
    let expected = f64::midpoint(alone.val.loss, given[0].val.loss);
    assert!((both.val.loss - expected).abs() < 1e-3 * expected, "{} {expected}", both.val.loss);
    assert!((alone.val.loss - given[0].val.loss).abs() > 1e-2, "what is held out tells something else");
    // One image a class leaves nothing to hold out: scikit-learn's default.
    let first: Vec<usize> = (0..CLASSES as u32).map(|c| labels.iter().position(|&l| l == c).unwrap()).collect();
    let width = train.width();
    let rows: Vec<f32> = first.iter().flat_map(|&i| features[i * width..(i + 1) * width].to_vec()).collect();
    let one = Labelled { features: &rows, labels: &[0, 1, 2] };
    let (_, chosen, trials) = search(one, none, CLASSES, None, &|| false).unwrap().unwrap();
    assert!(chosen.to_bits() == 1f64.to_bits() && trials.is_empty());
}

#[test]
fn class_means_are_numpy_s() {
    let fixture = FeatureFixture::new();
    let (features, labels) = (fixture.f32s("/ncm/train"), fixture.labels("/ncm/labels"));
    let means = class_means(Labelled { features: &features, labels: &labels }, CLASSES);
    assert_close(&means, &fixture.f64s("/ncm/means"), 1e-6, "means");
}

#[test]
fn probes_from_texts_have_pytorch_s_loss_and_gradients() {
    let fixture = FeatureFixture::new();
    let (features, labels) = (fixture.f32s("/probes/train"), fixture.labels("/probes/labels"));
    let total = labels.len() as f64;
    let penalty = fixture.penalty();
    assert_close(penalty.multipliers(), &fixture.f64s("/probes/multipliers"), 1e-6, "multipliers");
    for (place, weight) in [("start", "/texts"), ("elsewhere", "/probes/elsewhere")] {
        let (head, params) = fixture.head(fixture.f32s(weight), Group::Head);
        let loss =
            Loss::new(None, 0., None).gradients(&head.bind(&params).unwrap(), &features, &labels, total).unwrap();
        let mut output = StepOutput { loss: loss.loss, correct: loss.correct, gradients: loss.head, votes: Vec::new() };
        for method in ["zs-lp", "clap"] {
            if method == "clap" {
                penalty.add_to(&mut output, &params, total).unwrap();
            }
            let at = |name: &str| format!("/probes/{method} {place}/{name}");
            let (mean, expected) = (output.loss / total, fixture.number(&at("loss")));
            assert!((mean - expected).abs() <= 1e-6 * expected, "{method} {place}: {mean} {expected}");
            assert_close(&output.gradients[0], &fixture.f64s(&at("gradient")), 1e-6, method);
            assert!(output.gradients[1].is_empty());
        }
    }
}

/// What a loop of `method` over the given features ends with.
fn learned(method: Method, epochs: usize, params: Vec<Param>, train: Features, penalty: Option<Penalty>) -> Vec<Param> {
    let backbone = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/clip");
    let backbone = Arc::new(Backbone::open(backbone.to_str().unwrap(), &OpenOptions::default()).unwrap());
    let keys = if method.has_cache() { train.labels.len() } else { 0 };
    let spec = ClassifierSpec::OnEmbeddings { kind: HeadKind::Cosine, keys };
    let model = Model::new(backbone, &vpt_model::prompt::PartShapes::NONE, spec, CLASSES, 1).unwrap();
    let config = RunConfig { method, epochs: Some(epochs), ..RunConfig::default() };
    let config = config.with_options(|o| o.views.views = method.views().map(|_| 0));
    let facts = facts(train.labels.len());
    let plan = config.resolve(&facts).unwrap();
    let LearningRate::Value(lr) = plan.config.lr.unwrap() else { panic!("one rate") };
    let mut state = TrainState::new(params, plan.optimizer, RunProgress::new(lr));
    let dataset = Dataset {
        name: String::new(),
        layout: Layout::GENERATED,
        classes: Vec::new(),
        train: Vec::new(),
        val: Vec::new(),
        test: Vec::new(),
        split_note: String::new(),
    };
    let data = Arc::new(PartSource::Features(train));
    let setup = Setup {
        group: crate::train::process_group::ProcessGroup::default(),
        plan,
        model,
        dataset,
        texts: None,
        loss: Loss::new(None, 0., None),
        few_shot: None,
        train: data.clone(),
        val: data.clone(),
        test: data.clone(),
        digests: Default::default(),
        frozen_texts: None,
        penalty: None,
        content_hash: String::new(),
        fingerprint: crate::train::task::RunFingerprint::default(),
    };
    let mut task = Classify::new(setup, OneClass);
    task.beginning.penalty = penalty;
    let plan = StagePlan { stage: Stage::Whole, epochs };
    let fit = StageFit { task: &task, plan, until: epochs, train: &data, val: &data, epochs, blind: false };
    fit.run(&mut state, &mut NoWriter, &mut Silent).unwrap();
    state.params
}

#[test]
fn probes_from_texts_learn_what_pytorch_learns() {
    let fixture = FeatureFixture::new();
    let penalty = fixture.penalty();
    for (method, penalty) in [(Method::ZS_LP, None), (Method::CLAP, Some(penalty))] {
        let train =
            Features { values: fixture.f32s("/probes/train"), labels: fixture.labels("/probes/labels"), views: 1 };
        let (_, params) = fixture.head(fixture.f32s("/texts"), Group::Head);
        let found = learned(method, 5, params.clone(), train, penalty);
        assert_close(&found[0].values, &fixture.f64s(&format!("/probes/{method} learned")), 3e-6, &method.name());
        assert_eq!(found[1], params[1], "the scale is fixed");
    }
}

/// Tip-Adapter with these keys.
fn tip(fixture: &FeatureFixture, keys: Vec<f32>, [alpha, beta]: [f64; 2]) -> (Head, Vec<Param>) {
    let (head, mut params) = fixture.head(fixture.f32s("/texts"), Group::Fixed);
    let labels = fixture.labels("/tip/labels");
    params.extend(cache::params(keys, &labels, alpha, beta, Group::Head).unwrap());
    (Head { keys: labels.len(), ..head }, params)
}

#[test]
fn tip_adapter_is_the_reference_s_trained_or_not() {
    let fixture = FeatureFixture::new();
    let (views, labels) = (fixture.f32s("/tip/views"), fixture.labels("/tip/labels"));
    let (val, val_labels) = (fixture.f32s("/tip/val"), fixture.labels("/tip/val_labels"));
    let width = fixture.zero_shot().head().width;
    let (of_keys, seen) = views.split_at(3 * labels.len() * width);
    let keys = tip_adapter::keys(of_keys, labels.len(), width);
    assert_close(&keys, &fixture.f64s("/tip/keys"), 1e-6, "keys");
    let initial = [tip_adapter::ALPHA, tip_adapter::BETA];
    let (head, params) = tip(&fixture, keys, initial);
    let train = Features { values: seen.to_vec(), labels: labels.clone(), views: 4 };
    let trained = learned(Method::TIP_ADAPTER_F, 4, params.clone(), train, None);
    for (name, params) in [("", params), ("learned_", trained)] {
        let keys = &params::find(&params, cache::KEYS).unwrap().values;
        let logits = head.bind(&params).unwrap().logits(&val).unwrap();
        assert_close(&logits, &fixture.f64s(&format!("/tip/{name}logits")), 1e-6, name);
        if !name.is_empty() {
            assert_close(keys, &fixture.f64s("/tip/learned"), 1e-6, "keys");
        }
        let cache = TipCache { texts: &fixture.zero_shot(), keys, labels: &labels };
        let val = Labelled { features: &val, labels: &val_labels };
        let found = tip_adapter::choose(cache, val, 2).unwrap();
        let expected = |what: &str| fixture.number(&format!("/tip/{name}chosen/{what}"));
        for (what, value) in [("acc1", found.acc1), ("loss", found.loss), ("alpha", found.alpha), ("beta", found.beta)]
        {
            assert!((value - expected(what)).abs() < 1e-6, "{name}{what}: {value} {}", expected(what));
        }
    }
}

#[test]
fn tip_adapter_f_has_its_own_epsilon() {
    let facts = facts(5);
    let rates = |method| RunConfig { method, ..RunConfig::default() }.resolve(&facts).unwrap().rates(1.);
    assert!((rates(Method::TIP_ADAPTER_F).epsilon - 1e-4).abs() < f64::EPSILON);
    assert!((rates(Method::VPT_DEEP).epsilon - EPSILON).abs() < f64::EPSILON);
}
