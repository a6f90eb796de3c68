"""Pydantic models of the run and of every role, without torch: one source for services, CLI and CRDs."""
