//! Images cut into tiles, so that small objects are seen at a size at which they can be told: squares that overlap by a third, and
//! the whole image, which shows what is larger than a tile.
//!
//! Which view answers for an object is a matter of its size and place. What is at most a quarter of a tile long lies whole, and away from
//! the border, in some tile: the whole image says nothing of it. What is cut by a tile's border that is none of the image
//! is another view's: of a tile beside it, or of the whole image.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::{BoxImage, Object, Rect};
use crate::container::{Container, ImageSource, Stored};
use crate::windows::window_starts;
use rand::seq::SliceRandom;
use vpt_base::{Error, Result, random::stream};
use vpt_image::Rgb8;
use vpt_image::resize::crop;

/// Most tiles along the shorter side of an image.
pub const MAX_TILES: usize = 64;

/// Share of a tile's side up to which an object is left to the tiles.
const SMALL: f64 = 0.25;

/// Share of a tile's side within which a box ends at the border.
const AT_BORDER: f64 = 0.02;

/// Share of an object that must be seen in a tile for it to be learned there.
const SEEN: f64 = 0.5;

/// Decoded images that are kept for the tiles to come.
const KEPT: usize = 4;

/// Where a view lies in its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Position of the image.
    pub image: usize,
    /// Left, top, width and height, in pixels of the image.
    pub frame: [usize; 4],
    /// Width and height of the image.
    pub size: [usize; 2],
    /// Side of the image's tiles.
    side: usize,
}

/// Images as views of them.
#[derive(Clone, Debug)]
pub struct TiledImages {
    /// The views: the whole of an image, then its tiles, row by row; and the next image. An image without tiles has one.
    pub views: Vec<BoxImage>,
    /// Where each lies.
    pub tiles: Vec<Tile>,
}

/// Images that were decoded last.
type Decoded = Mutex<VecDeque<(usize, Arc<Rgb8>)>>;

/// The views of one image.
#[derive(Debug)]
struct TileSource {
    number: usize,
    image: BoxImage,
    frames: Vec<[usize; 4]>,
    decoded: Arc<Decoded>,
}

impl Container for TileSource {
    fn path(&self) -> &Path {
        self.image.file()
    }

    fn name(&self, index: usize) -> String {
        let [left, top, width, height] = self.frames.get(index).copied().unwrap_or_default();
        format!("tile of {width}x{height} pixels at {left}, {top}")
    }

    fn read(&self, index: usize) -> Result<Stored<'_>> {
        let lock = || self.decoded.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().iter().find(|(number, _)| *number == self.number).map(|(_, pixels)| pixels.clone());
        let pixels = if let Some(pixels) = known {
            pixels
        } else {
            let pixels = Arc::new(self.image.load_checked()?);
            let mut kept = lock();
            kept.truncate(KEPT - 1);
            kept.push_front((self.number, pixels.clone()));
            pixels
        };
        let [left, top, width, height] = self.frames.get(index).copied().unwrap_or_default();
        Ok(Stored::Decoded(crop(&pixels, left as isize, top as isize, width, height)))
    }
}

impl TiledImages {
    /// `images` cut into squares of which the shorter side of an image would have `tiles`, if they did not overlap. With one, views
    /// are the images.
    ///
    /// # Errors
    /// `tiles` is 0 or above [`MAX_TILES`].
    pub fn new(images: Vec<BoxImage>, tiles: usize) -> Result<Self> {
        if tiles == 0 || tiles > MAX_TILES {
            return Err(Error::setting("tiles", format!("{tiles} is not between 1 and {MAX_TILES}")));
        }
        let decoded: Arc<Decoded> = Arc::default();
        let (mut views, mut places) = (Vec::new(), Vec::new());
        for (number, image) in images.into_iter().enumerate() {
            let size = [image.width, image.height];
            let whole = [0, 0, image.width, image.height];
            let side = image.width.min(image.height).div_ceil(tiles).max(1);
            if tiles == 1 {
                views.push(image);
                places.push(Tile { image: number, frame: whole, size, side });
                continue;
            }
            let [xs, ys] = size.map(|length| window_starts(length, side));
            let squares = ys.iter().flat_map(|&y| xs.iter().map(move |&x| [x, y, side, side]));
            let frames: Vec<[usize; 4]> = std::iter::once(whole).chain(squares).collect();
            let own: Vec<Tile> = frames.iter().map(|&frame| Tile { image: number, frame, size, side }).collect();
            let container: Arc<dyn Container> =
                Arc::new(TileSource { number, image: image.clone(), frames, decoded: decoded.clone() });
            for (index, tile) in own.into_iter().enumerate() {
                let [_, _, width, height] = tile.frame;
                views.push(BoxImage {
                    id: image.id,
                    name: format!("{}#{index}", image.name),
                    image: ImageSource::Member { container: container.clone(), index },
                    width,
                    height,
                    objects: image.objects.iter().filter_map(|object| tile.seen(object)).collect(),
                });
                places.push(tile);
            }
        }
        Ok(Self { views, tiles: places })
    }

