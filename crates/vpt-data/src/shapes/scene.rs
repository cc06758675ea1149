//! What is in a scene: shapes, colours, sizes, fills, counts, positions and backgrounds, drawn by lot from a seed.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use vpt_base::choice::choice;

/// An outline. The names are the English words used in captions and class names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Shape {
    /// A disc.
    Circle,
    /// A square, standing on a side.
    Square,
    /// An equilateral triangle, tip up.
    Triangle,
    /// A five-pointed star.
    Star,
    /// A heart.
    Heart,
    /// A plus sign.
    Cross,
    /// A rhombus higher than wide.
    Diamond,
    /// A crescent.
    Moon,
}

impl Shape {
    /// Every shape, in the order of its index.
    pub const ALL: [Self; 8] =
        [Self::Circle, Self::Square, Self::Triangle, Self::Star, Self::Heart, Self::Cross, Self::Diamond, Self::Moon];

    /// The English word.
    pub fn word(self) -> &'static str {
        ["circle", "square", "triangle", "star", "heart", "cross", "diamond", "moon"][self as usize]
    }

    /// The English word for several.
    pub fn plural(self) -> String {
        if self == Self::Cross { "crosses".to_owned() } else { format!("{}s", self.word()) }
    }
}

/// A colour of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[expect(missing_docs, reason = "a colour's name says all there is")]
pub enum Colour {
    Red,
    Orange,
    Yellow,
    Green,
    Cyan,
    Blue,
    Purple,
    Pink,
}

impl Colour {
    /// Every colour, in the order of its index.
    pub const ALL: [Self; 8] =
        [Self::Red, Self::Orange, Self::Yellow, Self::Green, Self::Cyan, Self::Blue, Self::Purple, Self::Pink];

    /// The English word.
    pub fn word(self) -> &'static str {
        ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"][self as usize]
    }

    /// The middle of the colour's range, RGB in 0..=1.
    pub fn rgb(self) -> [f32; 3] {
        [
            [0.86, 0.14, 0.14],
            [0.95, 0.52, 0.10],
            [0.95, 0.87, 0.18],
            [0.18, 0.65, 0.26],
            [0.22, 0.80, 0.84],
            [0.16, 0.30, 0.85],
            [0.48, 0.18, 0.66],
            [0.96, 0.52, 0.74],
        ][self as usize]
    }
}

/// How the inside of an outline is painted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// One colour throughout.
    Solid,
    /// Only a band along the edge.
    Outlined,
    /// Stripes of the colour and a lighter tone of it.
    Striped,
    /// Light dots on the colour.
    Dotted,
}

impl Fill {
    /// Every fill.
    pub const ALL: [Self; 4] = [Self::Solid, Self::Outlined, Self::Striped, Self::Dotted];

    /// The English word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Solid => "solid",
            Self::Outlined => "outlined",
            Self::Striped => "striped",
            Self::Dotted => "dotted",
        }
    }
}

/// How large an object is beside the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "a size's name says all there is")]
pub enum ObjectSize {
    Small,
    Medium,
    Large,
}

impl ObjectSize {
    /// The English word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Medium => "medium",
            Self::Large => "large",
        }
    }

    /// Radii of this size, as a share of the image's side.
    fn radii(self) -> std::ops::Range<f32> {
        match self {
            Self::Small => 0.15..0.19,
            Self::Medium => 0.22..0.28,
            Self::Large => 0.32..0.40,
        }
    }
}

/// How light the background is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "a tone's name says all there is")]
pub enum Tone {
    White,
    Gray,
    Black,
}

impl Tone {
    /// The English word.
    pub fn word(self) -> &'static str {
        match self {
            Self::White => "white",
            Self::Gray => "gray",
            Self::Black => "black",
        }
    }
}

/// What the background shows besides its tone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Nothing.
    Plain,
    /// A slow change from one side to the other.
    Gradient,
    /// Squares of two tones.
    Checkered,
    /// A different tone at every pixel.
    Noisy,
}

/// The background of a scene.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Background {
    /// How light it is.
    pub tone: Tone,
    /// What it shows.
    pub pattern: Pattern,
    /// Its exact level, 0..=1.
    pub level: f32,
    /// Direction of a gradient, radians.
    pub angle: f32,
}

