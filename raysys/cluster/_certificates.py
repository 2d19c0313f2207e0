"""Certificates for TLS between the nodes of a cluster."""

from __future__ import annotations

import ipaddress
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysys.errors import RaysysError
from raysys.imports import lazy_import

if TYPE_CHECKING:
    from collections.abc import Sequence

x509 = lazy_import("cryptography.x509")
hashes = lazy_import("cryptography.hazmat.primitives.hashes")
serialization = lazy_import("cryptography.hazmat.primitives.serialization")
elliptic = lazy_import("cryptography.hazmat.primitives.asymmetric.ec")

_MAX_ADDRESSES = 1024
_AUTHORITY = "raysys cluster authority"
CA, CERTIFICATE, KEY = "ca.crt", "node.crt", "node.key"


def make_certificates(
    folder: str | Path, hosts: Sequence[str], *, days: int = 365
) -> dict[str, str]:
    """Create a certificate authority and one certificate for all nodes and clients of a cluster.

    Ray verifies a node's certificate against its address, so the certificate names all addresses.
    The authority's private key is discarded: a new certificate requires a new authority and a
    restart of all nodes.

    Args:
        folder: Folder for `ca.crt`, `node.crt` and `node.key`; copy it to every node and to
            clients that connect with `ray.init`. Only its owner can read the key.
        hosts: Addresses and names of the nodes, or networks such as `10.0.1.0/24` for machines
            with changing addresses. Loopback and this machine's own address are always included.
        days: Validity of the certificate in days.

    Returns:
        Environment variables for every node and client.

    Raises:
        RaysysError: A host is invalid, there are too many, or the folder has certificates.

    Example:
        >>> import tempfile
        >>> env = make_certificates(tempfile.mkdtemp(), ["10.0.1.0/24", "head.example"])
        >>> sorted(env)
        ['RAY_TLS_CA_CERT', 'RAY_TLS_SERVER_CERT', 'RAY_TLS_SERVER_KEY', 'RAY_USE_TLS']
    """
    folder = Path(folder).expanduser().absolute()
    if existing := [name for name in (CA, CERTIFICATE, KEY) if (folder / name).exists()]:
        raise RaysysError(
            f"{folder} already has {', '.join(existing)}, which a running cluster may use: use "
            "another folder, or remove them"
        )
    names = [_general_name(host) for host in _expanded(hosts)]
    authority_key, node_key = (
        elliptic.generate_private_key(elliptic.SECP256R1()) for _ in range(2)
    )
    authority = (
        _builder(_AUTHORITY, authority_key, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    purposes = [x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _builder("raysys node", node_key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    pem = serialization.Encoding.PEM
    form, encryption = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    create_file(folder / KEY, node_key.private_bytes(pem, form, encryption), 0o600)
    create_file(folder / CERTIFICATE, certificate.public_bytes(pem), 0o644)
    create_file(folder / CA, authority.public_bytes(pem), 0o644)
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(folder / CERTIFICATE),
        "RAY_TLS_SERVER_KEY": str(folder / KEY),
        "RAY_TLS_CA_CERT": str(folder / CA),
    }


def _expanded(hosts: Sequence[str]) -> list[str]:
    """Hosts and all addresses of networks, without duplicates."""
    from ray.util import get_node_ip_address

    expanded = ["localhost", "127.0.0.1", "::1", get_node_ip_address()]
    for host in hosts:
        if "/" not in host:
            expanded.append(host)
            continue
        try:
            network = ipaddress.ip_network(host, strict=False)
        except ValueError as error:
            raise RaysysError(f"{host!r} is not a network such as 10.0.1.0/24") from error
        if network.num_addresses > _MAX_ADDRESSES:
            raise RaysysError(
                f"{host} has {network.num_addresses} addresses, more than the maximum of "
                f"{_MAX_ADDRESSES}: use the subnet of the nodes, such as 10.0.0.0/22"
            )
        expanded += [str(address) for address in network]
    return list(dict.fromkeys(expanded))


def _general_name(host: str) -> Any:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not host.replace("-", "").replace(".", "").replace("*", "").isalnum():
            raise RaysysError(
                f"{host!r} is not a host: use an address, a name or a network such as 10.0.1.0/24"
            ) from None
        return x509.DNSName(host)


def _builder(subject: str, key: Any, days: int) -> Any:
    subject_name, issuer_name = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        for name in (subject, _AUTHORITY)
    )
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject_name)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=10))  # tolerates clock differences
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs: bool) -> Any:
    return x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=signs,
        content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def create_file(path: Path, data: bytes, mode: int) -> None:
    """Write a new file that has its final permissions from the start."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
