"""Models of other frameworks as networks, and a user's own operators in them."""

from __future__ import annotations

from fastrf.importers.registry import Call, register, unregister

__all__ = ["Call", "register", "unregister"]
