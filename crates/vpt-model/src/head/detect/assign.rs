//! Which tokens answer for which boxes: the nearest ones.
//!
//! On coarse grids many boxes hold no token's centre at all (a third of COCO's at 12 x 12), so that "tokens inside the box"
//! would lose them; a token near its centre every box has.

use super::geometry::Grid;
use serde::{Deserialize, Serialize};

/// Up to this many tokens a side a box takes [`FEW`] tokens, above it [`MANY`].
const COARSE: usize = 16;
const FEW: usize = 4;
const MANY: usize = 9;

/// A true box of an image, in units of the network input.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Truth {
    /// Centre and size `[cx, cy, w, h]`.
    pub rect: [f32; 4],
    /// Its class, 0 to K - 1.
    pub class: usize,
    /// Many objects in one rectangle: nothing is learned in it.
    pub crowd: bool,
}

/// Training target of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// That nothing is here.
    Negative,
    /// The box with this index.
    Positive(usize),
    /// Nothing: in a crowd, or no part of the image.
    Ignored,
}

/// The roles of an image's tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// One role a token, row-major.
    pub roles: Vec<Role>,
}

impl Assignment {
    /// Gives each box that is no crowd its nearest tokens, 4 on grids up to 16 x 16, else 9. The smaller box wins a
    /// conflict; a box left with none takes the nearest of its tokens back that a box with more than one has. Tokens whose
    /// centre lies in a crowd and that no box has are ignored, as are those that are not `valid` (one flag a token), which
    /// are never given to a box either. Equal distances go to the token, equal areas to the box, that comes first.
    ///
    /// # Panics
    /// If `valid` has another length than the grid.
    pub fn new(side: usize, truths: &[Truth], valid: Option<&[bool]>) -> Self {
        let tokens = side * side;
        assert!(valid.is_none_or(|v| v.len() == tokens), "one flag for each of {tokens} tokens");
        let is_valid = |token: usize| valid.is_none_or(|v| v[token]);
        let grid = Grid { side, anchor: 1. };
        let k = if side <= COARSE { FEW } else { MANY };

        let mut by_area: Vec<usize> = (0..truths.len()).filter(|&i| !truths[i].crowd).collect();
        let area = |i: usize| f64::from(truths[i].rect[2]) * f64::from(truths[i].rect[3]);
        by_area.sort_by(|&a, &b| area(a).total_cmp(&area(b)).then(a.cmp(&b)));

        let mut owner: Vec<Option<usize>> = vec![None; tokens];
        let mut owned = vec![0; truths.len()];
        let mut nearest: Vec<Vec<usize>> = vec![Vec::new(); truths.len()];
        let mut distances = Vec::with_capacity(tokens);
        for &i in &by_area {
            let [cx, cy] = [truths[i].rect[0], truths[i].rect[1]].map(f64::from);
            distances.clear();
            distances.extend((0..tokens).filter(|&t| is_valid(t)).map(|t| {
                let [x, y] = grid.centre(t);
                ((x - cx) * (x - cx) + (y - cy) * (y - cy), t)
            }));
            let closer = |a: &(f64, usize), b: &(f64, usize)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
            if distances.len() > k {
                distances.select_nth_unstable_by(k, closer);
                distances.truncate(k);
            }
            distances.sort_unstable_by(closer);
            nearest[i] = distances.iter().map(|&(_, t)| t).collect();
            // Smaller boxes have come first.
            for &t in &nearest[i] {
                if owner[t].is_none() {
                    owner[t] = Some(i);
                    owned[i] += 1;
                }
            }
        }
        for &i in &by_area {
            if owned[i] > 0 {
                continue;
            }
            let spare = nearest[i].iter().find_map(|&t| owner[t].filter(|&other| owned[other] > 1).map(|o| (t, o)));
            if let Some((token, other)) = spare {
                (owner[token], owned[i]) = (Some(i), 1);
                owned[other] -= 1;
            }
        }

        let crowds: Vec<[f64; 4]> = truths.iter().filter(|t| t.crowd).map(|t| t.rect.map(f64::from)).collect();
        let role = |t: usize| {
            if let Some(i) = owner[t] {
                return Role::Positive(i);
            }
            let [x, y] = grid.centre(t);
            let inside = |c: &[f64; 4]| (x - c[0]).abs() <= c[2] / 2. && (y - c[1]).abs() <= c[3] / 2.;
            if !is_valid(t) || crowds.iter().any(inside) { Role::Ignored } else { Role::Negative }
        };
        Self { roles: (0..tokens).map(role).collect() }
    }

