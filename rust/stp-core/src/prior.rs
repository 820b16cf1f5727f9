//! Spatial priors: positions of the completion that are fixed before decoding.
//!
//! A [`PriorSet`] is a ragged batch of (positions, ids, sources). Priors compose in order; two hard ones that fix one
//! position to different tokens are an error, never a silent overwrite. A soft one gives way to those before it.

use crate::error::{Error, Result, check_len};
use crate::rng::{Lane, RowRng};

/// One fixed token of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    /// Completion position.
    pub position: u32,
    /// Token id.
    pub id: i64,
    /// Which source fixed it: an index into [`SOURCES`].
    pub source: u8,
}

/// Names of the sources; an anchor stores the index.
pub const SOURCES: [&str; 8] =
    ["custom", "offline_generation", "template", "copy", "length", "hint", "frequency", "first_forward"];

/// A ragged batch of priors in compressed rows; positions ascend within a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriorSet {
    offsets: Vec<usize>,
    anchors: Vec<Anchor>,
}

impl PriorSet {
    /// No prior on any of `rows` rows.
    #[must_use]
    pub fn empty(rows: usize) -> Self {
        Self { offsets: vec![0; rows + 1], anchors: Vec::new() }
    }

    /// The priors of a dense batch: `ids` is `[rows, length]` with negative values where nothing is fixed.
    pub fn from_dense(ids: &[i64], length: usize, source: u8) -> Result<Self> {
        if usize::from(source) >= SOURCES.len() {
            return Err(Error::value("source", source, format!("an index into {SOURCES:?}")));
        }
        let rows = ids.len().checked_div(length).unwrap_or(0);
        check_len("ids", ids.len(), rows * length)?;
        let mut set = Self { offsets: vec![0], anchors: Vec::new() };
        for row in ids.chunks_exact(length.max(1)) {
            let fixed = row.iter().enumerate().filter(|&(_, &id)| id >= 0);
            set.anchors.extend(fixed.map(|(p, &id)| Anchor { position: p as u32, id, source }));
            set.offsets.push(set.anchors.len());
        }
        Ok(set)
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The anchors of a row, by position.
    #[must_use]
    pub fn row(&self, row: usize) -> &[Anchor] {
        match (self.offsets.get(row), self.offsets.get(row + 1)) {
            (Some(&a), Some(&b)) => &self.anchors[a..b],
            _ => &[],
        }
    }

    /// Total number of fixed tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.anchors.len()
    }

    /// Whether nothing is fixed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }

    /// Both priors. Where both fix a position to the same token the earlier source stays; a different token is
    /// [`Error::PriorConflict`], or dropped where the later prior is `soft`.
    pub fn compose(&self, later: &Self, soft: bool) -> Result<Self> {
        check_len("later prior (rows)", later.rows(), self.rows())?;
        let mut out = Self {
            offsets: Vec::with_capacity(self.offsets.len()),
            anchors: Vec::with_capacity(self.len() + later.len()),
        };
        out.offsets.push(0);
        for row in 0..self.rows() {
            let (mut a, mut b) = (self.row(row).iter().peekable(), later.row(row).iter().peekable());
            loop {
                let next = match (a.peek(), b.peek()) {
                    (None, None) => break,
                    (Some(x), Some(y)) if x.position == y.position => {
                        if x.id != y.id && !soft {
                            let position = x.position as usize;
                            return Err(Error::PriorConflict { row, position, first: x.id, second: y.id });
                        }
                        b.next();
                        a.next()
                    }
                    (Some(x), Some(y)) if x.position < y.position => a.next(),
                    (_, Some(_)) => b.next(),
                    (Some(_), None) => a.next(),
                };
                out.anchors.extend(next);
            }
            out.offsets.push(out.anchors.len());
        }
        Ok(out)
    }

    /// Rows `rows` in that order (repeat a row once per sample of its group).
    pub fn select(&self, rows: &[usize]) -> Result<Self> {
        let mut out = Self { offsets: vec![0], anchors: Vec::new() };
        for &row in rows {
            if row >= self.rows() {
                return Err(Error::value("rows", row, format!("an index below {}", self.rows())));
            }
            out.anchors.extend_from_slice(self.row(row));
            out.offsets.push(out.anchors.len());
        }
        Ok(out)
    }

    /// The anchors at the positions with `keep[rows, length]` != 0.
    pub fn restrict(&self, length: usize, keep: &[u8]) -> Result<Self> {
        check_len("keep", keep.len(), self.rows() * length)?;
        let mut out = Self { offsets: vec![0], anchors: Vec::new() };
        for row in 0..self.rows() {
            let kept = &keep[row * length..(row + 1) * length];
            let stays = |a: &&Anchor| kept.get(a.position as usize).is_some_and(|&k| k != 0);
            out.anchors.extend(self.row(row).iter().filter(stays));
            out.offsets.push(out.anchors.len());
        }
        Ok(out)
    }

    /// Writes `ids[rows, length]`: the fixed token, or -1 where the position is free.
    pub fn fill(&self, length: usize, ids: &mut [i64]) -> Result<()> {
        check_len("ids", ids.len(), self.rows() * length)?;
        ids.fill(-1);
        for row in 0..self.rows() {
            for anchor in self.row(row) {
                if anchor.position as usize >= length {
                    let need = format!("a completion position below {length}");
                    return Err(Error::value("prior position", anchor.position, need));
                }
                ids[row * length + anchor.position as usize] = anchor.id;
            }
        }
        Ok(())
    }
}

