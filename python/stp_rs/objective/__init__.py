"""The objective: advantages, masks, likelihood estimates and the policy loss."""
