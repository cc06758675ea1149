use std::{collections::BTreeSet, fs, path::Path};

use vpt_model::methods::{MethodSpec, help};

use super::*;
use vpt_model::prompt::{
    PartShape, PartShapes,
    pixels::PixelShape,
    text::{Beside, TextShape},
    tokens::{PromptLayers, TokenLayout},
    weights::{LoraShape, LoraTowers, WeightShape},
};

const FACTS: RunContext = RunContext {
    task: Task::Classify,
    depth: 12,
    text_depth: Some(12),
    image_size: 224,
    train_images: 1000,
    shots: None,
};

fn config(method: Method) -> RunConfig {
    RunConfig { method, ..RunConfig::default() }
}

fn refusal(change: impl FnOnce(&mut RunConfig)) -> String {
    let mut config = RunConfig::default();
    change(&mut config);
    config.resolve(&FACTS).unwrap_err().to_string()
}

#[test]
fn an_empty_file_is_the_default_run() {
    assert_eq!(toml::from_str::<RunConfig>("").unwrap(), RunConfig::default());
}

#[test]
fn a_resolved_run_resolves_to_itself() {
    for &method in Method::ALL {
        let plan = config(method).resolve(&FACTS).unwrap();
        let text = plan.config.to_toml().unwrap();
        let again: RunConfig = toml::from_str(&text).unwrap();
        assert_eq!(again.resolve(&FACTS).unwrap(), plan, "{text}");
    }
}

#[test]
fn prompts_follow_method_depth_and_image_size() {
    let prompt = |config: RunConfig| config.resolve(&FACTS).unwrap().parts;
    let tokens = |start, layers, tokens| PartShapes::from(PartShape::Tokens(TokenLayout { start, layers, tokens }));
    let dropout = |method| config(method).resolve(&FACTS).unwrap().dropout()[0];
    assert_eq!(prompt(config(Method::LINEAR)), PartShapes::NONE);
    assert_eq!(prompt(config(Method::VPT_SHALLOW)), tokens(0, 1, 10));
    assert_eq!(prompt(config(Method::VPT_DEEP)), tokens(0, 12, 10));
    let last = RunConfig::default().with_options(|o| {
        (o.tokens.prompt_layers, o.tokens.prompt_tokens) = (Some(PromptLayers::Last(3)), Some(4));
    });
    assert_eq!(prompt(last), tokens(9, 3, 4));
    assert_eq!(prompt(config(Method::VP_PAD)), PartShape::Pixels(PixelShape::Pad { width: 30 }).into());
    assert_eq!(prompt(config(Method::VP_FRAME)), PartShape::Pixels(PixelShape::Frame { inner: 180 }).into());
    assert_eq!((dropout(Method::VPT_SHALLOW), dropout(Method::VPT_DEEP)), (0., 0.1));
}

