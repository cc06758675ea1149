//! Task files that come back as they were, and those that are refused.

use crate::model::task_file::*;
use crate::{
    methods::Method,
    metrics::{Metrics, Scores},
    prompt::{
        PartShapes,
        text::{Beside, TextShape},
        tokens::TokenLayout,
        weights::{LoraShape, LoraTowers, WeightShape},
    },
};
use vpt_backbone::OpenOptions;
use vpt_base::random::stream;
use vpt_image::preprocess::Preprocess;

fn task() -> TaskFile {
    let layout = TokenLayout { start: 0, layers: 2, tokens: 3 };
    let head = Head { kind: HeadKind::Linear, width: 8, classes: 2, keys: 0, logit_bias: false };
    let mut rng = stream(1, "test", 0, 0);
    let mut params = vec![layout.init(8, 4, &mut rng).unwrap()];
    params.extend(head.init(&mut rng).unwrap());
    let backbone = BackboneId { name: "clip-nano".into(), hash: "ab".repeat(32), identity: None };
    let val = Metrics { acc1: 2. / 3., acc5: None, mean_per_class_recall: 0.1 + 0.2, loss: 1. / 7. };
    let meta = TaskMeta::new(
        Method::VPT_DEEP,
        PartShape::Tokens(layout).into(),
        HeadKind::Linear,
        backbone,
        vec!["cat".into(), "naïve \"dog\"".into()],
        64,
        Preprocess::clip(64),
        TaskMetrics { epoch: 7, val: Some(Scores::Classify(val)), test: None },
    );
    TaskFile { meta, params }
}

fn refused(task: &TaskFile) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("task.safetensors");
    task.save(&path).unwrap();
    TaskFile::open(&path).unwrap_err().to_string()
}

#[test]
fn a_task_comes_back_as_it_was_and_its_bytes_never_change() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("best.safetensors");
    task().save(&path).unwrap();
    let read = TaskFile::open(&path).unwrap();
    assert_eq!(read, task());
    assert_eq!(read.to_bytes().unwrap(), std::fs::read(&path).unwrap());
    assert_eq!(TaskFile::open(dir.path()).unwrap(), read, "a run folder stands for its best.safetensors");
}

#[test]
fn another_backbone_is_refused_and_both_are_named() {
    let nano = Backbone::open("clip-nano", &OpenOptions::default()).unwrap();
    let known = BackboneId { name: "clip-vit-b32".into(), ..BackboneId::of(&nano).unwrap() };
    let with = |backbone: BackboneId| {
        let mut task = task();
        task.meta.backbone = backbone;
        task.check_backbone(&nano).map_err(|error| error.to_string())
    };
    with(known.clone()).unwrap();
    with(BackboneId { hash: "ab".repeat(32), ..known.clone() }).unwrap();
    with(BackboneId { identity: None, ..known.clone() }).unwrap();
    let message = with(BackboneId { identity: None, hash: "ab".repeat(32), ..known.clone() }).unwrap_err();
    assert!(message.contains("clip-nano") && message.contains("clip-vit-b32 (abab"), "{message}");
    let mut identity = known.identity.clone().unwrap();
    identity.hash = "cd".repeat(32);
    identity.parts.config = "cd".repeat(8);
    identity.parts.tokenizer = String::new();
    let message = with(BackboneId { identity: Some(identity), ..known }).unwrap_err();
    assert!(message.ends_with("is not: another configuration, another tokenizer"), "{message}");
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let with = |change: fn(&mut TaskFile)| {
        let mut task = task();
        change(&mut task);
        refused(&task)
    };
    assert!(with(|t| t.meta.format = 3).contains("format 3; this program reads formats 1 and 2"));
    assert!(with(|t| t.meta.format = 2).contains("1 learned parts in a file of format 2"));
    assert!(with(|t| t.meta.classes.push("third".into())).contains("[2, 8] where [3, 8]"));
    assert!(with(|t| t.meta.image_size = 16_384).contains("image size 16384"));
    let bytes = |task: &TaskFile| String::from_utf8_lossy(&task.to_bytes().unwrap()).into_owned();
    let mut many = task();
    many.meta = many.meta.with_many_labels();
    assert!(bytes(&many).contains("multilabel") && !bytes(&task()).contains("multilabel"));
    for temperature in [0., -1., 1e-9, f64::MAX] {
        let mut task = task();
        task.meta.temperature = Some(temperature);
        assert!(refused(&task).contains("temperature of"), "{temperature}");
    }
    assert!(!bytes(&task()).contains("temperature") && (task().meta.temperature() - 1.).abs() < f64::EPSILON);
    assert!(with(|t| t.meta.classes.clear()).contains("0 classes"));
    assert!(with(|t| t.meta.head = HeadKind::Cosine).contains("no tensor `head.log_scale`"));
    assert!(with(|t| t.meta.parts = PartShapes::NONE).contains("`prompt.tokens` has no place"));
    assert!(with(|t| t.params.remove(0).values.clear()).contains("no tensor `prompt.tokens`"));
    assert!(with(|t| t.params.truncate(1)).contains("`head.weight` is missing"));
    assert!(with(|t| t.params[0].shape = vec![3, 2, 8]).contains("not what its metadata says"));
    let empty = TokenLayout { start: 0, layers: 0, tokens: 3 };
    let mut nothing = task();
    nothing.meta.parts = PartShape::Tokens(empty).into();
    assert!(refused(&nothing).contains("a prompt without tokens or layers"));
    let text = |beside| PartShapes::from(PartShape::Text(TextShape { tokens: 3, layers: 2, beside }));
    let mut linear = task();
    linear.meta.parts = text(Beside::Nothing);
    linear.params[0].name = "prompt.text".into();
    assert!(refused(&linear).contains("texts make a cosine head"));
    linear.meta.head = HeadKind::Cosine;
    linear.meta.parts = text(Beside::MetaNet);
    assert!(refused(&linear).contains("no tensor `prompt.meta.fc1.weight`"));
    linear.params[0].shape = vec![3, 2, 8];
    assert!(refused(&linear).contains("the shape [3, 2, 8] of `prompt.text` is not"));
    assert!(with(|t| t.params[1].values[3] = f32::INFINITY).contains("not finite"));
}

