//! L-BFGS with a line search that meets the strong Wolfe conditions: Nocedal and Wright, "Numerical Optimization" (2006),
//! algorithms 7.4, 7.5, 3.5 and 3.6, in f64. It is what fits a linear probe to its one minimum.

use vpt_base::linear_algebra::dot;

/// Steps that the approximation of the Hessian remembers.
const MEMORY: usize = 10;
/// Sufficient decrease, and how much flatter the slope must have become.
const DECREASE: f64 = 1e-4;
const CURVATURE: f64 = 0.9;
/// Relative difference of values that rounding can make.
const ROUNDING: f64 = 1e-13;
/// Evaluations of the function that a line search may take.
const TRIES: usize = 30;

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stop {
    /// At a gradient whose largest component is this small.
    pub(super) gradient: f64,
    /// After this many steps.
    pub(super) steps: usize,
}

/// A gradient times something like the inverse Hessian.
pub(super) type InverseHessian<'a> = &'a dyn Fn(&[f64]) -> Vec<f64>;

/// A place, its value and its gradient.
#[derive(Debug, Clone)]
struct Point {
    x: Vec<f64>,
    value: f64,
    gradient: Vec<f64>,
}

/// A step that was taken: how far, and how the gradient changed.
struct CurvaturePair {
    s: Vec<f64>,
    y: Vec<f64>,
    rho: f64,
}

/// Where `function`, which gives value and gradient, is least, from `start` on. What `inverse` makes of a gradient, symmetric and positive, is what
/// steps begin from instead of the gradient as it is. It also ends where
/// rounding leaves no step that goes down. Beside the place: whether it is where to stop, not where the steps ran out.
pub(super) fn minimise<E>(
    start: Vec<f64>,
    stop: Stop,
    inverse: Option<InverseHessian<'_>>,
    mut function: impl FnMut(&[f64]) -> Result<(f64, Vec<f64>), E>,
) -> Result<(Vec<f64>, bool), E> {
    let mut at = |x: Vec<f64>| -> Result<Point, E> {
        let (value, gradient) = function(&x)?;
        Ok(Point { x, value, gradient })
    };
    let mut now = at(start)?;
    let mut pairs: Vec<CurvaturePair> = Vec::new();
    for _ in 0..stop.steps {
        if is_flat(&now, stop) {
            return Ok((now.x, true));
        }
        let direction = direction(&now.gradient, &pairs, inverse);
        // The first step has no curvature to go by, unless it is told.
        let length = if pairs.is_empty() && inverse.is_none() { 1f64.min(1. / norm(&now.gradient)) } else { 1. };
        let Some(next) = line_search(&now, &direction, length, &mut at)? else {
            if pairs.is_empty() {
                return Ok((now.x, true));
            }
            // An approximation that has gone astray: once more along the gradient.
            pairs.clear();
            continue;
        };
        let s: Vec<f64> = next.x.iter().zip(&now.x).map(|(a, b)| a - b).collect();
        let y: Vec<f64> = next.gradient.iter().zip(&now.gradient).map(|(a, b)| a - b).collect();
        let curvature = dot(&s, &y);
        if curvature > f64::EPSILON * dot(&y, &y) {
            if pairs.len() == MEMORY {
                pairs.remove(0);
            }
            pairs.push(CurvaturePair { s, y, rho: 1. / curvature });
        }
        now = next;
    }
    let flat = is_flat(&now, stop);
    Ok((now.x, flat))
}

fn is_flat(point: &Point, stop: Stop) -> bool {
    point.gradient.iter().all(|g| g.abs() <= stop.gradient)
}

/// Minus the gradient times the inverse Hessian as the `pairs` tell it, and before them `inverse`: the two loops.
fn direction(gradient: &[f64], pairs: &[CurvaturePair], inverse: Option<InverseHessian<'_>>) -> Vec<f64> {
    let mut q: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut alphas = Vec::with_capacity(pairs.len());
    for pair in pairs.iter().rev() {
        let alpha = pair.rho * dot(&pair.s, &q);
        add(&mut q, -alpha, &pair.y);
        alphas.push(alpha);
    }
    if let Some(inverse) = inverse {
        q = inverse(&q);
    }
    if let Some(last) = pairs.last() {
        let along = inverse.map_or_else(|| dot(&last.y, &last.y), |inverse| dot(&last.y, &inverse(&last.y)));
        let scale = 1. / (last.rho * along);
        for v in &mut q {
            *v *= scale;
        }
    }
    for (pair, alpha) in pairs.iter().zip(alphas.iter().rev()) {
        let beta = pair.rho * dot(&pair.y, &q);
        add(&mut q, alpha - beta, &pair.s);
    }
    q
}

/// A point on the line from `from` along `direction` that meets the strong Wolfe conditions, or the lowest one that goes
/// down; `None` if there is none.
fn line_search<E>(
    from: &Point,
    direction: &[f64],
    first: f64,
    at: &mut impl FnMut(Vec<f64>) -> Result<Point, E>,
) -> Result<Option<Point>, E> {
    let slope = dot(&from.gradient, direction);
    if slope >= 0. {
        return Ok(None);
    }
    // The ends of an interval that holds a good step: (length, value, slope); `low` is the lower of the two.
    let mut low = (0., from.value, slope);
    let mut high: Option<(f64, f64, f64)> = None;
    let mut length = first;
    let mut best: Option<Point> = None;
    for _ in 0..TRIES {
        let mut x = from.x.clone();
        add(&mut x, length, direction);
        let point = at(x)?;
        let here = (length, point.value, dot(&point.gradient, direction));
        // Near the minimum rounding hides how much lower a point is; its slope still tells (Hager and Zhang 2005, §4.1).
        let as_low = (point.value - from.value).abs() <= ROUNDING * from.value.abs();
        let goes_down =
            point.value <= from.value + DECREASE * length * slope || (as_low && here.2 <= (2. * DECREASE - 1.) * slope);
        if goes_down && here.2.abs() <= -CURVATURE * slope {
            return Ok(Some(point));
        }
        if goes_down && point.value < low.1 {
            // Beyond a point that is lower and still falls away from `high`, the step may be longer.
            if high.map_or(here.2 >= 0., |high| here.2 * (high.0 - low.0) >= 0.) {
                high = Some(low);
            }
            low = here;
        } else {
            high = Some(here);
        }
        if point.value < best.as_ref().map_or(from.value, |best| best.value) {
            best = Some(point);
        }
        length = match high {
            Some(high) => between(low, high),
            None => 2. * length,
        };
    }
    Ok(best)
}

