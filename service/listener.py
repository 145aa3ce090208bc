"""The listening sockets of the server."""

import socket

_UNREAD_MS = 30_000  # milliseconds that sent bytes may stay unacknowledged


class ListenError(Exception):
    """The address cannot be listened on; the message says why and what to do."""


def listen(host: str, port: int, setting: str = "--port (or SID_PORT)") -> socket.socket:
    """Open a listening socket.

    Args:
        host, port: the address.
        setting: what says another port, for people.

    Raises:
        ListenError: the address is taken, or not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; each connection inherits it
                # A client that takes nothing of its answer does not hold it for ever.
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise ListenError(
            f"cannot listen on {host}:{port}: {reason}; choose another with {setting}"
        ) from error
    return listener


def address_of(listener: socket.socket) -> str:
    """The URL of what listens there."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