#[test]
fn low_rank_changes_are_clip_lora_s_where_texts_tell_the_classes() {
    let facts = RunContext { text_depth: Some(12), shots: Some(4), train_images: 40, ..FACTS };
    let lora = |change: fn(&mut RunConfig), facts: RunContext| {
        let mut config = config(Method::LORA);
        change(&mut config);
        config.resolve(&facts)
    };
    let shape = |plan: &Plan| match plan.parts.weights() {
        Some(shape) => shape.lora().unwrap(),
        other => panic!("{other:?}"),
    };
    let plan = lora(|_| {}, facts).unwrap();
    assert_eq!(shape(&plan), LoraShape { rank: 2, alpha: 1., towers: LoraTowers::Both, texts: true });
    // 500 steps for each of 4 images a class; two steps an epoch of 40 images.
    assert_eq!((plan.epochs, plan.total_steps, plan.warmup_steps, plan.dropout()[0]), (1000, 2000, 0, 0.25));
    assert_eq!((plan.head, plan.config.head), (HeadKind::Cosine, None));
    let rates = plan.rates(2e-4);
    assert_eq!((plan.learning_rates[0], rates.parts[0].decay, plan.batch_size), (2e-4, 0.01, 32));
    let without = RunContext { text_depth: None, ..facts };
    for (plan, towers) in [
        (lora(|_| {}, without), LoraTowers::Image),
        (lora(|c| c.head = Some(HeadKind::Cosine), facts), LoraTowers::Image),
        (lora(|_| {}, RunContext { task: Task::Multilabel, shots: None, ..facts }), LoraTowers::Image),
    ] {
        let plan = plan.unwrap();
        assert_eq!((shape(&plan).towers, shape(&plan).texts, plan.config.head.is_some()), (towers, false, true));
        assert!(plan.config.templates.is_none());
    }
    let refusal = |change, facts| lora(change, facts).unwrap_err().to_string();
    assert!(
        refusal(|c| c.options.lora.lora_towers = Some(LoraTowers::Both), without)
            .starts_with("lora_towers: the backbone has no")
    );
    let message =
        refusal(|c| (c.options.lora.lora_towers, c.head) = (Some(LoraTowers::Text), Some(HeadKind::Linear)), facts);
    assert!(message.starts_with("lora_towers: text changes texts"), "{message}");
    assert!(refusal(|c| c.head_lr = Some(0.1), facts).starts_with("head_lr: texts tell the classes"));
    assert!(refusal(|c| c.templates = Some(vec!["a {}".into()]), without).starts_with("templates: the classes are"));
    assert!(refusal(|c| c.options.lora.lora_rank = Some(0), facts).starts_with("lora_rank: 0 is not between 1 and"));
    assert!(refusal(|c| c.options.lora.lora_alpha = Some(-1.), facts).starts_with("lora_alpha: -1 is not"));
    assert!(refusal(|c| c.options.lora.lora_dropout = Some(1.), facts).starts_with("lora_dropout: 1 is not a share"));
    let full = RunConfig { max_memory: Some(1 << 30), ..config(Method::FULL) };
    assert!(full.resolve(&facts).unwrap_err().to_string().starts_with("max_memory: not with method full"));
    let detect = RunContext { task: Task::Detect, ..FACTS };
    for method in [Method::BIAS, Method::LORA, Method::FULL] {
        let plan = config(method).resolve(&detect).unwrap();
        assert!(plan.dense.is_some() && plan.parts.weights().is_some(), "{method}: {plan:?}");
    }
    let other = config(Method::BIAS).with_options(|o| o.lora.lora_rank = Some(2));
    assert_eq!(other.validate().unwrap_err().to_string(), "lora_rank: method bias has no low-rank change");
}

#[test]
fn a_detector_s_images_are_zoomed_while_prompts_learn_unless_told_otherwise() {
    let facts = RunContext { task: Task::Detect, ..FACTS };
    let zoom = |method, scale_jitter| {
        let plan = RunConfig { scale_jitter, ..config(method) }.resolve(&facts).unwrap();
        let again: RunConfig = toml::from_str(&plan.config.to_toml().unwrap()).unwrap();
        assert_eq!(again.resolve(&facts).unwrap(), plan);
        plan.detect.unwrap().augment.scale
    };
    assert_eq!(zoom(Method::VPT_DEEP, None), Some([0.8, 1.25]));
    assert_eq!(zoom(Method::VPT_DEEP, Some([1., 1.])), None);
    assert_eq!(zoom(Method::LINEAR, None), None);
    assert_eq!(zoom(Method::LINEAR, Some([0.5, 2.])), Some([0.5, 2.]));
}

#[test]
fn a_detector_s_head_learns_alone_longer_where_it_sees_views_that_are_computed_once() {
    let facts = RunContext { task: Task::Detect, train_images: 200, ..FACTS };
    let planned = |config: RunConfig| {
        let plan = config.resolve(&facts).unwrap();
        let dense = plan.dense.unwrap();
        (plan.batch_size, plan.epochs, dense.head_epochs, dense.cached_views)
    };
    let plan = |method, cached_views| planned(RunConfig { cached_views, ..config(method) });
    assert_eq!(plan(Method::VPT_DEEP, None), (4, 54, 40, 8));
    assert_eq!(plan(Method::VPT_DEEP, Some(0)), (4, 54, 27, 0));
    // Weights that are tuned have no use for what is computed once.
    assert_eq!(plan(Method::BIAS, None), (4, 54, 27, 8));
    assert_eq!(plan(Method::LINEAR, None), (4, 54, 54, 8));
    // A short run sees each view too seldom.
    let short = |epochs| planned(RunConfig { epochs: Some(epochs), ..config(Method::VPT_DEEP) });
    assert_eq!((short(20), short(7)), ((4, 20, 15, 5), (4, 7, 3, 0)));
}

