"""What a server may send as "the app": configuration only. Code comes from the package that the site has installed.

Flower runs whatever app bundle (FAB) the server sends, with the rights of the client: a server, or whoever reaches its
control interface, could read all of a site's data. Here a bundle that brings code, or names other code than fedstill's
own, is refused before it is unpacked.
"""

from __future__ import annotations

import io
import tomllib
import zipfile
from typing import Any

from fedstill.common.errors import MismatchError

FILES = frozenset({"pyproject.toml", "README.md", "LICENSE", ".info/CONTENT"})
"""What a bundle may hold."""

CLIENT_APP = "fedstill.client.app:app"

LARGEST = 1 << 20
"""Bytes of a bundle, unpacked."""


def check_bundle(content: bytes) -> None:
    """Refuse a bundle with anything but configuration of fedstill's own apps.

    Raises:
        MismatchError: naming what is in it.
    """
    cure = "the server has to submit runs with 'fedstill run'"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
            strange = sorted(set(names) - FILES)
            if strange or len(names) != len(set(names)):
                raise MismatchError(f"an app with {', '.join(strange[:3]) or 'a file twice'}", "expected no code", cure)
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
                raise MismatchError("an app of more than 1 MiB", "expected configuration only", cure)
            config = tomllib.loads(archive.read("pyproject.toml").decode("utf-8"))
        named = config["tool"]["flwr"]["app"]["components"]["clientapp"]
    except (zipfile.BadZipFile, KeyError, TypeError, UnicodeDecodeError, tomllib.TOMLDecodeError, OSError) as error:
        raise MismatchError("an app", f"cannot be read: {error}", cure) from None
    if named != CLIENT_APP:
        raise MismatchError(f"an app that runs '{named}'", f"expected '{CLIENT_APP}'", cure)


def main() -> None:
    """Flower's `flwr-clientapp`, with a look at the bundle before it is unpacked."""
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp
    from flwr.supernode.runtime import run_clientapp

    module: Any = run_clientapp
    unpack = module.install_from_fab

    def checked(content: bytes, *arguments: Any, **options: Any) -> Any:
        check_bundle(content)
        return unpack(content, *arguments, **options)

    module.install_from_fab = checked
    flwr_clientapp()
