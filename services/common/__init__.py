"""What every service shares and that knows no torch: stages, errors, spec, server, telemetry."""
