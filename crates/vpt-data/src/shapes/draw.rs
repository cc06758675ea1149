//! Draws a scene at any side length. Edges are anti-aliased by the signed distance to the outline.

use super::scene::{Background, DrawnObject, Fill, Pattern, Scene, Shape, Style};
use vpt_image::Rgb8;

/// A drawn scene.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawing {
    /// The picture, as wide as high.
    pub image: Rgb8,
    /// Where each object is, in the scene's order.
    pub extents: Vec<Extent>,
    /// For each pixel, row by row, the object that covers it by at least a half, counted from 1: the last one painted, 0 for none.
    pub owners: Vec<u16>,
}

/// The pixels an object's outline covers by at least a half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Left edge, pixels.
    pub x: usize,
    /// Upper edge, pixels.
    pub y: usize,
    /// Width, pixels.
    pub width: usize,
    /// Height, pixels.
    pub height: usize,
    /// How many pixels are covered. The gaps of outlined, striped and dotted objects count as covered.
    pub area: usize,
}

/// Draws `scene` as a square image of `side` pixels.
pub fn draw(scene: &Scene, side: usize) -> Drawing {
    let mut canvas = backdrop(scene, side);
    let mut owners = vec![0; side * side];
    let mut extents = Vec::with_capacity(scene.objects.len());
    for (object, number) in scene.objects.iter().zip(1..) {
        extents.push(paint(&mut canvas, side, object, scene, &mut |at| owners[at] = number));
    }
    if scene.style == Style::Shifted {
        shift(&mut canvas, side, scene.grain);
    }
    let pixels = canvas.iter().map(|level| (level * 255.0 + 0.5) as u8).collect();
    Drawing { image: Rgb8 { width: side, height: side, pixels }, extents, owners }
}

/// A number in -1..=1 decided by the seed and two coordinates.
fn grain(seed: u32, x: usize, y: usize) -> f32 {
    let mut hash = seed ^ (x as u32).wrapping_mul(0x9E37_79B1) ^ (y as u32).wrapping_mul(0x85EB_CA77);
    hash = (hash ^ (hash >> 15)).wrapping_mul(0x2C1B_3C6D);
    hash = (hash ^ (hash >> 12)).wrapping_mul(0x297A_2D39);
    hash ^= hash >> 15;
    hash as f32 / (u32::MAX as f32 / 2.0) - 1.0
}

fn backdrop(scene: &Scene, side: usize) -> Vec<f32> {
    let Background { pattern, level, angle, .. } = scene.background;
    let (sin, cos) = angle.sin_cos();
    let cell = (side / 8).max(1);
    let mut canvas = Vec::with_capacity(side * side * 3);
    for y in 0..side {
        for x in 0..side {
            let offset = match pattern {
                Pattern::Plain => 0.0,
                Pattern::Gradient => {
                    let (u, v) = (x as f32 / side as f32 - 0.5, y as f32 / side as f32 - 0.5);
                    0.2 * (u * cos + v * sin)
                }
                Pattern::Checkered => {
                    if (x / cell + y / cell).is_multiple_of(2) {
                        0.07
                    } else {
                        -0.07
                    }
                }
                Pattern::Noisy => 0.06 * grain(scene.grain, x, y),
            };
            canvas.extend([(level + offset).clamp(0.0, 1.0); 3]);
        }
    }
    canvas
}

/// Paints one object over the canvas, says which pixels it covers, and calls `covers` with each of them.
fn paint(
    canvas: &mut [f32],
    side: usize,
    object: &DrawnObject,
    scene: &Scene,
    covers: &mut impl FnMut(usize),
) -> Extent {
    let scale = side as f32;
    let radius = object.radius * scale;
    let (cx, cy) = (object.centre.0 * scale, object.centre.1 * scale);
    let (sin, cos) = object.angle.sin_cos();
    let range = |centre: f32| {
        let low = (centre - radius - 2.0).floor().clamp(0.0, scale) as usize;
        let high = (centre + radius + 2.0).ceil().clamp(0.0, scale) as usize;
        low..high
    };
    let light = object.rgb.map(|level| 0.25 * level + 0.75);
    let shifted = scene.style == Style::Shifted;
    let phase = scene.grain as f32 / u32::MAX as f32 * std::f32::consts::TAU;
    let (mut left, mut top, mut right, mut bottom, mut area) = (side, side, 0, 0, 0);
    for y in range(cy) {
        for x in range(cx) {
            let (dx, dy) = ((x as f32 + 0.5 - cx) / radius, (y as f32 + 0.5 - cy) / radius);
            let (u, v) = (dx * cos + dy * sin, dy * cos - dx * sin);
            let mut distance = signed_distance(object.shape, u, v);
            if shifted {
                distance += 0.035 * (v.atan2(u) * 7.0 + phase).sin();
            }
            let cover = (0.5 - distance * radius).clamp(0.0, 1.0);
            if cover <= 0.0 {
                continue;
            }
            if cover >= 0.5 {
                (left, top) = (left.min(x), top.min(y));
                (right, bottom) = (right.max(x + 1), bottom.max(y + 1));
                area += 1;
                covers(y * side + x);
            }
            let (alpha, lightness) = ink(object.fill, distance, u, v, radius);
            let cover = cover * alpha;
            let edge = if shifted { (1.0 + (distance + 0.08) * radius).clamp(0.0, 1.0) * 0.7 } else { 0.0 };
            let pixel = &mut canvas[(y * side + x) * 3..][..3];
            for channel in 0..3 {
                let body = object.rgb[channel] + (light[channel] - object.rgb[channel]) * lightness;
                let colour = body * (1.0 - edge);
                pixel[channel] += (colour - pixel[channel]) * cover;
            }
        }
    }
    if area == 0 {
        return Extent::default();
    }
    Extent { x: left, y: top, width: right - left, height: bottom - top, area }
}

