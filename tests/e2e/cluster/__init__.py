"""What `make e2e-cluster` is made of: a control plane, nodes without containers, a small task, eyes."""
