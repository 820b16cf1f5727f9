//! Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011; Random123 vectors).
//!
//! A number is a pure function of (seed, row uid, lane, step, position). Slots, batch order, threads and time do
//! not enter, so a row draws the same numbers wherever and whenever it runs, and no global generator is touched.

const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;

/// One Philox4x32-10 block: 128 random bits for a 64-bit key and a 128-bit counter.
#[must_use]
pub fn philox4x32(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let [mut k0, mut k1] = key;
    let mut c = counter;
    for _ in 0..10 {
        let p0 = u64::from(M0) * u64::from(c[0]);
        let p1 = u64::from(M1) * u64::from(c[2]);
        c = [(p1 >> 32) as u32 ^ c[1] ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k1, p0 as u32];
        k0 = k0.wrapping_add(W0);
        k1 = k1.wrapping_add(W1);
    }
    c
}

/// What a number is used for. Lanes are independent streams of the same row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Lane {
    /// The uniform that samples a token.
    Sample = 0,
    /// The uniform that ranks positions under random selection.
    Order = 1,
    /// Counts and masks of a likelihood design.
    Design = 2,
    /// Random choices of a prior (which anchors are kept).
    Prior = 3,
    /// Task generators.
    Task = 4,
    /// Batch order and dataset shuffles.
    Shuffle = 5,
    /// Derivation of row keys from (seed, uid).
    Key = 6,
}

/// All random numbers of one row: a key derived from (seed, uid).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowRng {
    key: [u32; 2],
}

impl RowRng {
    /// The generator of the row `uid` in the run `seed`.
    #[must_use]
    pub fn new(seed: u64, uid: u64) -> Self {
        let key = [seed as u32, (seed >> 32) as u32];
        let block = philox4x32(key, [uid as u32, (uid >> 32) as u32, Lane::Key as u32, 0]);
        Self { key: [block[0], block[1]] }
    }

    /// 128 random bits at (lane, step, position).
    #[must_use]
    pub fn block(&self, lane: Lane, step: u32, position: u32, sub: u32) -> [u32; 4] {
        philox4x32(self.key, [position, step, lane as u32, sub])
    }

    /// A uniform in the open interval (0, 1) with 23 bits: never 0, never 1, exact in f32.
    #[must_use]
    pub fn uniform(&self, lane: Lane, step: u32, position: u32) -> f32 {
        unit_f32(self.block(lane, step, position, 0)[0])
    }

    /// A sequential stream at (lane, step): for algorithms that use a varying number of draws.
    #[must_use]
    pub fn stream(&self, lane: Lane, step: u32) -> Stream {
        Stream { rng: *self, lane, step, index: 0, sub: 0, block: [0; 4], left: 0 }
    }
}

/// Maps 32 random bits to the open interval (0, 1): the midpoint of one of 2^23 equal cells (exact in f32).
#[must_use]
pub fn unit_f32(bits: u32) -> f32 {
    ((bits >> 9) as f32 + 0.5) / 8_388_608.0
}

/// Sequential draws from one (row, lane, step).
#[derive(Debug, Clone)]
pub struct Stream {
    rng: RowRng,
    lane: Lane,
    step: u32,
    index: u32,
    sub: u32,
    block: [u32; 4],
    left: usize,
}

impl Stream {
    /// The next 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.left == 0 {
            self.block = self.rng.block(self.lane, self.step, self.index, self.sub);
            let (index, carry) = self.index.overflowing_add(1);
            self.index = index;
            self.sub = self.sub.wrapping_add(u32::from(carry));
            self.left = 4;
        }
        self.left -= 1;
        self.block[3 - self.left]
    }

    /// A uniform in the open interval (0, 1) with 52 bits: never 0, never 1, exact in f64.
    pub fn next_f64(&mut self) -> f64 {
        let high = u64::from(self.next_u32()) << 20;
        let low = u64::from(self.next_u32()) >> 12;
        ((high | low) as f64 + 0.5) / 4_503_599_627_370_496.0
    }

    /// A uniform integer in `0..bound` without modulo bias (Lemire's method). `bound` 0 gives 0.
    pub fn below(&mut self, bound: u32) -> u32 {
        if bound == 0 {
            return 0;
        }
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u64::from(self.next_u32()) * u64::from(bound);
            if product as u32 >= threshold {
                return (product >> 32) as u32;
            }
        }
    }

    /// Fisher-Yates: a uniformly random order of `items`, in place.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i as u32 + 1) as usize;
            items.swap(i, j);
        }
    }
}

/// A row uid from up to three coordinates, for example (update, prompt, sample). Collisions are those of 64 random bits.
#[must_use]
pub fn row_uid(a: u64, b: u64, c: u64) -> u64 {
    let first =
        philox4x32([a as u32, (a >> 32) as u32], [b as u32, (b >> 32) as u32, c as u32, (c >> 32) as u32]);
    u64::from(first[0]) | u64::from(first[1]) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_matches_the_random123_vectors() {
        assert_eq!(philox4x32([0; 2], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32([u32::MAX; 2], [u32::MAX; 4]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32([0xa409_3822, 0x299f_31d0], [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn uniforms_are_inside_the_open_interval() {
        assert!(unit_f32(0) > 0.0);
        assert!(unit_f32(u32::MAX) < 1.0);
    }

    #[test]
    fn shuffle_reaches_every_order_about_equally() {
        let mut seen = std::collections::BTreeMap::new();
        for uid in 0..6000 {
            let mut items = [0, 1, 2];
            RowRng::new(7, uid).stream(Lane::Shuffle, 0).shuffle(&mut items);
            *seen.entry(items).or_insert(0u32) += 1;
        }
        assert_eq!(seen.len(), 6);
        assert!(seen.values().all(|&n| (850..1150).contains(&n)), "{seen:?}");
    }

    #[test]
    fn lanes_steps_positions_and_uids_are_independent_streams() {
        let a = RowRng::new(1, 2);
        let all = [
            a.uniform(Lane::Sample, 0, 0),
            a.uniform(Lane::Order, 0, 0),
            a.uniform(Lane::Sample, 1, 0),
            a.uniform(Lane::Sample, 0, 1),
            RowRng::new(1, 3).uniform(Lane::Sample, 0, 0),
            RowRng::new(2, 2).uniform(Lane::Sample, 0, 0),
        ];
        for (i, x) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|y| x.to_bits() != y.to_bits()));
        }
    }
}
