"""The core: the same for every threat, and naming none of them."""
