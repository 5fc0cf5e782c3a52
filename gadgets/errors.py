"""What can go wrong with a scan, in words that an operator can act on."""

from __future__ import annotations


class ScanError(ValueError):
    """A scan that cannot be reconstructed. The text goes to the operator's console as it stands, so it
    names the thing, the value found and what was expected."""


class WireError(ScanError):
    """Bytes that are no MRD stream: an unknown message id, an absurd length, a frame cut short."""


class PeerGone(WireError):
    """The other side closed or reset the connection before the stream had ended."""


class PeerSilent(WireError):
    """The other side keeps the connection open but has sent, or taken, nothing for too long."""


class HeaderError(ScanError):
    """The MRD header is not readable, or it describes a scan that is not supported."""
