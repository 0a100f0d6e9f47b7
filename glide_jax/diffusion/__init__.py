"""Gaussian diffusion: schedules, the forward process, losses, denoisers, guidance and solvers; no model inside."""
