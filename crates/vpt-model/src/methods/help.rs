//! What help texts say of methods and of their defaults, made of the table. Settings are named in backticks.

use super::{
    Defaults, Epochs, Method, MethodHead, MethodOptions, MethodRequest, MethodSpec, RunContext, Task, Texts, Warmup,
    after_probe, coop, maple, texts, tokens,
};
use crate::head::{HeadKind, LabelMap};

/// What each method learns beside the head, by families.
pub fn methods() -> Vec<String> {
    let mut paragraphs: Vec<String> = Vec::new();
    let mut family = None;
    for spec in Method::ALL.iter().map(|method| method.leading()) {
        let line = format!("{}: {}.", spec.name, spec.summary);
        let same = family == Some(spec.family.intro);
        match paragraphs.last_mut().filter(|_| same) {
            Some(paragraph) => *paragraph = format!("{paragraph} {line}"),
            None => paragraphs.push(format!("{} {line}", spec.family.intro).trim_start().to_owned()),
        }
        family = Some(spec.family.intro);
    }
    paragraphs
}

/// The methods that have the setting `name`, if not all have it.
pub fn methods_with(name: &str) -> Vec<&'static str> {
    let with = Method::ALL.iter().filter(|method| method.has_option(name));
    with.map(|method| method.leading().name).collect()
}

/// Default of `head`.
pub fn head() -> String {
    let names = |which: fn(&MethodSpec) -> bool| {
        let specs = Method::ALL.iter().map(|method| method.leading()).filter(|spec| which(spec));
        listed(&specs.map(|spec| spec.name).collect::<Vec<_>>(), "and")
    };
    let own = names(|spec| spec.head != MethodHead::Any);
    let none = names(|spec| spec.texts == Texts::HeadIfAny);
    format!("{}; {own} have cosine heads of their own; {none} on a CLIP has none", HeadKind::default())
}

/// Default of `lr`.
pub fn lr() -> String {
    let mapped = defaults(Method::VP_PAD, Task::Classify, None, Some(LabelMap::Ilm)).lr;
    let of_text = defaults(Method::LINEAR, Task::Classify, Some(HeadKind::Text), None).lr;
    format!(
        "{}; {} for prompt tokens, {} with at most {} images, and {} for bias and norm where the head begins as the probe; {} with `label_map`; {} for linear with `head` text; in detection {}",
        of_steps(|d| number(d.lr)),
        number(after_probe::TOKENS_LR),
        number(after_probe::FEW_TOKENS_LR),
        after_probe::FEW_IMAGES,
        number(after_probe::NORMS_LR),
        number(mapped),
        number(of_text),
        of_detection(|d| number(d.lr)),
    )
}

/// Default of `head_lr`.
pub fn head_lr() -> String {
    format!("{}; {} where the head begins as the probe", number(Defaults::BASE.head_lr), number(after_probe::HEAD_LR))
}

/// Default of `weight_decay`.
pub fn weight_decay() -> String {
    let of_heads = of_detection(|d| number(d.weight_decay));
    let classified = of_steps(|d| number(d.weight_decay));
    format!(
        "{classified}; in detection {of_heads} for the head and tuned weights, 0 for prompts; biases and norms have none"
    )
}

/// Default of `batch_size`.
pub fn batch_size() -> String {
    let show = |d: Defaults| d.batch_size.to_string();
    format!("{}; in detection {}, in segmentation {}", of_steps(show), of_detection(show), of_segmentation(show))
}

/// Default of `optimizer`.
pub fn optimizer() -> String {
    of_steps(|d| d.optimizer.to_string())
}

/// Default of `warmup`.
pub fn warmup() -> String {
    of_steps(|d| match d.warmup {
        Warmup::Share(share) => number(share),
        Warmup::SlowFirstEpoch => {
            let first = number(Warmup::FIRST_EPOCH_LR);
            format!("a first epoch at {first} instead, and a cosine that moves every epoch,")
        }
    })
}