/// The minimum of the cubic through two points of known slope, kept off the ends of the interval.
fn between(a: (f64, f64, f64), b: (f64, f64, f64)) -> f64 {
    let d1 = a.2 + b.2 - 3. * (a.1 - b.1) / (a.0 - b.0);
    let d2 = (d1 * d1 - a.2 * b.2).sqrt().copysign(b.0 - a.0);
    let minimum = b.0 - (b.0 - a.0) * (b.2 + d2 - d1) / (b.2 - a.2 + 2. * d2);
    let (low, high) = (a.0.min(b.0), a.0.max(b.0));
    let margin = 0.1 * (high - low);
    if minimum.is_finite() { minimum.clamp(low + margin, high - margin) } else { f64::midpoint(low, high) }
}

fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

fn add(to: &mut [f64], factor: f64, what: &[f64]) {
    to.iter_mut().zip(what).for_each(|(t, w)| *t += factor * w);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_finds_the_bottom_of_rosenbrock_s_valley() {
        let mut calls = 0;
        let rosenbrock = |x: &[f64]| {
            calls += 1;
            let (a, b) = (1. - x[0], x[1] - x[0] * x[0]);
            Ok::<_, ()>((a * a + 100. * b * b, vec![-2. * a - 400. * x[0] * b, 200. * b]))
        };
        let (found, done) = minimise(vec![-1.2, 1.], Stop { gradient: 1e-10, steps: 200 }, None, rosenbrock).unwrap();
        assert!(done && found.iter().all(|x| (x - 1.).abs() < 1e-9), "{found:?}");
        assert!(calls < 100, "{calls} evaluations");
        let rosenbrock = |x: &[f64]| {
            let (a, b) = (1. - x[0], x[1] - x[0] * x[0]);
            Ok::<_, ()>((a * a + 100. * b * b, vec![-2. * a - 400. * x[0] * b, 200. * b]))
        };
        assert!(
            !minimise(vec![-1.2, 1.], Stop { gradient: 1e-10, steps: 3 }, None, rosenbrock).unwrap().1,
            "cut short"
        );
    }

    #[test]
    fn a_quadratic_of_any_scale_takes_few_steps() {
        for scale in [1e-6, 1., 1e6] {
            let mut calls = 0;
            let quadratic = |x: &[f64]| {
                calls += 1;
                let g: Vec<f64> = x.iter().enumerate().map(|(i, x)| scale * (i + 1) as f64 * (x - 3.)).collect();
                Ok::<_, ()>((x.iter().zip(&g).map(|(x, g)| 0.5 * (x - 3.) * g).sum(), g))
            };
            let (found, _) =
                minimise(vec![0.; 5], Stop { gradient: 1e-9 * scale, steps: 100 }, None, quadratic).unwrap();
            assert!(found.iter().all(|x| (x - 3.).abs() < 1e-8), "{scale}: {found:?}");
            assert!(calls < 60, "{calls} evaluations at {scale}");
        }
    }

    #[test]
    fn an_inverse_that_is_nearly_right_saves_most_steps() {
        // Curvatures from 1 to 1e4, each known to a fifth or so.
        let curvature = |i: usize| 10f64.powi(i as i32 % 5);
        let evaluations = |inverse: Option<InverseHessian<'_>>| {
            let mut calls = 0;
            let quartic = |x: &[f64]| {
                calls += 1;
                let away = x.iter().enumerate().map(|(i, x)| (curvature(i), x - (i as f64).sin()));
                let (mut value, mut g) = (0., Vec::new());
                for (c, d) in away {
                    value += c * (0.5 * d * d + 0.02 * d.powi(4));
                    g.push(c * (d + 0.08 * d.powi(3)));
                }
                Ok::<_, ()>((value, g))
            };
            let (found, _) = minimise(vec![0.; 50], Stop { gradient: 1e-6, steps: 2000 }, inverse, quartic).unwrap();
            assert!(found.iter().enumerate().all(|(i, x)| (x - (i as f64).sin()).abs() < 1e-3), "{found:?}");
            calls
        };
        let known = |i: usize| curvature(i) * (1. + 0.1 * (i % 3) as f64);
        let inverse = |g: &[f64]| g.iter().enumerate().map(|(i, g)| g / known(i)).collect();
        let (with, without) = (evaluations(Some(&inverse)), evaluations(None));
        assert!(with < 50 && 3 * with < without, "{with} and {without}");
    }

    #[test]
    fn where_there_is_nothing_to_gain_it_stays() {
        let flat = |x: &[f64]| Ok::<_, ()>((1., vec![0.; x.len()]));
        assert_eq!(
            minimise(vec![0.5, 2.], Stop { gradient: 0., steps: 10 }, None, flat).unwrap(),
            (vec![0.5, 2.], true)
        );
    }
}
