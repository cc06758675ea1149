//! The house rules that no compiler checks: the modules of a crate import each other in one direction only, none but the
//! command line speaks of its flags, and a type's name stands for one type.

#![allow(clippy::unwrap_used, reason = "a test that cannot read the source fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::visit::Visit;

/// The folders of source code, one a crate.
fn sources() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = vec![root.join("src")];
    if let Ok(crates) = fs::read_dir(root.join("crates")) {
        sources.extend(crates.map(|entry| entry.unwrap().path().join("src")).filter(|src| src.is_dir()));
    }
    sources
}

/// The Rust files below `folder`.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The top modules of a crate that a file names, by `crate::…` or by `super::…` out of its own module.
struct Imports {
    /// The file's own module, outermost first.
    module: Vec<String>,
    tops: BTreeSet<String>,
}

impl Imports {
    /// Counts the path `parts`, as it stands in the module [`Self::module`].
    fn path(&mut self, parts: &[String]) {
        let supers = parts.iter().take_while(|part| *part == "super").count();
        let top = match parts.first().map(String::as_str) {
            Some("crate") => parts.get(1),
            Some("super") if supers >= self.module.len() => parts.get(supers),
            _ => None,
        };
        self.tops.extend(top.cloned());
    }

    /// Counts every path of the tree of a `use`.
    fn tree(&mut self, tree: &syn::UseTree, before: &mut Vec<String>) {
        match tree {
            syn::UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.tree(&path.tree, before);
                before.pop();
            }
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(tree, before)),
            syn::UseTree::Name(syn::UseName { ident }) | syn::UseTree::Rename(syn::UseRename { ident, .. }) => {
                before.push(ident.to_string());
                self.path(before);
                before.pop();
            }
            syn::UseTree::Glob(_) => self.path(before),
        }
    }
}

/// Whether an item is compiled for tests only.
fn is_test(attributes: &[syn::Attribute]) -> bool {
    let cfg_test = |attribute: &syn::Attribute| match &attribute.meta {
        syn::Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        _ => false,
    };
    attributes.iter().any(cfg_test)
}

impl<'ast> Visit<'ast> for Imports {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !is_test(&item.attrs) {
            self.tree(&item.tree, &mut Vec::new());
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if is_test(&item.attrs) {
            return;
        }
        self.module.push(item.ident.to_string());
        syn::visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.path(&parts);
        syn::visit::visit_path(self, path);
    }
}

/// Which top modules of the crate in `src` import which others. Tests, the binary, and names that are not modules
/// (`crate::Result`) do not count.
fn imports(src: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files(src) {
        let relative = file.strip_prefix(src).unwrap().with_extension("");
        let mut module: Vec<String> = relative.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        if module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        let top = module[0].clone();
        if ["lib", "main"].contains(&&*top) || module.iter().any(|part| part == "tests") {
            continue;
        }
        let code = syn::parse_file(&fs::read_to_string(&file).unwrap()).unwrap();
        let mut imports = Imports { module, tops: BTreeSet::new() };
        imports.visit_file(&code);
        all.entry(top).or_default().extend(imports.tops);
    }
    let modules: BTreeSet<String> = all.keys().cloned().collect();
    for (module, imported) in &mut all {
        imported.retain(|other| other != module && modules.contains(other));
    }
    all
}

/// Modules that can reach themselves over their imports.
fn in_circles(imports: &BTreeMap<String, BTreeSet<String>>) -> Vec<&str> {
    let reaches_itself = |module: &str| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![module]);
        while let Some(other) = next.pop() {
            for imported in &imports[other] {
                if imported == module {
                    return true;
                }
                if seen.insert(imported) {
                    next.push(imported);
                }
            }
        }
        false
    };
    imports.keys().map(String::as_str).filter(|module| reaches_itself(module)).collect()
}

/// Modules of a crate that import each other in circles: none but these, which may only become fewer.
const KNOTS: [(&str, &[&str]); 2] = [
    ("vpt-backbone", &["names", "spec"]),
    ("vpt-data", &["boxes", "check", "container", "dataset", "examine", "formats", "loader", "open", "split"]),
];

#[test]
fn modules_import_each_other_in_one_direction() {
    let mut arrows = 0;
    for src in sources() {
        let imports = imports(&src);
        arrows += imports.values().map(BTreeSet::len).sum::<usize>();
        let circle = in_circles(&imports);
        let among = |module: &&str| {
            let others: Vec<&str> =
                imports[*module].iter().map(String::as_str).filter(|other| circle.contains(other)).collect();
            format!("{module} -> {}", others.join(", "))
        };
        let told: Vec<String> = circle.iter().map(among).collect();
        let known = KNOTS.iter().find(|(name, _)| src.parent().is_some_and(|dir| dir.ends_with(name)));
        let known = known.map_or(&[][..], |(_, modules)| modules);
        assert_eq!(circle, known, "circles among the modules of {}:\n{}", src.display(), told.join("\n"));
    }
    assert!(arrows > 20, "{arrows} imports in all: the test no longer sees them");
}

