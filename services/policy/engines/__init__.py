"""Generation engines behind one port; see base.py."""