/// One object of a scene. Lengths are shares of the image's side; x grows to the right, y downwards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrawnObject {
    /// Its outline.
    pub shape: Shape,
    /// Its colour.
    pub colour: Colour,
    /// How it is painted.
    pub fill: Fill,
    /// Its size in words.
    pub size: ObjectSize,
    /// Its centre (x, y).
    pub centre: (f32, f32),
    /// The radius of the circle around it.
    pub radius: f32,
    /// How far it is turned, radians.
    pub angle: f32,
    /// Its exact colour, RGB in 0..=1.
    pub rgb: [f32; 3],
}

choice! {
    /// How scenes look.
    #[derive(Default)]
    pub enum Style for "style" {
        /// As the bundled backbone saw them in pre-training.
        #[default]
        Plain = "plain",
        /// The same contents turned by any angle, with wobbly dark edges, pale and tinted, over hatching and noise: a
        /// domain shift to adapt to.
        Shifted = "shifted",
    }
}

choice! {
    /// Which colour-shape pairs may occur.
    #[derive(Default)]
    pub enum Pairs for "pairs" {
        /// All 64.
        #[default]
        All = "all",
        /// The 48 shown in pre-training.
        Seen = "seen",
        /// The 16 held out of pre-training.
        Unseen = "unseen",
    }
}

impl Pairs {
    /// Whether the pair belongs to this choice.
    pub fn contains(self, colour: Colour, shape: Shape) -> bool {
        match self {
            Self::All => true,
            Self::Seen => !held_out(colour, shape),
            Self::Unseen => held_out(colour, shape),
        }
    }

    /// The pairs of this choice, by colour and then shape.
    pub fn list(self) -> Vec<(Colour, Shape)> {
        let all = Colour::ALL.iter().flat_map(|&colour| Shape::ALL.iter().map(move |&shape| (colour, shape)));
        all.filter(|&(colour, shape)| self.contains(colour, shape)).collect()
    }
}

/// Whether pre-training never shows nor names this pair: 16 of 64, two for every shape and two for every colour.
pub fn held_out(colour: Colour, shape: Shape) -> bool {
    matches!((colour as u8 + 8 - shape as u8) % 8, 2 | 5)
}

/// A scene: one or more objects on a background. Deterministic from the random numbers it was drawn with.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// The objects, the main one first. They do not overlap.
    pub objects: Vec<DrawnObject>,
    /// What is behind them.
    pub background: Background,
    /// How it looks.
    pub style: Style,
    /// Seed of what is decided per pixel (noise, texture, wobble).
    pub grain: u32,
}

