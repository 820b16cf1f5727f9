//! The rollout scheduler: which rows and positions need a forward, and what its numbers commit.
