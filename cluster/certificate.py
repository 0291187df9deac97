"""A node's own certificate for Ray's TLS, signed by the cluster's authority, so that nodes trust nobody else.

    python -m sote.cluster.certificate --authority DIR --out DIR NAME [NAME ...]

`--authority` holds `tls.crt` and `tls.key` (a Secret of type kubernetes.io/tls), `NAME`s are the addresses and names
that the node is reached by. Written are `tls.crt`, `tls.key` and `ca.crt`, for RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY
and RAY_TLS_CA_CERT. With `--new` the authority itself is made first, where there is none.

Kind: pure, but for files.
"""

import argparse
import ipaddress
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sote.cluster.errors import UserError

CERTIFICATE: Final = "tls.crt"
KEY: Final = "tls.key"
AUTHORITY: Final = "ca.crt"
DAYS: Final = 825  # a pod or node lives less long; Apple's bound for certificates that are trusted at all
AUTHORITY_DAYS: Final = 3650
CLOCKS_MINUTES: Final = 5  # by which the clocks of nodes may differ


def make_authority(folder: Path) -> None:
    """Make a new authority in `folder`. Raises UserError if one lies there: what it signed would be worth nothing."""
    if (folder / KEY).exists():
        raise UserError(f"{folder / KEY}: is an authority already; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Sote cluster")])
    made = _begun(name, name, key.public_key(), AUTHORITY_DAYS)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    _write(folder, key, made.sign(key, hashes.SHA256()))


def make(authority: Path, out: Path, names: list[str]) -> None:
    """Make a key and a certificate for a node in `out`; what lies there is replaced.

    Raises UserError for an authority that is not there, or not of the kind that `make_authority` makes.
    """
    if not (authority / KEY).is_file():
        raise UserError(f"{authority}: holds no {KEY}; make an authority with --new")
    signer = x509.load_pem_x509_certificate((authority / CERTIFICATE).read_bytes())
    signing = serialization.load_pem_private_key((authority / KEY).read_bytes(), password=None)
    if not isinstance(signing, ec.EllipticCurvePrivateKey):
        raise UserError(f"{authority / KEY}: is no key of an elliptic curve; make the authority with --new")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Sote node")])
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]  # each node is asked and asks
    made = (
        _begun(subject, signer.subject, key.public_key(), DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_name(each) for each in names]), critical=False)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
    )
    out.mkdir(parents=True, exist_ok=True)
    _write(out, key, made.sign(signing, hashes.SHA256()))
    (out / AUTHORITY).write_bytes(signer.public_bytes(serialization.Encoding.PEM))


def _begun(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    begin = datetime.now(UTC) - timedelta(minutes=CLOCKS_MINUTES)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=days))
    )


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _write(folder: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    data = key.private_bytes(pem, pkcs8, serialization.NoEncryption())
    with os.fdopen(os.open(folder / KEY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    (folder / CERTIFICATE).write_bytes(certificate.public_bytes(pem))


def main() -> None:
    """The command."""
    asked = argparse.ArgumentParser(description="a node's certificate for Ray's TLS")
    asked.add_argument("--authority", type=Path, required=True)
    asked.add_argument("--out", type=Path, required=True)
    asked.add_argument("--new", action="store_true", help="make the authority where there is none")
    asked.add_argument("names", nargs="+", metavar="NAME")
    words = asked.parse_args()
    try:
        if words.new and not (words.authority / KEY).exists():
            make_authority(words.authority)
        make(words.authority, words.out, words.names)
    except UserError as error:
        print(f"sote: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
