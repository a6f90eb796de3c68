"""Desired against observed: processes on this machine, pods on Kubernetes. Knows no token and no tensor."""
