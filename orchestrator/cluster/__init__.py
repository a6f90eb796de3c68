"""The kinds TrainingRun and RewardModel on Kubernetes. What is here so far is pure: no cluster is called."""
