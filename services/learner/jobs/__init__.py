"""Jobs: processes that train once and end (reward model; later SFT)."""
