"""Who signs what is made: a private key and its certificates, one's own or those of a development authority.

A development identity is made on first use and kept in the user's configuration folder. It tells one machine's files
from another's and shows every change to them; it vouches for nobody, and the key of its authority is thrown away.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from worldline.errors import UserError

SIGN_WITH = "WORLDLINE_SIGN_WITH"  # names a PEM file with a key and its certificates, or UNSIGNED
UNSIGNED = "none"
DEVELOPMENT = "Worldline development"  # organisation in certificates that vouch for nobody
YEARS = 10
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


@dataclass(frozen=True)
class Identity:
    """`algorithm` by C2PA's name; `key` PKCS 8 and `certificates`, the signer's first, in PEM."""

    algorithm: str
    key: bytes
    certificates: bytes


def identity() -> Identity | None:
    """Who signs here: whom SIGN_WITH names, nobody for UNSIGNED, else the development identity. Raises UserError."""
    named = os.environ.get(SIGN_WITH)
    if named == UNSIGNED:
        return None
    return read_identity(named) if named else _development(config_folder())


def config_folder() -> Path | None:
    """The user's folder for settings (XDG Base Directory Specification); None for a user without a home."""
    with suppress(RuntimeError):
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "worldline"
    return None


def read_identity(path: str | Path) -> Identity:
    """The identity in a PEM file: a private key that needs no password, and its certificates, the signer's first.

    Raises UserError for anything else: another kind of key than C2PA takes (13.2.1 of its specification 2.2), a
    certificate of another key, or one whose time is over.
    """
    try:
        return _parsed(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{SIGN_WITH} {path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError) as error:  # what the parser says of other bytes, and of a password
        raise UserError(f"{SIGN_WITH} {path}: no private key with its certificates in PEM ({error})") from None


def read_certificates(path: str | Path) -> str:
    """The certificates of a PEM file, in PEM, and nothing else that it holds. Raises UserError."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        found = x509.load_pem_x509_certificates(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"--trust {path}: no certificates in PEM ({error})") from None
    return "".join(one.public_bytes(Encoding.PEM).decode() for one in found)


def _parsed(pem: bytes) -> Identity:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(pem, None)
    certificates = x509.load_pem_x509_certificates(pem)
    if certificates[0].public_key() != key.public_key():
        raise ValueError("the first certificate is of another key")
    if certificates[0].not_valid_after_utc < datetime.now(UTC):
        raise ValueError(f"the certificate ended on {certificates[0].not_valid_after_utc:%Y-%m-%d}")
    return _identity(key, certificates)


def _identity(key: Any, certificates: list[Any]) -> Identity:
    from cryptography.hazmat.primitives import serialization as form

    plain = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    return Identity(_algorithm(key), plain, b"".join(one.public_bytes(form.Encoding.PEM) for one in certificates))


def _algorithm(key: Any) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in CURVES:
        return CURVES[key.curve.name]
    raise ValueError("use a key of Ed25519, of P-256, P-384 or P-521, or of RSA")


# ---- the development identity ------------------------------------------------------------------


@lru_cache
def _development(folder: Path | None) -> Identity:
    """That of a folder, made where there is none; held in memory alone where it cannot be kept."""
    if folder is not None:
        with suppress(OSError):
            file = folder / "development.pem"
            if not file.exists():
                _keep(file, _made())
            return read_identity(file)
    return _made()


def _keep(file: Path, made: Identity) -> None:
    """Writes an identity that only its user can read, unless another process was quicker. Raises OSError."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = file.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as out:
            out.write(made.key + made.certificates)
        with suppress(FileExistsError):
            os.link(part, file)
    finally:
        part.unlink(missing_ok=True)


def _made() -> Identity:
    """A new key, certified by an authority whose own key nobody keeps (X.509; C2PA 2.2, 14.5)."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    authority, key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    root = _certificate("authority", authority, "authority", authority, signs_others=True)
    return _identity(key, [_certificate("signer", key, "authority", authority, signs_others=False), root])


def _certificate(name: str, key: Any, issuer: str, issuer_key: Any, signs_others: bool) -> Any:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def called(who: str) -> x509.Name:
        words = ((NameOID.ORGANIZATION_NAME, DEVELOPMENT), (NameOID.COMMON_NAME, f"development {who}"))
        return x509.Name([x509.NameAttribute(*word) for word in words])

    usage = {"content_commitment": False, "key_encipherment": False, "data_encipherment": False}
    usage |= {"key_agreement": False, "encipher_only": False, "decipher_only": False}
    usage |= {"digital_signature": not signs_others, "key_cert_sign": signs_others, "crl_sign": signs_others}
    began = datetime.now(UTC) - timedelta(days=1)  # clocks differ
    known, by = x509.SubjectKeyIdentifier, x509.AuthorityKeyIdentifier
    builder = (
        x509.CertificateBuilder(called(issuer), called(name), key.public_key(), x509.random_serial_number())
        .not_valid_before(began)
        .not_valid_after(began + timedelta(days=365 * YEARS))
        .add_extension(x509.BasicConstraints(ca=signs_others, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(known.from_public_key(key.public_key()), critical=False)
        .add_extension(by.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not signs_others:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(issuer_key, None)
