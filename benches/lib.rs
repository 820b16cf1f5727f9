//! Criterion benches of `stp-core`; see the `[[bench]]` targets.
