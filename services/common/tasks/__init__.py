"""Tasks: prompts, a reward rule or references, and metrics. Numpy and the standard library alone; see README.md."""
