"""The stream: MRD messages in, images out."""

from __future__ import annotations

from typing import Any


def reconstruct(connection: Any) -> None:
    """The target of Gadgetron's `<execute name="scanprior.gadgets" target="reconstruct" type="python"/>`.

    Parameters
    ----------
    connection
        A `gadgetron.external.Connection`; see `scanprior.gadgets.execute`.
    """
    # imported here, so that `import scanprior.gadgets` costs nothing
    from scanprior.gadgets import execute

    execute.reconstruct(connection)
