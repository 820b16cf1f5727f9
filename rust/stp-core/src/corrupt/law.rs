//! The exact law of a design: every outcome of the sampler's own code with its probability.

use std::collections::BTreeMap;

use super::chance::Tape;
use super::row::Writer;
use super::{Batch, Design, Job, Scratch, counts};
use crate::error::{Error, Result};

/// Nodes that stand for a continuous ratio t: the expectation is a polynomial in t of degree n - 1, exact to n = 24.
const NODES: usize = 12;

/// One outcome of a row's draw.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Its probability. Where a design draws a continuous ratio, Gauss-Legendre nodes stand for it, with their weights.
    pub probability: f64,
    /// `u8[P, L]`
    pub mask: Vec<u8>,
    /// `f64[P, L]`, before rounding to f32.
    pub weight: Vec<f64>,
}

impl Design {
    /// Every outcome for a batch of one row, merged where masks and weights agree; at most `limit` random paths.
    pub fn law(&self, batch: &Batch<'_>, iteration: u32, limit: usize) -> Result<Vec<Outcome>> {
        batch.check(true)?;
        self.check_iteration(iteration)?;
        if batch.rows != 1 {
            return Err(Error::shape("eligible", format!("{} rows", batch.rows), "one row"));
        }
        let Scratch { mut free, mut work } = Scratch::default();
        let row = batch.row(self.info(), 0, &mut free)?;
        let passes = self.row_passes(&row)?;
        let mut tape = Tape::new(counts::gauss_legendre(NODES));
        let (mut mask, mut weight) = (vec![0u8; passes * batch.length], vec![0f64; passes * batch.length]);
        let mut outcomes = BTreeMap::new();
        for _ in 0..limit {
            let out = Writer::new(batch.length, &mut mask, &mut weight);
            let (chance, work) = (&mut tape, &mut work);
            self.draw_row(&mut Job { design: self, iteration, row, chance, out, work })?;
            let bits: Vec<u64> = weight.iter().map(|w| w.to_bits()).collect();
            *outcomes.entry((mask.clone(), bits)).or_insert(0.0) += tape.probability();
            if !tape.advance() {
                return Ok(outcomes
                    .into_iter()
                    .map(|((mask, bits), probability)| Outcome {
                        probability,
                        mask,
                        weight: bits.into_iter().map(f64::from_bits).collect(),
                    })
                    .collect());
            }
        }
        let need = "a smaller row (n <= 6), fewer passes, or a larger limit";
        Err(Error::value("law", format!("more than {limit} random paths"), need))
    }
}
