"""Scoring over HTTP: our own shape and those that trainers already speak, all in front of answering.py."""
