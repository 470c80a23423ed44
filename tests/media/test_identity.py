"""Who signs: the identity that is asked for, or one that is made once and kept."""

from __future__ import annotations

import multiprocessing
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from worldline.cli import main
from worldline.errors import UserError
from worldline.media import identity as module
from worldline.media.credentials import check_signer, verify
from worldline.media.identity import SIGN_WITH, identity, read_identity
from worldline.media.provenance import provenance
from worldline.media.write import write_image

RECORD = provenance("a red ball", seed=7, model_hash="ab" * 32)
KEYS = {
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "p-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
}


def own(folder: Path, kind: str = "p-256", days: int = 30, usage: bool = True) -> Path:
    """A PEM file of somebody's own, whose authority is in it."""
    root, key = ec.generate_private_key(ec.SECP256R1()), KEYS[kind]()
    chain = [certified("Ann", key, root, days, usage), certified("An Authority", root, root, days, usage)]
    held = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    path = folder / f"{kind}.pem"
    path.write_bytes(held + b"".join(one.public_bytes(form.Encoding.PEM) for one in chain))
    return path


def certified(name: str, key: Any, root: Any, days: int, usage: bool) -> Any:
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "An Authority")])
    words = ((x509.NameOID.ORGANIZATION_NAME, "Example"), (x509.NameOID.COMMON_NAME, name))
    subject = issuer if key is root else x509.Name([x509.NameAttribute(*word) for word in words])
    now, flags = datetime.now(UTC), ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    bits = dict.fromkeys([*flags, "encipher_only", "decipher_only"], False)
    bits |= {"digital_signature": key is not root, "key_cert_sign": key is root, "crl_sign": key is root}
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=60)).not_valid_after(now + timedelta(days=days))
    builder = builder.add_extension(x509.BasicConstraints(key is root, None), True)
    builder = builder.add_extension(x509.KeyUsage(**bits), True)
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key())
    builder = builder.add_extension(by, False)
    if key is not root and usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
    return builder.sign(root, hashes.SHA256())


def signed(folder: Path) -> Path:
    path = folder / "a.png"
    write_image(path, np.zeros((8, 8, 3), np.uint8), RECORD)
    return path


@pytest.mark.parametrize("kind", KEYS)
def test_an_identity_of_ones_own(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = own(tmp_path, kind)
    monkeypatch.setenv(SIGN_WITH, str(pem))
    check_signer()
    file = signed(tmp_path)
    report = verify(file)
    assert (report.state, report.trusted) == ("sound", False)
    assert report.signer is not None
    assert (report.signer["name"], report.signer["organisation"]) == ("Ann", "Example")
    assert not report.signer["development"]
    assert verify(file, pem).trusted
    (tmp_path / "other").mkdir()
    assert not verify(file, own(tmp_path / "other", kind)).trusted


def test_a_development_identity_is_made_once_and_is_its_users_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    first = identity()
    file = tmp_path / "config" / "worldline" / "development.pem"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["development.pem"]
    module._development.cache_clear()
    assert identity() == first
    check_signer()
    assert verify(signed(tmp_path), file).trusted


def test_processes_that_come_at_once_get_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        made = [pool.apply_async(identity) for _ in range(6)]
        assert len({one.get(60) for one in made}) == 1


def test_where_it_cannot_be_kept_files_are_signed_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    assert verify(signed(tmp_path)).state == "sound"


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda folder: folder / "missing.pem", "cannot be read"),
        (lambda folder: Path(folder / "a.pem").write_text("hello") and folder / "a.pem", "no private key"),
        (lambda folder: own(folder, days=-1), "ended on"),
        (lambda folder: own(folder, usage=False), "the certificate is invalid"),
    ],
)
def test_a_bad_identity_is_told_before_any_work(
    made: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SIGN_WITH, "")  # as it was, when the test is over
    words = ["generate", "a red ball", "-o", str(tmp_path / "a.mp4"), "--sign-with", str(made(tmp_path)), "--dry-run"]
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_a_key_of_another_certificate(tmp_path: Path) -> None:
    first, second = own(tmp_path, "p-256").read_text(), own(tmp_path, "p-384").read_text()
    mixed = tmp_path / "mixed.pem"
    mixed.write_text(first[: first.index("-----BEGIN CERT")] + second[second.index("-----BEGIN CERT") :])
    with pytest.raises(UserError, match="of another key"):
        read_identity(mixed)
