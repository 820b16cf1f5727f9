//! The random choices of a design, behind one trait: drawn from Philox in training, enumerated in `law`.
//!
//! A design never touches a generator itself. So the code that draws masks in training is the code whose every
//! outcome can be listed with its probability, and "unbiased" is checked by a sum instead of by an average.

use crate::rng::{Lane, RowRng, Stream};

/// Inner iterations that a key can hold; the last one names choices shared by all iterations.
pub(super) const MAX_ITERATION: u32 = 0xFFFE;

/// What a choice belongs to. It enters the counter, so a pass draws the same numbers whatever came before it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scope {
    /// One choice for all passes of this iteration (a shared offset, an order).
    Row,
    /// A choice of pass k of this iteration.
    Pass(usize),
    /// A choice of pass k that every inner iteration repeats (`UniGRPO`'s first time).
    AllIterations(usize),
}

/// A source of random choices.
pub(super) trait Chance {
    /// Turns to the stream of `scope`.
    fn turn(&mut self, scope: Scope);
    /// A uniform integer in `0..bound`; 0 for `bound` 0.
    fn below(&mut self, bound: u32) -> u32;
    /// A uniform in the open interval (0, 1).
    fn unit(&mut self) -> f64;
    /// An index with probability in proportion to `weights`, of which one at least is above 0.
    fn weighted(&mut self, weights: &[f64]) -> usize;
    /// `true` with probability `p`.
    fn coin(&mut self, p: f64) -> bool;
    /// Moves a uniformly random subset of size `take` to the front of `items`.
    fn choose(&mut self, items: &mut [u32], take: usize);
    /// A uniformly random order, in place.
    fn shuffle(&mut self, items: &mut [u32]);
}

/// Choices keyed by (seed, uid, iteration, pass).
pub(super) struct Keyed {
    rng: RowRng,
    iteration: u32,
    stream: Stream,
}

impl Keyed {
    /// The choices of row `uid` at inner iteration `iteration` (at most [`MAX_ITERATION`]).
    pub(super) fn new(seed: u64, uid: u64, iteration: u32) -> Self {
        let rng = RowRng::new(seed, uid);
        Self { rng, iteration, stream: rng.stream(Lane::Design, iteration << 16) }
    }
}

impl Chance for Keyed {
    fn turn(&mut self, scope: Scope) {
        let (iteration, pass) = match scope {
            Scope::Row => (self.iteration, 0),
            Scope::Pass(k) => (self.iteration, k as u32 + 1),
            Scope::AllIterations(k) => (MAX_ITERATION + 1, k as u32 + 1),
        };
        self.stream = self.rng.stream(Lane::Design, iteration << 16 | pass);
    }

    fn below(&mut self, bound: u32) -> u32 {
        // Lemire's method; the division is made only for the rare low products.
        let mut product = u64::from(self.stream.next_u32()) * u64::from(bound);
        if (product as u32) < bound {
            let threshold = bound.wrapping_neg() % bound;
            while (product as u32) < threshold {
                product = u64::from(self.stream.next_u32()) * u64::from(bound);
            }
        }
        (product >> 32) as u32
    }

    fn unit(&mut self) -> f64 {
        self.stream.next_f64()
    }

    fn weighted(&mut self, weights: &[f64]) -> usize {
        let mut left = self.unit() * weights.iter().sum::<f64>();
        let mut last = 0;
        for (i, &weight) in weights.iter().enumerate().filter(|pair| *pair.1 > 0.0) {
            last = i;
            if left < weight {
                break;
            }
            left -= weight;
        }
        last
    }

    fn coin(&mut self, p: f64) -> bool {
        f64::from(self.stream.next_u32()) < p * 4_294_967_296.0
    }

    fn choose(&mut self, items: &mut [u32], take: usize) {
        let len = items.len();
        if take <= len - take.min(len) {
            for i in 0..take {
                let j = i + self.below((len - i) as u32) as usize;
                items.swap(i, j);
            }
        } else {
            // Fewer draws: pick the ones left out and put them last.
            for i in (take.min(len)..len).rev() {
                let j = self.below(i as u32 + 1) as usize;
                items.swap(i, j);
            }
        }
    }

    fn shuffle(&mut self, items: &mut [u32]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i as u32 + 1) as usize;
            items.swap(i, j);
        }
    }
}

/// Enumerated choices: replays one path through the tree of choices, then moves to the next.
#[derive(Debug, Default)]
pub(super) struct Tape {
    path: Vec<Fork>,
    at: usize,
    /// Nodes and weights on (0, 1) that stand for a continuous uniform.
    nodes: Vec<(f64, f64)>,
}

/// One choice of a path: which branch of how many. `p` is the probability of `true` of a coin.
#[derive(Debug, Clone, Copy)]
struct Fork {
    branch: u64,
    of: u64,
    probability: f64,
}

impl Tape {
    /// A tape at its first path; `nodes` and their weights stand for a continuous uniform.
    pub(super) fn new(nodes: Vec<(f64, f64)>) -> Self {
        Self { path: Vec::new(), at: 0, nodes }
    }

    /// The probability of the path just replayed.
    pub(super) fn probability(&self) -> f64 {
        self.path[..self.at].iter().map(|fork| fork.probability).product()
    }

    /// Moves to the next path; `false` when all have been seen.
    pub(super) fn advance(&mut self) -> bool {
        self.path.truncate(self.at);
        self.at = 0;
        while let Some(last) = self.path.last_mut() {
            last.branch += 1;
            if last.branch < last.of {
                return true;
            }
            self.path.pop();
        }
        false
    }