/// Default of `epochs`.
pub fn epochs() -> String {
    let without_shots = |d: Defaults| match d.epochs {
        Epochs::Fixed(epochs) => epochs.to_string(),
        Epochs::Steps { steps, least, most } => format!("as many as make {steps} steps, {least} to {most},"),
        Epochs::ByShots(_) | Epochs::StepsPerShot(_) => format!("as many as make {} steps, 10 to 100,", Epochs::STEPS),
    };
    let by_shots = Method::ALL.iter().filter_map(|&method| {
        let said = match defaults(method, Task::Classify, None, None).epochs {
            Epochs::ByShots([one, few, many]) if one == many && one == few => format!("{one}"),
            Epochs::ByShots([one, few, many]) => format!("{one}, {few} or {many}"),
            Epochs::StepsPerShot(steps) => format!("{steps} steps for each image of a class"),
            _ => return None,
        };
        Some(format!("{} {said}", method.name()))
    });
    let by_shots: Vec<String> = by_shots.collect();
    let mapped = defaults(Method::VP_PAD, Task::Classify, None, Some(LabelMap::Ilm));
    let after_probe = |epochs| without_shots(Defaults { epochs, ..Defaults::BASE });
    let (tokens, others) = (after_probe(after_probe::TOKENS_EPOCHS), after_probe(after_probe::EPOCHS));
    format!(
        "{tokens} for prompt tokens and {others} for others where the head begins as the probe (not of pixels); else {}; {} with `label_map`; in detection {} in segmentation {}; with `shots` or `draw` {}",
        of_steps(without_shots),
        without_shots(mapped),
        of_detection(without_shots),
        of_segmentation(without_shots),
        by_shots.join(", "),
    )
    .replace(",;", ";")
}

/// Default of `views`.
pub(super) fn views() -> String {
    by_method(|method| method.views().map(|views| views.count.to_string()))
}

/// Default of `prompt_tokens`.
pub(super) fn prompt_tokens() -> String {
    let (images, coop, maple, others) = (tokens::TOKENS, coop::TOKENS, maple::TOKENS, texts::TOKENS);
    format!("{images}; as many as `context_init` has words; coop {coop}, maple {maple}, else {others}")
}

/// Default of `prompt_dropout`.
pub(super) fn prompt_dropout() -> String {
    let dropout = by_method(|method| {
        let options = MethodOptions::default();
        let request = request(&options, Task::Classify);
        let part = |spec: &MethodSpec| (spec.part)(&request, &mut options.clone()).ok().flatten();
        method.has_option("prompt_dropout").then(|| part(method.leading()))?.map(|part| part.dropout.to_string())
    });
    format!("{dropout}; in detection 0")
}

/// `what` of every method that takes part, the most frequent first, the others with the names of their methods.
fn by_method(what: impl Fn(Method) -> Option<String>) -> String {
    let mut values: Vec<(String, Vec<&str>)> = Vec::new();
    for method in Method::ALL {
        let Some(value) = what(*method) else { continue };
        let name = method.leading().name;
        match values.iter_mut().find(|(known, _)| *known == value) {
            Some((_, methods)) => methods.push(name),
            None => values.push((value, vec![name])),
        }
    }
    let Some(most) = values.iter().map(|(_, methods)| methods.len()).max() else { return String::new() };
    let first = values.iter().position(|(_, methods)| methods.len() == most).unwrap_or_default();
    let common = values.remove(first).0;
    let others = values.into_iter().map(|(value, methods)| format!("{value} for {}", listed(&methods, "and")));
    std::iter::once(common).chain(others).collect::<Vec<_>>().join("; ")
}

/// `a, b and c`, or with another word before the last.
pub fn listed(names: &[&str], before_last: &str) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [more @ .., last] => format!("{} {before_last} {last}", more.join(", ")),
    }
}

/// A number as people write it.
fn number(value: f64) -> String {
    let text = format!("{value:?}");
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

/// A request with nothing said, for a CLIP.
fn request(options: &MethodOptions, task: Task) -> MethodRequest<'_> {
    let context =
        RunContext { task, depth: 12, text_depth: Some(12), image_size: 224, train_images: 1000, shots: None };
    MethodRequest { options, head: None, head_init: None, label_map: None, alone: true, context }
}

fn defaults(method: Method, task: Task, head: Option<HeadKind>, label_map: Option<LabelMap>) -> Defaults {
    let options = MethodOptions::default();
    (method.leading().defaults)(&MethodRequest { head, label_map, ..request(&options, task) })
}

/// A value of the defaults of classifiers, of methods that learn in steps.
fn of_steps(show: impl Fn(Defaults) -> String) -> String {
    let options = MethodOptions::default();
    by_method(|method| (!method.is_solved(&options)).then(|| show(defaults(method, Task::Classify, None, None))))
}

/// The same of detectors.
fn of_detection(show: impl Fn(Defaults) -> String) -> String {
    of_task(Task::Detect, show)
}

/// The same of segmenters.
fn of_segmentation(show: impl Fn(Defaults) -> String) -> String {
    of_task(Task::Segment, show)
}

fn of_task(task: Task, show: impl Fn(Defaults) -> String) -> String {
    by_method(|method| method.leading().tasks.contains(&task).then(|| show(defaults(method, task, None, None))))
}
