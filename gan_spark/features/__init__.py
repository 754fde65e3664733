"""Feature networks: what a quality measure looks at images through."""

from .networks import Network, check, function, network

__all__ = ["Network", "check", "function", "network"]
