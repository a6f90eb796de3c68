"""The reference service: the frozen model and its log-probs, and nothing about rewards or engines."""
