"""The diffusion transformer on packed spacetime tokens, and what it is conditioned on."""
