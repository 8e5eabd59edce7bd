"""Jobs of sweeps: planning, scheduling, executing."""
