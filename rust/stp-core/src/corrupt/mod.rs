//! Likelihood designs: laws over weighted masks.
