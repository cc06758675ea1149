//! `vpt data list` and `vpt data info NAME`: what is known of public data sets.

use std::path::Path;

use anyhow::anyhow;
use clap::Args;
use serde_json::{Value, json};
use vpt::data::cards::{Card, CardSplit};
use vpt::report::table;

use super::flags::{flag, words};
use super::output::Output;

/// Public data sets that are known: name, task, classes, images, benchmarks
///
/// `vpt data info NAME` prints the card of one: parts, metric, licence, how to lay it out, class names and templates. Methods that read
/// class names take them from a card by themselves where the data is recognised (see --dataset-card of `vpt train`).
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vpt data list\n  vpt data list --of VTAB-1k\n  vpt data list --json")]
pub(crate) struct CardList {
    /// Only those of this benchmark or with this task: CoOp, VTAB-1k, FGVC, detect, …
    #[arg(long, value_name = "BENCHMARK|TASK")]
    of: Option<String>,
}

/// Whether the argument names a card, and no file or folder.
pub(crate) fn is_card(data: &Path) -> bool {
    !data.exists() && data.to_str().is_some_and(Card::exists)
}

/// `error`, of data that cannot be opened, with the card that may have been meant.
pub(crate) fn or_card(error: vpt::Error, data: &Path) -> anyhow::Error {
    let near = data.to_str().filter(|_| !data.exists()).and_then(|name| vpt::suggest::nearest(name, Card::all_names()));
    match near {
        Some(card) => {
            anyhow!("{}; did you mean the public data set {card} (`vpt data list`)?", words(&error.message()))
        }
        None => error.into(),
    }
}

pub(crate) fn list(args: &CardList, out: Output) -> anyhow::Result<()> {
    let of = |card: &Card| match &args.of {
        None => true,
        Some(of) => {
            let mut names = card.part_of.iter().cloned().chain([card.task.to_string()]);
            names.any(|name| name.eq_ignore_ascii_case(of))
        }
    };
    let cards: Vec<Card> = Card::all()?.into_iter().filter(of).collect();
    if let (true, Some(of)) = (cards.is_empty(), &args.of) {
        let mut names: Vec<String> = Vec::new();
        for card in Card::all()? {
            let more: Vec<_> =
                card.part_of.into_iter().chain([card.task.to_string()]).filter(|n| !names.contains(n)).collect();
            names.extend(more);
        }
        return Err(anyhow!("--of: no public data set is of {of}; there are {}", names.join(", ")));
    }
    let short = |card: &Card| {
        let Card { name, title, task, classes, images, part_of, .. } = card;
        json!({ "name": name, "title": title, "task": task, "classes": classes, "images": images, "part_of": part_of })
    };
    let listed: Vec<Value> = cards.iter().map(short).collect();
    out.result(&json!({ "cards": listed }), || {
        let rows: Vec<Vec<String>> = cards.iter().map(row).collect();
        table::columns(&["name", "task", "classes", "images", "title", "part of"], &rows)
    })
}

fn row(card: &Card) -> Vec<String> {
    vec![
        card.name.clone(),
        card.task.to_string(),
        card.classes.map_or_else(|| "-".to_owned(), |classes| classes.to_string()),
        card.images.to_string(),
        card.title.clone(),
        card.part_of.join(", "),
    ]
}

pub(crate) fn info(data: &Path, out: Output) -> anyhow::Result<()> {
    let card = Card::named(&data.to_string_lossy())?.written(flag);
    out.result(&card, || describe(&card))
}

fn describe(card: &Card) -> String {
    let part = |CardSplit { name, images, note }: &CardSplit| match note {
        Some(note) => format!("{images} {name} ({note})"),
        None => format!("{images} {name}"),
    };
    let mut rows = vec![("name", card.name.clone()), ("title", card.title.clone()), ("task", card.task.to_string())];
    if !card.part_of.is_empty() {
        rows.push(("part of", card.part_of.join(", ")));
    }
    rows.extend(card.classes.map(|classes| ("classes", classes.to_string())));
    rows.push(("images", card.images.to_string()));
    if !card.splits.is_empty() {
        rows.push(("parts", card.splits.iter().map(part).collect::<Vec<_>>().join(", ")));
    }
    rows.extend([("metric", card.metric.clone()), ("licence", card.licence.clone()), ("from", card.home.clone())]);
    let mut text = table::pairs(&rows);
    for (title, lines) in [("layout", Some(&card.layout)), ("note", card.note.as_ref()), ("facts", Some(&card.source))]
    {
        if let Some(lines) = lines {
            text.extend(["\n", title, "\n"]);
            text.extend(
                lines.lines().map(|line| if line.is_empty() { "\n".to_owned() } else { format!("  {line}\n") }),
            );
        }
    }
    let few_shot = card.few_shot.as_ref();
    let lists = [
        ("templates", Some(&card.templates)),
        ("class names", Some(&card.names)),
        ("ids", Some(&card.ids)),
        ("templates in few-shot tables", few_shot.map(|texts| &texts.templates)),
        ("class names in few-shot tables", few_shot.map(|texts| &texts.names)),
        ("sets", Some(&card.sets)),
    ];
    for (title, list) in lists {
        if let Some(list) = list.filter(|list| !list.is_empty()) {
            let count = list.len();
            text.extend([format!("\n{title} ({count})\n"), wrapped(list)]);
        }
    }
    text
}

/// Texts with commas between them, in lines of at most this many characters where they fit.
fn wrapped(texts: &[String]) -> String {
    const WIDTH: usize = 110;
    let mut lines = vec![String::from(" ")];
    for (i, text) in texts.iter().enumerate() {
        let item = if i + 1 < texts.len() { format!(" {text},") } else { format!(" {text}") };
        match lines.last_mut() {
            Some(line) if line.chars().count() + item.chars().count() <= WIDTH || line.trim().is_empty() => {
                line.push_str(&item);
            }
            _ => lines.push(format!(" {item}")),
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_wrapped_between_texts() {
        let texts: Vec<String> = (0..30).map(|i| format!("class {i}")).collect();
        let text = wrapped(&texts);
        assert!(text.starts_with("  class 0, class 1,") && text.ends_with(" class 29\n"), "{text}");
        assert!(text.lines().all(|line| line.starts_with("  class") && line.chars().count() <= 110), "{text}");
        assert_eq!(text.matches("class").count(), 30);
        assert!(wrapped(&["x".repeat(200), "y".into()]).lines().count() == 2);
    }
}