#[test]
fn masks_are_seen_in_eight_views_unless_told_otherwise_and_runs_of_earlier_versions_as_they_are() {
    let facts = RunContext { task: Task::Segment, ..FACTS };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    for method in [Method::VPT_DEEP, Method::LINEAR] {
        let plan = config(method).resolve(&facts).unwrap();
        assert_eq!((plan.segment.unwrap().augment.scale, plan.dense.unwrap().cached_views), (Some([0.75, 1.5]), 8));
        let still = RunConfig { scale_jitter: Some([1.; 2]), cached_views: Some(0), ..config(method) };
        let plan = still.resolve(&facts).unwrap();
        assert_eq!((plan.segment.unwrap().augment.scale, plan.dense.unwrap().cached_views), (None, 0));
        let text = plan.config.to_toml().unwrap();
        let again = |text: &str| {
            fs::write(&path, text).unwrap();
            RunConfig::load(&path).unwrap().resolve(&facts).unwrap()
        };
        assert_eq!(again(&text), plan);
        // An earlier version said nothing of views, nor of the zoom of a head alone.
        let earlier: String = text
            .split_inclusive('\n')
            .filter(|line| !line.starts_with("cached_views"))
            .filter(|line| method != Method::LINEAR || !line.starts_with("scale_jitter"))
            .collect();
        assert!(earlier.len() < text.len());
        assert_eq!(again(&earlier), plan);
        let hashed = RunConfig { keep_better: Some(false), ..plan.config }.identity().unwrap();
        assert!(!hashed.contains("cached_views"), "{hashed}");
        assert_eq!(hashed.contains("scale_jitter"), method == Method::VPT_DEEP, "{hashed}");
    }
}

#[test]
fn a_wrong_value_names_its_flag() {
    type Change = fn(&mut RunConfig);
    let cases: [(Change, &str); 26] = [
        (|c| c.options.tokens.prompt_tokens = Some(0), "prompt_tokens: must be at least 1"),
        (|c| c.options.tokens.prompt_tokens = Some(1001), "prompt_tokens: more than 1000"),
        (
            |c| c.options.tokens.prompt_layers = Some(PromptLayers::First(13)),
            "prompt_layers: first:13 does not fit a backbone of 12 blocks: take 1 to 12",
        ),
        (|c| c.options.tokens.prompt_dropout = Some(1.), "prompt_dropout: 1 is not a share from 0 to below 1"),
        (|c| c.lr = Some(LearningRate::Value(f64::NAN)), "lr: NaN is not a number above 0"),
        (|c| c.lr = Some(LearningRate::Value(-1.)), "lr: -1 is not a number above 0"),
        (|c| c.head_lr = Some(f64::INFINITY), "head_lr: inf is not a number above 0"),
        (|c| c.weight_decay = Some(-0.1), "weight_decay: -0.1 is not a number of 0 or more"),
        (|c| c.warmup = Some(2.), "warmup: 2 is not a share between 0 and 1"),
        (|c| c.label_smoothing = f32::NAN, "label_smoothing: NaN is not a share from 0 to below 1"),
        (|c| c.clip_norm = Some(0.), "clip_norm: 0 is not a number above 0"),
        (|c| c.epochs = Some(0), "epochs: must be at least 1"),
        (|c| c.epochs = Some(usize::MAX), "epochs: 18446744073709551615 are too many"),
        (|c| c.batch_size = Some(0), "batch_size: must be at least 1"),
        (|c| c.shots = Some(0), "shots: must be at least 1"),
        (|c| c.seed = u64::MAX, "seed: 18446744073709551615 is larger than 9223372036854775807"),
        (|c| c.split_seed = Some(u64::MAX), "split_seed: 18446744073709551615 is larger than 9223372036854775807"),
        (
            |c| (c.shots, c.draw) = (Some(2), Some("draw.json".into())),
            "draw: its file says which images are learned from; leave out shots",
        ),
        (
            |c| c.random_resized_crop = Some([0.9, 0.5]),
            "random_resized_crop: 0.9 to 0.5 are not shares of the area with 0 < least <= most <= 1",
        ),
        (|c| c.options.pad.pad = Some(8), "pad: method vpt-deep has no border"),
        (
            |c| c.options.texts.context_init = Some("a".into()),
            "context_init: method vpt-deep has no words of texts to learn",
        ),
        (
            |c| c.templates = Some(vec!["{}".into()]),
            "templates: only for head text and zero-shot, zs-lp, clap, tip-adapter, tip-adapter-f, promptsrc, lora, not linear",
        ),
        (
            |c| (c.method, c.head) = (Method::COOP, Some(HeadKind::Text)),
            "head: text is not for method coop, which has a head of its own",
        ),
        (
            |c| (c.method, c.options.tokens.prompt_layers) = (Method::COOP, Some(PromptLayers::All)),
            "prompt_layers: method coop has no choice of blocks",
        ),
        (
            |c| (c.method, c.options.tokens.prompt_tokens) = (Method::LINEAR, Some(8)),
            "prompt_tokens: method linear has no prompt tokens",
        ),
        (
            |c| (c.method, c.flip) = (Method::LINEAR, Some(true)),
            "flip: method linear computes the features of an image once, without augmentation",
        ),
    ];
    for (change, expected) in cases {
        assert_eq!(refusal(change), expected);
    }
}

