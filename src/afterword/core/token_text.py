"""A token as text, as answers write it (L4)."""

from __future__ import annotations


def token_text(piece: bytes) -> str:
    r"""Returns a token as text, or as ``bytes:\xe2\x80`` if it alone is not UTF-8."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return bytes_text(piece)


def bytes_text(piece: bytes) -> str:
    """Returns a token as ``bytes:`` and its bytes in hexadecimal."""
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def piece_of(text: str) -> bytes:
    """Returns the bytes of a token that ``token_text`` or ``bytes_text`` wrote."""
    if text.startswith("bytes:\\x"):
        try:
            return bytes.fromhex(text[6:].replace("\\x", ""))
        except ValueError:
            return text.encode()
    return text.encode()
