"""Real servers for the tests on the loopback interface: FTP by pyftpdlib, SFTP by paramiko's own server side."""

from __future__ import annotations

import datetime
import ipaddress
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import paramiko
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler, TLS_FTPHandler
from pyftpdlib.servers import FTPServer

USER, PASSWORD = "reader", "canary-5d1e word"


def certificate(folder: Path, name: str) -> Path:
    """A file with a key and a certificate for this address that it has signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sheaf tests")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(name))])
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file = folder / "certificate.pem"
    pem = serialization.Encoding.PEM
    file.write_bytes(key.private_bytes(pem, form, plain) + made.public_bytes(pem))
    return file


class Ftp:
    """without: commands that this server does not know. certificate: a file with it and its key, for FTPS."""

    def __init__(self, root: Path, without: tuple[str, ...] = (), certificate: Path | None = None) -> None:
        self.secure = certificate is not None
        logging.getLogger("pyftpdlib").setLevel(logging.CRITICAL)
        authorizer = DummyAuthorizer()
        authorizer.add_user(USER, PASSWORD, str(root), perm="elr")
        commands = {k: v for k, v in FTPHandler.proto_cmds.items() if k not in without}
        facts: dict[str, Any] = {"authorizer": authorizer, "proto_cmds": commands, "use_sendfile": False}
        if certificate is not None:
            commands = {k: v for k, v in TLS_FTPHandler.proto_cmds.items() if k not in without}
            facts |= {"proto_cmds": commands, "certfile": str(certificate)}
            facts |= {"tls_control_required": True, "tls_data_required": True, "ssl_context": None}
        self.handler = type("Handler", (TLS_FTPHandler if certificate else FTPHandler,), facts)
        self.server = FTPServer(("127.0.0.1", 0), self.handler)
        self.port = self.server.socket.getsockname()[1]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stop.is_set():
            self.server.serve_forever(timeout=0.05, blocking=False, handle_exit=False)
        self.server.close_all()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


class _Auth(paramiko.ServerInterface):
    def check_auth_password(self, username: str, password: str) -> int:
        good = (username, password) == (USER, PASSWORD)
        return paramiko.AUTH_SUCCESSFUL if good else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def get_allowed_auths(self, username: str) -> str:
        return "password"


class _Handle(paramiko.SFTPHandle):
    def __init__(self, owner: Sftp, path: str) -> None:
        super().__init__(os.O_RDONLY)
        self.readfile = os.fdopen(os.open(path, os.O_RDONLY), "rb")
        self._owner = owner

    def stat(self) -> Any:
        return paramiko.SFTPAttributes.from_stat(os.fstat(self.readfile.fileno()))

    def read(self, offset: int, length: int) -> Any:
        if self._owner.breaks and offset + length > self._owner.break_after:
            self._owner.breaks -= 1
            self._owner.cut()
            return paramiko.SFTP_FAILURE
        return super().read(offset, length)


class Sftp:
    """break_after: offset in a file whose reading breaks the connection, as often as `breaks` says."""

    def __init__(self, root: Path) -> None:
        self.key = paramiko.ECDSAKey.generate()
        self.root, self.breaks, self.break_after = root, 0, 0
        self.transports: list[paramiko.Transport] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        for transport in self.transports:
            transport.sock.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)  # closing alone does not wake `accept`
        self._socket.close()
        for transport in self.transports:
            transport.close()

    def _accept(self) -> None:
        logging.getLogger("paramiko").setLevel(logging.CRITICAL)
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                transport = paramiko.Transport(connection)
                transport.add_server_key(self.key)
                transport.set_subsystem_handler("sftp", paramiko.SFTPServer, _interface(self))
                self.transports.append(transport)
                # With an event it returns at once: one handshake that goes wrong must not hold up the next client.
                transport.start_server(event=threading.Event(), server=_Auth())


def _interface(owner: Sftp) -> type[paramiko.SFTPServerInterface]:
    class Interface(paramiko.SFTPServerInterface):
        def _real(self, path: str) -> str:
            return str(owner.root) + self.canonicalize(path)

        def list_folder(self, path: str) -> Any:
            try:
                found: list[paramiko.SFTPAttributes] = []
                for file in Path(self._real(path)).iterdir():
                    attributes = paramiko.SFTPAttributes.from_stat(file.lstat())
                    attributes.filename = file.name
                    found.append(attributes)
                return found
            except OSError as error:
                return paramiko.SFTPServer.convert_errno(error.errno or 0)

        def lstat(self, path: str) -> Any:
            try:
                return paramiko.SFTPAttributes.from_stat(os.lstat(self._real(path)))
            except OSError as error:
                return paramiko.SFTPServer.convert_errno(error.errno or 0)

        stat = lstat

        def open(self, path: str, flags: int, attr: Any) -> Any:
            try:
                return _Handle(owner, self._real(path))
            except OSError as error:
                return paramiko.SFTPServer.convert_errno(error.errno or 0)

    return Interface


@contextmanager
def ftp_server(root: Path, without: tuple[str, ...] = (), certificate: Path | None = None) -> Iterator[Ftp]:
    server = Ftp(root, without, certificate)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def sftp_server(root: Path) -> Iterator[Sftp]:
    server = Sftp(root)
    try:
        yield server
    finally:
        server.close()
