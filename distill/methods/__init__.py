"""What networks learn: one file per method, and the losses as pure functions."""
