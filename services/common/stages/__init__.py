"""The stage queue: one stream per stage, one consumer group each. See base.py for the port."""
