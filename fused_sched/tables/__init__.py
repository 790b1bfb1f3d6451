"""The data of a launch: where it lies and how it gets to the device."""
