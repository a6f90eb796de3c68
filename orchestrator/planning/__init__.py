"""Pure planning: dataclasses in, actions out. No I/O, no clock, no randomness."""
