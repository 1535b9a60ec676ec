"""Storage that survives a killed process and a full disk, and can be read while it is written.

The modules are imported one by one: `sde.storage.store` needs no torch.
"""

__all__: list[str] = []
