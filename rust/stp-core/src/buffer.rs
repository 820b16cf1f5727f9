//! The trajectory buffer: what happened in rollouts, as a struct of arrays.
