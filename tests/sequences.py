"""Pulseq files that a test edits."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sign_again(path: Path, text: str) -> None:
    """Write `text` with a signature that fits it."""
    body = text.rpartition("\n[SIGNATURE]\n")[0] or text
    digest = hashlib.md5(body.encode()).hexdigest()
    path.write_bytes(f"{body}\n[SIGNATURE]\nType md5\nHash {digest}\n".encode())