    /// Number of tokens that have a box.
    pub fn positives(&self) -> usize {
        self.roles.iter().filter(|role| matches!(role, Role::Positive(_))).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn truth(rect: [f32; 4]) -> Truth {
        Truth { rect, class: 0, crowd: false }
    }

    /// The rules read out one by one, with nothing but full sorts and scans.
    fn brute_force(side: usize, truths: &[Truth], valid: &[bool]) -> Vec<Role> {
        let k = if side <= 16 { 4 } else { 9 };
        let at = |i: usize| (i as f64 + 0.5) / side as f64;
        let centre = |t: usize| (at(t % side), at(t / side));
        let claims: Vec<Vec<usize>> = truths
            .iter()
            .map(|b| {
                let mut tokens: Vec<usize> = (0..side * side).filter(|&t| valid[t] && !b.crowd).collect();
                let d = |t: &usize| {
                    let (x, y) = centre(*t);
                    let (dx, dy) = (x - f64::from(b.rect[0]), y - f64::from(b.rect[1]));
                    dx * dx + dy * dy
                };
                tokens.sort_by(|a, b| d(a).partial_cmp(&d(b)).unwrap());
                tokens.truncate(k);
                tokens
            })
            .collect();
        let area = |i: usize| f64::from(truths[i].rect[2]) * f64::from(truths[i].rect[3]);
        let mut order: Vec<usize> = (0..truths.len()).collect();
        order.sort_by(|&a, &b| area(a).partial_cmp(&area(b)).unwrap());
        let mut roles: Vec<Role> = (0..side * side)
            .map(|t| match order.iter().find(|&&i| claims[i].contains(&t)) {
                Some(&i) => Role::Positive(i),
                None => Role::Negative,
            })
            .collect();
        for &i in &order {
            let count = |roles: &[Role], i: usize| roles.iter().filter(|r| **r == Role::Positive(i)).count();
            if count(&roles, i) > 0 {
                continue;
            }
            for &t in &claims[i] {
                let Role::Positive(other) = roles[t] else { panic!("a claimed token has an owner") };
                if count(&roles, other) > 1 {
                    roles[t] = Role::Positive(i);
                    break;
                }
            }
        }
        for t in 0..side * side {
            let (x, y) = centre(t);
            let crowded = truths.iter().filter(|b| b.crowd).any(|b| {
                let [cx, cy, w, h] = b.rect.map(f64::from);
                x >= cx - w / 2. && x <= cx + w / 2. && y >= cy - h / 2. && y <= cy + h / 2.
            });
            if roles[t] == Role::Negative && (crowded || !valid[t]) {
                roles[t] = Role::Ignored;
            }
        }
        roles
    }

    proptest! {
        #[test]
        fn equals_the_rules_read_out_one_by_one(
            side in prop::sample::select(vec![1usize, 3, 7, 16, 17, 20]),
            // Coarse steps, so that ties are common.
            boxes in prop::collection::vec((0u8..=12, 0u8..=12, 1u8..6, 1u8..6, prop::bool::weighted(0.1)), 0..25),
            padding in 0usize..4,
        ) {
            let truths: Vec<Truth> = boxes
                .iter()
                .map(|&(x, y, w, h, crowd)| {
                    let rect = [f32::from(x) / 12., f32::from(y) / 12., f32::from(w) / 16., f32::from(h) / 16.];
                    Truth { rect, class: 0, crowd }
                })
                .collect();
            let valid: Vec<bool> = (0..side * side).map(|t| t / side + padding < side || padding >= side).collect();
            let found = Assignment::new(side, &truths, Some(&valid));
            prop_assert_eq!(&found.roles, &brute_force(side, &truths, &valid));
            let masked = found.roles.iter().zip(&valid).all(|(role, valid)| *valid || *role == Role::Ignored);
            prop_assert!(masked);
        }
    }

    #[test]
    fn a_box_under_a_smaller_one_takes_a_token_back() {
        // Both want the same four tokens.
        let truths = [truth([0.5, 0.5, 0.9, 0.9]), truth([0.49, 0.49, 0.1, 0.1])];
        let found = Assignment::new(8, &truths, None);
        let tokens = |i: usize| (0..64).filter(|&t| found.roles[t] == Role::Positive(i)).collect::<Vec<_>>();
        assert_eq!(tokens(0), [27], "the nearest; of equally near ones the first");
        assert_eq!(tokens(1), [28, 35, 36]);
        assert_eq!(found.positives(), 4);
    }

    #[test]
    fn a_crowd_hides_tokens_from_learning_unless_a_box_has_them() {
        let crowd = Truth { crowd: true, ..truth([0.25, 0.5, 0.5, 1.0]) };
        let found = Assignment::new(4, &[crowd, truth([0.25, 0.25, 0.1, 0.1])], None);
        let (p, i, n) = (Role::Positive(1), Role::Ignored, Role::Negative);
        assert_eq!(found.roles, [p, p, n, n, p, p, n, n, i, i, n, n, i, i, n, n]);
    }
}
