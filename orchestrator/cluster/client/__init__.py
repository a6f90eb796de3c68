"""The API server, through the official client: connecting, asking, watching. Knows no run."""
