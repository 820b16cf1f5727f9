//! Plans: how many tokens each denoising step reveals.