#[test]
fn texts_are_learned_as_published() {
    let plan = |method, shots| RunConfig { shots, ..config(method) }.resolve(&RunContext { shots, ..FACTS }).unwrap();
    let layout = |tokens| TokenLayout { start: 0, layers: 9, tokens };
    for (method, tokens, layers, beside, lr, batch, epochs) in [
        (Method::COOP, 16, 1, Beside::Nothing, 2e-3, 32, [50, 100, 200]),
        (Method::COCOOP, 4, 1, Beside::MetaNet, 2e-3, 1, [10; 3]),
        (Method::IVLP, 4, 9, Beside::Tokens(layout(4)), 2.5e-3, 4, [50; 3]),
        (Method::MAPLE, 2, 9, Beside::Map, 3.5e-3, 4, [50; 3]),
        (Method::PROMPTSRC, 4, 9, Beside::Tokens(layout(4)), 2.5e-3, 4, [50; 3]),
    ] {
        for (shots, epochs) in [1, 4, 16].into_iter().zip(epochs) {
            let plan = plan(method, Some(shots));
            assert_eq!(plan.parts.text(), Some(TextShape { tokens, layers, beside }));
            assert_eq!((plan.learning_rates.as_slice(), plan.batch_size, plan.epochs), (&[lr][..], batch, epochs));
            assert_eq!((plan.optimizer, plan.config.weight_decay), (OptimizerKind::Sgd, Some(5e-4)));
            // The first epoch at a constant 1e-5, then PyTorch's cosine by epochs.
            let course = plan.course(epochs, 5);
            let rates: Vec<f64> = (0..11).map(|step| lr * course.factor(step)).collect();
            let third = lr * 0.5 * (1. + (std::f64::consts::PI / epochs as f64).cos());
            for (step, rate) in rates.iter().enumerate() {
                let expected = [1e-5, lr, third][step / 5];
                assert!((rate - expected).abs() < 1e-12, "{method} step {step}: {rate}, not {expected}");
            }
            assert!(plan.course(1, 5).factor(0) > 0.5, "a single epoch learns");
            assert_eq!((plan.config.warmup, plan.warmup_steps), (None, 0));
            assert_eq!(plan.config.templates.is_some(), method == Method::PROMPTSRC);
            assert_eq!(plan.config.head, Some(HeadKind::Cosine));
            let words = (method != Method::COOP).then_some("a photo of a");
            assert_eq!(plan.context_words(), words);
            assert_eq!(plan.config.resolve(&FACTS).unwrap(), plan, "{method}");
            assert_eq!(plan.config.with_method(Method::LINEAR).head, None);
        }
    }
    // Towers that are less deep, and of two depths.
    let facts = RunContext { depth: 4, text_depth: Some(3), ..FACTS };
    let shape = config(Method::IVLP).resolve(&facts).unwrap().parts.text().unwrap();
    assert_eq!((shape.layers, shape.image_tokens().unwrap().layers), (2, 3));
    let shape = config(Method::MAPLE).resolve(&facts).unwrap().parts.text().unwrap();
    assert_eq!(shape.image_tokens().unwrap().layers, 2);
    // As many vectors as words.
    let words = Some("this is a picture of one".to_owned());
    let coop = config(Method::COOP).with_options(|o| o.texts.context_init = words).resolve(&FACTS).unwrap();
    assert_eq!(
        (coop.config.options.tokens.prompt_tokens, coop.context_words()),
        (Some(6), Some("this is a picture of one"))
    );
    let many = config(Method::IVLP).with_options(|o| o.tokens.prompt_tokens = Some(5)).resolve(&FACTS).unwrap();
    assert_eq!(many.context_words(), None);

    let refusal = |config: RunConfig, facts: &RunContext| config.resolve(facts).unwrap_err().to_string();
    let message = refusal(config(Method::COOP), &RunContext { text_depth: None, ..FACTS });
    assert_eq!(message, "method: coop learns texts, and the backbone has no text tower; take a CLIP");
    let layers = |layers| config(Method::MAPLE).with_options(|o| o.tokens.prompt_layers = Some(layers));
    assert!(refusal(layers(PromptLayers::Last(2)), &FACTS).contains("maple prompts the first blocks"));
    assert!(refusal(layers(PromptLayers::First(4)), &facts).contains("a backbone of 3 blocks"));
    let head_lr = RunConfig { head_lr: Some(0.1), ..config(Method::COOP) };
    assert!(refusal(head_lr, &FACTS).starts_with("head_lr: method coop has no prompt beside its head"));
    let template = |text: &str| RunConfig { templates: Some(vec![text.to_owned()]), ..config(Method::PROMPTSRC) };
    assert!(template("a {}").validate().is_ok());
    assert_eq!(refusal(template("a dog"), &FACTS), "templates: template 1 ('a dog') has no {} for the class name");
}

