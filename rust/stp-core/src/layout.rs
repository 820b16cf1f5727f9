//! The canvas of one row: prompt, then completion, then padding on the right.
//!
//! Right padding gives every token its natural position, so a row alone and the same row in a batch are the same
//! computation for absolute and rotary position encodings alike.

use std::ops::Range;

/// Lengths of one canvas, and the blocks that its completion is decoded in from left to right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Prompt tokens.
    pub prompt: usize,
    /// Completion tokens, L.
    pub completion: usize,
    /// Tokens per block; the last block may be shorter.
    pub block: usize,
}

impl Layout {
    /// A layout; a block length of 0 or above L means one block.
    #[must_use]
    pub fn new(prompt: usize, completion: usize, block: usize) -> Self {
        let block = if block == 0 { completion } else { block.min(completion) };
        Self { prompt, completion, block: block.max(1) }
    }

    /// Tokens before padding.
    #[must_use]
    pub fn width(&self) -> usize {
        self.prompt + self.completion
    }

    /// Number of blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.completion.div_ceil(self.block)
    }

    /// Completion positions of block `b`.
    #[must_use]
    pub fn block_range(&self, b: usize) -> Range<usize> {
        (b * self.block).min(self.completion)..((b + 1) * self.block).min(self.completion)
    }

    /// The block of a completion position.
    #[must_use]
    pub fn block_of(&self, position: usize) -> usize {
        position / self.block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_tile_the_completion() {
        for (length, block) in [(20, 0), (20, 8), (20, 20), (20, 99), (1, 1), (7, 2), (0, 4)] {
            let layout = Layout::new(3, length, block);
            let all: Vec<usize> = (0..layout.blocks()).flat_map(|b| layout.block_range(b)).collect();
            assert_eq!(all, (0..length).collect::<Vec<_>>());
            for b in 0..layout.blocks() {
                assert!(layout.block_range(b).all(|p| layout.block_of(p) == b));
            }
        }
    }
}
