"""Programs that benchmarks compare with, run by the Python of `.venv-peers/<peer>`. They import nothing of ours."""
