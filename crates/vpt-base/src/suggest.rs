//! Suggestions for a misspelt name: one measure of likeness for every place where names are typed, of backbones,
//! methods, layouts, runs and files.

use std::{ffi::OsStr, fs, path::Path};

/// Entries of a folder that are looked at; the measure is for folders that people name files in.
const MAX_ENTRIES: usize = 10_000;

/// Of `known` the name that `given` is most like, if it can be a slip for it: at most one edit and one more for every four
/// letters. Letters count as equal in upper and lower case; two that changed places are one edit.
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let length = given.chars().count();
    let given = given.to_lowercase();
    let near = |name: &'a str| {
        let letters = name.chars().count();
        let most = (1 + letters / 4).min(letters.saturating_sub(1));
        // First by length alone, which bounds the work for names of any length.
        let distance = || strsim::osa_distance(&given, &name.to_lowercase());
        (length.abs_diff(letters) <= most).then(distance).filter(|&d| d <= most).map(|d| (d, name))
    };
    known.into_iter().filter_map(near).min().map(|(_, name)| name)
}

/// The end of an error message about `given`: `; did you mean NAME?`, or nothing if no name is near.
pub fn hint<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(given, known).map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}

/// The same for a path that does not exist: names of files and folders beside it, or beside the first of its folders that
/// does not exist either.
pub fn path_hint(path: &Path) -> String {
    let Some(missing) = path.ancestors().take_while(|part| !part.as_os_str().is_empty() && !part.exists()).last()
    else {
        return String::new();
    };
    let (Some(given), Some(folder)) = (missing.file_name().and_then(OsStr::to_str), missing.parent()) else {
        return String::new();
    };
    let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let names: Vec<String> = fs::read_dir(here)
        .into_iter()
        .flatten()
        .take(MAX_ENTRIES)
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    let name = nearest(given, names.iter().map(String::as_str));
    name.map(|name| format!("; did you mean {}?", folder.join(name).display())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_other_words_are_not() {
        let methods = ["linear", "vpt-shallow", "vpt-deep", "vp-pad"];
        for (given, meant) in [
            ("vpt-deap", Some("vpt-deep")),
            ("vtp-deep", Some("vpt-deep")),
            ("VPT-DEEP", Some("vpt-deep")),
            ("vpt_shalow", Some("vpt-shallow")),
            ("liner", Some("linear")),
            ("resnet", None),
            ("", None),
        ] {
            assert_eq!(nearest(given, methods), meant, "{given}");
        }
        assert_eq!(nearest("z", ["a", "b"]), None, "one letter is not like another");
        assert_eq!(nearest(&"x".repeat(1 << 20), methods), None);
        assert_eq!(hint("vpdeep", methods), "; did you mean vpt-deep?");
        assert_eq!(hint("adam", methods), "");
    }

    #[test]
    fn the_nearest_wins_and_of_equals_the_first_in_the_alphabet() {
        assert_eq!(nearest("shapes-2", ["shapes-10", "shapes-3", "shapes-1"]), Some("shapes-1"));
        assert_eq!(nearest("shapes-10", ["shapes-1", "shapes-10"]), Some("shapes-10"));
    }

    #[test]
    fn missing_paths_are_compared_where_they_part_from_what_exists() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("photos/train")).unwrap();
        let hint = |name: &str| path_hint(&dir.path().join(name)).replace(dir.path().to_str().unwrap(), "");
        assert_eq!(hint("phtos"), "; did you mean /photos?");
        assert_eq!(hint("phtos/train"), "; did you mean /photos?");
        assert_eq!(hint("photos/tran"), "; did you mean /photos/train?");
        assert_eq!((hint("photos"), hint("cells")), (String::new(), String::new()));
    }
}