#[test]
fn flags_of_other_tasks_are_refused() {
    let facts = RunContext { task: Task::Multilabel, ..FACTS };
    let refusal = |config: RunConfig| config.resolve(&facts).unwrap_err().to_string();
    let not = "not for multi-label classification";
    assert_eq!(refusal(RunConfig { shots: Some(4), ..RunConfig::default() }), format!("shots: {not}"));
    assert_eq!(refusal(RunConfig { label_smoothing: 0.1, ..RunConfig::default() }), format!("label_smoothing: {not}"));
    let message = refusal(RunConfig { mosaic: Some(0.5), ..RunConfig::default() });
    assert_eq!(message, "mosaic: only for detection, from data with boxes");
    for &method in Method::ALL {
        if method.on_embeddings() || method.has_texts() {
            assert_eq!(refusal(config(method)), format!("method: {method} is {not}"));
            continue;
        }
        let plan = config(method).resolve(&facts).unwrap();
        assert_eq!(plan.config.task, Task::Multilabel);
        assert_eq!(plan.config.resolve(&facts).unwrap(), plan, "{method}");
    }
}

#[test]
fn flags_of_other_methods_on_features_are_refused() {
    type MethodChange = fn(&mut RunConfig);
    let cases: [(Method, MethodChange, &str); 11] = [
        (Method::NCM, |c| c.lr = Some(LearningRate::Auto), "lr: method ncm learns nothing in steps"),
        (Method::ZERO_SHOT, |c| c.epochs = Some(3), "epochs: method zero-shot learns nothing in steps"),
        (
            Method::LINEAR,
            |c| (c.options.probe.solver, c.epochs) = (Some(Solver::Lbfgs), Some(3)),
            "epochs: not with solver lbfgs",
        ),
        (
            Method::LINEAR,
            |c| c.options.probe.l2 = Some(1.),
            "l2: method linear has no such penalty without solver lbfgs",
        ),
        (
            Method::ZS_LP,
            |c| c.options.probe.solver = Some(Solver::Sgd),
            "solver: method zs-lp has no choice of solvers",
        ),
        (
            Method::CLAP,
            |c| c.head = Some(HeadKind::Linear),
            "head: linear is not for method clap, which has a head of its own",
        ),
        (
            Method::NCM,
            |c| c.templates = Some(vec!["{}".into()]),
            "templates: only for head text and zero-shot, zs-lp, clap, tip-adapter, tip-adapter-f, promptsrc, lora, not ncm",
        ),
        (
            Method::LINEAR,
            |c| (c.options.probe.solver, c.head) = (Some(Solver::Lbfgs), Some(HeadKind::Text)),
            "head: text is not for solver lbfgs, which fits a linear head",
        ),
        (Method::LINEAR, |c| c.options.views.views = Some(3), "views: method linear has no augmented views"),
        (
            Method::TIP_ADAPTER,
            |c| c.options.cache.alpha = Some(1.),
            "alpha: alpha and beta are given together or not at all",
        ),
        (Method::TIP_ADAPTER, |c| c.options.views.views = Some(1001), "views: more than 1000"),
    ];
    for (method, change, expected) in cases {
        let mut config = config(method);
        change(&mut config);
        assert_eq!(config.resolve(&FACTS).unwrap_err().to_string(), expected);
    }
}

