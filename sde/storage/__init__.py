"""Storage: how bytes survive a kill, a full disk and a reader that looks on.

The modules are imported one by one: `sde.storage.store` needs no torch.
"""

__all__: list[str] = []