/// How an anchor set is chosen from the positions that may be fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selector {
    /// The highest confidence (NaN last, ties by position): the paper's.
    TopConfidence,
    /// Uniformly at random, keyed by (seed, uid).
    Random,
    /// The first positions.
    Prefix,
    /// One contiguous run of positions at a random place, keyed by (seed, uid).
    Span,
}

impl Selector {
    /// Every name that `from_str` accepts.
    pub const NAMES: [&'static str; 4] = ["top_confidence", "random", "prefix", "span"];
}

impl std::str::FromStr for Selector {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "top_confidence" => Ok(Self::TopConfidence),
            "random" => Ok(Self::Random),
            "prefix" => Ok(Self::Prefix),
            "span" => Ok(Self::Span),
            _ => Err(Error::value("selector", name, format!("one of {}", Self::NAMES.join(", ")))),
        }
    }
}

/// Marks in `keep` (one row, u8) the anchors chosen among the positions with `eligible` != 0: `share` of them, rounded to
/// the nearest, and at least one where the share is positive.
pub fn choose_anchors(
    selector: Selector,
    share: f64,
    confidence: &[f32],
    eligible: &[u8],
    rng: RowRng,
    keep: &mut [u8],
) -> Result<()> {
    check_len("confidence", confidence.len(), eligible.len())?;
    check_len("keep", keep.len(), eligible.len())?;
    if !(0.0..=1.0).contains(&share) {
        return Err(Error::value("keep", share, "a share between 0 and 1"));
    }
    keep.fill(0);
    let mut order: Vec<usize> = (0..eligible.len()).filter(|&i| eligible[i] != 0).collect();
    let mut count = (share * order.len() as f64).round() as usize;
    if share > 0.0 {
        count = count.max(1);
    }
    count = count.min(order.len());
    let mut stream = rng.stream(Lane::Prior, 0);
    match selector {
        Selector::Prefix => {}
        Selector::Random => stream.shuffle(&mut order),
        Selector::Span => {
            let start = stream.below((order.len() - count) as u32 + 1) as usize;
            order.rotate_left(start);
        }
        Selector::TopConfidence => order.sort_by_key(|&i| crate::select::rank_key(confidence[i], i)),
    }
    for &i in &order[..count] {
        keep[i] = 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_conflict_names_row_position_and_both_tokens() {
        let a = PriorSet::from_dense(&[-1, 5, -1, 7, -1, -1], 3, 2).unwrap();
        let b = PriorSet::from_dense(&[-1, 5, 6, 8, -1, -1], 3, 3).unwrap();
        let error = a.compose(&b, false).unwrap_err();
        assert_eq!(error, Error::PriorConflict { row: 1, position: 0, first: 7, second: 8 });
        let soft = a.compose(&b, true).unwrap();
        assert_eq!(soft.row(1), a.row(1), "the earlier token stays");
        assert_eq!(soft.row(0).len(), 2, "what is free is filled");
        let fixed = a.select(&[0]).unwrap().compose(&b.select(&[0]).unwrap(), false).unwrap();
        assert_eq!(fixed.row(0)[0], Anchor { position: 1, id: 5, source: 2 });
        assert_eq!(fixed.row(0)[1], Anchor { position: 2, id: 6, source: 3 });
    }

    #[test]
    fn selectors_pick_the_share_they_are_given() {
        let confidence = [0.1, f32::NAN, 0.9, 0.5, 0.9, 0.2];
        let eligible = [1, 1, 1, 0, 1, 1];
        let mut keep = [0; 6];
        let rng = RowRng::new(0, 0);
        choose_anchors(Selector::TopConfidence, 0.4, &confidence, &eligible, rng, &mut keep).unwrap();
        assert_eq!(keep, [0, 0, 1, 0, 1, 0]);
        choose_anchors(Selector::Prefix, 0.01, &confidence, &eligible, rng, &mut keep).unwrap();
        assert_eq!(keep, [1, 0, 0, 0, 0, 0]);
        choose_anchors(Selector::TopConfidence, 0.8, &confidence, &eligible, rng, &mut keep).unwrap();
        assert_eq!(keep, [1, 0, 1, 0, 1, 1], "NaN ranks last");
        for selector in [Selector::Random, Selector::Span] {
            for uid in 0..50 {
                choose_anchors(selector, 0.6, &confidence, &eligible, RowRng::new(1, uid), &mut keep)
                    .unwrap();
                assert_eq!(keep.iter().sum::<u8>(), 3);
                assert_eq!(keep[3], 0);
            }
        }
        choose_anchors(Selector::Random, 0.0, &confidence, &eligible, rng, &mut keep).unwrap();
        assert_eq!(keep, [0; 6]);
    }

    proptest! {
        #[test]
        fn composing_is_the_union(dense in proptest::collection::vec(-1i64..4, 0..60), other in proptest::collection::vec(any::<bool>(), 60)) {
            let length = 5;
            let dense = &dense[..dense.len() / length * length];
            let half = |flag: bool| -> Vec<i64> {
                dense.iter().zip(&other).map(|(&id, &f)| if f == flag { id } else { -1 }).collect()
            };
            let a = PriorSet::from_dense(&half(true), length, 0).unwrap();
            let b = PriorSet::from_dense(&half(false), length, 1).unwrap();
            let mut out = vec![0; dense.len()];
            a.compose(&b, false).unwrap().fill(length, &mut out).unwrap();
            prop_assert_eq!(&out[..], dense);
            prop_assert_eq!(a.compose(&a, false).unwrap(), a.clone());
            let both = a.compose(&b, false).unwrap();
            let keep: Vec<u8> = other[..dense.len()].iter().map(|&f| u8::from(f)).collect();
            prop_assert_eq!(both.restrict(length, &keep).unwrap(), a);
        }
    }
}
