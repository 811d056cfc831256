"""The names that a server answers to, and the addresses that it can be opened at.

A page elsewhere may let its own name point to this machine (DNS rebinding): to the browser it is then of one origin
with the server, and would read its answers. The header Host gives it away. An attack needs a name, so addresses (IP
literals) are answered, and of names only those of this machine.
"""

import ipaddress
import socket
import urllib.parse
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tf_unravel.deployment.serving.gate import refusal

_EVERYWHERE = ("", "0.0.0.0")


class OnlyNames:
    """ASGI middleware: 403 to a request for a host that is neither an address nor one of some names.

    Args:
        app: what answers the others.
        names: besides localhost and the machine's own name.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str] = ()):
        self.app = app
        self.names = {name.lower() for name in ("localhost", socket.gethostname(), *names) if name}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host") if scope["type"] == "http" else None
        if host is None or self._answers_to(name_in(host)):  # every browser sends one
            return await self.app(scope, receive, send)
        line = ("this server answers to localhost, its machine's name and addresses; start it with --allow_host=NAME "
                f"for another name, such as a proxy's. Received: host {host[:100]}")
        return await refusal(403, line)(scope, receive, send)

    def _answers_to(self, name: str) -> bool:
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        return True


def name_in(host: str) -> str:
    """The name or address in a header Host, without the port; "" if there is none."""
    try:
        return (urllib.parse.urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:  # a bracket too few
        return ""


def check_names(names: Iterable[str]) -> None:
    """Refuses what a browser would send as no host's name.

    Raises:
        ValueError: one of them has more than a name, or is empty.
    """
    for name in names:
        if not name or name_in(name) != name.lower():
            raise ValueError("--allow_host must be a host's name alone, such as photos.example.org. "
                             f"Received: {name or 'nothing'}")


def opened_at(host: str) -> list[str]:
    """The hosts in the addresses of a server that listens at one: this machine's, then the network's if there is one.

    Args:
        host: listened at; "0.0.0.0", which is every address of the machine, can itself not be opened.
    """
    if host not in _EVERYWHERE:
        return [host]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent: it only chooses the address that would send
        except OSError:  # no network
            return ["localhost"]
        return ["localhost", probe.getsockname()[0]]
