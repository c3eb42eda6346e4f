"""Output that is whole or absent."""
