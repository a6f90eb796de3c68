"""The demo: its prompts, its drive through the services, its figures and its report.

Knows the services only by their public APIs: no model, no tensor library, no service code.
"""
