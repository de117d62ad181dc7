"""Head-related impulse responses: measured and modelled."""
