//! Writes data sets of boxes in COCO's layout: `{train,val,test}/` and `annotations/instances_{train,val,test}.json`.

use serde_json::json;

use crate::boxes::{BoxImage, Category, Conversion, Object, Rect};
use vpt_base::Result;

/// Writes images and annotations.
pub(crate) fn write(set: &Conversion<'_>) -> Result<()> {
    let category = |c: &Category| json!({ "id": c.id, "name": c.name, "supercategory": "none" });
    let categories: Vec<_> = set.data.categories.iter().map(category).collect();
    for &split in set.splits {
        let (mut images, mut annotations) = (Vec::new(), Vec::new());
        for (image, name) in set.part(split) {
            set.place(image, format!("{split}/{name}"))?;
            let BoxImage { id, width, height, .. } = image;
            images.push(json!({ "id": id, "file_name": name, "width": width, "height": height }));
            for Object { id, category, rect: Rect { x, y, width, height }, area, crowd } in &image.objects {
                annotations.push(json!({
                    "id": id,
                    "image_id": image.id,
                    "category_id": set.data.categories[*category].id,
                    "bbox": [x, y, width, height],
                    "area": area,
                    "iscrowd": u8::from(*crowd),
                }));
            }
        }
        let info = json!({ "description": format!("{}, {split}", set.data.name) });
        let all = json!({
            "info": info,
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": categories,
        });
        set.write(format!("annotations/instances_{split}.json"), all.to_string())?;
    }
    Ok(())
}