    fn fork(&mut self, of: u64, probability: impl FnOnce(u64) -> f64) -> u64 {
        if self.at == self.path.len() {
            self.path.push(Fork { branch: 0, of, probability: 0.0 });
        }
        let fork = &mut self.path[self.at];
        fork.probability = probability(fork.branch);
        self.at += 1;
        fork.branch
    }
}

impl Chance for Tape {
    fn turn(&mut self, _scope: Scope) {}

    fn below(&mut self, bound: u32) -> u32 {
        let of = u64::from(bound.max(1));
        self.fork(of, |_| 1.0 / of as f64) as u32
    }

    fn unit(&mut self) -> f64 {
        let nodes = std::mem::take(&mut self.nodes);
        let branch = self.fork(nodes.len() as u64, |i| nodes[i as usize].1) as usize;
        let node = nodes[branch].0;
        self.nodes = nodes;
        node
    }

    fn weighted(&mut self, weights: &[f64]) -> usize {
        let total: f64 = weights.iter().sum();
        let there =
            |branch: u64| weights.iter().enumerate().filter(|pair| *pair.1 > 0.0).nth(branch as usize);
        let of = weights.iter().filter(|&&weight| weight > 0.0).count() as u64;
        let branch = self.fork(of, |branch| there(branch).map_or(0.0, |pair| pair.1 / total));
        there(branch).map_or(0, |pair| pair.0)
    }

    fn coin(&mut self, p: f64) -> bool {
        self.fork(2, |branch| if branch == 1 { p } else { 1.0 - p }) == 1
    }

    fn choose(&mut self, items: &mut [u32], take: usize) {
        let len = items.len();
        let take = take.min(len);
        let of = binomial(len, take);
        let mut rank = self.fork(of, |_| 1.0 / of as f64);
        // Unrank the subset in lexicographic order, then put the rest behind it.
        let mut front = Vec::with_capacity(len);
        let mut back = Vec::with_capacity(len);
        for (i, &item) in items.iter().enumerate() {
            let missing = take - front.len();
            let with = if missing == 0 { 0 } else { binomial(len - i - 1, missing - 1) };
            if rank < with {
                front.push(item);
            } else {
                rank -= with;
                back.push(item);
            }
        }
        front.append(&mut back);
        items.copy_from_slice(&front);
    }

    fn shuffle(&mut self, items: &mut [u32]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i as u32 + 1) as usize;
            items.swap(i, j);
        }
    }
}

/// The number of subsets of size `take`, saturating.
fn binomial(len: usize, take: usize) -> u64 {
    if take > len {
        return 0;
    }
    (0..take.min(len - take)).fold(1u64, |sum, i| sum.saturating_mul((len - i) as u64) / (i as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_tape_visits_every_path_once_with_total_probability_one() {
        let mut tape = Tape::default();
        let mut seen = BTreeMap::new();
        loop {
            let first = tape.below(3);
            // the second choice exists on one branch only
            let second = if first == 1 { u32::from(tape.coin(0.25)) } else { 9 };
            *seen.entry((first, second)).or_insert(0.0) += tape.probability();
            if !tape.advance() {
                break;
            }
        }
        let want = [((0, 9), 1.0 / 3.0), ((1, 0), 0.25), ((1, 1), 1.0 / 12.0), ((2, 9), 1.0 / 3.0)];
        assert_eq!(seen.len(), want.len());
        for (key, probability) in want {
            assert!((seen[&key] - probability).abs() < 1e-15);
        }
    }

    #[test]
    fn tape_and_philox_choose_every_subset_equally_often() {
        for (len, take) in [(5usize, 0usize), (5, 1), (5, 2), (5, 3), (5, 5), (1, 1), (0, 0)] {
            let mut exact = BTreeMap::new();
            let mut tape = Tape::default();
            loop {
                let mut items: Vec<u32> = (0..len as u32).collect();
                tape.choose(&mut items, take);
                items[..take].sort_unstable();
                *exact.entry(items[..take].to_vec()).or_insert(0.0) += tape.probability();
                if !tape.advance() {
                    break;
                }
            }
            assert_eq!(exact.len() as u64, binomial(len, take));
            let draws = 4000 * exact.len();
            let mut counts = BTreeMap::new();
            for uid in 0..draws as u64 {
                let mut items: Vec<u32> = (0..len as u32).collect();
                let mut keyed = Keyed::new(3, uid, 1);
                keyed.choose(&mut items, take);
                items[..take].sort_unstable();
                *counts.entry(items[..take].to_vec()).or_insert(0u32) += 1;
            }
            for (subset, probability) in &exact {
                assert!((probability - 1.0 / exact.len() as f64).abs() < 1e-12);
                let z = (f64::from(counts[subset]) - 4000.0) / 4000f64.sqrt();
                assert!(z.abs() < 5.0, "{subset:?}: {z}");
            }
        }
    }

    #[test]
    fn scopes_are_independent_streams() {
        let mut seen = Vec::new();
        for iteration in [0, 1, MAX_ITERATION] {
            for scope in [Scope::Row, Scope::Pass(0), Scope::Pass(1), Scope::AllIterations(0)] {
                let mut keyed = Keyed::new(1, 2, iteration);
                keyed.turn(scope);
                seen.push((matches!(scope, Scope::AllIterations(_)), keyed.below(u32::MAX)));
            }
        }
        let shared: Vec<u32> = seen.iter().filter(|s| s.0).map(|s| s.1).collect();
        assert!(shared.iter().all(|&x| x == shared[0]), "shared by all iterations");
        let mut own: Vec<u32> = seen.iter().filter(|s| !s.0).map(|s| s.1).collect();
        own.push(shared[0]);
        own.sort_unstable();
        own.dedup();
        assert_eq!(own.len(), 10, "every other scope has its own numbers");
    }
}
