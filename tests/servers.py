"""Servers on loopback for the tests of remotes: `python servers.py s3`, or `ssh <file>`; prints its port, then serves.

The SFTP server lets everyone in. What the file says, if it is there, is what writers are told: `denied` or `full`.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any


def s3() -> None:
    """A bucket store that forgets all when it ends."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
    print(server.server_port, flush=True)
    server.serve_forever()


async def ssh(refusal: Path) -> None:
    """Files over SSH."""
    import asyncssh

    class Files(asyncssh.SFTPServer):  # type: ignore[misc]
        def open(self, path: bytes, pflags: int, attrs: Any) -> Any:
            kind = refusal.read_text() if refusal.exists() else ""
            if pflags & asyncssh.FXF_WRITE and kind == "denied":
                raise asyncssh.SFTPPermissionDenied("Permission denied")
            if pflags & asyncssh.FXF_WRITE and kind == "full":
                raise asyncssh.SFTPFailure("No space left on device")
            return super().open(path, pflags, attrs)

    class Everyone(asyncssh.SSHServer):  # type: ignore[misc]
        def begin_auth(self, username: str) -> bool:  # noqa: ARG002
            return False

    keys = [asyncssh.generate_private_key("ssh-ed25519")]
    server = await asyncssh.create_server(Everyone, "127.0.0.1", 0, server_host_keys=keys, sftp_factory=Files)
    print(server.get_port(), flush=True)
    await server.wait_closed()


if __name__ == "__main__":
    s3() if sys.argv[1] == "s3" else asyncio.run(ssh(Path(sys.argv[2])))