    /// The same for images that are learned from: of the tiles in which there is nothing to learn only as many stay, drawn by `seed`, as there are
    /// others.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn to_learn(images: Vec<BoxImage>, tiles: usize, seed: u64) -> Result<Self> {
        let Self { views, tiles } = Self::new(images, tiles)?;
        let (mut empty, mut kept) = (Vec::new(), vec![true; views.len()]);
        for (at, (view, tile)) in views.iter().zip(&tiles).enumerate() {
            if !tile.is_whole() && view.objects.iter().all(|object| object.crowd) {
                kept[at] = false;
                empty.push(at);
            }
        }
        let others = tiles.iter().zip(&kept).filter(|(tile, kept)| !tile.is_whole() && **kept).count();
        empty.shuffle(&mut stream(seed, "empty tiles", 0, 0));
        empty.iter().take(others).for_each(|&at| kept[at] = true);
        let both = views.into_iter().zip(tiles).zip(kept).filter(|(_, kept)| *kept);
        let (views, tiles) = both.map(|(both, _)| both).unzip();
        Ok(Self { views, tiles })
    }
}

impl Tile {
    /// Whether it is all of its image.
    pub fn is_whole(&self) -> bool {
        self.frame == [0, 0, self.size[0], self.size[1]]
    }

    /// Whether an object of this size is left to the tiles of an image that has some.
    fn is_small(&self, rect: Rect) -> bool {
        rect.width.max(rect.height) <= SMALL * self.side as f64
    }

    /// What there is of `object` to be learned in this view; a crowd where it is another view's.
    fn seen(&self, object: &Object) -> Option<Object> {
        if self.is_whole() {
            return Some(Object { crowd: object.crowd || self.is_small(object.rect), ..*object });
        }
        let [left, top, width, height] = self.frame.map(|v| v as f64);
        let frame = Rect { x: left, y: top, width, height };
        let (x, y) = (object.rect.x.max(left), object.rect.y.max(top));
        let (right, bottom) = (object.rect.right().min(frame.right()), object.rect.bottom().min(frame.bottom()));
        if right - x < 1. || bottom - y < 1. {
            return None;
        }
        let rect = Rect { x: x - left, y: y - top, width: right - x, height: bottom - y };
        let share = rect.area() / object.rect.area();
        Some(Object { rect, area: object.area * share, crowd: object.crowd || share < SEEN, ..*object })
    }

