"""The Trainer, its arguments, and the published optimisers and schedules."""
