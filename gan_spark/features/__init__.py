"""Feature networks: what a quality measure looks at images through."""

from .networks import Network, check, check_settings, function, network

__all__ = ["Network", "check", "check_settings", "function", "network"]
