//! Spatial priors: positions of the completion that are fixed before decoding.