#[test]
fn published_schedules_are_the_defaults() {
    let plan = |method| config(method).resolve(&RunContext { train_images: 160, ..FACTS }).unwrap();
    let clap = plan(Method::CLAP);
    assert_eq!((clap.epochs, clap.batch_size, clap.views, clap.steps_per_epoch()), (300, 256, 20, 13));
    assert_eq!((clap.optimizer, clap.learning_rates, clap.head), (OptimizerKind::Sgd, vec![0.1], HeadKind::Cosine));
    let tip = plan(Method::TIP_ADAPTER_F);
    assert_eq!((tip.epochs, tip.batch_size, tip.views, tip.warmup_steps), (20, 160, 10, 0));
    assert_eq!((tip.optimizer, tip.learning_rates), (OptimizerKind::Adamw, vec![1e-3]));
}

#[test]
fn a_wrong_file_names_line_and_field() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    let load = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let message = RunConfig::load(&path).unwrap_err().to_string();
        assert!(!message.contains('\n'), "{message}");
        message.strip_prefix(&format!("{}: ", path.display())).unwrap().to_owned()
    };
    assert_eq!(load("seed = 3\nepoch = 4\n"), "line 2: unknown field `epoch`; did you mean epochs?");
    assert!(load("resnet = 3\n").starts_with("line 1: unknown field `resnet`, expected one of `backbone`"));
    assert!(load("method = \"vpt-medium\"\n").contains("`vpt-medium` is not one of linear, zero-shot"));
    assert!(load("lr = \"fast\"\n").contains("expected a number or \"auto\""));
    assert!(load("prompt_layers = \"middle\"").contains("all, first:K, last:K"));
    assert!(load("seed = ").starts_with("line 1: "));
    std::fs::write(&path, b"data = \"\xff\"").unwrap();
    assert!(RunConfig::load(&path).unwrap_err().to_string().ends_with("not UTF-8 text"));
}

#[test]
fn learning_rates_are_numbers_or_auto() {
    let lr = |text: &str| toml::from_str::<RunConfig>(text).unwrap().lr.unwrap();
    assert_eq!(lr("lr = 1"), LearningRate::Value(1.));
    assert_eq!(lr("lr = 2.5e-3"), LearningRate::Value(2.5e-3));
    assert_eq!(lr("lr = \"auto\""), LearningRate::Auto);
    assert_eq!("auto".parse::<LearningRate>().unwrap(), LearningRate::Auto);
    assert!("fast".parse::<LearningRate>().is_err());
    let auto = RunConfig { lr: Some(LearningRate::Auto), ..RunConfig::default() };
    assert!(auto.resolve(&FACTS).unwrap().learning_rates.len() > 1);
}

#[test]
fn tiles_are_a_number_or_auto_which_the_data_makes_one() {
    let read = |text: &str| toml::from_str::<RunConfig>(text).map_err(|error| error.message().to_owned());
    let auto = read("tiles = \"auto\"").unwrap();
    assert_eq!(auto.tiles, Some(TileCount::Auto));
    assert_eq!(read(&auto.to_toml().unwrap()).unwrap(), auto);
    let four = read("tiles = 4").unwrap();
    assert_eq!(four.tiles, Some(TileCount::Value(4)));
    assert!(four.to_toml().unwrap().ends_with("tiles = 4\n"), "as in files of earlier versions");
    for config in [&auto, &four] {
        let json = serde_json::to_string(config).unwrap();
        assert_eq!(&serde_json::from_str::<RunConfig>(&json).unwrap(), config, "{json}");
    }
    for wrong in ["\"4\"", "4.5", "-4", "true", "[4]"] {
        assert!(read(&format!("tiles = {wrong}")).is_err(), "{wrong}");
    }
    assert!(read("tiles = \"x\"").unwrap_err().contains("expected a number or \"auto\""));
    let facts = |task| RunContext { task, ..FACTS };
    for task in [Task::Detect, Task::Segment] {
        assert!(four.resolve(&facts(task)).is_ok());
        let message = auto.resolve(&facts(task)).unwrap_err().to_string();
        assert!(message.starts_with("tiles: auto: the training images choose"), "{message}");
    }
    let message = auto.resolve(&FACTS).unwrap_err().to_string();
    assert_eq!(message, "tiles: only for detection and segmentation, from data with boxes or masks");
    let none = RunConfig { tiles: Some(TileCount::Value(0)), ..RunConfig::default() };
    assert_eq!(none.validate().unwrap_err().to_string(), "tiles: must be at least 1");
}

