"""Everything that can travel with a checkpoint; flat, so that one folder can hold it all."""
