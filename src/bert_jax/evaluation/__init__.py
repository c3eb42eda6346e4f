"""Losses at fixed mask rates, minimal pairs, sweeps, spread over seeds, benchmarks."""