#[test]
fn a_head_that_begins_as_the_probe_has_few_epochs_and_low_rates() {
    let facts = RunContext { train_images: 160, ..FACTS };
    let plan = |head_init, method| RunConfig { head_init, ..config(method) }.resolve(&facts).unwrap();
    let of = |plan: Plan| (plan.epochs, plan.learning_rates[0], plan.config.head_lr, plan.keep_better);
    for (method, epochs, lr) in [
        (Method::VPT_DEEP, 24, 2e-2),
        (Method::VPT_SHALLOW, 24, 2e-2),
        (Method::BIAS, 12, 3e-4),
        (Method::NORM, 12, 3e-4),
    ] {
        assert_eq!(of(plan(None, method)), (epochs, lr, Some(1e-4), true), "{method}");
        let random = of(plan(Some(HeadInit::Random), method));
        assert_eq!((random.0, random.2), (100, Some(1e-3)), "{method}");
    }
    for (train_images, lr) in [(64, 5e-3), (65, 2e-2)] {
        let few = config(Method::VPT_DEEP).resolve(&RunContext { train_images, ..FACTS }).unwrap();
        assert_eq!(of(few), (24, lr, Some(1e-4), true), "{train_images} images");
    }
    let large = RunContext { train_images: 60_000, ..FACTS };
    let plan = RunConfig::default().resolve(&large).unwrap();
    assert_eq!((plan.epochs, plan.head_init), (2, Some(HeadInit::Probe)));
    for (head, expected) in [(HeadKind::Text, HeadInit::Text), (HeadKind::Cosine, HeadInit::Random)] {
        let plan = RunConfig { head: Some(head), ..RunConfig::default() }.resolve(&facts).unwrap();
        assert_eq!((plan.head_init, plan.epochs), (Some(expected), 100), "{head}");
    }
}

#[test]
fn few_shots_count_the_last_epoch_unless_told_otherwise() {
    let select = |shots, select| RunConfig { shots, select, ..RunConfig::default() }.resolve(&FACTS).unwrap().select;
    assert_eq!(select(None, None), Select::Best);
    assert_eq!(select(Some(4), None), Select::Last);
    assert_eq!(select(Some(4), Some(Select::Best)), Select::Best);
}

#[test]
fn another_method_leaves_open_what_was_said_for_the_old_one() {
    let deep = RunConfig { seed: 7, ..config(Method::VPT_DEEP) }.resolve(&FACTS).unwrap().config;
    let linear = deep.with_method(Method::LINEAR).resolve(&FACTS).unwrap();
    assert_eq!(linear.config.seed, 7);
    assert_eq!(linear, RunConfig { seed: 7, ..config(Method::LINEAR) }.resolve(&FACTS).unwrap());
}

#[test]
fn steps_cover_every_image_and_small_sets_get_more_epochs() {
    let plan = |train_images| RunConfig::default().resolve(&RunContext { train_images, ..FACTS }).unwrap();
    assert_eq!(plan(33).steps_per_epoch(), 2);
    assert_eq!(plan(1).batch_size, 1);
    assert!(plan(100).epochs > plan(10_000).epochs);
    assert!(RunConfig::default().resolve(&RunContext { train_images: 0, ..FACTS }).is_err());
}

#[test]
fn pixels_with_a_label_map_are_learned_as_in_ilm_vp() {
    for &map in LabelMap::ALL {
        let mapped = RunConfig { label_map: Some(map), ..config(Method::VP_FRAME) };
        for shots in [None, Some(1), Some(16)] {
            let plan = RunConfig { shots, ..mapped.clone() }.resolve(&RunContext { shots, ..FACTS }).unwrap();
            assert_eq!((plan.epochs, plan.learning_rates.as_slice()), (200, &[1e-2][..]));
            assert_eq!((plan.optimizer, plan.config.weight_decay), (OptimizerKind::Adamw, Some(0.)), "which is Adam");
            assert_eq!((plan.config.head, plan.config.head_lr, plan.config.label_map), (None, None, Some(map)));
            assert_eq!(plan.config.resolve(&RunContext { shots, ..FACTS }).unwrap(), plan);
        }
        let inner =
            |image_size| mapped.resolve(&RunContext { image_size, ..FACTS }).unwrap().config.options.frame.inner_size;
        assert_eq!([224, 64, 32, 384].map(inner), [128, 38, 20, 220].map(Some));
        let of_shapes = mapped.resolve(&RunContext { task: Task::Multilabel, ..FACTS }).unwrap_err().to_string();
        assert_eq!(of_shapes, "label_map: not for multi-label classification");
        assert_eq!(mapped.clone().with_method(Method::VP_PAD).label_map, None);
    }
    assert_eq!(config(Method::VP_FRAME).resolve(&FACTS).unwrap().config.options.frame.inner_size, Some(180));
}