    /// A box that was found in this view, where it lies in the image; none if another view answers for it.
    pub fn in_image(&self, rect: Rect) -> Option<Rect> {
        if self.is_whole() {
            let has_tiles = self.side < self.size[0].min(self.size[1]);
            return (!has_tiles || !self.is_small(rect)).then_some(rect);
        }
        let [left, top, width, height] = self.frame;
        let near = AT_BORDER * self.side as f64;
        let is_cut = |start: f64, end: f64, from: usize, length: usize, size: usize| {
            (from > 0 && start < near) || (from + length < size && end > length as f64 - near)
        };
        let cut = is_cut(rect.x, rect.right(), left, width, self.size[0])
            || is_cut(rect.y, rect.bottom(), top, height, self.size[1]);
        (!cut).then_some(Rect { x: rect.x + left as f64, y: rect.y + top as f64, ..rect })
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::{object, painted};
    use super::*;

    fn image(width: usize, height: usize, objects: Vec<Object>) -> BoxImage {
        let (pixels, _) = painted([width, height], [3, 5, 7, 4], 1);
        BoxImage { id: 7, name: "a".to_owned(), image: pixels.into(), width, height, objects }
    }

    #[test]
    fn every_small_object_is_answered_for_by_a_tile_and_by_no_border() {
        for (width, height, tiles) in [(90, 60, 2), (64, 200, 3), (61, 61, 4)] {
            let set = TiledImages::new(vec![image(width, height, Vec::new())], tiles).unwrap();
            let side = width.min(height).div_ceil(tiles) as f64;
            let small = (SMALL * side).floor().max(1.);
            for x in 0..=(width - small as usize) {
                for y in 0..=(height - small as usize) {
                    let rect = Rect { x: x as f64, y: y as f64, width: small, height: small };
                    let answers = set.tiles.iter().filter_map(|tile| {
                        let [left, top, w, h] = tile.frame.map(|v| v as f64);
                        let own = Rect { x: rect.x - left, y: rect.y - top, ..rect };
                        let inside = own.x >= 0. && own.y >= 0. && own.right() <= w && own.bottom() <= h;
                        inside.then(|| tile.in_image(own)).flatten()
                    });
                    let answers: Vec<Rect> = answers.collect();
                    assert!(
                        !answers.is_empty() && answers.iter().all(|own| *own == rect),
                        "{rect:?} of {width}x{height}"
                    );
                }
            }
            assert!(set.tiles[0].is_whole() && set.tiles.iter().skip(1).all(|tile| !tile.is_whole()));
            let large = Rect { x: 0., y: 0., width: width as f64, height: height as f64 };
            assert_eq!(set.tiles[0].in_image(large), Some(large));
            assert_eq!(set.tiles[0].in_image(Rect { width: small, height: small, ..large }), None);
        }
    }

    #[test]
    fn tiles_show_the_pixels_and_objects_of_their_place() {
        let objects = vec![object([3., 5., 7., 4.], 1), object([0., 0., 40., 60.], 0), object([28., 2., 4., 4.], 2)];
        let images = [image(40, 60, objects)];
        let set = TiledImages::new(images.to_vec(), 2).unwrap();
        assert_eq!((set.views.len(), set.tiles.len()), (1 + 3 * 4, 13));
        let all = images[0].image.load().unwrap();
        for (view, tile) in set.views.iter().zip(&set.tiles) {
            let [left, top, width, height] = tile.frame;
            assert_eq!(view.image.load().unwrap(), crop(&all, left as isize, top as isize, width, height));
            assert_eq!((view.id, view.width, view.height, tile.image), (7, width, height, 0));
        }
        // The small one is not looked for in the whole image; the first tile shows a sixth of the large one.
        let crowds = |view: &BoxImage| view.objects.iter().map(|object| object.crowd).collect::<Vec<_>>();
        assert_eq!(crowds(&set.views[0]), [false, false, true]);
        assert_eq!(set.tiles[1].frame, [0, 0, 20, 20]);
        assert_eq!(crowds(&set.views[1]), [false, true]);
        assert_eq!(set.views[1].objects[0].rect, Rect { x: 3., y: 5., width: 7., height: 4. });
        // Two tiles hold the small one, and as many of those that hold nothing stay.
        let learned = TiledImages::to_learn(images.to_vec(), 2, 1).unwrap();
        let full = |set: &TiledImages| {
            let tiles = set.views.iter().skip(1);
            tiles.filter(|view| view.objects.iter().any(|object| !object.crowd)).count()
        };
        assert_eq!((full(&learned), learned.views.len()), (full(&set), 1 + 2 * full(&set)));
        assert!(learned.views.len() < set.views.len() && learned.tiles[0].is_whole());
        assert!(learned.tiles.iter().all(|tile| set.tiles.contains(tile)));
        assert_ne!(TiledImages::to_learn(images.to_vec(), 2, 2).unwrap().views, learned.views);
        let one = TiledImages::new(images.to_vec(), 1).unwrap();
        assert_eq!((one.views.len(), &one.views[0]), (1, &images[0]));
        let tiny = Rect { x: 1., y: 1., width: 1., height: 1. };
        assert_eq!(one.tiles[0].in_image(tiny), Some(tiny));
        for bad in [0, MAX_TILES + 1] {
            assert!(TiledImages::new(images.to_vec(), bad).is_err());
        }
    }
}
