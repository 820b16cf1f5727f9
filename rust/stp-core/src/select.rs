//! Which candidates a step reveals.