/// Opacity and lightness, both 0..=1, of a fill at (u, v), in radii from the object's centre.
fn ink(fill: Fill, distance: f32, u: f32, v: f32, radius: f32) -> (f32, f32) {
    match fill {
        Fill::Solid => (1.0, 0.0),
        Fill::Outlined => {
            let width = (3.0 / radius).clamp(0.2, 0.4);
            (((distance + width) * radius + 0.5).clamp(0.0, 1.0), 0.0)
        }
        Fill::Striped => {
            let wave = ((v / 0.56).rem_euclid(1.0) - 0.5).abs() - 0.25;
            (1.0, (wave * 0.56 * radius + 0.5).clamp(0.0, 1.0))
        }
        Fill::Dotted => {
            let (a, b) = ((u / 0.5).rem_euclid(1.0) - 0.5, (v / 0.5).rem_euclid(1.0) - 0.5);
            (1.0, ((0.15 - 0.5 * a.hypot(b)) * radius + 0.5).clamp(0.0, 1.0))
        }
    }
}

/// Signed distance to the outline, negative inside, in radii of the circle around the shape; y grows downwards.
/// Exact outside unions' inner seams, where it is a bound.
fn signed_distance(shape: Shape, u: f32, v: f32) -> f32 {
    match shape {
        Shape::Circle => u.hypot(v) - 0.92,
        Shape::Square => rectangle(u, v, 0.7, 0.7),
        Shape::Triangle => polygon(&[(0.0, -0.98), (0.85, 0.49), (-0.85, 0.49)], u, v),
        Shape::Star => polygon(&STAR, u, v),
        Shape::Heart => {
            // A square standing on a corner with a half disc on each of its two upper sides.
            let (a, b) = ((u - (v - 0.18)) * HALF, (u + (v - 0.18)) * HALF);
            let half = 0.54;
            let square = rectangle(a, b, half, half);
            let lobes = (a - half).hypot(b).min(a.hypot(b + half)) - half;
            square.min(lobes)
        }
        Shape::Cross => rectangle(u, v, 0.92, 0.3).min(rectangle(u, v, 0.3, 0.92)),
        Shape::Diamond => polygon(&[(0.0, -0.98), (0.56, 0.0), (0.0, 0.98), (-0.56, 0.0)], u, v),
        Shape::Moon => {
            let (u, v) = (u - 0.12, v);
            (u.hypot(v) - 0.92).max(0.78 - (u - 0.48).hypot(v))
        }
    }
}

const HALF: f32 = std::f32::consts::FRAC_1_SQRT_2;

/// A five-pointed star, tip up; inner corners at 0.45 of the outer radius.
const STAR: [(f32, f32); 10] = [
    (0.0, -0.98),
    (0.2592, -0.3568),
    (0.9320, -0.3028),
    (0.4194, 0.1363),
    (0.5760, 0.7928),
    (0.0, 0.4410),
    (-0.5760, 0.7928),
    (-0.4194, 0.1363),
    (-0.9320, -0.3028),
    (-0.2592, -0.3568),
];

fn rectangle(u: f32, v: f32, half_width: f32, half_height: f32) -> f32 {
    let (du, dv) = (u.abs() - half_width, v.abs() - half_height);
    du.max(0.0).hypot(dv.max(0.0)) + du.max(dv).min(0.0)
}

/// Distance to the nearest edge, signed by the parity of edges crossed by a ray to the right.
fn polygon(corners: &[(f32, f32)], u: f32, v: f32) -> f32 {
    let mut nearest = f32::INFINITY;
    let mut inside = false;
    let mut from = corners[corners.len() - 1];
    for &to in corners {
        let (eu, ev) = (to.0 - from.0, to.1 - from.1);
        let (pu, pv) = (u - from.0, v - from.1);
        let along = ((pu * eu + pv * ev) / (eu * eu + ev * ev)).clamp(0.0, 1.0);
        let (du, dv) = (pu - eu * along, pv - ev * along);
        nearest = nearest.min(du * du + dv * dv);
        if (from.1 > v) != (to.1 > v) && pu < eu * pv / ev {
            inside = !inside;
        }
        from = to;
    }
    if inside { -nearest.sqrt() } else { nearest.sqrt() }
}

/// The look of [`Style::Shifted`] that concerns the whole picture: hatching, pale and tinted colours, noise.
fn shift(canvas: &mut [f32], side: usize, seed: u32) {
    let tint = [1.0, 0.9, 0.68];
    let pitch = (side / 9).max(3);
    for (index, pixel) in canvas.chunks_exact_mut(3).enumerate() {
        let (x, y) = (index % side, index / side);
        let hatch = if (x + y).is_multiple_of(pitch) { -0.10 } else { 0.0 };
        let noise = 0.07 * grain(seed ^ 0x5A5A_5A5A, x, y) + hatch;
        for (level, tint) in pixel.iter_mut().zip(tint) {
            *level = ((0.30 + 0.5 * *level) * tint + noise).clamp(0.0, 1.0);
        }
    }
}
