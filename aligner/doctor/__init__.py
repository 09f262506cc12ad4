"""What this machine can do: checks of devices, 4-bit layers, launchers, versions and numerics."""
