"""What can score: the port `RewardSource` (base.py), reward models and rules behind it."""
