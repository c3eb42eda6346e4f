"""Losses at fixed mask rates, minimal pairs, sweeps, statistics over seeds, benchmarks and profiles."""
