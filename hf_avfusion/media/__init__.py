"""A file, bytes or an address -> frames and waveform of a time window."""
