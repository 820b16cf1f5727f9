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
    /// Tokens per block; the first and the last may be shorter.
    pub block: usize,
    /// Tokens of the first block.
    pub first: usize,
    /// Whether no block sees a later one, as in block-causal models: then blocks are decoded as rows of their own.
    pub causal: bool,
}

impl Layout {
    /// A layout; a block length of 0 or above L means one block.
    #[must_use]
    pub fn new(prompt: usize, completion: usize, block: usize) -> Self {
        let block = if block == 0 { completion } else { block.min(completion) };
        let block = block.max(1);
        Self { prompt, completion, block, first: block, causal: false }
    }

    /// The layout of a block-causal model, whose blocks of `size` tokens are counted from the start of the prompt: the
    /// completion's first block is what the prompt's last one leaves.
    #[must_use]
    pub fn causal(prompt: usize, completion: usize, size: usize) -> Self {
        let size = size.max(1);
        Self { prompt, completion, block: size, first: size - prompt % size, causal: true }
    }

    /// Tokens before padding.
    #[must_use]
    pub fn width(&self) -> usize {
        self.prompt + self.completion
    }

    /// Number of blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        match self.completion {
            0 => 0,
            n => 1 + n.saturating_sub(self.first).div_ceil(self.block),
        }
    }

    /// Completion positions of block `b`.
    #[must_use]
    pub fn block_range(&self, b: usize) -> Range<usize> {
        let end = self.first + b * self.block;
        let start = if b == 0 { 0 } else { end - self.block };
        start.min(self.completion)..end.min(self.completion)
    }

    /// The block of a completion position.
    #[must_use]
    pub fn block_of(&self, position: usize) -> usize {
        if position < self.first { 0 } else { 1 + (position - self.first) / self.block }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_tile_the_completion() {
        for (length, block) in [(20, 0), (20, 8), (20, 20), (20, 99), (1, 1), (7, 2), (0, 4)] {
            let layout = Layout::new(3, length, block);
            tiles(&layout, length);
        }
    }

    fn tiles(layout: &Layout, length: usize) {
        let all: Vec<usize> = (0..layout.blocks()).flat_map(|b| layout.block_range(b)).collect();
        assert_eq!(all, (0..length).collect::<Vec<_>>());
        for b in 0..layout.blocks() {
            assert!(!layout.block_range(b).is_empty());
            assert!(layout.block_range(b).all(|p| layout.block_of(p) == b));
        }
    }

    #[test]
    fn blocks_of_a_causal_layout_are_counted_from_the_prompt() {
        for (prompt, length, size) in
            [(0, 9, 4), (3, 9, 4), (4, 9, 4), (7, 1, 4), (5, 0, 4), (2, 6, 1), (1, 2, 32)]
        {
            let layout = Layout::causal(prompt, length, size);
            tiles(&layout, length);
            for b in 0..layout.blocks() {
                assert!(layout.block_range(b).all(|p| (prompt + p) / size == prompt / size + b));
            }
        }
    }
}
