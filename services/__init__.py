"""Trimtab's services: each folder is a program of its own."""
