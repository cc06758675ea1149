//! Writes data sets of boxes in Pascal VOC's layout: `JPEGImages/`, `Annotations/`, `ImageSets/Main/` and `classes.txt`.

use std::fmt::Write as _;

use crate::boxes::{BoxImage, Conversion, Object, own_area, thousandth};
use vpt_base::Result;

/// Writes images, annotations, lists of parts and `classes.txt`.
pub(crate) fn write(set: &Conversion<'_>) -> Result<()> {
    let classes: Vec<&str> = set.data.categories.iter().map(|category| category.name.as_str()).collect();
    set.write("classes.txt", classes.join("\n") + "\n")?;
    for &split in set.splits {
        let mut list = String::new();
        for (image, name) in set.part(split) {
            let id = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
            set.place(image, format!("JPEGImages/{name}"))?;
            set.write(format!("Annotations/{id}.xml"), xml(image, name, &classes))?;
            _ = writeln!(list, "{id}");
        }
        set.write(format!("ImageSets/Main/{split}.txt"), list)?;
    }
    Ok(())
}

fn xml(image: &BoxImage, name: &str, classes: &[&str]) -> String {
    let file = name.rsplit('/').next().unwrap_or(name);
    let mut out = "<annotation>\n  <folder>JPEGImages</folder>\n".to_owned();
    _ = writeln!(out, "  <filename>{}</filename>", escaped(file));
    _ = write!(out, "  <size><width>{}</width><height>{}</height>", image.width, image.height);
    out += "<depth>3</depth></size>\n  <segmented>0</segmented>\n";
    for object in &image.objects {
        let Object { category, rect, crowd, .. } = object;
        _ = write!(out, "  <object>\n    <name>{}</name>\n    <pose>Unspecified</pose>\n", escaped(classes[*category]));
        // Programs that know nothing of crowds do not count difficult objects.
        _ = writeln!(out, "    <truncated>0</truncated>\n    <difficult>{}</difficult>", u8::from(*crowd));
        let corners = [rect.x + 1., rect.y + 1., rect.right(), rect.bottom()].map(thousandth);
        let corners = ["xmin", "ymin", "xmax", "ymax"].into_iter().zip(corners);
        let corners: Vec<String> = corners.map(|(key, v)| format!("<{key}>{v}</{key}>")).collect();
        _ = writeln!(out, "    <bndbox>{}</bndbox>", corners.concat());
        if let Some(area) = own_area(object) {
            _ = writeln!(out, "    <area>{area}</area>");
        }
        if *crowd {
            out += "    <crowd>1</crowd>\n";
        }
        out += "  </object>\n";
    }
    out + "</annotation>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
