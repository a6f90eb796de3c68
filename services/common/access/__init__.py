"""Access control of all services: API keys, client certificates, quotas, TLS, and what is refused at the start.

A servicer asks `current()` who calls and has it check the model and the rows; all else is around it.
"""

from __future__ import annotations

from services.common.access.gate import OPEN, Gate, Permit
from services.common.access.identity import ANYBODY, Identity
from services.common.access.permit import current, entered

__all__ = ["ANYBODY", "OPEN", "Gate", "Identity", "Permit", "current", "entered"]