/// The random numbers of item `index` for one `purpose`: the same whatever was drawn before and on which thread. Not
/// [`vpt_base::random::stream`]: the scenes that `clip-nano` was pre-trained on follow from this one.
pub fn rng(seed: u64, purpose: u64, index: u64) -> ChaCha8Rng {
    let mut key = [0_u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&purpose.to_le_bytes());
    key[16..24].copy_from_slice(&index.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

fn pick<T: Copy>(rng: &mut ChaCha8Rng, all: &[T]) -> T {
    // Every list here is a constant with at least one entry.
    *all.choose(rng).unwrap_or(&all[0])
}

impl Scene {
    /// One object of this pair, not too far from the middle: the scene of a classification set.
    pub fn single(rng: &mut ChaCha8Rng, style: Style, colour: Colour, shape: Shape) -> Self {
        let mut object = object(rng, style, colour, shape, &[ObjectSize::Small, ObjectSize::Medium, ObjectSize::Large]);
        let reach = (0.47 - object.radius).max(0.0);
        object.centre = (0.5 + reach * rng.random_range(-1.0..1.0), 0.5 + reach * rng.random_range(-1.0..1.0));
        Self::of(rng, style, vec![object])
    }

    /// One solid object of this pair, not small, on a plain background: a scene to begin learning with.
    pub fn easy(rng: &mut ChaCha8Rng, colour: Colour, shape: Shape) -> Self {
        let mut object = object(rng, Style::Plain, colour, shape, &[ObjectSize::Medium, ObjectSize::Large]);
        object.fill = Fill::Solid;
        let reach = 0.47 - object.radius;
        object.centre = (0.5 + reach * rng.random_range(-1.0..1.0), 0.5 + reach * rng.random_range(-1.0..1.0));
        let mut scene = Self::of(rng, Style::Plain, vec![object]);
        scene.background.pattern = Pattern::Plain;
        scene
    }

    /// Two to four objects alike in colour, shape, fill and size.
    pub fn repeated(rng: &mut ChaCha8Rng, style: Style, colour: Colour, shape: Shape) -> Self {
        let count = rng.random_range(2..=4);
        let first = object(rng, style, colour, shape, &[ObjectSize::Small]);
        let objects = (0..count)
            .map(|_| DrawnObject {
                angle: tilt(rng, style),
                radius: rng.random_range(ObjectSize::Small.radii()),
                ..first
            })
            .collect();
        let objects = place(rng, objects);
        Self::of(rng, style, objects)
    }

    /// Up to `count` objects of any pair in `pairs`; fewer where there is no room.
    pub fn several(rng: &mut ChaCha8Rng, style: Style, pairs: Pairs, count: usize) -> Self {
        Self::scattered(rng, style, pairs, count, None)
    }

    /// As [`Self::several`], with radii in this range of shares of the image's side, if one is given.
    pub fn scattered(rng: &mut ChaCha8Rng, style: Style, pairs: Pairs, count: usize, radii: Option<[f32; 2]>) -> Self {
        let sizes: &[ObjectSize] =
            if count > 2 { &[ObjectSize::Small] } else { &[ObjectSize::Small, ObjectSize::Medium] };
        let list = pairs.list();
        let objects = (0..count)
            .map(|_| {
                let (colour, shape) = pick(rng, &list);
                let drawn = object(rng, style, colour, shape, sizes);
                match radii {
                    Some([least, most]) => DrawnObject { radius: rng.random_range(least..=most), ..drawn },
                    None => drawn,
                }
            })
            .collect();
        let objects = place(rng, objects);
        Self::of(rng, style, objects)
    }

    fn of(rng: &mut ChaCha8Rng, style: Style, objects: Vec<DrawnObject>) -> Self {
        let tone = pick(rng, &[Tone::White, Tone::Gray, Tone::Black]);
        let level = match tone {
            Tone::White => rng.random_range(0.90..1.0),
            Tone::Gray => rng.random_range(0.40..0.58),
            Tone::Black => rng.random_range(0.0..0.10),
        };
        let pattern =
            pick(rng, &[Pattern::Plain, Pattern::Plain, Pattern::Gradient, Pattern::Checkered, Pattern::Noisy]);
        let background = Background { tone, pattern, level, angle: rng.random_range(0.0..std::f32::consts::TAU) };
        Self { objects, background, style, grain: rng.random() }
    }
}

fn tilt(rng: &mut ChaCha8Rng, style: Style) -> f32 {
    let most = if style == Style::Plain { 0.25 } else { std::f32::consts::PI };
    rng.random_range(-most..most)
}

fn object(rng: &mut ChaCha8Rng, style: Style, colour: Colour, shape: Shape, sizes: &[ObjectSize]) -> DrawnObject {
    let size = pick(rng, sizes);
    let fill = pick(rng, &[Fill::Solid, Fill::Solid, Fill::Outlined, Fill::Striped, Fill::Dotted]);
    let rgb = colour.rgb().map(|level| (level + rng.random_range(-0.06..0.06_f32)).clamp(0.0, 1.0));
    let radius = rng.random_range(size.radii());
    DrawnObject { shape, colour, fill, size, centre: (0.5, 0.5), radius, angle: tilt(rng, style), rgb }
}

/// Puts the objects where their circles are apart and inside the image; those that find no room are left out, the
/// first never.
fn place(rng: &mut ChaCha8Rng, objects: Vec<DrawnObject>) -> Vec<DrawnObject> {
    let mut placed: Vec<DrawnObject> = Vec::with_capacity(objects.len());
    for mut object in objects {
        let span = (object.radius + 0.02)..(0.98 - object.radius);
        for _ in 0..60 {
            object.centre = (rng.random_range(span.clone()), rng.random_range(span.clone()));
            let apart = |other: &DrawnObject| {
                let (dx, dy) = (object.centre.0 - other.centre.0, object.centre.1 - other.centre.1);
                dx.hypot(dy) > object.radius + other.radius + 0.02
            };
            if placed.iter().all(apart) {
                placed.push(object);
                break;
            }
        }
    }
    placed
}
