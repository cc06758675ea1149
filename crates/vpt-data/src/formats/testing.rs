//! Data sets as tests write them.

use std::fs;

/// A folder with `files`, each a name and what is in it.
pub(crate) fn folder_of<T: AsRef<[u8]>>(files: &[(&str, T)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    dir
}

/// The same, with `images` of that width and height beside them; none is equal to another.
pub(crate) fn folder_with_images<T: AsRef<[u8]>>(
    files: &[(&str, T)],
    images: &[&str],
    [width, height]: [u32; 2],
) -> tempfile::TempDir {
    let dir = folder_of(files);
    for (i, name) in images.iter().enumerate() {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let pixel = |x: u32, y: u32| image::Luma([(x * 7 + y * 3) as u8 ^ i as u8]);
        image::GrayImage::from_fn(width, height, pixel).save(path).unwrap();
    }
    dir
}
