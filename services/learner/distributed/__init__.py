"""The learner as several processes: FSDP2 under torchrun. The first is the service, the others follow: README.md."""
