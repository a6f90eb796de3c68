"""Acts on the processes of this machine: supervises them, lays out a run's folder, chooses ports."""
