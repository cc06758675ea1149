//! A map of values laid over a picture: where a network looks.

use crate::rgb::Rgb8;

/// Colors from the least value to the largest, evenly spaced: dark to light, so that they are told apart in grey, too.
const COLORS: [[f64; 3]; 7] = [
    [20., 11., 52.],
    [87., 16., 110.],
    [147., 38., 103.],
    [205., 66., 72.],
    [243., 120., 25.],
    [251., 180., 33.],
    [252., 255., 164.],
];
/// How much of the color covers the picture.
const COVER: f64 = 0.6;
/// Light that is left of the picture where there is no map.
const OUTSIDE: f64 = 0.3;

/// A map of values, none of them negative.
#[derive(Clone, Copy, Debug)]
pub struct HeatMap<'a> {
    /// Row by row from the top.
    pub values: &'a [f32],
    /// Values in a row.
    pub columns: usize,
    /// Where in the picture it lies: left, top, width and height in pixels. It may reach outside.
    pub place: [f64; 4],
}

impl HeatMap<'_> {
    /// The same picture under the map, in colors from dark to light by the share of the largest value; between the middles of its
    /// cells values are interpolated. What is not under the map is darkened.
    pub fn over(&self, picture: &Rgb8) -> Rgb8 {
        let rows = self.values.len() / self.columns.max(1);
        let most = self.values.iter().copied().fold(0_f32, f32::max);
        let [left, top, width, height] = self.place;
        let across = |x: usize, begin: f64, length: f64, cells: usize| {
            let at = (x as f64 + 0.5 - begin) / length;
            (0. ..1.).contains(&at).then_some(at * cells as f64)
        };
        let columns: Vec<Option<f64>> = (0..picture.width).map(|x| across(x, left, width, self.columns)).collect();
        let mut over = picture.clone();
        for (y, row) in over.pixels.chunks_exact_mut((picture.width * 3).max(1)).enumerate() {
            let at_row = across(y, top, height, rows);
            for (pixel, at_column) in row.as_chunks_mut::<3>().0.iter_mut().zip(&columns) {
                let Some((x, y)) = at_column.zip(at_row) else {
                    *pixel = pixel.map(|value| (f64::from(value) * OUTSIDE) as u8);
                    continue;
                };
                let share = if most > 0. { f64::from(self.at(x, y, rows)) / f64::from(most) } else { 0. };
                let color = color(share);
                for (value, color) in pixel.iter_mut().zip(color) {
                    *value = (f64::from(*value) * (1. - COVER) + color * COVER).round() as u8;
                }
            }
        }
        over
    }

    /// The value at column `x` and row `y`, counted from the corner of the map in cells.
    fn at(&self, x: f64, y: f64, rows: usize) -> f32 {
        let around = |at: f64, cells: usize| {
            let at = (at - 0.5).clamp(0., cells.saturating_sub(1) as f64);
            let first = at.floor() as usize;
            (first, (first + 1).min(cells.saturating_sub(1)), (at - at.floor()) as f32)
        };
        let ((x0, x1, of_x1), (y0, y1, of_y1)) = (around(x, self.columns), around(y, rows));
        let value = |x: usize, y: usize| self.values[y * self.columns + x];
        let along = |y: usize| value(x0, y) * (1. - of_x1) + value(x1, y) * of_x1;
        along(y0) * (1. - of_y1) + along(y1) * of_y1
    }
}

/// The color of a share of the largest value.
fn color(share: f64) -> [f64; 3] {
    let at = share.clamp(0., 1.) * (COLORS.len() - 1) as f64;
    let first = (at as usize).min(COLORS.len() - 2);
    let of_next = at - first as f64;
    std::array::from_fn(|i| COLORS[first][i] * (1. - of_next) + COLORS[first + 1][i] * of_next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(image: &Rgb8, x: usize, y: usize) -> u32 {
        let at = (y * image.width + x) * 3;
        image.pixels[at..at + 3].iter().map(|&value| u32::from(value)).sum()
    }

    #[test]
    fn the_largest_value_is_the_lightest_and_what_is_outside_is_dark() {
        let picture = Rgb8::from_grey(8, 6, &[128; 48]);
        let map = HeatMap { values: &[0., 0., 0., 4.], columns: 2, place: [2., 0., 6., 6.] };
        let over = map.over(&picture);
        assert_eq!((over.width, over.height), (8, 6));
        assert_eq!(level(&over, 1, 5), 3 * 38);
        assert!(
            (2..8).flat_map(|x| (0..6).map(move |y| (x, y))).all(|(x, y)| level(&over, x, y) <= level(&over, 7, 5))
        );
        assert!(level(&over, 7, 5) > level(&over, 5, 4) && level(&over, 5, 4) > level(&over, 2, 0));
        let grey = color(1.).map(|color| (128. * (1. - COVER) + color * COVER).round() as u32);
        assert_eq!(level(&over, 7, 5), grey.iter().sum::<u32>());
    }

    #[test]
    fn colors_go_from_dark_to_light() {
        let light = |i: usize| {
            let [r, g, b] = color(i as f64 / 50.);
            0.2126 * r + 0.7152 * g + 0.0722 * b
        };
        assert!((0..50).all(|i| light(i) < light(i + 1)));
    }

    #[test]
    fn a_map_of_nothing_and_one_that_lies_elsewhere_do_no_harm() {
        let picture = Rgb8::new(3, 2);
        for (values, place) in
            [(&[0.; 4], [0., 0., 3., 2.]), (&[f32::NAN; 4], [0., 0., 3., 2.]), (&[1.; 4], [9., 9., 1., 1.])]
        {
            let over = HeatMap { values, columns: 2, place }.over(&picture);
            assert_eq!(over.pixels.len(), picture.pixels.len());
        }
    }
}
