//! The canvas: prompt, completion, blocks and padding of one row.
