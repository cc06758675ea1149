//! Where every random number comes from.
//!
//! Each use has a stream of its own, named by what it is for. So a draw never depends on how many numbers something else
//! took before it, on the order of iteration or on the number of threads.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// The stream for `purpose` (a fixed name such as `"shuffle"`, or a name and a class) at `epoch` and `index` of a run with
/// `seed`. Equal arguments give equal streams on every machine.
pub fn stream(seed: u64, purpose: &str, epoch: u64, index: u64) -> ChaCha8Rng {
    let mut hash = blake3::Hasher::new();
    for number in [seed, epoch, index] {
        hash.update(&number.to_le_bytes());
    }
    hash.update(purpose.as_bytes());
    ChaCha8Rng::from_seed(*hash.finalize().as_bytes())
}

/// One draw from N(0, 1), by Box and Muller's transform.
pub fn normal(rng: &mut impl Rng) -> f32 {
    let radius = (-2. * (1. - rng.random::<f64>()).ln()).sqrt();
    (radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_argument_makes_another_stream() {
        let first = |seed, purpose, epoch, index| stream(seed, purpose, epoch, index).random::<u64>();
        let all =
            [first(1, "a", 0, 0), first(2, "a", 0, 0), first(1, "b", 0, 0), first(1, "a", 1, 0), first(1, "a", 0, 1)];
        for (i, x) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|y| y != x), "{all:?}");
        }
        assert_eq!(first(1, "a", 0, 0), all[0]);
    }

    #[test]
    fn normal_draws_have_mean_zero_and_deviation_one() {
        let mut rng = stream(1, "normal", 0, 0);
        let draws: Vec<f64> = (0..20_000).map(|_| f64::from(normal(&mut rng))).collect();
        let mean = draws.iter().sum::<f64>() / 20_000.;
        let deviation = (draws.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / 20_000.).sqrt();
        assert!(mean.abs() < 0.03 && (deviation - 1.).abs() < 0.03, "{mean} {deviation}");
    }
}
