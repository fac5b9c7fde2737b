"""Loopback ports and listening sockets for the processes that we start."""

import errno
import secrets
import socket

import click

# Below the range from which Linux takes the ports of outgoing connections, so that a worker that restarts finds its
# port free.
_FIRST, _LAST = 20_000, 32_000
_TRIES = 500


def listen(host: str, port: int, backlog: int = 2048) -> socket.socket:
    """A listening TCP socket; raises `click.ClickException` in one clear line where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=backlog)
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise click.ClickException(
            f"port {port} on {host} {reason}; choose another with --port N (make run PORT=N)"
        ) from error


def free_ports(count: int, host: str = "127.0.0.1") -> int:
    """The first of `count` consecutive ports that are free now."""
    for _ in range(_TRIES):
        first = _FIRST + secrets.randbelow(_LAST - _FIRST - count)
        if all(is_free(host, port) for port in range(first, first + count)):
            return first
    raise click.ClickException(f"no {count} free ports in a row were found between {_FIRST} and {_LAST}")


def is_free(host: str, port: int) -> bool:
    """Whether `port` can be listened on now."""
    try:
        listen(host, port).close()
    except click.ClickException:
        return False
    return True
