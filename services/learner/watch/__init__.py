"""Makes reward hacking visible: figures of a batch, alarms over steps, the worst samples. Changes nothing in a run."""
