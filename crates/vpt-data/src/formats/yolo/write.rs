//! Writes data sets of boxes in YOLO's layout: `data.yaml`, `images/` and `labels/` with the parts in them.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::json;

use super::label_path;
use crate::boxes::{Conversion, Rect};
use vpt_base::Result;

/// Writes images, labels and `data.yaml`.
pub(crate) fn write(set: &Conversion<'_>) -> Result<()> {
    // Without `path:`, other paths are seen from the file's own folder.
    let mut yaml = String::new();
    for &split in set.splits {
        _ = writeln!(yaml, "{split}: images/{split}");
    }
    _ = writeln!(yaml, "nc: {}\nnames:", set.data.categories.len());
    for (i, category) in set.data.categories.iter().enumerate() {
        // A string of JSON is one of YAML.
        _ = writeln!(yaml, "  {i}: {}", json!(category.name));
    }
    set.write("data.yaml", yaml)?;
    for &split in set.splits {
        for (image, name) in set.part(split) {
            let path = Path::new("images").join(split.name()).join(name);
            set.place(image, &path)?;
            let mut lines = String::new();
            let (width, height) = (image.width as f64, image.height as f64);
            for object in image.objects.iter().filter(|object| !object.crowd) {
                let Rect { x, y, width: w, height: h } = object.rect;
                let numbers = [(x + w / 2.) / width, (y + h / 2.) / height, w / width, h / height];
                let numbers =
                    numbers.map(|v| format!("{v:.12}").trim_end_matches('0').trim_end_matches('.').to_owned());
                _ = writeln!(lines, "{} {}", object.category, numbers.join(" "));
            }
            set.write(label_path(&path), lines)?;
        }
    }
    Ok(())
}
