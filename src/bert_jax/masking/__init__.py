"""Which tokens are masked, and what replaces them."""