#[test]
fn tuned_weights_come_back_in_the_order_of_their_names() {
    let lora = LoraShape { rank: 2, alpha: 1., towers: LoraTowers::Both, texts: true };
    let weight = |name: &str, shape: &[usize], group| {
        Param::new(&format!("backbone.{name}"), shape, vec![0.5; shape.iter().product()], group).unwrap()
    };
    let tuned = |shape, params: Vec<Param>| {
        let mut file = task();
        file.meta.parts = PartShape::Weights(shape).into();
        file.params.splice(0..1, params);
        file
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("task.safetensors");
    for (shape, params) in [
        (
            WeightShape::Bias,
            vec![weight("a.bias", &[3], Group::PartBias(0)), weight("b.bias", &[2], Group::PartBias(0))],
        ),
        (
            WeightShape::Full,
            vec![weight("a.bias", &[3], Group::PartBias(0)), weight("a.weight", &[3, 2], Group::Part(0))],
        ),
        (
            WeightShape::Lora(LoraShape { texts: false, towers: LoraTowers::Image, ..lora }),
            vec![weight("q.lora_A", &[2, 8], Group::Part(0)), weight("q.lora_B", &[8, 2], Group::Part(0))],
        ),
    ] {
        let mut file = tuned(shape, params);
        file.save(&path).unwrap();
        let read = TaskFile::open(&path).unwrap();
        assert_eq!(read, file);
        let text = std::fs::read(&path).unwrap();
        assert_eq!(tensor_file::mentions(&path, OF_A_TOWER), shape == WeightShape::Full, "{}", text.len());
        file.params.swap(0, 1);
        file.save(&path).unwrap();
        assert_eq!(TaskFile::open(&path).unwrap(), read);
    }
    // The head that texts made was not learned.
    let mut by_texts = tuned(WeightShape::Lora(lora), vec![weight("q.lora_A", &[2, 8], Group::Part(0))]);
    by_texts.save(&path).unwrap();
    assert_eq!(vpt_base::params::count(&TaskFile::open(&path).unwrap().params), 16);
    for bad in [
        LoraShape { rank: 0, ..lora },
        LoraShape { rank: usize::MAX, ..lora },
        LoraShape { alpha: -1., ..lora },
        LoraShape { texts: false, ..lora },
    ] {
        by_texts.meta.parts = PartShape::Weights(WeightShape::Lora(bad)).into();
        assert!(refused(&by_texts).contains("task metadata: lora_"), "{bad:?}");
    }
    by_texts.meta.parts = PartShapes::NONE;
    assert!(refused(&by_texts).contains("`backbone.q.lora_A` has no place"));
}

#[test]
fn several_parts_are_a_list_in_a_format_of_their_own() {
    let mut several = task();
    several.meta.parts.push(PartShape::Weights(WeightShape::Bias));
    several.params.insert(1, Param::new("backbone.a.bias", &[2], vec![0.5; 2], Group::PartBias(1)).unwrap());
    assert!(refused(&several).contains("2 learned parts in a file of format 1"));
    several.meta.format = FORMAT_OF_SEVERAL;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("task.safetensors");
    several.save(&path).unwrap();
    assert_eq!(TaskFile::open(&path).unwrap(), several);
    let text = String::from_utf8_lossy(&several.to_bytes().unwrap()).into_owned();
    assert!(text.contains(r#"\"format\":2"#) && text.contains(r#"\"prompt\":[{\"input\":\"tokens\""#), "{text}");
    assert!(String::from_utf8_lossy(&task().to_bytes().unwrap()).contains(r#"\"prompt\":{\"input\":\"tokens\""#));

    let twice = PartShape::Tokens(TokenLayout { start: 0, layers: 1, tokens: 1 });
    let text = PartShape::Text(TextShape { tokens: 3, layers: 1, beside: Beside::Nothing });
    for (other, why) in [(twice, "two of one kind"), (text, "texts are learned alone")] {
        let mut bad = task();
        bad.meta.parts.push(other);
        bad.meta.format = FORMAT_OF_SEVERAL;
        assert!(refused(&bad).contains(why), "{why}");
    }
}

// A later program may know more formats, methods and fields, and keep tensors in another form.
#[test]
fn what_a_newer_program_wrote_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("task.safetensors");
    let refused = |change: fn(&mut Value)| {
        let mut meta = serde_json::to_value(task().meta).unwrap();
        change(&mut meta);
        let tensor = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, vec![1], &[0, 0]).unwrap();
        let meta = HashMap::from([(KEY.to_owned(), meta.to_string())]);
        std::fs::write(&path, safetensors::serialize([("prompt.tokens", tensor)], Some(meta)).unwrap()).unwrap();
        let of_meta = tensor_file::read(&path, KEY, "task file", tensor_file::MAX_BYTES, |meta| {
            check_format(meta, &path)?;
            parse_meta(meta.clone(), &path).map(drop)
        });
        of_meta.unwrap_err().to_string()
    };
    assert!(
        refused(|meta| meta["format"] = 3.into()).ends_with("reads formats 1 and 2: a newer version of vpt is needed")
    );
    assert!(
        refused(|meta| meta["format"] = 0.into()).ends_with("reads formats 1 and 2: an older version of vpt is needed")
    );
    assert!(refused(|meta| meta["format"] = "1".into()).ends_with("has no format number"));
    assert!(refused(|meta| meta["method"] = "lora9".into()).contains("`lora9` is not one of linear, zero-shot"));
    assert!(refused(|meta| meta["method"] = "vpt-deap".into()).ends_with("did you mean vpt-deep?"));
    assert!(refused(|meta| meta["text_context"] = 4.into()).contains("unknown field `text_context`"));
    // The whole file, whose tensor is not of this format either.
    assert!(TaskFile::open(&path).unwrap_err().to_string().contains("BF16, not F32"));
    refused(|meta| meta["format"] = 3.into());
    assert!(TaskFile::open(&path).unwrap_err().to_string().contains("is a task file of format 3"));
}

#[test]
fn a_checkpoint_of_something_else_is_no_task_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let other = vec![Tensor { name: "x".into(), shape: vec![1], values: vec![0.].into() }];
    std::fs::write(&path, tensor_file::to_bytes(other, "format", "pt".into()).unwrap()).unwrap();
    assert!(TaskFile::open(&path).unwrap_err().to_string().contains("not a task file"));
    let missing = dir.path().join("missing");
    assert!(TaskFile::open(&missing).unwrap_err().to_string().starts_with(&missing.display().to_string()));
}
