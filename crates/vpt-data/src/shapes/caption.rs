//! Says what is in a scene, in one of many ways and mostly not all of it, and knows of which other scenes that is true.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::scene::{Colour, DrawnObject, Fill, ObjectSize, Pattern, Scene, Shape};

/// A class name: "red circle".
pub fn name(colour: Colour, shape: Shape) -> String {
    format!("{} {}", colour.word(), shape.word())
}

/// Sentences around a noun phrase with its article.
const AROUND: [&str; 12] = [
    "{}",
    "{}",
    "{}.",
    "a photo of {}.",
    "a photo of {}.",
    "a photo of {}",
    "a picture of {}.",
    "an image of {}.",
    "a drawing of {}.",
    "there is {}.",
    "this is {}.",
    "we see {}.",
];

/// A sentence about a scene and what it claims.
#[derive(Clone, Debug, PartialEq)]
pub struct Caption {
    /// The sentence.
    pub text: String,
    claim: Claim,
    background: Option<&'static str>,
}

/// Description of an object in a sentence; parts left open are `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Traits {
    colour: Option<Colour>,
    shape: Option<Shape>,
    size: Option<ObjectSize>,
    fill: Option<Fill>,
    position: Option<&'static str>,
}

impl Traits {
    fn hold(&self, object: &DrawnObject) -> bool {
        self.colour.is_none_or(|colour| colour == object.colour)
            && self.shape.is_none_or(|shape| shape == object.shape)
            && self.size.is_none_or(|size| size == object.size)
            && self.fill.is_none_or(|fill| fill == object.fill)
            && self.position.is_none_or(|at| at == position(object.centre))
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Claim {
    /// There is one object.
    One(Traits),
    /// There are so many alike; any number from two where none is said.
    Several(Option<usize>, Traits),
    /// There are these; the first two stand in this relation.
    Different(Vec<(Colour, Shape)>, Option<&'static str>),
}

/// Whether all objects are of one colour and shape.
fn alike(objects: &[DrawnObject]) -> bool {
    objects.windows(2).all(|two| two[0].colour == two[1].colour && two[0].shape == two[1].shape)
}

impl Caption {
    /// A caption true of `scene`: of a single object, several alike, or two or more different ones. A `short` one says
    /// nothing of a single object but colour and shape, and nothing of the background.
    pub fn new(scene: &Scene, short: bool, rng: &mut ChaCha8Rng) -> Self {
        let objects = &scene.objects;
        let (mut said, claim) = match objects.first() {
            None => ("an empty scene".to_owned(), Claim::Different(Vec::new(), None)),
            Some(object) if objects.len() == 1 => single(object, short, rng),
            Some(_) if alike(objects) => counted(objects, rng),
            Some(_) => different(objects, rng),
        };
        let background = (!short && rng.random_bool(0.12)).then(|| background(scene));
        if let Some(word) = background {
            said = format!("{said} on a {word} background");
        }
        let around = AROUND.choose(rng).unwrap_or(&AROUND[0]);
        // A bare noun phrase without its article is how class names are written.
        let bare = said.strip_prefix("a ").or_else(|| said.strip_prefix("an "));
        let text = match bare {
            Some(bare) if *around == "{}" && rng.random_bool(0.4) => bare.to_owned(),
            _ if objects.len() > 1 => {
                around.replace("there is", "there are").replace("this is", "these are").replace("{}", &said)
            }
            _ => around.replace("{}", &said),
        };
        Self { text, claim, background }
    }

    /// Whether the caption is true of a scene: `None` where people may differ, such as "a red circle" of a scene that
    /// shows a red circle among other things.
    pub fn holds(&self, scene: &Scene) -> Option<bool> {
        if self.background.is_some_and(|word| word != background(scene)) {
            return Some(false);
        }
        let objects = &scene.objects;
        let one = objects.len() == 1;
        match &self.claim {
            Claim::One(traits) if one => Some(traits.hold(&objects[0])),
            Claim::Several(_, _) if one => Some(false),
            Claim::Several(count, traits) if alike(objects) => {
                let counted = count.is_none_or(|count| count == objects.len());
                Some(counted && objects.iter().all(|object| traits.hold(object)))
            }
            Claim::One(traits) | Claim::Several(_, traits) => {
                if objects.iter().any(|object| traits.hold(object)) {
                    None
                } else {
                    Some(false)
                }
            }
            Claim::Different(named, relation) => {
                let find = |pair: &(Colour, Shape)| objects.iter().find(|o| (o.colour, o.shape) == *pair);
                let found: Vec<&DrawnObject> = named.iter().filter_map(find).collect();
                if found.len() < named.len() {
                    return Some(false);
                }
                if named.len() != objects.len() || alike(objects) {
                    return None;
                }
                Some(relation.is_none_or(|said| said == relation_of(found[0], found[1])))
            }
        }
    }
}

fn with_article(phrase: &str) -> String {
    let vowel = phrase.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {phrase}", if vowel { "an" } else { "a" })
}

fn background(scene: &Scene) -> &'static str {
    match scene.background.pattern {
        Pattern::Checkered => "checkered",
        _ => scene.background.tone.word(),
    }
}

fn single(object: &DrawnObject, short: bool, rng: &mut ChaCha8Rng) -> (String, Claim) {
    let mut traits = Traits::default();
    let kind: f64 = rng.random();
    if kind < 0.10 {
        traits.colour = Some(object.colour);
        let thing = ["shape", "object", "thing"].choose(rng).unwrap_or(&"shape");
        return (with_article(&format!("{} {thing}", object.colour.word())), Claim::One(traits));
    }
    traits.shape = Some(object.shape);
    if kind < 0.20 {
        return (with_article(object.shape.word()), Claim::One(traits));
    }
    let mut words = Vec::with_capacity(4);
    if !short && rng.random_bool(0.2) {
        words.push(object.size.word());
        traits.size = Some(object.size);
    }
    if !short && rng.random_bool(0.2) {
        words.push(object.fill.word());
        traits.fill = Some(object.fill);
    }
    if kind < 0.92 {
        words.push(object.colour.word());
        traits.colour = Some(object.colour);
    }
    words.push(object.shape.word());
    let mut said = with_article(&words.join(" "));
    if !short && rng.random_bool(0.12) {
        let at = position(object.centre);
        said = format!("{said} {at}");
        traits.position = Some(at);
    }
    (said, Claim::One(traits))
}

fn position((x, y): (f32, f32)) -> &'static str {
    let third = |at: f32| if at < 0.42 { 0 } else { usize::from(at > 0.58) + 1 };
    [
        ["in the top left", "at the top", "in the top right"],
        ["on the left", "in the middle", "on the right"],
        ["in the bottom left", "at the bottom", "in the bottom right"],
    ][third(y)][third(x)]
}

fn counted(objects: &[DrawnObject], rng: &mut ChaCha8Rng) -> (String, Claim) {
    let (object, count) = (&objects[0], objects.len());
    let mut traits = Traits::default();
    let number = match count {
        2 => Some("two"),
        3 => Some("three"),
        4 => Some("four"),
        _ => None,
    };
    let number = number.filter(|_| rng.random_bool(0.8));
    let named = number.map(|_| count);
    let number = number.unwrap_or("several");
    let kind: f64 = rng.random();
    let said = if kind < 0.1 {
        traits.shape = Some(object.shape);
        format!("{number} {}", object.shape.plural())
    } else if kind < 0.2 {
        traits.colour = Some(object.colour);
        format!("{number} {} shapes", object.colour.word())
    } else {
        (traits.colour, traits.shape) = (Some(object.colour), Some(object.shape));
        let pair = format!("{} {}", object.colour.word(), object.shape.plural());
        if rng.random_bool(0.2) && objects.iter().all(|other| other.fill == object.fill) {
            traits.fill = Some(object.fill);
            format!("{number} {} {pair}", object.fill.word())
        } else {
            format!("{number} {pair}")
        }
    };
    (said, Claim::Several(named, traits))
}

fn relation_of(a: &DrawnObject, b: &DrawnObject) -> &'static str {
    let (dx, dy) = (a.centre.0 - b.centre.0, a.centre.1 - b.centre.1);
    match (dx.abs() > dy.abs(), dx < 0.0, dy < 0.0) {
        (true, true, _) => "to the left of",
        (true, false, _) => "to the right of",
        (false, _, true) => "above",
        (false, _, false) => "below",
    }
}

fn different(objects: &[DrawnObject], rng: &mut ChaCha8Rng) -> (String, Claim) {
    let mut order: Vec<&DrawnObject> = objects.iter().collect();
    if rng.random_bool(0.5) {
        order.reverse();
    }
    let named = order.iter().map(|object| (object.colour, object.shape)).collect();
    let phrases: Vec<String> = order.iter().map(|object| with_article(&name(object.colour, object.shape))).collect();
    if let [a, b] = &order[..]
        && rng.random_bool(0.4)
    {
        let relation = relation_of(a, b);
        let said = format!("{} {relation} {}", phrases[0], phrases[1]);
        return (said, Claim::Different(named, Some(relation)));
    }
    let (last, rest) = phrases.split_last().map_or(("", &[][..]), |(last, rest)| (last.as_str(), rest));
    (format!("{} and {last}", rest.join(", ")), Claim::Different(named, None))
}
