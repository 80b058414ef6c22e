"""The local droplet: its disk image, its virtual machine, and whether that is accelerated."""