#[test]
fn methods_at_once_keep_their_own_rates_unless_told_otherwise() {
    let several = |change: fn(&mut RunConfig)| {
        let mut config = config("lora,vpt-deep,vp-pad".parse().unwrap());
        change(&mut config);
        let plan = config.resolve(&FACTS).unwrap();
        let again: RunConfig = toml::from_str(&plan.config.to_toml().unwrap()).unwrap();
        assert_eq!(again.resolve(&FACTS).unwrap(), plan);
        plan
    };
    let plan = several(|_| {});
    let kinds = (plan.parts.tokens(), plan.parts.pixels(), plan.parts.weights());
    let lora = LoraShape { rank: 2, alpha: 1., towers: LoraTowers::Image, texts: false };
    let layout = TokenLayout { start: 0, layers: 12, tokens: 10 };
    assert_eq!(kinds, (Some(layout), Some(PixelShape::Pad { width: 30 }), Some(WeightShape::Lora(lora))));
    assert_eq!(plan.dropout(), [0.1, 0., 0.25]);
    let rates = plan.rates(plan.learning_rates[0]).parts;
    for (found, (lr, decay)) in rates.iter().zip([(2e-2, 1e-2), (2e-2, 0.), (2e-4, 1e-2)]) {
        assert!((found.lr - lr).abs() < 1e-12 && (found.decay - decay).abs() < 1e-12, "{found:?}");
    }
    assert_eq!((plan.head, plan.config.lr, plan.config.weight_decay), (HeadKind::Linear, None, None));
    let said = several(|c| (c.lr, c.weight_decay) = (Some(LearningRate::Value(0.1)), Some(0.5)));
    assert!(said.rates(0.1).parts.iter().all(|rate| (rate.lr, rate.decay) == (0.1, 0.5)));
    let auto = several(|c| c.lr = Some(LearningRate::Auto));
    assert!((auto.rates(2e-2).parts[2].lr - 2e-4).abs() < 1e-12);
    // With a random head those of the papers, which configurations of earlier versions leave open.
    let random = several(|c| c.head_init = Some(HeadInit::Random)).rates(5e-3).parts;
    assert!((random[0].lr - 5e-3).abs() < 1e-12 && (random[2].lr - 2e-4).abs() < 1e-12, "{random:?}");
    let mapped = RunConfig { label_map: Some(LabelMap::Ilm), ..config("vp-pad,bias".parse().unwrap()) };
    assert!(mapped.validate().unwrap_err().to_string().contains("learns more than prompt pixels"));
}

#[test]
fn options_that_methods_name_are_settings() {
    let known: BTreeSet<&str> = RunConfig::all().iter().map(|setting| setting.name).collect();
    for spec in Method::ALL.iter().flat_map(|method| method.specs()) {
        for option in spec.options.iter().copied().flatten() {
            assert!(known.contains(option), "{}: {option}", spec.name);
        }
    }
    for setting in MethodOptions::all() {
        assert!(!setting.lacking.is_empty(), "{}: methods without it say nothing", setting.name);
        assert!(!help::methods_with(setting.name).is_empty(), "{}: no method has it", setting.name);
    }
}

#[test]
fn the_readme_has_a_row_for_each_method() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")).unwrap();
    let flags = |text: &str| {
        let settings = RunConfig::all();
        settings.iter().fold(text.to_owned(), |text, setting| {
            text.replace(&format!("`{}`", setting.name), &format!("`--{}`", setting.name.replace('_', "-")))
        })
    };
    let rows = Method::ALL.iter().map(|method| {
        let MethodSpec { name, summary, source, .. } = method.leading();
        let default = if *method == Method::default() { " (default)" } else { "" };
        format!("| `{name}`{default} | {} | {source} |\n", flags(summary)).replace("|  |", "| |")
    });
    let table: String = rows.collect();
    assert!(readme.contains(&table), "README.md should have these rows:\n{table}");
}