#[test]
fn a_circle_is_seen() {
    let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
    let imports: BTreeMap<String, BTreeSet<String>> =
        [("a", &["b", "d"][..]), ("b", &["c"]), ("c", &["a"]), ("d", &[])]
            .into_iter()
            .map(|(module, imported)| (module.to_owned(), set(imported)))
            .collect();
    assert_eq!(in_circles(&imports), ["a", "b", "c"]);
    let code = syn::parse_file(
        "use crate::{train::{self, fit}, model as m}; use super::super::report; use super::inner;
         fn f() { crate::eval::g(); } #[cfg(test)] mod tests { use crate::bench; }",
    )
    .unwrap();
    let mut imports = Imports { module: vec!["head".to_owned(), "detect".to_owned()], tops: BTreeSet::new() };
    imports.visit_file(&code);
    assert_eq!(imports.tops, set(&["eval", "model", "report", "train"]));
}

/// The flags of a command line that a line of code, of text or of a comment names: two dashes and a letter where a word
/// begins. In a style sheet that is a variable.
fn flags(line: &str) -> Vec<&str> {
    let is_css = |before: &str| before.ends_with(['{', ';']) || before.ends_with("var(");
    let begins = |at: usize| {
        let (before, flag) = (&line[..at], &line[at + 2..]);
        flag.starts_with(|c: char| c.is_ascii_lowercase())
            && !before.ends_with(|c: char| c.is_alphanumeric() || "-_".contains(c))
            && !is_css(before)
    };
    let word = |at: usize| {
        let end = line[at..].find(|c: char| !c.is_alphanumeric() && c != '-').unwrap_or(line.len() - at);
        &line[at..at + end]
    };
    line.match_indices("--").map(|(at, _)| at).filter(|&at| begins(at)).map(word).collect()
}

#[test]
fn only_the_command_line_speaks_of_flags() {
    for src in sources() {
        // Files beside the code are compiled into it.
        let cards = src.with_file_name("cards");
        let beside = cards.is_dir().then(|| fs::read_dir(&cards).unwrap().map(|entry| entry.unwrap().path()));
        for file in files(&src).into_iter().chain(beside.into_iter().flatten()) {
            let inner = file.strip_prefix(&src).unwrap_or(Path::new(""));
            let cli = inner.starts_with("cli") || inner == Path::new("main.rs");
            if cli || inner.with_extension("").iter().any(|part| part == "tests") {
                continue;
            }
            let text = fs::read_to_string(&file).unwrap();
            for (number, line) in text.lines().enumerate() {
                // Of cargo, in a comment.
                if !line.contains("cargo ") {
                    assert!(flags(line).is_empty(), "{}:{}: {:?}", file.display(), number + 1, flags(line));
                }
            }
        }
    }
}

#[test]
fn a_flag_is_seen() {
    for (line, found) in [
        (r#"Error::setting("lr", "use --head-lr")"#, &["--head-lr"][..]),
        (r#"flag("--l2"); "(--skip-bad-images leaves them out)""#, &["--l2", "--skip-bad-images"]),
        ("/// See `--lr auto`.", &["--lr"]),
        (r#"join("models--me--mine"); ":root{--paper:#fff;--ink:var(--line)}"; // -- a --- b"#, &[]),
    ] {
        assert_eq!(flags(line), found, "{line}");
    }
}

/// The types that a file defines, tests left out: those in macros, too.
#[derive(Default)]
struct Types(Vec<String>);

impl<'ast> Visit<'ast> for Types {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        match item {
            syn::Item::Mod(module) if is_test(&module.attrs) => return,
            syn::Item::Struct(syn::ItemStruct { ident, .. })
            | syn::Item::Enum(syn::ItemEnum { ident, .. })
            | syn::Item::Trait(syn::ItemTrait { ident, .. })
            | syn::Item::Type(syn::ItemType { ident, .. })
            | syn::Item::Union(syn::ItemUnion { ident, .. }) => self.0.push(ident.to_string()),
            _ => {}
        }
        syn::visit::visit_item(self, item);
    }

    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        let tokens = called.tokens.to_string();
        let words: Vec<&str> = tokens.split_whitespace().collect();
        let name = |pair: &[&str]| match pair {
            ["struct" | "enum", name] if name.starts_with(|c: char| c.is_ascii_uppercase()) => Some((*name).to_owned()),
            _ => None,
        };
        self.0.extend(words.windows(2).filter_map(name));
    }
}

/// Names of two types: none but these, which may only become fewer.
const TWICE: [&str; 3] = ["Layout", "Tensor", "Tile"];

#[test]
fn a_name_stands_for_one_type() {
    let mut all: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for file in sources().iter().flat_map(|src| files(src)) {
        if file.with_extension("").iter().any(|part| part == "tests") {
            continue;
        }
        let mut types = Types::default();
        types.visit_file(&syn::parse_file(&fs::read_to_string(&file).unwrap()).unwrap());
        for name in types.0 {
            all.entry(name).or_default().push(file.clone());
        }
    }
    assert!(all.len() > 500 && all.contains_key("Task"), "{} types: the test no longer sees them", all.len());
    all.retain(|name, files| files.len() > 1 && !TWICE.contains(&name.as_str()));
    assert!(all.is_empty(), "{all:#?}");
}
