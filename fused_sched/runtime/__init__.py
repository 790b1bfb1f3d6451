"""A step: what the host keeps of an optimizer, its mirror of the devices, and the launches."""
